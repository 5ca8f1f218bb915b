"""Outages: of the disk, of the database, of the leader and of the network. Peers that know each other go on working."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab, Machine
from lab.host import host

from .conftest import PEERS, UNITS, wait_for_peers
from .test_options import d

STATE = "/var/lib/peerd"
# So many starts within seconds are more than systemd does by itself.
START = f"systemctl reset-failed {UNITS}; systemctl start {UNITS}"
SET_ASIDE = "a311b083399240eaa617265425e578a1"
RESTORED = "b337409d296b40b591a36d2d731bf30d"
HARM = {
    "torn": f"dd if=/dev/urandom of={STATE}/peerd.db bs=4096 seek=1 count=3 conv=notrunc status=none",
    "short": f"truncate -s 5000 {STATE}/peerd.db",
    "empty": f"truncate -s 0 {STATE}/peerd.db",
    "garbage": f"head -c 30000 /dev/urandom >{STATE}/peerd.db",
    "newer": f"python3 -c \"import sqlite3; sqlite3.connect('{STATE}/peerd.db').execute('PRAGMA user_version = 99')\"",
}
LOSS, DELAY = "0.3", "0.2"
LOSSY = "192.168.77.250"


def registry(machine: Machine) -> dict[str, str]:
    return {peer["peer_id"]: peer["ip_address"] for peer in json.loads(machine.out("d listPeers"))}


def records(machine: Machine, message_id: str) -> int:
    return len(machine.out(f"journalctl -q -t peerd -o cat --no-pager MESSAGE_ID={message_id}").splitlines())


class Watching:
    """What listPeers shows on a machine, all the time that the block runs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.wrong: list[str] = []
        self.looked = 0

    def _look(self) -> None:
        while not self._over.is_set():
            shown = self._machine.run("d listPeers | jq -c 'map([.peer_id, .ip_address]) | sort'", check=False)
            self.looked += 1
            if json.loads(shown.stdout or "null") != sorted([*item] for item in PEERS.items()):
                self.wrong.append(shown.stdout.decode())

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["vps", "desktop"], ids=["leader", "worker"])
def test_a_database_that_cannot_be_used_costs_nobody_anything(lab: Lab, name: str, harm: str) -> None:
    machine, other = lab[name], lab["laptop"]
    status = machine.out("d getPeerStatus | jq -c '[.role, .peer_id, .is_leader]'")
    before = records(machine, SET_ASIDE), records(machine, RESTORED)
    with Watching(other) as watching:
        machine.run(f"systemctl stop {UNITS}; {HARM[harm]}; rm -f {STATE}/peerd.db-wal; {START}")
        for one in PEERS:
            wait_for_peers(lab[one])
        other.wait_until(lambda: watching.looked > 3)
    assert not watching.wrong
    assert machine.out("d getPeerStatus | jq -c '[.role, .peer_id, .is_leader]'") == status
    assert registry(machine) == PEERS
    assert other.out(d("--shellCmd", "hostname", peer=name)) == name
    after = records(machine, SET_ASIDE), records(machine, RESTORED)
    assert after == (before[0] + (harm != "empty"), before[1] + 1)
    assert machine.ok(f"ls {STATE}/peerd.db.aside-*") or harm == "empty"


def test_a_leader_killed_with_its_registry_torn_is_back_with_all_peers(lab: Lab) -> None:
    vps = lab["vps"]
    command = d("--shellCmd", "echo up; read x; echo $x", "--stdin", peer="laptop", directory="/")
    with lab["desktop"].popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        with Watching(lab["desktop"]) as watching:
            killed = "systemctl kill --kill-whom=main --signal=KILL peerd.service"
            vps.run(f"{killed}; {HARM['garbage']}; rm -f {STATE}/peerd.db-wal")
            vps.wait_until("d ping", 30)
            for name in PEERS:
                wait_for_peers(lab[name])
        assert not watching.wrong
        process.stdin.write(b"through\n")
        process.stdin.close()
        assert process.stdout.read() == b"through\n"
        assert process.wait(30) == 0
    assert vps.out("d getPeerStatus | jq -r .role") == "leader"
    assert registry(vps) == PEERS


def test_a_history_that_cannot_be_used_begins_anew(lab: Lab) -> None:
    vps = lab["vps"]
    vps.run(f"systemctl stop {UNITS}; head -c 30000 /dev/urandom >{STATE}/jobs.db; {START}")
    for name in PEERS:
        wait_for_peers(lab[name])
    assert json.loads(vps.out("d history")) == []
    assert lab["desktop"].out(d("--shellCmd", "echo ran; exit 3", peer="vps"), check=False) == "ran"
    assert [entry["exit_status"] for entry in json.loads(vps.out("d history"))] == [3]
    assert vps.ok(f"ls {STATE}/jobs.db.aside-*")


@contextmanager
def small_disk(machine: Machine) -> Iterator[None]:
    """Put the state on a disk of its own that is small; afterwards it is where it was, and as it was."""
    machine.run(
        f"systemctl stop {UNITS}; cp -a {STATE} /root/state; mount -t tmpfs -o size=2M,mode=700 small {STATE}; "
        f"cp -a /root/state/. {STATE}/; {START}"
    )
    try:
        yield
    finally:
        machine.run(f"systemctl stop {UNITS}; umount {STATE}; rm -r /root/state; {START}")


def fill(machine: Machine) -> None:
    machine.run(f"cat /dev/zero >{STATE}/filler", check=False)
    assert machine.out(f"df --output=avail {STATE} | tail -n 1").strip() == "0"


def refused(machine: Machine, command: str | Sequence[str], sentence: str) -> None:
    """A command fails with this sentence and says what to do next."""
    done = machine.run(command, check=False)
    assert done.returncode == 255, done
    assert sentence in done.stderr.decode()
    assert f"df {STATE}" in done.stderr.decode()


def test_a_full_disk_stops_changes_and_nothing_else(lab: Lab) -> None:
    vps, desktop, laptop = lab["vps"], lab["desktop"], lab["laptop"]
    sentence = "The state of vps cannot be stored: "
    with small_disk(vps):
        for name in PEERS:
            wait_for_peers(lab[name])
        fill(vps)
        for turn in ("running", "restarted"):
            refused(vps, "d setPeerConfig --id other", sentence)
            refused(vps, "d deletePeer --peer laptop", sentence)
            refused(desktop, "d deletePeer --peer laptop", sentence)
            assert json.loads(vps.out("d getPeerStatus"))["peer_id"] == "vps"
            assert registry(vps) == registry(laptop) == PEERS
            done = desktop.run(d("--shellCmd", "seq 100000 | sha256sum; exit 7", peer="vps"), check=False)
            digest = hashlib.sha256("".join(f"{n}\n" for n in range(1, 100001)).encode()).hexdigest()
            assert (done.returncode, done.stdout.split()[0].decode()) == (7, digest), turn
            assert vps.out(d("--shellCmd", "hostname", peer="laptop")) == "laptop"
            if turn == "running":
                vps.run("systemctl restart peerd")
                # Those that were registered come back: there is nothing to store.
                for name in PEERS:
                    wait_for_peers(lab[name])
        vps.run(f"rm {STATE}/filler")
        vps.wait_until("d deletePeer --peer laptop", 30)
        fill(vps)
        refused(laptop, "d registerWorker", sentence)
        assert sentence in laptop.out("d getPeerStatus | jq -r .leader_error")
        assert registry(vps).keys() == {"vps", "desktop"}
        vps.run(f"rm {STATE}/filler")
        # It goes on trying, and needs nobody to tell it.
        for name in PEERS:
            wait_for_peers(lab[name])
    for name in PEERS:
        wait_for_peers(lab[name])


def test_a_read_only_disk_stops_changes_and_nothing_else(lab: Lab) -> None:
    vps, desktop = lab["vps"], lab["desktop"]
    sentence = "The state of desktop cannot be stored: Read-only file system"
    desktop.run(
        f"systemctl stop {UNITS}; mount --bind {STATE} {STATE}; mount -o remount,bind,ro {STATE}; {START}", timeout=60
    )
    try:
        wait_for_peers(desktop)
        refused(desktop, "d setPeerConfig --id other", sentence)
        refused(desktop, "d registerWorker --leader 10.0.0.4", sentence)
        refused(vps, d("--detach", "--shellCmd", "true", peer="desktop"), sentence)
        assert desktop.out(d("--shellCmd", "hostname", peer="laptop")) == "laptop"
        assert vps.out(d("--shellCmd", "hostname", peer="desktop")) == "desktop"
        assert json.loads(desktop.out("d getPeerStatus"))["leader_address"] == "10.0.0.1"
    finally:
        desktop.run(f"umount {STATE}")
    # Without a restart.
    desktop.wait_until("d setPeerConfig --id desktop", 30)
    desktop.run("systemctl restart peerd")
    assert not desktop.ok(f"ls {STATE} | grep aside | grep -v aside-[0-9T]*Z")
    for name in PEERS:
        wait_for_peers(lab[name])


def test_a_leader_that_is_away_for_long_is_joined_again_within_seconds(lab: Lab) -> None:
    vps, desktop = lab["vps"], lab["desktop"]
    vps.run(f"systemctl stop {UNITS}")
    try:
        desktop.wait_until("d getPeerStatus | jq -e '.connected_to_leader | not'", 40)
        status = json.loads(desktop.out("d getPeerStatus"))
        assert status["leader_error"].startswith("Not connected to leader (")
        assert status["known_peers"] == 3
        for name in ("desktop", "laptop"):
            other = {"desktop": "laptop", "laptop": "desktop"}[name]
            assert lab[name].out(d("--shellCmd", "hostname", peer=other)) == other
        # One that was started meanwhile knows none, but what it was.
        desktop.run("systemctl restart peerd")
        assert json.loads(desktop.out("d getPeerStatus"))["role"] == "worker"
        assert desktop.run(d("--shellCmd", "hostname", peer="laptop"), check=False).returncode == 255
    finally:
        vps.run(START)
    for name in ("desktop", "laptop"):
        lab[name].wait_until("d getPeerStatus | jq -e .connected_to_leader", 10)
    for name in PEERS:
        wait_for_peers(lab[name])


def test_a_cut_cable_is_noticed_and_mended_by_itself(lab: Lab) -> None:
    vps, laptop = lab["vps"], lab["laptop"]
    laptop.link_down()
    try:
        done = vps.run(d("--shellCmd", "hostname", peer="laptop"), check=False, timeout=40)
        assert (done.returncode, done.stdout) == (255, b"")
        assert done.stderr.startswith(b"Failed to connect to peer: laptop (10.0.0.4)\n")
        vps.wait_until("d getPeerInfo --peer laptop | jq -e '.is_online | not'", 40)
        laptop.wait_until("d getPeerStatus | jq -e '.connected_to_leader | not'", 40)
    finally:
        laptop.link_up()
    wait_for_peers(vps)
    assert vps.out(d("--shellCmd", "hostname", peer="laptop")) == "laptop"


def test_a_worker_whose_address_changes_is_told_why_and_let_in_when_approved(lab: Lab) -> None:
    vps, laptop = lab["vps"], lab["laptop"]
    key = laptop.out("wg show wg0 public-key")
    vps.run(f"wg set wg0 peer {key} allowed-ips 10.0.0.4/32,10.0.0.5/32")
    try:
        laptop.run("ip address del 10.0.0.4/24 dev wg0; ip address add 10.0.0.5/24 dev wg0")
        laptop.wait_until(
            "d getPeerStatus | jq -e '.leader_error == \"Peer id is taken: laptop belongs to 10.0.0.4\"'", 60
        )
        shown = {peer["ip_address"]: peer["state"] for peer in json.loads(vps.out("d listPeers"))}
        assert (shown["10.0.0.4"], shown["10.0.0.5"]) == ("registered", "id-taken")
        vps.run("d approvePeer --peer laptop")
        laptop.run("d registerWorker")
        wait_for_peers(vps)
        assert registry(vps)["laptop"] == "10.0.0.5"
        assert lab["desktop"].out(d("--shellCmd", "hostname", peer="laptop")) == "laptop"
    finally:
        laptop.run("ip address del 10.0.0.5/24 dev wg0; ip address add 10.0.0.4/24 dev wg0")
        vps.run(f"wg set wg0 peer {key} allowed-ips 10.0.0.4/32; d deletePeer --peer laptop")
        laptop.wait_until("d registerWorker", 60)
    for name in PEERS:
        wait_for_peers(lab[name])
    assert registry(vps) == PEERS


# In logind's place, for as long as it takes to say that the machine woke up.
WAKE = """
import asyncio
from dbus_next import BusType, Message
from dbus_next.aio import MessageBus

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    await bus.request_name("org.freedesktop.login1")
    path, interface = "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
    await bus.send(Message.new_signal(path, interface, "PrepareForSleep", "b", [False]))
    # Which is answered once what was sent before has been passed on.
    await bus.introspect("org.freedesktop.DBus", "/org/freedesktop/DBus")

asyncio.run(main())
"""


def test_a_machine_that_wakes_up_looks_at_its_connections(lab: Lab) -> None:
    """Waking up, in its parts: a machine that slept for longer than its leader waited, and the word of logind."""
    vps, laptop = lab["vps"], lab["laptop"]
    daemon = laptop.out("systemctl show -P MainPID peerd")
    laptop.link_down()
    laptop.run(f"kill -STOP {daemon}")
    vps.wait_until("d getPeerInfo --peer laptop | jq -e '.is_online | not'", 40)
    laptop.link_up()
    laptop.run(f"kill -CONT {daemon}")
    names = "busctl --system list --no-legend --no-pager"
    for name in laptop.out(f"{names} | awk -v pid={daemon} '$2 == pid && /^:/ {{print $1}}'").split():
        laptop.run(
            f"dbus-send --system --type=signal --dest={name} /org/freedesktop/login1 "
            "org.freedesktop.login1.Manager.PrepareForSleep boolean:false"
        )
    said = "journalctl -q -t peerd -o cat --no-pager | grep '^This machine has slept'"
    wait_for_peers(vps)
    # Whoever sends it to peerd alone may be anybody.
    assert not laptop.ok(said)
    laptop.run("systemctl mask --runtime --now systemd-logind")
    try:
        laptop.run(["python3", "-c", WAKE])
        laptop.wait_until(said)
    finally:
        laptop.run("systemctl unmask --runtime systemd-logind")
    wait_for_peers(vps)
    assert vps.out(d("--shellCmd", "hostname", peer="laptop")) == "laptop"


@contextmanager
def lossy(machine: Machine, hub: Machine) -> Iterator[None]:
    """Lead a machine's WireGuard over a stretch of the underlay that is bad for what it sends."""
    bridge = machine._bridge
    host("ip", "-n", bridge, "address", "add", f"{LOSSY}/24", "dev", "br0")
    program = Path(__file__).parents[1] / "lab/lossy.py"
    keys = {one: one.out("wg show wg0 public-key") for one in (machine, hub)}
    ports = {one: one.out("wg show wg0 listen-port") for one in (machine, hub)}
    ends = [f"{LOSSY}:1", f"{machine.underlay}:{ports[machine]}", f"{LOSSY}:2", f"{hub.underlay}:{ports[hub]}"]
    command = ["ip", "netns", "exec", bridge, sys.executable, "-B", str(program), *ends, LOSS, DELAY]

    def lead(to_hub: str, to_machine: str) -> None:
        # A packet that is still on the other way would lead back to it.
        def led() -> bool:
            for one, other, endpoint in ((machine, hub, to_hub), (hub, machine, to_machine)):
                one.run(f"wg set wg0 peer {keys[other]} endpoint {endpoint}")
            hub.run(f"ping -q -c 5 -i 0.2 {machine.address}", check=False)
            return all(
                f"{keys[other]}\t{endpoint}" in one.out("wg show wg0 endpoints")
                for one, other, endpoint in ((machine, hub, to_hub), (hub, machine, to_machine))
            )

        machine.wait_until(led, 30)

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            lead(ends[0], ends[2])
            yield
        finally:
            lead(ends[3], ends[1])
            process.terminate()
            host("ip", "-n", bridge, "address", "del", f"{LOSSY}/24", "dev", "br0")


def test_commands_over_a_bad_network_have_their_output_and_status(lab: Lab) -> None:
    vps, desktop, laptop = lab["vps"], lab["desktop"], lab["laptop"]
    with lossy(laptop, vps):
        assert not vps.ok("ping -q -c 20 -i 0.2 10.0.0.4 | grep ' 0% packet loss'")
        for caller, peer in ((vps, "laptop"), (desktop, "laptop"), (laptop, "desktop")) * 2:
            command = d("--timeout", "60", "--shellCmd", "seq 20000; echo end >&2; exit 5", peer=peer)
            done = caller.run(command, check=False, timeout=120)
            assert done.stderr == b"end\n"
            assert done.returncode == 5
            assert done.stdout == "".join(f"{n}\n" for n in range(1, 20001)).encode()
    for name in PEERS:
        wait_for_peers(lab[name])


def test_a_command_whose_machine_goes_down_is_heard_to_its_last_word(lab: Lab) -> None:
    desktop, laptop, pipe = lab["desktop"], lab["laptop"], subprocess.PIPE
    run = ["d", "execOnPeer", "--json", "--peer", "laptop", "--directory", "/", "--timeout", "100", "--shellCmd"]
    trap = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep .2; done"
    with (
        desktop.popen([*run, "echo up; exec sleep 80"], stdout=pipe) as deaf,
        desktop.popen([*run, trap], stdout=pipe) as trapping,
    ):
        assert deaf.stdout
        assert trapping.stdout
        for scope in ("sleep 80", "trap"):
            laptop.wait_until(f"systemctl list-units --plain 'peerd-exec-*.scope' | grep -q '{scope}'")
        laptop.stop()
        laptop.start()
        lost, ended = json.load(deaf.stdout), json.load(trapping.stdout)
    assert (lost["outcome"], lost["error"]["code"], lost["stdout"]) == ("lost", "cut-off", "up\n")
    assert (ended["outcome"], ended["exit_status"], ended["stdout"]) == ("exited", 3, "up\nbye\n")
    wait_for_peers(desktop)
