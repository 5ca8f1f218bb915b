"""The frame format of both sockets, as pure code: bytes in, frames out.

A frame is one JSON object on one line of at most :data:`MAX_HEADER` bytes. Its ``type`` names the message; a
``size`` announces that many raw bytes (at most :data:`MAX_PAYLOAD`) that follow the line. peerd-protocol(7) has the
messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from peerd.errors import Code, PeerdError

PROTOCOL_VERSION = 3
OLDEST_VERSION = 1
"""The oldest version that is still spoken."""
RESUMABLE = 2
"""Since this version a caller confirms what it received, and gets back to its command after a broken connection."""
WIDE = 3
"""Since this version the window of standard input is as wide as that of output."""
MAX_HEADER = 1024 * 1024
"""Room for the longest command that execve(2) takes, with every byte of it escaped."""
MAX_GREETING = 16 * 1024
"""Bytes of a header from who is nobody yet: room for a hello, and for a registration."""
MAX_TOKENS = 64 * 1024
"""Strings, and characters that begin or separate values, in one header: what is made of it takes memory for each."""
MAX_PAYLOAD = 1024 * 1024
MAX_TYPE = 64
_BEGUN = 32
"""The share of a payload, as a divisor, that has to be there before memory is taken for all of it."""
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]')


@dataclass(frozen=True)
class Frame:
    """One message: its type, its other fields, and the raw bytes that came with it."""

    type: str
    fields: Mapping[str, object] = field(default_factory=dict)
    payload: bytes | bytearray = b""


def _refuse(reason: str) -> NoReturn:
    raise PeerdError(Code.BAD_MESSAGE, reason=reason)


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"{name} is not JSON")


def encode(type_: str, fields: Mapping[str, object] | None = None, payload: bytes = b"") -> bytes:
    """The bytes of one frame.

    :raises PeerdError: BAD_MESSAGE when the header or the payload would be over its bound
    """
    return encode_header(type_, fields, len(payload)) + payload


def encode_header(type_: str, fields: Mapping[str, object] | None = None, size: int = 0) -> bytes:
    """The bytes of one frame before its payload.

    :param size: bytes of the payload
    :raises PeerdError: BAD_MESSAGE when the header or the payload would be over its bound
    """
    header: dict[str, object] = {"type": type_, **(fields or {})}
    if size:
        header["size"] = size
    text = json.dumps(header, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # UTF-8 has no lone surrogates; they stay escaped, as JSON may have them.
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    if len(line) > MAX_HEADER:
        _refuse(f"header of {len(line)} bytes, at most {MAX_HEADER}")
    if size > MAX_PAYLOAD:
        _refuse(f"payload of {size} bytes, at most {MAX_PAYLOAD}")
    return line


def _parse(line: bytes) -> tuple[str, dict[str, object], int]:
    if len(line) > MAX_TOKENS and any(islice(_TOKENS.finditer(line), MAX_TOKENS, None)):
        _refuse(f"header of more than {MAX_TOKENS} strings and values")
    try:
        header = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        _refuse("a frame must start with one line of JSON")
    if not isinstance(header, dict):
        _refuse("a frame must be a JSON object")
    type_ = header.pop("type", None)
    if not isinstance(type_, str) or not 0 < len(type_) <= MAX_TYPE:
        _refuse("a frame must have a type")
    size = header.pop("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_PAYLOAD:
        _refuse(f"size must be a whole number from 0 to {MAX_PAYLOAD}")
    return type_, header, size


class Decoder:
    """Turns the bytes of one connection into frames; holds at most one frame's bytes and what was fed beyond it.

    :ivar max_header: bytes that the next header may have
    """

    def __init__(self) -> None:
        self.max_header = MAX_HEADER
        self._buffer = bytearray()
        self._scanned = 0
        self._header: tuple[str, dict[str, object], int] | None = None
        # A large payload that has begun, and how much of it there is: each byte is moved to where it stays.
        self._payload: bytearray | None = None
        self._filled = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes as they arrived."""
        if self._payload is not None:
            data = self._fill(self._payload, data)
        self._buffer += data

    @property
    def space(self) -> memoryview | None:
        """Where the next bytes belong, if that is known: they may be put there and told of by :meth:`arrived`."""
        return memoryview(self._payload)[self._filled :] if self._payload is not None else None

    def arrived(self, count: int) -> None:
        """So many bytes were put into :attr:`space`."""
        self._filled += count

    def _fill(self, payload: bytearray, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        taken = min(len(data), len(payload) - self._filled)
        payload[self._filled : self._filled + taken] = data[:taken]
        self._filled += taken
        return data[taken:]

    def next(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed.

        :raises PeerdError: BAD_MESSAGE when the bytes are no frame or break a bound; the connection cannot be
            used after that, because nothing says where the next frame would start
        """
        if self._header is None:
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                self._scanned = len(self._buffer)
            if end >= self.max_header or (end < 0 and len(self._buffer) >= self.max_header):
                _refuse(f"header longer than {self.max_header} bytes")
            if end < 0:
                return None
            self._header = _parse(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            self._scanned = 0
        type_, fields, size = self._header
        if self._payload is None and len(self._buffer) >= size:
            # By way of a view, a slice of which is no copy of its own.
            payload: bytes | bytearray = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
        elif self._payload is None:
            # Who only announces a payload does not get memory for it.
            if len(self._buffer) * _BEGUN >= size:
                self._payload = bytearray(size)
                self._fill(self._payload, self._buffer)
                self._buffer.clear()
            return None
        elif self._filled < size:
            return None
        else:
            payload, self._payload, self._filled = self._payload, None, 0
        self._header = None
        return Frame(type_, fields, payload)

    @property
    def lacking(self) -> int:
        """How many bytes the frame which has begun lacks, as far as that is known; else 0."""
        return max(0, self._header[2] - self.held) if self._header else 0

    @property
    def held(self) -> int:
        """How many bytes were fed that are of no frame which was taken."""
        return len(self._buffer) + self._filled

    @property
    def partial(self) -> bool:
        """Whether bytes of an unfinished frame are held: the end of the stream now would cut a frame."""
        return bool(self._buffer) or self._header is not None
