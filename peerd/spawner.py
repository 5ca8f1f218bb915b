"""The process that starts commands: small, separate from the daemon, and the parent of every gate.

Run as a script by :class:`peerd.spawning.Spawner`. It imports nothing of peerd, so that a fork costs little and a
command inherits nothing of the daemon: no descriptor, no variable, no memory.

For every byte that it receives on its channel it makes a *gate*: two processes in a session of their own that wait for
a command, so that when one comes nothing is left to do but to run it. One of them becomes the command; the other is
its parent, waits for it and reports the wait status. Both are to be moved into a scope together. The parent stays
inside, so that its report does not depend on the daemon that asked for it.

The answer, on the channel, is one message: the pids of the gate and of what becomes the command, four bytes each, and
with it the gate's control socket (unix(7), SCM_RIGHTS); or an errno and a pid of 0 where no gate could be made.

The control socket then takes one byte that carries three descriptors (stdin, stdout, stderr), four bytes of length,
and a dictionary in the format of :mod:`marshal`: ``argv``, ``environment``, ``directory``, for another user than root
``uid``, ``gid`` and ``groups``, and ``resolved`` where the directory must be entered without a symbolic link. One byte
more releases the command; at the end of the stream in its place, nothing is run. The gate writes :data:`STARTED` when
the command starts, and then its report, a line of JSON: ``{"status": N, "at": T}``, as from waitpid(2), at that time
of CLOCK_MONOTONIC in seconds; or instead of both ``{"errno": N, "step": "directory"}``.
The gate stays until the daemon shuts the control socket down, so that the daemon can still read the scope's figures.
"""

from __future__ import annotations

import errno
import gc
import marshal
import mmap
import os
import resource
import time
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from _struct import Struct

# Every fork copies what is loaded here, so that much is done without.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal

LENGTH = Struct("!I")
PIDS = Struct("!II")
STREAMS = Struct("3i")
STARTED = b"\n"
CONTROL = 3
MAX_DESCRIPTOR = 1 << 20
LOGIN_UMASK = 0o022
LOGIN_NOFILE = 1024
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
OOM_SCORE = "/proc/self/oom_score_adj"
OOM_SPARE = b"-1000"
# The stop of a scope signals all of its processes; the gate must outlive them to report.
IGNORED_BY_GATE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def receive_request(control: socket) -> dict[str, Any] | None:
    """The command, its descriptors put where they belong; None when the daemon wants none."""
    marker, ancillary, _, _ = control.recvmsg(1, CMSG_SPACE(STREAMS.size))
    if not marker:
        return None
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            # They arrive above 3, which is taken, so that no target number is overwritten before it is used.
            for target, fd in enumerate(STREAMS.unpack(data)):
                os.dup2(fd, target)
                os.close(fd)
    (size,) = LENGTH.unpack(receive_exactly(control, LENGTH.size))
    request: dict[str, Any] = marshal.loads(receive_exactly(control, size))
    return request


def receive_exactly(channel: socket, size: int) -> bytes:
    """Exactly ``size`` bytes.

    :raises EOFError: when the stream ends before
    """
    data = bytearray()
    while len(data) < size:
        chunk = channel.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def gate(channel: socket) -> NoReturn:
    """Make what becomes the command, and report how it ended. Runs in a forked child and never returns."""
    os.setsid()
    os.umask(LOGIN_UMASK)
    # The command inherits what the gate ignores until it is itself: a stop that comes before waits for that.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_GATE)
    for number in IGNORED_BY_GATE:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    daemons, ours = socketpair(AF_UNIX, SOCK_STREAM)
    os.dup2(ours.detach(), CONTROL, inheritable=False)
    # What kept the command from running, for both processes to see.
    failure = mmap.mmap(-1, LENGTH.size)
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(CONTROL + 1, MAX_DESCRIPTOR)
            command(failure)
        finally:
            os._exit(EXIT_NOT_EXECUTABLE)
    rights = (SOL_SOCKET, SCM_RIGHTS, Struct("i").pack(daemons.fileno()))
    channel.sendmsg([PIDS.pack(os.getpid(), pid)], [rights])
    os.closerange(CONTROL + 1, MAX_DESCRIPTOR)
    # Without it nobody could say how a command ended that ran out of memory.
    set_oom_score(OOM_SPARE)
    status = os.waitpid(pid, 0)[1]
    report = f'{{"status": {status}, "at": {time.monotonic()}}}\n'
    (number,) = LENGTH.unpack(failure[:])
    if number == errno.ECANCELED:
        os._exit(0)
    if number:
        report = f'{{"errno": {number}, "step": "directory"}}\n'
    try:
        os.write(CONTROL, report.encode())
        while os.read(CONTROL, 64):
            pass
    finally:
        os._exit(0)


def command(failure: mmap.mmap) -> NoReturn:
    """Wait for a command and for its release, and become it."""
    set_oom_score(b"0")
    control = socket(fileno=CONTROL)
    request = receive_request(control)
    if request is None or not control.recv(1):
        failure[:] = LENGTH.pack(errno.ECANCELED)
        os._exit(0)
    try:
        enter(request)
    except OSError as error:
        failure[:] = LENGTH.pack(error.errno or errno.EIO)
        os._exit(0)
    try:
        control.send(STARTED)
    except OSError:
        pass
    execute(request)


def set_oom_score(score: bytes) -> None:
    """Tell the kernel how soon to end this process where memory runs out (proc(5)); not where that is not ours."""
    try:
        with open(OOM_SCORE, "wb", 0) as file:
            file.write(score)
    except OSError:
        pass


def enter(request: dict[str, Any]) -> None:
    """Change to the directory with the rights of the command's user, and be root again."""
    if "uid" not in request:
        change_directory(request)
        return
    os.setgroups(request["groups"])
    os.setegid(request["gid"])
    os.seteuid(request["uid"])
    try:
        change_directory(request)
    finally:
        os.seteuid(0)
        os.setegid(0)


def change_directory(request: dict[str, Any]) -> None:
    """Change to the directory; to that very path and not to where a symbolic link leads, where it was resolved."""
    os.chdir(request["directory"])
    if request.get("resolved") and os.getcwd() != request["directory"]:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def execute(request: dict[str, Any]) -> NoReturn:
    """Become the command. A command that cannot be executed ends with 127 or 126, as POSIX has it for a shell."""
    for number in (*IGNORED_BY_GATE, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_BY_GATE)
    argv = request["argv"]
    try:
        if "uid" in request:
            os.setgroups(request["groups"])
            os.setresgid(request["gid"], request["gid"], request["gid"])
            os.setresuid(request["uid"], request["uid"], request["uid"])
        os.execvpe(argv[0], argv, request["environment"])
    except OSError as error:
        os.write(2, os.fsencode(f"{argv[0]}: {error.strerror}\n"))
        os._exit(EXIT_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE)


def main() -> None:
    """Make gates for the socket that is standard input, one for each byte, until the daemon closes it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The daemon's own limit is raised for its connections; select(2) in a command would fail above 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(LOGIN_NOFILE, hard), hard))
    # Keeps numbers 0 to 3 taken.
    while (null := os.open(os.devnull, os.O_RDWR)) <= CONTROL:
        pass
    channel = socket(fileno=os.dup(0))
    os.dup2(null, 0)
    # Nothing here makes garbage, and a collection would touch, and so copy, every page after a fork.
    gc.disable()
    while channel.recv(1):
        try:
            pid = os.fork()
        except OSError as error:
            channel.send(PIDS.pack(0, error.errno or errno.EAGAIN))
            continue
        if pid == 0:
            try:
                gate(channel)
            except OSError as error:
                channel.send(PIDS.pack(0, error.errno or errno.EAGAIN))
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, KeyboardInterrupt, ConnectionError):
        pass
