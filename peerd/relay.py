"""A command's output between the connection over which it comes and a caller who may be slow to take it.

A caller may pause for as long as it likes (think of less(1)), its connection may not: a machine that has had no room
for TCP_USER_TIMEOUT (tcp(7)) is taken for one that is gone. So output is taken off the connection as it comes, which
the target's window keeps bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque

from peerd.messages import MAX_OUTPUT, STREAMS, WINDOW
from peerd.session import Session

_MOST = len(STREAMS) * WINDOW
"""Bytes beyond which the connection has to wait after all: of a target that knows no window."""
_IN_ORDER = 256
"""Pieces that are kept as they came. More are put together by stream, so that small ones cost no more than large."""


class Relay:
    """Passes output on to a caller, in a task of its own.

    :param session: the caller's, which is cancelled when nobody is left to hear the output
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: deque[tuple[str, bytes | bytearray]] = deque()
        self._size = 0
        self._passed_on = asyncio.Event()
        self._passing: asyncio.Task[None] | None = None

    async def put(self, stream: str, data: bytes | bytearray) -> None:
        """Take output of "stdout" or "stderr"."""
        if self._session.cancel.is_set():
            return
        self._hold(stream, data)
        self._size += len(data)
        if self._passing is None or self._passing.done():
            await self.finish()
            self._passing = asyncio.create_task(self._pass_on())
        while self._size > _MOST:
            self._passed_on.clear()
            await self._passed_on.wait()

    async def finish(self) -> None:
        """Wait until the caller has taken all, or wants no more."""
        if self._passing:
            await self._passing

    async def close(self) -> None:
        """Drop what the caller has not taken."""
        if self._passing and not self._passing.done():
            self._passing.cancel()
            await asyncio.wait((self._passing,))

    def _hold(self, stream: str, data: bytes | bytearray) -> None:
        if len(self._held) >= _IN_ORDER:
            for index in (-1, -2):
                if self._held[index][0] == stream:
                    before = self._held[index][1]
                    together = before if isinstance(before, bytearray) else bytearray(before)
                    together += data
                    self._held[index] = stream, together
                    return
        self._held.append((stream, data))

    async def _pass_on(self) -> None:
        cancel = self._session.cancel
        try:
            while self._held and not cancel.is_set():
                stream, data = self._held.popleft()
                for start in range(0, len(data), MAX_OUTPUT):
                    piece = data if len(data) <= MAX_OUTPUT else data[start : start + MAX_OUTPUT]
                    await self._session.sink.output(stream, piece)
                    self._size -= len(piece)
                    self._passed_on.set()
        except ConnectionError:
            cancel.set()
        finally:
            if cancel.is_set():
                self._held.clear()
                self._size = 0
            self._passed_on.set()
