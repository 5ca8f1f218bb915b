"""Bounds of memory, tasks and CPU, where the kernel has all three: on a guest with a kernel of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.guest import Guest

from .conftest import EXPECTED, SUITES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

MEBI = 1024 * 1024
SCOPES_GONE = "! systemctl list-units --plain --no-legend 'peerd-exec-*.scope' | grep ."
SLICE = "/sys/fs/cgroup/peerd.slice/peerd-exec.slice"

# As many children as it is allowed to have; all of them stay until they are ended.
COUNT_FORKS = """
import os, signal
count = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except BlockingIOError:
    print(count)
"""

BOMB = """
import os
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
"""


@pytest.fixture(scope="module", params=SUITES, ids=SUITES)
def guest(request: pytest.FixtureRequest, package: Path) -> Iterator[Guest]:
    """A guest with the package installed; afterwards its journal is read."""
    with Guest(request.param, {package.name: package}) as machine:
        # What it depends on is there; apt-get itself would take half a minute on an emulated processor.
        machine.run(f"dpkg --install /run/guest/{package.name}", timeout=400)
        machine.wait_until("d ping")
        yield machine
        warnings = machine.out("journalctl -q -t peerd -p warning -o cat --no-pager").splitlines()
        assert not [line for line in warnings if not EXPECTED.match(line)]
        assert "Traceback" not in machine.out("journalctl -q -u peerd.service -o cat --no-pager")


@pytest.fixture(autouse=True)
def same_daemon(guest: Guest) -> Iterator[None]:
    """After each test it is still the same daemon, it runs commands, and no scope is left."""
    pid = guest.out("systemctl show -P MainPID peerd")
    yield
    guest.wait_until(SCOPES_GONE)
    assert record(guest, "--shellCmd", "echo well")["stdout"] == "well\n"
    assert guest.out("systemctl show -P MainPID peerd") == pid


def record(guest: Guest, *arguments: str) -> dict[str, object]:
    """The record of a command that the guest ran on itself."""
    call = ["d", "execOnPeer", "--peer", "guest", "--directory", "/", "--json", *arguments]
    result = guest.run(call, check=False, timeout=120)
    found: dict[str, object] = json.loads(result.stdout)
    assert found["exit_status"] == result.returncode
    return found


def test_the_tasks_of_a_command_are_bounded_to_the_last_one(guest: Guest) -> None:
    found = record(guest, "--tasks", "20", "--", "python3", "-c", COUNT_FORKS)
    # With the interpreter itself that makes 20.
    assert (found["outcome"], found["stdout"], found["left_behind"]) == ("exited", "19\n", 19)


def test_a_fork_bomb_is_contained_and_ends(guest: Guest) -> None:
    call = ["d", "execOnPeer", "--peer", "guest", "--directory", "/", "--json", "--tasks", "20", "--timeout", "10"]
    call += ["--", "python3", "-c", BOMB]
    guest.run(["systemd-run", "--quiet", "--unit=bomb", "-p", "StandardOutput=file:/root/bomb", *call])
    # It is at its bound: the kernel has refused a fork.
    guest.wait_until(f"grep -q 'max [1-9]' {SLICE}/peerd-exec-*.scope/pids.events")
    assert int(guest.out(f"cat {SLICE}/pids.current")) <= 21
    assert record(guest, "--shellCmd", "echo beside it")["stdout"] == "beside it\n"
    guest.wait_until("! systemctl is-active --quiet bomb")
    found = json.loads(guest.out("cat /root/bomb"))
    assert (found["outcome"], found["exit_status"]) == ("timeout", 124)
    assert int(guest.out(f"cat {SLICE}/pids.current")) == 0


@pytest.mark.parametrize("attempt", range(3))
def test_a_command_over_its_memory_ends_as_oom(guest: Guest, attempt: int) -> None:
    found = record(guest, "--memory", "48M", "--shellCmd", f"echo {attempt}; tail /dev/zero")
    assert (found["outcome"], found["exit_status"], found["stdout"]) == ("oom", 255, f"{attempt}\n")
    error = found["error"]
    assert isinstance(error, dict)
    assert (error["code"], error["message"]) == ("out-of-memory", "Out of memory: the command on guest was stopped")
    assert isinstance(found["memory_peak"], int)
    assert 40 * MEBI < found["memory_peak"] <= 48 * MEBI
    query = f"journalctl -q -t peerd -o json PEERD_EXEC_ID={found['exec_id']} PEERD_OUTCOME=oom"
    guest.wait_until(f"{query} | grep -q PEERD_EXIT_STATUS")


def test_the_peak_of_memory_is_in_every_record(guest: Guest) -> None:
    hungry = record(guest, "--", "python3", "-c", "len(bytes(60 << 20).replace(b'\\0', b'1'))")["memory_peak"]
    modest = record(guest, "--", "true")["memory_peak"]
    assert isinstance(hungry, int)
    assert isinstance(modest, int)
    assert hungry > modest + 60 * MEBI


def test_a_share_of_the_cpu_is_not_exceeded(guest: Guest) -> None:
    spin = "timeout 4 sh -c 'while :; do :; done'; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpu.stat"
    found = record(guest, "--cpu", "20%", "--shellCmd", spin)
    statistics = dict(line.split() for line in str(found["stdout"]).splitlines())
    assert int(statistics["nr_throttled"]) > 0
    assert isinstance(found["cpu"], float)
    assert isinstance(found["duration"], float)
    assert found["cpu"] < 0.4 * found["duration"]


# A far machine in a network namespace: 10.0.0.2 through the kernel's own WireGuard over a cable, on which it also
# forges 10.0.0.3.
FAR_MACHINE = """
    set -e
    key() { wg genkey | tee /root/$1.key | wg pubkey >/root/$1.pub; }
    key near; key far
    ip netns add far
    ip link add cable type veth peer name eth0 netns far
    ip address add 192.168.77.1/24 dev cable; ip link set cable up
    ip -n far address add 192.168.77.2/24 dev eth0; ip -n far link set eth0 up; ip -n far link set lo up
    ip link add wg0 type wireguard
    ip -n far link add wg0 type wireguard
    wg set wg0 private-key /root/near.key listen-port 51820 peer $(cat /root/far.pub) allowed-ips 10.0.0.2/32
    ip netns exec far wg set wg0 private-key /root/far.key peer $(cat /root/near.pub) \
        allowed-ips 10.0.0.1/32 endpoint 192.168.77.1:51820
    ip address add 10.0.0.1/24 dev wg0; ip link set wg0 up
    ip -n far address add 10.0.0.2/32 dev wg0; ip -n far link set wg0 up
    ip -n far route add 10.0.0.1 dev wg0
    ip -n far address add 10.0.0.3/32 dev eth0
    ip route add 10.0.0.3 dev cable
    sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.cable.rp_filter=0
"""
HELLO = '{"type":"hello","protocol":1,"version":"test"}'


def test_the_kernels_wireguard_is_told_from_a_neighbour_who_forges(guest: Guest) -> None:
    guest.run(FAR_MACHINE)
    # Only a leader that takes new peers greets who is none.
    guest.run("d setPeerConfig --role leader --id guest")
    dial = f"echo '{HELLO}' | ip netns exec far timeout 20 nc -q 10 -p"
    # The first byte of an answer ends the wait for it.
    through = guest.out(f"{dial} 701 -s 10.0.0.2 10.0.0.1 3600 | head -1")
    assert json.loads(through)["type"] == "hello"
    guest.run("ip -n far route replace 10.0.0.1 via 192.168.77.1 dev eth0")
    assert guest.out(f"{dial} 702 -s 10.0.0.3 10.0.0.1 3600 | head -1") == ""
    refused = "journalctl -q -t peerd -o cat PEERD_EVENT=connection-refused"
    guest.wait_until(f"{refused} | grep -qx 'Connection from 10.0.0.3 refused: not through the VPN'")
