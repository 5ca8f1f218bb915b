"""Connections that are used again, against peers that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from peerd import pool as pool_module
from peerd.errors import Code, PeerdError
from peerd.pool import Pool
from unit.support import LOCALHOST, FakePeers


class Clock:
    """Takes the place of the module time: it stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    return clock


@asynccontextmanager
async def pool_of(peers: FakePeers, timeout: float = 5.0) -> AsyncIterator[Pool]:
    pool = Pool(peers.connect, lambda: timeout)
    try:
        yield pool
    finally:
        pool.drop()


def test_a_connection_is_used_again(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST) as first:
                pass
            async with pool.borrow(LOCALHOST) as second:
                assert second is first
            assert peers.accepted == 1

    asyncio.run(main())


def test_a_connection_serves_one_request_at_a_time(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST) as first, pool.borrow(LOCALHOST) as second:
                assert second is not first
            assert peers.accepted == 2

    asyncio.run(main())


def test_a_connection_that_the_other_end_closed_is_not_used_again(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST) as first:
                pass
            (await peers.links.get()).link.close()
            # The end has arrived by the time that another connection was made.
            async with pool.borrow("127.0.0.2"):
                pass
            assert not first.usable
            async with pool.borrow(LOCALHOST) as second:
                assert second is not first
            assert peers.accepted == 3

    asyncio.run(main())


def test_a_connection_on_which_something_came_unasked_is_not_used_again(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST) as first:
                pass
            wire = await peers.links.get()
            await wire.link.send("error", PeerdError(Code.UNKNOWN_MESSAGE, name="cancel").to_wire())
            # What came has arrived by the time that another connection was made.
            async with pool.borrow("127.0.0.2"):
                pass
            async with pool.borrow(LOCALHOST) as second:
                assert second is not first

    asyncio.run(main())


def test_a_connection_whose_request_failed_is_not_used_again(clock: Clock) -> None:
    async def borrow_and_fail(pool: Pool) -> None:
        async with pool.borrow(LOCALHOST):
            raise PeerdError(Code.BAD_MESSAGE, reason="x")

    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            with pytest.raises(PeerdError):
                await borrow_and_fail(pool)
            await (await peers.links.get()).end()
            async with pool.borrow(LOCALHOST):
                pass
            assert peers.accepted == 2

    asyncio.run(main())


def test_a_connection_that_was_idle_for_long_is_asked_before_it_is_used(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST) as first:
                pass
            clock.now += 2
            wire = await peers.links.get()

            async def answer() -> None:
                await wire.link.expect("ping")
                await wire.link.send("pong")

            answering = asyncio.create_task(answer())
            async with pool.borrow(LOCALHOST) as second:
                assert second is first
            await answering
            assert peers.accepted == 1

    asyncio.run(main())


@pytest.mark.parametrize("how", ["silence", "error", "end"])
def test_a_connection_that_does_not_answer_is_replaced(clock: Clock, how: str) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers, 0.5 if how == "silence" else 5.0) as pool:
            async with pool.borrow(LOCALHOST) as first:
                pass
            clock.now += 2
            wire = await peers.links.get()

            async def answer() -> None:
                await wire.link.expect("ping")
                if how == "error":
                    await wire.link.send("error", PeerdError(Code.INTERNAL, reason="x").to_wire())
                elif how == "end":
                    wire.link.abort()

            answering = asyncio.create_task(answer())
            async with pool.borrow(LOCALHOST) as second:
                assert second is not first
            await answering

    asyncio.run(main())


@pytest.mark.parametrize("asked", [False, True])
def test_a_borrower_that_gives_up_before_it_has_a_connection_leaves_none_behind(clock: Clock, asked: bool) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST):
                pass
            clock.now += 2
            wire = await peers.links.get()

            async def borrow() -> None:
                async with pool.borrow(LOCALHOST):
                    pass

            borrowing = asyncio.create_task(borrow())
            if asked:
                await wire.link.expect("ping")
            else:
                await asyncio.sleep(0)
            borrowing.cancel()
            await asyncio.gather(borrowing, return_exceptions=True)
            async with asyncio.timeout(5):
                await wire.end()

    asyncio.run(main())


def test_connections_that_were_idle_for_too_long_are_closed(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST):
                pass
            wire = await peers.links.get()
            clock.now += 100
            async with pool.borrow("127.0.0.2"):
                pass
            await wire.end()

    asyncio.run(main())


def test_dropping_closes_what_is_idle(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            async with pool.borrow(LOCALHOST):
                pass
            pool.drop()
            await (await peers.links.get()).end()

    asyncio.run(main())


def test_a_request_is_answered_by_one_reply(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers) as pool:
            asking = asyncio.create_task(pool.request(LOCALHOST, "getPeerInfo", {"peer": "vps"}))
            wire = await peers.links.get()
            assert (await wire.link.expect("getPeerInfo")).fields == {"peer": "vps"}
            await wire.link.send("reply", {"a": 1})
            assert (await asking).fields == {"a": 1}

    asyncio.run(main())


def test_a_request_that_nobody_answers_times_out(clock: Clock) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, pool_of(peers, 0.1) as pool:
            with pytest.raises(TimeoutError):
                await pool.request(LOCALHOST, "getPeerInfo", {})

    asyncio.run(main())
