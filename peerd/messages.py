"""The messages that carry more than a name, as types with their wire form; pure code.

A ``from_wire`` takes the fields of a frame from another party and raises BAD_MESSAGE for anything out of bounds.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from peerd import validate
from peerd.errors import SIGNAL_BASE, Code, Outcome, PeerdError
from peerd.protocol import OLDEST_VERSION, PROTOCOL_VERSION

T = TypeVar("T")
MAX_TEXT = 255
MAX_OUTPUT = 512 * 1024
"""Bytes of output, or of input, in one message."""
WINDOW = 4 * 1024 * 1024
"""Bytes of a stream that may be under way before whoever receives them has confirmed some."""
NARROW_WINDOW = 1024 * 1024
"""The same for the input of a peer, or of a d, of a version before :data:`peerd.protocol.WIDE`."""
STREAMS = ("stdout", "stderr")
Offsets = Mapping[str, int]
"""For each stream a number of bytes from its beginning."""


class Action(enum.StrEnum):
    """What a target runs from its own settings, so that a caller need not know its directories."""

    PULL = "pull"
    BUILD = "build"
    DEPLOY = "deploy"
    """A build that may replace peerd itself, and that is seen to leave one that works."""


class RegistryAction(enum.StrEnum):
    """What an administrator does with a peer or a registration; the values are the messages that ask the leader."""

    DELETE = "deletePeer"
    APPROVE = "approvePeer"
    REJECT = "rejectPeer"


def take(fields: Mapping[str, object], name: str, check: Callable[[object], T], default: T | None = None) -> T:
    """The checked value of one field.

    :param default: the value of an absent field; without it the field must be there
    :raises PeerdError: BAD_MESSAGE, naming the field
    """
    value = fields.get(name)
    if value is None:
        if default is not None:
            return default
        raise PeerdError(Code.BAD_MESSAGE, reason=f"{name} is missing")
    try:
        return check(value)
    except ValueError as error:
        raise PeerdError(Code.BAD_MESSAGE, reason=f"{name}: {error}") from None


def take_optional(fields: Mapping[str, object], name: str, check: Callable[[object], T]) -> T | None:
    """The checked value of one field, or None where it is absent or null."""
    return None if fields.get(name) is None else take(fields, name, check)


def _text(value: object) -> str:
    return validate.utf8(value, "text", MAX_TEXT)


def _action(value: object) -> Action:
    return Action(_text(value))


def _outcome(value: object) -> Outcome:
    return Outcome(_text(value))


def _variables(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return validate.variables(
        [
            validate.assignment(f"{name}={validate.string(text, 'variable', validate.MAX_COMMAND)}")
            for name, text in value.items()
        ]
    )


def _count(value: object) -> int:
    return validate.integer(value, 0, 2**63 - 1)


def take_offsets(fields: Mapping[str, object]) -> dict[str, int]:
    """The offsets in a message: one for each stream, zero where there is none."""
    return {stream: take(fields, stream, _count, 0) for stream in STREAMS}


def hello(version: str, boot: str = "") -> dict[str, object]:
    """The fields of the hello that opens every connection.

    :param boot: the boot id of this machine
    """
    return {"protocol": OLDEST_VERSION, "newest": PROTOCOL_VERSION, "version": version, "boot": boot}


@dataclass(frozen=True)
class Hello:
    """What a hello says of the other end.

    :ivar protocol: the version of the protocol that is spoken with it
    :ivar boot: the boot id of its machine, or ""
    """

    protocol: int
    boot: str


def check_hello(fields: Mapping[str, object]) -> Hello:
    """What a hello says of the other end.

    :raises PeerdError: VERSION where the two have no version of the protocol in common
    """

    def version(value: object) -> int:
        return validate.integer(value, 0, 1_000_000)

    oldest = take(fields, "protocol", version)
    newest = take(fields, "newest", version, oldest)
    # That of the program is for people who read along, and decides nothing.
    take(fields, "version", _text, "")
    spoken = min(newest, PROTOCOL_VERSION)
    if spoken < max(oldest, OLDEST_VERSION):
        raise PeerdError(Code.VERSION, theirs=oldest if oldest > PROTOCOL_VERSION else newest, ours=PROTOCOL_VERSION)
    return Hello(spoken, take(fields, "boot", _text, ""))


@dataclass(frozen=True)
class ExecRequest:
    """A command to run: a shell command or a program with its arguments in a directory, or an action of the target's.

    :ivar exec_id: the caller's id of this command; a target runs an id once
    :ivar argv: a program and its arguments, instead of ``shell_cmd``
    :ivar timeout: seconds, or None for the target's default
    :ivar env: variables beside those of :mod:`peerd.environment`
    :ivar user: whom to run it as; "" for root
    :ivar login: whether the user's own shell runs it, as a login shell
    :ivar stdin: whether the caller sends what the command reads
    :ivar memory: bytes that it may use at most, or None (MemoryMax=)
    :ivar cpu: percent of one CPU that it may use at most, or None (CPUQuota=)
    :ivar tasks: processes and threads that it may have at most, or None (TasksMax=)
    :ivar rollback: whether a deploy puts the former package back where the new peerd does not work
    :ivar detach: whether it goes on without its caller, its output kept for whoever attaches to it
    :ivar resolved: whether the directory must have no symbolic link in it when it is entered; the target's own doing
    """

    exec_id: str
    directory: str = ""
    shell_cmd: str = ""
    argv: tuple[str, ...] = ()
    action: Action | None = None
    timeout: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    login: bool = False
    stdin: bool = False
    memory: int | None = None
    cpu: float | None = None
    tasks: int | None = None
    detach: bool = False
    rollback: bool = True
    resolved: bool = False

    @property
    def command(self) -> str:
        """The command as one line, as a shell would take it."""
        return shlex.join(self.argv) if self.argv else self.shell_cmd

    def to_wire(self) -> dict[str, object]:
        """The fields of an execRequest; those at their defaults are absent."""
        fields: dict[str, object] = {
            "execId": self.exec_id,
            "directory": self.directory,
            "shellCmd": self.shell_cmd,
            "argv": list(self.argv),
            "action": self.action and self.action.value,
            "timeout": self.timeout,
            "env": dict(self.env),
            "user": self.user,
            "login": self.login,
            "stdin": self.stdin,
            "memory": self.memory,
            "cpu": self.cpu,
            "tasks": self.tasks,
            "detach": self.detach,
            "noRollback": not self.rollback,
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> ExecRequest:
        """The request in the fields of an execRequest."""
        exec_id = take(fields, "execId", validate.exec_id)
        timeout = take_optional(fields, "timeout", validate.seconds)
        action = take_optional(fields, "action", _action)
        detach = take(fields, "detach", validate.boolean, False)
        if action:
            rollback = not take(fields, "noRollback", validate.boolean, False)
            return cls(exec_id, action=action, timeout=timeout, detach=detach, rollback=rollback)
        argv = take_optional(fields, "argv", validate.arguments) or ()
        shell_cmd = take(fields, "shellCmd", validate.shell_command, "" if argv else None)
        if argv and shell_cmd:
            raise PeerdError(Code.BAD_MESSAGE, reason="either shellCmd or argv, and not both")
        return cls(
            exec_id,
            take(fields, "directory", validate.directory),
            shell_cmd,
            argv,
            timeout=timeout,
            env=take(fields, "env", _variables, {}),
            user=take(fields, "user", validate.user, ""),
            login=take(fields, "login", validate.boolean, False),
            stdin=take(fields, "stdin", validate.boolean, False),
            memory=take_optional(fields, "memory", validate.size),
            cpu=take_optional(fields, "cpu", validate.percentage),
            tasks=take_optional(fields, "tasks", validate.count),
            detach=detach,
        )


@dataclass(frozen=True)
class ExecResult:
    """How a command ended.

    :ivar exit_status: what a shell would report: the command's own, 128+n for signal n, or peerd's
    :ivar duration_usec: microseconds from the start of the command to the end of its whole tree, or None where that
        is not known
    :ivar started_usec: when it was started, in microseconds since the epoch by the target's clock; 0 if it was not
    :ivar cpu_usec: microseconds of CPU time of the whole tree, or None where that is not known
    :ivar memory_peak: bytes that the whole tree used at most, or None where that is not known
    :ivar sizes: bytes of each stream that it wrote and that were kept
    :ivar dropped: bytes that it wrote and for which there was no room, or None where that is not known
    :ivar left_behind: how many background processes were stopped after the command itself had ended, or None where
        that is not known
    :ivar stopped: whether systemd was told there to stop it, by somebody else than peerd
    :ivar error: the sentence for every outcome that is not the command's own doing
    """

    outcome: Outcome
    exit_status: int
    signal: int | None = None
    duration_usec: int | None = 0
    left_behind: int | None = 0
    error: PeerdError | None = None
    started_usec: int = 0
    cpu_usec: int | None = None
    memory_peak: int | None = None
    sizes: Offsets = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    dropped: int | None = 0
    stopped: bool = False

    @classmethod
    def failure(cls, error: PeerdError, duration_usec: int = 0) -> ExecResult:
        """The result of a command that peerd, the network, policy or a limit ended, or never let start.

        Of one that is lost nothing is known, whatever the duration.
        """
        result = cls(error.kind.outcome, error.kind.exit_status, duration_usec=duration_usec, error=error)
        if result.outcome is Outcome.LOST:
            return replace(result, duration_usec=None, left_behind=None, dropped=None)
        return result

    def to_wire(self) -> dict[str, object]:
        """The fields of a result."""
        fields: dict[str, object] = {
            "outcome": self.outcome.value,
            "exitStatus": self.exit_status,
            "signal": self.signal,
            "durationUsec": self.duration_usec,
            "leftBehind": self.left_behind,
            "startedUsec": self.started_usec,
            "cpuUsec": self.cpu_usec,
            "memoryPeak": self.memory_peak,
            "dropped": self.dropped,
            "stopped": self.stopped,
            **self.sizes,
        }
        return {**fields, "error": self.error.to_wire()} if self.error else fields

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> ExecResult:
        """The result in the fields of a result message."""
        outcome = take(fields, "outcome", _outcome)
        error: PeerdError | None = None
        if outcome not in (Outcome.EXITED, Outcome.SIGNALED):
            given = fields.get("error")
            error = PeerdError.from_wire(given if isinstance(given, dict) else {})
        signal = take_optional(fields, "signal", lambda value: validate.integer(value, 1, 127))
        return cls(
            outcome,
            _exit_status(outcome, take(fields, "exitStatus", lambda value: validate.integer(value, 0, 255)), signal),
            signal,
            take_optional(fields, "durationUsec", _count),
            take_optional(fields, "leftBehind", _count),
            error,
            take(fields, "startedUsec", _count, 0),
            take_optional(fields, "cpuUsec", _count),
            take_optional(fields, "memoryPeak", _count),
            take_offsets(fields),
            take_optional(fields, "dropped", _count),
            take(fields, "stopped", validate.boolean, False),
        )


def _exit_status(outcome: Outcome, reported: int, signal: int | None) -> int:
    # Derived wherever it can be, so that a peer's report cannot turn a failure into success.
    if outcome is Outcome.EXITED:
        return reported
    if outcome is Outcome.SIGNALED:
        return SIGNAL_BASE + (signal or 0)
    return outcome.exit_status


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself when it registers. Its address and key are never among it.

    :ivar joining: whether somebody on that machine told it to register, as a worker that was deleted needs
    """

    peer_id: str
    hostname: str
    mac_address: str
    daemon_version: str
    joining: bool = False

    def to_wire(self) -> dict[str, object]:
        """The fields of a registerPeer."""
        return asdict(self)

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> Registration:
        """The registration in the fields of a registerPeer."""
        return cls(
            take(fields, "peer_id", validate.peer_id),
            take(fields, "hostname", _text, ""),
            take(fields, "mac_address", validate.mac_address, ""),
            take(fields, "daemon_version", _text, ""),
            take(fields, "joining", validate.boolean, False),
        )
