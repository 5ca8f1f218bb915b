"""The commands that say who is a peer and what it may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peerd import guard, settling
from peerd.answer import Answer
from peerd.config import Config
from peerd.errors import EXIT_FAILURE, Code, PeerdError
from peerd.messages import Action, ExecRequest, RegistryAction
from peerd.node import Node
from peerd.policy import Decision
from peerd.session import Session


class Trust:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node, config: Callable[[], Config]) -> None:
        self._node = node
        self._config = config

    async def do_delete_peer(self, session: Session, peer: str, address: str | None = None) -> Answer:
        """Delete a peer from the registry."""
        return await self._change(session, RegistryAction.DELETE, peer, address, "Deleted")

    async def do_approve_peer(self, session: Session, peer: str, address: str | None = None) -> Answer:
        """Make a peer of a registration that waits or was refused."""
        return await self._change(session, RegistryAction.APPROVE, peer, address, "Approved")

    async def do_reject_peer(self, session: Session, peer: str, address: str | None = None) -> Answer:
        """Keep a peer or a registration out until it is approved or deleted."""
        return await self._change(session, RegistryAction.REJECT, peer, address, "Rejected")

    async def do_check_policy(
        self,
        session: Session,
        peer: str,
        directory: str = "",
        user: str = "",
        shell_cmd: str = "",
        action: str = "",
        env: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
        argv: Sequence[str] = (),
    ) -> Answer:
        """Whether a peer may run a command on this machine, and why."""
        if [bool(shell_cmd), bool(argv), bool(action)].count(True) != 1:
            raise PeerdError(Code.USAGE, reason="One of --shellCmd, --action and a program after -- is needed")
        if bool(directory) == bool(action):
            raise PeerdError(Code.USAGE, reason="--directory goes with a command, and is needed there")
        if action and (user or env):
            raise PeerdError(Code.USAGE, reason="--user and --env go with a command")
        config = self._config()
        own = Action(action) if action else None
        request = ExecRequest("", directory, shell_cmd, tuple(argv), own, timeout, dict(env), user)
        request = settling.resolve(request, config)
        question = guard.question_of(request, timeout, peer)
        here = peer == self._node.peer_id
        if here:
            decision = Decision(True, "who uses d on this machine itself is not subject to its policy")
        else:
            decision, question = await guard.judge(config.policy, question)
        registered = self._node.book.by_id(peer) is not None
        if decision.allowed:
            try:
                settling.settle(request, config, self._node.peer_id)
            except PeerdError as error:
                decision = Decision(False, error.details["reason"])
        if decision.allowed and not (registered or here):
            decision = Decision(False, f"{peer} is not a registered peer; else {decision.reason}")
        data = {
            "allowed": decision.allowed,
            "rule": decision.rule or None,
            "reason": decision.reason,
            "peer": peer,
            "registered": registered,
            "user": question.user,
            "directory": question.directory,
            "max_timeout": min(config.max_timeout, decision.max_timeout or config.max_timeout),
        }
        return Answer(data, status=0 if decision.allowed else EXIT_FAILURE)

    async def _change(
        self, session: Session, action: RegistryAction, peer: str, address: str | None, done: str
    ) -> Answer:
        try:
            where = await self._node.change_registry(action, peer, address, str(session.caller))
        except PeerdError as error:
            raise self._node.book.explain(error, peer) from None
        there = self._node.book.by_address(where) if where and action is RegistryAction.REJECT else None
        stays = f"; {where} stays registered as {there.peer_id}" if there and there.peer_id != peer else ""
        return Answer(text=f"{done} peer: {peer}{stays}")
