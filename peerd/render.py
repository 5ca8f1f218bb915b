"""Data as text: JSON for scripts, tables for people. Pure code."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from peerd.commands import Command
from peerd.errors import PeerdError
from peerd.job import Job
from peerd.validate import printable

_MAX_CELL = 120
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


def render(command: Command, data: Any, as_json: bool) -> str:
    """The data of a command's answer, ending with a newline."""
    if as_json:
        return json.dumps(data, indent=2) + "\n"
    if isinstance(data, Mapping):
        width = max(map(len, data))
        return "".join(f"{key:>{width}}: {_cell(value)}\n" for key, value in data.items())
    return _table(data, command.columns)


def event_line(event: str, fields: Mapping[str, object]) -> str:
    """One event of ``--json --stream``: a JSON object on a line."""
    return json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n"


def encoded(data: bytes) -> dict[str, str]:
    """Output for JSON: ``data`` as text with ``encoding`` "utf-8", or in base64 where it is no UTF-8."""
    try:
        return {"data": data.decode("utf-8"), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode("ascii"), "encoding": "base64"}


def complete_record(record: dict[str, object], stdout: bytearray, stderr: bytearray) -> str:
    """The record of a command with its output in it, as JSON."""
    for stream, data in (("stdout", stdout), ("stderr", stderr)):
        text = encoded(bytes(data))
        record |= {stream: text["data"], f"{stream}_encoding": text["encoding"], f"{stream}_bytes": len(data)}
    return json.dumps(record, indent=2) + "\n"


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
            result.duration_usec / _USEC,
            result.cpu_usec / _USEC if result.cpu_usec is not None else None,
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
        "started": moment((result.started_usec if result else job.started_usec) / _USEC) or None,
        **known,
    }


def error_fields(error: PeerdError) -> dict[str, object]:
    """An error in a record."""
    return {"code": error.code.value, "message": error.sentence, "hints": error.hints}


def moment(seconds: float) -> str:
    """A time, in seconds since the epoch, as RFC 3339 has it, in UTC; "" for zero, which is none."""
    if not seconds:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    if not rows:
        return "(none)\n"
    names = columns or list(rows[0])
    cells = [
        [name.upper().replace("_", " ") for name in names],
        *([_cell(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, "", []):
        return "-"
    if isinstance(value, (list, Mapping)):
        value = json.dumps(value)
    return printable(str(value), _MAX_CELL)
