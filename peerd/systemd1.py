"""The manager of systemd over one persistent connection to the system bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dbus_next import BusType, Message
from dbus_next.aio import MessageBus

from peerd import buslink

_MOST_CALLS = 64
"""Calls at once: the bus refuses more than 128 that wait for a reply (max_replies_per_connection, dbus-daemon(1))."""

_SERVICE = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"


class SystemdError(Exception):
    """systemd refused or did not answer; the text says why."""


class NoSuchUnit(SystemdError):
    """The unit is not loaded."""


class Systemd:
    """Calls systemd's manager and waits for its jobs. Connects on first use and again when the bus went away."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._lock = asyncio.Lock()
        self._calls = asyncio.Semaphore(_MOST_CALLS)
        self._jobs: dict[str, set[asyncio.Queue[tuple[str, str] | None]]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def connect(self) -> MessageBus:
        """The connection, made if there is none.

        :raises SystemdError: when there is no system bus or systemd does not answer
        """
        async with self._lock:
            if self._bus and self._bus.connected:
                return self._bus
            try:
                bus = buslink.Connection(bus_type=BusType.SYSTEM)
            except OSError as error:
                raise SystemdError(f"no system bus: {error}") from None
            try:
                await self._greet(bus)
            except BaseException:
                await buslink.leave(bus)
                raise
            self._bus = bus
            self._watcher = asyncio.create_task(self._watch(bus))
            return bus

    async def _greet(self, bus: MessageBus) -> None:
        try:
            await buslink.enter(bus)
            bus.add_message_handler(self._on_message)
            await buslink.subscribe(bus, _SERVICE, _PATH, _MANAGER, "JobRemoved")
        except (OSError, EOFError, buslink.Refused) as error:
            raise SystemdError(f"no system bus: {str(error) or type(error).__name__}") from None
        await _call(bus, _PATH, _MANAGER, "Subscribe")

    async def _watch(self, bus: MessageBus) -> None:
        # A call on a connection that broke would wait for ever.
        await buslink.gone(bus)
        for waiting in self._jobs.values():
            for removed in waiting:
                removed.put_nowait(None)

    async def call(self, member: str, signature: str = "", body: Sequence[object] = ()) -> list[Any]:
        """What a method of the manager returns.

        :raises SystemdError: when systemd refuses or does not answer
        """
        bus = await self.connect()
        async with self._calls:
            return await _call(bus, _PATH, _MANAGER, member, signature, body)

    async def get(self, path: str, interface: str, name: str) -> Any:
        """The value of a property of one of systemd's objects.

        :param interface: without the part that all of systemd's have in common
        :raises SystemdError: when there is no such property or systemd does not answer
        """
        body = [f"{_SERVICE}.{interface}", name]
        bus = await self.connect()
        async with self._calls:
            (value,) = await _call(bus, path, _PROPERTIES, "Get", "ss", body)
        return value.value

    async def job(self, unit: str, method: str, signature: str, body: Sequence[object], bounded: bool = True) -> str:
        """Have the manager queue a job for a unit, and wait for its end.

        :param bounded: whether to wait no longer than for a call
        :returns: its result, "done" where all went well (JobRemoved of org.freedesktop.systemd1(5))
        :raises SystemdError: when systemd refuses or does not answer
        """
        removed: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
        try:
            # The job may be gone before its path is known. Its unit does not tell it from others: that may be asked for
            # by an alias, and is told by its own name.
            with self._listening("", removed):
                (path,) = await self.call(method, signature, body)
            with self._listening(path, removed):
                async with asyncio.timeout(buslink.CALL_TIMEOUT if bounded else None):
                    return await _result(removed, path)
        except TimeoutError:
            raise SystemdError(f"{method} {unit}: no answer from systemd") from None

    @contextmanager
    def _listening(self, path: str, removed: asyncio.Queue[tuple[str, str] | None]) -> Iterator[None]:
        """Hear of the end of a job, with "" of any."""
        waiting = self._jobs.setdefault(path, set())
        waiting.add(removed)
        try:
            yield
        finally:
            waiting.remove(removed)
            if not waiting:
                del self._jobs[path]

    def _on_message(self, message: Message) -> None:
        if buslink.is_heard(message, _MANAGER, "JobRemoved"):
            _, path, _, result = message.body
            for removed in (*self._jobs.get("", ()), *self._jobs.get(path, ())):
                removed.put_nowait((path, result))

    def close(self) -> None:
        """Disconnect."""
        if self._bus:
            self._bus.disconnect()
            self._bus = None


async def _result(removed: asyncio.Queue[tuple[str, str] | None], path: str) -> str:
    while job := await removed.get():
        if job[0] == path:
            return job[1]
    raise SystemdError("connection to the system bus lost")


async def _call(
    bus: MessageBus, path: str, interface: str, member: str, signature: str = "", body: Sequence[object] = ()
) -> list[Any]:
    try:
        return await buslink.ask(bus, _SERVICE, path, interface, member, signature, body)
    except buslink.Refused as error:
        text = f"{member}: {str(error) or error.name}"
        raise (NoSuchUnit if error.name == f"{_SERVICE}.NoSuchUnit" else SystemdError)(text) from None
    except (OSError, EOFError) as error:
        raise SystemdError(f"{member}: no answer ({type(error).__name__})") from None
