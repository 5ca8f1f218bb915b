"""The process that starts commands: small, separate from the daemon, and the parent of every gate.

Run as a script by :class:`peerd.spawning.Spawner`. It imports nothing of peerd, so that a fork costs little and a
command inherits nothing of the daemon: no descriptor, no variable, no memory.

For every byte that it receives on its channel it makes a *gate*: a process in a session of its own that waits for a
command, so that when one comes little is left to do but to run it. It is to be moved into a scope. Once it is released
it starts the command there, waits for it and reports the wait status; it stays inside, so that its report does not
depend on the daemon that asked for it.

The answer, on the channel, is one message: the pid of the gate in four bytes, and with it the gate's control socket
(unix(7), SCM_RIGHTS); or where no gate could be made a pid of 0 and an errno in four bytes.

The control socket then takes four bytes of length, which carry three descriptors (stdin, stdout, stderr), and a
dictionary in the format of :mod:`marshal`: ``argv``, ``environment``, ``directory``, for another user than root
``uid``, ``gid`` and ``groups``, and ``resolved`` where the directory must be entered without a symbolic link. One byte
more releases the command; at the end of the stream in its place, nothing is run. The gate writes :data:`STARTED` when
the command starts, and then its report, a line of JSON: ``{"status": N, "at": T}``, as from waitpid(2), at that time
of CLOCK_MONOTONIC in seconds; or instead of both ``{"errno": N}``, why it could not enter the directory.
The gate stays until the daemon shuts the control socket down, so that the daemon can still read the scope's figures.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import resource
import stat
import time
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from _struct import Struct

# Every fork copies what is loaded here, so that much is done without.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal

LENGTH = Struct("!I")
PID = Struct("!I")
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
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)
RECEIVED = 64 * 1024
IGNORED_BY_SPAWNER = (signal.SIGCHLD, signal.SIGINT)


def receive_request(control: socket) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    """The command and its three descriptors; None when the daemon wants none."""
    data, ancillary, _, _ = control.recvmsg(RECEIVED, CMSG_SPACE(STREAMS.size), MSG_CMSG_CLOEXEC)
    if not data:
        return None
    (size,) = LENGTH.unpack(data[: LENGTH.size])
    rest = receive_exactly(control, LENGTH.size + size - len(data))
    request: dict[str, Any] = marshal.loads(data[LENGTH.size :] + rest)
    ((_, _, streams),) = ancillary
    return request, STREAMS.unpack(streams)


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
    """Wait for a command and for its release, start it, and report how it ended. Runs in a forked child."""
    os.setsid()
    os.umask(LOGIN_UMASK)
    # The stop of a scope, and whoever signals one, means all of its processes; the gate must outlive them to report.
    # What comes before the command runs waits here, to be passed on to it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for number in IGNORED_BY_SPAWNER:
        signal.signal(number, signal.SIG_DFL)
    daemons, ours = socketpair(AF_UNIX, SOCK_STREAM)
    os.dup2(ours.detach(), CONTROL, inheritable=False)
    channel.sendmsg([PID.pack(os.getpid())], [(SOL_SOCKET, SCM_RIGHTS, Struct("i").pack(daemons.fileno()))])
    os.closerange(CONTROL + 1, MAX_DESCRIPTOR)
    control = socket(fileno=CONTROL)
    set_oom_score(b"0")
    received = receive_request(control)
    if received is None:
        os._exit(0)
    request, streams = received
    failure = enter(request)
    if not control.recv(1):
        os._exit(0)
    if failure:
        os.closerange(CONTROL + 1, MAX_DESCRIPTOR)
        report = f'{{"errno": {failure}}}\n'
    else:
        status = run(control, request, streams)
        report = f'{{"status": {status}, "at": {time.monotonic()}}}\n'
    try:
        control.send(report.encode())
        while control.recv(64):
            pass
    finally:
        os._exit(0)


def run(control: socket, request: dict[str, Any], streams: tuple[int, ...]) -> int:
    """Start the command, say so, and wait for its end; its wait status.

    A command that cannot be executed ends with 127 or 126, as POSIX has it for a shell.
    """
    pid = status = 0
    try:
        pid = spawn(request, streams)
    except OSError as error:
        os.write(streams[2], os.fsencode(f"{request['argv'][0]}: {error.strerror}\n"))
        status = (EXIT_NOT_FOUND if error.errno in NOT_FOUND else EXIT_NOT_EXECUTABLE) << 8
    try:
        control.send(STARTED)
    except OSError:
        pass
    os.closerange(CONTROL + 1, MAX_DESCRIPTOR)
    # The directory may be on something that the command unmounts.
    os.chdir("/")
    if pid:
        for number in signal.sigpending():
            os.kill(pid, number)
        # Without it nobody could say how a command ended that ran out of memory.
        set_oom_score(OOM_SPARE)
        status = os.waitpid(pid, 0)[1]
    return status


def spawn(request: dict[str, Any], streams: tuple[int, ...]) -> int:
    """Start the command in a session of its own, by posix_spawn(3), which copies nothing of this process; its pid.

    The signals 32 and 33, which the GNU C library keeps to itself, are ignored by what that starts.

    :raises OSError: when it cannot be executed
    """
    argv, environment = request["argv"], request["environment"]
    paths = [argv[0]] if "/" in argv[0] else [f"{path or '.'}/{argv[0]}" for path in os.get_exec_path(environment)]
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)]
    problem = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        if "uid" in request:
            for fd in streams:
                # What is open cannot be opened once more, as /dev/stderr is, by who does not own it.
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.fchown(fd, request["uid"], request["gid"])
            # Who a process really is, it is all over by POSIX_SPAWN_RESETIDS and exec (credentials(7)).
            os.setgroups(request["groups"])
            os.setresgid(request["gid"], 0, 0)
            os.setresuid(request["uid"], 0, 0)
        for path in paths:
            try:
                return os.posix_spawn(
                    path,
                    argv,
                    environment,
                    file_actions=actions,
                    resetids=True,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=signal.valid_signals(),
                )
            except OSError as error:
                # As execvp(3): what is found and cannot be executed matters more than what is not found.
                if error.errno not in NOT_FOUND:
                    problem = error
        raise problem
    finally:
        if "uid" in request:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups(())


def set_oom_score(score: bytes) -> None:
    """Tell the kernel how soon to end this process where memory runs out (proc(5)); not where that is not ours."""
    try:
        with open(OOM_SCORE, "wb", 0) as file:
            file.write(score)
    except OSError:
        pass


def enter(request: dict[str, Any]) -> int:
    """Change to the directory with the rights of the command's user, and be root again; an errno, 0 for none."""
    try:
        if "uid" not in request:
            change_directory(request)
            return 0
        os.setgroups(request["groups"])
        os.setegid(request["gid"])
        os.seteuid(request["uid"])
        try:
            change_directory(request)
        finally:
            os.seteuid(0)
            os.setegid(0)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def change_directory(request: dict[str, Any]) -> None:
    """Change to the directory; to that very path and not to where a symbolic link leads, where it was resolved."""
    os.chdir(request["directory"])
    if request.get("resolved") and os.getcwd() != request["directory"]:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def main() -> None:
    """Make gates for the socket that is standard input, one for each byte, until the daemon closes it."""
    for number in IGNORED_BY_SPAWNER:
        signal.signal(number, signal.SIG_IGN)
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
            channel.send(PID.pack(0) + PID.pack(error.errno or errno.EAGAIN))
            continue
        if pid == 0:
            try:
                gate(channel)
            except OSError as error:
                channel.send(PID.pack(0) + PID.pack(error.errno or errno.EAGAIN))
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, KeyboardInterrupt, ConnectionError):
        pass
