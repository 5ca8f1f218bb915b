"""Standard input of `d` on its way to the daemon, loaded only where a command reads it."""

import posix

from peerd.clientpipes import widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WINDOWS = {2: 1024 * 1024, 3: 4 * 1024 * 1024}
"""Bytes that may be under way, and that are held to be sent again, by the version of the protocol."""
_SMALL = 4096
"""Bytes up to which what was read is put together with what was read before."""


class Stdin:
    """What has been read, held until the daemon has taken it for good, so that it can be sent again.

    :param chunk: bytes of one message
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        # The offsets where what is held begins and ends, of what is to be sent next and of what may not be sent yet.
        self._base = self._end = self._next = self._until = 0
        self._held: list[bytes] = []
        self._ended = self._end_sent = False
        widen(0, 2 * chunk)

    def grant(self, frame: "dict[str, Any]", version: int) -> None:
        """Take a stdinWindow.

        :param version: that of the protocol, which says how much the daemon may still have to ask for again
        """
        # A d that was started before an upgrade gives the bytes themselves.
        window = _WINDOWS.get(max(min(_WINDOWS), version), version)
        self._until = frame["until"]
        if "from" in frame:
            self._next, self._end_sent = frame["from"], False
        while self._held and self._base + len(self._held[0]) <= self._until - window:
            self._base += len(self._held.pop(0))

    def withdraw(self) -> None:
        """Nothing may be sent until the next grant."""
        self._until = 0

    @property
    def room(self) -> int:
        """Bytes that one message may have now; 0 where none may be sent, or all has been."""
        return 0 if self._end_sent else max(0, min(self._until - self._next, self._chunk))

    @property
    def lacking(self) -> bool:
        """Whether there is more to read before anything can be sent."""
        return self._next == self._end and not self._ended

    def read(self) -> None:
        data = posix.read(0, self.room)
        if self._held and len(self._held[-1]) + len(data) <= _SMALL:
            self._held[-1] += data
        elif data:
            self._held.append(data)
        self._end += len(data)
        self._ended = not data

    def take(self) -> bytes:
        """What is to be sent next, read where it is lacking; no bytes are the end.

        :raises OSError: where it cannot be read
        """
        if self.lacking:
            self.read()
        start, data = self._end, b""
        for held in reversed(self._held):
            start -= len(held)
            if start <= self._next:
                data = held[self._next - start :][: self.room]
                break
        self._next += len(data)
        self._end_sent = not data
        return data
