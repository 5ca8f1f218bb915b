"""The package on a machine: units, the daemon's dealings with systemd, and what it leaves when it goes."""

from __future__ import annotations

import json
from pathlib import Path

from lab import Lab, Machine

from .conftest import UNITS, install, wait_for_peers


def test_installing_gives_listening_sockets_and_a_running_daemon(desktop: Machine) -> None:
    assert desktop.out(f"systemctl is-active {UNITS}").split() == ["active"] * 3
    assert desktop.out(f"systemctl is-enabled {UNITS}").split() == ["enabled"] * 3
    assert desktop.out("stat -c '%U %G %a' /run/peerd/peerd.sock") == "root peerd 660"
    assert desktop.out("stat -c '%U %a' /var/lib/peerd /var/lib/peerd/peerd.db").split() == [
        "root",
        "700",
        "root",
        "600",
    ]
    assert ":3600 " in desktop.out("ss -Hltn")
    assert desktop.run("systemd-analyze verify --man=no /lib/systemd/system/peerd*", check=False).stderr == b""


def test_systemd_is_told_the_state_and_keeps_watch(desktop: Machine, vps: Machine) -> None:
    show = "systemctl show peerd -P Type -P NotifyAccess -P WatchdogUSec -P StatusText"
    assert desktop.out(show).splitlines()[:3] == ["notify", "main", "1min"]
    desktop.wait_until(
        "systemctl show peerd -P StatusText | grep -q 'worker desktop, connected to leader 10.0.0.1, 3 '"
    )
    vps.wait_until("systemctl show peerd -P StatusText | grep -q 'leader vps, 2 of 2 workers connected, 0 commands'")


def test_the_socket_starts_a_daemon_that_is_down(laptop: Machine, desktop: Machine) -> None:
    laptop.run("systemctl stop peerd.service")
    command = "d execOnPeer --peer laptop --directory / --shellCmd hostname"
    # The leader may not have told laptop of desktop yet when its first message comes in.
    desktop.wait_until(lambda: desktop.run(command, check=False).stdout == b"laptop\n", 20)
    assert laptop.out("systemctl is-active peerd.service") == "active"
    laptop.run("systemctl stop peerd.service; d getPeerStatus")
    assert laptop.out("systemctl is-active peerd.service") == "active"
    wait_for_peers(desktop)


def test_a_daemon_that_is_killed_comes_back_and_joins_again(laptop: Machine, desktop: Machine) -> None:
    before = int(laptop.out("systemctl show -P MainPID peerd"))
    assert before, "peerd does not run on laptop"
    laptop.run(f"kill -KILL {before}")
    laptop.wait_until(f"[ $(systemctl show -P MainPID peerd) != {before} ] && systemctl is-active peerd", 20)
    laptop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 20)
    wait_for_peers(desktop)


def test_a_restart_keeps_what_setPeerConfig_set(desktop: Machine) -> None:
    fields = "{role, peer_id, leader_address}"
    before = desktop.out(f"d getPeerStatus | jq -c '{fields}'")
    desktop.run("systemctl restart peerd")
    assert desktop.out(f"d getPeerStatus | jq -c '{fields}'") == before
    wait_for_peers(desktop)


def test_reload_takes_a_good_configuration_and_refuses_a_bad_one(vps: Machine, desktop: Machine) -> None:
    drop_in = "/etc/peerd/peerd.conf.d/test.conf"
    command = "d execOnPeer --peer vps --directory / --shellCmd 'sleep 30'"
    pid = vps.out("systemctl show -P MainPID peerd")
    vps.write(drop_in, "[peerd]\ndefault-timeout = 0.5\nno-such-setting = 1\n")
    vps.run("systemctl reload peerd")
    assert desktop.run(command, check=False).returncode == 124
    vps.write(drop_in, "[peerd]\ndefault-timeout = soon\n")
    assert vps.run("systemctl reload peerd", check=False).returncode == 1
    assert desktop.run(command, check=False).returncode == 124
    vps.wait_until("journalctl -q -t peerd -o cat | grep -q 'not reloaded.*default-timeout'")
    vps.wait_until("systemctl show -P StatusText peerd | grep -q 'not reloaded.*default-timeout'")
    vps.run(f"rm {drop_in}; systemctl reload peerd")
    assert vps.out("systemctl show -P MainPID peerd") == pid


def test_only_root_and_the_group_may_use_d(desktop: Machine) -> None:
    refused = desktop.run("setpriv --reuid=nobody --clear-groups d listPeers", check=False)
    assert refused.returncode == 255
    assert refused.stderr.startswith(b"Permission denied: only root and members of the group peerd may use d\n")
    desktop.run("id alice || useradd -m -G peerd alice")
    listed = json.loads(desktop.out("setpriv --reuid=alice --regid=alice --init-groups d listPeers"))
    assert len(listed) == 3
    query = "journalctl -q -t peerd -o json -n1 PEERD_CALLER=alice@desktop"
    desktop.run("setpriv --reuid=alice --regid=alice --init-groups d execOnPeer --peer vps --directory / --shellCmd id")
    desktop.wait_until(f"{query} | grep -q .")


def test_an_idle_daemon_uses_next_to_no_cpu(desktop: Machine) -> None:
    usage = "systemctl show -P CPUUsageNSec peerd"
    desktop.run("sleep 1")
    before = int(desktop.out(usage))
    desktop.run("sleep 8")
    assert int(desktop.out(usage)) - before < 0.005 * 8e9


def test_an_upgrade_keeps_the_state(laptop: Machine, desktop: Machine, package: Path) -> None:
    install(laptop, package)
    laptop.run(f"apt-get install -y --reinstall ./{package.name}", timeout=300)
    assert laptop.out(f"systemctl is-active {UNITS}").split() == ["active"] * 3
    laptop.wait_until("d getPeerStatus | jq -e '.peer_id == \"laptop\" and .connected_to_leader'", 20)
    wait_for_peers(desktop)


def test_remove_and_purge_leave_nothing(lab: Lab, package: Path) -> None:
    stranger = lab["stranger"]
    install(stranger, package)
    assert stranger.out("d execOnPeer --peer stranger --directory / --shellCmd hostname") == "stranger"
    stranger.run("apt-get remove -y peerd", timeout=300)
    assert ":3600" not in stranger.out("ss -Hltn")
    assert not stranger.ok("pgrep -f /usr/bin/peerd")
    assert stranger.ok("test -e /var/lib/peerd/peerd.db")
    stranger.run("apt-get purge -y peerd", timeout=300)
    left = stranger.out("find / -xdev -name '*peerd*' -not -path '/proc/*' -not -path '/root/*' -not -path '/sys/*'")
    assert [path for path in left.split() if not path.startswith(("/var/log", "/var/cache"))] == []
    assert stranger.out("systemctl list-units --all --plain --no-legend 'peerd*'") == ""
    install(stranger, package)
