"""The ends of connections to a message bus, where dbus_next leaves something to do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
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

CALL_TIMEOUT = 25.0
"""Seconds to wait for an answer, the default of sd_bus_call(3)."""
DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus itself: its name, path and interface."""

_ROOM = 4 * 1024 * 1024


class Refused(Exception):
    """A call is answered with an error.

    :param name: that of the error, or its last part where it is one of the standard
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name if "." in name else f"org.freedesktop.DBus.Error.{name}"


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


async def enter(bus: MessageBus) -> None:
    """Connect. Whatever comes of it, :func:`leave` is to be called in the end.

    :raises OSError, EOFError: when the bus does not answer
    """
    async with asyncio.timeout(CALL_TIMEOUT):
        await bus.connect()
    # For a burst of messages: dbus_next takes a full socket (EAGAIN) for the end of the connection.
    network.make_room(bus._sock, _ROOM)


async def ask(
    bus: MessageBus,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: Sequence[object] = (),
    timeout: float = 0.0,
) -> list[Any]:
    """What a method of another service returns.

    :param timeout: seconds, where they are other than :data:`CALL_TIMEOUT`
    :raises Refused: when it answers with an error
    :raises OSError, EOFError: when it does not answer
    """
    # A call on a connection that broke would wait for ever.
    if not bus.connected:
        raise ConnectionError("not on the bus")
    message = Message(destination, path, interface, member, signature=signature, body=list(body))
    # Not wait_for, which would make a task of the call.
    async with asyncio.timeout(timeout or CALL_TIMEOUT):
        reply = await bus.call(message)
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise Refused(reply.error_name, str(reply.body[0]) if reply.body else "")
    return list(reply.body)


async def subscribe(bus: MessageBus, sender: str, path: str, interface: str, member: str) -> None:
    """Have a signal sent to this connection; :func:`is_heard` tells it from what others send.

    :raises Refused, OSError, EOFError: when the bus does not do it
    """
    rule = f"type='signal',sender='{sender}',path='{path}',interface='{interface}',member='{member}'"
    await ask(bus, *DRIVER, "AddMatch", "s", [rule])


def post(bus: MessageBus, message: Message) -> None:
    """Send a message that nobody waits for; that it could not be sent is told by the end of the connection."""
    _send(bus, message)


async def deliver(bus: MessageBus, message: Message) -> None:
    """Send a message, and return once it has been sent or the connection has ended."""
    # dbus_next never says what becomes of a message that still waits to be sent when the connection ends.
    await asyncio.wait((_send(bus, message), bus._disconnect_future), return_when=asyncio.FIRST_COMPLETED)


def _send(bus: MessageBus, message: Message) -> asyncio.Future[None]:
    sent: asyncio.Future[None] = bus.send(message)
    sent.add_done_callback(lambda done: done.cancelled() or done.exception())
    return sent


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
