"""Bytes kept in order until nobody needs them any more: between a pipe and those who read it, or write it.

They are in a file, in memory (memfd_create(2)) or on disk, and never in this process, so that a restart of peerd loses
none: what splice(2) has moved out of a pipe is in the file, and the size of the file says how much it was.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_FS_IOC_UNRESVSP = 0x4030582B
"""linux/falloc.h: FALLOC_FL_PUNCH_HOLE of fallocate(2) as an ioctl, which Python has."""
_SPACE = struct.Struct("hhqqiI4i")
_RELEASE_STEP = 256 * 1024
"""Bytes that are given back at once; less is not worth a system call."""


@dataclass(frozen=True)
class Extent:
    """Bytes that are in a file, not read yet.

    :ivar fd: the file
    :ivar offset: where they begin
    :ivar size: how many there are
    """

    fd: int
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return os.pread(self.fd, self.size, self.offset) if self.size else b""


Data = bytes | bytearray | Extent
"""Bytes, wherever they are."""


class Spool:
    """An append-only file. Offsets count from the first byte that was ever appended.

    :param fd: the file, which is this object's to close
    :param make: makes the file when the first bytes come, where fd is -1: many streams are never written to
    :ivar size: bytes that were appended
    """

    def __init__(self, fd: int, make: Callable[[], int] | None = None) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size if fd >= 0 else 0
        self._make = make
        self._released = 0

    @classmethod
    def in_memory(cls, name: str) -> Spool:
        """An empty one in memory; it can be closed for more (:meth:`end`)."""
        return cls(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))

    @classmethod
    def on_disk(cls, path: Path, create: bool = False) -> Spool:
        """The one in a file.

        :param create: whether to make the file, which must not exist
        :raises OSError: when it cannot be opened
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        return cls(os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600))

    def append(self, data: bytes | bytearray) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, self.size)
            self.size += written
            view = view[written:]

    def fill(self, pipe: int, limit: int) -> int:
        """Move at most ``limit`` bytes from a pipe to the end; how many, 0 at the end of the pipe.

        :raises BlockingIOError: when the pipe is empty
        :raises OSError: when the file takes no more, for example ENOSPC; the bytes are in the pipe still
        """
        if self.fd < 0 and self._make:
            if at_end(pipe):
                return 0
            self.fd = self._make()
        moved = os.splice(pipe, self.fd, limit, offset_dst=self.size, flags=os.SPLICE_F_NONBLOCK)
        self.size += moved
        return moved

    def drain(self, pipe: int) -> int:
        """Move bytes to a pipe from where the last call ended, which the file itself remembers; how many.

        :raises BlockingIOError: when the pipe is full
        :raises BrokenPipeError: when nobody reads it
        """
        left = self.size - self.drained
        return os.splice(self.fd, pipe, left, flags=os.SPLICE_F_NONBLOCK) if left else 0

    @property
    def drained(self) -> int:
        """How many bytes :meth:`drain` has moved, in this process and in those before it."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    def extent(self, offset: int, limit: int) -> Extent:
        """At most ``limit`` bytes from an offset, to be read or moved; fewer only where there are no more."""
        return Extent(self.fd, offset, max(0, min(limit, self.size - offset)))

    def release(self, offset: int) -> None:
        """Give back the space of what is before an offset; it reads as NULs from then on."""
        # Whole pages only. The rest of a page is zeroed where it stands, and a pipe that splice(2) filled has no copy.
        offset -= offset % mmap.PAGESIZE
        if offset - self._released < _RELEASE_STEP:
            return
        try:
            fcntl.ioctl(self.fd, _FS_IOC_UNRESVSP, _SPACE.pack(0, 0, 0, offset, 0, 0, 0, 0, 0, 0))
        except OSError as error:
            # A file system without holes keeps the bytes until the file goes.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise
        self._released = offset

    def end(self) -> None:
        """Nothing more will be appended; the file itself remembers it."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called, in this process or in one before it."""
        return bool(fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW)

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def at_end(pipe: int) -> bool:
    """Whether a pipe is empty and nobody is left to write to it.

    :raises BlockingIOError: when it is only empty
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    events = poll.poll(0)
    if not events:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return not events[0][1] & select.POLLIN
