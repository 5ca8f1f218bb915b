"""Many at once, one that does not read, callers that vanish: each command stands for itself, and none stays behind."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shlex
import signal
import subprocess
from typing import IO, cast

import pytest
from lab import Lab, Machine

from .conftest import wait_for_peers
from .volume import digest, growth, keystream, reset_peak

CROWD = 64
LINES = 1500

# All of them begin to speak at the same moment: when somebody opens the other end of the FIFO.
MARKED = """
    : >/root/crowd/$1; read -r go </root/gate
    n=0; while [ $n -lt $2 ]; do echo "$1:out:$n"; echo "$1:err:$n" >&2; n=$((n + 1)); done; exit $1
"""
ALL_AT_ONCE = """
    cd "$(mktemp -d /root/crowd-XXXXXX)"
    for i in $(seq $COUNT); do
        (
            d execOnPeer --peer vps --directory / -- sh -c "$MARKED" sh $i $LINES >$i.out 2>$i.err
            echo $? >$i.status
        ) &
    done
    wait
    pwd
"""


def execute(peer: str, command: str, *options: str) -> list[str]:
    """The arguments that run a command on a peer, for long enough."""
    return ["d", "execOnPeer", "--peer", peer, "--directory", "/", "--timeout", "300", *options, "--shellCmd", command]


def test_64_commands_that_speak_at_once_each_speak_to_their_own_caller(desktop: Machine, vps: Machine) -> None:
    vps.run("rm -rf /root/crowd /root/gate; mkdir /root/crowd; mkfifo /root/gate")
    variables = {"COUNT": str(CROWD), "LINES": str(LINES), "MARKED": MARKED}
    with desktop.popen(ALL_AT_ONCE, env=variables, stdout=subprocess.PIPE) as crowd:
        vps.wait_until(f'[ "$(ls /root/crowd | wc -l)" = {CROWD} ]', 60)
        vps.run(": >/root/gate")
        stdout, _ = crowd.communicate(timeout=110)
    files = desktop.root / stdout.decode().strip().lstrip("/")
    for index in range(1, CROWD + 1):
        for stream in ("out", "err"):
            said = (files / f"{index}.{stream}").read_text().splitlines()
            assert said == [f"{index}:{stream}:{line}" for line in range(LINES)]
        assert (files / f"{index}.status").read_text() == f"{index}\n"


# A window of these has more bytes of headers than of output.
MANY = "n=0; while [ $n -lt 800000 ]; do n=$((n + 1)); echo $n; done"
# More records than there is room for on the way to a reader that pauses.
RECORDS = """
from systemd import journal
for number in range(200):
    journal.send("0" * 60_000, SYSLOG_IDENTIFIER="peerd", PEERD_EVENT="test", PEERD_TEST=number)
"""


@pytest.mark.slow
def test_a_reader_may_pause_for_longer_than_a_machine_may_be_silent(desktop: Machine, vps: Machine) -> None:
    commands = [keystream(96 << 20), MANY]
    marked = [execute("vps", f"echo $$ >/run/paused-{at}; {command}") for at, command in enumerate(commands)]
    calls = [*map(shlex.join, marked), "d log --peer vps --follow --lines 1"]
    with contextlib.ExitStack() as stack:
        paused = [stack.enter_context(desktop.popen(f"exec {call}", stdout=subprocess.PIPE)) for call in calls]
        *outputs, log = [cast("IO[bytes]", process.stdout) for process in paused]
        begun = [output.read(1) for output in outputs]
        log.readline()
        vps.run(["python3", "-c", RECORDS])
        # They wait for their readers: they are there after almost twice the time that a silent machine is given.
        for at in range(len(commands)):
            vps.wait_until(f"[ $(ps -o etimes= -p $(cat /run/paused-{at})) -ge 27 ]", 60)
        for command, output, first in zip(commands, outputs, begun, strict=True):
            expected = vps.out(f"{{ {command}; }} | sha256sum", timeout=100).split()[0]
            heard = hashlib.sha256(first)
            while data := output.read(1 << 20):
                heard.update(data)
            assert heard.hexdigest() == expected
        numbers = (record["test"] for record in map(json.loads, log) if "test" in record)
        assert list(itertools.islice(numbers, 200)) == [str(number) for number in range(200)]
        paused[-1].send_signal(signal.SIGINT)
        assert [process.wait(60) for process in paused] == [0, 0, 130]


@pytest.mark.parametrize("stop", [True, False], ids=["d stopped", "pipe full"])
def test_a_paused_reader_stops_its_command_and_nothing_else(desktop: Machine, vps: Machine, stop: bool) -> None:
    size = 96 << 20
    expected = digest(vps, size)
    reset_peak(desktop, vps)
    # d is not the first process of its own entry into the machine: that one must not be stopped with it.
    call = f"{subprocess.list2cmdline(execute('vps', keystream(size)))}; exit $?"
    with desktop.popen(call, stdout=subprocess.PIPE) as paused:
        assert paused.stdout
        first = paused.stdout.read(1)
        if stop:
            desktop.run("pkill -STOP -x d")
        try:
            # As much again passes beside it; nothing but flow control keeps the paused one from coming to its end.
            busy = desktop.run(f"{subprocess.list2cmdline(execute('vps', keystream(size)))} | sha256sum", timeout=100)
            assert busy.stdout.split()[0].decode() == expected
            for _ in range(5):
                assert desktop.run(execute("vps", "echo quick")).stdout == b"quick\n"
            assert vps.out("pgrep -c -x openssl") == "1"
            assert max(growth(desktop, vps)) < 16 << 20
        finally:
            if stop:
                desktop.run("pkill -CONT -x d")
        rest = hashlib.sha256(first)
        while data := paused.stdout.read(1 << 20):
            rest.update(data)
        assert paused.wait(60) == 0
    assert rest.hexdigest() == expected


def outcomes(machine: Machine, exec_id: str) -> list[str]:
    """How a command ended, after the journal of the machine that ran it; waits until it says so."""
    query = f"journalctl -q -t peerd -o json PEERD_EXEC_ID={exec_id} PEERD_EVENT=command-ended"
    machine.wait_until(f"{query} | grep -q .", 60)
    return [json.loads(line)["PEERD_OUTCOME"] for line in machine.out(query).splitlines()]


def test_kill_9_of_d_in_the_middle_of_its_output_cancels_the_command(desktop: Machine, vps: Machine) -> None:
    with desktop.popen(execute("vps", "echo $PEERD_EXEC_ID; exec yes"), stdout=subprocess.PIPE) as process:
        assert process.stdout
        exec_id = process.stdout.readline().decode().strip()
        assert process.stdout.read(1 << 20)
        process.kill()
    vps.wait_until(f"! systemctl is-active --quiet peerd-exec-{exec_id}.scope", 30)
    assert outcomes(vps, exec_id) == ["cancelled"]
    assert vps.ok("! pgrep -x yes")


@pytest.mark.parametrize("command", ["exec yes", "exec sleep 3001"], ids=["speaking", "silent"])
def test_a_cut_cable_ends_the_command_and_its_caller_hears_that_it_is_lost(
    laptop: Machine, vps: Machine, command: str
) -> None:
    call = execute("vps", f"echo $PEERD_EXEC_ID; {command}", "--json", "--stream")
    try:
        with laptop.popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            events = (json.loads(line) for line in process.stdout)
            assert next(events) == {"event": "started"}
            exec_id = next(events)["data"].split("\n")[0]
            laptop.link_down()
            last = next(event for event in events if event["event"] == "result")
            assert process.wait(60) == 255
        assert (last["outcome"], last["exit_status"], last["error"]["code"]) == ("lost", 255, "lost")
        assert outcomes(vps, exec_id) == ["cancelled"]
        assert vps.ok(f"! pgrep -f '{command.split()[1]}' -x")
    finally:
        laptop.link_up()
    wait_for_peers(laptop)


def test_a_crowd_left_behind_is_counted_and_ended(desktop: Machine, vps: Machine) -> None:
    leave = """
        for i in $(seq 150); do sleep 3002 & done
        for i in $(seq 30); do setsid sleep 3002 & done
        for i in $(seq 20); do (trap '' TERM HUP INT; sleep 3002; :) & done
        until [ "$(pgrep -c -x -f 'sleep 3002')" = 200 ]; do :; done
        echo left
    """
    vps.write("/etc/peerd/peerd.conf.d/test.conf", "[peerd]\nstop-grace = 1\n")
    vps.run("systemctl reload peerd")
    try:
        result = desktop.run(execute("vps", leave, "--json"))
    finally:
        vps.run("rm /etc/peerd/peerd.conf.d/test.conf; systemctl reload peerd")
    found = json.loads(result.stdout)
    # 20 of them are children of subshells, which are processes too.
    assert (found["outcome"], found["stdout"], found["left_behind"]) == ("exited", "left\n", 220)
    assert vps.ok("! pgrep -f '[s]leep 3002'")


def test_no_process_of_any_command_is_left_in_the_slice(lab: Lab) -> None:
    for name in ("vps", "desktop", "laptop"):
        assert lab[name].out("systemctl show -P MainPID peerd") != "0"
        lab[name].wait_until("! grep -rq . /sys/fs/cgroup/peerd.slice/peerd-exec.slice --include=cgroup.procs")
