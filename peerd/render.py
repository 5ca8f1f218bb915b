"""Data as text: JSON for scripts, tables for people. Pure code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peerd.commands import Command
from peerd.validate import printable

_MAX_CELL = 120


def render(command: Command, data: Any, as_json: bool) -> str:
    """The data of a command's answer, ending with a newline."""
    if as_json:
        return json.dumps(data, indent=2) + "\n"
    if isinstance(data, Mapping):
        width = max(map(len, data))
        return "".join(f"{key:>{width}}: {_cell(value)}\n" for key, value in data.items())
    return _table(data, command.columns)


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
