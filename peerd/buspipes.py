"""A command's output as two pipes, for a caller on D-Bus that reads it as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os

from peerd.spool import Data


class Pipes:
    """A sink whose reading ends are given away.

    :ivar given: the ends to read from, of stdout and of stderr, until :meth:`give` has closed them here
    :ivar cancel: set when nobody reads one of them any more
    """

    def __init__(self) -> None:
        pairs = []
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                pairs.append(os.pipe2(os.O_CLOEXEC))
                for end in pairs[-1]:
                    stack.callback(os.close, end)
            stack.pop_all()
        self.given = [reading for reading, _ in pairs]
        self._writing = dict(zip(("stdout", "stderr"), (writing for _, writing in pairs), strict=True))
        for writing in self._writing.values():
            os.set_blocking(writing, False)
        self.begun, self.cancel = asyncio.Event(), asyncio.Event()

    async def started(self) -> None:
        """The command was started."""
        self.begun.set()

    async def output(self, stream: str, data: Data) -> None:
        """Write output of "stdout" or "stderr" at the pace of its reader."""
        left, fd = memoryview(bytes(data)), self._writing[stream]
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BrokenPipeError:
                # Its caller may stay on the bus, and come back to nothing.
                self.cancel.set()
                return
            except BlockingIOError:
                writable = asyncio.Event()
                loop = asyncio.get_running_loop()
                loop.add_writer(fd, writable.set)
                try:
                    await writable.wait()
                finally:
                    loop.remove_writer(fd)

    def say(self, line: str) -> None:
        """Write what d(1) would write on standard error, where there is room for it."""
        with contextlib.suppress(OSError):
            os.write(self._writing["stderr"], f"{line}\n".encode("utf-8", "backslashreplace"))

    def give(self) -> None:
        """The reading ends are somebody else's now."""
        for fd in self.given:
            os.close(fd)
        self.given = []

    def close(self) -> None:
        """The end of both streams."""
        self.give()
        for fd in self._writing.values():
            os.close(fd)
        self._writing = {}
