"""Commands on peers: their output, their end, and that nothing of them stays."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from lab import Machine

TREE = "setsid sleep 2001 & (trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 2002; sleep 2003') & sleep 2004"
TREE_RUNS = "[ $(pgrep -c -f 'sleep 200[124]') -ge 3 ]"
TREE_GONE = "! pgrep -f '[s]leep 200[1-4]'"


def on(peer: str, command: str, *options: str, directory: str = "/") -> list[str]:
    """The arguments that run a command on a peer."""
    return ["d", "execOnPeer", "--peer", peer, "--directory", directory, "--shellCmd", command, *options]


@pytest.mark.parametrize("peer", ["vps", "laptop", "desktop"], ids=["leader", "worker", "itself"])
def test_status_and_both_streams_come_back_apart(desktop: Machine, peer: str) -> None:
    result = desktop.run(on(peer, "echo out; echo err >&2; exit 42"), check=False)
    assert (result.returncode, result.stdout, result.stderr) == (42, b"out\n", b"err\n")


def test_signaled_and_exited_are_different_outcomes(vps: Machine, desktop: Machine) -> None:
    for command, outcome in (("kill -KILL $$", "signaled"), ("exit 137", "exited")):
        result = desktop.run(on("vps", f"echo $PEERD_EXEC_ID; {command}"), check=False)
        assert result.returncode == 137
        query = f"journalctl -q -t peerd -o json PEERD_EXEC_ID={result.stdout.decode().strip()}"
        vps.wait_until(f"{query} | grep -q PEERD_OUTCOME")
        ends = [json.loads(line) for line in vps.out(query).splitlines()]
        assert [end["PEERD_OUTCOME"] for end in ends if "PEERD_OUTCOME" in end] == [outcome]


def test_a_missing_program_is_127_and_one_that_cannot_run_126(desktop: Machine) -> None:
    assert desktop.run(on("vps", "/no/such/program"), check=False).returncode == 127
    assert desktop.run(on("vps", "/etc/passwd"), check=False).returncode == 126


def test_quoting_survives_every_hop(desktop: Machine) -> None:
    words = ["it's", 'say "hi"', "$HOME `id` \\", "a\nb", "ünïcode ☃", "-n", "*", "", "%s\t"]
    inner = "printf '<%s>' " + " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    assert desktop.run(on("vps", inner)).stdout.decode() == "".join(f"<{word}>" for word in words)


def test_a_command_that_is_not_utf8_arrives_as_it_was(desktop: Machine) -> None:
    shown = desktop.run(r"d execOnPeer --peer vps --directory / --shellCmd $'printf %s \'\xff\xfe\x80\''")
    assert shown.stdout == b"\xff\xfe\x80"


def test_the_environment_is_a_login_like_one(desktop: Machine) -> None:
    lines = desktop.run(on("vps", "env; umask; ulimit -n; cat; ls /proc/self/fd")).stdout.decode().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables.pop("PEERD_EXEC_ID")
    assert variables == {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PWD": "/",
        "PEERD_CALLER": "desktop",
    }
    assert [line for line in lines if "=" not in line] == ["0022", "1024", "0", "1", "2", "3"]


def test_burst_after_burst_finds_free_ports(desktop: Machine) -> None:
    # More connections in all than there are reserved ports; the state TIME_WAIT would hold each for a minute.
    burst = """
        for i in $(seq 150); do d execOnPeer --peer vps --directory / --shellCmd "sleep 2; echo $i" & done 2>&1
        wait
    """
    for _ in range(4):
        assert sorted(map(int, desktop.out(burst, timeout=60).split())) == list(range(1, 151))


def test_a_timeout_ends_the_whole_tree_and_delivers_what_was_said(desktop: Machine, vps: Machine) -> None:
    result = desktop.run(on("vps", f"echo said; {TREE}", "--timeout", "1.5"), check=False)
    assert result.returncode == 124
    assert result.stdout == b"said\n"
    assert result.stderr.startswith(b"Timeout waiting for response from vps (1.5 s)\n")
    assert vps.ok(TREE_GONE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_d_ends_the_tree_before_d_ends(desktop: Machine, vps: Machine, number: signal.Signals) -> None:
    with desktop.popen(on("vps", TREE), stderr=subprocess.PIPE) as process:
        vps.wait_until(TREE_RUNS)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=40)
        assert vps.ok(TREE_GONE)
    assert process.returncode == 130
    assert stderr.startswith(b"Cancelled: ")


def test_kill_9_of_d_ends_the_tree(desktop: Machine, vps: Machine) -> None:
    with desktop.popen(on("vps", TREE)) as process:
        vps.wait_until(TREE_RUNS)
        process.kill()
    vps.wait_until(TREE_GONE, 30)


def test_a_closed_pipe_ends_the_tree(desktop: Machine, vps: Machine) -> None:
    assert desktop.out(f"{subprocess.list2cmdline(on('vps', 'yes'))} | head -1") == "y"
    vps.wait_until("! pgrep -x yes", 30)


def test_a_caller_that_vanishes_ends_the_tree(laptop: Machine, vps: Machine) -> None:
    with laptop.popen(on("vps", TREE)) as process:
        vps.wait_until(TREE_RUNS)
        laptop.link_down()
        vps.wait_until(TREE_GONE, 60)
        laptop.link_up()
        process.wait(60)
    assert process.returncode == 255
    laptop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 60)


def test_what_a_command_leaves_behind_is_stopped_and_counted(desktop: Machine, vps: Machine) -> None:
    result = desktop.run(on("vps", "sleep 2001 & setsid sleep 2002 & echo done"))
    assert result.stdout == b"done\n"
    assert result.stderr == b"Stopped 2 background processes that the command left running on vps\n"
    assert vps.ok(TREE_GONE)


def test_d_inside_d_to_any_depth(desktop: Machine, vps: Machine, laptop: Machine) -> None:
    hop = """#!/bin/sh
[ "$1" = 0 ] && exec hostname
case $(hostname) in vps) next=desktop ;; desktop) next=laptop ;; *) next=vps ;; esac
exec d execOnPeer --peer $next --directory / --shellCmd "sh /root/hop $(($1 - 1))"
"""
    for machine in (desktop, vps, laptop):
        machine.write("/root/hop", hop)
    assert desktop.run(["sh", "/root/hop", "12"]).stdout == b"desktop\n"


def test_children_deaf_to_sigterm_do_not_turn_success_into_a_timeout(desktop: Machine, vps: Machine) -> None:
    vps.write("/etc/peerd/peerd.conf.d/grace.conf", "[peerd]\nstop-grace = 0.5\n")
    vps.run("systemctl reload peerd")
    deaf = "(trap '' TERM; sleep 2001; sleep 2002) & until pgrep -f '[s]leep 2001' >/dev/null; do :; done; echo done"
    result = desktop.run(on("vps", deaf))
    assert (result.returncode, result.stdout) == (0, b"done\n")
    vps.run("rm /etc/peerd/peerd.conf.d/grace.conf; systemctl reload peerd")
    assert vps.ok(TREE_GONE)


def test_sudo_stays_inside_the_scope(desktop: Machine, vps: Machine) -> None:
    result = desktop.run(on("vps", "sudo -u nobody sleep 2001", "--timeout", "1"), check=False)
    assert result.returncode == 124
    assert vps.ok(TREE_GONE)


def test_a_directory_that_cannot_be_entered_is_an_error_of_its_own(desktop: Machine) -> None:
    for directory, sentence in (("/no/such", "No such directory"), ("/etc/passwd", "Not a directory")):
        result = desktop.run(on("vps", "echo ran", directory=directory), check=False)
        assert (result.returncode, result.stdout) == (255, b"")
        assert result.stderr.startswith(f"{sentence} on vps: {directory}\n".encode())


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["execOnPeer"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--command", "true"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "relative", "--shellCmd", "true"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", ""], 2),
        (["execOnPeer", "--peer", "-x", "--directory", "/", "--shellCmd", "true"], 2),
        (["execOnPeer", "--peer", "../vps", "--directory", "/", "--shellCmd", "true"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--timeout", "0"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--timeout", "-1"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--timeout", "nan"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--timeout", "soon"], 2),
        (["execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--timeout", "100000"], 255),
        (["execOnPeer", "--peer", "nas", "--directory", "/", "--shellCmd", "true"], 255),
        (["setPeerConfig", "--role", "king"], 2),
        (["setPeerConfig", "--role", "worker", "--leader", "10.0.0"], 2),
        (["setPeerConfig", "--role", "worker", "--leader", "10.0.0.2"], 255),
        (["setPeerConfig", "--id", "a b"], 2),
        (["setPeerConfig", "--role", "leader", "--leader", "10.0.0.1"], 2),
        (["listPeers", "--peer", "vps"], 2),
        (["noSuchCommand"], 2),
        (["getPeerInfo", "--peer", "nas"], 255),
        (["deletePeer", "--peer", "nas"], 255),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_sentence_and_changes_nothing(
    desktop: Machine, arguments: list[str], status: int
) -> None:
    before = desktop.out("d getPeerStatus; d listPeers | jq -c 'map(del(.last_seen))'")
    result = desktop.run(["d", *arguments], check=False)
    assert result.returncode == status
    assert result.stdout == b""
    first, *hints = result.stderr.decode().splitlines()
    assert first
    assert all(hint.startswith("  ") for hint in hints)
    assert "Traceback" not in result.stderr.decode()
    assert desktop.out("d getPeerStatus; d listPeers | jq -c 'map(del(.last_seen))'") == before
