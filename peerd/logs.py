"""What peerd recorded, on this machine and on peers, as it is and as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import Any

from peerd import records, remote
from peerd.answer import Answer
from peerd.environment import LANG, PATH
from peerd.errors import Code, PeerdError
from peerd.node import Node
from peerd.peers import Peer
from peerd.records import Query, Record
from peerd.session import Session

_CHUNK = 64 * 1024
_MAX_LINE = 512 * 1024
_MAX_READERS = 32

Batches = AsyncGenerator[list[Record], None]


class Reader:
    """Reads this machine's journal, by journalctl(1): whatever it takes, it is another process that takes it."""

    def __init__(self, program: str = "journalctl") -> None:
        self._program = program
        self._running = 0

    async def read(self, query: Query, cancel: asyncio.Event) -> Batches:
        """The records, some at a time, until there are no more or ``cancel`` is set.

        :raises PeerdError: BUSY, USAGE where journalctl does not understand ``since``, INTERNAL
        """
        if self._running >= _MAX_READERS:
            raise PeerdError(Code.BUSY, reason=f"{_MAX_READERS} readers of the journal already")
        arguments = ["--output=json", "--all", "--quiet", "--no-pager", f"--lines={query.count}"]
        arguments += [f"--since={query.since}"] * bool(query.since) + ["--follow"] * query.follow
        # Other users can write records that look like peerd's.
        matches = ["SYSLOG_IDENTIFIER=peerd", f"_UID={os.getuid()}"]
        self._running += 1
        process: asyncio.subprocess.Process | None = None
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                *matches,
                env={"PATH": PATH, "LANG": LANG},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout
            assert process.stderr
            rest = b""
            while chunk := await _unless(cancel, process.stdout.read(_CHUNK)):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE:
                    raise PeerdError(Code.INTERNAL, reason="a record of the journal is too long")
                if batch := [record for line in whole if (record := records.from_journal(line))]:
                    yield batch
            if not cancel.is_set() and await process.wait():
                said = (await process.stderr.read(_CHUNK)).decode("utf-8", "replace").strip()
                if query.since:
                    raise PeerdError(Code.USAGE, reason=f"--since {query.since}: {said}")
                raise PeerdError(Code.INTERNAL, reason=f"journalctl: {said}")
        finally:
            self._running -= 1
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()


class Logs:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reader = Reader()

    async def do_log(
        self,
        session: Session,
        peer: str | None = None,
        since: str = "",
        lines: int | None = None,
        follow: bool = False,
    ) -> Answer:
        """The records of this machine, or of a peer."""
        query = Query(since, lines, follow)
        if peer is None or peer == self._node.peer_id:
            batches = self._reader.read(query, session.cancel)
        else:
            batches = self._of_peer(await self._node.resolve(peer), query, session.cancel)
        if follow:
            return Answer(more=batches)
        async with contextlib.aclosing(batches):
            return Answer([record async for batch in batches for record in batch])

    async def _of_peer(self, target: Peer, query: Query, cancel: asyncio.Event) -> Batches:
        try:
            async with self._node.pool.borrow(target.ip_address) as link:
                await link.send("getLog", query.to_wire())
                while not cancel.is_set():
                    frame = await _unless(cancel, link.receive())
                    if cancel.is_set():
                        break
                    if frame is None:
                        raise ConnectionError("closed before its end")
                    if frame.type == "error":
                        raise PeerdError.from_wire(frame.fields)
                    if frame.type == "reply":
                        return
                    if frame.type == "records":
                        yield records.from_wire(frame.fields)
                # What is on its way may be much; the connection is of no more use.
                await link.send("cancel")
                link.abort()
        except OSError as error:
            raise remote.connect_failed(target, error) from None


async def _unless(cancel: asyncio.Event, work: Any) -> Any:
    """What a coroutine returns, or None when ``cancel`` was set first."""
    working, cancelled = asyncio.ensure_future(work), asyncio.ensure_future(cancel.wait())
    try:
        await asyncio.wait({working, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        return None if cancel.is_set() else working.result()
    finally:
        for task in (working, cancelled):
            task.cancel()
        await asyncio.wait({working, cancelled})
        if working.done() and not working.cancelled():
            working.exception()
