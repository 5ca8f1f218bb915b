"""Detached jobs: started, asked after, attached to, waited for and cancelled, from any peer; and the history."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab import Machine

from .test_options import d

SPEAK = "for i in 1 2 3; do echo out$i; echo err$i >&2; done; exit 7"


def detach(machine: Machine, command: str, *options: str, peer: str = "vps") -> str:
    """Start a job; its id."""
    job = machine.out(d("--detach", *options, "--shellCmd", command, peer=peer, directory="/tmp"))
    assert len(job) == 16
    return job


def data(machine: Machine, command: str) -> Any:
    """What a command shows, from JSON."""
    return json.loads(machine.run(command, check=False).stdout)


@contextmanager
def changed(machine: Machine, **settings: str) -> Iterator[None]:
    """Settings of a machine while the block lasts."""
    file = "/etc/peerd/peerd.conf.d/jobs.conf"
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in settings.items()]
    machine.write(file, "\n".join(["[peerd]", *lines, ""]))
    machine.run("systemctl reload peerd")
    yield
    machine.run(f"rm {file}; systemctl reload peerd")


def test_a_peer_that_hangs_is_not_said_to_have_no_such_job(desktop: Machine, vps: Machine) -> None:
    job = detach(desktop, "exec sleep 60", peer="desktop")
    desktop.run("systemctl kill --kill-whom=main --signal=STOP peerd.service")
    try:
        asked = vps.run(f"d getJob --job {job}", check=False)
    finally:
        desktop.run("systemctl kill --kill-whom=main --signal=CONT peerd.service")
    assert (asked.returncode, asked.stderr.splitlines()[0]) == (255, b"Failed to connect to peer: desktop (10.0.0.2)")
    vps.wait_until(f"d cancelJob --job {job}")


def test_who_attaches_hears_of_what_was_left_behind(desktop: Machine) -> None:
    job = detach(desktop, "sleep 1234 >/dev/null 2>&1 & echo end")
    heard = desktop.run(f"d attachJob --job {job}")
    assert heard.stdout == b"end\n"
    assert heard.stderr == b"Stopped 1 background process that the command left running on vps\n"


@pytest.mark.parametrize("peer", ["vps", "desktop"])
def test_a_job_is_found_by_its_id_from_everywhere(desktop: Machine, laptop: Machine, vps: Machine, peer: str) -> None:
    job = detach(desktop, SPEAK, peer=peer)
    for machine in (desktop, laptop, vps):
        ended = machine.run(f"d waitJob --job {job}", check=False)
        assert ended.returncode == 7
        record = json.loads(ended.stdout)
        assert (record["exec_id"], record["peer"], record["detached"]) == (job, peer, True)
        assert (record["outcome"], record["exit_status"], record["dropped"]) == ("exited", 7, 0)
        assert data(machine, f"d getJob --job {job}") == record
        seen = machine.run(f"d attachJob --job {job}", check=False)
        assert (seen.returncode, seen.stdout, seen.stderr) == (7, b"out1\nout2\nout3\n", b"err1\nerr2\nerr3\n")
        assert job in [listed["exec_id"] for listed in data(machine, "d listJobs")]
    for machine in (desktop, *([vps] if peer == "vps" else [])):
        assert machine.out(f"d --complete waitJob --job {job[:-1]}") == job
    both = data(laptop, f"d attachJob --job {job} --json")
    assert (both["stdout"], both["stderr_bytes"], both["exit_status"]) == ("out1\nout2\nout3\n", 15, 7)


def test_whoever_attaches_hears_all_from_the_beginning_and_then_as_it_comes(desktop: Machine, laptop: Machine) -> None:
    job = detach(desktop, "rm -f go; mkfifo go; echo first; read x <go; echo last; exit 5")
    with laptop.popen(f"d attachJob --job {job}", stdout=subprocess.PIPE) as early:
        assert early.stdout
        assert early.stdout.readline() == b"first\n"
        with desktop.popen(f"d attachJob --job {job}", stdout=subprocess.PIPE) as late:
            assert late.stdout
            assert late.stdout.readline() == b"first\n"
            desktop.run(d("--shellCmd", "echo >go", directory="/tmp"))
            assert (late.stdout.read(), late.wait(30)) == (b"last\n", 5)
        assert (early.stdout.read(), early.wait(30)) == (b"last\n", 5)


def test_ctrl_c_leaves_a_job_and_stops_no_wait_but_ours(desktop: Machine, vps: Machine) -> None:
    job = detach(desktop, "echo up; exec sleep 3011")
    with desktop.popen(f"d attachJob --job {job}", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attached:
        assert attached.stdout
        assert attached.stdout.readline() == b"up\n"
        attached.send_signal(signal.SIGINT)
        assert attached.wait(30) == 130
        assert attached.stderr
        assert f"d attachJob --job {job}".encode() in attached.stderr.read()
    with desktop.popen(f"d waitJob --job {job}", stderr=subprocess.PIPE) as waiting:
        vps.wait_until("ss -Htn state established sport = :3600 | grep -q 10.0.0.2")
        desktop.wait_until("ss -Hx state established | grep -q peerd.sock")
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130
    assert vps.ok("pgrep -f '[s]leep 3011'")
    assert desktop.out(f"d cancelJob --job {job}") == f"{job} on vps ended: cancelled, all that it started is gone"
    assert not vps.ok("pgrep -f '[s]leep 3011'")
    assert data(desktop, f"d getJob --job {job}")["outcome"] == "cancelled"
    assert desktop.run(f"d attachJob --job {job}", check=False).returncode == 130
    assert desktop.ok(f"d cancelJob --job {job}")


def test_a_job_outlives_its_caller_and_the_link(desktop: Machine, vps: Machine) -> None:
    job = detach(desktop, "rm -f on; mkfifo on; echo before; read x <on; echo after")
    desktop.wireguard_down()
    desktop.run("systemctl restart peerd")
    vps.run("echo >/tmp/on", timeout=30)
    vps.wait_until(f"d getJob --job {job} | jq -e '.outcome == \"exited\"'")
    desktop.wireguard_up()
    desktop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 30)
    assert desktop.out(f"d attachJob --job {job}") == "before\nafter"


def test_a_job_that_cannot_start_says_so_at_once(desktop: Machine) -> None:
    failed = desktop.run(d("--detach", "--shellCmd", "true", directory="/none"), check=False)
    assert (failed.returncode, failed.stdout) == (255, b"")
    assert failed.stderr.startswith(b"No such directory on vps: /none\n")
    for options in (["--stdin"], ["--timeout", "9999999"]):
        assert desktop.run(d("--detach", *options, "--shellCmd", "true"), check=False).returncode in (2, 255)


def test_a_job_has_its_timeout(desktop: Machine) -> None:
    job = detach(desktop, "echo some; (setsid sleep 3012 &); sleep 3012", "--timeout", "0.5")
    assert desktop.run(f"d waitJob --job {job}", check=False).returncode == 124
    seen = desktop.run(f"d attachJob --job {job}", check=False)
    assert (seen.returncode, seen.stdout) == (124, b"some\n")
    assert seen.stderr.startswith(b"Timeout waiting for response from vps (0.5 s)")


def test_what_is_over_the_quota_is_dropped_and_said(desktop: Machine, vps: Machine) -> None:
    with changed(vps, job_output_limit="1M"):
        job = detach(desktop, "head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2")
        record = data(desktop, f"d waitJob --job {job}")
        assert record["outcome"] == "exited"
        seen = desktop.run(f"d attachJob --job {job}")
        kept = len(seen.stdout) + seen.stderr.count(b"end\n") * 4
        assert seen.stdout == b"x" * len(seen.stdout)
        assert kept + record["dropped"] == 3000004
        assert kept == 1048576
        assert f"{record['dropped']} bytes of output were not kept".encode() in seen.stderr


def test_the_oldest_output_gives_way_and_old_output_expires(desktop: Machine, vps: Machine) -> None:
    with changed(vps, total_output_limit="2M"):
        jobs = []
        for letter in "123":
            jobs.append(detach(desktop, f"head -c 1000000 /dev/zero | tr '\\0' {letter}"))
            desktop.run(f"d waitJob --job {jobs[-1]}")
    first, _, third = jobs
    gone = desktop.run(f"d attachJob --job {first}", check=False)
    assert (gone.returncode, gone.stderr.splitlines()[0].decode()) == (255, f"Output is not kept any more: {first}")
    assert desktop.out(f"d attachJob --job {third}") == "3" * 1000000
    with changed(vps, job_retention="0.001"):
        # The end of another job is when old output is looked for.
        desktop.run(f"d waitJob --job {detach(desktop, 'true')}")
        assert desktop.run(f"d attachJob --job {third}", check=False).returncode == 255
    assert data(desktop, f"d getJob --job {third}")["outcome"] == "exited"


def test_the_output_of_an_attached_command_is_its_callers(desktop: Machine, laptop: Machine, vps: Machine) -> None:
    with desktop.popen(d("--shellCmd", "echo mine; exec sleep 3013"), stdout=subprocess.PIPE) as mine:
        assert mine.stdout
        assert mine.stdout.readline() == b"mine\n"
        (listed,) = [job for job in data(laptop, "d listJobs --peer vps") if job["outcome"] is None]
        assert (listed["peer"], listed["caller"], listed["detached"]) == ("vps", "desktop", False)
        refused = laptop.run(f"d attachJob --job {listed['exec_id']}", check=False)
        assert (refused.returncode, refused.stdout) == (255, b"")
        assert refused.stderr.startswith(b"Not a detached job: ")
        assert laptop.ok(f"d cancelJob --job {listed['exec_id']}")
        assert mine.wait(30) == 130


def test_an_id_that_is_nobodys(desktop: Machine) -> None:
    for command in ("getJob", "attachJob", "waitJob", "cancelJob"):
        refused = desktop.run(f"d {command} --job 00112233aabbccdd", check=False)
        assert refused.returncode == 255
        assert refused.stderr.startswith(b"No such job: 00112233aabbccdd\n")
        assert desktop.run(f"d {command} --job nonsense", check=False).returncode == 2


def test_the_history_has_both_ends(desktop: Machine, vps: Machine) -> None:
    desktop.run(d("--shellCmd", "echo a; exit 41"), check=False)
    desktop.run(d("--shellCmd", "kill -9 $$"), check=False)
    asked = data(desktop, "d history --peer vps --limit 2")
    assert [entry["side"] for entry in asked] == ["asked", "asked"]
    assert [(entry["outcome"], entry["exit_status"]) for entry in asked] == [("signaled", 137), ("exited", 41)]
    ran = data(vps, "d history --peer desktop --limit 2")
    assert [entry["side"] for entry in ran] == ["ran", "ran"]
    for near, far in zip(asked, ran, strict=True):
        assert near["exec_id"] == far["exec_id"]
        assert (far["caller"], near["caller"]) == ("desktop", "root@desktop")
        assert near["command"] == far["command"]
    assert {entry["outcome"] for entry in data(desktop, "d history --outcome signaled")} == {"signaled"}
    assert data(desktop, "d history --since 2099-01-01T00:00:00Z") == []
    assert len(data(desktop, "d history --since 1h --limit 3")) == 3
    assert desktop.run("d history --since soon", check=False).returncode == 2
    table = desktop.out("script -qec 'd history --limit 1' /dev/null")
    assert "SIDE" in table
    assert "kill -9 $$" in table


def test_a_detached_job_of_which_nothing_was_heard_since_is_complete_in_the_history(desktop: Machine) -> None:
    job = detach(desktop, "exit 4")
    desktop.wait_until(f"d history --limit 5 | jq -e '.[] | select(.exec_id == \"{job}\" and .exit_status == 4)'")


def test_a_job_with_json_prints_its_record(desktop: Machine) -> None:
    started = data(desktop, subprocess.list2cmdline(d("--detach", "--json", "--shellCmd", "true")))
    assert (started["detached"], started["outcome"], started["peer"]) == (True, None, "vps")
    assert desktop.ok(f"d waitJob --job {started['exec_id']}")


def test_files_of_jobs_are_roots(desktop: Machine, vps: Machine) -> None:
    desktop.run(f"d waitJob --job {detach(desktop, 'echo secret')}")
    modes = vps.out("stat -c '%a %U' /var/lib/peerd /var/lib/peerd/jobs /var/lib/peerd/jobs.db /var/lib/peerd/jobs/*")
    assert set(modes.splitlines()) == {"700 root", "600 root"}
