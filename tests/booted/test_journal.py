"""The records of a machine: found by command, unit and peer, explained, and the same on both ends."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from lab import Machine

from peerd import busapi

FOLLOWED = "pgrep -f '[j]ournalctl .*--follow'"


def run_one(asking: Machine, peer: str, command: str) -> str:
    """Run a command on a peer to its end, and return its id."""
    execute = f"d execOnPeer --peer {peer} --directory /tmp --shellCmd 'echo $PEERD_EXEC_ID; {command}'"
    return asking.out(execute, check=False)


def test_the_catalog_explains_records(desktop: Machine, laptop: Machine) -> None:
    exec_id = run_one(desktop, "laptop", "true")
    for machine, subject in ((desktop, "A command on laptop has ended: exited"), (laptop, "A command was started")):
        query = f"journalctl -q -x --no-pager -t peerd PEERD_EXEC_ID={exec_id}"
        machine.wait_until(f"{query} PEERD_OUTCOME=exited | grep -q .")
        shown = machine.out(query)
        assert subject in shown
        assert f"journalctl -t peerd PEERD_EXEC_ID={exec_id}" in shown
        assert "@PEERD" not in shown
    assert "Documentation: man:peerd.conf(5)" in desktop.out("journalctl --dump-catalog")


def test_the_records_of_a_command_are_among_those_of_its_scope(desktop: Machine, laptop: Machine) -> None:
    exec_id = run_one(desktop, "laptop", "true")
    query = f"journalctl -q -o cat -u peerd-exec-{exec_id}.scope"
    laptop.wait_until(f"{query} | grep -q 'ended: exited'")
    records = [line for line in laptop.out(query).splitlines() if line.startswith(exec_id)]
    assert len(records) == 2
    assert records[0].startswith(f"{exec_id} for desktop runs in /tmp: ")
    assert records[1] == f"{exec_id} for desktop ended: exited, exit status 0"


def test_log_shows_the_records_of_this_machine_and_of_a_peer(desktop: Machine, laptop: Machine, vps: Machine) -> None:
    exec_id = run_one(desktop, "laptop", "exit 7")
    for machine in (desktop, laptop):
        machine.wait_until(f"journalctl -q -t peerd PEERD_EXEC_ID={exec_id} PEERD_OUTCOME=exited | grep -q .")
    for machine, peer, ended in (
        (desktop, "", "asked of laptop ended: exited, exit status 7"),
        (desktop, "--peer laptop", "for desktop ended: exited, exit status 7"),
        (vps, "--peer laptop", "for desktop ended: exited, exit status 7"),
        (laptop, "--peer laptop", "for desktop ended: exited, exit status 7"),
    ):
        shown = machine.out(f"script -qec 'd log {peer} --since 1m' /dev/null")
        assert f"{exec_id} {ended}" in shown
        records = json.loads(machine.out(f"d log {peer} -n 50"))
        assert len(records) <= 50
        [record] = [one for one in records if one.get("exec_id") == exec_id and one.get("outcome")]
        assert (record["outcome"], record["exit_status"], record["priority"]) == ("exited", 7, 6)
        assert record["message"] == f"{exec_id} {ended}"
        assert json.loads(machine.out(f"d log {peer} --lines 0")) == []
        [last] = json.loads(machine.out(f"d log {peer} --since 1h --lines 1"))
        assert last["time"] >= record["time"]


def test_log_takes_no_record_for_peerds_that_is_another_users(desktop: Machine) -> None:
    forged = "SYSLOG_IDENTIFIER=peerd\\nPEERD_EVENT=started\\nMESSAGE=forged\\n"
    desktop.run(f"printf '{forged}' | setpriv --reuid=nobody --clear-groups logger --journald")
    desktop.wait_until("journalctl -q -t peerd -o cat | grep -qx forged")
    assert "forged" not in desktop.out("d log -n 200")


def test_log_says_what_it_does_not_understand(desktop: Machine) -> None:
    for option in ("--since soonish", "--peer laptop --since soonish", "--since '-1h;'", "--lines many"):
        wrong = desktop.run(f"d log {option}", check=False)
        assert (wrong.returncode, wrong.stdout) == (2, b""), option
        assert b"since" in wrong.stderr or b"lines" in wrong.stderr
        follow = desktop.run(f"d log --follow {option}", check=False)
        assert (follow.returncode, follow.stdout) == (2, b""), option
    unreachable = desktop.run("d log --peer nas", check=False)
    assert unreachable.returncode == 255
    assert unreachable.stderr.startswith(b"Peer not found: nas\n")


@pytest.mark.parametrize("peer", ["", "--peer laptop"], ids=["here", "peer"])
def test_log_follows_until_it_is_interrupted(desktop: Machine, laptop: Machine, peer: str) -> None:
    where = laptop if peer else desktop
    with desktop.popen(f"exec d log {peer} --follow -n 0", stdout=subprocess.PIPE) as following:
        assert following.stdout
        where.wait_until(FOLLOWED, 20)
        exec_id = run_one(desktop, "laptop", "true")
        records = (json.loads(line) for line in following.stdout)
        assert any(record.get("exec_id") == exec_id and record.get("outcome") == "exited" for record in records)
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 130
    where.wait_until("! pgrep -x journalctl", 20)


@pytest.mark.parametrize("which", ["--since 1h", "--peer laptop"], ids=["here", "peer"])
def test_log_that_is_followed_goes_on_after_restarts_with_each_record_once(
    desktop: Machine, laptop: Machine, which: str
) -> None:
    where = laptop if "--peer" in which else desktop
    with desktop.popen(f"exec d log {which} --follow -n 0", stdout=subprocess.PIPE) as following:
        assert following.stdout
        where.wait_until(FOLLOWED, 20)
        ids, told = [], []
        for restarted in (desktop, laptop, desktop):
            restarted.run("systemctl restart peerd")
            ids.append(run_one(desktop, "laptop", "true"))
            for line in following.stdout:
                record = json.loads(line)
                told += [record["exec_id"]] if record.get("outcome") == "exited" else []
                if told[-1:] == ids[-1:]:
                    break
        assert told == ids
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 130


def test_log_ends_its_reader_when_its_caller_is_lost(desktop: Machine, laptop: Machine) -> None:
    with desktop.popen("exec d log --peer laptop --follow") as following:
        laptop.wait_until(FOLLOWED, 20)
        following.kill()
    laptop.wait_until("! pgrep -x journalctl", 20)
    assert desktop.ok("d execOnPeer --peer laptop --directory / --shellCmd true")


def test_log_on_d_bus(desktop: Machine) -> None:
    call = f"busctl --json=short call {busapi.NAME} {busapi.ROOT} {busapi.MANAGER} Log a{{sv}}"
    [records] = json.loads(desktop.out(f"{call} 2 peer s laptop lines i 3"))["data"]
    assert len(records) == 3
    assert all(record["message"]["type"] == "s" and record["priority"]["type"] == "x" for record in records)
    assert not desktop.ok(f"{call} 1 follow b true")
