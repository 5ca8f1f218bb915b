"""What peerd recorded, on this machine and on peers, as it is and as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace

from peerd import records, remote
from peerd.answer import Answer, Batch, Record
from peerd.backoff import Backoff
from peerd.connection import Connection
from peerd.environment import LANG, PATH
from peerd.errors import Code, PeerdError
from peerd.journal import report
from peerd.node import Node
from peerd.peers import Peer
from peerd.records import Query
from peerd.session import Session, unless

_CHUNK = 64 * 1024
_MAX_LINE = 512 * 1024
_MAX_READERS = 32
_OF_A_PEER = _MAX_READERS // 2
_QUIET_ATTEMPTS = 4
"""To get back to a peer: a restart of peerd takes no longer, and needs no words."""
_COMING_BACK = (Code.NOT_CONNECTED, Code.CONNECT_FAILED, Code.BUSY)
"""What is so for a while after a restart or an outage; at a peer one's own former readers may still be there."""
_MAX_HELD = 64 * 1024 * 1024
"""Bytes of records that are held for one answer."""

Batches = AsyncGenerator[Batch, None]
Stops = Sequence[asyncio.Event]
"""Each of these events ends the reading."""


class Reader:
    """Reads this machine's journal, by journalctl(1): whatever it takes, it is another process that takes it."""

    def __init__(self, program: str = "journalctl") -> None:
        self._program = program
        self._running: Counter[str] = Counter()

    async def read(self, query: Query, stops: Stops, peer: str = "") -> Batches:
        """The records, some at a time, until there are no more or one of the events is set.

        :param peer: who asks, if it is a peer: so that one of them leaves room for the others
        :raises PeerdError: BUSY, INTERNAL
        """
        if self._running.total() >= _MAX_READERS:
            raise PeerdError(Code.BUSY, reason=f"{_MAX_READERS} readers of the journal already")
        if peer and self._running[peer] >= _OF_A_PEER:
            raise PeerdError(Code.BUSY, reason=f"{_OF_A_PEER} readers of the journal for {peer} already")
        self._running[peer] += 1
        try:
            async with contextlib.aclosing(self._read(query, stops)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._running -= Counter((peer,))

    async def _read(self, query: Query, stops: Stops) -> Batches:
        place: list[str] = []
        if query.after:
            place = [f"--after-cursor={query.after}"]
        elif query.since or query.follow:
            # Where it begins is found first: from its first word on, who is cut off knows where to go on.
            newest = await self._place(stops, "--lines=1") if query.follow else ""
            since = [f"--since=@{query.since:.6f}"] if query.since else []
            # Backwards: with --since, journalctl of systemd 252 takes --lines for the first so many.
            back = ["--reverse", *since, f"--lines={query.count}"]
            oldest = await self._place(stops, *back) if query.count else ""
            if _any(stops) or not (oldest or query.follow):
                return
            if oldest:
                place = [f"--cursor={oldest}"]
            elif newest:
                place = [f"--after-cursor={newest}"]
                yield Batch([], newest)
        how = ["--follow", "--lines=all"] if query.follow else [f"--lines={query.count}"]
        async with contextlib.aclosing(self._run(stops, *place, *how)) as batches:
            async for batch in batches:
                yield batch

    async def _place(self, stops: Stops, *arguments: str) -> str:
        """The cursor of the last record that journalctl shows with these arguments, or ""."""
        cursor = ""
        async with contextlib.aclosing(self._run(stops, "--output-fields=PRIORITY", *arguments)) as batches:
            async for batch in batches:
                cursor = batch.cursor
        return cursor

    async def _run(self, stops: Stops, *arguments: str) -> Batches:
        # Other users can write records that look like peerd's.
        matches = ["SYSLOG_IDENTIFIER=peerd", f"_UID={os.getuid()}"]
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *("--output=json", "--all", "--quiet", "--no-pager"),
                *arguments,
                *matches,
                env={"PATH": PATH, "LANG": LANG},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            # It is no fault of the connection to the caller, and must not be taken for one.
            report(error, "journalctl")
            raise PeerdError(Code.INTERNAL, reason=f"journalctl: {error.strerror}") from None
        assert process.stdout
        assert process.stderr
        try:
            rest = b""
            while chunk := await unless(stops, process.stdout.read(_CHUNK)):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE:
                    raise PeerdError(Code.INTERNAL, reason="a record of the journal is too long")
                try:
                    batch = records.from_journal(whole)
                except ValueError as error:
                    raise PeerdError(Code.INTERNAL, reason=f"journalctl: {error}") from None
                if batch.cursor:
                    yield batch
            if not _any(stops) and await process.wait():
                said = (await process.stderr.read(_CHUNK)).decode("utf-8", "replace").strip()
                raise PeerdError(Code.INTERNAL, reason=f"journalctl: {said}")
        finally:
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
        since: float = 0.0,
        lines: int | None = None,
        follow: bool = False,
    ) -> Answer:
        """The records of this machine, or of a peer."""
        query = Query(since, lines, follow, session.after)
        stops = (session.cancel, session.gone)
        if peer is None or peer == self._node.peer_id:
            batches = self._reader.read(query, stops)
        else:
            batches = self._of_peer(peer, query, stops, session.say)
        if follow:
            return Answer(more=batches)
        async with contextlib.aclosing(batches):
            found, whole = await _last(batches)
        if not whole or (lines is None and since and len(found) >= query.count):
            session.say(f"These are the last {len(found)} records; for earlier ones there: journalctl -t peerd")
        return Answer(found)

    async def _of_peer(self, peer_id: str, query: Query, stops: Stops, say: Callable[[str], None]) -> Batches:
        """The records of a peer. Who follows them goes on where they ended, once the peer is there again.

        :raises PeerdError: PEER_NOT_FOUND, CONNECT_FAILED, BAD_MESSAGE, or why the leader or the peer refuses
        """
        backoff = Backoff()
        while True:
            try:
                async with contextlib.aclosing(self._ask(peer_id, query, stops)) as batches:
                    async for batch in batches:
                        query = replace(query, after=batch.cursor)
                        backoff.reset()
                        yield batch
                return
            except PeerdError as error:
                if error.code not in _COMING_BACK or not (query.follow and query.after):
                    raise
                if refusal := self._node.refusal:
                    # Nor does the peer hear of it any more.
                    raise refusal from None
            pause = backoff.take()
            if backoff.taken == _QUIET_ATTEMPTS:
                say(f"Connection to {peer_id} lost, waiting for it")
            await unless(stops, asyncio.sleep(pause))
            if _any(stops):
                return

    async def _ask(self, peer_id: str, query: Query, stops: Stops) -> Batches:
        # Each time anew: meanwhile the id may have become another's, or nobody's.
        target = await unless(stops, self._node.resolve(peer_id))
        if target is None:
            return
        received = 0
        async with remote.borrow(self._node.pool, target) as link, self._leaving(target, link):
            await link.send("getLog", query.to_wire())
            while not _any(stops):
                frame = await unless(stops, link.receive_or_end())
                if _any(stops):
                    break
                if frame is None:
                    raise ConnectionError("closed before its end")
                if frame.type == "error":
                    raise PeerdError.from_wire(frame.fields)
                if frame.type == "reply":
                    return
                if frame.type == "records":
                    batch = records.from_wire(frame.fields)
                    received += len(batch.records)
                    if received > query.count and not query.follow:
                        raise PeerdError(Code.BAD_MESSAGE, reason=f"more than {query.count} records")
                    yield batch
            # What is on its way may be much; the connection is of no more use.
            await link.send("cancel")
            link.abort()

    @contextlib.asynccontextmanager
    async def _leaving(self, target: Peer, link: Connection) -> AsyncIterator[None]:
        """End the connection of who stops being this peer while the block runs."""

        async def leave() -> None:
            await self._node.departure(target)
            link.abort()

        leaving = asyncio.create_task(leave())
        try:
            yield
        finally:
            leaving.cancel()


async def _last(batches: Batches) -> tuple[list[Record], bool]:
    """The records, or the last of them that may be held; and whether that is all."""
    found: deque[Record] = deque()
    held, whole = 0, True
    async for batch in batches:
        for record in batch.records:
            found.append(record)
            held += _size(record)
        while held > _MAX_HELD:
            held -= _size(found.popleft())
            whole = False
    return list(found), whole


def _size(record: Record) -> int:
    return sys.getsizeof(record) + sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in record.items())


def _any(stops: Stops) -> bool:
    return any(stop.is_set() for stop in stops)
