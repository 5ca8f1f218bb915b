"""peerd on D-Bus, through busctl and through a program written with another library."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Machine

from peerd import busapi
from peerd.commands import Access

from .conftest import PEERS, UNITS, wait_for_peers

OBJECT = f"{busapi.NAME} {busapi.ROOT}"
MANAGER = f"{OBJECT} {busapi.MANAGER}"
EXEC = "ExecOnPeer sssa{sv}"
AS_ALICE = "setpriv --reuid=alice --regid=alice --init-groups"
AS_BOB = "setpriv --reuid=bob --regid=bob --init-groups"

# Prints signals as they come, a JSON array a line: the property's or member's name and what it says.
WATCH = f"""
import json, os
from gi.repository import Gio, GLib

bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
manager = Gio.DBusProxy.new_sync(bus, 0, None, "{busapi.NAME}", "{busapi.ROOT}", "{busapi.MANAGER}")
show = lambda *words: print(json.dumps(words), flush=True)
manager.connect("g-signal", lambda proxy, sender, member, body: show(member, *body.unpack()))
manager.connect("g-properties-changed", lambda proxy, changed, gone: show("Changed", changed.unpack()))
peer = manager.GetPeerInfo("(s)", "laptop")
show("Start", manager.get_cached_property("PeerId").unpack(), peer["ip_address"])
outcome, status, out, err = manager.ExecOnPeer("(sssa{{sv}})", "laptop", "/tmp", "echo $A; exit 4",
                                               {{"env": GLib.Variant("as", ["A=gio"])}})
show("Ran", outcome, status, bytes(out).decode(), bytes(err).decode())
started, fds = bus.call_with_unix_fd_list_sync(
    "{busapi.NAME}", "{busapi.ROOT}", "{busapi.MANAGER}", "StartOnPeer",
    GLib.Variant("(sssa{{sv}})", ("laptop", "/tmp", "echo begun; read line </tmp/go; echo $line; exit 5", {{}})),
    None, 0, -1, None, None)
job, out, err = started.unpack()
stream = os.fdopen(fds.get(out))
show("Begun", stream.readline())
command = Gio.DBusProxy.new_sync(bus, 0, None, "{busapi.NAME}", job, "{busapi.JOB}", None)
show("Job", command.get_cached_property("Peer").unpack(), command.get_cached_property("Directory").unpack())
show("Streamed", stream.read())
try:
    manager.RemotePull("(sa{{sv}})", "nobody", {{}})
except GLib.Error as error:
    show("Error", Gio.DBusError.get_remote_error(error))
GLib.MainLoop().run()
"""

# Reads the beginning of a command on this machine, closes its standard output, and waits to hear of its end.
LEAVE = f"""
import os, time
from gi.repository import Gio, GLib

bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
loop = GLib.MainLoop()


def finished(*heard):
    print(*heard[-1].unpack()[2:], time.monotonic() - left < 5)
    loop.quit()


bus.signal_subscribe("{busapi.NAME}", "{busapi.MANAGER}", "JobFinished", "{busapi.ROOT}", None, 0, finished)
arguments = GLib.Variant("(sssa{{sv}})", ("desktop", "/tmp", "while echo x; do sleep 0.1; done", {{}}))
where = "{busapi.NAME}", "{busapi.ROOT}", "{busapi.MANAGER}", "StartOnPeer"
started, fds = bus.call_with_unix_fd_list_sync(*where, arguments, None, 0, -1, None, None)
stream = fds.get(started.unpack()[1])
del fds
os.read(stream, 1)
os.close(stream)
left = time.monotonic()
loop.run()
"""


def call(machine: Machine, arguments: str, prefix: str = "") -> Any:
    """Call a method of the manager by busctl: the data of the reply."""
    return json.loads(machine.out(f"{prefix} busctl --json=short -- call {MANAGER} {arguments}"))["data"]


def refused(machine: Machine, arguments: str, prefix: str = "") -> str:
    """What busctl says of a call that fails."""
    result = machine.run(f"{prefix} busctl -- call {MANAGER} {arguments}", check=False)
    assert result.returncode == 1, result.stdout
    return result.stderr.decode()


def error_of(machine: Machine, arguments: str, prefix: str = "") -> str:
    """The name of the error that a call fails with."""
    result = machine.run(
        f"{prefix} dbus-send --system --print-reply --dest={OBJECT} {busapi.MANAGER}.{arguments}", check=False
    )
    assert result.returncode == 1, result.stdout
    return result.stderr.decode().split()[1].rstrip(":")


@pytest.fixture
def people(desktop: Machine) -> Machine:
    """A machine with alice, a member of the group, and bob, who is none."""
    desktop.run("id alice || useradd -m -G peerd alice; id bob || useradd -m bob")
    return desktop


def test_a_command_gives_outcome_status_and_both_streams_byte_for_byte(desktop: Machine) -> None:
    outcome, status, out, err = call(desktop, rf"""{EXEC} laptop /tmp 'pwd; printf "\\0\\377" >&2; exit 3' 0""")
    assert (outcome, status, bytes(out), bytes(err)) == ("exited", 3, b"/tmp\n", b"\0\377")


def test_options_are_those_of_d(desktop: Machine) -> None:
    options = "4 env as 1 A=b timeout d 5 user s nobody argv as 3 sh -c 'echo $A $(id -un)'"
    assert bytes(call(desktop, f"{EXEC} laptop / '' {options}")[2]) == b"b nobody\n"
    outcome, status, _, err = call(desktop, f"{EXEC} laptop / 'sleep 60' 1 timeout d 0.3")
    assert (outcome, status) == ("timeout", 124)
    assert bytes(err).startswith(b"Timeout waiting for response from laptop (0.3 s)\n")


def test_what_did_not_run_is_an_error_by_name_with_advice(desktop: Machine) -> None:
    said = refused(desktop, f"{EXEC} nas / true 0")
    assert said.startswith("Call failed: Peer not found: nas\n")
    assert "d registerWorker" in said
    assert error_of(desktop, "GetPeerInfo string:nas") == f"{busapi.NAME}.Error.PeerNotFound"
    assert "No such directory on laptop: /nowhere" in refused(desktop, f"{EXEC} laptop /nowhere true 0")
    for arguments in (
        "laptop opt true 0",
        "laptop / true 1 color s red",
        "laptop / true 1 peer s vps",
        "laptop / '' 0",
    ):
        assert refused(desktop, f"{EXEC} {arguments}")
    assert error_of(desktop, "GetPeerInfo string:a/b") == "org.freedesktop.DBus.Error.InvalidArgs"
    assert error_of(desktop, "GetPeerInfo int32:1") == "org.freedesktop.DBus.Error.InvalidArgs"
    assert error_of(desktop, "NoSuchMethod") == "org.freedesktop.DBus.Error.UnknownMethod"


def test_output_over_the_bound_is_an_error_and_the_command_runs_on(desktop: Machine, laptop: Machine) -> None:
    command = "head -c 9000000 /dev/zero; sleep 0.3; echo done >/tmp/ran-on"
    assert "Output too large for a reply: " in refused(desktop, f"{EXEC} laptop / '{command}' 0")
    assert laptop.read("/tmp/ran-on") == "done\n"
    assert len(call(desktop, f"{EXEC} laptop / 'head -c 1000000 /dev/zero' 0")[2]) == 1_000_000


def test_a_caller_that_goes_stops_its_command(desktop: Machine, laptop: Machine) -> None:
    with desktop.popen(f"busctl call {MANAGER} {EXEC} laptop / 'sleep 1111' 0") as waiting:
        laptop.wait_until("pgrep -f 'sleep 111[1]'", 20)
        waiting.terminate()
    laptop.wait_until("! pgrep -f 'sleep 111[1]'", 20)


def test_a_command_here_that_nobody_reads_is_stopped_at_once(desktop: Machine) -> None:
    desktop.write("/root/leave.py", LEAVE)
    assert desktop.out("timeout 60 python3 /root/leave.py") == "cancelled 130 True"


def test_every_command_is_a_method(desktop: Machine, vps: Machine) -> None:
    assert {peer["peer_id"]["data"] for peer in call(desktop, "ListPeers")[0]} == set(PEERS)
    assert call(desktop, "GetPeerInfo s laptop")[0]["ip_address"] == {"type": "s", "data": "10.0.0.4"}
    assert call(desktop, "GetPeerStatus")[0]["connected_to_leader"]["data"] is True
    assert call(desktop, "Ping") == ["pong"]
    assert call(desktop, "Ping a{sv} 1 peer s vps")[0].startswith("pong from vps")
    assert call(vps, "DbSanityCheck")[0]["role"]["data"] == "leader"
    assert call(desktop, "SetPeerConfig a{sv} 1 id s desktop")[0].startswith("Peer config saved. ")
    assert call(desktop, "Version") == [desktop.out("d version")]
    listed = {entry["command"]["data"] for entry in call(desktop, "ListCommands")[0]}
    assert {command.name for command in busapi.CALLABLE.values()} == listed - {"help"}
    wait_for_peers(desktop)


def test_objects_and_introspection(desktop: Machine) -> None:
    paths = {busapi.peer_path(peer_id): busapi.PEER for peer_id in PEERS}
    tree = desktop.out(f"busctl tree --list {busapi.NAME}").splitlines()
    assert {*paths, busapi.ROOT, busapi.JOBS} <= set(tree)
    for path in ("/", busapi.ROOT, busapi.PEERS, busapi.JOBS, *paths):
        xml = desktop.out(f"busctl --xml-interface introspect {busapi.NAME} {path}")
        assert xml == busapi.introspection(path, paths).strip()
        assert desktop.ok(f"busctl introspect {busapi.NAME} {path}")
    get = f"busctl get-property {busapi.NAME} {busapi.peer_path('laptop')} {busapi.PEER}"
    assert desktop.out(f"{get} PeerId IpAddress IsOnline").splitlines() == ['s "laptop"', 's "10.0.0.4"', "b true"]
    managed = desktop.out(f"busctl --json=short call {OBJECT} {busapi.OBJECT_MANAGER} GetManagedObjects")
    assert set(json.loads(managed)["data"][0]) == set(paths)
    properties = "Role PeerId LeaderAddress ConnectedToLeader Version"
    shown = desktop.out(f"busctl get-property {MANAGER} {properties}").splitlines()
    assert shown == ['s "worker"', 's "desktop"', 's "10.0.0.1"', "b true", f's "{desktop.out("d version")}"']


def test_root_the_group_and_neither(people: Machine) -> None:
    run = f"{EXEC} laptop / 'echo $PEERD_CALLER' 0"
    assert bytes(call(people, run, AS_ALICE)[2]) == b"desktop\n"
    people.wait_until("journalctl -q -t peerd PEERD_CALLER=alice@desktop -o cat | grep -q exited")
    for arguments in (run, "DeletePeer s laptop", "ListPeers"):
        assert "Access denied" in refused(people, arguments, AS_BOB)
    needed = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
    assert error_of(people, "DeletePeer string:laptop", AS_BOB) == needed
    # What the bus shows to everybody.
    assert people.out(f"{AS_BOB} busctl get-property {MANAGER} Role") == 's "worker"'
    assert not people.ok(f"{AS_BOB} busctl set-property {MANAGER} Role s leader")


def test_an_administrator_can_allow_one_kind_of_operation_to_somebody(people: Machine) -> None:
    rule = """polkit.addRule(function(action, subject) {
        if (action.id === "org.automatelinux.peerd1.run" && subject.user === "bob" &&
            action.lookup("peer") === "laptop" && action.lookup("command") === "hostname" &&
            action.lookup("directory") === "/" && action.lookup("user") === "root") return polkit.Result.YES;
    });"""
    people.write("/etc/polkit-1/rules.d/10-bob.rules", rule)
    try:
        allowed = f"{AS_BOB} busctl call {MANAGER} {EXEC} laptop / hostname 0"
        people.wait_until(lambda: people.ok(allowed), 20)
        assert "Access denied" in refused(people, f"{EXEC} laptop /tmp hostname 0", AS_BOB)
        assert "Access denied" in refused(people, f"{EXEC} vps / hostname 0", AS_BOB)
        # What changes the command is part of it.
        for more in ("env as 1 PATH=/tmp", "login b true"):
            assert "Access denied" in refused(people, f"{EXEC} laptop / hostname 1 {more}", AS_BOB)
    finally:
        people.run("rm /etc/polkit-1/rules.d/10-bob.rules")
    actions = people.out(f"pkaction | grep ^{busapi.NAME}").splitlines()
    assert actions == sorted(busapi.action(access) for access in Access)


@pytest.fixture
def watching(desktop: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """The program that prints signals, on desktop."""
    desktop.write("/root/watch.py", WATCH)
    with desktop.popen("exec python3 /root/watch.py", stdout=subprocess.PIPE) as program:
        yield program
        program.terminate()


def test_a_program_with_another_library_calls_and_hears_of_changes(
    desktop: Machine, laptop: Machine, watching: subprocess.Popen[bytes]
) -> None:
    assert watching.stdout
    laptop.run("rm -f /tmp/go; mkfifo /tmp/go")

    def expect(pattern: str) -> None:
        """Read until a line that the pattern matches."""
        assert watching.stdout
        assert any(re.fullmatch(pattern.encode(), line.strip()) for line in watching.stdout), pattern

    expect(r'\["Start", "desktop", "10\.0\.0\.4"\]')
    expect(r'\["Ran", "exited", 4, "gio\\n", ""\]')
    expect(r'\["Begun", "begun\\n"\]')
    expect(r'\["Job", "laptop", "/tmp"\]')
    laptop.run("echo went on >/tmp/go")
    expect(r'\["Streamed", "went on\\n"\]')
    expect(r'\["Error", "org\.automatelinux\.peerd1\.Error\.PeerNotFound"\]')
    expect(rf'\["JobFinished", "\w+", "{busapi.JOBS}/\w+", "exited", 5\]')
    laptop.run("systemctl stop peerd.service peerd.socket peerd-tcp.socket")
    path = busapi.peer_path("laptop")
    expect(rf'\["PeerOffline", "laptop", "{path}"\]')
    laptop.run("systemctl start peerd.socket peerd-tcp.socket peerd.service")
    expect(rf'\["PeerOnline", "laptop", "{path}"\]')
    desktop.run("d deletePeer --peer laptop")
    expect(rf'\["PeerRemoved", "laptop", "{path}"\]')
    expect(r'\["Changed", \{.*"KnownPeers": 2.*\}\]')
    laptop.wait_until("d registerWorker", 20)
    expect(rf'\["PeerAdded", "laptop", "{path}"\]')
    wait_for_peers(desktop)


def test_a_call_starts_a_daemon_that_is_down(laptop: Machine, desktop: Machine) -> None:
    laptop.run("systemctl stop peerd.service")
    assert call(laptop, "Version") == [laptop.out("d version")]
    assert laptop.out("systemctl is-active peerd.service") == "active"
    wait_for_peers(desktop)


def test_no_call_starts_a_daemon_that_is_disabled(laptop: Machine, desktop: Machine) -> None:
    laptop.run(f"systemctl disable --now {UNITS}")
    try:
        assert not laptop.ok(f"{AS_ALICE} busctl call {MANAGER} Version")
        assert not laptop.ok("systemctl is-active peerd.service")
    finally:
        laptop.run(f"systemctl enable --now {UNITS}")
    laptop.run("systemctl stop peerd.service")
    assert call(laptop, "Version") == [laptop.out("d version")]
    wait_for_peers(desktop)


def test_a_bus_that_goes_and_comes_back_costs_nothing_but_itself(laptop: Machine, desktop: Machine) -> None:
    pid = laptop.out("systemctl show -P MainPID peerd")
    laptop.run("systemctl restart dbus.service")
    command = "d execOnPeer --peer laptop --directory / --shellCmd hostname"
    assert desktop.out(command) == "laptop"
    laptop.wait_until(f"busctl call {MANAGER} Version", 20)
    assert bytes(call(laptop, f"{EXEC} desktop / hostname 0")[2]) == b"desktop\n"
    assert laptop.out("systemctl show -P MainPID peerd") == pid
