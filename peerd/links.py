"""The one persistent link of a worker to its leader, and what comes over it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from peerd import connection, validate
from peerd.backoff import Backoff
from peerd.bookreader import entries, receive_book
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Code, Outcome, PeerdError
from peerd.journal import report
from peerd.messages import Registration, take, take_optional
from peerd.peers import Peer, PeerBook
from peerd.pool import Connect
from peerd.protocol import Frame

_REFUSED_DELAY = 60.0
"""Seconds until a worker that was refused asks again."""
_MISSED_HEARTBEATS = 2.5
"""Intervals without a word after which the leader counts as gone."""


class LeaderLink:
    """A worker's connection to its leader: registers, sends heartbeats and keeps the copy of the registry.

    :ivar book: the peers as the leader last said, kept while the leader is away
    :ivar error: why there is no connection, or None

    :param me: gives what to register
    :param config: gives the settings in force
    :param changed: called with a sentence when the link comes or goes
    :param updated: called when the copy of the registry has changed
    :param removed: called with a peer that the leader has removed
    :param refused: called when the leader refuses the registration for another reason than the last time
    :param book: the peers as this leader said before
    """

    def __init__(
        self,
        address: str,
        connect: Connect,
        me: Callable[[], Registration],
        config: Callable[[], Config],
        changed: Callable[[bool, str], None],
        refused: Callable[[PeerdError], None] = lambda error: None,
        updated: Callable[[], None] = lambda: None,
        removed: Callable[[Peer], None] = lambda peer: None,
        book: PeerBook | None = None,
    ) -> None:
        self.address = address
        self.book = PeerBook() if book is None else book
        self.connected = False
        self.error: PeerdError | None = None
        self._connect = connect
        self._me = me
        self._config = config
        self._changed = changed
        self._updated = updated
        self._removed = removed
        self._refused = refused
        self._wake = asyncio.Event()
        self._doubt = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        self._decided = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def outcome(self, timeout: float) -> PeerdError | None:
        """Wait for the first attempt to register. Returns why it failed, or None when it succeeded."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._decided.wait()
        return None if self.connected else self.error or self.unavailable()

    def unavailable(self) -> PeerdError:
        """The error for whoever needs the leader now."""
        if self.error and self.error.kind.outcome is Outcome.DENIED:
            return self.error
        if self.error and self.error.code is Code.NOT_CONNECTED:
            return self.error
        reason = f" ({self.error.sentence})" if self.error else ""
        return PeerdError(Code.NOT_CONNECTED, address=self.address, reason=reason)

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, in one line; None where nothing went wrong."""
        if self.error is None:
            return None
        # Of this one only the hints have the reason.
        reason = self.error.details.get("reason", "") if self.error.code is Code.NOT_CONNECTED else ""
        return f"{self.error.sentence}{reason}"

    def wake(self) -> None:
        """The network has changed, or the machine slept: try again at once, or see if the leader is still there."""
        if self.connected:
            self._doubt.set()
        else:
            self._wake.set()

    async def close(self) -> None:
        """Disconnect and stop trying."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            self._wake.clear()
            before = self.error
            try:
                await self._session()
            except PeerdError as error:
                self.error = error
            except OSError as error:
                self.error = PeerdError(Code.NOT_CONNECTED, address=self.address, reason=f" ({connection.why(error)})")
            except Exception as error:
                # Whatever it was, a worker that stopped trying would be cut off until somebody notices.
                report(error, f"link to the leader at {self.address}")
                self.error = PeerdError(Code.INTERNAL, reason=type(error).__name__)
            if self.connected:
                self.connected = False
                leader = self.book.by_address(self.address)
                if leader:
                    self.book.see(leader.peer_id, time.time(), online=False)
                self._changed(False, self.trouble or "connection closed")
                backoff.reset()
            refused = self.error is not None and self.error.kind.outcome is Outcome.DENIED
            if self.error and refused and (before is None or before.code is not self.error.code):
                self._refused(self.error)
            self._decided.set()
            if self.error and self.error.code is Code.DELETED:
                self.book = PeerBook()
                self._updated()
                return
            if self.error and self.error.code is Code.PENDING:
                # The approval may come at any moment.
                refused = False
                backoff.reset(Backoff.LONGEST)
            if refused:
                backoff.reset(_REFUSED_DELAY)
            pause = backoff.take()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            if time.monotonic() - began < Backoff.SHORTEST:
                await asyncio.sleep(Backoff.SHORTEST)

    async def _session(self) -> None:
        link = await self._connect(self.address)
        heartbeat: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._config().connect_timeout):
                await link.send("registerPeer", {**self._me().to_wire(), "digest": self.book.digest})
                await link.expect("registered")
                # Replaced as a whole, so that a peer that went while the link was away goes here too.
                self.book = await receive_book(link, self.book)
            self._doubt.clear()
            self.connected, self.error = True, None
            self._decided.set()
            self._changed(True, f"{len(self.book)} peers")
            heartbeat = asyncio.create_task(self._beat(link))
            while True:
                async with asyncio.timeout(self._config().heartbeat_interval * _MISSED_HEARTBEATS) as self._patience:
                    frame = await link.receive()
                if frame is None:
                    raise ConnectionError("the leader closed the connection")
                self._take(frame)
        finally:
            if heartbeat:
                heartbeat.cancel()
                await asyncio.gather(heartbeat, return_exceptions=True)
            link.abort()

    def _take(self, frame: Frame) -> None:
        if frame.type == "error":
            raise PeerdError.from_wire(frame.fields)
        if frame.type == "peers":
            for peer in entries(frame):
                self.book.put(peer)
        elif frame.type == "presence":
            if take(frame.fields, "all", validate.boolean, False):
                for peer in list(self.book):
                    self.book.see(peer.peer_id, online=False)
            for online in (True, False):
                for peer_id in take_optional(frame.fields, "online" if online else "offline", _ids) or ():
                    self.book.see(peer_id, online=online)
        elif frame.type == "peerRemoved":
            gone = self.book.remove(take(frame.fields, "peer_id", validate.peer_id))
            if gone:
                self._removed(gone)
        else:
            return
        self._updated()

    async def _beat(self, link: Connection) -> None:
        with contextlib.suppress(OSError):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config().heartbeat_interval):
                        await self._doubt.wait()
                doubtful = self._doubt.is_set()
                self._doubt.clear()
                await link.send("heartbeat")
                if doubtful:
                    self._shorten_patience()
                    await asyncio.sleep(Backoff.SHORTEST)

    def _shorten_patience(self) -> None:
        due = asyncio.get_running_loop().time() + self._config().connect_timeout
        # One that runs out in this very moment cannot be changed any more.
        with contextlib.suppress(RuntimeError):
            if self._patience and (self._patience.when() or due) >= due:
                self._patience.reschedule(due)


def _ids(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("must be a list of ids")
    return [validate.peer_id(item) for item in value]
