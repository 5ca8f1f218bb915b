"""The descriptors of a running command, and how they come back after a restart of peerd.

systemd keeps copies of them under the name of the command's scope. Which is which, and what else a restart must know,
is in a file in memory among them, the memo: it lasts as long as they do, and no full disk can keep it from being
written. It is a line of JSON, and a line more for each thing that happened since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerd import fdstore
from peerd.errors import PeerdError
from peerd.messages import MAX_OUTPUT, STREAMS, ExecRequest
from peerd.session import Caller
from peerd.spool import Spool

_MEMO = "peerd-memo"
CANCELLED = "cancelled"
"""A note in a memo: the command was cancelled."""
RELEASED = "released"
"""A note in a memo: the command was let go, and so may have run."""
_CONTROL = "control"
_STDIN = "stdin"


class HandlesError(Exception):
    """The descriptors that systemd kept are not those of a command; the text says why."""


@dataclass(frozen=True)
class Start:
    """How a command was started.

    :ivar scope: the unit that it runs in
    :ivar gate: the pid of its gate
    :ivar began: when the scope was asked for, in seconds of CLOCK_MONOTONIC
    :ivar started_usec: the same in microseconds since the epoch
    """

    request: ExecRequest
    caller: Caller
    scope: str
    gate: int
    began: float
    started_usec: int

    @classmethod
    def now(cls, request: ExecRequest, caller: Caller, scope: str, gate: int) -> Start:
        """A command that starts now."""
        return cls(request, caller, scope, gate, time.monotonic(), time.time_ns() // 1000)


@dataclass
class Handles:
    """The descriptors of one command, this object's to close.

    :ivar control: the socket of its gate
    :ivar pipes: the ends of its pipes to read from, by stream
    :ivar spools: its output, in memory; not that which is on disk
    :ivar stdin: what it is sent and where that goes, or None
    """

    control: socket.socket
    pipes: dict[str, int] = field(default_factory=dict)
    spools: dict[str, Spool] = field(default_factory=dict)
    stdin: tuple[Spool, int] | None = None
    name: str = ""
    memo: int = -1

    def open(self, stdin: bool, spooled: bool) -> list[int]:
        """Make those of a new command, of which there is no more than the socket of its gate.

        :param stdin: whether it is sent input; it reads nothing else
        :param spooled: whether its output goes into memory
        :returns: its own ends: stdin, stdout and stderr, for the caller to close
        :raises OSError: when one cannot be made; none of them is left then
        """
        ends = []
        with contextlib.ExitStack() as stack:
            if stdin:
                spool = Spool.in_memory(_STDIN)
                stack.callback(spool.close)
                read_end, write_end = _pipe(stack)
                os.set_blocking(write_end, False)
                fed = spool, write_end
            else:
                read_end = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, read_end)
                fed = None
            ends.append(read_end)
            pipes = {}
            for stream in STREAMS:
                pipes[stream], write_end = _pipe(stack)
                os.set_blocking(pipes[stream], False)
                ends.append(write_end)
            stack.pop_all()
        self.stdin, self.pipes = fed, pipes
        if spooled:
            self.spools = {stream: self.spool(stream) for stream in STREAMS}
        return ends

    def spool(self, stream: str) -> Spool:
        """A file in memory for a stream, made and kept once there is something to put into it."""

        def make() -> int:
            fd = os.memfd_create(stream, os.MFD_CLOEXEC)
            fdstore.keep(self.name, [fd])
            return fd

        return Spool(-1, make)

    def keep(self, start: Start) -> None:
        """Have systemd keep them."""
        self.name = start.scope
        roles = {
            _CONTROL: self.control.fileno(),
            **{f"{stream}.pipe": fd for stream, fd in self.pipes.items()},
        }
        if self.stdin:
            roles["stdin.spool"] = self.stdin[0].fd
        everything = dict(roles)
        if self.stdin:
            everything["stdin.pipe"] = self.stdin[1]
        memo = {
            "request": start.request.to_wire(),
            "caller": [start.caller.peer, start.caller.user],
            "gate": start.gate,
            "began": start.began,
            "startedUsec": start.started_usec,
            "roles": {role: _identity(fd) for role, fd in everything.items()},
        }
        self.memo = os.memfd_create(_MEMO, os.MFD_CLOEXEC)
        os.write(self.memo, json.dumps(memo).encode() + b"\n")
        fdstore.keep(self.name, [self.memo, *roles.values()])
        if self.stdin:
            # By itself, because the command sees the end of its input only when no copy is left.
            fdstore.keep(_stdin_of(self.name), [self.stdin[1]])

    def note(self, text: str) -> None:
        """Remember across a restart what happened: :data:`CANCELLED` or :data:`RELEASED`."""
        if self.memo >= 0:
            os.lseek(self.memo, 0, os.SEEK_END)
            os.write(self.memo, f"{text}\n".encode())

    def close_stdin(self) -> None:
        """Let the command see the end of its input."""
        if self.stdin:
            os.close(self.stdin[1])
            self.stdin[0].close()
            self.stdin = None
            if self.name:
                fdstore.forget(_stdin_of(self.name))

    def close(self, forget: bool) -> None:
        """Close them.

        :param forget: whether systemd lets go of its copies, too
        """
        self.control.close()
        for fd in self.pipes.values():
            os.close(fd)
        self.pipes.clear()
        if self.stdin and not forget:
            os.close(self.stdin[1])
            self.stdin[0].close()
            self.stdin = None
        self.close_stdin()
        if self.memo >= 0:
            os.close(self.memo)
            self.memo = -1
        if forget and self.name:
            fdstore.forget(self.name)


def kept_commands(kept: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Sequence[int], int | None]]:
    """What systemd kept, by command: its name, its descriptors, and the pipe that was kept by itself, or None."""
    for name, descriptors in kept.items():
        if not name.endswith(_stdin_of("")):
            stdin = kept.get(_stdin_of(name))
            yield name, descriptors, stdin[0] if stdin else None


def forget(name: str) -> None:
    """Have systemd let go of all that it keeps of a command."""
    fdstore.forget(name)
    fdstore.forget(_stdin_of(name))


def adopt(name: str, descriptors: Sequence[int], stdin_pipe: int | None) -> tuple[Handles, Start, frozenset[str]]:
    """The descriptors of a command that an earlier process started.

    :param name: the name of its scope
    :param stdin_pipe: the one that was kept by itself, if there is one
    :returns: the descriptors, how the command was started, and what was noted since
    :raises HandlesError: where something is missing; all descriptors are closed then
    """
    everything = [*descriptors, *([stdin_pipe] if stdin_pipe is not None else [])]
    try:
        files = {os.readlink(f"/proc/self/fd/{fd}"): fd for fd in descriptors}
        memo = files[_link(_MEMO)]
        lines = os.pread(memo, os.fstat(memo).st_size, 0).split(b"\n")
        told: dict[str, Any] = json.loads(lines[0])
        start = Start(
            ExecRequest.from_wire(told["request"]),
            Caller(*told["caller"]),
            name,
            int(told["gate"]),
            float(told["began"]),
            int(told["startedUsec"]),
        )
        found = {tuple(_identity(fd)): fd for fd in everything}
        ours = {role: found[tuple(identity)] for role, identity in told["roles"].items() if tuple(identity) in found}
        pipes = {stream: ours[f"{stream}.pipe"] for stream in STREAMS}
        stdin = (Spool(ours["stdin.spool"]), ours["stdin.pipe"]) if "stdin.pipe" in ours else None
        # Last, because a socket closes itself.
        handles = Handles(socket.socket(fileno=ours[_CONTROL]), pipes, {}, stdin, name, memo)
    except (KeyError, TypeError, ValueError, AttributeError, OSError, PeerdError) as error:
        for fd in everything:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise HandlesError(f"{type(error).__name__}: {error}") from None
    handles.control.setblocking(False)
    for stream in STREAMS:
        made = files.get(_link(stream))
        handles.spools[stream] = handles.spool(stream) if made is None else Spool(made)
    if handles.stdin is None and "stdin.spool" in ours:
        os.close(ours["stdin.spool"])
    return handles, start, frozenset(line.decode() for line in lines[1:] if line)


def _stdin_of(name: str) -> str:
    """The name under which the pipe of a command's standard input is kept."""
    return f"{name}.{_STDIN}"


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that holds as much as two messages do, where the system's limits have room for it (pipe(7)).

    :param stack: closes both ends
    """
    ends = os.pipe2(os.O_CLOEXEC)
    for end in ends:
        stack.callback(os.close, end)
    with contextlib.suppress(OSError):
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, 2 * MAX_OUTPUT)
    return ends


def _link(name: str) -> str:
    """What /proc/self/fd shows of a file in memory (memfd_create(2))."""
    return f"/memfd:{name} (deleted)"


def _identity(fd: int) -> list[int]:
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)]
