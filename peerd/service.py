"""What each command does. The unix socket, TCP and D-Bus are thin fronts of this; nothing here knows of a socket."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from peerd import __version__
from peerd.answer import Answer
from peerd.apphost import AppHost
from peerd.apps import Apps
from peerd.commands import BY_NAME, COMMANDS, Known, snake_case
from peerd.config import Config
from peerd.deploy import Deploy
from peerd.errors import EXIT_CANCELLED, Code, PeerdError
from peerd.execution import Execution
from peerd.executor import Executor
from peerd.history import History
from peerd.jobs import Jobs
from peerd.logs import Logs
from peerd.membership import Membership
from peerd.node import Node
from peerd.recall import Recall
from peerd.registry import Registry
from peerd.session import Session, unless
from peerd.trust import Trust


class Service:
    """The commands.

    They are in parts, by subject. A part has a method ``do_<name in snake case>`` for each of its commands, which takes
    the session and the parsed parameters.
    """

    def __init__(
        self,
        node: Node,
        executor: Executor,
        registry: Registry,
        past: History,
        apps: AppHost,
        config: Callable[[], Config],
    ) -> None:
        execution = Execution(node, executor, past, config)
        jobs = Jobs(node, executor, past, execution, config)
        self._known: Mapping[str, Callable[[], Iterable[str]]] = {
            Known.PEER: lambda: {node.peer_id, *node.book.ids()},
            Known.JOB: jobs.known,
            Known.APP: lambda: {app.name for app in registry.apps()},
        }
        parts = (
            self,
            execution,
            jobs,
            Recall(jobs, past, config),
            Deploy(node, execution, jobs),
            Apps(node, apps, config),
            Membership(node, executor, registry, config),
            Trust(node, config),
            Logs(node),
        )
        methods = {name: f"do_{snake_case(name)}" for name in BY_NAME}
        self._methods: dict[str, Callable[..., Coroutine[Any, Any, Answer]]] = {
            name: getattr(part, method) for name, method in methods.items() for part in parts if hasattr(part, method)
        }

    async def call(self, name: str, params: Mapping[str, Any], session: Session) -> Answer:
        """Do a command.

        :param params: its options by name, as the table's parsers returned them; those not given are absent
        :raises PeerdError: what went wrong
        """
        work = self._methods[name](session, **params)
        try:
            if not BY_NAME[name].asks:
                return await work
            answer = await unless((session.cancel,), work)
        except PeerdError as error:
            if error.code is Code.USAGE:
                error.details["command"] = name
            raise
        return Answer(status=EXIT_CANCELLED) if answer is None else answer

    def known(self, metavar: str) -> Iterable[str]:
        """The values of an option that are known here, without asking anybody, by its metavar."""
        return self._known.get(metavar, tuple)()

    async def do_version(self, session: Session) -> Answer:
        """The version of this daemon."""
        return Answer(text=__version__)

    async def do_list_commands(self, session: Session) -> Answer:
        """The table of commands."""
        return Answer([{"command": command.name, "summary": command.summary} for command in COMMANDS])
