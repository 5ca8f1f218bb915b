"""The commands about apps, on this machine or on a peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peerd import remote
from peerd.answer import Answer
from peerd.app import ALL, DEFAULT_PATTERN, AppCommand, AppRequest, answer_from_wire
from peerd.apphost import AppHost
from peerd.config import Config
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.node import Node
from peerd.session import Session, unless_cancelled


class Apps:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node, host: AppHost, config: Callable[[], Config]) -> None:
        self._node = node
        self._host = host
        self._config = config

    async def do_start_app(self, session: Session, app: str, mode: str, peer: str | None = None) -> Answer:
        """Start an app."""
        return await self._do(session, AppRequest(AppCommand.START, app, mode), peer)

    async def do_stop_app(self, session: Session, app: str, mode: str, peer: str | None = None) -> Answer:
        """Stop an app."""
        return await self._do(session, AppRequest(AppCommand.STOP, app, mode), peer)

    async def do_restart_app(self, session: Session, app: str, mode: str, peer: str | None = None) -> Answer:
        """Stop an app if it runs, and start it."""
        return await self._do(session, AppRequest(AppCommand.RESTART, app, mode), peer)

    async def do_enable_app(self, session: Session, app: str, mode: str, peer: str | None = None) -> Answer:
        """Have an app started at boot."""
        return await self._do(session, AppRequest(AppCommand.ENABLE, app, mode), peer)

    async def do_disable_app(self, session: Session, app: str, mode: str, peer: str | None = None) -> Answer:
        """Have it started at boot no more."""
        return await self._do(session, AppRequest(AppCommand.DISABLE, app, mode), peer)

    async def do_app_status(self, session: Session, app: str = "", mode: str = ALL, peer: str | None = None) -> Answer:
        """What systemd says of the units of apps."""
        return await self._do(session, AppRequest(AppCommand.STATUS, app, mode), peer)

    async def do_list_apps(self, session: Session, peer: str | None = None) -> Answer:
        """The registered apps."""
        return await self._do(session, AppRequest(AppCommand.LIST), peer)

    async def do_add_app(
        self,
        session: Session,
        app: str,
        mode: str = ALL,
        unit: str = DEFAULT_PATTERN,
        directory: str = "",
        peer: str | None = None,
    ) -> Answer:
        """Register an app, or change what is registered of it."""
        request = AppRequest(AppCommand.ADD, app, mode, unit, directory)
        request.expand()
        return await self._do(session, request, peer)

    async def do_remove_app(self, session: Session, app: str, mode: str = ALL, peer: str | None = None) -> Answer:
        """Forget an app; its units stay as they are."""
        return await self._do(session, AppRequest(AppCommand.REMOVE, app, mode), peer)

    async def _do(self, session: Session, request: AppRequest, peer: str | None) -> Answer:
        where = peer or self._node.peer_id
        if request.command.changes:
            log(
                Event.APP_ASKED,
                f"{request.command} {request.app} ({request.mode}) asked of {where} by {session.caller}",
                app=request.app,
                mode=request.mode,
                peer=where,
                caller=session.caller,
                command=request.command.value,
            )
        here = where == self._node.peer_id
        work = self._host.do(request, session.caller, session.say) if here else self._ask(session, request, where)
        answer = await unless_cancelled(session, work)
        if answer is None:
            raise PeerdError(Code.APP_NOT_WAITED, app=request.app, peer=where)
        return answer

    async def _ask(self, session: Session, request: AppRequest, peer: str) -> Answer:
        target = await self._node.resolve(peer)
        # A unit may take long to start; what is only to be shown does not.
        limit = None if request.command.changes else self._config().connect_timeout
        begun = False
        try:
            async with self._node.pool.borrow(target.ip_address) as link, asyncio.timeout(limit):
                begun = True
                await link.send("appRequest", request.to_wire())
                reply = await link.expect("reply")
        except OSError as error:
            if begun and request.command.changes:
                raise PeerdError(Code.APP_LOST, app=request.app, peer=peer) from None
            raise remote.connect_failed(target, error) from None
        answer, notes = answer_from_wire(reply.fields, request)
        for note in notes:
            session.say(note)
        return answer
