"""Data as text: JSON for scripts, tables for people. Pure code."""

from __future__ import annotations

import json
import syslog
import time
from collections.abc import Mapping, Sequence
from typing import Any

from peerd.commands import Command
from peerd.errors import KINDS, Code, Outcome, PeerdError
from peerd.job import Job
from peerd.validate import printable

_MAX_CELL = 120
_COLORED = ("is_online", "connected_to_leader")
"""Booleans whose meaning is good or bad."""
_GREEN, _RED, _YELLOW, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_USEC = 1_000_000
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


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], color: bool) -> str:
    if not rows:
        return "(none)\n"
    names = columns or list(rows[0])
    head = [name.upper().replace("_", " ") for name in names]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[index]) for line in (head, *cells)) for index in range(len(names))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *cells)]
    # No spaces at the ends of lines.
    padded = [[*line[:-1], line[-1].rstrip()] for line in padded]
    painted = [
        [_paint(name, row[name], cell, color) for name, cell in zip(names, line, strict=True)]
        for row, line in zip(rows, padded[1:], strict=True)
    ]
    top = "  ".join(padded[0])
    return "".join(f"{line}\n" for line in (f"{_BOLD}{top}{_PLAIN}" if color else top, *map("  ".join, painted)))


def _paint(name: str, value: Any, cell: str, color: bool) -> str:
    if not color or name not in _COLORED:
        return cell
    return f"{_GREEN if value else _RED}{cell}{_PLAIN}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, "", []):
        return "-"
    if isinstance(value, (list, Mapping)):
        value = json.dumps(value)
    return printable(str(value), _MAX_CELL)
