"""Runs commands on this machine: which may start, what their requests leave open, and the record of each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from peerd import guard, scopes
from peerd.config import Config
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.messages import Action, ExecRequest, ExecResult
from peerd.run import Run, describe
from peerd.scopes import ScopeManager
from peerd.session import Caller, Sink
from peerd.spawning import Spawner
from peerd.stdin import Stdin

_REMEMBERED = 100_000
"""How many exec ids are remembered, so that none runs twice."""


class Executor:
    """Runs commands, any number at once up to the configured limit.

    :param config: gives the settings in force
    :param name: gives the id of this machine, for error sentences
    :param changed: called when the number of running commands changes
    """

    def __init__(
        self,
        scope_manager: ScopeManager,
        config: Callable[[], Config],
        name: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._scopes = scope_manager
        self._spawner = Spawner()
        self._config = config
        self._name = name
        self._changed = changed
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.running = 0

    def start(self) -> None:
        """Get ready for the first command."""
        self._spawner.start()

    def close(self) -> None:
        """Let go of the spawner; running commands go on."""
        self._spawner.close()

    async def run(
        self, request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event, stdin: Stdin | None = None
    ) -> ExecResult:
        """Run a command to its end and return how it ended; every failure is a result too.

        :param stdin: what the command reads, where its request says that its caller sends it
        :param cancel: when set, the command is stopped and what it still says is dropped
        """
        try:
            asked, request = request.timeout, self._resolve(request)
            if not caller.user:
                request = await guard.admit(self._config().policy, request, asked, caller.peer, self._name())
            self._admit(request)
        except PeerdError as error:
            return self._record(request, caller, ExecResult.failure(error))
        self.running += 1
        self._changed()
        grace = self._config().stop_grace
        run = Run(request, caller, sink, cancel, stdin, self._scopes, self._spawner, grace, self._name())
        try:
            result = await run.to_end()
        finally:
            self.running -= 1
            self._changed()
        return self._record(request, caller, result)

    def _resolve(self, request: ExecRequest) -> ExecRequest:
        config = self._config()
        directory, command, default = request.directory, request.shell_cmd, config.default_timeout
        if request.action:
            default = config.build_timeout
            pull = request.action is Action.PULL
            directory = config.repository if pull else config.build_path
            command = config.pull_command if pull else config.build_command
        timeout = request.timeout or default
        if timeout > config.max_timeout:
            limit = f"a timeout of {timeout:g} s is more than max-timeout of {self._name()}, {config.max_timeout:g} s"
            raise PeerdError(Code.DENIED, reason=limit)
        return replace(request, directory=directory, shell_cmd=command, timeout=timeout)

    def _admit(self, request: ExecRequest) -> None:
        if request.exec_id in self._seen:
            raise PeerdError(Code.DUPLICATE, peer=self._name(), exec_id=request.exec_id)
        limit = self._config().max_commands
        if self.running >= limit:
            raise PeerdError(Code.BUSY, reason=f"{limit} commands run on {self._name()} (its max-commands)")
        self._seen[request.exec_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _record(self, request: ExecRequest, caller: Caller, result: ExecResult) -> ExecResult:
        detail = f": {result.error.sentence}" if result.error else ""
        log(
            Event.COMMAND_ENDED,
            f"{request.exec_id} for {caller} ended: {result.outcome}, exit status {result.exit_status}{detail}",
            **describe(request, caller.peer, str(caller)),
            outcome=result.outcome,
            exit_status=result.exit_status,
            duration_usec=result.duration_usec,
            unit=scopes.scope_name(request.exec_id),
        )
        return result
