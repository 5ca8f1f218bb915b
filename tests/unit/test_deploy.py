"""The script of a deploy, with programs that stand for systemd, dpkg and d: what it says is true."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import peerd

SCRIPT = Path(peerd.__file__).with_name("deploy.sh")
PROGRAMS = {
    "d": """case "$*" in
        getPeerStatus*) printf '{\\n  "peer_id": "vps",\\n  "connected_to_leader": false\\n}\\n' ;;
        *echo*) echo works ;;
        esac""",
    "systemctl": """case "$*" in
        is-active*) [ ! -e broken ] ;;
        *ActiveState*) echo failed ;;
        *) echo same ;;
        esac""",
    "dpkg-query": """case "$*" in
        *Version*) printf 0.1.0 ;;
        --status*) echo 'Package: peerd' ;;
        --control-show*) exit 1 ;;
        --listfiles*) printf '/.\\n/etc\\n' ;;
        esac""",
    "dpkg-deb": 'for last; do :; done; echo package >"$last"',
    "dpkg": "exit 2",
    "systemd-cat": "cat >>journal",
}


def script(root: Path, **programs: str) -> list[str]:
    """The command that runs it below a directory, without waiting for a peerd that does not work."""
    (root / "state").mkdir(exist_ok=True)
    (root / "bin").mkdir(exist_ok=True)
    for name, text in (PROGRAMS | {name.replace("_", "-"): text for name, text in programs.items()}).items():
        path = root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    text = SCRIPT.read_text()
    for old, new in (("/var/lib/peerd", str(root / "state")), ("/run/", f"{root}/"), ("patience=60", "patience=0")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (root / "deploy.sh").write_text(text)
    return ["env", f"PATH={root / 'bin'}:{os.environ['PATH']}", "/bin/sh", "deploy.sh"]


def deploy(
    root: Path, build: str, rollback: str = "yes", seconds: str = "30", **programs: str
) -> tuple[int, list[str]]:
    """Run it; the exit status, and what it says."""
    command = [*script(root, **programs), rollback, seconds, build]
    done = subprocess.run(command, cwd=root, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("peerd: ")]


def test_a_build_that_leaves_peerd_alone_has_its_own_status(tmp_path: Path) -> None:
    assert deploy(tmp_path, "exit 7") == (7, [])
    assert not (tmp_path / "state/rollback").exists()


def test_a_build_that_takes_too_long_is_said_to_have_been_stopped(tmp_path: Path) -> None:
    status, said = deploy(tmp_path, "sleep 30", seconds="0.5")
    assert status == 124
    assert [line.partition(";")[0] for line in said] == ["peerd: the build took longer than 0.5 s and was stopped"]
    assert deploy(tmp_path, "exit 124") == (124, [])


def test_the_second_of_two_at_once_is_refused_and_the_first_keeps_its_way_back(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with subprocess.Popen([*script(tmp_path), "yes", "30", "cat gate; exit 3"], cwd=tmp_path) as first:
        # It can be opened once the build of the first reads it.
        with gate.open("w"):
            assert deploy(tmp_path, "touch built") == (1, ["peerd: another deploy runs on this machine"])
            assert deploy(tmp_path, "touch built", "no")[0] == 1
            assert not (tmp_path / "built").exists()
            assert (tmp_path / "state/rollback/peerd.deb").exists()
        assert first.wait(30) == 3
    assert deploy(tmp_path, "touch built") == (0, [])


def test_who_reads_may_go_and_takes_neither_the_build_nor_the_way_back_along(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    build = "echo one; cat gate; seq 50000 || exit 3; seq 50000 >&2 || exit 3; touch broken built"
    command = [*script(tmp_path, dpkg="seq 50000 && rm broken"), "yes", "30", build]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        assert running.stdout.readline() == b"one\n"
        running.stdout.close()
        running.stderr.close()
        (tmp_path / "gate").write_text("")
        assert running.wait(30) == 1
    assert (tmp_path / "built").exists()
    assert (tmp_path / "journal").read_text().splitlines()[-1] == "rolled back to peerd 0.1.0, which works"
    assert not (tmp_path / "state/rollback").exists()


def test_all_output_comes_in_order_before_the_end(tmp_path: Path) -> None:
    command = [*script(tmp_path), "no", "30", "seq 50000; echo done >&2; touch broken"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 50001))
    assert done.stderr.splitlines() == [
        "done",
        "peerd: peerd was restarted, seeing whether it works",
        "peerd: peerd.service is failed",
        "peerd: not rolled back",
    ]


def test_what_a_build_leaves_running_keeps_no_deploy_out(tmp_path: Path) -> None:
    left = "sleep 60 >/dev/null 2>&1 & echo $! >left"
    try:
        assert deploy(tmp_path, left)[0] == 0
        assert deploy(tmp_path, "exit 0") == (0, [])
    finally:
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)


def test_what_a_build_leaves_running_with_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    command = [*script(tmp_path), "yes", "30", "sleep 60 & echo $! >left; exit 7"]
    try:
        assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=30, check=False).returncode == 7
    finally:
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)


def test_without_room_for_the_package_nothing_is_built(tmp_path: Path) -> None:
    status, said = deploy(tmp_path, "touch built", dpkg_deb="exit 2")
    assert status == 1
    assert [line.partition(",")[0] for line in said] == ["peerd: the installed package cannot be kept"]
    assert not (tmp_path / "built").exists()
    assert not (tmp_path / "state/rollback").exists()
    assert deploy(tmp_path, "touch built", "no", dpkg_deb="exit 2") == (0, [])
    assert (tmp_path / "built").exists()


def test_without_a_package_it_is_built_without_a_way_back(tmp_path: Path) -> None:
    status, said = deploy(tmp_path, "touch broken", dpkg_query="exit 1")
    assert status == 1
    assert said == [
        "peerd: peerd was not installed as a package, so there will be no way back",
        "peerd: peerd was restarted, seeing whether it works",
        "peerd: peerd.service is failed",
        "peerd: not rolled back",
    ]


def test_a_package_that_cannot_be_put_back_is_said_to_be_so_and_kept(tmp_path: Path) -> None:
    status, said = deploy(tmp_path, "touch broken")
    assert status == 1
    assert said[-1].startswith("peerd: peerd 0.1.0 cannot be put back; its package is ")
    assert (tmp_path / "state/rollback/peerd.deb").exists()


def test_a_package_that_does_not_work_when_it_is_put_back_is_said_to_be_so_and_kept(tmp_path: Path) -> None:
    status, said = deploy(tmp_path, "touch broken", dpkg="exit 0")
    assert status == 1
    assert said[-1].startswith("peerd: peerd 0.1.0 does not work either; its package is ")
    assert (tmp_path / "state/rollback/peerd.deb").exists()
