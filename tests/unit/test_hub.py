"""The leader's registry: who hears of what, over real connections, and what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from peerd import hub as hub_module
from peerd import network, refusals
from peerd.bookreader import receive_book
from peerd.config import Mode
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.hub import Hub
from peerd.journal import Event
from peerd.peers import Peer
from peerd.registry import Registry
from unit.support import Journal, key_table, linked, registration, settings

KEYS = {"10.0.0.2": "key-2", "10.0.0.4": "key-4"}


class Clock:
    """Takes the place of the module time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until it is told to move, and a WireGuard that knows the keys."""

    async def public_keys(interface: str) -> network.KeyTable:
        assert interface == "wg0"
        return key_table(KEYS)

    monkeypatch.setattr(network, "public_keys", public_keys)
    monkeypatch.setattr(hub_module, "_KEYS_APART", 0.0)
    monkeypatch.setattr(hub_module, "_AT_ONCE", 1_000_000)
    clock = Clock()
    monkeypatch.setattr(hub_module, "time", clock)
    return clock


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry(":memory:")
    yield registry
    registry.close()


def hub_of(registry: Registry, mode: Mode = Mode.OPEN) -> Hub:
    return Hub(registry, lambda: settings(registration=mode), lambda: None)


def by_id(registry: Registry) -> dict[str, Peer]:
    return {peer.peer_id: peer for peer in registry.peers()}


@asynccontextmanager
async def registered(hub: Hub, *workers: tuple[str, str]) -> AsyncIterator[list[tuple[Connection, Connection]]]:
    """Workers that have registered and read all that they were told: the worker's end and the leader's of each."""
    async with AsyncExitStack() as stack:
        ends: list[tuple[Connection, Connection]] = []
        for peer_id, address in workers:
            worker, leader = await stack.enter_async_context(linked())
            await hub.register(leader, address, registration(peer_id))
            await worker.expect("registered")
            await receive_book(worker)
            for other, _ in ends:
                await other.expect("peers")
            ends.append((worker, leader))
        yield ends


async def told(worker: Connection) -> list[tuple[str, bool]]:
    """The ids in the next news, and whether they are online."""
    listed = (await worker.expect("peers")).fields["peers"]
    assert isinstance(listed, list)
    return [(peer["peer_id"], peer["is_online"]) for peer in listed]


def test_a_worker_that_registers_is_told_of_all_peers_and_stored(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        hub.set_self(registration("vps"), "10.0.0.1")
        async with linked() as (worker, leader):
            admitted = await hub.register(leader, "10.0.0.4", registration("laptop"))
            assert admitted.public_key == "key-4"
            assert admitted.is_online
            assert (await worker.expect("registered")).fields == {"peer_id": "laptop"}
            book = await receive_book(worker)
            assert book.all() == hub.book.all()
            assert [peer.peer_id for peer in book.all()] == ["vps", "laptop"]
            assert hub.workers == 1
        assert by_id(registry)["laptop"] == replace(admitted, is_online=False)
        assert [record.text("peer") for record in records.of(Event.PEER_REGISTERED)] == ["laptop"]

    asyncio.run(main())


def test_the_others_hear_of_who_comes_and_who_goes(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("desktop", "10.0.0.2")) as [(desktop, _)], linked() as (laptop, leader):
            await hub.register(leader, "10.0.0.4", registration("laptop"))
            assert await told(desktop) == [("laptop", True)]
            await laptop.expect("registered")
            hub.left(leader, "laptop")
            assert await told(desktop) == [("laptop", False)]
            assert hub.workers == 1

    asyncio.run(main())


def test_who_goes_is_offline_and_still_a_peer(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(_, leader)]:
            hub.left(leader, "laptop")
            peer = hub.book.by_id("laptop")
            assert peer is not None
            assert not peer.is_online
            assert hub.workers == 0
            assert [record.text("peer") for record in records.of(Event.PEER_OFFLINE)] == ["laptop"]
            hub.left(leader, "laptop")
            assert len(records.of(Event.PEER_OFFLINE)) == 1

    asyncio.run(main())


def test_a_second_registration_takes_the_place_of_the_first_link(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(first, first_leader)], linked() as (_, second):
            await hub.register(second, "10.0.0.4", registration("laptop"))
            assert await first.receive() is None
            hub.left(first_leader, "laptop")
            peer = hub.book.by_id("laptop")
            assert peer is not None
            assert peer.is_online
            assert hub.workers == 1
            assert not records.of(Event.PEER_OFFLINE)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("peer_id", "address", "code"),
    [("laptop", "10.0.0.2", Code.ID_TAKEN), ("phone", "10.0.0.4", Code.ADDRESS_TAKEN)],
)
def test_a_registration_that_is_refused_changes_nothing(
    registry: Registry, records: Journal, peer_id: str, address: str, code: Code
) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, _)], linked() as (other, leader):
            before, stored = hub.book.all(), registry.peers()
            with pytest.raises(PeerdError) as caught:
                await hub.register(leader, address, registration(peer_id))
            assert caught.value.code is code
            assert (hub.book.all(), registry.peers(), hub.workers) == (before, stored, 1)
            assert other.usable
            assert laptop.usable
            (record,) = records.of(Event.PEER_REFUSED)
            assert (record.text("peer"), record.text("address")) == (peer_id, address)

    asyncio.run(main())


def test_a_registration_with_another_key_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")):
            pass
        monkeypatch.setitem(KEYS, "10.0.0.4", "stolen")
        async with linked() as (_, leader):
            with pytest.raises(PeerdError) as caught:
                await hub.register(leader, "10.0.0.4", registration("laptop"))
            assert caught.value.code is Code.KEY_CHANGED

    asyncio.run(main())


def test_a_deleted_worker_is_told_and_disconnected_and_the_others_hear_of_it(
    registry: Registry, records: Journal
) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("desktop", "10.0.0.2"), ("laptop", "10.0.0.4")) as [(desktop, _), (laptop, leader)]:
            hub.delete("laptop", None, "root@vps")
            with pytest.raises(PeerdError) as caught:
                await laptop.expect("heartbeat")
            assert caught.value.code is Code.DELETED
            assert await laptop.receive() is None
            assert (await desktop.expect("peerRemoved")).fields == {"peer_id": "laptop"}
            hub.left(leader, "laptop")
            assert hub.book.by_id("laptop") is None
            assert by_id(registry).keys() == {"desktop"}
            assert hub.workers == 1
            (record,) = records.of(Event.PEER_DELETED)
            assert (record.text("peer"), record.text("caller")) == ("laptop", "root@vps")

    asyncio.run(main())


def test_a_deleted_id_and_address_are_free(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")):
            hub.delete("laptop", None, "x")
        async with linked() as (_, leader):
            assert (await hub.register(leader, "10.0.0.2", registration("laptop"))).ip_address == "10.0.0.2"

    asyncio.run(main())


async def refused(hub: Hub, peer_id: str, address: str, joining: bool = False) -> Code:
    """Why a worker is no peer."""
    async with linked() as (_, leader):
        with pytest.raises(PeerdError) as caught:
            await hub.register(leader, address, registration(peer_id, joining=joining))
    return caught.value.code


def states(hub: Hub) -> list[tuple[str, str, str]]:
    return [(claim.peer_id, claim.ip_address, claim.state.value) for claim in hub.book.claims]


def test_a_deleted_worker_comes_back_only_when_it_is_told_to_also_after_a_restart(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")):
            hub.delete("laptop", None, "x")
        assert await refused(hub, "laptop", "10.0.0.4") is Code.DELETED
        hub = hub_of(registry)
        assert await refused(hub, "laptop", "10.0.0.4") is Code.DELETED
        assert states(hub) == []
        async with linked() as (_, leader):
            await hub.register(leader, "10.0.0.4", registration("laptop", joining=True))
        assert registry.claims() == []

    asyncio.run(main())


def test_who_waits_is_shown_and_becomes_a_peer_by_approval(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry, Mode.APPROVAL)
        assert await refused(hub, "laptop", "10.0.0.4") is Code.PENDING
        assert await refused(hub, "laptop", "10.0.0.4") is Code.PENDING
        assert len(records.of(Event.PEER_PENDING)) == 1
        assert states(hub) == states(hub_of(registry)) == [("laptop", "10.0.0.4", "pending")]
        assert hub.book.by_id("laptop") is None
        with pytest.raises(PeerdError, match="Peer not found: phone"):
            hub.approve("phone", None, "root@vps")
        assert hub.approve("laptop", None, "root@vps").public_key == "key-4"
        assert states(hub) == states(hub_of(registry)) == []
        (record,) = records.of(Event.PEER_APPROVED)
        assert [record.text(name) for name in ("peer", "address", "caller")] == ["laptop", "10.0.0.4", "root@vps"]
        async with registered(hub, ("laptop", "10.0.0.4")):
            assert hub.workers == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("mode", "event"), [(Mode.APPROVAL, Event.PEER_PENDING), (Mode.CLOSED, Event.PEER_REFUSED)], ids=str
)
def test_who_registers_under_ever_new_ids_is_recorded_no_more_than_so_often(
    registry: Registry, records: Journal, monkeypatch: pytest.MonkeyPatch, mode: Mode, event: Event
) -> None:
    monkeypatch.setattr(refusals, "_MOST", 3)

    async def main() -> None:
        hub = hub_of(registry, mode)
        for number in range(6):
            await refused(hub, f"laptop{number}", "10.0.0.4")
        assert len(records.of(event)) == 3
        await refused(hub, "desktop", "10.0.0.2")
        assert len(records.of(event)) == 4

    asyncio.run(main())


@pytest.mark.parametrize(("ids", "stored"), [(1, 1), (100, 10)], ids=["one id", "many ids"])
def test_who_registers_again_and_again_takes_no_turn_of_the_disk_each_time(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch, ids: int, stored: int
) -> None:
    commits: list[Peer] = []
    store = registry.store_claim

    def counted(claim: Peer) -> None:
        commits.append(claim)
        store(claim)

    monkeypatch.setattr(registry, "store_claim", counted)

    async def main() -> None:
        hub = hub_of(registry, Mode.APPROVAL)
        for number in range(100):
            clock.now += 1
            await refused(hub, f"laptop{number % ids}", "10.0.0.4")
        assert len(commits) == stored
        await refused(hub, "desktop", "10.0.0.2")
        assert len(commits) == stored + 1
        hub.flush()
        assert registry.claims() == hub.book.claims
        assert [claim.last_seen for claim in hub.book.claims] == [1100.0, 1100.0]
        assert hub.book.claims[1].peer_id == f"laptop{99 % ids}"
        hub.flush()
        assert len(commits) == stored + 2
        await refused(hub, "phone", "10.0.0.4")
        assert registry.claims() == hub.book.claims

    asyncio.run(main())


def test_a_leader_at_an_address_that_was_claimed_keeps_nothing_of_the_claim(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry, Mode.APPROVAL)
        assert await refused(hub, "laptop", "10.0.0.4") is Code.PENDING
        hub.set_self(registration("vps"), "10.0.0.4")
        assert hub.book.claims == registry.claims() == []
        with pytest.raises(PeerdError, match="Peer not found"):
            hub.approve("laptop", None, "x")

    asyncio.run(main())


def test_who_waits_while_the_leader_becomes_something_else_is_not_stored(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hub = hub_of(registry)

        async def public_keys(interface: str) -> network.KeyTable:
            hub.close()
            return key_table(KEYS)

        monkeypatch.setattr(network, "public_keys", public_keys)
        async with linked() as (_, leader):
            with pytest.raises(ConnectionError):
                await hub.register(leader, "10.0.0.4", registration("laptop"))
        assert registry.peers() == []

    asyncio.run(main())


def test_who_has_gone_before_its_turn_is_not_registered(
    registry: Registry, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_AT_ONCE", 0)
    monkeypatch.setattr(hub_module, "_APART", 0.01)

    async def main() -> None:
        hub = hub_of(registry)
        async with linked() as (_, leader):
            leader.abort()
            with pytest.raises(ConnectionError):
                await hub.register(leader, "10.0.0.4", registration("laptop"))
        assert (hub.workers, registry.peers(), records.of(Event.PEER_REGISTERED)) == (0, [], [])

    asyncio.run(main())


def test_an_approved_conflict_takes_the_place_of_the_peer(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, _)]:
            assert await refused(hub, "laptop", "10.0.0.2") is Code.ID_TAKEN
            assert states(hub) == [("laptop", "10.0.0.2", "id-taken")]
            hub.approve("laptop", None, "x")
            with pytest.raises(PeerdError) as caught:
                await laptop.expect("heartbeat")
            assert caught.value.code is Code.DELETED
        assert [(peer.peer_id, peer.ip_address, peer.public_key) for peer in hub.book.all()] == [
            ("laptop", "10.0.0.2", "key-2")
        ]
        monkeypatch.setitem(KEYS, "10.0.0.2", "new")
        assert await refused(hub, "laptop", "10.0.0.2") is Code.KEY_CHANGED
        assert not await hub.genuine(hub.book.all()[0])
        hub.approve("laptop", "10.0.0.2", "x")
        assert await hub.genuine(hub.book.all()[0])
        assert states(hub) == []
        assert await refused(hub, "other", "10.0.0.2") is Code.ADDRESS_TAKEN
        hub.approve("other", None, "x")
        assert [peer.peer_id for peer in hub.book.all()] == [peer.peer_id for peer in registry.peers()] == ["other"]

    asyncio.run(main())


def test_what_several_claim_needs_an_address(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry, Mode.APPROVAL)
        for address in ("10.0.0.4", "10.0.0.2"):
            assert await refused(hub, "laptop", address) is Code.PENDING
        with pytest.raises(PeerdError, match=r"from 10\.0\.0\.2 and 10\.0\.0\.4: --address is needed"):
            hub.approve("laptop", None, "x")
        assert hub.approve("laptop", "10.0.0.4", "x").ip_address == "10.0.0.4"
        hub.reject("laptop", "10.0.0.2", "x")
        assert states(hub) == [("laptop", "10.0.0.2", "rejected")]
        hub.delete("laptop", "10.0.0.2", "x")
        assert states(hub) == []
        assert hub.book.by_id("laptop") is not None
        for change in (hub.delete, hub.reject):
            with pytest.raises(PeerdError, match="Peer not found") as caught:
                change("laptop", "10.0.0.2", "x")
            assert caught.value.hints[0] == "laptop registers from 10.0.0.4."
        with pytest.raises(PeerdError, match=r"laptop is registered already, from 10\.0\.0\.4"):
            hub.approve("laptop", None, "x")

    asyncio.run(main())


def test_who_is_rejected_stays_out_until_it_is_approved_or_deleted(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, _)]:
            hub.reject("laptop", None, "root@vps")
            with pytest.raises(PeerdError) as caught:
                await laptop.expect("heartbeat")
            assert caught.value.code is Code.REJECTED
        assert hub.book.all() == registry.peers() == []
        for peer_id in ("laptop", "other"):
            assert await refused(hub, peer_id, "10.0.0.4", joining=True) is Code.REJECTED
        assert states(hub) == states(hub_of(registry)) == [("laptop", "10.0.0.4", "rejected")]
        (record,) = records.of(Event.PEER_REJECTED)
        assert [record.text(name) for name in ("peer", "address", "caller")] == ["laptop", "10.0.0.4", "root@vps"]
        hub.delete("laptop", None, "x")
        async with registered(hub, ("laptop", "10.0.0.4")):
            assert states(hub) == []

    asyncio.run(main())


def test_the_key_of_many_connections_is_asked_for_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def public_keys(interface: str) -> network.KeyTable:
        asked.append(interface)
        await asyncio.sleep(0)
        return key_table({"10.0.0.4": "key-4"})

    monkeypatch.setattr(network, "public_keys", public_keys)

    async def main() -> None:
        peer = Peer("laptop", "10.0.0.4", public_key="key-4")
        hub = hub_of(registry)
        assert all(await asyncio.gather(*(hub.genuine(peer) for _ in range(50))))
        assert asked == ["wg0"]

    asyncio.run(main())


def test_who_is_not_there_cannot_be_deleted(registry: Registry) -> None:
    async def main() -> None:
        with pytest.raises(PeerdError, match="Peer not found: phone"):
            hub_of(registry).delete("phone", None, "x")

    asyncio.run(main())


def test_a_heartbeat_is_answered_and_stored_with_the_next_flush(registry: Registry, clock: Clock) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, leader)]:
            clock.now = 2000.0
            hub.heard(leader, "laptop")
            await laptop.expect("heartbeat")
            peer = hub.book.by_id("laptop")
            assert peer is not None
            assert peer.last_seen == 2000.0
            assert by_id(registry)["laptop"].last_seen == 1000.0
            hub.flush()
            assert by_id(registry)["laptop"].last_seen == 2000.0

    asyncio.run(main())


def test_a_heartbeat_over_a_link_that_was_replaced_counts_for_nothing(registry: Registry, clock: Clock) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")), linked() as (stranger, link):
            clock.now = 2000.0
            hub.heard(link, "laptop")
            hub.heard(link, "phone")
            link.close()
            assert await stranger.receive() is None
            peer = hub.book.by_id("laptop")
            assert peer is not None
            assert peer.last_seen == 1000.0

    asyncio.run(main())


def test_a_flush_does_not_bring_back_who_was_deleted(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(_, leader)]:
            hub.heard(leader, "laptop")
            hub.delete("laptop", None, "x")
            hub.flush()
            assert registry.peers() == []

    asyncio.run(main())


def test_closing_stores_what_heartbeats_said_and_closes_the_links(registry: Registry, clock: Clock) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, leader)]:
            clock.now = 2000.0
            hub.heard(leader, "laptop")
            hub.close()
            await laptop.expect("heartbeat")
            assert await laptop.receive() is None
            assert by_id(registry)["laptop"].last_seen == 2000.0

    asyncio.run(main())


def test_a_leader_that_comes_back_knows_its_peers_as_offline(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")):
            again = hub_of(registry).book.by_id("laptop")
            assert again == replace(hub.book.by_id("laptop") or Peer("", ""), is_online=False)

    asyncio.run(main())


def test_many_peers_are_told_in_several_frames(registry: Registry) -> None:
    async def main() -> None:
        registry.store(Peer(f"p{number}", f"10.1.{number // 250}.{number % 250 + 1}") for number in range(450))
        hub = hub_of(registry)
        async with linked() as (worker, leader):
            hub.tell_all(leader)
            assert (await receive_book(worker)).all() == hub.book.all()

    asyncio.run(main())


def test_a_worker_that_does_not_read_is_dropped(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(_, leader)]:
            leader.post("noise", None, bytes(1024 * 1024))
            rounds = 0
            while leader.usable:
                leader.post("noise", None, bytes(1024 * 1024))
                hub.set_self(registration("vps", hostname=f"name-{rounds}"), "10.0.0.1")
                await asyncio.sleep(0.001)
                rounds += 1
            assert 1 < rounds < 20

    asyncio.run(main())


def test_the_leader_enters_itself_and_moves_with_its_address(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        hub.set_self(registration("vps"), "10.0.0.1")
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, _)]:
            hub.set_self(registration("vps"), "10.0.0.1")
            hub.set_self(registration("vps"), "10.0.0.9")
            assert await told(laptop) == [("vps", True)]
            assert by_id(registry).keys() == {"vps", "laptop"}
            assert by_id(registry)["vps"].ip_address == "10.0.0.9"
            assert hub.book.by_address("10.0.0.1") is None

    asyncio.run(main())


def test_a_leader_under_another_id_is_the_same_peer_no_longer(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        hub.set_self(registration("vps"), "10.0.0.1")
        hub.set_self(registration("hub"), "10.0.0.1")
        assert [peer.peer_id for peer in hub.book.all()] == ["hub"]
        assert by_id(registry).keys() == {"hub"}

    asyncio.run(main())


def test_who_had_the_leaders_own_address_or_id_goes(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with registered(hub, ("laptop", "10.0.0.4")) as [(laptop, _)]:
            hub.set_self(registration("vps"), "10.0.0.4")
            with pytest.raises(PeerdError) as caught:
                await laptop.expect("heartbeat")
            assert caught.value.code is Code.DELETED
            assert by_id(registry).keys() == {"vps"}
            assert hub.workers == 0

    asyncio.run(main())


def test_registrations_at_once_share_an_answer_that_is_not_older_than_they_are(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    async def public_keys(interface: str) -> network.KeyTable:
        asked.append(dict(KEYS))
        await asyncio.sleep(0.01)
        return key_table(asked[-1])

    monkeypatch.setattr(network, "public_keys", public_keys)

    async def main() -> None:
        hub = hub_of(registry)
        async with linked() as (_, first), linked() as (_, second):
            one = asyncio.create_task(hub.register(first, "10.0.0.2", registration("desktop")))
            await asyncio.sleep(0)
            # The first question is on its way: its answer is none for who comes now.
            monkeypatch.setitem(KEYS, "10.0.0.4", "new")
            others = [hub.register(second, "10.0.0.4", registration("laptop")) for _ in range(20)]
            peers = await asyncio.gather(one, *others)
            assert {peer.public_key for peer in peers[1:]} == {"new"}
            assert len(asked) == 2

    asyncio.run(main())


def test_an_address_that_registers_all_the_time_has_a_turn_now_and_then(
    registry: Registry, records: Journal, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(hub_module, "_AT_ONCE", 3)
    monkeypatch.setattr(hub_module, "_APART", 0.01)

    async def main() -> None:
        hub = hub_of(registry)
        async with linked() as (_, leader), linked() as (_, other):
            waits: list[float] = []
            sleep = asyncio.sleep

            async def note(delay: float) -> None:
                waits.append(round(delay, 3))
                await sleep(0)

            monkeypatch.setattr(asyncio, "sleep", note)
            for _ in range(5):
                await hub.register(leader, "10.0.0.4", registration("laptop"))
            assert [wait for wait in waits if wait > 0] == [0.01, 0.02]
            await hub.register(other, "10.0.0.2", registration("desktop"))
            assert [wait for wait in waits if wait > 0] == [0.01, 0.02]
            # All of it is forgotten in time.
            clock.now += 1
            hub.flush()
            assert hub._turns == {}

    asyncio.run(main())
