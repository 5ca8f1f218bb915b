"""Apps: a name, with a unit of systemd and a directory for each of its modes; and what is asked of them. Pure code."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peerd import validate
from peerd.answer import Answer
from peerd.errors import Code, PeerdError
from peerd.messages import MAX_TEXT, take, take_optional

MODES = ("dev", "prod")
ALL = "all"
"""In place of a mode: every mode that the app has."""
DEFAULT_PATTERN = "{app}-{mode}.service"
MAX_APPS = 100
"""How many modes of apps one machine has."""
LISTED = ("app", "mode", "unit", "directory")
SHOWN = (
    *LISTED,
    "load",
    "active",
    "sub",
    "enabled",
    "main_pid",
    "since",
    "restarts",
    "result",
    "exit_status",
)
"""The fields of a row of appStatus; those of listApps are the first of them."""
_MAX_NOTES = 10
_MAX_NOTE = 4096


@dataclass(frozen=True)
class App:
    """One mode of an app.

    :ivar unit: the unit that runs it
    :ivar directory: where it lives, for people and scripts; "" where nobody said
    """

    name: str
    mode: str
    unit: str
    directory: str = ""


class AppCommand(enum.StrEnum):
    """What can be asked about apps; the values are the commands of ``d``."""

    START = "startApp"
    STOP = "stopApp"
    RESTART = "restartApp"
    ENABLE = "enableApp"
    DISABLE = "disableApp"
    STATUS = "appStatus"
    LIST = "listApps"
    ADD = "addApp"
    REMOVE = "removeApp"

    @property
    def changes(self) -> bool:
        """Whether anything is different afterwards."""
        return self not in (AppCommand.STATUS, AppCommand.LIST)


@dataclass(frozen=True)
class AppRequest:
    """One of these commands.

    :ivar app: the name; "" for all apps
    :ivar mode: one of :data:`MODES`, or :data:`ALL`
    :ivar unit: for an app that is added: its unit, where {app} and {mode} stand for the two
    :ivar directory: the same of its directory, or ""
    """

    command: AppCommand
    app: str = ""
    mode: str = ALL
    unit: str = DEFAULT_PATTERN
    directory: str = ""

    def expand(self) -> list[App]:
        """The modes of the app that is added.

        :raises PeerdError: USAGE where two modes would have the same unit, or it is no name of a unit
        """
        modes = MODES if self.mode == ALL else (self.mode,)
        if len(modes) > 1 and "{mode}" not in self.unit:
            raise PeerdError(Code.USAGE, reason="--unit must have {mode} in it; for a unit of one mode give --mode")
        try:
            return [
                App(
                    self.app,
                    mode,
                    validate.unit(self._fill(self.unit, mode)),
                    validate.app_directory(self._fill(self.directory, mode)) if self.directory else "",
                )
                for mode in modes
            ]
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"--unit and --directory for {self.app}: {error}") from None

    def _fill(self, pattern: str, mode: str) -> str:
        return pattern.replace("{app}", self.app).replace("{mode}", mode)

    def to_wire(self) -> dict[str, object]:
        """The fields of an appRequest."""
        unit = self.unit if self.command is AppCommand.ADD else ""
        fields = {"app": self.app, "mode": self.mode, "unit": unit, "directory": self.directory}
        return {"command": self.command.value, **{name: value for name, value in fields.items() if value}}

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> AppRequest:
        """The request in the fields of an appRequest."""
        command = take(fields, "command", lambda value: AppCommand(str(value)))
        return cls(
            command,
            take(fields, "app", validate.app, None if command.changes else ""),
            take(fields, "mode", _mode, ALL),
            take(fields, "unit", validate.unit_pattern, DEFAULT_PATTERN),
            take(fields, "directory", validate.app_directory, ""),
        )


def _mode(value: object) -> str:
    if value not in (*MODES, ALL):
        raise ValueError(f"must be {', '.join(MODES)} or {ALL}")
    return str(value)


def answer_to_wire(answer: Answer, notes: Sequence[str]) -> dict[str, object]:
    """The fields of a reply to an appRequest.

    :param notes: what is to be said beside the answer
    """
    fields: dict[str, object] = {"data": answer.data, "text": answer.text, "notes": list(notes)[:_MAX_NOTES]}
    return {**fields, "error": answer.error.to_wire()} if answer.error else fields


def answer_from_wire(fields: Mapping[str, object], request: AppRequest) -> tuple[Answer, list[str]]:
    """The answer in the fields of a reply, and what is to be said beside it.

    :param request: what was asked
    :raises PeerdError: BAD_MESSAGE
    """
    names = {AppCommand.LIST: LISTED, AppCommand.STATUS: SHOWN}.get(request.command)
    data = [{name: take_optional(row, name, _cell) for name in names} for row in _rows(fields)] if names else None
    # A sentence on each unit; a line beyond those may be meant to look like somebody else's.
    lines = take(fields, "text", _text, "").split("\n", len(MODES) - 1 if request.mode == ALL else 0)
    text = "\n".join(map(validate.printable, lines))
    notes = take_optional(fields, "notes", _notes) or []
    given = fields.get("error")
    error = PeerdError.from_wire(given) if isinstance(given, dict) else None
    status = error.kind.exit_status if error else 0
    return Answer(data, text=text, error=error, status=status), notes


def _rows(fields: Mapping[str, object]) -> list[Mapping[str, object]]:
    rows = fields.get("data")
    if not isinstance(rows, list) or len(rows) > MAX_APPS or not all(isinstance(row, dict) for row in rows):
        raise PeerdError(Code.BAD_MESSAGE, reason=f"data must be a list of at most {MAX_APPS} objects")
    return rows


def _cell(value: object) -> str | int:
    if isinstance(value, int):
        return validate.integer(value, 0, 2**63 - 1)
    return validate.string(value, "field", MAX_TEXT)


def _text(value: object) -> str:
    return validate.string(value, "text", _MAX_NOTE)


def _notes(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > _MAX_NOTES:
        raise ValueError(f"must be a list of at most {_MAX_NOTES} texts")
    return [validate.printable(_text(item)) for item in value]
