"""A systemd for tests of units and apps: it knows the units that a test gives it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peerd.systemd1 import Systemd, SystemdError

_MISSING: dict[str, Any] = {
    "LoadState": "not-found",
    "ActiveState": "inactive",
    "SubState": "dead",
    "UnitFileState": "",
    "StateChangeTimestamp": 0,
    "ConditionResult": True,
    "Type": "notify",
    "MainPID": 0,
    "NRestarts": 0,
    "Result": "success",
    "ExecMainCode": 0,
    "ExecMainStatus": 0,
}


@dataclass
class FakeUnit:
    """One unit.

    :ivar job: what the result of a job for it is
    :ivar after: what is different of its properties after a job that starts it
    :ivar installs: whether it has an [Install] section
    :ivar later: what is different of its properties each time that it is looked at afterwards, one after another
    """

    job: str = "done"
    after: dict[str, Any] = field(default_factory=dict)
    installs: bool = True
    later: list[dict[str, Any]] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=lambda: {**_MISSING, "LoadState": "loaded"})


class FakeSystemd(Systemd):
    """Takes systemd's place.

    :ivar calls: the methods that were called, but for LoadUnit, RefUnit and UnrefUnit, each with its unit
    :ivar kept: the units that are not forgotten when they are inactive
    :ivar hold: while set, jobs do not end
    :ivar begun: set when a job has begun
    :ivar given_up: set when nobody waits for a job any more
    """

    def __init__(self, **units: FakeUnit) -> None:
        super().__init__()
        self.units = {f"{name.replace('_', '-')}.service": unit for name, unit in units.items()}
        self.calls: list[tuple[str, str]] = []
        self.kept: list[str] = []
        self.hold = False
        self.begun, self.given_up = asyncio.Event(), asyncio.Event()

    async def call(self, member: str, signature: str = "", body: Sequence[object] = ()) -> list[Any]:
        if member == "LoadUnit":
            unit = self.units.get(str(body[0]))
            if unit and unit.later:
                unit.properties |= unit.later.pop(0)
            if unit and unit.properties["ActiveState"] == "inactive" and body[0] not in self.kept:
                unit.properties |= {"Result": "success", "ConditionResult": False}
            return [body[0]]
        if member in ("RefUnit", "UnrefUnit"):
            (self.kept.append if member == "RefUnit" else self.kept.remove)(str(body[0]))
            return []
        if member == "Reload":
            self.calls.append((member, ""))
            return []
        name = str(body[0][0])  # type: ignore[index]
        self.calls.append((member, name))
        properties = self.units[name].properties
        wanted = "enabled" if member == "EnableUnitFiles" else "disabled"
        changes = [] if properties["UnitFileState"] == wanted else [("symlink", name, name)]
        properties["UnitFileState"] = wanted
        return [self.units[name].installs, changes] if member == "EnableUnitFiles" else [changes]

    async def get(self, path: str, interface: str, name: str) -> Any:
        if path == "silent.service":
            raise SystemdError("Get: no answer")
        return self.units[path].properties[name] if path in self.units else _MISSING[name]

    async def job(self, unit: str, method: str, signature: str, body: Sequence[object], bounded: bool = True) -> str:
        assert not bounded
        self.calls.append((method, unit))
        self.begun.set()
        if self.hold:
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up.set()
        known = self.units[unit]
        if method == "StopUnit":
            known.properties |= {"ActiveState": "inactive", "SubState": "dead", "MainPID": 0}
        elif known.job == "done":
            known.properties |= {"ActiveState": "active", "SubState": "running", "MainPID": 77, **known.after}
        else:
            known.properties |= {"ActiveState": "failed", "SubState": "failed", **known.after}
        return known.job
