"""A command as it is remembered and told of; pure code."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from peerd import validate
from peerd.errors import Code, PeerdError
from peerd.messages import MAX_TEXT, ExecRequest, ExecResult, take

MAX_SHOWN_COMMAND = 4096
"""Characters of a command that a record of it keeps."""


@dataclass(frozen=True)
class Job:
    """A command, its caller, and how it ended: what is kept of it, and told of it.

    :ivar peer: where it runs
    :ivar caller: who asked for it, as in the journal
    :ivar command: the line for the shell, or the program and its arguments
    :ivar started_usec: when it was asked for, in microseconds since the epoch
    :ivar result: how it ended, or None while it runs or where that is not known yet
    """

    exec_id: str
    peer: str
    caller: str
    directory: str
    command: str | tuple[str, ...]
    user: str
    detached: bool
    started_usec: int
    result: ExecResult | None = None

    @classmethod
    def of(cls, request: ExecRequest, peer: str, caller: str, started_usec: int) -> Job:
        """The job that a request makes."""
        command = request.argv or request.shell_cmd or f"({request.action})"
        return cls(
            request.exec_id,
            peer,
            caller,
            request.directory,
            command,
            request.user or "root",
            request.detach,
            started_usec,
        )

    @property
    def line(self) -> str:
        """The command as one line, as a shell would take it."""
        return shlex.join(self.command) if isinstance(self.command, tuple) else self.command

    def shortened(self, limit: int = MAX_SHOWN_COMMAND) -> Job:
        """The same with so many characters of its command at most, and with "…" where more of it was."""
        if isinstance(self.command, str):
            return self if len(self.command) <= limit else replace(self, command=f"{self.command[: limit - 1]}…")
        words: list[str] = []
        for word in self.command:
            if len(word) > limit:
                return replace(self, command=(*words, f"{word[: max(limit - 1, 0)]}…"))
            words.append(word)
            limit -= len(word) + 1
        return self

    def refused(self, limit: int) -> Job:
        """The same as one that never ran here: with no output, and no longer than it has to be.

        :param limit: characters of the command and of the directory
        """
        return replace(self.shortened(limit), directory=self.directory[:limit], detached=False)

    def to_wire(self) -> dict[str, object]:
        """The job as a value in a message."""
        return {
            "execId": self.exec_id,
            "peer": self.peer,
            "caller": self.caller,
            "directory": self.directory,
            "command": list(self.command) if isinstance(self.command, tuple) else self.command,
            "user": self.user,
            "detached": self.detached,
            "startedUsec": self.started_usec,
            "result": self.result and self.result.to_wire(),
        }

    @classmethod
    def from_wire(cls, entry: object) -> Job:
        """The job in a value of a message.

        :raises PeerdError: BAD_MESSAGE
        """
        if not isinstance(entry, dict):
            raise PeerdError(Code.BAD_MESSAGE, reason="a job must be an object")
        result = entry.get("result")
        return cls(
            take(entry, "execId", validate.exec_id),
            take(entry, "peer", validate.peer_id),
            take(entry, "caller", lambda value: validate.string(value, "caller", MAX_TEXT), ""),
            take(entry, "directory", lambda value: validate.string(value, "directory", validate.MAX_PATH), ""),
            take(entry, "command", _command),
            take(entry, "user", validate.user, "root"),
            take(entry, "detached", validate.boolean, False),
            take(entry, "startedUsec", lambda value: validate.integer(value, 0, 2**63 - 1), 0),
            ExecResult.from_wire(result) if isinstance(result, dict) else None,
        )


def _command(value: object) -> str | tuple[str, ...]:
    return (
        validate.arguments(value)
        if isinstance(value, list)
        else validate.string(value, "command", validate.MAX_COMMAND)
    )
