"""What a caller sends to a command's standard input, on its way from a connection to whoever reads it.

The reader grants bytes up to an offset and the sender sends no more, so that no hop ever has more than a window to
hold, and a message behind the data (a cancel) never waits for the reader. Bytes are held until the reader has taken
them for good, so that they can be sent again after a connection broke.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from peerd.errors import Code, PeerdError
from peerd.messages import MAX_OUTPUT

_SMALL = 16 * 1024
"""Bytes, fewer than which are put together with those that came before them."""


class Stdin:
    """The bytes between a sender and a reader.

    :param on_window: tells the sender (start, until, taken): to go on from ``start``, or where it is if that is None;
        that it may send what is before ``until``, and need not keep what is before ``taken``
    """

    def __init__(self, on_window: Callable[[int | None, int, int], None]) -> None:
        self._on_window = on_window
        self._base = 0
        self._end = 0
        self._until: int | None = None
        # As they came, from the base on: what is large is not copied.
        self._held: deque[bytes | bytearray] = deque()
        self._ended = False
        self._arrived = asyncio.Event()

    def open(self, start: int, until: int, taken: int) -> None:
        """The reader wants the bytes from ``start`` on and grants those before ``until``; see :meth:`grant`."""
        if self._until is None:
            self._base = self._end = start
            self._until = until
            self._on_window(start, until, taken)
        else:
            self.grant(until, taken)

    def grant(self, until: int, taken: int) -> None:
        """Let the sender send up to an offset. The reader has taken for good all before ``taken``."""
        if self._until is None or until <= self._until:
            return
        self._until = until
        while self._held and self._base + len(self._held[0]) <= taken:
            self._base += len(self._held.popleft())
        self._on_window(None, until, taken)

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes as they arrived; no bytes are the end of the input.

        :raises PeerdError: BAD_MESSAGE when the sender was not granted them
        """
        end = self._end + len(data)
        if self._ended or self._until is None or end > self._until:
            raise PeerdError(Code.BAD_MESSAGE, reason=f"stdin up to {end}, granted: {self._until}")
        last = self._held[-1] if self._held else b""
        if len(data) >= _SMALL:
            self._held.append(data)
        elif isinstance(last, bytearray) and len(last) < _SMALL:
            last += data
        elif data:
            self._held.append(bytearray(data))
        self._end = end
        self._ended = not data
        self._arrived.set()

    async def read(self, offset: int) -> bytes | bytearray:
        """Bytes from an offset on, once there are any, as many as fit a message; none at the end of the input."""
        while offset >= self._end and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        start = self._base
        for data in self._held:
            if offset < start + len(data):
                if offset <= start and _SMALL <= len(data) <= MAX_OUTPUT:
                    return data
                return bytes(memoryview(data)[max(0, offset - start) :][:MAX_OUTPUT])
            start += len(data)
        return b""
