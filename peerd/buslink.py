"""The ends of connections to a message bus, where dbus_next leaves something to do."""

from __future__ import annotations

import asyncio
from typing import cast

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from peerd import network

_ROOM = 4 * 1024 * 1024


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
    if bus.connected and _greeted(bus):
        bus.disconnect()
    await gone(bus)
    bus._stream.close()
    bus._sock.close()


async def gone(bus: MessageBus) -> None:
    """Wait for the end of a connection that was made."""
    if _greeted(bus):
        # A task of its own: to be cancelled here must not cancel the library's future, whose end may then be nobody's.
        ended = asyncio.ensure_future(bus.wait_for_disconnect())
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({ended})


def _greeted(bus: MessageBus) -> bool:
    return cast("str | None", bus.unique_name) is not None
