"""The apps of this machine: kept in its registry, run by its systemd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from peerd import unitlog
from peerd.answer import Answer
from peerd.app import ALL, LISTED, MAX_APPS, SHOWN, App, AppCommand, AppRequest
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.registry import Registry
from peerd.render import moment
from peerd.session import Caller
from peerd.systemd1 import SystemdError
from peerd.units import State, Units

_VERBS: Mapping[AppCommand, tuple[str, str, Callable[[Units, str], Awaitable[None]]]] = {
    AppCommand.START: ("start", "Started", Units.start),
    AppCommand.STOP: ("stop", "Stopped", Units.stop),
    AppCommand.RESTART: ("restart", "Restarted", Units.restart),
    AppCommand.ENABLE: ("enable", "Enabled", Units.enable),
    AppCommand.DISABLE: ("disable", "Disabled", Units.disable),
}


class AppHost:
    """Does what is asked about the apps of this machine.

    :param name: gives the id of this machine
    """

    def __init__(self, registry: Registry, units: Units, name: Callable[[], str]) -> None:
        self._registry = registry
        self._units = units
        self._name = name

    async def do(self, request: AppRequest, caller: Caller, say: Callable[[str], None]) -> Answer:
        """Do one of the commands about apps.

        :param say: takes what is to be said beside the answer
        :raises PeerdError: NO_SUCH_APP, NO_SUCH_UNIT, UNIT_FAILED, USAGE
        """
        match request.command:
            case AppCommand.LIST:
                return Answer([dict(zip(LISTED, _listed(app), strict=True)) for app in self._chosen(request)])
            case AppCommand.STATUS:
                return Answer([await self._show(app) for app in self._chosen(request)])
            case AppCommand.ADD:
                return await self._add(request, caller, say)
            case AppCommand.REMOVE:
                return self._remove(request, caller)
        return await self._act(request, caller, say)

    def _chosen(self, request: AppRequest) -> list[App]:
        known = [app for app in self._registry.apps() if request.app in ("", app.name)]
        found = [app for app in known if request.mode in (ALL, app.mode)]
        if not found and request.app:
            mode = f" in mode {request.mode}" if known else ""
            raise PeerdError(Code.NO_SUCH_APP, app=f"{request.app}{mode}", peer=self._name())
        return found

    async def _show(self, app: App) -> dict[str, object]:
        state = await self._state(app)
        values = (
            *_listed(app),
            state.load,
            state.active,
            state.sub,
            state.enabled or None,
            state.pid or None,
            moment(state.since) or None,
            state.restarts,
            state.result or None,
            state.exit_status,
        )
        return dict(zip(SHOWN, values, strict=True))

    async def _state(self, app: App) -> State:
        try:
            return await self._units.state(app.unit)
        except SystemdError as error:
            raise await self._failure("look at", app.unit, str(error)) from None

    async def _add(self, request: AppRequest, caller: Caller, say: Callable[[str], None]) -> Answer:
        added = request.expand()
        missing = [app.unit for app in added if not (await self._state(app)).exists]
        known = {(app.name, app.mode) for app in self._registry.apps()}
        if len(known | {(app.name, app.mode) for app in added}) > MAX_APPS:
            raise PeerdError(Code.USAGE, reason=f"{self._name()} has {len(known)} units of apps already")
        self._registry.store_apps(added)
        for app in added:
            self._record(request, app, caller)
        for unit in missing:
            say(f"{unit} does not exist yet")
        return Answer(text=f"Added {request.app} on {self._name()}: {', '.join(app.unit for app in added)}")

    def _remove(self, request: AppRequest, caller: Caller) -> Answer:
        removed = self._chosen(request)
        self._registry.forget_apps(removed)
        for app in removed:
            self._record(request, app, caller)
        units = ", ".join(app.unit for app in removed)
        return Answer(text=f"Removed {request.app} on {self._name()}; left as they are: {units}")

    async def _act(self, request: AppRequest, caller: Caller, say: Callable[[str], None]) -> Answer:
        verb, done, act = _VERBS[request.command]
        apps = self._chosen(request)
        there = [app for app in apps if (await self._state(app)).exists]
        if not there:
            raise PeerdError(Code.NO_SUCH_UNIT, unit=apps[0].unit, peer=self._name())
        for app in apps:
            if app not in there:
                say(f"{app.unit} does not exist, skipped")
        lines: list[str] = []
        errors: list[PeerdError] = []
        for app in there:
            began = time.time()
            try:
                await act(self._units, app.unit)
            except SystemdError as error:
                self._record(request, app, caller, str(error))
                errors.append(await self._failure(verb, app.unit, str(error), began))
            except asyncio.CancelledError:
                self._record(request, app, caller, "it goes on, and nobody waits for it")
                raise
            else:
                self._record(request, app, caller)
                lines.append(f"{done} {app.unit} on {self._name()}")
        for failure in errors[1:]:
            say(failure.sentence)
        first = errors[0] if errors else None
        return Answer(text="\n".join(lines), error=first, status=first.kind.exit_status if first else 0)

    async def _failure(self, verb: str, unit: str, reason: str, began: float | None = None) -> PeerdError:
        """Why something could not be done with a unit, with what that wrote since."""
        lines = await unitlog.tail(unit, began) if began else []
        return PeerdError(Code.UNIT_FAILED, lines, name=verb, unit=unit, peer=self._name(), reason=reason)

    def _record(self, request: AppRequest, app: App, caller: Caller, reason: str = "") -> None:
        log(
            Event.APP_FAILED if reason else Event.APP_CHANGED,
            f"{request.command} {app.unit} for {caller}: {reason or 'done'}",
            app=app.name,
            mode=app.mode,
            peer=caller.peer,
            caller=caller,
            command=request.command.value,
            reason=reason,
            unit=app.unit,
        )


def _listed(app: App) -> tuple[str | None, ...]:
    return app.name, app.mode, app.unit, app.directory or None
