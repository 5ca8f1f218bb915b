"""A restart of peerd, on any side and by whatever means, costs a running command nothing."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
from lab import Lab, Machine

from .conftest import wait_for_peers
from .test_options import d

PID = "systemctl show -P MainPID peerd"
WAYS = {
    "restart": "systemctl restart peerd",
    "kill": "systemctl kill --kill-whom=main --signal=KILL peerd.service",
    "upgrade": "dpkg -i /root/peerd_*.deb",
    "reexec": "systemctl daemon-reexec; systemctl restart peerd",
    # The watchdog's own way to end a daemon that hangs.
    "abort": "systemctl kill --kill-whom=main --signal=ABRT peerd.service",
}
# A megabyte at a time, each after a word from outside, and the checksum of all on stderr.
WRITER = """
import hashlib, sys
all = hashlib.sha256()
go = open("go", "rb", buffering=0)
for number in range(200):
    if number % 50 == 25:
        go.read(1)
    block = (b"%16d" % number) * 65536
    all.update(block)
    sys.stdout.buffer.write(block)
    sys.stdout.flush()
sys.stderr.write(all.hexdigest())
sys.exit(3)
"""


def restart(machine: Machine, way: str) -> None:
    """Restart peerd in one of the ways, and wait until another process serves."""
    before = machine.out(PID)
    machine.run(WAYS[way], timeout=120)
    machine.wait_until(f"[ $({PID}) != {before} ] && d ping", 60)


class Writing:
    """A command on vps that writes 200 MiB and stops for a word at four places."""

    def __init__(self, caller: Machine, target: Machine) -> None:
        target.write("/root/writer.py", WRITER)
        target.run("cd /root; rm -f go; mkfifo go")
        command = d("--timeout", "600", "--shellCmd", "exec python3 writer.py <>go", peer="vps", directory="/root")
        self._target = target
        self._process = caller.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._digest = hashlib.sha256()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.size = 0

    def _read(self) -> None:
        assert self._process.stdout
        while data := self._process.stdout.read(65536):
            self._digest.update(data)
            self.size += len(data)

    def wait_for(self, megabytes: int) -> None:
        """Wait until the caller has so much."""
        self._target.wait_until(lambda: self.size >= megabytes << 20, 120)

    def go_on(self) -> None:
        """Give the word."""
        self._target.run("printf x >>/root/go")

    def check(self) -> None:
        """All bytes arrived in their order, and the exit status."""
        with self._process as process:
            assert process.stderr
            said = process.stderr.read().decode()
            self._reader.join(120)
            assert process.wait(120) == 3
        assert self.size == 200 << 20
        assert said.endswith(self._digest.hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize("side", ["vps", "desktop"], ids=["target", "caller"])
@pytest.mark.parametrize("ways", [("restart", "kill", "upgrade"), ("abort", "reexec", "kill")], ids="-".join)
def test_output_and_status_arrive_across_three_restarts(lab: Lab, side: str, ways: tuple[str, ...]) -> None:
    writing = Writing(lab["desktop"], lab["vps"])
    for number, way in enumerate(ways):
        writing.wait_for(24 + 50 * number)
        restart(lab[side], way)
        writing.go_on()
    writing.go_on()
    writing.check()
    wait_for_peers(lab["vps"])


def test_a_restart_in_the_middle_of_a_flood_loses_nothing(lab: Lab) -> None:
    command = d("--timeout", "100", "--shellCmd", "head -c 60000000 /dev/zero | tr '\\0' y; echo end >&2; exit 9")
    for machine in (lab["vps"], lab["desktop"]):
        with lab["desktop"].popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            head = process.stdout.read(1_000_000)
            machine.run(WAYS["kill"])
            rest = process.stdout.read()
            assert head + rest == b"y" * 60_000_000
            assert process.wait(60) == 9
            assert process.stderr
            assert process.stderr.read().endswith(b"end\n")
    wait_for_peers(lab["vps"])


@pytest.mark.slow
def test_a_reader_that_pauses_while_its_peerd_is_restarted_misses_nothing(lab: Lab) -> None:
    desktop, vps = lab["desktop"], lab["vps"]
    command = d("--timeout", "600", "--shellCmd", "seq 1 4000000", peer="vps", directory="/")
    with desktop.popen(command, stdout=subprocess.PIPE) as paused:
        assert paused.stdout
        heard = hashlib.sha256(paused.stdout.read(1))
        restart(desktop, "restart")
        # It is there still after well more than the 10 s for which a command waits for a caller that was cut off.
        vps.wait_until("ps -o etimes= -C seq | awk '$1 >= 20 {found = 1} END {exit !found}'", 60)
        while data := paused.stdout.read(1 << 20):
            heard.update(data)
        assert paused.wait(60) == 0
    assert heard.hexdigest() == vps.out("seq 1 4000000 | sha256sum").split()[0]


@pytest.mark.parametrize("way", ["restart", "kill"])
@pytest.mark.parametrize("side", ["vps", "desktop"], ids=["target", "caller"])
def test_standard_input_arrives_across_a_restart(lab: Lab, side: str, way: str) -> None:
    command = d("--stdin", "--timeout", "100", "--shellCmd", "head -c 5000000 | sha256sum; echo half >&2; sha256sum")
    data = bytes(range(256)) * 40_000
    with lab["desktop"].popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(data[:6_000_000])
        process.stdin.flush()
        assert process.stderr.readline() == b"half\n"
        restart(lab[side], way)
        process.stdin.write(data[6_000_000:])
        process.stdin.close()
        assert process.stdout
        sums = process.stdout.read().split()[::2]
        # head may read more than it passes on, so only the first sum is known for sure.
        assert sums[0].decode() == hashlib.sha256(data[:5_000_000]).hexdigest()
        assert process.wait(60) == 0
    whole = d("--stdin", "--timeout", "100", "--shellCmd", "sha256sum")
    with lab["desktop"].popen(whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(data[:7_000_000])
        process.stdin.flush()
        restart(lab[side], way)
        process.stdin.write(data[7_000_000:])
        process.stdin.close()
        assert process.stdout
        assert process.stdout.read().split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert process.wait(60) == 0
    wait_for_peers(lab["vps"])


def test_a_command_may_restart_the_daemon_that_runs_it(lab: Lab) -> None:
    restarting = d("--shellCmd", "echo before; systemctl restart peerd; echo after; exit 6", peer="vps")
    done = lab["desktop"].run(restarting, check=False)
    assert (done.returncode, done.stdout) == (6, b"before\nafter\n")
    here = d("--json", "--shellCmd", "echo before; systemctl restart peerd; echo after; exit 6", peer="desktop")
    done = lab["desktop"].run(here, check=False)
    record = json.loads(done.stdout)
    assert (done.returncode, record["stdout"], record["outcome"]) == (6, "before\nafter\n", "exited")
    wait_for_peers(lab["vps"])


@pytest.mark.parametrize("side", ["vps", "desktop"], ids=["target", "caller"])
def test_the_timeout_and_a_cancel_hold_after_a_restart(lab: Lab, side: str) -> None:
    late = d("--timeout", "6", "--shellCmd", "echo up; (setsid sleep 3021 &); exec sleep 3021")
    with lab["desktop"].popen(late, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        restart(lab[side], "kill")
        assert process.wait(60) == 124
    with lab["desktop"].popen(d("--shellCmd", "echo up; exec sleep 3021"), stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        restart(lab[side], "restart")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not lab["vps"].ok("pgrep -f '[s]leep 3021'")
    wait_for_peers(lab["vps"])


def test_a_command_that_ends_while_no_daemon_runs_is_heard_of(lab: Lab) -> None:
    command = d("--shellCmd", "echo up; systemctl kill -s KILL peerd; sleep 0.2; echo down >&2; kill -TERM $$")
    done = lab["desktop"].run(command, check=False)
    assert (done.returncode, done.stdout) == (143, b"up\n")
    assert done.stderr.endswith(b"down\n")
    wait_for_peers(lab["vps"])


def test_a_job_and_who_waits_for_it_survive_restarts(lab: Lab) -> None:
    desktop, vps = lab["desktop"], lab["vps"]
    start = d("--detach", "--shellCmd", "rm -f on; mkfifo on; echo one; read x <on; echo two; exit 8", directory="/tmp")
    job = desktop.out(start)
    attached = desktop.popen(f"d attachJob --job {job}", stdout=subprocess.PIPE)
    waiting = desktop.popen(f"d waitJob --job {job}", stdout=subprocess.PIPE)
    assert attached.stdout
    assert waiting.stdout
    with attached, waiting:
        assert attached.stdout.readline() == b"one\n"
        restart(vps, "kill")
        vps.run("echo >/tmp/on", timeout=30)
        assert (attached.stdout.read(), attached.wait(30)) == (b"two\n", 8)
        assert waiting.wait(30) == 8
        assert json.loads(waiting.stdout.read())["exit_status"] == 8
    assert desktop.run(f"d attachJob --job {job}", check=False).stdout == b"one\ntwo\n"
    wait_for_peers(vps)


@pytest.mark.parametrize("way", ["restart", "kill"])
@pytest.mark.parametrize("caller", ["desktop", "vps", "laptop"])
def test_who_attaches_or_waits_survives_a_restart_at_its_own_side(lab: Lab, caller: str, way: str) -> None:
    desktop, near = lab["desktop"], lab[caller]
    start = d("--detach", "--shellCmd", "rm -f on; mkfifo on; echo one; read x <on; echo two; exit 8", directory="/tmp")
    job = desktop.out(start)
    with (
        near.popen(f"d attachJob --job {job}", stdout=subprocess.PIPE) as attached,
        near.popen(f"d waitJob --job {job}", stdout=subprocess.PIPE) as waiting,
    ):
        assert attached.stdout
        assert waiting.stdout
        assert attached.stdout.readline() == b"one\n"
        restart(near, way)
        lab["vps"].run("echo >/tmp/on", timeout=30)
        assert (attached.stdout.read(), attached.wait(30)) == (b"two\n", 8)
        assert (json.loads(waiting.stdout.read())["exit_status"], waiting.wait(30)) == (8, 8)
    wait_for_peers(lab["vps"])


@pytest.mark.parametrize("peer", ["vps", "desktop"])
def test_a_cancel_survives_a_restart_at_its_own_side(lab: Lab, peer: str) -> None:
    desktop, there = lab["desktop"], lab[peer]
    job = desktop.out(
        d(
            "--detach",
            "--shellCmd",
            "trap 'touch late; sleep 4; exit' TERM; rm -f late; touch on; while :; do sleep 0.1; done",
            peer=peer,
            directory="/tmp",
        )
    )
    there.wait_until("[ -e /tmp/on ]")
    with desktop.popen(f"d cancelJob --job {job}", stdout=subprocess.PIPE) as cancelling:
        there.wait_until("[ -e /tmp/late ]")
        restart(desktop, "restart")
        assert cancelling.stdout
        assert cancelling.stdout.read().startswith(f"{job} on {peer} ended: cancelled".encode())
        assert cancelling.wait(30) == 0
    wait_for_peers(lab["vps"])


def test_what_starts_peerd_on_a_worker_waits_for_the_leader(lab: Lab) -> None:
    desktop = lab["desktop"]
    for command in (d("--shellCmd", "echo hi"), ["d", "listPeers"], ["d", "ping", "--peer", "laptop"]):
        desktop.run("systemctl stop peerd.service")
        assert desktop.out(command)
    wait_for_peers(lab["vps"])


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_a_caller_on_dbus_notices_nothing_of_a_restart_at_the_other_end(lab: Lab, way: str) -> None:
    manager = "org.automatelinux.peerd1 /org/automatelinux/peerd1 org.automatelinux.peerd1.Manager"
    wait = "rm -f on; mkfifo on; read x <on; echo hi; exit 5"
    call = f"busctl --timeout=100 call {manager} ExecOnPeer 'sssa{{sv}}' vps /tmp '{wait}' 0"
    # That of an earlier run would look like a command that waits.
    lab["vps"].run("rm -f /tmp/on")
    with lab["desktop"].popen(call, stdout=subprocess.PIPE) as calling:
        lab["vps"].wait_until("[ -p /tmp/on ]")
        restart(lab["vps"], way)
        lab["vps"].run("echo >/tmp/on", timeout=30)
        assert calling.stdout
        assert calling.stdout.read().split() == b'siayay "exited" 5 3 104 105 10 0'.split()
        assert calling.wait(30) == 0
    wait_for_peers(lab["vps"])


def test_an_id_runs_once_across_a_restart(lab: Lab) -> None:
    vps = lab["vps"]
    vps.run("rm -f /root/ran")
    ask = (
        '{"type":"hello","protocol":1}\n{"type":"execRequest","execId":"00112233445566bb",'
        '"directory":"/root","shellCmd":"echo x >>ran"}\n'
    )
    # From a port that only root may bind; another where peerd itself has it.
    send = f"for port in 801 823 847; do (printf '%s' '{ask}'; sleep 2) | nc -p $port -w 3 10.0.0.1 3600 && break; done"
    assert '"outcome":"exited"' in lab["desktop"].out(send)
    restart(vps, "kill")
    wait_for_peers(vps)
    again = lab["desktop"].out(send.replace("801", "811"))
    assert '"code":"duplicate"' in again
    assert vps.read("/root/ran") == "x\n"


def test_after_a_power_cut_a_command_is_lost_and_said_to_be(lab: Lab) -> None:
    desktop, vps = lab["desktop"], lab["vps"]
    job = desktop.out(d("--detach", "--shellCmd", "echo up; exec sleep 3022", peer="laptop"))
    desktop.wait_until(f"d getJob --job {job}")
    laptop = lab["laptop"]
    laptop.kill()
    laptop.start()
    wait_for_peers(vps)
    found = desktop.run(f"d waitJob --job {job}", check=False)
    record = json.loads(found.stdout)
    assert (found.returncode, record["outcome"]) == (255, "lost")
    assert found.stderr.startswith(b"Cut off: laptop went down, or its peerd was stopped, while the command ran\n")
    assert "lost" in [entry["outcome"] for entry in json.loads(desktop.out("d history --limit 3"))]


def test_the_fd_store_is_empty_when_nothing_runs(lab: Lab) -> None:
    def empty(machine: Machine) -> Callable[[], bool]:
        return lambda: machine.out("systemctl show -P NFileDescriptorStore peerd") == "0"

    for name in ("vps", "desktop", "laptop"):
        lab[name].wait_until(empty(lab[name]), 30)
        assert lab[name].out("ls /proc/$(systemctl show -P MainPID peerd)/fd | wc -l").isdigit()
