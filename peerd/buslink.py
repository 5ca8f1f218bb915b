"""The ends of connections to a message bus, where dbus_next leaves something to do."""

from __future__ import annotations

import asyncio
from typing import cast

from dbus_next.aio import MessageBus


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
        # A task of its own: to be cancelled here must not cancel the library's future.
        ended = asyncio.ensure_future(bus.wait_for_disconnect())
        await asyncio.wait({ended})
        ended.exception()


def _greeted(bus: MessageBus) -> bool:
    return cast("str | None", bus.unique_name) is not None
