"""The pool of connections and the link of a worker to its leader, against a leader that does what the test says."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from peerd import links
from peerd.errors import Code, PeerdError
from peerd.links import LeaderLink, Pauses, Pool, receive_book
from peerd.peers import Peer
from unit.support import LOCALHOST, FakePeers, Wire, linked, registration

VPS = Peer("vps", LOCALHOST, is_online=True)
DESKTOP = Peer("desktop", "10.0.0.2", is_online=True)
LAPTOP = Peer("laptop", "10.0.0.4", is_online=True)


class Clock:
    """Takes the place of the module time: it stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(links, "time", clock)
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


@dataclass
class Worker:
    """A worker's link, and what it said of itself."""

    link: LeaderLink
    changes: asyncio.Queue[tuple[bool, str]] = field(default_factory=asyncio.Queue)
    updates: list[list[str]] = field(default_factory=list)


@asynccontextmanager
async def worker(peers: FakePeers, interval: float = 1000.0, timeout: float = 5.0) -> AsyncIterator[Worker]:
    changes: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    updates: list[list[str]] = []
    link = LeaderLink(
        LOCALHOST,
        peers.connect,
        lambda: registration("laptop"),
        lambda: interval,
        lambda: timeout,
        lambda connected, detail: changes.put_nowait((connected, detail)),
        updated=lambda: updates.append(link.book.ids()),
    )
    try:
        yield Worker(link, changes, updates)
    finally:
        await link.close()


async def admit(peers: FakePeers, *known: Peer) -> Wire:
    """Play the leader: take a registration, and answer with these peers."""
    wire = await peers.links.get()
    fields = dict((await wire.link.expect("registerPeer")).fields)
    assert re.fullmatch("[0-9a-f]{16}", str(fields.pop("digest")))
    assert fields == registration("laptop").to_wire()
    wire.link.post("registered", {"peer_id": "laptop"})
    wire.link.post("reply", {"count": len(known)})
    if known:
        wire.link.post("peers", {"peers": [peer.to_wire() for peer in known]})
    return wire


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a link try again at once."""
    monkeypatch.setattr(links, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(links, "_LONGEST_DELAY", 0.001)


def test_a_worker_registers_and_knows_the_peers() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            await admit(peers, VPS, DESKTOP, LAPTOP)
            assert await me.changes.get() == (True, "3 peers")
            assert me.link.connected
            assert me.link.error is None
            assert await me.link.outcome(5) is None
            assert me.link.book.all() == [DESKTOP, LAPTOP, VPS]

    asyncio.run(main())


def test_a_worker_hears_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_MISSED_HEARTBEATS", 1000.0)

    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers, interval=0.01) as me:
            wire = await admit(peers, VPS, DESKTOP)
            await me.changes.get()
            wire.link.post("peers", {"peers": [LAPTOP.to_wire(), replace(DESKTOP, is_online=False).to_wire()]})
            wire.link.post("peerRemoved", {"peer_id": "vps"})
            wire.link.post("news-of-a-later-version", {"x": 1})
            # Two heartbeats later what was sent before the first has been read.
            for _ in range(2):
                await wire.link.expect("heartbeat")
                await wire.link.send("heartbeat")
            await wire.link.expect("heartbeat")
            assert me.link.book.all() == [replace(DESKTOP, is_online=False), LAPTOP]
            # Of nothing else: the heartbeats and the news change nothing.
            assert me.updates == [["vps", "laptop", "desktop"], ["laptop", "desktop"]]

    asyncio.run(main())


def test_a_worker_whose_leader_goes_knows_its_peers_still_and_comes_back(quick: None) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await admit(peers, VPS, DESKTOP)
            await me.changes.get()
            wire.link.close()
            assert await me.changes.get() == (
                False,
                "Not connected to leader",
            )
            assert me.link.book.by_id("desktop") == DESKTOP
            assert me.link.book.by_id("vps") == replace(VPS, is_online=False)
            unavailable = me.link.unavailable()
            assert unavailable.code is Code.NOT_CONNECTED
            assert "the leader closed the connection" in unavailable.text
            await admit(peers, VPS)
            assert await me.changes.get() == (True, "1 peers")
            # Who went while the leader was away is gone here too.
            assert me.link.book.all() == [VPS]

    asyncio.run(main())


def test_a_worker_whose_leader_falls_silent_goes_and_comes_back(quick: None) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers, interval=0.02) as me:
            await admit(peers, VPS)
            assert (await me.changes.get())[0]
            assert not (await me.changes.get())[0]
            assert "no answer in time" in me.link.unavailable().text
            await admit(peers, VPS)

    asyncio.run(main())


def test_a_leader_that_answers_heartbeats_keeps_its_worker() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers, interval=0.2) as me:
            wire = await admit(peers, VPS)
            await me.changes.get()
            # Longer than a silent leader is waited for.
            for _ in range(3):
                await wire.link.expect("heartbeat")
                await wire.link.send("heartbeat")
            assert me.link.connected
            assert peers.accepted == 1

    asyncio.run(main())


def test_a_worker_that_cannot_reach_its_leader_says_why(quick: None) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            pass
        async with worker(peers) as me:
            error = await me.link.outcome(5)
            assert error is not None
            assert error.code is Code.NOT_CONNECTED
            assert "Connection refused" in error.text
            assert f"ping {LOCALHOST}" in error.text
            assert not me.link.connected

    asyncio.run(main())


def test_a_worker_tries_again_at_once_when_the_network_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_LONGEST_DELAY", 1000.0)
    monkeypatch.setattr(links, "_REFUSED_DELAY", 1000.0)

    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await peers.links.get()
            await wire.link.send("error", PeerdError(Code.NOT_LEADER, address=LOCALHOST).to_wire())
            error = await me.link.outcome(5)
            assert error is not None
            assert error.code is Code.NOT_LEADER
            me.link.wake()
            await admit(peers, VPS)
            assert await me.changes.get() == (True, "1 peers")

    asyncio.run(main())


def test_a_connected_worker_sees_at_once_whether_its_leader_is_still_there(quick: None) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers, timeout=0.05) as me:
            wire = await admit(peers, VPS)
            assert (await me.changes.get())[0]
            for _ in range(3):
                me.link.wake()
                await wire.link.expect("heartbeat")
                await wire.link.send("heartbeat")
            # The interval is a quarter of an hour: silence is noticed because it was asked for a sign of life.
            me.link.wake()
            await wire.link.expect("heartbeat")
            assert not (await me.changes.get())[0]
            assert "no answer in time" in me.link.unavailable().text
            await admit(peers, VPS)
            assert (await me.changes.get())[0]

    asyncio.run(main())


def test_changes_that_come_in_a_flood_are_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_FIRST_DELAY", 1000.0)

    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await admit(peers, VPS)
            await me.changes.get()
            for _ in range(50):
                me.link.wake()
                await asyncio.sleep(0)
            await wire.link.expect("heartbeat")
            wire.link.post("peers", {"peers": [DESKTOP.to_wire()]})
            wire.link.post("error", PeerdError(Code.NOT_LEADER, address=LOCALHOST).to_wire())
            assert await me.changes.get() == (False, f"{LOCALHOST} is not the leader")
            await wire.end()

    asyncio.run(main())


@pytest.mark.parametrize("away", [0.0, 1.0, 30.0, 3600.0])
def test_a_hundred_workers_are_back_within_seconds_and_do_not_arrive_together(
    away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "random", random.Random(1))
    arrivals = []
    for _ in range(100):
        # All lose the leader in the same moment, and an attempt before its return takes no time.
        pauses, now = Pauses(), 0.0
        while now <= away:
            now += pauses.take()
        arrivals.append(now - away)
    assert max(arrivals) <= links._LONGEST_DELAY
    tenths = Counter(int(arrival * 10) for arrival in arrivals)
    # A restart in no time is the worst: the first pause is the shortest.
    assert max(tenths.values()) <= {0.0: 70, 1.0: 30}.get(away, 12)


def test_a_refused_registration_is_reported_as_the_leader_said_it() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await peers.links.get()
            refusal = PeerdError(Code.ID_TAKEN, peer="laptop", address="10.0.0.9")
            await wire.link.send("error", refusal.to_wire())
            error = await me.link.outcome(5)
            assert error is not None
            assert error.text == refusal.text
            assert me.link.unavailable() is error
            assert not me.link.connected

    asyncio.run(main())


def test_a_deleted_worker_no_longer_tries(quick: None) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await admit(peers, VPS)
            await me.changes.get()
            await wire.link.send("error", PeerdError(Code.DELETED, peer="laptop").to_wire())
            assert await me.changes.get() == (False, "Peer laptop was deleted from the registry")
            await wire.end()
            await asyncio.wait_for(asyncio.shield(me.link._task), 5)
            me.link.wake()
            assert peers.accepted == 1
            assert me.link.unavailable().code is Code.DELETED

    asyncio.run(main())


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        ("peers", {}),
        ("peers", {"peers": []}),
        ("peers", {"peers": [1]}),
        ("peers", {"peers": [{"peer_id": "a b", "ip_address": "10.0.0.1"}]}),
        ("peerRemoved", {}),
        ("peerRemoved", {"peer_id": []}),
        ("error", {"code": [], "message": {}, "details": 7}),
        ("error", {"code": "timeout", "details": {"peer": [[[]]]}}),
    ],
    ids=str,
)
def test_a_leader_that_sends_nonsense_is_left_and_asked_again(quick: None, type_: str, fields: dict[str, Any]) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await admit(peers, VPS)
            await me.changes.get()
            await wire.link.send(type_, fields)
            assert not (await me.changes.get())[0]
            await admit(peers, VPS)
            assert (await me.changes.get())[0]

    asyncio.run(main())


@pytest.mark.parametrize("depth", [200, 900, 940, 960, 970, 980, 985])
def test_a_leader_that_sends_what_is_nested_deeply_is_left_and_asked_again(quick: None, depth: int) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers, worker(peers) as me:
            wire = await admit(peers, VPS)
            await me.changes.get()
            nested = b"[" * depth + b"]" * depth
            wire.link.post_encoded(b'{"type":"error","code":"timeout","details":{"peer":' + nested + b"}}\n")
            assert not (await me.changes.get())[0]
            await admit(peers, VPS)
            assert (await me.changes.get())[0]

    asyncio.run(main())


def test_closing_a_link_closes_the_connection() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            async with worker(peers) as me:
                wire = await admit(peers, VPS)
                await me.changes.get()
            await wire.end()

    asyncio.run(main())


def test_a_book_is_received_whole_however_it_is_cut() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("reply", {"count": 3})
            near.post("peers", {"peers": [VPS.to_wire()]})
            near.post("peers", {"peers": [DESKTOP.to_wire(), LAPTOP.to_wire()]})
            near.post("next")
            assert (await receive_book(far)).all() == [DESKTOP, LAPTOP, VPS]
            await far.expect("next")

    asyncio.run(main())


def test_an_empty_book_is_a_book() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("reply", {"count": 0})
            assert len(await receive_book(far)) == 0

    asyncio.run(main())


@pytest.mark.parametrize("count", [None, -1, "3", True, 10**9, []], ids=str)
def test_a_book_without_a_sensible_size_is_refused(count: object) -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("reply", {"count": count})
            with pytest.raises(PeerdError, match="count"):
                await receive_book(far)

    asyncio.run(main())


def test_a_book_that_is_cut_off_is_no_book() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("reply", {"count": 2})
            near.post("peers", {"peers": [VPS.to_wire()]})
            near.close()
            with pytest.raises(ConnectionError):
                await receive_book(far)

    asyncio.run(main())
