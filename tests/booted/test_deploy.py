"""Deploys that replace peerd on the target: one that works, and some that are broken on purpose."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Machine

from .conftest import ROOT, UNITS, wait_for_peers

# What is done to the installed package, as a shell command in its tree, and what is said of the result.
BROKEN = {
    "does not start": ("echo 'raise SystemExit(3)' >usr/bin/peerd", "peerd.service is activating"),
    "starts and hangs": (
        "printf '%s\\n' '#!/bin/sh' 'systemd-notify --ready' 'exec sleep infinity' >usr/bin/peerd",
        "peerd does not answer",
    ),
    "cannot open the database": (
        "sed -i 's/self.peewee.connect()/raise OSError(5, \"on purpose\")/'"
        " usr/lib/python3/dist-packages/peerd/database.py",
        "peerd.service is activating",
    ),
}


def package_with(machine: Machine, version: str, change: str) -> str:
    """Another version of the installed package, in the machine; its path."""
    path = f"/root/peerd_{version}.deb"
    machine.run(
        "rm -rf tree; mkdir tree; dpkg-deb -R /root/peerd_0.1.0_all.deb tree; "
        f"sed -i 's/^Version: .*/Version: {version}/' tree/DEBIAN/control; "
        f"(cd tree; {change}); rm -f tree/DEBIAN/md5sums; dpkg-deb --root-owner-group -b tree {path}",
        timeout=120,
    )
    return path


@pytest.fixture
def target(lab: Lab, package: Path) -> Iterator[Machine]:
    """A worker whose build installs what the test says; afterwards it has the package under test again."""
    machine = lab["laptop"]
    machine.put(package, "/root/peerd_0.1.0_all.deb")
    machine.write(
        "/etc/peerd/peerd.conf.d/deploy.conf",
        "[peerd]\nrepository = /root\npull-command = true\nbuild-directory = .\nbuild-command = sh build.sh\n",
    )
    machine.run("systemctl reload peerd")
    yield machine
    machine.run("rm -f /etc/peerd/peerd.conf.d/deploy.conf; dpkg -i --force-downgrade /root/peerd_0.1.0_all.deb")
    wait_for_peers(lab["vps"])


def deploy(caller: Machine, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Deploy to laptop."""
    return caller.run(["d", "remoteDeployDaemon", "--peer", "laptop", *options], check=False, timeout=400)


def version_of(machine: Machine) -> str:
    return machine.out("dpkg-query --show --showformat='${Version}' peerd")


def test_a_deploy_is_heard_to_its_end_across_a_restart_of_its_callers_peerd(lab: Lab, target: Machine) -> None:
    desktop = lab["desktop"]
    target.write("/root/build.sh", "rm -f on; mkfifo on; echo building; read x <on; echo built\n")
    with desktop.popen("d remoteDeployDaemon --peer laptop", stdout=subprocess.PIPE) as deploying:
        assert deploying.stdout
        assert deploying.stdout.readline() == b"building\n"
        desktop.run("systemctl restart peerd")
        target.run("echo >/root/on", timeout=30)
        assert (deploying.stdout.read(), deploying.wait(60)) == (b"built\n", 0)
    assert json.loads(desktop.out("d history --limit 1"))[0]["outcome"] == "exited"


def test_a_deploy_that_replaces_peerd_is_heard_to_its_end(lab: Lab, target: Machine) -> None:
    change = "sed -i 's/^__version__ = .*/__version__ = \"0.1.1\"/' usr/lib/python3/dist-packages/peerd/__init__.py"
    path = package_with(target, "0.1.1", change)
    target.write("/root/build.sh", f"echo building; dpkg -i {path}; echo built\n")
    done = deploy(lab["desktop"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"building\n")
    assert done.stdout.endswith(b"built\n")
    assert b"peerd 0.1.1 works" in done.stderr
    assert done.stderr.endswith(b"Deployed on laptop\n")
    wait_for_peers(lab["vps"])
    peers = {peer["peer_id"]: peer["daemon_version"] for peer in json.loads(lab["desktop"].out("d listPeers"))}
    assert (peers["laptop"], peers["vps"]) == ("0.1.1", "0.1.0")
    assert not target.ok("[ -e /var/lib/peerd/rollback ]")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_peerd_that_does_not_work_is_rolled_back(lab: Lab, target: Machine, fault: str) -> None:
    change, complaint = BROKEN[fault]
    path = package_with(target, "0.1.2", change)
    target.write("/root/build.sh", f"dpkg -i {path}\n")
    done = deploy(lab["desktop"])
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert complaint in said
    assert "rolled back to peerd 0.1.0, which works" in said
    assert version_of(target) == "0.1.0"
    wait_for_peers(lab["vps"])


def test_a_build_that_fails_has_its_own_status_and_changes_nothing(lab: Lab, target: Machine) -> None:
    target.write("/root/build.sh", "echo no compiler >&2; exit 77\n")
    before = target.out("systemctl show -P MainPID peerd")
    done = deploy(lab["desktop"])
    assert done.returncode == 77
    assert done.stderr.splitlines()[-2:] == [
        b"no compiler",
        b"Deploy on laptop failed: build ended with exit status 77",
    ]
    assert target.out("systemctl show -P MainPID peerd") == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("build", "said"),
    [
        (f"systemctl stop {UNITS}; dpkg -i /root/peerd_0.1.0_all.deb; systemctl start {UNITS}", "peerd 0.1.0 works"),
        (f"systemctl stop {UNITS}; seq 50000", "rolled back to peerd 0.1.0, which works"),
        ("dpkg -r peerd", "rolled back to peerd 0.1.0, which works"),
    ],
    ids=["replaces it", "leaves it stopped", "removes it"],
)
def test_a_build_that_stops_peerd_leaves_one_that_works(lab: Lab, target: Machine, build: str, said: str) -> None:
    target.write("/root/build.sh", f"{build}; echo built\n")
    last = target.out("journalctl -n 0 --show-cursor | sed -n 's/^-- cursor: //p'")
    done = deploy(lab["desktop"])
    assert done.returncode == 255
    assert b"goes on: journalctl -t peerd, on laptop\nCut off: " in done.stderr
    target.wait_until(f"journalctl -q -t peerd -o cat --after-cursor='{last}' | grep -qx '{said}'", 30)
    target.wait_until("flock --nonblock /var/lib/peerd true", 10)
    assert not target.ok("[ -e /var/lib/peerd/rollback ]")
    wait_for_peers(lab["vps"])


def test_a_deploy_to_this_machine_goes_on_while_its_own_peerd_is_replaced(lab: Lab, target: Machine) -> None:
    target.write("/root/build.sh", "echo one; dpkg -i /root/peerd_0.1.0_all.deb >/dev/null; echo two\n")
    done = deploy(target)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n"), done.stderr
    assert done.stderr.endswith(b"Deployed on laptop\n")


def test_the_version_before_is_reached_and_reaches_this_one(lab: Lab, target: Machine) -> None:
    """A peerd that speaks version 1 of the protocol, as the first one did."""
    old = subprocess.run(
        ["git", "-C", ROOT, "-c", f"safe.directory={ROOT}", "rev-parse", "--verify", "--quiet", "570ebee^{commit}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not old:
        pytest.skip("the history does not reach back to the first version")
    archive = subprocess.run(
        ["git", "-C", ROOT, "-c", f"safe.directory={ROOT}", "archive", old, "peerd", "packaging/bin/peerd"],
        stdout=subprocess.PIPE,
        check=True,
    )
    replace = (
        "rm -rf usr/lib/python3/dist-packages/peerd; tar x -C usr/lib/python3/dist-packages -f /root/old.tar peerd; "
        "tar x -C usr/bin --strip-components=2 -f /root/old.tar packaging/bin/peerd"
    )
    target.write("/root/old.tar", archive.stdout)
    path = package_with(target, "0.0.9", replace)
    target.run("systemctl stop peerd.socket peerd-tcp.socket peerd.service; rm /var/lib/peerd/peerd.db*")
    target.run(f"dpkg -i --force-downgrade {path}; d setPeerConfig --role worker --id laptop --leader 10.0.0.1")
    wait_for_peers(lab["vps"])
    desktop = lab["desktop"]
    data = bytes(range(256)) * 10_000
    there = ["d", "execOnPeer", "--peer", "laptop", "--directory", "/tmp"]
    assert (
        desktop.run([*there, "--stdin", "--shellCmd", "cat; echo end >&2; exit 3"], input=data, check=False).stdout
        == data
    )
    assert desktop.run([*there, "--timeout", "0.5", "--shellCmd", "sleep 9"], check=False).returncode == 124
    back = ["d", "execOnPeer", "--peer", "desktop", "--directory", "/tmp", "--stdin", "--shellCmd", "cat; exit 4"]
    answered = target.run(back, input=data, check=False)
    assert (answered.returncode, answered.stdout) == (4, data)
    refused = desktop.run([*there, "--detach", "--shellCmd", "true"], check=False)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (255, b"peerd on laptop is too old for this")
    target.write("/root/build.sh", "dpkg -i /root/peerd_0.1.0_all.deb; echo upgraded\n")
    deploy(desktop)
    wait_for_peers(lab["vps"])
    assert version_of(target) == "0.1.0"
    assert desktop.ok([*there, "--shellCmd", "true"])
