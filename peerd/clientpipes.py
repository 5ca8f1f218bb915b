"""What `d` does with the pipes that it was given, loaded only where there is something to read or to write."""

import fcntl
import posix
import select

# inode(7), as of the module stat, which takes longer to load than to copy.
_S_IFMT, _S_IFIFO, _S_IFCHR = 0o170000, 0o010000, 0o020000
_LAST_WORDS = 1000
"""Milliseconds for a command to end by itself whose reader has gone: one that wanted no more than it got."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def widen(fd: int, size: int) -> None:
    """Let a pipe hold so many bytes (F_SETPIPE_SZ of fcntl(2)); not where it is no pipe."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass


def open_again(fd: int) -> tuple[int, bool]:
    """A pipe or terminal, opened once more for this process alone (proc_pid_fd(5)), so that writing to it never waits.

    :returns: the new descriptor, or where that cannot be done, and for a file, which has its offset, the same; and
        whether it is a pipe, of which it can be told when nobody is left to read it (POLLERR of poll(2))
    """
    try:
        kind = posix.fstat(fd).st_mode & _S_IFMT
        if kind in (_S_IFIFO, _S_IFCHR):
            again = posix.open(f"/proc/self/fd/{fd}", posix.O_WRONLY | posix.O_NONBLOCK | posix.O_NOCTTY)
            return again, kind == _S_IFIFO
    except OSError:
        pass
    return fd, False


def wait(fds: "Sequence[int]", watched: int, limit: float | None) -> list[int]:
    """Wait until something can be read; from which descriptors, none where the reader of a pipe has gone meanwhile.

    :param watched: our end of that pipe, or -1
    :param limit: seconds
    :raises TimeoutError: when nothing could be read by then
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    if watched >= 0:
        poll.register(watched, 0)
    ready = [fd for fd, _ in poll.poll(limit and limit * 1000)]
    if not ready:
        raise TimeoutError
    if ready == [watched]:
        poll.unregister(watched)
        ready = [fd for fd, _ in poll.poll(_LAST_WORDS)]
    return ready
