"""The link of a worker to its leader, against a leader that does what the test says."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from peerd import backoff, links
from peerd.backoff import Backoff
from peerd.bookreader import receive_book
from peerd.errors import Code, PeerdError
from peerd.links import LeaderLink
from peerd.peers import Peer
from unit.support import LOCALHOST, FakePeers, Wire, linked, registration, settings

VPS = Peer("vps", LOCALHOST, is_online=True)
DESKTOP = Peer("desktop", "10.0.0.2", is_online=True)
LAPTOP = Peer("laptop", "10.0.0.4", is_online=True)


@dataclass
class Worker:
    """A worker's link, and what it said of itself."""

    link: LeaderLink
    changes: asyncio.Queue[tuple[bool, str]] = field(default_factory=asyncio.Queue)
    updates: list[list[str]] = field(default_factory=list)


@asynccontextmanager
async def worker(peers: FakePeers, interval: float = 1000.0, timeout: float = 5.0) -> AsyncIterator[Worker]:
    changes: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    config = settings(heartbeat_interval=interval, connect_timeout=timeout)
    updates: list[list[str]] = []
    link = LeaderLink(
        LOCALHOST,
        peers.connect,
        lambda: registration("laptop"),
        lambda: config,
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
    monkeypatch.setattr(Backoff, "SHORTEST", 0.001)
    monkeypatch.setattr(Backoff, "LONGEST", 0.001)


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
                "Not connected to leader (the leader closed the connection)",
            )
            assert me.link.book.by_id("desktop") == DESKTOP
            vps = me.link.book.by_id("vps")
            assert vps is not None
            assert vps == replace(VPS, is_online=False, last_seen=vps.last_seen)
            assert vps.last_seen == pytest.approx(time.time(), abs=60)
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
    monkeypatch.setattr(Backoff, "LONGEST", 1000.0)
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
    monkeypatch.setattr(Backoff, "SHORTEST", 1000.0)

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
    monkeypatch.setattr(backoff, "random", random.Random(1))
    arrivals = []
    for _ in range(100):
        # All lose the leader in the same moment, and an attempt before its return takes no time.
        waits, now = Backoff(), 0.0
        while now <= away:
            now += waits.take()
        arrivals.append(now - away)
    assert max(arrivals) <= Backoff.LONGEST
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
