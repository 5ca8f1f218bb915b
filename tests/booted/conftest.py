"""Booted machines with the package installed, shared by the tests: a leader, two workers, and two that are none.

Each test runs on Debian 12's and on Debian 13's machines, one lab after the other.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Machine, Spec

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")
PEERS = {"vps": "10.0.0.1", "desktop": "10.0.0.2", "laptop": "10.0.0.4"}
STRANGER = Spec("stranger", "10.0.0.9")
OUTSIDER = Spec("outsider", None)
UNITS = "peerd.socket peerd-tcp.socket peerd.service"

# What the tests provoke. Any other record of peerd at warning or above, and any traceback, fails the run.
EXPECTED = re.compile(
    r"Lost leader |Connection from \S+ refused: |Registration of \S+ from \S+ refused: "
    r"|10\.0\.0\.\d+: (Malformed message|No common protocol version|Too busy|Permission denied)"
    r"|\d+ more (requests|connections and registrations) of \S+ were refused$"
    r"|Leader \S+ refuses: |\S+ must not run |\w+Peer \S+ denied to |\w*[Aa]pp\w* .+ (denied to|for) \S+: "
    r"|/var/lib/peerd/(peerd|jobs)\.db (cannot be (used|written)|was restored)|The history (does not have|cannot be) "
    r"|Internal error: cannot use the database \S+: \[Errno 5\] on purpose"
    r"|Configuration not reloaded|/etc/peerd/peerd\.conf\.d/test\.conf: unknown setting|unknown: Malformed"
)


@pytest.fixture(scope="session")
def package() -> Path:
    """The package under test: PEERD_DEB, or one built now."""
    if given := os.environ.get("PEERD_DEB"):
        return Path(given)
    built = subprocess.run([ROOT / "packaging/build-deb"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return ROOT / built.stdout.splitlines()[-1]


def install(machine: Machine, package: Path) -> None:
    """Install the package as a user does."""
    machine.put(package, f"/root/{package.name}")
    machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y ./{package.name}", timeout=300)


def join(lab: Lab) -> None:
    """Make the seed's leader and workers of three machines, and wait until each sees all."""
    lab["vps"].run("d setPeerConfig --role leader --id vps")
    lab["desktop"].run("d registerWorker")
    lab["laptop"].run("d setPeerConfig --role worker --id laptop --leader 10.0.0.1")
    for name in PEERS:
        wait_for_peers(lab[name])


def wait_for_peers(machine: Machine, count: int = 3) -> None:
    """Wait until a machine's registry shows this many peers online."""
    machine.wait_until(f"d listPeers | jq -e 'map(select(.is_online)) | length == {count}'", 40)


@pytest.fixture(scope="session", params=SUITES, ids=SUITES)
def lab(request: pytest.FixtureRequest, package: Path) -> Iterator[Lab]:
    """The machines, installed and joined; afterwards their journals are read."""
    suite = request.param
    specs = [Spec(name, address, suite) for name, address in PEERS.items()]
    others = [Spec(spec.name, spec.address, suite) for spec in (STRANGER, OUTSIDER)]
    with Lab([*specs, *others]) as machines:
        for name in (*PEERS, STRANGER.name):
            install(machines[name], package)
        join(machines)
        yield machines
        for name in PEERS:
            records = machines[name].out("journalctl -q -t peerd -p warning -o cat --no-pager").splitlines()
            assert not [line for line in records if not EXPECTED.match(line)], f"in the journal of {name}"
            printed = machines[name].out("journalctl -q -u peerd.service -o cat --no-pager")
            assert "Traceback" not in printed, f"in the journal of {name}"


@pytest.fixture
def vps(lab: Lab) -> Machine:
    """The leader."""
    return lab["vps"]


@pytest.fixture
def desktop(lab: Lab) -> Machine:
    """A worker."""
    return lab["desktop"]


@pytest.fixture
def laptop(lab: Lab) -> Machine:
    """Another worker."""
    return lab["laptop"]


@pytest.fixture
def stranger(lab: Lab) -> Machine:
    """A machine of the VPN that is no peer."""
    return lab["stranger"]


@pytest.fixture
def outsider(lab: Lab) -> Machine:
    """A machine that shares nothing but the underlay."""
    return lab["outsider"]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no scope, and no command's process, is left on any machine."""
    yield
    if "lab" not in request.fixturenames:
        return
    machines: Lab = request.getfixturevalue("lab")
    for name in PEERS:
        if machines[name].running:
            machines[name].wait_until("! systemctl list-units --plain --no-legend 'peerd-exec-*.scope' | grep .", 20)
