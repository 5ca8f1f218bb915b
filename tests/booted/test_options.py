"""How a command can be run: as whom, with what input, within which bounds, and what a script gets to read of it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess

import pytest
from lab import Machine

from .conftest import PEERS

HERE_AND_THERE = ["vps", "desktop"]


def d(*arguments: str, peer: str = "vps", directory: str = "/") -> list[str]:
    """The arguments of an execOnPeer."""
    return ["d", "execOnPeer", "--peer", peer, "--directory", directory, *arguments]


def record(machine: Machine, *arguments: str, peer: str = "vps", directory: str = "/") -> dict[str, object]:
    """The record that --json prints, which must be all that is on stdout."""
    result = machine.run(d("--json", *arguments, peer=peer, directory=directory), check=False)
    assert result.stderr == b""
    found: dict[str, object] = json.loads(result.stdout)
    assert found["exit_status"] == result.returncode
    return found


@pytest.mark.parametrize("peer", HERE_AND_THERE)
def test_a_program_after_two_dashes_runs_without_a_shell(desktop: Machine, peer: str) -> None:
    words = ["a b", "$HOME", "*", "", "'", "-n", "--peer", "ünï"]
    result = desktop.run(d("--", "printf", "<%s>", *words, peer=peer))
    assert result.stdout.decode() == "".join(f"<{word}>" for word in words)
    assert desktop.run(d("--", "no-such-program", peer=peer), check=False).returncode == 127


def test_a_command_is_given_in_one_way(desktop: Machine) -> None:
    for arguments in ([], ["--shellCmd", "true", "--", "true"]):
        refused = desktop.run(d(*arguments), check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith(b"Either --shellCmd or a program after -- is needed")


def test_variables_reach_the_command_and_no_log(desktop: Machine, vps: Machine) -> None:
    secret = "s3cr3t=with spaces\nand lines"
    command = d("--env", f"TOKEN={secret}", "--env", "PATH=/bin", "--shellCmd", 'printf %s "$TOKEN"; echo ":$PATH"')
    assert desktop.run(command).stdout.decode() == f"{secret}:/bin\n"
    for machine in (desktop, vps):
        records = machine.out("journalctl -q -b -t peerd -o json --no-pager")
        assert "PEERD_EXEC_ID" in records
        assert "s3cr3t" not in records
    for bad in ("TOKEN", "1X=y", "PEERD_CALLER=me", "A-B=c"):
        assert desktop.run(d("--env", bad, "--shellCmd", "true"), check=False).returncode == 2


@pytest.mark.parametrize("peer", HERE_AND_THERE)
def test_another_user_has_its_own_groups_and_rights(desktop: Machine, vps: Machine, peer: str) -> None:
    target = {"vps": vps, "desktop": desktop}[peer]
    target.run("id carol || useradd -m -s /bin/bash -G games carol; install -d -m 700 -o root /root/closed")
    command = "id -un; id -Gn; echo $HOME $USER $LOGNAME $SHELL; touch /root/x; cat /proc/self/cgroup | tail -1"
    result = desktop.run(d("--user", "carol", "--shellCmd", command, peer=peer))
    lines = result.stdout.decode().splitlines()
    assert lines[:3] == ["carol", "carol games", "/home/carol carol carol /bin/bash"]
    assert "peerd-exec-" in lines[3]
    assert b"Permission denied" in result.stderr
    closed = desktop.run(d("--user", "carol", "--shellCmd", "true", peer=peer, directory="/root/closed"), check=False)
    assert closed.returncode == 255
    assert closed.stderr.startswith(f"Cannot enter directory on {peer}: /root/closed (Permission denied)".encode())
    nobody = desktop.run(d("--user", "no-such-user", "--shellCmd", "true", peer=peer), check=False)
    assert nobody.returncode == 255
    assert nobody.stderr.startswith(f"No such user on {peer}: no-such-user\n".encode())


def test_a_login_shell_reads_the_users_profile(desktop: Machine, vps: Machine) -> None:
    vps.run("id carol || useradd -m -s /bin/bash -G games carol")
    vps.write("/home/carol/.profile", "export FROM_PROFILE=yes\n")
    for arguments in (["--shellCmd", "printenv FROM_PROFILE"], ["--", "printenv", "FROM_PROFILE"]):
        assert desktop.run(d("--user", "carol", *arguments), check=False).stdout == b""
        assert desktop.run(d("--user", "carol", "--login", *arguments)).stdout == b"yes\n"


def test_bounds_are_set_on_the_scope(desktop: Machine, vps: Machine) -> None:
    show = "systemctl show -p MemoryMax,CPUQuotaPerSecUSec,TasksMax peerd-exec-$PEERD_EXEC_ID.scope"
    bounded = d("--memory", "64M", "--cpu", "50%", "--tasks", "20", "--shellCmd", show)
    found = dict(line.split("=") for line in desktop.run(bounded).stdout.decode().split())
    # The gate is one of the scope's tasks and none of the command's.
    assert found == {"MemoryMax": "67108864", "CPUQuotaPerSecUSec": "500ms", "TasksMax": "21"}
    for option, bad in (("--memory", "lots"), ("--memory", "0"), ("--cpu", "-5"), ("--tasks", "0"), ("--tasks", "x")):
        assert desktop.run(d(option, bad, "--shellCmd", "true"), check=False).returncode == 2


@pytest.mark.parametrize("peer", HERE_AND_THERE)
def test_standard_input_reaches_the_command_byte_for_byte(desktop: Machine, peer: str) -> None:
    data = bytes(range(256)) * 20_000
    assert desktop.run(d("--stdin", "--shellCmd", "cat", peer=peer), input=data).stdout == data
    assert desktop.run(d("--stdin", "--shellCmd", "wc -c", peer=peer), input=b"").stdout == b"0\n"
    assert desktop.run(d("--shellCmd", "wc -c", peer=peer), input=data).stdout == b"0\n"


def test_a_tree_of_files_goes_through(desktop: Machine, vps: Machine) -> None:
    desktop.run("mkdir -p /root/from/sub; cp -r /etc/systemd /root/from/sub; ln -sf x /root/from/link")
    vps.run("rm -rf /root/to; mkdir /root/to")
    copy = subprocess.list2cmdline(d("--stdin", "--shellCmd", "tar x", directory="/root/to"))
    desktop.run(f"tar c -C /root/from . | {copy}")
    listing = "find . -printf '%P %y %m %s %l\\n' | grep -v ' d ' | sort"
    assert vps.out(f"cd /root/to; {listing}") == desktop.out(f"cd /root/from; {listing}")


def test_a_command_that_does_not_read_its_input_ends_all_the_same(desktop: Machine) -> None:
    endless = f"yes | {subprocess.list2cmdline(d('--stdin', '--shellCmd', 'head -2'))}"
    assert desktop.out(endless).split() == ["y", "y"]
    deaf = f"yes | {subprocess.list2cmdline(d('--stdin', '--shellCmd', 'sleep 1; echo done'))}"
    assert desktop.out(deaf) == "done"


def test_a_cancel_overtakes_input_that_nobody_reads(desktop: Machine, vps: Machine) -> None:
    with desktop.popen(d("--stdin", "--shellCmd", "sleep 2001"), stdin=subprocess.PIPE) as process:
        assert process.stdin
        vps.wait_until("pgrep -f '[s]leep 2001'")
        process.stdin.write(b"x" * 60_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_loop_around_d_keeps_its_input(desktop: Machine) -> None:
    loop = f"while read -r peer; do {subprocess.list2cmdline(d('--shellCmd', 'hostname'))}; done"
    assert desktop.run(loop, input=b"one\ntwo\nthree\n").stdout == b"vps\n" * 3


def test_the_record_says_all_that_is_known(desktop: Machine) -> None:
    found = record(desktop, "--shellCmd", "echo out; printf '\\377' >&2; exit 3", directory="/tmp")
    assert list(found) == [
        "schema", "exec_id", "peer", "caller", "directory", "command", "user", "detached", "started", "outcome",
        "exit_status", "signal", "duration", "cpu", "memory_peak", "left_behind", "dropped", "error",
        "stdout", "stdout_encoding", "stdout_bytes", "stderr", "stderr_encoding", "stderr_bytes",
    ]  # fmt: skip
    assert (found["schema"], found["peer"], found["directory"], found["user"]) == (1, "vps", "/tmp", "root")
    assert (found["outcome"], found["exit_status"], found["signal"], found["error"]) == ("exited", 3, None, None)
    assert (found["stdout"], found["stdout_encoding"], found["stdout_bytes"]) == ("out\n", "utf-8", 4)
    assert (base64.b64decode(str(found["stderr"])), found["stderr_encoding"]) == (b"\xff", "base64")
    assert isinstance(found["cpu"], float)
    assert isinstance(found["duration"], float)
    assert found["cpu"] < found["duration"]


@pytest.mark.parametrize(
    ("arguments", "outcome", "status"),
    [
        (["--shellCmd", "kill -9 $$"], "signaled", 137),
        (["--shellCmd", "sleep 30", "--timeout", "0.5"], "timeout", 124),
        (["--shellCmd", "true", "--user", "no-such-user"], "failed", 255),
        (["--shellCmd", "true", "--timeout", "999999"], "denied", 255),
    ],
    ids=["signaled", "timeout", "failed", "denied"],
)
def test_every_end_has_a_record(desktop: Machine, arguments: list[str], outcome: str, status: int) -> None:
    found = record(desktop, *arguments)
    assert (found["outcome"], found["exit_status"]) == (outcome, status)
    assert bool(found["error"]) == (outcome != "signaled")


def test_a_peer_that_is_not_there_has_a_record_too(desktop: Machine) -> None:
    found = record(desktop, "--shellCmd", "true", peer="nas")
    assert (found["outcome"], found["exit_status"]) == ("unreachable", 255)


def test_events_come_a_line_each_as_they_happen(desktop: Machine) -> None:
    command = d("--json", "--stream", "--shellCmd", "echo one; read line; printf '\\377' >&2; exit 5", "--stdin")
    with desktop.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        first = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert first[0] == {"event": "started"}
        assert first[1] == {"event": "output", "stream": "stdout", "data": "one\n", "encoding": "utf-8"}
        process.stdin.write(b"\n")
        process.stdin.close()
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(30) == 5
    assert rest[0] == {"event": "output", "stream": "stderr", "data": "/w==", "encoding": "base64"}
    assert (rest[1]["event"], rest[1]["outcome"], rest[1]["exit_status"]) == ("result", "exited", 5)


def test_the_options_work_towards_every_peer(desktop: Machine) -> None:
    for peer in PEERS:
        result = desktop.run(d("--stdin", "--env", "X=1", "--", "sh", "-c", "cat; echo $X", peer=peer), input=b"in\n")
        assert result.stdout == b"in\n1\n"
