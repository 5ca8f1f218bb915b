"""What `d` does with the pipes that it was given, loaded only where there is something to read or to write."""

import fcntl
import posix
import select
from _socket import MSG_DONTWAIT, socket

from peerd import quickjson

# inode(7), as of the module stat, which takes longer to load than to copy.
_S_IFMT, _S_IFIFO, _S_IFCHR, _S_IFSOCK = 0o170000, 0o010000, 0o020000, 0o140000
_LAST_WORDS = 1000
"""Milliseconds for a command to end by itself whose reader has gone: one that wanted no more than it got."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Collection, Sequence
    from typing import Any
else:
    import _signal as signal


def widen(fd: int, size: int) -> None:
    """Let a pipe hold so many bytes (F_SETPIPE_SZ of fcntl(2)); not where it is no pipe."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass


class Output:
    """A standard stream, written to without waiting for its reader where that can be done.

    A pipe or terminal is opened once more for this process alone (proc_pid_fd(5)), a file, which has its offset, not.

    :ivar fd: what is written to
    :ivar watched: whether it is a pipe or socket, of which it can be told when nobody is left to read it (poll(2))
    :ivar kept: what has been taken and must be written before anything else
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.kept = fd, memoryview(b"")
        self._socket: socket | None = None
        kind = 0
        try:
            kind = posix.fstat(fd).st_mode & _S_IFMT
            if kind in (_S_IFIFO, _S_IFCHR):
                self.fd = posix.open(f"/proc/self/fd/{fd}", posix.O_WRONLY | posix.O_NONBLOCK | posix.O_NOCTTY)
            elif kind == _S_IFSOCK:
                self._socket = socket(fileno=posix.dup(fd))
        except OSError:
            pass
        self.watched = kind in (_S_IFIFO, _S_IFSOCK)

    def write(self, data: memoryview, connection: socket | None) -> int:
        """Write what there is room for, once there is some.

        :returns: how much, 0 where the connection came to its end before
        """
        while True:
            try:
                return self._socket.send(data, MSG_DONTWAIT) if self._socket else posix.write(self.fd, data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                if connection:
                    poll.register(connection, 0)
                if all(ready != self.fd for ready, _ in poll.poll()):
                    return 0


def send(connection: socket, header: "dict[str, Any]", data: bytes, later: "Collection[int]") -> None:
    """Send a message.

    :param later: signals that would put one of their own into the middle of it, and are heard after it
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, later)
    try:
        line = quickjson.dumps(header).encode() + b"\n"
        sent = connection.sendmsg([line, data])
        if sent < len(line) + len(data):
            connection.sendall((line + data)[sent:])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, later)


def wait(fds: "Sequence[int]", watched: "Sequence[int]", limit: float | None) -> list[int]:
    """Wait until something can be read; from which descriptors, none where a reader has gone meanwhile.

    :param watched: our ends of what is read by others
    :param limit: seconds
    :raises TimeoutError: when nothing could be read by then
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    for fd in watched:
        poll.register(fd, 0)
    ready = [fd for fd, _ in poll.poll(limit and limit * 1000)]
    if not ready:
        raise TimeoutError
    if all(fd in watched for fd in ready):
        for fd in watched:
            poll.unregister(fd)
        ready = [fd for fd, _ in poll.poll(_LAST_WORDS)]
    return ready
