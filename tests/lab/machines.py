"""Labs: machines that really boot, and the network that joins them, made and taken away as one.

Each machine is systemd in a systemd-nspawn container with a network namespace of its own. A bridge in a further
namespace is the internet between them (192.168.77.0/24, eth0 in each), and WireGuard over it is the VPN (10.0.0.0/24,
wg0): 10.0.0.1 is the hub that the others reach each other through. Nothing is made in the host's own network.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import TypedDict

from .base import ensure_base
from .host import PREFIX, RUN, LabError, check_host, destroy, host, locked
from .machine import Machine, Spec
from .network import HUB, UNDERLAY, forward, lay_bridge, lay_cable, underlay_address, write_wireguard
from .signals import held_back, interruptible

LOG = logging.getLogger(__name__)


def seed_machines(suite: str = "bookworm") -> tuple[Spec, ...]:
    """The leader and the two workers that the README is about, all of one Debian suite."""
    return Spec("vps", "10.0.0.1", suite), Spec("desktop", "10.0.0.2", suite), Spec("laptop", "10.0.0.4", suite)


class Lab:
    """Some machines, up for as long as the `with` block: booted, and joined by WireGuard where they have an address.

    lab["desktop"] is a machine; iterating gives all. Leaving the block takes everything away, also after an exception,
    SIGINT, SIGTERM or SIGHUP, and the next lab takes away what one that was killed left behind. After keep() it all
    stays, for attach().
    """

    def __init__(self, machines: Sequence[Spec] | None = None, extra: Sequence[str] = ()) -> None:
        """Describe a lab of these machines (default: seed_machines()); nothing is made yet.

        :param extra: packages that they have beside those of every lab
        """
        self.specs = tuple(machines if machines is not None else seed_machines())
        self._extra = extra
        self._use_prefix(PREFIX + secrets.token_hex(3))
        self._owner: int | None = None
        self._kept = False
        self._signals = ExitStack()

    def _use_prefix(self, prefix: str) -> None:
        self.prefix = prefix
        self.directory = RUN / prefix
        addresses = [underlay_address(index, spec.address) for index, spec in enumerate(self.specs)]
        self.machines = {
            spec.name: Machine(prefix, spec, address) for spec, address in zip(self.specs, addresses, strict=True)
        }

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    def __enter__(self) -> Lab:
        if not self._kept:
            self._signals.enter_context(interruptible())
            try:
                self._set_up()
            except BaseException:
                self.close(orderly=False)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._kept:
            self._release()
        else:
            self.close(orderly=error is None)

    # --- up

    def _set_up(self) -> None:
        if problems := check_host():
            raise LabError("\n".join(problems))
        bases = {suite: ensure_base(suite, self._extra) for suite in {spec.suite for spec in self.specs}}
        with locked(RUN / "lock"):
            _remove_stale()
            self._record()
            owner = os.open(self.directory / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(owner, fcntl.LOCK_EX)
            self._owner = owner
            self._lay_network()
        self._make_disks(bases)
        # The hub first: a WireGuard that finds no answer tries again only after 5 s.
        for some in ([m for m in self if m.address == HUB], [m for m in self if m.address != HUB]):
            for machine in some:
                machine.boot()
            for machine in some:
                machine.wait_running()
        self.wait_connected()

    def _lay_network(self) -> None:
        bridge = f"{self.prefix}-{UNDERLAY}"
        lay_bridge(bridge)
        for machine in self:
            lay_cable(bridge, machine.full_name, machine.name, machine.underlay)
            if machine.address == HUB:
                forward(machine.full_name)

    def _make_disks(self, bases: dict[str, Path]) -> None:
        # Memory: no fsync waits for a platter, and one umount takes all that was ever written away.
        disks = self.directory / "disks"
        disks.mkdir()
        host("mount", "-t", "tmpfs", "-o", "mode=700", self.prefix, str(disks))
        for machine in self:
            upper, work = disks / machine.name / "upper", disks / machine.name / "work"
            for path in (upper, work, machine.disk):
                path.mkdir(parents=True)
            layers = f"lowerdir={bases[machine.suite]},upperdir={upper},workdir={work}"
            host("mount", "-t", "overlay", "-o", layers, self.prefix, str(machine.disk))
            etc = machine.disk / "etc"
            (etc / "hostname").write_text(f"{machine.name}\n")
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n")
            (etc / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
        vpn = {machine.address: machine for machine in self if machine.address}
        hub = vpn[HUB].underlay if HUB in vpn else ""
        write_wireguard({address: machine.disk for address, machine in vpn.items()}, hub)

    def wait_connected(self, timeout: float = 30) -> None:
        """Wait until every machine of the VPN reaches every other one through it; LabError when one does not.

        After a reboot of the hub the others need some 15 s each to notice, or a wireguard_renew().
        """
        vpn = [machine for machine in self if machine.address]
        pairs = [(one, other) for one in vpn for other in vpn if one is not other]
        # To the hub first: it knows nobody's endpoint before it has heard from them.
        for one, other in sorted(pairs, key=lambda pair: pair[1].address != HUB):
            try:
                one.wait_until(f"ping -q -c1 -W1 {other.address}", timeout)
            except TimeoutError as error:
                state = one.out("wg; ip address; journalctl -b -u wg-quick@wg0 --no-pager", check=False)
                raise LabError(f"{one.name} cannot reach {other.address}:\n{state}") from error

    # --- down

    def close(self, *, orderly: bool = True) -> None:
        """Take the lab away, kept or not, its machines shut down or just killed; nothing happens a second time."""
        try:
            with held_back(), locked(RUN / "lock"):
                destroy(self.prefix, 15 if orderly else 0)
        finally:
            self._release()

    def _release(self) -> None:
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None
        self._signals.close()

    # --- kept

    def _record(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {"owner": os.getpid(), "kept": self._kept, "machines": [astuple(spec) for spec in self.specs]}
        unfinished = self.directory / "state.new"
        unfinished.write_text(json.dumps(state))
        unfinished.rename(self.directory / "state.json")

    def keep(self) -> None:
        """Leave the machines up after the block and after this process, until `tests/lab/down` or attach().close()."""
        self._kept = True
        self._record()

    @classmethod
    def attach(cls, prefix: str | None = None) -> Lab:
        """The kept lab of that prefix, or the one kept last; LabError if there is none. A `with` block leaves it up."""
        if os.geteuid() != 0:
            raise LabError("Labs are root's: run this as root, or with sudo.")
        kept = [directory.name for directory in kept_labs()]
        if not kept:
            raise LabError("There is no kept lab: `tests/lab/demo --keep` leaves one up.")
        if prefix and prefix not in kept:
            raise LabError(f"There is no kept lab {prefix} (there is {', '.join(kept)})")
        state = _state(RUN / (prefix or kept[-1]))
        lab = cls([Spec(*entry) for entry in state["machines"]] if state else ())
        lab._use_prefix(prefix or kept[-1])
        lab._kept = True
        return lab


class _State(TypedDict):
    """What state.json says of a lab: whose it is, whether it stays without its owner, and the specs of its machines."""

    owner: int
    kept: bool
    machines: list[tuple[str, str | None, str]]


def _state(directory: Path) -> _State | None:
    """The state of a lab, or None where its owner was killed before it wrote one."""
    try:
        state: _State = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def _labs() -> list[Path]:
    """The directories of all labs on this host, the one that changed state last at the end."""
    found = []
    for path in RUN.glob(f"{PREFIX}*/"):
        # One may be taken away right now.
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def kept_labs() -> list[Path]:
    """The directories of the labs that stay without their owners, the one kept last at the end."""
    states = [(directory, _state(directory)) for directory in _labs()]
    return [directory for directory, state in states if state and state["kept"]]


def _remove_stale() -> None:
    """Take away the labs of owners that are dead; to be called with the lock on RUN/lock held."""
    for directory in _labs():
        state = _state(directory)
        if state and state["kept"]:
            continue
        # The kernel drops an owner's lock with the owner, however that ended.
        with suppress(BlockingIOError), locked(directory / "owner", wait=False):
            LOG.info("removing %s, whose owner is gone", directory.name)
            destroy(directory.name)
