"""Units of systemd: started, stopped and enabled, with the reason where that fails (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from peerd.errors import SIGNAL_BASE
from peerd.systemd1 import Systemd, SystemdError

_WATCHED_TYPES = ("simple", "idle", "exec")
"""Types of services that count as started before their program has done anything (systemd.service(5))."""
_WATCH = 1.0
"""Seconds for which those are watched for an early end."""
_STEP = 0.25
_EXITED, _KILLED, _DUMPED = 1, 2, 3
"""How a main process ended: CLD_EXITED, CLD_KILLED and CLD_DUMPED of waitid(2)."""
_USEC = 1_000_000
_UNIT = "LoadState ActiveState SubState UnitFileState StateChangeTimestamp ConditionResult".split()
_OF_A_SERVICE = "Type MainPID NRestarts Result ExecMainCode ExecMainStatus".split()


@dataclass(frozen=True)
class State:
    """What systemd says of a unit; of one that is no service, the latter half is at its defaults.

    :ivar load: "loaded", "not-found", "masked", ...
    :ivar active: "active", "inactive", "failed", "activating", ...
    :ivar enabled: "enabled", "disabled", "static", ...; "" where there is no unit file
    :ivar since: when it last changed, in seconds since the epoch; 0 for never
    :ivar condition: whether its conditions were met when it was last started
    :ivar pid: its main process, or 0
    :ivar code: how its main process ended last, as in waitid(2); 0 where it did not
    :ivar status: its exit status, or the number of the signal that ended it
    """

    load: str
    active: str
    sub: str
    enabled: str
    since: float
    condition: bool
    type: str = ""
    pid: int = 0
    restarts: int = 0
    result: str = ""
    code: int = 0
    status: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is such a unit."""
        return self.load != "not-found"

    @property
    def exit_status(self) -> int | None:
        """How its main process ended last, as a shell reports it, or None."""
        if not self.code:
            return None
        return self.status if self.code == _EXITED else SIGNAL_BASE + self.status

    @property
    def end(self) -> str:
        """How it ended, in words; "" where it did not, or well."""
        words = []
        if self.code == _EXITED and self.status:
            words.append(f"exit status {self.status}")
        elif self.code in (_KILLED, _DUMPED):
            words.append(f"signal {_signal_name(self.status)}")
        if self.result not in ("", "success"):
            words.append(f"result {self.result}")
        return ", ".join(words)


class Units:
    """Does things with units."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd

    async def state(self, unit: str) -> State:
        """What systemd says of a unit, whether it exists or not.

        :raises SystemdError: when systemd does not answer
        """
        (path,) = await self._systemd.call("LoadUnit", "s", [unit])
        wanted = [("Unit", name) for name in _UNIT]
        if unit.endswith(".service"):
            wanted += [("Service", name) for name in _OF_A_SERVICE]
        values: list[Any] = await asyncio.gather(
            *(self._systemd.get(path, interface, name) for interface, name in wanted)
        )
        load, active, sub, enabled, since, condition, *more = values
        return State(load, active, sub, enabled, since / _USEC, condition, *more)

    async def start(self, unit: str) -> None:
        """Start a unit and wait until it runs; nothing happens where it does.

        :raises SystemdError: why it does not, with how it ended
        """
        await self._bring_up("StartUnit", unit)

    async def restart(self, unit: str) -> None:
        """Stop a unit if it runs, start it, and wait until it runs.

        :raises SystemdError: why it does not, with how it ended
        """
        await self._bring_up("RestartUnit", unit)

    async def stop(self, unit: str) -> None:
        """Stop a unit and wait until it is gone.

        :raises SystemdError: why it is not
        """
        result = await self._job("StopUnit", unit)
        if result != "done":
            raise SystemdError(f"job {result}")

    async def enable(self, unit: str) -> None:
        """Have a unit started at boot, or whenever its [Install] section says.

        :raises SystemdError: why that cannot be
        """
        carries, changes = await self._systemd.call("EnableUnitFiles", "asbb", [[unit], False, False])
        if changes:
            await self._systemd.call("Reload")
        if not carries:
            raise SystemdError("it has no [Install] section that says when to start it")

    async def disable(self, unit: str) -> None:
        """Undo :meth:`enable`.

        :raises SystemdError: why that cannot be
        """
        (changes,) = await self._systemd.call("DisableUnitFiles", "asb", [[unit], False])
        if changes:
            await self._systemd.call("Reload")

    async def _bring_up(self, method: str, unit: str) -> None:
        async with self._kept(unit):
            result = await self._job(method, unit)
            state = await self.state(unit)
        if result != "done":
            raise SystemdError(", ".join(filter(None, (state.end, f"job {result}"))))
        if state.active == "inactive" and not state.condition:
            raise SystemdError("one of its conditions is not met")
        restarts, left = state.restarts, _WATCH
        while state.type in _WATCHED_TYPES and state.active == "active" and state.restarts == restarts and left > 0:
            await asyncio.sleep(_STEP)
            left -= _STEP
            state = await self.state(unit)
        if state.active == "failed" or state.sub.startswith("auto-restart"):
            raise SystemdError(state.end or state.sub)
        if state.restarts > restarts:
            raise SystemdError("it ended at once, and systemd started it again")

    @asynccontextmanager
    async def _kept(self, unit: str) -> AsyncIterator[None]:
        """Have systemd remember how a unit ended, which it forgets of one that has nothing to do any more."""
        with suppress(SystemdError):
            # Why it cannot be is why it cannot be started, too.
            await self._systemd.call("RefUnit", "s", [unit])
        try:
            yield
        finally:
            with suppress(SystemdError):
                await self._systemd.call("UnrefUnit", "s", [unit])

    async def _job(self, method: str, unit: str) -> str:
        return await self._systemd.job(unit, method, "ss", [unit, "replace"], bounded=False)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
