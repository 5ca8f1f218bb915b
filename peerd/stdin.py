"""What a caller sends to a command's standard input, under flow control by credit.

The reader grants bytes and the sender sends no more than it was granted, so that no hop between them ever has more
than a window to hold, and a message behind the data (a cancel) never waits for the reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peerd.errors import Code, PeerdError

WINDOW = 1024 * 1024
"""Bytes that may be under way at once."""


class Stdin:
    """The bytes on their way from a connection to whoever reads them: a command's pipe, or the next hop.

    :param on_grant: tells the sender that it may send so many more bytes
    """

    def __init__(self, on_grant: Callable[[int], None]) -> None:
        self._on_grant = on_grant
        self._credit = 0
        self._held = bytearray()
        self._ended = False
        self._arrived = asyncio.Event()

    def grant(self, size: int) -> None:
        """Let the sender send ``size`` more bytes."""
        self._credit += size
        self._on_grant(size)

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived; no bytes are the end of the input.

        :raises PeerdError: BAD_MESSAGE when the sender was not granted them
        """
        if self._ended or len(data) > self._credit:
            raise PeerdError(Code.BAD_MESSAGE, reason=f"{len(data)} bytes of stdin, {self._credit} were granted")
        self._credit -= len(data)
        self._held += data
        self._ended = not data
        self._arrived.set()

    async def read(self) -> bytes:
        """The bytes that have arrived since the last call, once there are any; none at the end of the input."""
        while not self._held and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._held)
        self._held.clear()
        return data
