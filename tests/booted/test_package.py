"""The package's life on a machine: upgraded, tested by its own test, purged; and the project installed by pip."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Machine

from peerd import __version__, busapi

from .conftest import ROOT, UNITS, install, wait_for_peers

# What dpkg, apt and the system itself write whenever a package comes or goes.
NOISE = re.compile(
    r"/(var/(log|cache|lib/(apt|dpkg|systemd|polkit-1|private)|tmp)|root|tmp|etc/(group|gshadow|\.pwd\.lock|ld\.so\.cache))\b"
)
EVERYTHING = "find / -xdev -printf '%p %y %l\\n' | sort"


@pytest.fixture(scope="module")
def former(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as one of a version before."""
    directory = tmp_path_factory.mktemp("former")
    tree, built = directory / "tree", directory / "peerd_former_all.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {__version__}\n", f"Version: {__version__}~~former\n"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, built], check=True, stdout=subprocess.DEVNULL)
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as pip builds it, from the files that git knows."""
    directory = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / "tree" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(directory), str(directory / "tree")], check=True)
    [built] = directory.glob("*.whl")
    return built


def test_an_upgrade_keeps_sockets_state_and_settings(
    laptop: Machine, desktop: Machine, package: Path, former: Path
) -> None:
    laptop.put(former, "/root/former.deb")
    laptop.run("apt-get install -y --allow-downgrades ./former.deb", timeout=300)
    assert laptop.out("dpkg-query -f '${Version}' -W peerd") == f"{__version__}~~former"
    # As a package leaves it whose peerd.service has no name for calls on D-Bus.
    alias, state = "dbus-org.automatelinux.peerd1.service", "/var/lib/systemd/deb-systemd-helper-enabled"
    laptop.run(f"rm /etc/systemd/system/{alias} {state}/{alias}; sed -i /{alias}/d {state}/peerd.service.dsh-also")
    setting = "/etc/peerd/peerd.conf.d/test.conf"
    laptop.write(setting, "[peerd]\ndefault-timeout = 29\n")
    laptop.run("echo '# mine' >>/etc/peerd/peerd.conf")
    before = laptop.out("d getPeerStatus | jq -c '{role, peer_id, leader_address}'")
    sockets = "systemctl show -P ActiveEnterTimestampMonotonic peerd.socket peerd-tcp.socket"
    listening, pid = laptop.out(sockets), laptop.out("systemctl show -P MainPID peerd")
    install(laptop, package)
    assert laptop.out("dpkg-query -f '${Version}' -W peerd") == __version__
    assert laptop.out(f"systemctl is-active {UNITS}").split() == ["active"] * 3
    assert laptop.out(f"systemctl is-enabled {alias}") == "alias"
    assert laptop.out(sockets) == listening
    assert laptop.out("systemctl show -P MainPID peerd") != pid
    assert laptop.out("d getPeerStatus | jq -c '{role, peer_id, leader_address}'") == before
    assert laptop.out("tail -1 /etc/peerd/peerd.conf") == "# mine"
    laptop.run(f"sed -i '$d' /etc/peerd/peerd.conf; rm {setting}; systemctl reload peerd")
    wait_for_peers(desktop)


def test_the_packages_own_test_passes(desktop: Machine) -> None:
    desktop.put(ROOT / "packaging/debian/tests/run-command", "/root/run-command")
    assert desktop.out("/root/run-command").endswith(f's "{__version__}"')


def test_purge_leaves_the_machine_as_it_was(outsider: Machine, package: Path) -> None:
    # Once installed and gone, so that what is only ever made once (the group, indexes) is there.
    install(outsider, package)
    outsider.run("apt-get purge -y peerd", timeout=300)
    before = set(outsider.out(EVERYTHING).splitlines())
    install(outsider, package)
    outsider.run("d setPeerConfig --role leader --id outsider")
    outsider.run("d execOnPeer --peer outsider --directory / --shellCmd id")
    outsider.run("d execOnPeer --peer outsider --directory / --detach --shellCmd 'sleep 3061'")
    outsider.run("mkdir /etc/peerd/peerd.conf.d/mine; touch /etc/peerd/peerd.conf.d/mine.conf")
    outsider.run("apt-get purge -y peerd", timeout=300)
    after = set(outsider.out(EVERYTHING).splitlines())
    assert [line for line in sorted(after ^ before) if not NOISE.match(line)] == []
    assert outsider.out("systemctl list-units --all --plain --no-legend 'peerd*'") == ""
    assert outsider.out("find / -xdev -name '*peerd*' -not -path '/root/*' -not -path '/var/log/*'") == ""
    assert not outsider.ok("test -e /run/peerd")
    assert not outsider.ok("pgrep -f 'sleep 3061'")
    assert outsider.out("systemctl --failed --plain --no-legend") == ""


def test_pip_gives_a_working_d_and_peerd_with_their_units(outsider: Machine, wheel: Path) -> None:
    outsider.put(wheel, f"/root/{wheel.name}")
    outsider.run("python3 -m venv --system-site-packages /opt/peerd", timeout=120)
    outsider.run(f"/opt/peerd/bin/pip install --quiet --no-index /root/{wheel.name}", timeout=120)
    assert "Usage: d " in outsider.out("/opt/peerd/bin/d help")
    outsider.write(
        "/etc/systemd/system/peerd.service.d/venv.conf",
        "[Service]\nExecStart=\nExecStart=/opt/peerd/bin/peerd\n"
        "ExecReload=\nExecReload=kill -HUP $MAINPID\nExecReload=/opt/peerd/bin/peerd --check\n",
    )
    outsider.run("""set -e
        systemd-sysusers /opt/peerd/lib/sysusers.d/peerd.conf
        ln -s /opt/peerd/lib/systemd/system/peerd* /etc/systemd/system/
        cp /opt/peerd/share/dbus-1/system.d/* /etc/dbus-1/system.d/
        systemctl daemon-reload
        systemctl start peerd.socket peerd-tcp.socket peerd.service""")
    try:
        d = "PATH=/opt/peerd/bin:$PATH"
        assert outsider.out(f"{d} d execOnPeer --peer outsider --directory /tmp --shellCmd pwd") == "/tmp"
        assert json.loads(outsider.out(f"{d} d getPeerStatus"))["daemon_version"] == __version__
        assert outsider.run(f"{d} getPeerIdByIp", check=False).returncode == 2
        outsider.wait_until(f"busctl call {busapi.NAME} {busapi.ROOT} {busapi.MANAGER} Version", 20)
        assert outsider.ok("test -e /opt/peerd/share/man/man1/d.1")
        outsider.run("systemctl reload peerd")
    finally:
        outsider.run(f"""systemctl stop {UNITS} peerd.slice
            rm -r /etc/systemd/system/peerd* /etc/dbus-1/system.d/org.automatelinux.* /opt/peerd /var/lib/peerd
            systemctl daemon-reload""")
