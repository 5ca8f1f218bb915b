"""The ends of connections to a message bus, where dbus_next leaves something to do."""

from __future__ import annotations

import asyncio
import os
from types import ModuleType
from typing import Any, cast

from dbus_next import Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus

from peerd import network

busreader: ModuleType | None
try:
    from peerd import busreader
except ImportError:
    # A dbus_next that is built in another way works with its own reader, without bounds.
    busreader = None

_ROOM = 4 * 1024 * 1024


class Connection(MessageBus):
    """A connection that takes no calls and signals beyond the bounds of :mod:`peerd.busreader`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_message_handler(_refuse)

    def _create_unmarshaller(self) -> Any:
        return super()._create_unmarshaller() if busreader is None else busreader.Reader(self._stream, self._sock)

    async def _auth_readline(self) -> str:
        # dbus_next reads on at the end of the stream, without ever letting the event loop do something else.
        line = b""
        while not line.endswith(b"\r\n"):
            if not (more := await self._loop.sock_recv(self._sock, 2)):
                raise EOFError("the bus hung up")
            line += more
        return line[:-2].decode()


def _refuse(message: Message) -> Message | bool:
    if busreader is None or not busreader.is_cut(message):
        return False
    for fd in message.unix_fds:
        os.close(fd)
    if message.message_type is MessageType.SIGNAL or message.flags & MessageFlag.NO_REPLY_EXPECTED:
        return True
    text = f"a call of more than {busreader.LARGEST} bytes, or {busreader.MOST_VALUES} values"
    return Message.new_error(message, "org.freedesktop.DBus.Error.LimitsExceeded", text)


def widen(bus: MessageBus) -> None:
    """Make room for a burst of messages: dbus_next takes a full socket (EAGAIN) for the end of the connection."""
    network.make_room(bus._sock, _ROOM)


def post(bus: MessageBus, message: Message) -> None:
    """Send a message that nobody waits for; that it could not be sent is told by the end of the connection."""
    bus.send(message).add_done_callback(lambda done: done.cancelled() or done.exception())


def is_heard(message: Message, interface: str, member: str) -> bool:
    """Whether a message is this signal, from the sender that a match rule of this connection names.

    Only what is broadcast is held to match rules (the D-Bus specification, Message Bus Message Routing). Any local
    user may send a signal to this connection by itself.
    """
    known = (MessageType.SIGNAL, interface, member)
    return (message.message_type, message.interface, message.member) == known and not message.destination


async def leave(bus: MessageBus) -> None:
    """Disconnect, if that has not happened yet, and close what dbus_next would leave to the garbage collector."""
    if cast("str | None", bus.unique_name) is None:
        # Not greeted yet: dbus_next would leave its reader with the event loop, and the next socket has its number.
        bus._finalize()
    elif bus.connected:
        bus.disconnect()
    await gone(bus)
    bus._stream.close()
    bus._sock.close()


async def gone(bus: MessageBus) -> None:
    """Wait for the end of a connection that was made."""
    # A task of its own: to be cancelled here must not cancel the library's future, whose end may then be nobody's.
    ended = asyncio.ensure_future(bus.wait_for_disconnect())
    ended.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait({ended})
