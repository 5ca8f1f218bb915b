"""Connections to other machines, and the interface that they go through."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from peerd import network
from peerd.connection import Connection
from peerd.dialler import Dialler
from peerd.errors import Code
from peerd.node import Node
from peerd.registry import Identity, Registry
from unit.support import LOCALHOST, FakePeers, settings


class Machine:
    """A machine with two connections, and settings that change."""

    def __init__(self, peers: FakePeers) -> None:
        self.config = settings(vpn_interface="lo", port=peers.port)
        self.dialler = Dialler(lambda: self.config)
        self.links: list[Connection] = []

    @property
    def usable(self) -> list[bool]:
        return [link.usable for link in self.links]


@asynccontextmanager
async def connected() -> AsyncIterator[Machine]:
    async with FakePeers().serving() as peers:
        machine = Machine(peers)
        machine.links += [await machine.dialler.connect(address) for address in (LOCALHOST, "127.0.0.2")]
        try:
            yield machine
        finally:
            for link in machine.links:
                link.abort()


def test_a_connection_goes_through_the_interface_of_the_vpn() -> None:
    async def main() -> None:
        async with connected() as machine:
            for link in machine.links:
                assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
            machine.dialler.renew()
            assert machine.usable == [True, True]

    asyncio.run(main())


def test_connections_end_when_the_vpn_is_behind_another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected() as machine:
            machine.config = settings(vpn_interface="no-such")
            # Nothing is there to make others with: whether these still serve will be seen.
            machine.dialler.renew()
            assert machine.usable == [True, True]
            monkeypatch.setattr(network, "interface_address", lambda interface: "10.0.0.4")
            machine.links[0].abort()
            machine.dialler.renew()
            assert machine.usable == [False, False]
            machine.dialler.renew()

    asyncio.run(main())


def test_an_interface_that_only_has_the_name_of_the_former_is_another() -> None:
    class Kept:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            raise OSError(19, "No such device")

    kept: object = Kept()
    assert not network.is_bound_to(kept, "wg0")  # type: ignore[arg-type]


def test_who_has_the_leaders_address_elsewhere_is_not_believed_to_be_the_leader() -> None:
    async def main() -> None:
        registry = Registry(":memory:")
        registry.set_identity(Identity("worker", "laptop", "127.0.0.4"))
        async with FakePeers().serving() as peers:
            config = settings(vpn_interface="no-such", port=peers.port)
            node = Node(registry, lambda: config, lambda: None)
            node.start()
            assert node.link
            error = await node.link.outcome(5)
            assert error
            assert error.code is Code.NOT_CONNECTED
            assert "(there is no interface no-such)" in error.text
            with pytest.raises(OSError, match="there is no interface no-such"):
                await node.pool.request("127.0.0.4", "getPeerInfo", {})
            assert peers.accepted == 0
            config = settings(vpn_interface="lo", port=peers.port)
            node.reloaded()
            wire = await peers.links.get()
            await wire.link.expect("registerPeer")
            await node.close()
        registry.close()

    asyncio.run(main())
