"""What is read from a message bus, within bounds that dbus_next does not set: any local user may send to peerd."""

from __future__ import annotations

import os
from struct import unpack_from
from typing import Any

from dbus_next import Message, MessageType, SignatureTree
from dbus_next._private.unmarshaller import MarshallerStreamEndError, Unmarshaller

LARGEST = 2 * 1024 * 1024
"""Bytes in the body of a call or signal: no command is larger (execve(2), Limits on size of arguments)."""
MOST_VALUES = 16384
"""Values in it, of which each takes some microseconds: a command with all its arguments has fewer."""
_LARGEST_HEADER = 4096
"""Bytes: the bus bounds every field but the path, and paths of peerd are short."""
_COUNTED = 4096
"""Bytes in a body whose values are counted: smaller ones have not many, and counting takes time."""
_PIECE = 256 * 1024
"""Bytes of a message that is too large, which are read and dropped at a time."""
_FIXED = 16
"""Bytes of a header, with the length of its array of fields: the D-Bus specification, Message Format."""
_MOST_SIGNATURES = 128
"""Parsed signatures that are kept to be used again."""
_REPLIES = (MessageType.METHOD_RETURN.value, MessageType.ERROR.value)


class TooLargeError(Exception):
    """A message has more values than are taken."""


class Reader(Unmarshaller):
    """Reads one message, and lets the event loop do something else before it begins.

    A call or signal that is larger than the bounds comes without its body: see :func:`is_cut`. One whose header is
    larger is passed over. Replies come only from whom peerd has asked, and have no bounds.

    :param sock: the socket of the connection; nothing else may read from it
    """

    def __init__(self, stream: Any, sock: Any) -> None:
        super().__init__(stream, sock)
        # What dbus_next keeps of each signature that it has seen, for ever, is up to 100 KiB.
        kept: dict[str, object] = getattr(SignatureTree, "_cache", {})
        if len(kept) > _MOST_SIGNATURES:
            kept.clear()
        self._waited = False
        self._excess = 0
        self._values = 0

    def unmarshall(self) -> Message | None:
        """The message, or None while it is not there yet."""
        if not self._waited:
            self._waited = True
            return None
        try:
            while self._excess or self._is_too_large():
                self._pass_over()
        except MarshallerStreamEndError:
            return None
        try:
            message: Message | None = super().unmarshall()
        except TooLargeError:
            self._cut()
            message = super().unmarshall()
        return message

    def _is_too_large(self) -> bool:
        """Whether there is something to pass over, before the rest is parsed; its header is read then."""
        self.offset = 0
        self.read(_FIXED, prefetch=True)
        body, _, header = unpack_from("<III" if self.buf[0] == ord("l") else ">III", self.buf, 4)
        if self.buf[1] in _REPLIES:
            return False
        if body <= LARGEST and header <= _LARGEST_HEADER:
            if body > _COUNTED:
                self.read_argument = self._argument  # type: ignore[method-assign]
                self.read_signature = self._signature  # type: ignore[method-assign]
            return False
        padded = header + -header % 8
        if header <= _LARGEST_HEADER:
            self.read(_FIXED + padded, prefetch=True)
            self._excess = body
            self._cut()
            return True
        self._excess = padded + body
        self.buf.clear()
        while self.unix_fds:
            os.close(self.unix_fds.pop())
        return True

    def _cut(self) -> None:
        self.buf[4:8] = bytes(4)
        self._values = 0

    def _pass_over(self) -> None:
        """Read a piece of what is not wanted; the rest has its turn later."""
        kept = len(self.buf)
        try:
            self.read(kept + min(self._excess, _PIECE), prefetch=True)
        finally:
            self._excess -= len(self.buf) - kept
            del self.buf[kept:]
        if self._excess:
            raise MarshallerStreamEndError

    def _argument(self, type_: Any) -> Any:
        self._count(1)
        return super().read_argument(type_)

    def _signature(self, _: Any = None) -> Any:
        signature = super().read_signature()
        # Each of its characters becomes an object.
        self._count(len(signature))
        return signature

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise TooLargeError


def is_cut(message: Message) -> bool:
    """Whether a call or signal was too large, and has lost its body."""
    asked = message.message_type in (MessageType.METHOD_CALL, MessageType.SIGNAL)
    return asked and bool(message.signature) and not message.body
