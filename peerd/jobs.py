"""The commands about commands: what runs, what ran, and how to get back to it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from peerd import guard, history, remote, validate
from peerd.answer import Answer
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import EXIT_CANCELLED, Code, Outcome, PeerdError
from peerd.execution import Execution, log_answered, tell_left_behind
from peerd.executor import Executor
from peerd.history import History
from peerd.job import Job
from peerd.messages import STREAMS, ExecResult, Offsets, take
from peerd.node import Node
from peerd.peers import Peer
from peerd.render import record
from peerd.session import Session, unless_cancelled

T = TypeVar("T")
MAX_JOBS = 2000
"""How many jobs one machine tells of."""
_PER_FRAME = 15
_AT_ONCE = 32
_NAMED = 5
_RETRY_DELAY = 1.0
_COMING_BACK = (Code.NOT_CONNECTED, Code.CONNECT_FAILED, Code.NO_SUCH_JOB)
"""What is so for a moment after a restart."""
_NOT_THERE = (Code.NO_SUCH_JOB, Code.UNKNOWN_MESSAGE)
"""What a peer answers that does not have a job; the latter one that is too old to have any."""
_LIMIT = 100


class Jobs:
    """A part of the service: a method for each of these commands."""

    def __init__(
        self, node: Node, executor: Executor, past: History, execution: Execution, config: Callable[[], Config]
    ) -> None:
        self._node = node
        self._executor = executor
        self._history = past
        self._execution = execution
        self._config = config

    def known(self) -> set[str]:
        """The ids of the jobs that run here or whose output is kept, and of those that were left running from here."""
        asked = self._history.find(history.ASKED, detached=True, limit=_LIMIT)
        return {job.exec_id for job in (*self._executor.jobs(_LIMIT), *(entry.job for entry in asked))}

    async def do_list_jobs(self, session: Session, peer: str | None = None) -> Answer:
        """What runs on the peers, and the detached jobs whose output is kept."""
        jobs: list[Job] = []
        answers: list[list[Job] | PeerdError] = []
        if peer in (None, self._node.peer_id):
            answers.append(list(self._executor.jobs(MAX_JOBS)))
        if peer is None:
            answers += await _each(self.others, self._list)
        elif peer != self._node.peer_id:
            answers.append(await self._list(await self._node.resolve(peer)))
        for answer in answers:
            if isinstance(answer, PeerdError):
                session.say(answer.sentence)
                continue
            jobs += answer
            if len(answer) >= MAX_JOBS:
                session.say(f"Of {answer[0].peer} no more than the newest {MAX_JOBS} jobs are listed")
        return Answer([record(job) for job in sorted(jobs, key=lambda job: job.started_usec)])

    async def do_get_job(self, session: Session, job: str, peer: str | None = None) -> Answer:
        """One job."""
        _, found = await self._ask(session, job, peer, "getJob")
        return Answer(record(found))

    async def do_wait_job(self, session: Session, job: str, peer: str | None = None) -> Answer:
        """Wait for the end of a job."""
        ended, result = await self._end(session, job, peer, "waitJob")
        return Answer(record(ended), error=result.error, status=result.exit_status)

    async def do_cancel_job(self, session: Session, job: str, peer: str | None = None) -> Answer:
        """Stop a job and all that it started."""
        ended, result = await self._end(session, job, peer, "cancelJob")
        return Answer(text=f"{job} on {ended.peer} ended: {result.outcome}, all that it started is gone")

    async def do_attach_job(self, session: Session, job: str, peer: str | None = None) -> Answer:
        """All output of a detached job from its beginning, then live."""
        offsets = session.resume.offsets if session.resume else dict.fromkeys(STREAMS, 0)
        where, known = await self._ask(session, job, peer, "getJob")
        if not known.detached:
            raise PeerdError(Code.NOT_DETACHED, exec_id=job)
        if not session.resume:
            self._note_access(session, "attachJob", job, where)
        session.running(job, 1)
        running = "" if known.result else f" running on {where}"
        left = f"Left {job}{running}; to hear of it again: d attachJob --job {job}"
        try:
            result = await self.hear(where, job, session, offsets, session.resume is not None)
        except PeerdError as error:
            if error.code is Code.OUTPUT_GONE:
                return _without_output(known, error)
            if error.code is not Code.LOST:
                raise
            # What is detached does not end with the connection.
            session.say(left)
            target = self._node.book.by_id(where)
            address = target.ip_address if target else "unknown"
            raise PeerdError(Code.CONNECT_FAILED, error.lines, peer=where, address=address) from None
        if result is None:
            session.say(left)
            return Answer(record={**record(known), "exit_status": EXIT_CANCELLED}, status=EXIT_CANCELLED)
        if result.dropped:
            why = "there was no room (job-output-limit or total-output-limit there, or its disk)"
            session.say(f"{result.dropped} bytes of output were not kept on {where}: {why}")
        tell_left_behind(session, where, result)
        return Answer(error=result.error, status=result.exit_status, record=record(replace(known, result=result)))

    async def hear(
        self, peer: str, job: str, session: Session, offsets: Offsets, begun: bool, patience: float | None = None
    ) -> ExecResult | None:
        """Pass on the output of a detached job, from these offsets on, until its result.

        :param begun: whether the caller heard of it before
        :param patience: seconds to try to get back to it after the connection broke, reattach-timeout if not given
        :returns: the result, or None where the caller has heard enough
        :raises PeerdError: why nothing can be heard of it
        """
        if peer == self._node.peer_id:
            return await self._executor.attend(job, session, offsets)
        other = await self._execution.remote(peer, job, session, begun, patience)
        result = await unless_cancelled(session, other.attach(offsets, begun))
        self.learn(peer, job, result)
        return result

    @property
    def others(self) -> list[Peer]:
        """The other peers that are online."""
        return [peer for peer in self._node.book.all() if peer.is_online and peer.peer_id != self._node.peer_id]

    def learn(self, peer: str, exec_id: str, result: ExecResult | None) -> None:
        """Complete what the history says of a job that was asked of this peer from here."""
        entry = self._history.get(history.ASKED, exec_id)
        if result and entry and entry.peer == peer and entry.job.result is None:
            self._history.put(history.ASKED, peer, replace(entry.job, result=result))
            # Of any other its caller hears, and so it is recorded then.
            if entry.job.detached:
                log_answered(peer, entry.job, result)

    def _note_access(self, session: Session, command: str, job: str, where: str) -> None:
        """Record that a local caller deals with a job of another's, or of one that nobody here is known to own.

        :raises PeerdError: NO_SUCH_JOB
        """
        if where == self._node.peer_id:
            owner = self._executor.job(job).caller
        else:
            entry = self._history.get(history.ASKED, job)
            owner = entry.job.caller if entry and entry.peer == where else ""
        guard.note_access(command, job, owner, str(session.caller), where)

    async def _locate(self, job: str, peer: str | None) -> str:
        """The id of the peer where a job runs or ran.

        :raises PeerdError: NO_SUCH_JOB; USAGE where several say that they have it; why a peer that is online, and may
            have it, cannot be asked
        """
        if peer:
            return peer
        try:
            self._executor.job(job)
        except PeerdError:
            pass
        else:
            return self._node.peer_id
        if entry := self._history.get(history.ASKED, job):
            return entry.peer

        async def ask(other: Peer) -> str:
            await self.request("getJob", job, other.peer_id)
            return other.peer_id

        # A leader that was restarted just now is back before its workers have heard of it.
        leader = self._node.link and self._node.book.by_address(self._node.link.address)
        away = [leader] if leader and not leader.is_online else []
        others = self.others
        answers = await _each([*others, *away], ask)
        found = [answer for answer in answers if isinstance(answer, str)]
        if not found:
            failures = [answer for answer in answers[: len(others)] if isinstance(answer, PeerdError)]
            raise next(
                (failure for failure in failures if failure.code not in _NOT_THERE),
                PeerdError(Code.NO_SUCH_JOB, exec_id=job),
            )
        if len(found) > 1:
            # An id is one command's, so that all but one of them err or lie.
            named = ", ".join(found[:_NAMED]) + ", …" * (len(found) > _NAMED)
            raise PeerdError(
                Code.USAGE, reason=f"Several peers say that {job} is there ({named}): --peer says which one"
            )
        return found[0]

    async def _ask(self, session: Session, job: str, peer: str | None, type_: str) -> tuple[str, Job]:
        """Do what a message says with a job, wherever it runs.

        :returns: where that is, and the job
        :raises PeerdError: as :meth:`_locate` and :meth:`request`; NOT_WAITED where the caller has waited enough
        """
        answer = await unless_cancelled(session, self._reach(session, job, peer, type_))
        if answer is None:
            state = "Whether it was stopped" if type_ == "cancelJob" else "It goes on"
            raise PeerdError(Code.NOT_WAITED, exec_id=job, reason=state)
        where, told = answer
        self.learn(where, job, told.result)
        return where, told

    async def _reach(self, session: Session, job: str, peer: str | None, type_: str) -> tuple[str, Job]:
        """The same, again and again for who was cut off: what peerd was connected to comes back after it."""
        deadline = time.monotonic() + self._config().reattach_timeout
        while True:
            try:
                where = await self._locate(job, peer)
                if type_ == "cancelJob" and session.resume is None:
                    self._note_access(session, type_, job, where)
                return where, await self.request(type_, job, where)
            except PeerdError as error:
                if session.resume is None or error.code not in _COMING_BACK or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RETRY_DELAY)

    async def _end(self, session: Session, job: str, peer: str | None, type_: str) -> tuple[Job, ExecResult]:
        """The same with a message that is answered once the job has ended; also how it did.

        :raises PeerdError: as :meth:`_ask`; INTERNAL where nobody knows how it ended
        """
        # Both may be asked for again, by who is cut off meanwhile.
        session.running(job, 1)
        _, ended = await self._ask(session, job, peer, type_)
        if ended.result is None:
            raise PeerdError(Code.INTERNAL, reason=f"how {job} ended is not known on {ended.peer}")
        return ended, ended.result

    async def request(self, type_: str, job: str, peer: str) -> Job:
        """Do what a message (getJob, waitJob, cancelJob) says with a job of a peer.

        :returns: the job; which one of whose it is we know better than the answer
        :raises PeerdError: NO_SUCH_JOB, or why the peer cannot be asked
        """
        if peer == self._node.peer_id:
            return await answer(self._executor, type_, job)
        target = await self._node.resolve(peer)
        limit = self._config().connect_timeout if type_ == "getJob" else None
        broken: float | None = None
        begun = False
        while True:
            met = math.inf
            try:
                async with self._node.pool.borrow(target.ip_address) as link, asyncio.timeout(limit):
                    begun, met = True, time.monotonic()
                    await link.send(type_, {"execId": job})
                    told = Job.from_wire((await link.expect("reply")).fields.get("job"))
                    return replace(told, exec_id=job, peer=target.peer_id)
            except OSError as error:
                # A wait goes on where peerd was restarted at the other end, and not where that hangs up each time.
                now, patience = time.monotonic(), self._config().reattach_timeout
                if broken is None or now - met > patience:
                    broken = now
                if limit or not begun or now - broken > patience:
                    raise remote.connect_failed(target, error) from None
            await asyncio.sleep(_RETRY_DELAY)

    async def _list(self, peer: Peer) -> list[Job]:
        async with remote.borrow(self._node.pool, peer, self._config().connect_timeout) as link:
            await link.send("listJobs")
            return [replace(job, peer=peer.peer_id) for job in await _receive(link)]


async def answer(executor: Executor, type_: str, exec_id: str) -> Job:
    """Do what a message says with a job of this machine.

    :raises PeerdError: NO_SUCH_JOB
    """
    if type_ == "waitJob":
        return await executor.wait(exec_id)
    if type_ == "cancelJob":
        return await executor.cancel(exec_id)
    return executor.job(exec_id)


def _without_output(job: Job, error: PeerdError) -> Answer:
    """The answer where only the output of a job is gone: what else is known of it is told."""
    status = error.kind.exit_status
    failed = ExecResult(Outcome.FAILED, status, error=error)
    if job.result:
        failed = replace(job.result, outcome=failed.outcome, exit_status=status, signal=None, error=error)
    return Answer(error=error, status=status, record=record(replace(job, result=failed)))


async def _receive(link: Connection) -> list[Job]:
    """The jobs of another machine: how many there are, then their entries."""
    count = take((await link.expect("reply")).fields, "count", lambda value: validate.integer(value, 0, MAX_JOBS))
    jobs: list[Job] = []
    while len(jobs) < count:
        listed = (await link.expect("jobs")).fields.get("jobs")
        if not isinstance(listed, list) or not listed:
            raise PeerdError(Code.BAD_MESSAGE, reason="jobs must be a list of jobs")
        jobs += [Job.from_wire(entry).shortened() for entry in listed]
    return jobs


async def tell(link: Connection, jobs: Sequence[Job]) -> None:
    """Send jobs as :func:`_receive` takes them."""
    await link.send("reply", {"count": len(jobs)})
    for start in range(0, len(jobs), _PER_FRAME):
        await _tell_some(link, [job.shortened().to_wire() for job in jobs[start : start + _PER_FRAME]])
        # All of them take long.
        await asyncio.sleep(0)


async def _tell_some(link: Connection, entries: Sequence[Mapping[str, object]]) -> None:
    """Send entries in one frame, or in as many as it takes for each to keep its bound."""
    try:
        await link.send("jobs", {"jobs": entries})
    except PeerdError:
        half = len(entries) // 2
        if not half:
            raise
        await _tell_some(link, entries[:half])
        await _tell_some(link, entries[half:])


async def _each(peers: Iterable[Peer], ask: Callable[[Peer], Awaitable[T]]) -> list[T | PeerdError]:
    """What each of these peers answers, or why it does not; some at a time."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(peer: Peer) -> T | PeerdError:
        async with turn:
            try:
                return await ask(peer)
            except PeerdError as error:
                return error

    return await asyncio.gather(*(one(peer) for peer in peers))
