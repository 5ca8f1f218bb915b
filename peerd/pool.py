"""Connections to other peers for requests: greeted, and used again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from peerd.connection import Connection
from peerd.errors import PeerdError
from peerd.protocol import Frame

Connect = Callable[[str], Awaitable[Connection]]
"""Makes a connection to an address, greeted; raises OSError, or PeerdError where the other end refuses to talk."""
_FRESH = 1.0
"""Seconds that a pooled connection is trusted without asking."""
_IDLE_LIMIT = 60.0
"""Seconds that a connection is kept without use."""
_IDLE_MOST = 64
"""Connections to one address that are kept."""


class _Idle:
    """A connection that waits for its next use. Whatever happens to it meanwhile makes it useless."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self.since = time.monotonic()
        self._watch = asyncio.create_task(self._end())

    async def _end(self) -> None:
        # The end of the stream, garbage and a frame that nobody asked for are all the same here.
        with contextlib.suppress(PeerdError):
            await self.link.receive()
        self.link.abort()

    async def wake(self) -> Connection | None:
        """The connection for its next use, or None when it cannot be used any more."""
        self._watch.cancel()
        try:
            await asyncio.wait((self._watch,))
        except BaseException:
            self.link.abort()
            raise
        return self.link if self.link.usable else None

    def drop(self) -> None:
        """Close it."""
        self._watch.cancel()
        self.link.abort()


class Pool:
    """Connections to peers, reused. A connection serves one request at a time, so that TCP's own flow control paces it.

    :param timeout: gives the seconds to wait for an answer
    """

    def __init__(self, connect: Connect, timeout: Callable[[], float]) -> None:
        self._connect = connect
        self._timeout = timeout
        self._idle: defaultdict[str, list[_Idle]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def borrow(self, address: str) -> AsyncIterator[Connection]:
        """A greeted connection, for one request. It is kept for the next when the block ends without an exception.

        :raises OSError: when the peer is not reachable
        :raises PeerdError: when it refuses to talk
        """
        link = await self._take(address)
        if link is None:
            link = await self._connect(address)
        try:
            yield link
        except BaseException:
            link.abort()
            raise
        idle = self._idle[address]
        if link.usable and len(idle) < _IDLE_MOST:
            idle.append(_Idle(link))
        else:
            link.abort()
        self._sweep()

    async def _take(self, address: str) -> Connection | None:
        while self._idle[address]:
            idle = self._idle[address].pop()
            link = await idle.wake()
            if link is None:
                continue
            if time.monotonic() - idle.since < _FRESH:
                return link
            # The other machine may have gone since, without a word; a request must not be the first to find out.
            try:
                async with asyncio.timeout(self._timeout()):
                    await link.send("ping")
                    await link.expect("pong")
            except (OSError, PeerdError):
                link.abort()
                continue
            except BaseException:
                link.abort()
                raise
            return link
        return None

    async def request(self, address: str, type_: str, fields: Mapping[str, object]) -> Frame:
        """Send a request that is answered by one ``reply``.

        :raises OSError: when the peer is not reachable or does not answer in time
        :raises PeerdError: the error it answers with
        """
        async with self.borrow(address) as link, asyncio.timeout(self._timeout()):
            await link.send(type_, fields)
            return await link.expect("reply")

    def _sweep(self) -> None:
        cut = time.monotonic() - _IDLE_LIMIT
        for address, idle in list(self._idle.items()):
            for one in idle:
                if one.since < cut:
                    one.drop()
            self._idle[address] = [one for one in idle if one.since >= cut and one.link.usable]
            if not self._idle[address]:
                del self._idle[address]

    def drop(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            for one in idle:
                one.drop()
        self._idle.clear()
