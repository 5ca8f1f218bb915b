"""Waking up: the daemon is told by logind, again after the bus was away, and by nothing else."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from dbus_next import Message, MessageType

from peerd import sleep
from peerd.journal import Event
from peerd.sleep import SleepWatch
from peerd.systemd1 import SystemdError
from unit.support import Journal

PATH = "/org/freedesktop/login1"
MANAGER = "org.freedesktop.login1.Manager"


class Bus:
    """Takes the system bus's place."""

    connected = True
    unique_name = ":1.1"

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rules: asyncio.Queue[str] = asyncio.Queue()
        self.handlers: list[Any] = []

    def add_message_handler(self, handler: Any) -> None:
        self.handlers.append(handler)

    async def call(self, message: Message) -> Message:
        assert message.member == "AddMatch"
        self.rules.put_nowait(message.body[0])
        message.serial, message.sender = 1, ":1.0"
        return Message.new_method_return(message)

    async def wait_for_disconnect(self) -> None:
        await self.ended

    def say(self, body: object, member: str = "PrepareForSleep", destination: Any = None) -> None:
        signal = Message(destination, PATH, MANAGER, member, MessageType.SIGNAL, signature="b", body=[body])
        for handler in self.handlers:
            handler(signal)


def test_it_calls_back_when_the_machine_wakes_up(records: Journal) -> None:
    async def main() -> None:
        bus, woken = Bus(), []

        async def connect() -> Any:
            return bus

        watch = SleepWatch(connect, lambda: woken.append(True))
        rule = await bus.rules.get()
        assert "sender='org.freedesktop.login1'" in rule
        await asyncio.sleep(0)
        bus.say(True)
        bus.say(False, member="PrepareForShutdown")
        # Of some local user, to this connection alone.
        bus.say(False, destination=":1.1")
        assert not woken
        bus.say(False)
        assert woken == [True]
        assert len(records.of(Event.RESUMED)) == 1
        await watch.close()
        bus.ended.set_result(None)

    asyncio.run(main())


def test_it_subscribes_again_after_the_bus_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep, "_RETRY_DELAY", 0.001)

    async def main() -> None:
        first, second, woken = Bus(), Bus(), []
        answers: list[Bus | None] = [first, None, second]

        async def connect() -> Any:
            bus = answers.pop(0)
            if bus is None:
                raise SystemdError("no system bus")
            return bus

        watch = SleepWatch(connect, lambda: woken.append(True))
        await first.rules.get()
        first.ended.set_result(None)
        await second.rules.get()
        await asyncio.sleep(0)
        second.say(False)
        assert woken == [True]
        await watch.close()
        second.ended.set_result(None)

    asyncio.run(main())


def test_it_hears_a_wake_up_once_however_often_it_had_to_subscribe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep, "_RETRY_DELAY", 0.001)

    async def main() -> None:
        bus, woken, tries = Bus(), [], itertools.count()
        answered = bus.call

        async def call(message: Message) -> Message:
            reply = await answered(message)
            match next(tries):
                case 0:
                    raise TimeoutError
                case 1:
                    return Message.new_error(message, "org.freedesktop.DBus.Error.LimitsExceeded", "no more rules")
            return reply

        async def connect() -> Any:
            return bus

        monkeypatch.setattr(bus, "call", call)
        watch = SleepWatch(connect, lambda: woken.append(True))
        for _ in range(3):
            await bus.rules.get()
        await asyncio.sleep(0)
        bus.say(False)
        assert woken == [True]
        await watch.close()
        bus.ended.set_result(None)

    asyncio.run(main())
