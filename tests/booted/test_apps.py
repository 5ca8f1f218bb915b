"""Apps: units of systemd that are started, stopped and enabled by name, here and on a peer."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab import Lab, Machine

from .conftest import PEERS, wait_for_peers

CONF = "/etc/peerd/peerd.conf.d/test.conf"
UNITS = {
    "cad-dev.service": "ExecStart=sleep infinity",
    "cad-prod.service": (
        "Type=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'\n"
        "[Install]\nWantedBy=multi-user.target"
    ),
    "bad-prod.service": (
        "Type=oneshot\nExecStart=/bin/sh -c 'echo one; printf \"cannot open \\\\033[31mdatabase\\n\" >&2; exit 3'"
    ),
    "crash-dev.service": "ExecStart=/bin/sh -c 'echo dying at once; exit 7'",
    "crash-prod.service": "ExecStart=/bin/sh -c 'echo dying again; kill -SEGV $$'\nRestart=always\nRestartSec=10ms",
    "none-prod.service": "ExecStart=/nonexistent/program",
    "slow-prod.service": "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo started >>/run/slow; sleep 4'",
    "once-dev.service": "Type=oneshot\nExecStart=true",
    "picky-prod.service": "ExecStart=true\n[Unit]\nConditionPathExists=/nonexistent",
}
APPS = "cad bad crash none slow once picky ghost".split()


@pytest.fixture(autouse=True)
def _units(lab: Lab) -> Iterator[None]:
    """The desktop has units, of which it knows the apps."""
    desktop = lab["desktop"]
    for name, text in UNITS.items():
        desktop.write(f"/etc/systemd/system/{name}", f"[Service]\n{text}\n")
    desktop.run("systemctl daemon-reload")
    for app in APPS:
        desktop.run(f"d addApp --app {app} --directory /opt/{app}")
    yield
    # systemd-notify of a machine that was switched off in between has nothing to clean up.
    for app in APPS:
        desktop.run(f"d removeApp --app {app}", check=False)
    names = " ".join(UNITS)
    desktop.run(f"systemctl disable -q --now {names}; systemctl reset-failed {names}", check=False)
    desktop.run(f"cd /etc/systemd/system && rm {names} && systemctl daemon-reload")


def status(machine: Machine, app: str, mode: str, *options: str) -> dict[str, Any]:
    """What a machine shows of one mode of an app."""
    shown = machine.run(["d", "appStatus", "--app", app, "--mode", mode, *options])
    (row,) = json.loads(shown.stdout)
    found: dict[str, Any] = row
    return found


def d(machine: Machine, command: str, app: str, mode: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return machine.run(["d", command, "--app", app, "--mode", mode, *options], check=False)


def failure(machine: Machine, app: str, mode: str, *options: str) -> list[str]:
    """What is said of an app that cannot be started."""
    result = d(machine, "startApp", app, mode, *options)
    assert result.returncode == 255
    assert result.stdout == b""
    return result.stderr.decode().splitlines()


@contextmanager
def policy(machine: Machine, text: str) -> Iterator[None]:
    machine.write(CONF, text)
    machine.run("systemctl reload peerd")
    try:
        yield
    finally:
        machine.run(f"rm {CONF}; systemctl reload peerd")


def test_an_app_is_started_restarted_and_stopped(desktop: Machine) -> None:
    assert (status(desktop, "cad", "prod")["active"], status(desktop, "cad", "prod")["main_pid"]) == ("inactive", None)
    assert desktop.out("d --complete startApp --app ca") == "cad"
    started = d(desktop, "startApp", "cad", "prod")
    assert (started.returncode, started.stdout, started.stderr) == (0, b"Started cad-prod.service on desktop\n", b"")
    first = status(desktop, "cad", "prod")
    assert desktop.out("systemctl show -P MainPID cad-prod.service") == str(first["main_pid"])
    assert [first[name] for name in ("load", "active", "sub", "enabled", "unit", "directory", "restarts")] == (
        ["loaded", "active", "running", "disabled", "cad-prod.service", "/opt/cad", 0]
    )
    assert d(desktop, "startApp", "cad", "prod").returncode == 0
    assert status(desktop, "cad", "prod")["main_pid"] == first["main_pid"]
    assert d(desktop, "restartApp", "cad", "prod").stdout == b"Restarted cad-prod.service on desktop\n"
    assert status(desktop, "cad", "prod")["main_pid"] != first["main_pid"]
    assert d(desktop, "stopApp", "cad", "prod").stdout == b"Stopped cad-prod.service on desktop\n"
    assert desktop.out("systemctl is-active cad-prod.service", check=False) == "inactive"


def test_a_unit_may_be_known_by_an_alias(desktop: Machine) -> None:
    link = "/etc/systemd/system/alias-dev.service"
    desktop.run(f"ln -s cad-dev.service {link}; systemctl daemon-reload; d addApp --app alias --mode dev")
    for command, done in (("startApp", b"Started"), ("restartApp", b"Restarted"), ("stopApp", b"Stopped")):
        assert d(desktop, command, "alias", "dev").stdout == done + b" alias-dev.service on desktop\n"
    desktop.run(f"d removeApp --app alias; rm {link}; systemctl daemon-reload")


def test_one_that_has_done_its_work_was_started(desktop: Machine) -> None:
    for command, done in (("startApp", b"Started"), ("restartApp", b"Restarted")):
        result = d(desktop, command, "once", "dev")
        assert (result.returncode, result.stdout) == (0, done + b" once-dev.service on desktop\n")
    assert status(desktop, "once", "dev")["active"] == "inactive"


def test_all_is_every_mode_that_there_is(desktop: Machine) -> None:
    both = d(desktop, "startApp", "cad", "all")
    assert both.stdout == b"Started cad-dev.service on desktop\nStarted cad-prod.service on desktop\n"
    rows = json.loads(desktop.out("d appStatus --app cad"))
    assert [(row["mode"], row["active"]) for row in rows] == [("dev", "active"), ("prod", "active")]
    assert d(desktop, "stopApp", "cad", "all").returncode == 0
    one = d(desktop, "startApp", "slow", "all")
    assert (one.returncode, one.stderr) == (0, b"slow-dev.service does not exist, skipped\n")
    assert len(json.loads(desktop.out("d appStatus"))) == 2 * len(APPS)


def test_an_enabled_app_is_there_after_a_boot(desktop: Machine, vps: Machine) -> None:
    assert d(desktop, "enableApp", "cad", "prod").stdout == b"Enabled cad-prod.service on desktop\n"
    row = status(desktop, "cad", "prod")
    assert (row["enabled"], row["active"]) == ("enabled", "inactive")
    desktop.stop()
    desktop.start()
    assert status(desktop, "cad", "prod")["active"] == "active"
    assert d(desktop, "disableApp", "cad", "prod").stdout == b"Disabled cad-prod.service on desktop\n"
    assert (status(desktop, "cad", "prod")["enabled"], status(desktop, "cad", "prod")["active"]) == (
        ("disabled", "active")
    )
    useless = d(desktop, "enableApp", "cad", "dev")
    assert useless.stderr.startswith(b"Failed to enable cad-dev.service on desktop: it has no [Install] section")
    wait_for_peers(vps)
    wait_for_peers(desktop)


def test_a_unit_that_fails_is_shown_with_its_own_last_words(desktop: Machine) -> None:
    said = failure(desktop, "bad", "prod")
    assert said[0] == "Failed to start bad-prod.service on desktop: exit status 3, result exit-code, job failed"
    assert said[1:3] == ["  | one", r"  | cannot open \x1b[31mdatabase"]
    assert said[3:] == ["  More, on desktop: systemctl status bad-prod.service; journalctl -u bad-prod.service"]
    row = status(desktop, "bad", "prod")
    assert (row["active"], row["result"], row["exit_status"]) == ("failed", "exit-code", 3)


def test_one_that_ends_at_once_did_not_start(desktop: Machine) -> None:
    said = failure(desktop, "crash", "dev")
    assert said[:2] == [
        "Failed to start crash-dev.service on desktop: exit status 7, result exit-code",
        "  | dying at once",
    ]
    said = failure(desktop, "crash", "prod")
    assert said[0].startswith("Failed to start crash-prod.service on desktop: ")
    assert "  | dying again" in said
    both = d(desktop, "restartApp", "crash", "all")
    assert both.returncode == 255
    assert both.stderr.count(b"Failed to restart") == 2


def test_what_cannot_be_started_is_said(desktop: Machine) -> None:
    assert failure(desktop, "none", "prod")[0] == (
        "Failed to start none-prod.service on desktop: exit status 203, result exit-code"
    )
    assert failure(desktop, "picky", "prod")[0] == (
        "Failed to start picky-prod.service on desktop: one of its conditions is not met"
    )
    desktop.run("systemctl mask -q ghost-dev.service")
    said = failure(desktop, "ghost", "dev")[0]
    desktop.run("systemctl unmask -q ghost-dev.service")
    assert said.startswith("Failed to start ghost-dev.service on desktop: ")
    assert "masked" in said
    assert failure(desktop, "nas", "prod")[:2] == [
        "No such app on desktop: nas",
        "  The apps there: d listApps --peer desktop",
    ]
    assert failure(desktop, "ghost", "prod")[0] == "No such unit on desktop: ghost-prod.service"
    assert failure(desktop, "ghost", "all")[0] == "No such unit on desktop: ghost-dev.service"


def test_wrong_usage_is_said(desktop: Machine) -> None:
    for arguments in (
        "startApp --app cad",
        "startApp --app cad --mode test",
        "startApp --app ../cad --mode prod",
        "addApp --app x --unit cad.service",
        "addApp --app x --unit ../../tmp/{mode}.service",
        "addApp --app x --directory /srv/../etc",
    ):
        assert desktop.run(["d", *arguments.split()], check=False).returncode == 2, arguments
    assert "x" not in {row["app"] for row in json.loads(desktop.out("d listApps"))}


def test_a_worker_looks_after_the_apps_of_another(laptop: Machine, desktop: Machine) -> None:
    listed = json.loads(laptop.out("d listApps --peer desktop"))
    assert listed == json.loads(desktop.out("d listApps"))
    assert {row["app"] for row in listed} == set(APPS)
    assert json.loads(laptop.out("d listApps")) == []
    started = d(laptop, "startApp", "cad", "prod", "--peer", "desktop")
    assert (started.stdout, started.stderr) == (b"Started cad-prod.service on desktop\n", b"")
    assert status(laptop, "cad", "prod", "--peer", "desktop") == status(desktop, "cad", "prod")
    asked = json.loads(laptop.out("journalctl -q -t peerd PEERD_EVENT=app-asked -o json -n 1 --no-pager"))
    done = json.loads(desktop.out("journalctl -q -u cad-prod.service PEERD_EVENT=app-changed -o json -n 1 --no-pager"))
    for record in (asked, done):
        assert [record[f"PEERD_{name}"] for name in ("APP", "MODE", "COMMAND")] == ["cad", "prod", "startApp"]
    assert (asked["PEERD_PEER"], asked["PEERD_CALLER"]) == ("desktop", "root@laptop")
    assert (done["PEERD_PEER"], done["PEERD_CALLER"]) == ("laptop", "laptop")
    said = failure(laptop, "bad", "prod", "--peer", "desktop")
    assert said[:3] == failure(desktop, "bad", "prod")[:3]
    laptop.run("d addApp --peer desktop --app more --mode dev --unit cad-dev.service --directory /srv/more")
    more = status(laptop, "more", "dev", "--peer", "desktop")
    assert (more["unit"], more["directory"], more["load"]) == ("cad-dev.service", "/srv/more", "loaded")
    laptop.run("d removeApp --peer desktop --app more")
    assert failure(laptop, "more", "dev", "--peer", "desktop")[0] == "No such app on desktop: more"


def test_the_example_of_the_manual(vps: Machine, desktop: Machine) -> None:
    desktop.run("mkdir -p /opt/automateLinux")
    command = "d startApp --app cad --mode prod"
    result = vps.run(
        ["d", "execOnPeer", "--peer", "desktop", "--directory", "/opt/automateLinux", "--shellCmd", command]
    )
    assert result.stdout == b"Started cad-prod.service on desktop\n"
    # It is no process of the command's, and so is there still.
    assert desktop.out("systemctl is-active cad-prod.service") == "active"
    failed = vps.run(
        ["d", "execOnPeer", "--peer", "desktop", "--directory", "/", "--shellCmd", command.replace("cad", "bad")],
        check=False,
    )
    assert failed.returncode == 255
    assert failed.stderr.startswith(b"Failed to start bad-prod.service on desktop: exit status 3")


@pytest.mark.parametrize(
    "text",
    ["[allow some]\npeers = *\nshell-commands = uptime\n", "[peerd]\naccept-exec = no\n"],
    ids=["a rule", "accept-exec"],
)
def test_the_policy_denies(laptop: Machine, desktop: Machine, text: str) -> None:
    with policy(desktop, text):
        for command in ("startApp", "stopApp", "appStatus"):
            denied = d(laptop, command, "cad", "prod", "--peer", "desktop")
            assert (denied.returncode, denied.stdout) == (255, b"")
            assert denied.stderr.startswith(b"Permission denied: desktop does not allow this\n")
        assert status(desktop, "cad", "prod")["active"] == "inactive"
        assert desktop.out(
            "journalctl -q -t peerd PEERD_EVENT=app-denied -o json -n 1 --no-pager | jq -r .PEERD_PEER"
        ) == ("laptop")
    with policy(desktop, "[allow trusted]\npeers = laptop\nusers = root\n"):
        assert d(laptop, "startApp", "cad", "prod", "--peer", "desktop").returncode == 0


@pytest.mark.parametrize("options", [[], ["--peer", "desktop"]], ids=["here", "on a peer"])
def test_an_interrupt_ends_the_waiting_and_not_the_start(lab: Lab, desktop: Machine, options: list[str]) -> None:
    asking = lab["laptop"] if options else desktop
    command = ["d", "startApp", "--app", "slow", "--mode", "prod", *options]
    waiting = asking.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    desktop.wait_until("systemctl is-active slow-prod.service | grep -qx activating")
    waiting.send_signal(signal.SIGINT)
    stdout, stderr = waiting.communicate(timeout=10)
    assert (waiting.returncode, stdout) == (130, b"")
    assert stderr.decode().splitlines()[0] == "Stopped waiting for slow on desktop"
    desktop.wait_until("systemctl is-active slow-prod.service | grep -qx active", 20)


def test_a_start_that_takes_longer_than_any_answer_is_waited_for(laptop: Machine, desktop: Machine) -> None:
    began = d(laptop, "startApp", "slow", "prod", "--peer", "desktop")
    assert (began.returncode, began.stdout) == (0, b"Started slow-prod.service on desktop\n")
    assert status(desktop, "slow", "prod")["sub"] == "exited"


def test_many_may_ask_for_the_same_at_once(lab: Lab, desktop: Machine) -> None:
    callers = [*(lab[name] for name in ("vps", "laptop")), desktop, desktop]
    command = ["d", "startApp", "--app", "slow", "--mode", "prod", "--peer", "desktop"]
    desktop.run("rm -f /run/slow")
    starting = [machine.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for machine in callers]
    said = [process.communicate(timeout=30) for process in starting]
    assert said == [(b"Started slow-prod.service on desktop\n", b"")] * len(callers)
    assert desktop.read("/run/slow") == "started\n"


def test_the_bus_has_apps(desktop: Machine) -> None:
    def call(method: str, *arguments: str) -> str:
        name, path = "org.automatelinux.peerd1", "/org/automatelinux/peerd1"
        return desktop.out(["busctl", "call", "-j", name, path, f"{name}.Manager", method, *arguments])

    started = json.loads(call("StartApp", "ssa{sv}", "cad", "prod", "0"))
    assert started["data"] == ["Started cad-prod.service on desktop"]
    (rows,) = json.loads(call("AppStatus", "a{sv}", "1", "app", "s", "cad"))["data"]
    assert [row["active"]["data"] for row in rows] == ["inactive", "active"]


def test_a_peer_that_goes_before_its_answer_is_said(lab: Lab) -> None:
    desktop, laptop = lab["desktop"], lab["laptop"]
    command = ["d", "startApp", "--app", "slow", "--mode", "prod", "--peer", "desktop"]
    waiting = laptop.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    desktop.wait_until("systemctl is-active slow-prod.service | grep -qx activating")
    desktop.run("systemctl restart peerd")
    _, stderr = waiting.communicate(timeout=20)
    assert waiting.returncode == 255
    assert stderr.decode().splitlines()[0] == "Lost connection to desktop before it answered about slow"
    for name in PEERS:
        wait_for_peers(lab[name])
    desktop.wait_until("systemctl is-active slow-prod.service | grep -qx active", 20)
