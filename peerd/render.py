"""Data as text: JSON for scripts, tables for people. Pure code."""

from __future__ import annotations

import json
import syslog
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from peerd.commands import Command
from peerd.errors import KINDS, Code, Outcome, PeerdError
from peerd.job import Job
from peerd.validate import printable

_MAX_CELL = 120
_COLORED = ("is_online", "connected_to_leader")
"""Booleans whose meaning is good or bad."""
_YES = "yes"
_BETWEEN = "\n"
"""Between the cells of a line while it is held: none of them has it, for it is not printable."""
_GREEN, _RED, _YELLOW, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_USEC = 1_000_000
_LINES = 100
"""Lines of a table that are put together at once."""
RECORD_SCHEMA = 1
"""Version of the record that --json prints; it changes when a field changes its meaning."""
_RESULT_FIELDS = (
    "outcome",
    "exit_status",
    "signal",
    "duration",
    "cpu",
    "memory_peak",
    "left_behind",
    "dropped",
    "error",
)


def render(command: Command, data: Any, as_json: bool, color: bool = False) -> str:
    """The data of a command's answer, ending with a newline.

    :param color: whether to tell good from bad by colour, in what is no JSON
    """
    if as_json:
        return json.dumps(data, indent=2) + "\n"
    if command.log:
        return render_more(command, data, False, color)
    if isinstance(data, Mapping):
        width = max(map(len, data))
        return "".join(f"{key:>{width}}: {_paint(key, value, _cell(value), color)}\n" for key, value in data.items())
    return _table(data, command.columns, color)


def in_portions(command: Command, as_json: bool, color: bool = False) -> Renderer:
    """The same for rows that come some at a time."""
    return _Array() if as_json else _Table(command.columns, color)


def render_more(command: Command, rows: Sequence[Mapping[str, Any]], as_json: bool, color: bool = False) -> str:
    """Rows of data as they come: a line each, without a head."""
    if as_json:
        return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    if not command.log:
        return _table(rows, command.columns, color).partition("\n")[2]
    return "".join(_log_line(row, color) for row in rows)


def _log_line(row: Mapping[str, Any], color: bool) -> str:
    message = printable(row["message"])
    if color and row["priority"] <= syslog.LOG_WARNING:
        message = f"{_RED if row['priority'] <= syslog.LOG_ERR else _YELLOW}{message}{_PLAIN}"
    return f"{printable(row['time'])} {message}\n"


def no_result(code: str, lines: Sequence[str], exec_id: str = "") -> dict[str, object]:
    """The record of a command of whose end there is nobody to tell.

    :param code: the error; one that is not known here is an internal one
    :param lines: what people are told: a sentence, and hints
    """
    kind = KINDS[Code(code) if code in list(Code) else Code.INTERNAL]
    error: dict[str, object] = {"code": code, "message": lines[0], "hints": list(lines[1:])}
    return _without_end(kind.outcome, kind.exit_status, error, exec_id)


def failure(error: PeerdError, status: int) -> dict[str, object]:
    """The record of a command that was not even asked for.

    :param status: the exit status of ``d``
    """
    return _without_end(error.kind.outcome, status, error_fields(error))


def _without_end(outcome: Outcome, status: int, error: dict[str, object], exec_id: str = "") -> dict[str, object]:
    return {
        "schema": RECORD_SCHEMA,
        "exec_id": exec_id or None,
        "outcome": outcome.value,
        "exit_status": status,
        "error": error,
    }


def record(job: Job) -> dict[str, object]:
    """All that is known of a command, but for its output; times in seconds, null where something is not known yet."""
    result = job.result
    known: dict[str, object] = dict.fromkeys(_RESULT_FIELDS)
    if result:
        error = result.error
        values = (
            result.outcome.value,
            result.exit_status,
            result.signal,
            _seconds(result.duration_usec),
            _seconds(result.cpu_usec),
            result.memory_peak,
            result.left_behind,
            result.dropped,
            error_fields(error) if error else None,
        )
        known = dict(zip(_RESULT_FIELDS, values, strict=True))
    return {
        "schema": RECORD_SCHEMA,
        "exec_id": job.exec_id,
        "peer": job.peer,
        "caller": job.caller,
        "directory": job.directory or None,
        "command": list(job.command) if isinstance(job.command, tuple) else job.command,
        "user": job.user,
        "detached": job.detached,
        "started": moment(((result.started_usec if result else 0) or job.started_usec) / _USEC) or None,
        **known,
    }


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else usec / _USEC


def error_fields(error: PeerdError) -> dict[str, object]:
    """An error in a record."""
    return {"code": error.code.value, "message": error.sentence, "hints": error.hints}


def moment(seconds: float) -> str:
    """A time, in seconds since the epoch, as RFC 3339 has it, in UTC; "" for zero, which is none."""
    if not seconds:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Renderer(Protocol):
    """Makes text of very many rows, some at a time."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """What can be printed now that these are there as well."""

    def rest(self) -> Iterator[str]:
        """What remains to be printed after the last of them."""


class _Array:
    """An array of JSON, as :func:`render` has it."""

    def __init__(self) -> None:
        self._begun = False

    def add(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if not rows:
            return ""
        start, self._begun = ",\n" if self._begun else "[\n", True
        return start + json.dumps(rows, indent=2).removeprefix("[\n").removesuffix("\n]")

    def rest(self) -> Iterator[str]:
        yield "\n]\n" if self._begun else "[]\n"


class _Table:
    """A table, whose columns are as wide as the widest of its rows."""

    def __init__(self, columns: Sequence[str], color: bool) -> None:
        self._names = columns
        self._color = color
        # Of very many rows one string each is a fifth of their cells.
        self._lines: list[str] = []
        self._widths: Sequence[int] = ()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if rows and not self._lines:
            self._names = self._names or list(rows[0])
            self._widths = [len(name) for name in self._names]
        for row in rows:
            cells = [_cell(row[name]) for name in self._names]
            self._widths = list(map(max, self._widths, map(len, cells)))
            self._lines.append(_BETWEEN.join(cells))
        return ""

    def rest(self) -> Iterator[str]:
        if not self._lines:
            yield "(none)\n"
            return
        head = "  ".join(self._padded([name.upper().replace("_", " ") for name in self._names]))
        yield f"{_BOLD}{head}{_PLAIN}\n" if self._color else f"{head}\n"
        for start in range(0, len(self._lines), _LINES):
            yield "".join(map(self._line, self._lines[start : start + _LINES]))

    def _line(self, line: str) -> str:
        cells = line.split(_BETWEEN)
        painted = [
            _paint(name, cell == _YES, padded, self._color)
            for name, cell, padded in zip(self._names, cells, self._padded(cells), strict=True)
        ]
        return "  ".join(painted) + "\n"

    def _padded(self, cells: Sequence[str]) -> list[str]:
        # No spaces at the ends of lines.
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
        return [*padded[:-1], padded[-1].rstrip()]


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], color: bool) -> str:
    table = _Table(columns, color)
    table.add(rows)
    return "".join(table.rest())


def _paint(name: str, value: Any, cell: str, color: bool) -> str:
    if not color or name not in _COLORED:
        return cell
    return f"{_GREEN if value else _RED}{cell}{_PLAIN}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return _YES if value else "no"
    if value in (None, "", []):
        return "-"
    if isinstance(value, (list, Mapping)):
        value = json.dumps(value)
    return printable(str(value), _MAX_CELL)
