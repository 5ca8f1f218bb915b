"""What is asked of the kernel and of WireGuard about addresses."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

import pytest

from peerd import network, turns
from unit.support import IP_PKTINFO, LOCALHOST, children, readable

DUMP = """private\tpublic\t51820\toff
key-2\t(none)\t198.51.100.2:51820\t10.0.0.2/32\t1700000000\t1\t2\toff
key-4\t(none)\t(none)\t10.0.0.4/32,fd00::4/128,10.0.4.0/24\t0\t0\t0\t25
key-9\t(none)\t(none)\t0.0.0.0/0,::/0\t0\t0\t0\toff
key-0\t(none)\t(none)\t(none)\t0\t0\t0\toff
"""


@pytest.mark.parametrize(
    ("address", "key"),
    [("10.0.0.2", "key-2"), ("10.0.0.4", "key-4"), ("10.0.4.77", "key-4"), ("10.0.0.3", "key-9"), ("1.1.1.1", "key-9")],
)
def test_the_key_of_an_address_is_that_of_the_most_specific_route(address: str, key: str) -> None:
    assert network.KeyTable(DUMP).of(address) == key


@pytest.mark.parametrize(
    "dump",
    [
        *("", "\n", "private\tpublic\t51820\toff\n", "x\ny\nz", "p\nkey\t\t\t\n", "p\nkey\t(none)\t(none)\t(none)\n"),
        "p\nkey\t(none)\t(none)\t10.0.0.3/32,x,10.0.0.999/32\n",
    ],
)
def test_an_address_that_nobody_routes_has_no_key(dump: str) -> None:
    assert network.KeyTable(dump).of("10.0.0.2") == ""


def test_the_line_of_the_interface_itself_is_no_peer() -> None:
    assert network.KeyTable("key\t(none)\t(none)\t10.0.0.2/32\t0\t0\t0\toff\n").of("10.0.0.2") == ""


def fake_wg(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "wg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_the_key_comes_from_wg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dump").write_text(DUMP)
    fake_wg(tmp_path, f'[ "$*" = "show wg0 dump" ] && cat {tmp_path}/dump', monkeypatch)
    assert asyncio.run(network.public_keys("wg0")).of("10.0.0.4") == "key-4"


@pytest.mark.parametrize("script", ["exit 1", "printf '\\377\\n\\377\\t\\t\\t10.0.0.4/33\\n'", "echo no >&2; kill $$"])
def test_a_wg_that_fails_knows_no_key(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wg(tmp_path, script, monkeypatch)
    assert asyncio.run(network.public_keys("wg0")).of("10.0.0.4") == ""


def test_without_wg_no_key_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(network.public_keys("wg0")).of("10.0.0.4") == ""


def test_a_wg_that_does_not_answer_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_WG_TIMEOUT", 0.05)
    fake_wg(tmp_path, "exec sleep 1000", monkeypatch)
    assert asyncio.run(network.public_keys("wg0")).of("10.0.0.4") == ""


def test_a_wg_that_nobody_waits_for_any_more_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "runs")
    fake_wg(tmp_path, f"echo >{tmp_path}/runs; exec sleep 1000", monkeypatch)
    runs = os.open(tmp_path / "runs", os.O_RDONLY | os.O_NONBLOCK)

    async def main() -> None:
        asking = asyncio.create_task(network.public_keys("wg0"))
        await readable(runs)
        # asyncio has made its own of the process, too.
        await turns.let_pass(20)
        asking.cancel()
        await asyncio.wait((asking,))
        assert children() == {}

    try:
        asyncio.run(main())
    finally:
        os.close(runs)


def test_the_address_of_an_interface_is_found() -> None:
    assert network.interface_address("lo") == LOCALHOST


@pytest.mark.parametrize("name", ["no-such", "", "a" * 15, "é" * 15])
def test_an_interface_that_is_not_there_has_no_address(name: str) -> None:
    assert network.interface_address(name) is None


@pytest.mark.parametrize("address", [LOCALHOST, "127.1.2.3"])
def test_an_address_of_this_machine_is_its_own(address: str) -> None:
    assert network.is_own_address(address)


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7", "unknown"])
def test_another_address_is_not(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object) -> None:
        raise AssertionError("no name is looked up")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert not network.is_own_address(address)


def accepted(*options: tuple[int, int, int]) -> tuple[socket.socket, socket.socket]:
    """A connection over loopback, as its listener got it, and its other end."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        for option in options:
            listener.setsockopt(*option)
        other = socket.create_connection(listener.getsockname())
        return listener.accept()[0], other


def test_a_connection_came_through_its_interface_and_no_other() -> None:
    ours, other = accepted((socket.IPPROTO_IP, IP_PKTINFO, 1))
    with ours, other:
        assert network.ingress_interface(ours) == socket.if_nametoindex("lo")
        assert network.came_through(ours, "lo")
        assert not network.came_through(ours, "no-such")


def test_where_the_listener_did_not_ask_no_connection_came_through_any_interface() -> None:
    ours, other = accepted()
    with ours, other:
        assert network.ingress_interface(ours) is None
        assert not network.came_through(ours, "lo")


def test_a_connection_that_is_closed_came_through_none() -> None:
    ours, other = accepted((socket.IPPROTO_IP, IP_PKTINFO, 1))
    ours.close()
    with other:
        assert not network.came_through(ours, "lo")


def test_a_connection_is_made_to_notice_that_the_other_machine_is_gone() -> None:
    ours, other = accepted()
    with ours, other:
        network.tune(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert 0 < ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 15_000
        with network.pausable(ours):
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
        with network.pausable(ours):
            ours.close()


def test_the_hardware_address_is_one_or_none() -> None:
    assert re.fullmatch(r"(([0-9a-f]{2}:){5}[0-9a-f]{2})?", network.primary_mac_address())


def test_loopback_has_no_hardware_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "no-such")])
    monkeypatch.setattr(network, "Path", lambda _: Path("/nonexistent"))
    assert network.primary_mac_address() == ""


@pytest.mark.parametrize(("full", "name"), [("vps", "vps"), ("vps.example.org", "vps")])
def test_the_host_name_is_without_its_domain(full: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: full)
    assert network.hostname() == name


def test_a_network_that_does_not_change_calls_nobody_and_the_watch_leaves_nothing() -> None:
    calls: list[None] = []

    async def main() -> None:
        watch = network.NetworkWatch(lambda: calls.append(None))
        watch.close()

    asyncio.run(main())
    assert calls == []
