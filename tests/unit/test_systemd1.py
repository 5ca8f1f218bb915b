"""The jobs of systemd: each caller hears of its own, whenever it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dbus_next import Message, MessageType

from peerd import buslink
from peerd.systemd1 import NoSuchUnit, Systemd, SystemdError


class FakeBus:
    """Takes the place of a connection to the system bus.

    :ivar answer: what becomes of a call
    :ivar closed: how often its socket and its stream were closed
    """

    connected = True
    unique_name = ":1.1"

    def __init__(self, answer: Callable[[Message], list[Any]]) -> None:
        self.answer = answer
        self.closed = 0
        self.gone = asyncio.Event()
        self.asked: asyncio.Queue[Message] = asyncio.Queue()
        self.handler: Callable[[Message], None] = lambda message: None

    @property
    def _sock(self) -> FakeBus:
        return self

    _stream = _sock

    def setsockopt(self, *option: int) -> None:
        """Take any."""

    def close(self) -> None:
        """Count it."""
        self.closed += 1

    def add_message_handler(self, handler: Callable[[Message], None]) -> None:
        self.handler = handler

    async def connect(self) -> FakeBus:
        return self

    async def wait_for_disconnect(self) -> None:
        await self.gone.wait()

    def disconnect(self) -> None:
        self.gone.set()

    async def call(self, message: Message) -> Message:
        message.serial, message.sender = 1, ":1.1"
        if message.member in ("AddMatch", "Subscribe"):
            return Message.new_method_return(message)
        self.asked.put_nowait(message)
        body = self.answer(message)
        if isinstance(body[0], Exception):
            return Message.new_error(message, str(body[0]), "it said so")
        return Message.new_method_return(message, "o", body)

    def removed(self, number: int, unit: str, result: str, destination: Any = None) -> None:
        """Signal the end of a job."""
        body = [number, f"/job/{number}", unit, result]
        manager = "org.freedesktop.systemd1.Manager"
        self.handler(Message(destination, "/", manager, "JobRemoved", MessageType.SIGNAL, signature="uoss", body=body))


@asynccontextmanager
async def connected(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Message], list[Any]]
) -> AsyncIterator[tuple[Systemd, FakeBus]]:
    bus, systemd = FakeBus(answer), Systemd()
    monkeypatch.setattr(buslink, "Connection", lambda bus_type: bus)
    yield systemd, bus
    systemd.close()
    assert systemd._watcher is not None
    await systemd._watcher


async def start(systemd: Systemd, unit: str) -> str:
    return await systemd.job(unit, "StartUnit", "ss", [unit, "replace"])


def test_a_job_that_ends_before_its_path_is_known_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(message: Message) -> list[Any]:
        for number, unit, result in (
            (6, "a.service", "canceled"),
            (5, "b.service", "failed"),
            (7, "a.service", "done"),
        ):
            buses[0].removed(number, unit, result)
        return ["/job/7"]

    buses: list[FakeBus] = []

    async def main() -> None:
        async with connected(monkeypatch, answer) as (systemd, bus):
            buses.append(bus)
            assert await start(systemd, "a.service") == "done"

    asyncio.run(main())


def test_two_jobs_of_one_unit_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        numbers = iter(("/job/1", "/job/2"))
        async with connected(monkeypatch, lambda _: [next(numbers)]) as (systemd, bus):
            first = asyncio.create_task(start(systemd, "a.service"))
            second = asyncio.create_task(start(systemd, "a.service"))
            for _ in range(2):
                await bus.asked.get()
            # Any local user can say so to this connection alone.
            bus.removed(1, "a.service", "done", destination=":1.1")
            bus.removed(2, "a.service", "done")
            bus.removed(1, "a.service", "canceled")
            assert (await first, await second) == ("canceled", "done")

    asyncio.run(main())


def test_a_job_of_a_unit_that_was_asked_for_by_an_alias_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(monkeypatch, lambda _: ["/job/1"]) as (systemd, bus):
            waiting = asyncio.create_task(start(systemd, "alias.service"))
            await bus.asked.get()
            bus.removed(2, "alias.service", "failed")
            bus.removed(1, "a.service", "done")
            assert await asyncio.wait_for(waiting, 5) == "done"
            assert not systemd._jobs

    asyncio.run(main())


def test_a_lost_bus_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(monkeypatch, lambda _: ["/job/1"]) as (systemd, bus):
            waiting = asyncio.create_task(start(systemd, "a.service"))
            await bus.asked.get()
            bus.gone.set()
            with pytest.raises(SystemdError, match="system bus lost"):
                await waiting

    asyncio.run(main())


def test_a_job_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(buslink, "CALL_TIMEOUT", 0.05)
        async with connected(monkeypatch, lambda _: ["/job/1"]) as (systemd, _):
            with pytest.raises(SystemdError, match=r"StartUnit a\.service: no answer"):
                await start(systemd, "a.service")

    asyncio.run(main())


@pytest.mark.parametrize(("name", "kind"), [("NoSuchUnit", NoSuchUnit), ("UnitMasked", SystemdError)])
def test_what_systemd_refuses_is_said_in_its_words(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception]
) -> None:
    async def main() -> None:
        refusal = ValueError(f"org.freedesktop.systemd1.{name}")
        async with connected(monkeypatch, lambda _: [refusal]) as (systemd, _):
            with pytest.raises(SystemdError, match="StartUnit: it said so") as caught:
                await start(systemd, "a.service")
            assert type(caught.value) is kind

    asyncio.run(main())


def test_a_connection_over_which_systemd_does_not_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def silent(message: Message) -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(buslink, "CALL_TIMEOUT", 0.01)
        bus = FakeBus(lambda _: [])
        monkeypatch.setattr(bus, "call", silent)
        monkeypatch.setattr(buslink, "Connection", lambda bus_type: bus)
        with pytest.raises(SystemdError, match="no system bus: TimeoutError"):
            await Systemd().connect()
        assert bus.closed == 2

    asyncio.run(main())


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError("EOFError")])
def test_why_the_system_bus_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def main() -> None:
        async def connect() -> FakeBus:
            raise error

        bus = FakeBus(lambda _: [])
        monkeypatch.setattr(bus, "connect", connect)
        monkeypatch.setattr(buslink, "Connection", lambda bus_type: bus)
        with pytest.raises(SystemdError, match="no system bus: EOFError"):
            await Systemd().connect()

    asyncio.run(main())
