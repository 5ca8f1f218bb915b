"""Calls on the bus: nobody keeps the others out, and each connection is looked at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from peerd import turns
from peerd.buscallers import Callers
from peerd.buslink import Refused

ALICE, ROOT = 1000, 0
TURNS = 10
"""Of the event loop, until nothing happens any more."""


class Driver:
    """The bus itself.

    :ivar asked: what it was asked
    :ivar answers: cleared while it does not answer
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def call(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        """Connections of root have an "r" in their names; one with an "x" has left."""
        self.asked.append((member, body[0]))
        await self.answers.wait()
        if "x" in body[0] and member == "GetConnectionUnixUser":
            raise Refused("NameHasNoOwner", "no such name")
        return [ROOT if "r" in body[0] else ALICE]


class Calls:
    """Calls that end when they are told to.

    :ivar refused: why, of those that were refused
    :ivar served: the users of those that are being done
    """

    def __init__(self, driver: Driver, most: int) -> None:
        self.callers = Callers(driver.call, lambda: most)
        self.end = asyncio.Event()
        self.refused: list[str] = []
        self.served: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    def make(self, name: str, count: int = 1) -> None:
        """Calls of a connection."""
        self.tasks += [asyncio.create_task(self._one(name)) for _ in range(count)]

    async def _one(self, name: str) -> None:
        try:
            async with self.callers.calling(name) as (uid, _):
                self.served.append(uid)
                await self.end.wait()
        except Refused as error:
            self.refused.append(str(error))

    async def over(self) -> None:
        """End all."""
        self.end.set()
        await asyncio.gather(*self.tasks)


def test_a_user_with_many_connections_has_half_of_the_calls() -> None:
    async def main() -> None:
        calls = Calls(Driver(), 8)
        for number in range(5):
            calls.make(f":1.{number}", 3)
        await turns.let_pass(TURNS)
        assert len(calls.refused) == 11
        assert "half of max-connections" in calls.refused[-1]
        calls.make(":1.r")
        await turns.let_pass(TURNS)
        assert (calls.served.count(ALICE), calls.served.count(ROOT)) == (4, 1)
        await calls.over()
        # What has ended makes room.
        calls.make(":1.0")
        await calls.over()
        assert calls.served.count(ALICE) == 5

    asyncio.run(main())


def test_calls_of_whom_nobody_knows_yet_keep_nobody_out() -> None:
    async def main() -> None:
        driver = Driver()
        driver.answers.clear()
        calls = Calls(driver, 8)
        for number in range(5):
            calls.make(f":1.{number}", 100)
        calls.make(":1.r")
        # No more than 8, a half, a third of 8 and so on wait to be known, and root's.
        await turns.let_pass(TURNS)
        assert len(calls.refused) >= 480
        assert calls.refused.count("too many calls at once (max-connections)") == len(calls.refused)
        driver.answers.set()
        await turns.let_pass(TURNS)
        assert ROOT in calls.served
        await calls.over()

    asyncio.run(main())


def test_all_together_have_no_more_than_there_may_be() -> None:
    async def main() -> None:
        calls = Calls(Driver(), 1)
        calls.make(":1.0")
        await turns.let_pass(TURNS)
        calls.make(":1.r")
        await turns.let_pass(TURNS)
        assert calls.refused == ["too many calls at once (max-connections)"]
        await calls.over()

    asyncio.run(main())


def test_a_connection_is_watched_once_while_it_has_calls() -> None:
    async def main() -> None:
        driver = Driver()
        calls = Calls(driver, 8)
        calls.make(":1.7", 2)
        await turns.let_pass(TURNS)
        calls.make(":1.7")
        await turns.let_pass(TURNS)
        await calls.over()
        assert [member for member, _ in driver.asked] == ["AddMatch", "GetConnectionUnixUser", "RemoveMatch"]

    asyncio.run(main())


def test_who_has_left_by_now_is_refused_and_not_watched_any_more() -> None:
    async def main() -> None:
        driver = Driver()
        calls = Calls(driver, 8)
        calls.make(":1.x", 2)
        await calls.over()
        assert calls.refused == ["no such name"] * 2
        assert driver.asked[-1][0] == "RemoveMatch"

    asyncio.run(main())


@pytest.mark.parametrize("everybody", [False, True])
def test_a_call_is_told_that_its_caller_has_left(everybody: bool) -> None:
    async def main() -> None:
        callers = Callers(Driver().call, lambda: 8)
        async with callers.calling(":1.1") as (_, left), callers.calling(":1.2") as (_, other):
            if everybody:
                callers.all_left()
            else:
                callers.left(":1.1")
                callers.left(":1.3")
            assert (left.is_set(), other.is_set()) == (True, everybody)

    asyncio.run(main())
