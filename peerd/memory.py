"""Memory that a burst took, given back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from pathlib import Path

_QUIET = 1.0
"""Seconds without use before anything is given back; what is in use is taken again at once."""
_WORTH_IT = 1.1
"""How much larger than at its beginning a process has to be."""
_STATM = Path("/proc/self/statm")


class Heap:
    """What malloc(3) holds. By itself it gives back only what is free at the end, behind whatever is in use still."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._used = False
        self._settled = 0

    def settle(self) -> None:
        """Take the present size for what is always needed."""
        self._settled = resident()

    def used(self) -> None:
        """Some memory was taken that will soon be free again: look then whether it can be given back."""
        self._used = True
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_QUIET, self._look)

    def _look(self) -> None:
        if self._used and self._loop:
            self._used = False
            self._loop.call_later(_QUIET, self._look)
            return
        self._loop = None
        if resident() > self._settled * _WORTH_IT:
            trim()


def resident() -> int:
    """Pages of this process that are in memory (proc_pid_statm(5))."""
    return int(_STATM.read_text().split()[1])


def trim() -> None:
    """Give back all whole pages of the heap that are free (malloc_trim(3), which only the GNU C library has)."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


heap = Heap()
"""The one of this process."""
