"""What a caller sends to a command's standard input, on its way from a connection to whoever reads it.

The reader grants bytes up to an offset and the sender sends no more, so that no hop ever has more than a window to
hold, and a message behind the data (a cancel) never waits for the reader. Bytes are held until the reader has taken
them for good, so that they can be sent again after a connection broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peerd.errors import Code, PeerdError
from peerd.messages import MAX_OUTPUT, WINDOW


class Stdin:
    """The bytes between a sender and a reader.

    :param on_window: tells the sender from which offset on and up to which it may send; the first offset is None where
        it goes on where it is
    """

    def __init__(self, on_window: Callable[[int | None, int], None]) -> None:
        self._on_window = on_window
        self._base = 0
        self._until: int | None = None
        self._held = bytearray()
        self._ended = False
        self._arrived = asyncio.Event()

    def open(self, start: int, until: int) -> None:
        """The reader wants the bytes from ``start`` on and grants those before ``until``."""
        if self._until is None:
            self._base, self._until = start, until
            self._on_window(start, until)
        else:
            self.grant(until)

    def grant(self, until: int) -> None:
        """Let the sender send up to an offset. A window before it, the reader has taken all for good."""
        if self._until is None or until <= self._until:
            return
        self._until = until
        taken = until - WINDOW - self._base
        if taken > 0:
            del self._held[:taken]
            self._base += taken
        self._on_window(None, until)

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived; no bytes are the end of the input.

        :raises PeerdError: BAD_MESSAGE when the sender was not granted them
        """
        end = self._base + len(self._held) + len(data)
        if self._ended or self._until is None or end > self._until:
            raise PeerdError(Code.BAD_MESSAGE, reason=f"stdin up to {end}, granted: {self._until}")
        self._held += data
        self._ended = not data
        self._arrived.set()

    async def read(self, offset: int) -> bytes:
        """Bytes from an offset on, once there are any, as many as fit a message; none at the end of the input."""
        while offset >= self._base + len(self._held) and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        start = max(0, offset - self._base)
        return bytes(memoryview(self._held)[start : start + MAX_OUTPUT])
