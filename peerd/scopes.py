"""Transient scopes of systemd (systemd.scope(5))."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbus_next import Variant

from peerd.systemd1 import NoSuchUnit, Systemd, SystemdError

SLICE = "peerd-exec.slice"
_USEC = 1_000_000
_MANAGER = "/org/freedesktop/systemd1"


def scope_name(exec_id: str) -> str:
    """The unit of the command with this id."""
    return f"peerd-exec-{exec_id}.scope"


def _cgroup(name: str) -> str:
    # systemd.slice(5): the dashes in a slice's name are its place in the tree.
    return f"/sys/fs/cgroup/peerd.slice/{SLICE}/{name}"


def processes(name: str) -> list[int]:
    """The pids in a scope of :data:`SLICE` and below; empty when it is gone.

    :raises OSError: when they cannot be read
    """
    found: list[int] = []
    groups = [_cgroup(name)]
    for group in groups:
        try:
            found += map(int, _read(f"{group}/cgroup.procs").split())
            with os.scandir(group) as entries:
                groups += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            # A group may go at any time, also between an open and a read.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


def populated(name: str) -> bool:
    """Whether there are processes in a scope or below, as far as that can be told (cgroup.events of cgroups(7))."""
    return _entry(f"{_cgroup(name)}/cgroup.events", "populated") == 1


def kill(name: str) -> None:
    """SIGKILL everything in a scope without asking systemd, for when it does not answer (cgroup.kill of cgroups(7))."""
    with contextlib.suppress(OSError):
        Path(_cgroup(name), "cgroup.kill").write_text("1")


@dataclass(frozen=True)
class Figures:
    """What a scope has used so far; None where the kernel does not tell.

    :ivar cpu_usec: microseconds of CPU time
    :ivar memory_peak: bytes
    :ivar oom_kills: how many of its processes the kernel killed because memory ran out
    """

    cpu_usec: int | None = None
    memory_peak: int | None = None
    oom_kills: int = 0


def figures(name: str) -> Figures:
    """What a scope has used, while it exists (cpu.stat, memory.peak and memory.events of cgroups(7))."""
    group = _cgroup(name)
    return Figures(
        _entry(f"{group}/cpu.stat", "usage_usec"),
        _entry(f"{group}/memory.peak", ""),
        _entry(f"{group}/memory.events", "oom_kill") or 0,
    )


def _read(file: str) -> str:
    with open(file, "rb", 0) as opened:
        return opened.read().decode("ascii")


def _entry(file: str, key: str) -> int | None:
    """The number behind a key in a file of a control group."""
    try:
        for line in _read(file).splitlines():
            name, _, number = line.rpartition(" ")
            if name == key:
                return int(number)
    except (OSError, ValueError):
        pass
    return None


@dataclass(frozen=True)
class Limits:
    """Bounds of a scope's resources; None for none.

    :ivar memory: bytes (MemoryMax=)
    :ivar cpu: percent of one CPU (CPUQuota=)
    :ivar tasks: processes and threads (TasksMax=)
    """

    memory: int | None = None
    cpu: float | None = None
    tasks: int | None = None

    def properties(self) -> list[tuple[str, Variant]]:
        """The bounds as properties of a unit."""
        found = []
        if self.memory:
            found += [("MemoryMax", Variant("t", self.memory)), ("MemorySwapMax", Variant("t", 0))]
        if self.cpu:
            found.append(("CPUQuotaPerSecUSec", Variant("t", max(1, round(self.cpu / 100 * _USEC)))))
        if self.tasks:
            # The gate is one of the scope's processes and none of the command's.
            found.append(("TasksMax", Variant("t", self.tasks + 1)))
        return found


class Stopper(enum.Enum):
    """Why systemd stops a scope."""

    SOMEBODY = enum.auto()
    """It was told to."""
    SHUTDOWN = enum.auto()
    """The machine goes down."""


class ScopeManager:
    """Starts and stops scopes."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd

    async def start(
        self,
        name: str,
        pids: Sequence[int],
        description: str,
        timeout: float,
        grace: float,
        limits: Limits | None = None,
    ) -> None:
        """Move processes into a new scope and return when the scope is active.

        :param timeout: seconds after which systemd stops the whole scope (RuntimeMaxSec=)
        :param grace: seconds from SIGTERM to SIGKILL when it is stopped (TimeoutStopSec=)
        :param limits: bounds of its resources, or None
        :raises SystemdError: when systemd refuses, for example because a unit of that name exists
        """
        properties = [
            ("Description", Variant("s", description)),
            ("PIDs", Variant("au", list(pids))),
            ("Slice", Variant("s", SLICE)),
            ("RuntimeMaxUSec", Variant("t", max(1, round(timeout * _USEC)))),
            ("TimeoutStopUSec", Variant("t", max(1, round(grace * _USEC)))),
            ("MemoryAccounting", Variant("b", True)),
            ("CollectMode", Variant("s", "inactive-or-failed")),
            *(limits.properties() if limits else []),
        ]
        body = [name, "fail", [[key, value] for key, value in properties], []]
        result = await self._systemd.job(name, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        if result != "done":
            raise SystemdError(f"starting {name}: {result}")

    async def stopper(self, name: str) -> Stopper | None:
        """Why systemd stops a scope now; None where it does not, or does not say so."""
        with contextlib.suppress(SystemdError):
            try:
                (path,) = await self._systemd.call("GetUnit", "s", [name])
                state = await self._systemd.get(path, "Unit", "ActiveState")
            except NoSuchUnit:
                # It had to kill, or all of it was killed.
                state = "inactive"
            if state != "active" and await self._systemd.get(_MANAGER, "Manager", "SystemState") == "stopping":
                return Stopper.SHUTDOWN
            if state == "deactivating":
                return Stopper.SOMEBODY
        return None

    async def stop(self, name: str) -> None:
        """Stop whatever is left in a scope, and return when all of it is gone.

        :raises SystemdError: when systemd does not answer; a scope that does not exist is no error
        """
        with contextlib.suppress(NoSuchUnit):
            await self._systemd.job(name, "StopUnit", "ss", [name, "replace"], bounded=False)
