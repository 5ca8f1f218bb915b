"""The records that peerd left in a machine's journal, as others ask for them and see them. Pure code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerd import validate
from peerd.answer import Batch, Record
from peerd.errors import Code, PeerdError
from peerd.messages import take, take_optional
from peerd.render import moment

DEFAULT_LINES = 100
MAX_FIELD = 64 * 1024
"""Characters of one field of a record from another machine."""
_MAX_FIELDS = 64
_MAX_NAME = 64
"""What the journal keeps of a field's name."""

_USEC = 1_000_000
_NUMBERS = ("exit_status", "duration_usec")
_PREFIX = "PEERD_"


@dataclass(frozen=True)
class Query:
    """Which records are wanted.

    :ivar since: from when on, in seconds since the epoch; 0 for any time
    :ivar lines: the last so many; None for the default, which is all, within the bound, where ``since`` is given
    :ivar follow: whether those that are still to come are wanted too
    :ivar after: the cursor of the last record that is there already, or ""; all that comes after it is wanted then
    """

    since: float = 0.0
    lines: int | None = None
    follow: bool = False
    after: str = ""

    @property
    def count(self) -> int:
        """The last so many."""
        if self.after:
            return validate.MAX_LINES
        return self.lines if self.lines is not None else validate.MAX_LINES if self.since else DEFAULT_LINES

    def to_wire(self) -> dict[str, object]:
        """The fields of a getLog."""
        return {"since": self.since or None, "lines": self.lines, "follow": self.follow, "after": self.after or None}

    @classmethod
    def from_wire(cls, fields: Mapping[str, object]) -> Query:
        """The query in the fields of a getLog."""
        return cls(
            take(fields, "since", validate.moment, 0.0),
            take_optional(fields, "lines", validate.lines),
            take(fields, "follow", validate.boolean, False),
            take(fields, "after", validate.cursor, ""),
        )


def from_journal(lines: Sequence[bytes]) -> Batch:
    """The records in lines of ``journalctl --output=json``, without what is none of peerd's own.

    :raises ValueError: where one is no such line
    """
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    records = [_record(entry) for entry in entries if f"{_PREFIX}EVENT" in entry]
    return Batch(records, entries[-1]["__CURSOR"] if entries else "")


def _record(entry: Mapping[str, object]) -> Record:
    fields = {name: _text(value) for name, value in entry.items()}
    record: Record = {
        "time": moment(int(fields["__REALTIME_TIMESTAMP"]) / _USEC),
        "priority": int(fields.get("PRIORITY", "6")),
        "message": fields.get("MESSAGE", ""),
    }
    for name in sorted(fields):
        if name.startswith(_PREFIX):
            key = name.removeprefix(_PREFIX).lower()
            record[key] = int(fields[name]) if key in _NUMBERS else fields[name]
    return record


def _text(value: object) -> str:
    # Bytes that are no printable UTF-8 come as numbers, a field that is there twice as a list, a huge one as null.
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            return bytes(value).decode("utf-8", "backslashreplace")
        return _text(value[0]) if value else ""
    return value if isinstance(value, str) else ""


def from_wire(fields: Mapping[str, object]) -> Batch:
    """The records in a records message.

    :raises PeerdError: BAD_MESSAGE
    """
    listed = fields.get("records")
    if not isinstance(listed, list) or not all(_is_record(entry) for entry in listed):
        raise PeerdError(Code.BAD_MESSAGE, reason="records must be a list of records")
    return Batch(listed, take(fields, "cursor", validate.cursor, ""))


def _is_record(entry: object) -> bool:
    if not isinstance(entry, dict) or len(entry) > _MAX_FIELDS or any(len(name) > _MAX_NAME for name in entry):
        return False
    texts = [value for value in entry.values() if not isinstance(value, int)]
    return (
        isinstance(entry.get("priority"), int)
        and all(isinstance(entry.get(name), str) for name in ("time", "message"))
        and all(isinstance(text, str) and len(text) <= MAX_FIELD for text in texts)
    )
