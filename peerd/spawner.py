"""The process that starts commands: small, separate from the daemon, and the parent of every gate.

Run as a script by :class:`peerd.spawning.Spawner`. It imports nothing of peerd, so that a fork costs little and a
command inherits nothing of the daemon: no descriptor, no variable, no memory.

For each request it forks a *gate*. The gate opens a session of its own, waits for one byte on its control socket
while the daemon moves it into a scope, then starts the command, waits for it and reports the wait status on the same
socket. It stays inside the scope, so that its report does not depend on the daemon that asked for it.

A request is one byte that carries four descriptors (stdin, stdout, stderr, control; see unix(7), SCM_RIGHTS), then
four bytes of length, then JSON: ``argv``, ``environment``, ``directory``, for another user than root ``uid``, ``gid``
and ``groups``, and ``resolved`` where the directory must be entered without a symbolic link. The answer is the pid of
the gate in four bytes. The gate writes :data:`STARTED` once the command runs, and then its report, a line of JSON:
``{"status": N, "at": T}``, as from waitpid(2), at that time of CLOCK_MONOTONIC in seconds; or instead of both
``{"errno": N, "step": "directory"}``.
The gate stays until the daemon shuts the control socket down, so that the daemon can still read the scope's figures.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any, NoReturn

LENGTH = struct.Struct("!I")
STARTED = b"\n"
DESCRIPTORS = 4
CONTROL = 3
MAX_DESCRIPTOR = 1 << 20
LOGIN_UMASK = 0o022
LOGIN_NOFILE = 1024
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
OOM_SCORE = Path("/proc/self/oom_score_adj")
OOM_SPARE = "-1000"
# The stop of a scope signals all of its processes; the gate must outlive them to report.
IGNORED_BY_GATE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def receive_request(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next request and its descriptors, or None when the daemon has closed the channel."""
    marker, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize))
    if not marker:
        return None
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data)
    (size,) = LENGTH.unpack(receive_exactly(channel, LENGTH.size))
    return json.loads(receive_exactly(channel, size)), list(descriptors)


def receive_exactly(channel: socket.socket, size: int) -> bytes:
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


def gate(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Wait to be released, run the command, report how it ended. Runs in the forked child and never returns."""
    os.setsid()
    os.umask(LOGIN_UMASK)
    for number in IGNORED_BY_GATE:
        signal.signal(number, signal.SIG_IGN)
    # Descriptors arrive above 3 (the channel holds one of them), so no target number is overwritten before it is used.
    moved = [os.dup2(fd, target, inheritable=target != CONTROL) for target, fd in enumerate(descriptors)]
    os.closerange(len(moved), MAX_DESCRIPTOR)
    if not os.read(CONTROL, 1):
        os._exit(0)
    # Without it nobody could say how a command ended that ran out of memory.
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text(OOM_SPARE)
    # The command inherits what the gate ignores until it is itself: a stop that comes before waits for that.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_BY_GATE)
    report: dict[str, object]
    try:
        enter(request)
        pid = os.fork()
    except OSError as error:
        step = "start" if error.errno in (errno.EAGAIN, errno.ENOMEM) else "directory"
        report = {"errno": error.errno, "step": step}
    else:
        if pid == 0:
            execute(request)
        drop_streams()
        with contextlib.suppress(OSError):
            os.write(CONTROL, STARTED)
        report = {"status": os.waitpid(pid, 0)[1], "at": time.monotonic()}
    drop_streams()
    with contextlib.suppress(OSError):
        os.write(CONTROL, json.dumps(report).encode() + b"\n")
        while os.read(CONTROL, 64):
            pass
    os._exit(0)


def drop_streams() -> None:
    """Let go of the command's pipes: they must close when the command closes them, whatever the gate still does."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(CONTROL):
        os.dup2(null, fd)
    os.close(null)


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
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text("0")
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
    """Serve requests on the socket that is standard input until the daemon closes it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The daemon's own limit is raised for its connections; select(2) in a command would fail above 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(LOGIN_NOFILE, hard), hard))
    # Keeps numbers 0 to 3 taken, so that no descriptor that arrives has one of them.
    channel = socket.socket(fileno=os.dup(0))
    while os.dup(0) <= CONTROL:
        pass
    while True:
        received = receive_request(channel)
        if received is None:
            return
        request, descriptors = received
        pid = os.fork()
        if pid == 0:
            # The gate waits for its own child; SIG_IGN would reap it unseen.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                gate(request, descriptors)
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)
        for fd in descriptors:
            os.close(fd)
        channel.sendall(LENGTH.pack(pid))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, KeyboardInterrupt, ConnectionError):
        main()
