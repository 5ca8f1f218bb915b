"""The commands that run something on a peer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from peerd import remote, validate
from peerd.answer import Answer
from peerd.errors import Code, PeerdError
from peerd.executor import Executor
from peerd.journal import Event, log
from peerd.messages import Action, ExecRequest, ExecResult
from peerd.node import Node
from peerd.render import record
from peerd.run import describe
from peerd.session import Session

_USEC = 1_000_000


class Execution:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node, executor: Executor) -> None:
        self._node = node
        self._executor = executor

    async def do_exec_on_peer(
        self,
        session: Session,
        peer: str,
        directory: str,
        shell_cmd: str = "",
        timeout: float | None = None,
        stdin: bool = False,
        env: Sequence[tuple[str, str]] = (),
        user: str = "",
        login: bool = False,
        memory: int | None = None,
        cpu: float | None = None,
        tasks: int | None = None,
        argv: Sequence[str] = (),
    ) -> Answer:
        """Run a shell command, or a program with its arguments, on a peer."""
        if bool(shell_cmd) == bool(argv):
            raise PeerdError(Code.USAGE, reason="Either --shellCmd or a program after -- is needed, and not both")
        try:
            program = validate.arguments(argv) if argv else ()
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"The program and its arguments: {error}") from None
        request = ExecRequest(
            new_exec_id(),
            directory,
            shell_cmd,
            program,
            timeout=timeout,
            env=dict(env),
            user=user,
            login=login,
            stdin=stdin,
            memory=memory,
            cpu=cpu,
            tasks=tasks,
        )
        return _answer(peer, request, await self.execute(peer, request, session))

    async def do_remote_pull(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's pull-command."""
        return await self._act(session, peer, Action.PULL, timeout)

    async def do_remote_bd(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's build-command."""
        return await self._act(session, peer, Action.BUILD, timeout)

    async def do_remote_deploy_daemon(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Pull, then build; stop at the first failure and say at which step."""
        for step, action in enumerate(Action, 1):
            session.say(f"{action} on {peer} (step {step} of {len(Action)})")
            answer = await self._act(session, peer, action, timeout)
            if answer.status:
                skipped = ", build not started" if action is Action.PULL else ""
                session.say(f"Deploy on {peer} failed: {action} ended with exit status {answer.status}{skipped}")
                return answer
        session.say(f"Deployed on {peer}")
        return Answer()

    async def execute(self, peer_id: str, request: ExecRequest, session: Session) -> ExecResult:
        """Run a command on a peer, which may be this machine; every failure is a result too."""
        fields = describe(request, peer_id, str(session.caller))
        log(Event.COMMAND_ASKED, f"{request.exec_id} asked of {peer_id} by {session.caller}", **fields)
        began = time.monotonic()
        try:
            if peer_id == self._node.peer_id:
                result = await self._executor.run(request, session.caller, session.sink, session.cancel, session.stdin)
            else:
                result = await remote.execute(self._node.pool, await self._node.resolve(peer_id), request, session)
        except PeerdError as error:
            result = ExecResult.failure(error, round((time.monotonic() - began) * 1_000_000))
        if result.left_behind:
            count = f"{result.left_behind} background process{'es' if result.left_behind > 1 else ''}"
            session.say(f"Stopped {count} that the command left running on {peer_id}")
        log(
            Event.COMMAND_ANSWERED,
            f"{request.exec_id} asked of {peer_id} ended: {result.outcome}, exit status {result.exit_status}",
            **fields,
            outcome=result.outcome,
            exit_status=result.exit_status,
            duration_usec=result.duration_usec,
        )
        return result

    async def _act(self, session: Session, peer: str, action: Action, timeout: float | None) -> Answer:
        request = ExecRequest(new_exec_id(), action=action, timeout=timeout)
        return _answer(peer, request, await self.execute(peer, request, session))


def new_exec_id() -> str:
    """A fresh id for a command: 64 random bits, so that no two callers need to agree."""
    return secrets.token_hex(8)


def _answer(peer: str, request: ExecRequest, result: ExecResult) -> Answer:
    return Answer(error=result.error, status=result.exit_status, record=record(peer, request, result))
