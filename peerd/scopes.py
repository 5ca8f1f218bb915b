"""Transient scopes of systemd, over one persistent connection to the system bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

SLICE = "peerd-exec.slice"
CALL_TIMEOUT = 25.0
"""Seconds to wait for an answer of systemd, the default of sd_bus_call(3)."""

_MOST_CALLS = 64
"""Calls at once: the bus refuses more than 128 that wait for a reply (max_replies_per_connection, dbus-daemon(1))."""

_DBUS = "org.freedesktop.DBus"
_SERVICE = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_USEC = 1_000_000
_CGROUP_ROOT = Path("/sys/fs/cgroup")


class ScopeError(Exception):
    """systemd refused or did not answer; the text says why."""


def scope_name(exec_id: str) -> str:
    """The unit of the command with this id."""
    return f"peerd-exec-{exec_id}.scope"


def _cgroup(name: str) -> Path:
    # systemd.slice(5): the dashes in a slice's name are its place in the tree.
    return _CGROUP_ROOT / "peerd.slice" / SLICE / name


def processes(name: str) -> list[int]:
    """The pids in a scope of :data:`SLICE` and below; empty when it is gone."""
    group = _cgroup(name)
    try:
        return [int(pid) for path in group.rglob("cgroup.procs") for pid in path.read_text().split()]
    except OSError:
        return []


def kill(name: str) -> None:
    """SIGKILL everything in a scope without asking systemd, for when it does not answer (cgroup.kill of cgroups(7))."""
    with contextlib.suppress(OSError):
        (_cgroup(name) / "cgroup.kill").write_text("1")


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
        _entry(group / "cpu.stat", "usage_usec"),
        _entry(group / "memory.peak", ""),
        _entry(group / "memory.events", "oom_kill") or 0,
    )


def _entry(file: Path, key: str) -> int | None:
    """The number behind a key in a file of a control group."""
    try:
        for line in file.read_text().splitlines():
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


class ScopeManager:
    """Starts, stops and asks about scopes. Connects on first use and again when the bus went away."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._lock = asyncio.Lock()
        self._calls = asyncio.Semaphore(_MOST_CALLS)
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def connect(self) -> MessageBus:
        """The connection, made if there is none.

        :raises ScopeError: when there is no system bus or systemd does not answer
        """
        async with self._lock:
            if self._bus and self._bus.connected:
                return self._bus
            try:
                bus = await asyncio.wait_for(MessageBus(bus_type=BusType.SYSTEM).connect(), CALL_TIMEOUT)
            except (OSError, EOFError) as error:
                raise ScopeError(f"no system bus: {error}") from None
            bus.add_message_handler(self._on_message)
            rule = f"type='signal',sender='{_SERVICE}',path='{_PATH}',interface='{_MANAGER}',member='JobRemoved'"
            await _call(bus, _DBUS, "/org/freedesktop/DBus", _DBUS, "AddMatch", "s", [rule])
            await _call(bus, _SERVICE, _PATH, _MANAGER, "Subscribe")
            self._bus = bus
            self._watcher = asyncio.create_task(self._watch(bus))
            return bus

    async def _watch(self, bus: MessageBus) -> None:
        # A call on a connection that broke would wait for ever.
        with contextlib.suppress(Exception):
            await bus.wait_for_disconnect()
        self._fail_jobs("connection to the system bus lost")

    async def start(
        self, name: str, pid: int, description: str, timeout: float, grace: float, limits: Limits | None = None
    ) -> None:
        """Move a process into a new scope and return when the scope is active.

        :param timeout: seconds after which systemd stops the whole scope (RuntimeMaxSec=)
        :param grace: seconds from SIGTERM to SIGKILL when it is stopped (TimeoutStopSec=)
        :param limits: bounds of its resources, or None
        :raises ScopeError: when systemd refuses, for example because a unit of that name exists
        """
        properties = [
            ("Description", Variant("s", description)),
            ("PIDs", Variant("au", [pid])),
            ("Slice", Variant("s", SLICE)),
            ("RuntimeMaxUSec", Variant("t", max(1, round(timeout * _USEC)))),
            ("TimeoutStopUSec", Variant("t", max(1, round(grace * _USEC)))),
            ("KillMode", Variant("s", "control-group")),
            ("SendSIGKILL", Variant("b", True)),
            ("CPUAccounting", Variant("b", True)),
            ("MemoryAccounting", Variant("b", True)),
            ("TasksAccounting", Variant("b", True)),
            ("CollectMode", Variant("s", "inactive-or-failed")),
            *(limits.properties() if limits else []),
        ]
        body = [name, "fail", [[key, value] for key, value in properties], []]
        result = await self._job(name, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        if result != "done":
            raise ScopeError(f"starting {name}: {result}")

    async def stop(self, name: str) -> None:
        """Stop whatever is left in a scope, and return when all of it is gone.

        :raises ScopeError: when systemd does not answer; a scope that does not exist is no error
        """
        with contextlib.suppress(NoSuchUnit):
            await self._job(name, "StopUnit", "ss", [name, "replace"], bounded=False)

    async def _job(self, name: str, method: str, signature: str, body: list[Any], bounded: bool = True) -> str:
        # Registered by unit name before the call, because the job may be gone before its path is known.
        bus = await self.connect()
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs[name] = done
        try:
            async with self._calls:
                await _call(bus, _SERVICE, _PATH, _MANAGER, method, signature, body)
            return await asyncio.wait_for(done, CALL_TIMEOUT if bounded else None)
        except TimeoutError:
            raise ScopeError(f"{method} {name}: no answer from systemd") from None
        finally:
            if self._jobs.get(name) is done:
                del self._jobs[name]

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            _, _, unit, result = message.body
            done = self._jobs.get(unit)
            if done and not done.done():
                done.set_result(result)

    def _fail_jobs(self, reason: str) -> None:
        for done in self._jobs.values():
            if not done.done():
                done.set_exception(ScopeError(reason))

    def close(self) -> None:
        """Disconnect."""
        if self._bus:
            self._bus.disconnect()
            self._bus = None


class NoSuchUnit(ScopeError):
    """The unit is not loaded."""


async def _call(
    bus: MessageBus,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: Sequence[object] = (),
) -> list[Any]:
    message = Message(destination, path, interface, member, signature=signature, body=list(body))
    try:
        reply = await asyncio.wait_for(bus.call(message), CALL_TIMEOUT)
    except (OSError, EOFError) as error:
        raise ScopeError(f"{member}: no answer ({type(error).__name__})") from None
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        text = f"{member}: {reply.body[0] if reply.body else reply.error_name}"
        raise NoSuchUnit(text) if reply.error_name == f"{_SERVICE}.NoSuchUnit" else ScopeError(text)
    return list(reply.body)
