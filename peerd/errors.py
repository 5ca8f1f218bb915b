"""Every error that peerd reports, in one table. Pure code.

Code raises :class:`PeerdError`; it becomes a sentence with hints, a wire message, an outcome and an exit status
here and nowhere else.
"""

from __future__ import annotations

import difflib
import enum
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peerd.validate import printable

EXIT_USAGE = 2
EXIT_TIMEOUT = 124
EXIT_CANCELLED = 130
EXIT_FAILURE = 255
SIGNAL_BASE = 128


class Outcome(enum.StrEnum):
    """How a command ended. Every command ends in exactly one of these."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    OOM = "oom"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    LOST = "lost"

    @property
    def exit_status(self) -> int:
        """That of ``d`` for a command that did not end by itself."""
        return {Outcome.TIMEOUT: EXIT_TIMEOUT, Outcome.CANCELLED: EXIT_CANCELLED}.get(self, EXIT_FAILURE)


class Code(enum.StrEnum):
    """Stable names of errors; they travel on the wire and appear in logs."""

    PEER_NOT_FOUND = "peer-not-found"
    NOT_CONNECTED = "not-connected-to-leader"
    CONNECT_FAILED = "connect-failed"
    TIMEOUT = "timeout"
    LOST = "lost"
    CUT_OFF = "cut-off"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    NO_SUCH_JOB = "no-such-job"
    NOT_DETACHED = "not-detached"
    NOT_WAITED = "not-waited"
    OUTPUT_GONE = "output-gone"
    NO_SUCH_DIRECTORY = "no-such-directory"
    NOT_A_DIRECTORY = "not-a-directory"
    NO_SUCH_USER = "no-such-user"
    NO_ACCESS = "no-access"
    START_FAILED = "start-failed"
    DUPLICATE = "duplicate"
    OUT_OF_MEMORY = "out-of-memory"
    TOO_MUCH_OUTPUT = "too-much-output"
    NO_SUCH_APP = "no-such-app"
    NO_SUCH_UNIT = "no-such-unit"
    UNIT_FAILED = "unit-failed"
    APP_NOT_WAITED = "app-not-waited"
    APP_LOST = "app-lost"
    DENIED = "denied"
    UNKNOWN_PEER = "unknown-peer"
    ID_TAKEN = "id-taken"
    ADDRESS_TAKEN = "address-taken"
    KEY_CHANGED = "key-changed"
    DELETED = "deleted"
    PENDING = "pending"
    REJECTED = "rejected"
    REGISTRATION_CLOSED = "registration-closed"
    NOT_LEADER = "not-leader"
    NO_ROLE = "no-role"
    OWN_ADDRESS = "own-address"
    SELF_DELETE = "self-delete"
    USAGE = "usage"
    BAD_MESSAGE = "bad-message"
    UNKNOWN_MESSAGE = "unknown-message"
    VERSION = "version"
    TOO_OLD = "too-old"
    BUSY = "busy"
    NOT_STORED = "not-stored"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Kind:
    """What one error says: the sentence, what to do next, and how a command with this error ended."""

    sentence: str
    hints: tuple[str, ...] = ()
    outcome: Outcome = Outcome.FAILED
    own_status: int | None = None

    @property
    def exit_status(self) -> int:
        """That of ``d``: the outcome's, where the kind has none of its own."""
        return self.outcome.exit_status if self.own_status is None else self.own_status


_DIRECTORY_HINT = "It comes from --directory, or for remotePull and remoteBd from peerd.conf(5) there (repository)."

KINDS: Mapping[Code, Kind] = {
    Code.PEER_NOT_FOUND: Kind(
        "Peer not found: {peer}",
        (
            "{suggestion}",
            "Peer hasn't registered with the leader. On the missing peer, run:",
            "    d registerWorker    # uses the hostname, connects to the leader",
            "The registered peers: d listPeers",
        ),
        Outcome.UNREACHABLE,
    ),
    Code.NOT_CONNECTED: Kind(
        "Not connected to leader",
        (
            "Worker daemon hasn't connected to leader{reason}. Check:",
            "- Is leader daemon running? (systemctl status peerd, on the leader)",
            "- Is WireGuard VPN up? (wg show)",
            "- Can you ping the leader? (ping {address})",
        ),
        Outcome.UNREACHABLE,
    ),
    Code.CONNECT_FAILED: Kind(
        "Failed to connect to peer: {peer} ({address})",
        (
            "Target peer is registered but not reachable{reason}. Check:",
            "- Is daemon running on target peer? (systemctl status peerd peerd-tcp.socket, there)",
            "- WireGuard connectivity (ping {address})",
        ),
        Outcome.UNREACHABLE,
    ),
    Code.TIMEOUT: Kind(
        "Timeout waiting for response from {peer} ({seconds} s)",
        (
            "Command took too long ({seconds} second timeout); it and all that it started were stopped. Check:",
            "- Is the command hanging on target?",
            "- Does it need longer? (--timeout SECONDS)",
        ),
        Outcome.TIMEOUT,
    ),
    Code.LOST: Kind(
        "Lost connection to {peer} while the command ran",
        (
            "It may have finished, or was stopped when the connection broke. It was not run again.",
            "How it ended: d getJob --job {exec_id}",
        ),
        Outcome.LOST,
    ),
    Code.CUT_OFF: Kind(
        "Cut off: {peer} went down, or its peerd was stopped, while the command ran",
        ("How far it came is not known. It was not run again.", "{reason}"),
        Outcome.LOST,
    ),
    Code.CANCELLED: Kind(
        "Cancelled: the command on {peer} and all that it started were stopped",
        (),
        Outcome.CANCELLED,
    ),
    Code.ABANDONED: Kind(
        "Abandoned: the command on {peer} was stopped, because nobody was left to hear of it",
        ("How long it goes on without its caller is reattach-timeout of peerd.conf there.",),
        Outcome.CANCELLED,
    ),
    Code.NO_SUCH_JOB: Kind(
        "No such job: {exec_id}",
        ("Where its id is not found: --peer PEER says where it runs. The jobs: d listJobs, d history",),
    ),
    Code.NOT_DETACHED: Kind(
        "Not a detached job: {exec_id}",
        ("Its output goes to who started it. How it is: d getJob --job {exec_id}",),
    ),
    Code.NOT_WAITED: Kind("Stopped waiting for {exec_id}", ("{reason}: d getJob --job {exec_id}",), Outcome.CANCELLED),
    Code.OUTPUT_GONE: Kind(
        "Output is not kept any more: {exec_id}",
        ("How it ended: d getJob --job {exec_id}",),
        Outcome.LOST,
    ),
    Code.NO_SUCH_DIRECTORY: Kind("No such directory on {peer}: {directory}", (_DIRECTORY_HINT,)),
    Code.NOT_A_DIRECTORY: Kind("Not a directory on {peer}: {directory}", (_DIRECTORY_HINT,)),
    Code.NO_SUCH_USER: Kind(
        "No such user on {peer}: {user}", ("Who there is: d execOnPeer --peer {peer} --directory / -- getent passwd",)
    ),
    Code.NO_ACCESS: Kind(
        "Cannot enter directory on {peer}: {directory} ({reason})",
        ("Look: d execOnPeer --peer {peer} --directory / -- namei -l {directory}",),
    ),
    Code.START_FAILED: Kind(
        "Could not start the command on {peer}: {reason}", ("The record: journalctl -t peerd, there",)
    ),
    Code.DUPLICATE: Kind(
        "This command was already run on {peer}: {exec_id}", ("How it ended: d getJob --job {exec_id}",)
    ),
    Code.OUT_OF_MEMORY: Kind(
        "Out of memory: the command on {peer} was stopped",
        ("Give it more (--memory), or look what else runs there: systemd-cgtop",),
        Outcome.OOM,
    ),
    Code.TOO_MUCH_OUTPUT: Kind(
        "Output too large for a reply: {reason}", ("On the command line it has no limit: d execOnPeer",)
    ),
    Code.NO_SUCH_APP: Kind(
        "No such app on {peer}: {app}",
        ("The apps there: d listApps --peer {peer}", "To register one: d addApp --peer {peer} --app NAME"),
    ),
    Code.NO_SUCH_UNIT: Kind(
        "No such unit on {peer}: {unit}",
        ("Install it there, then: systemctl daemon-reload", "Another unit for the app: d addApp --unit NAME"),
    ),
    Code.UNIT_FAILED: Kind(
        "Failed to {name} {unit} on {peer}: {reason}",
        ("More, on {peer}: systemctl status {unit}; journalctl -u {unit}",),
    ),
    Code.APP_NOT_WAITED: Kind(
        "Stopped waiting for {app} on {peer}",
        ("It goes on: d appStatus --peer {peer} --app {app}",),
        Outcome.CANCELLED,
    ),
    Code.APP_LOST: Kind(
        "Lost connection to {peer} before it answered about {app}",
        ("What became of it: d appStatus --peer {peer} --app {app}",),
        Outcome.LOST,
    ),
    Code.DENIED: Kind(
        "Permission denied: {reason}",
        (
            "Why, on the machine that refuses: journalctl -t peerd",
            "What a peer may run there: d checkPolicy --peer PEER --directory PATH --shellCmd COMMAND",
        ),
        Outcome.DENIED,
    ),
    Code.UNKNOWN_PEER: Kind(
        "Permission denied: {address} is not a registered peer of {peer}",
        ("On this machine, run: d registerWorker",),
        Outcome.DENIED,
    ),
    Code.ID_TAKEN: Kind(
        "Peer id is taken: {peer} belongs to {address}",
        ("Choose another: d setPeerConfig [--role worker] --id NAME", "or free a worker's: d deletePeer --peer {peer}"),
        Outcome.DENIED,
    ),
    Code.ADDRESS_TAKEN: Kind(
        "Address is taken: {address} is registered as {peer}",
        ("To register it under another id, first run on the leader: d deletePeer --peer {peer}",),
        Outcome.DENIED,
    ),
    Code.KEY_CHANGED: Kind(
        "WireGuard key changed: {peer} ({address}) was registered with another key",
        ("If that is right, run on the leader: d approvePeer --peer {peer}",),
        Outcome.DENIED,
    ),
    Code.DELETED: Kind(
        "Peer {peer} was deleted from the registry", ("To join again, run here: d registerWorker",), Outcome.DENIED
    ),
    Code.PENDING: Kind(
        "Registration waits for approval: {peer} ({address})",
        ("On the leader, run: d approvePeer --peer {peer}",),
        Outcome.DENIED,
    ),
    Code.REJECTED: Kind(
        "Registration was rejected: {peer} ({address})",
        ("To let it in, run on the leader: d approvePeer --peer {peer}",),
        Outcome.DENIED,
    ),
    Code.REGISTRATION_CLOSED: Kind(
        "Registration is closed: {peer} ({address}) is not a peer",
        ("The leader's setting: registration, in peerd.conf(5)",),
        Outcome.DENIED,
    ),
    Code.NOT_LEADER: Kind(
        "{address} is not the leader",
        ("On the leader, run: d setPeerConfig --role leader --id NAME",),
        Outcome.DENIED,
    ),
    Code.NO_ROLE: Kind(
        "This machine has no role yet",
        (
            "To join a leader: d registerWorker [--leader ADDRESS]",
            "To make it the leader: d setPeerConfig --role leader --id NAME",
        ),
    ),
    Code.OWN_ADDRESS: Kind(
        "The leader's address is this machine's own: {address}",
        ("A worker's leader is another machine. To make this one the leader: d setPeerConfig --role leader",),
    ),
    Code.SELF_DELETE: Kind(
        "The leader cannot delete itself from its registry: {peer}",
        ("First make another machine the leader: d setPeerConfig --role leader, there",),
    ),
    Code.USAGE: Kind("{reason}", ("Help: d help {command}",), own_status=EXIT_USAGE),
    Code.BAD_MESSAGE: Kind(
        "Malformed message: {reason}",
        ("Is peerd on one of the machines older? (d listPeers) What a message may be: peerd-protocol(7)",),
    ),
    Code.UNKNOWN_MESSAGE: Kind("Unknown message: {name}", ("Is peerd on one of the machines older? (d listPeers)",)),
    Code.VERSION: Kind(
        "No common protocol version: theirs is {theirs}, ours is {ours}",
        ("Install the same version of peerd on both machines: d version",),
    ),
    Code.TOO_OLD: Kind(
        "peerd on {peer} is too old for this",
        ("Which version it has: d listPeers. To upgrade it: d remoteDeployDaemon",),
    ),
    Code.BUSY: Kind("Too busy: {reason}", ("Try again when some of them have ended.",), Outcome.DENIED),
    Code.NOT_STORED: Kind(
        "The state of {peer} cannot be stored: {reason}",
        (
            "Nothing was changed; commands that are not detached still run. On that machine, check:",
            "- Is there room? (df /var/lib/peerd)",
            "- Can it be written to? (findmnt -T /var/lib/peerd)",
            "- What is in the record? (journalctl -t peerd -p warning)",
        ),
    ),
    Code.INTERNAL: Kind("Internal error: {reason}", ("The record: journalctl -t peerd",)),
}

_EMPTY = ("reason", "seconds", "exec_id", "directory", "user", "app", "unit", "suggestion", "name", "theirs", "ours")
_DEFAULTS = {**dict.fromkeys(_EMPTY, ""), "peer": "peer", "address": "unknown", "command": "COMMAND"}
_MOST_LIKELY = 100
_MAX_DETAIL = 4096
_MAX_LINES = 10
_MAX_LINE = 500


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question for those of some names that a word may be a slip of; "" where it is like none of them."""
    lowered = {name.lower(): name for name in known}
    word = word.lower()
    # Each takes difflib some 0.1 ms.
    likely = heapq.nsmallest(_MOST_LIKELY, lowered, lambda name: (name[:1] != word[:1], abs(len(name) - len(word))))
    close = [lowered[match] for match in difflib.get_close_matches(word, likely, 3, 0.6)]
    return f"Did you mean {' or '.join(close)}?" if close else ""


class PeerdError(Exception):
    """An error with a stable code.

    :param code: which kind of error it is
    :param lines: what the program that failed wrote itself, which is shown in the same way; the last of them
    :param details: what the sentence and the hints of that kind name; values are shown with control
        characters escaped, so that text from another party cannot drive a terminal or forge a log line
    """

    def __init__(self, code: Code, lines: Sequence[str] = (), /, **details: object) -> None:
        self.code = code
        self.lines = [printable(line, _MAX_LINE) for line in lines[-_MAX_LINES:]]
        self.details = {key: printable(str(value), _MAX_DETAIL) for key, value in details.items()}
        super().__init__(self.sentence)

    @property
    def kind(self) -> Kind:
        """The row of :data:`KINDS` that this error is an instance of."""
        return KINDS[self.code]

    def _format(self, template: str) -> str:
        return template.format_map({**_DEFAULTS, **self.details})

    @property
    def sentence(self) -> str:
        """The one-line message."""
        return self._format(self.kind.sentence)

    @property
    def hints(self) -> list[str]:
        """The lines that follow: what the program wrote, and what to do next, as far as there is something to say."""
        advice = [line for hint in self.kind.hints if (line := self._format(hint))]
        return [*(f"| {line}" for line in self.lines), *advice]

    @property
    def text(self) -> str:
        """The sentence and its hints, as shown on standard error."""
        return "\n".join([self.sentence, *(f"  {hint}" for hint in self.hints)]) + "\n"

    def to_wire(self) -> dict[str, object]:
        """The error as fields of a message."""
        fields: dict[str, object] = {"code": self.code.value, "message": self.sentence, "details": self.details}
        return {**fields, "lines": self.lines} if self.lines else fields

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> PeerdError:
        """The error that a peer reported; an unknown code becomes INTERNAL with the peer's message quoted."""
        code, message, details = (fields.get(name) for name in ("code", "message", "details"))
        if code not in list(Code):
            return cls(Code.INTERNAL, reason=message if message and isinstance(message, str) else "unknown error")
        pairs = details.items() if isinstance(details, dict) else ()
        given = fields.get("lines")
        lines = [line for line in given[-_MAX_LINES:] if isinstance(line, str)] if isinstance(given, list) else ()
        return cls(
            Code(str(code)),
            lines,
            **{key: value for key, value in pairs if key in _DEFAULTS and isinstance(value, str)},
        )
