"""When this machine has slept, as logind tells where there is one (PrepareForSleep of org.freedesktop.login1(5))."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from dbus_next import Message
from dbus_next.aio import MessageBus

from peerd import buslink
from peerd.journal import Event, log
from peerd.systemd1 import SystemdError

_LOGIND = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_MANAGER = "org.freedesktop.login1.Manager"
_MEMBER = "PrepareForSleep"
_RETRY_DELAY = 10.0


class SleepWatch:
    """Calls back when the machine wakes up.

    :param connect: gives the connection to the system bus
    """

    def __init__(self, connect: Callable[[], Awaitable[MessageBus]], resumed: Callable[[], None]) -> None:
        self._connect = connect
        self._resumed = resumed
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(SystemdError, OSError, EOFError, buslink.Refused):
                bus = await self._connect()
                await buslink.subscribe(bus, _LOGIND, _PATH, _MANAGER, _MEMBER)
                bus.add_message_handler(self._on_message)
                await buslink.gone(bus)
            await asyncio.sleep(_RETRY_DELAY)

    def _on_message(self, message: Message) -> None:
        # True before the machine goes to sleep, False when it has woken up.
        if buslink.is_heard(message, _MANAGER, _MEMBER) and message.body == [False]:
            log(Event.RESUMED, "This machine has slept; connections are looked at")
            self._resumed()

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.wait((self._task,))
