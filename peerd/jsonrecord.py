"""What ``--json`` prints of a command: a record at its end, or with ``--stream`` events as they come. Pure code."""

import binascii
import codecs
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_STREAMS = ("stdout", "stderr")


def event_line(event: str, fields: "Mapping[str, Any]") -> str:
    """One event of ``--json --stream``: a JSON object on a line."""
    return json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n"


def encoded(data: bytes) -> dict[str, str]:
    """Output for JSON: ``data`` as text with ``encoding`` "utf-8", or in base64 where it is no UTF-8."""
    try:
        return {"data": data.decode("utf-8"), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"data": binascii.b2a_base64(data, newline=False).decode("ascii"), "encoding": "base64"}


def complete_record(record: "Mapping[str, Any]", stdout: bytes = b"", stderr: bytes = b"") -> str:
    """The record of a command with its output in it, as JSON."""
    fields = dict(record)
    for stream, data in (("stdout", stdout), ("stderr", stderr)):
        text = encoded(data)
        fields |= {stream: text["data"], f"{stream}_encoding": text["encoding"], f"{stream}_bytes": len(data)}
    return json.dumps(fields, indent=2) + "\n"


class Printer:
    """Takes what happens to a command, and says what is to be printed of it then.

    :param events: whether events are printed, and not one record
    """

    def __init__(self, events: bool) -> None:
        self._events = events
        self._started = False
        # All output for the record; for events only the beginning of a character that is not complete.
        self._held = {stream: bytearray() for stream in _STREAMS}

    def started(self) -> str:
        """The command was started, maybe once more said."""
        first, self._started = not self._started, True
        return event_line("started", {}) if first and self._events else ""

    def output(self, stream: str, data: bytes) -> str:
        """It has written something."""
        held = self._held[stream]
        held += data
        if not self._events:
            return ""
        return self._take(stream, codecs.utf_8_decode(held, "ignore")[1])

    def result(self, record: "Mapping[str, Any]") -> str:
        """It has ended."""
        if not self._events:
            return complete_record(record, **{stream: bytes(held) for stream, held in self._held.items()})
        rest = [self._take(stream, len(held)) for stream, held in self._held.items()]
        return "".join([*rest, event_line("result", record)])

    def _take(self, stream: str, size: int) -> str:
        data = bytes(self._held[stream][:size])
        del self._held[stream][:size]
        return event_line("output", {"stream": stream, **encoded(data)}) if data else ""
