"""The commands that run something on a peer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from peerd import history, turns, validate
from peerd.answer import Answer
from peerd.config import Config
from peerd.errors import Code, PeerdError
from peerd.executor import Executor
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event, log
from peerd.messages import Action, ExecRequest, ExecResult
from peerd.node import Node
from peerd.remote import Remote, in_doubt
from peerd.render import record
from peerd.run import describe
from peerd.session import Resume, Session

_USEC = 1_000_000
_RETRY_DELAY = 0.2
"""Seconds."""


class Execution:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node, executor: Executor, past: History, config: Callable[[], Config]) -> None:
        self._node = node
        self._executor = executor
        self._history = past
        self._config = config

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
        detach: bool = False,
        argv: Sequence[str] = (),
    ) -> Answer:
        """Run a shell command, or a program with its arguments, on a peer."""
        if bool(shell_cmd) == bool(argv):
            raise PeerdError(Code.USAGE, reason="Either --shellCmd or a program after -- is needed, and not both")
        if detach and stdin:
            raise PeerdError(Code.USAGE, reason="--stdin does not go with --detach: nobody stays to send it")
        try:
            program = validate.arguments(argv) if argv else ()
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"The program and its arguments: {error}") from None
        try:
            variables = validate.variables(env)
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"--env: {error}") from None
        request = ExecRequest(
            new_exec_id(),
            directory,
            shell_cmd,
            program,
            timeout=timeout,
            env=variables,
            user=user,
            login=login,
            stdin=stdin,
            memory=memory,
            cpu=cpu,
            tasks=tasks,
            detach=detach,
        )
        if detach:
            # Once it runs it is not stopped any more: what was taken back at once is not started.
            await asyncio.sleep(0)
        job = await self.execute(peer, request, session)
        result = job.result
        if detach and result is None:
            return Answer(text=job.exec_id, record=record(job))
        return answer_of(job)

    async def do_remote_pull(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's pull-command."""
        return await self.act(session, peer, Action.PULL, timeout)

    async def do_remote_bd(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's build-command."""
        return await self.act(session, peer, Action.BUILD, timeout)

    async def execute(self, peer_id: str, request: ExecRequest, session: Session, step: int = 1) -> Job:
        """Run a command on a peer, which may be this machine; every failure is a result too.

        :param step: which of its caller's commands it is
        :returns: the command with its result; a detached one, once it was started, without
        """
        resume = session.resumed(step)
        if resume:
            request = replace(request, exec_id=resume.exec_id)
        job = Job.of(request, peer_id, str(session.caller), time.time_ns() // 1000)
        here = peer_id == self._node.peer_id
        began = time.monotonic()
        recorded = resume is not None

        def asked() -> None:
            nonlocal recorded
            if not recorded:
                self._record_asked(peer_id, job)
            recorded = True

        def asking() -> None:
            session.running(job.exec_id, step)
            # Once the request is on its way, which is before anything else is done.
            turns.do_after(0, asked)

        try:
            if here:
                asking()
                asked()
                result = await self._run_here(request, session, resume)
            else:
                remote = await self.remote(peer_id, request.exec_id, session, resume is not None)
                if resume and not request.detach:
                    asking()
                    result = await remote.attach(resume.offsets, True)
                else:
                    result = await remote.execute(request, asking)
        except PeerdError as error:
            if resume and not here:
                error = in_doubt(error, peer_id, job.exec_id)
            result = ExecResult.failure(error, round((time.monotonic() - began) * _USEC))
        finally:
            asked()
        # Who is cut off while a detached command starts asks for the same once more.
        if request.detach and (not result.error or (resume and result.error.code is Code.DUPLICATE)):
            self._history.trim(self._config().history_limit)
            return job
        job = replace(job, result=result)
        tell_left_behind(session, peer_id, result)
        turns.do_after(turns.ANSWER, lambda: self._record_answered(peer_id, job, result))
        return job

    def _record_asked(self, peer_id: str, job: Job) -> None:
        log(Event.COMMAND_ASKED, f"{job.exec_id} asked of {peer_id} by {job.caller}", **describe(job, peer_id))
        if peer_id != self._node.peer_id:
            self._history.put_soon(history.ASKED, peer_id, job)

    def _record_answered(self, peer_id: str, job: Job, result: ExecResult) -> None:
        if peer_id != self._node.peer_id:
            self._history.put_soon(history.ASKED, peer_id, job)
            self._history.trim(self._config().history_limit)
        log_answered(peer_id, job, result)

    async def remote(
        self, peer_id: str, exec_id: str, session: Session, patient: bool = False, patience: float | None = None
    ) -> Remote:
        """The other side of a command on another peer.

        :param patient: whether to wait for the leader, to which a worker that was started just now is not connected yet
        :param patience: seconds to try to get back to it, reattach-timeout if not given
        :raises PeerdError: PEER_NOT_FOUND, or why the leader cannot be asked
        """
        patience = patience or self._config().reattach_timeout
        deadline = time.monotonic() + patience
        while True:
            try:
                target = await self._node.resolve(peer_id)
            except PeerdError as error:
                if error.code is not Code.NOT_CONNECTED or not patient or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_DELAY)
            else:
                return Remote(self._node.pool, target, exec_id, session, patience)

    async def _run_here(self, request: ExecRequest, session: Session, resume: Resume | None) -> ExecResult:
        if request.detach:
            # Of who comes back it may run already.
            if session.cancel.is_set() and not resume:
                raise PeerdError(Code.CANCELLED, peer=self._node.peer_id)
            return await self._executor.detach(request, session.caller)
        # Who was cut off before its command was started finds nothing of it here, and has nothing of it.
        if not resume or not self._executor.knows(request.exec_id):
            if resume and any(resume.offsets.values()):
                raise PeerdError(Code.LOST, peer=self._node.peer_id, exec_id=request.exec_id)
            if session.cancel.is_set():
                raise PeerdError(Code.CANCELLED, peer=self._node.peer_id)
            await self._executor.launch(request, session.caller)
        offsets = resume.offsets if resume else session.delivery.offsets
        try:
            result = await self._executor.attend(request.exec_id, session, offsets)
        except ConnectionError:
            result = None
        if result is None:
            raise PeerdError(Code.LOST, peer=self._node.peer_id, exec_id=request.exec_id)
        if session.hearing:
            session.hearing.then(partial(self._executor.delivered, request.exec_id))
        else:
            self._executor.delivered(request.exec_id)
        return result

    async def act(self, session: Session, peer: str, action: Action, timeout: float | None, step: int = 1) -> Answer:
        """Have a peer do one of its own actions."""
        request = ExecRequest(new_exec_id(), action=action, timeout=timeout)
        return answer_of(await self.execute(peer, request, session, step))


def new_exec_id() -> str:
    """A fresh id for a command: 64 random bits, so that no two callers need to agree."""
    return secrets.token_hex(8)


def tell_left_behind(session: Session, peer_id: str, result: ExecResult) -> None:
    """Say what was stopped after the command itself had ended, or that it was stopped itself."""
    if result.stopped:
        session.say(f"systemd stopped the command on {peer_id}, as somebody told it to there (systemctl stop)")
    if result.left_behind:
        count = f"{result.left_behind} background process{'es' if result.left_behind > 1 else ''}"
        session.say(f"Stopped {count} that the command left running on {peer_id}")


def answer_of(job: Job) -> Answer:
    """The answer of a command that was run."""
    assert job.result is not None
    return Answer(error=job.result.error, status=job.result.exit_status, record=record(job))


def log_answered(peer_id: str, job: Job, result: ExecResult) -> None:
    """Record how a command ended that was asked of a peer from here."""
    log(
        Event.COMMAND_ANSWERED,
        f"{job.exec_id} asked of {peer_id} ended: {result.outcome}, exit status {result.exit_status}",
        **describe(job, peer_id),
        outcome=result.outcome,
        exit_status=result.exit_status,
        duration_usec=result.duration_usec,
    )
