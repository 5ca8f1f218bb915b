"""A leader whose disk takes nothing more: what is not stored is not in memory either, and what was goes on."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerd import hub as hub_module
from peerd import network
from peerd import node as node_module
from peerd.bookreader import receive_book
from peerd.config import Mode
from peerd.errors import Code, PeerdError
from peerd.hub import Hub
from peerd.journal import Event
from peerd.node import Node
from peerd.peers import State
from peerd.registry import Identity, Registry
from unit.support import Journal, full, key_table, linked, registration, settings


class Clock:
    """Takes the place of the module time."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until it is told to move."""
    clock = Clock()
    monkeypatch.setattr(hub_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def public_keys(interface: str) -> network.KeyTable:
        return key_table({})

    monkeypatch.setattr(network, "public_keys", public_keys)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "peerd.db")
    registry.set_identity(Identity("leader", "vps", ""))
    yield registry
    registry.close()


def hub_of(registry: Registry, mode: Mode = Mode.OPEN) -> Hub:
    hub = Hub(registry, lambda: settings(registration=mode), lambda: None)
    hub.set_self(registration("vps"), "10.0.0.1")
    return hub


def refused(change: Callable[[], object]) -> None:
    with pytest.raises(PeerdError) as caught:
        change()
    assert caught.value.code is Code.NOT_STORED


def shown(hub: Hub) -> list[tuple[str, str, State]]:
    return [(entry.peer_id, entry.ip_address, entry.state) for entry in (*hub.book.all(), *hub.book.claims)]


async def registers(hub: Hub, peer_id: str, address: str) -> None:
    async with linked() as (worker, leader):
        await hub.register(leader, address, registration(peer_id))
        await worker.expect("registered")
        await receive_book(worker)
        hub.left(leader, peer_id)


def test_a_new_registration_is_refused_and_a_known_worker_comes_and_goes(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        await registers(hub, "laptop", "10.0.0.4")
        before = shown(hub)
        with full():
            async with linked() as (_, leader):
                with pytest.raises(PeerdError) as caught:
                    await hub.register(leader, "10.0.0.2", registration("desktop"))
                assert caught.value.sentence.startswith("The state of vps cannot be stored: ")
                assert hub.workers == 0
            assert shown(hub) == before
            async with linked() as (worker, leader):
                await hub.register(leader, "10.0.0.4", registration("laptop"))
                await worker.expect("registered")
                assert hub.book.by_id("laptop") in (await receive_book(worker)).all()
                hub.left(leader, "laptop")
            laptop = hub.book.by_id("laptop")
            assert laptop is not None
            assert not laptop.is_online
        await registers(hub, "desktop", "10.0.0.2")
        assert {peer.peer_id for peer in registry.peers()} == set(hub.book.ids()) == {"vps", "laptop", "desktop"}

    asyncio.run(main())


def test_a_known_worker_comes_back_upgraded_and_with_no_other_key(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        await registers(hub, "laptop", "10.0.0.4")
        upgraded = registration("laptop", daemon_version="0.2.0", hostname="renamed")
        with full():
            async with linked() as (worker, leader):
                await hub.register(leader, "10.0.0.4", upgraded)
                await worker.expect("registered")
                hub.set_self(registration("vps", daemon_version="0.2.0"), "10.0.0.1")
                book = await receive_book(worker)
                laptop = book.by_id("laptop")
                assert laptop is not None
                assert (laptop.daemon_version, laptop.hostname) == ("0.2.0", "renamed")
                hub.flush()
                assert {peer.daemon_version for peer in registry.peers()} == {registration("laptop").daemon_version}
                hub.left(leader, "laptop")
            monkeypatch.setattr(network, "public_keys", knows_laptop)
            async with linked() as (_, leader):
                with pytest.raises(PeerdError, match="cannot be stored"):
                    await hub.register(leader, "10.0.0.4", upgraded)
        hub.flush()
        assert {peer.daemon_version for peer in registry.peers()} == {"0.2.0"}
        assert {peer.public_key for peer in registry.peers()} == {""}
        assert shown(hub) == shown(hub_of(registry))

    async def knows_laptop(interface: str) -> network.KeyTable:
        return key_table({"10.0.0.4": "key-4"})

    monkeypatch.setattr(hub_module, "_KEYS_APART", 0.0)
    asyncio.run(main())


def test_no_change_of_the_registry_is_made_by_half(registry: Registry) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        await registers(hub, "laptop", "10.0.0.4")
        with pytest.raises(PeerdError):
            await registers(hub, "laptop", "10.0.0.9")
        before, stored = shown(hub), (registry.peers(), registry.claims())
        with full():
            refused(lambda: hub.delete("laptop", "10.0.0.4", "root"))
            refused(lambda: hub.delete("laptop", "10.0.0.9", "root"))
            refused(lambda: hub.approve("laptop", "10.0.0.9", "root"))
            refused(lambda: hub.reject("laptop", "10.0.0.4", "root"))
            refused(lambda: hub.reject("laptop", "10.0.0.9", "root"))
            refused(lambda: hub.set_self(registration("other"), "10.0.0.1"))
        assert shown(hub) == before
        assert (registry.peers(), registry.claims()) == stored
        hub.approve("laptop", "10.0.0.9", "root")
        assert shown(hub) == shown(hub_of(registry))

    asyncio.run(main())


def test_why_a_registration_is_refused_is_said_though_it_cannot_be_kept(registry: Registry, records: Journal) -> None:
    async def main() -> None:
        hub = hub_of(registry, Mode.APPROVAL)
        with full():
            async with linked() as (_, leader):
                with pytest.raises(PeerdError) as caught:
                    await hub.register(leader, "10.0.0.4", registration("laptop"))
        assert caught.value.code is Code.PENDING
        assert hub.book.claims == []
        assert len(records.of(Event.STATE_UNWRITABLE)) == 1

    asyncio.run(main())


def test_when_peers_were_seen_is_stored_as_soon_as_it_can_be(registry: Registry, clock: Clock) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with linked() as (_, leader):
            await hub.register(leader, "10.0.0.4", registration("laptop"))
            clock.now = 2000.0
            hub.heard(leader, "laptop")
            with full():
                hub.flush()
            hub.flush()
            hub.left(leader, "laptop")
        assert {peer.peer_id: peer.last_seen for peer in registry.peers()}["laptop"] == 2000.0

    asyncio.run(main())


@pytest.mark.parametrize("now", [10.0, 1e9], ids=["back", "forth"])
def test_a_clock_that_jumps_takes_nobody_offline_and_is_right_again_at_the_next_heartbeat(
    registry: Registry, clock: Clock, now: float
) -> None:
    async def main() -> None:
        hub = hub_of(registry)
        async with linked() as (_, leader):
            await hub.register(leader, "10.0.0.4", registration("laptop"))
            for moment in (now, 1010.0):
                clock.now = moment
                hub.heard(leader, "laptop")
                laptop = hub.book.by_id("laptop")
                assert laptop is not None
                assert (laptop.first_seen, laptop.last_seen, laptop.is_online) == (1000.0, moment, True)
            hub.left(leader, "laptop")

    asyncio.run(main())


def test_a_role_that_cannot_be_stored_is_not_taken(registry: Registry) -> None:
    async def main() -> None:
        node = Node(registry, lambda: settings(vpn_interface="lo"), lambda: None)
        node.start()
        hub = node.hub
        with full(), pytest.raises(PeerdError) as caught:
            await node.become(Identity("worker", "vps", "10.0.0.9"))
        assert caught.value.code is Code.NOT_STORED
        assert node.hub is hub
        assert node.identity == registry.identity() == Identity("leader", "vps", "")
        await node.close()

    asyncio.run(main())


def test_a_leader_whose_disk_is_full_starts(registry: Registry) -> None:
    async def main() -> None:
        node = Node(registry, lambda: settings(vpn_interface="lo"), lambda: None)
        with full():
            node.start()
            assert node.hub is not None
            assert len(node.hub.book) == 0
        node.resumed()
        assert [peer.peer_id for peer in node.hub.book.all()] == ["vps"]
        await node.close()

    asyncio.run(main())


def test_upkeep_that_failed_once_is_done_the_next_time(
    registry: Registry, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.expect(Event.INTERNAL_ERROR)
    monkeypatch.setattr(node_module, "_FLUSH_INTERVAL", 0.001)

    async def main() -> None:
        node = Node(registry, lambda: settings(vpn_interface="lo"), lambda: None)
        node.start()
        assert node.hub
        flushed, failures = asyncio.Event(), [OSError(errno.ENFILE, "Too many open files in system")]

        def address(interface: str) -> str:
            if failures:
                raise failures.pop()
            return "127.0.0.1"

        monkeypatch.setattr(network, "interface_address", address)
        monkeypatch.setattr(node.hub, "flush", flushed.set)
        async with asyncio.timeout(5):
            await flushed.wait()
        await node.close()

    asyncio.run(main())
    assert len(records.of(Event.INTERNAL_ERROR)) == 1
