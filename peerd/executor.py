"""Runs commands on this machine: which may start, who hears of them, what outlives whom, and the record of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from peerd import connection, guard, handles, history, refusals, run, scopes, settling, turns
from peerd.audience import Audience
from peerd.config import Config
from peerd.errors import Code, Outcome, PeerdError
from peerd.handles import HandlesError
from peerd.held import Held
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event, log, report
from peerd.messages import ExecRequest, ExecResult, Offsets
from peerd.run import Run, describe
from peerd.scopes import ScopeManager
from peerd.session import Caller, PacedSink, Session, unless_cancelled
from peerd.spawning import Spawner
from peerd.spool import Spool
from peerd.storage import Quota, Storage
from peerd.streams import Output, Room, Window

_REMEMBERED = 10_000
"""How many exec ids are remembered in memory, so that none runs twice even where the history cannot be written."""
_SHOWN_OF_REFUSED = 256
"""Characters of a command that was refused, and of its directory, that the record of it keeps."""


class Executor:
    """Runs commands, any number at once up to the configured limit.

    :param config: gives the settings in force
    :param name: gives the id of this machine, for error sentences
    :param changed: called when the number of running commands changes
    """

    def __init__(
        self,
        scope_manager: ScopeManager,
        past: History,
        storage: Storage,
        config: Callable[[], Config],
        name: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._scopes = scope_manager
        self._history = past
        self._storage = storage
        self._spawner = Spawner()
        self._config = config
        self._name = name
        self._changed = changed
        self._seen: dict[str, None] = {}
        self._starting: dict[str, tuple[asyncio.Task[Run], Caller]] = {}
        self._held = Held(past, config)

    @property
    def running(self) -> int:
        """How many commands run now."""
        return len(self._callers())

    def start(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Get ready for the first command, and take up those that an earlier process left.

        :param kept: the descriptors that systemd kept, by name
        """
        self._spawner.start()
        for name, descriptors, stdin in handles.kept_commands(kept):
            self._adopt(name, descriptors, stdin)
        for entry in self._history.find(history.RAN, outcome="", limit=_REMEMBERED):
            if entry.job.exec_id not in self._held.ids:
                self._record(replace(entry.job, result=run.cut_off(entry.job, self._name())), entry.peer)
        self._storage.expire(self._held.ids)

    async def close(self) -> None:
        """Let go of what runs; it goes on, for another process to take up."""
        self._held.watch_no_more()
        if self._starting:
            await asyncio.wait([task for task, _ in self._starting.values()])
        await self._held.leave()
        self._spawner.close()

    # --- starting

    async def launch(self, request: ExecRequest, caller: Caller) -> Run:
        """Start a command.

        :raises PeerdError: why it was not started; that it was refused is recorded
        """
        loud = caller.local or refusals.requests.recorded(caller.peer)
        try:
            self._claim(request.exec_id)
            asked, request = request.timeout, settling.resolve(request, self._config())
            if not caller.local:
                request = await guard.admit(self._config().policy, request, asked, caller.peer, self._name(), loud)
            request = settling.settle(request, self._config(), self._name())
            self._find_room(caller)
            # A task of its own: a caller that goes away now finds a command that can be looked after, or none.
            starting = asyncio.create_task(self._launch(request, caller))
            self._starting[request.exec_id] = starting, caller
            starting.add_done_callback(lambda _: self._starting.pop(request.exec_id))
            return await asyncio.shield(starting)
        except PeerdError as error:
            if not caller.local:
                refusals.requests.count(caller.peer)
            if loud:
                job = Job.of(request, self._name(), str(caller), time.time_ns() // 1000).refused(_SHOWN_OF_REFUSED)
                keep = error.code is not Code.DUPLICATE
                self._record(replace(job, result=ExecResult.failure(error)), caller.peer, keep)
                self._history.trim(self._config().history_limit)
            raise

    async def detach(self, request: ExecRequest, caller: Caller) -> ExecResult:
        """Start a detached command, and return once it runs or has failed to.

        :raises PeerdError: as :meth:`launch`
        """
        one = await self.launch(request, caller)
        await one.started.wait()
        if not one.began:
            await one.ended.wait()
        return one.result if one.result and one.result.error else ExecResult(Outcome.EXITED, 0)

    async def _launch(self, request: ExecRequest, caller: Caller) -> Run:
        try:
            spools = self._storage.create(request.exec_id) if request.detach else {}
        except OSError as error:
            raise PeerdError(Code.NOT_STORED, peer=self._name(), reason=connection.why(error)) from None
        room: Room = Quota(self._storage, spools, self._config().job_output_limit) if spools else Window()
        try:
            started = await run.launch(
                request,
                caller,
                spools,
                room,
                self._scopes,
                self._spawner,
                self._config().stop_grace,
                self._name(),
                lambda job: self._history.put(history.RAN, caller.peer, job),
            )
        except BaseException:
            if self._history.has(history.RAN, request.exec_id):
                self._history.drop(history.RAN, request.exec_id)
            if spools:
                self._storage.remove(request.exec_id)
                for spool in spools.values():
                    spool.close()
            raise
        self._take_up(started)
        return started

    def _take_up(self, one: Run, known: ExecResult | None = None) -> None:
        self._held.add(one, asyncio.create_task(self._see_to_end(one, known)))
        self._changed()

    def _adopt(self, name: str, descriptors: Sequence[int], stdin: int | None) -> None:
        try:
            ours, start, notes = handles.adopt(name, descriptors, stdin)
        except HandlesError as error:
            log(Event.INTERNAL_ERROR, f"{name} cannot be taken up again: {error}")
            handles.forget(name)
            return
        exec_id = start.request.exec_id
        if handles.RELEASED not in notes:
            # It never ran: whoever asked for it will ask again.
            ours.close(forget=True)
            for spool in ours.spools.values():
                spool.close()
            self._history.drop(history.RAN, exec_id)
            self._storage.remove(exec_id)
            return
        spools: Mapping[str, Spool] = ours.spools
        room: Room = Window()
        if start.request.detach:
            files = self._storage.open(exec_id, live=True)
            if files is None:
                # It is seen to its end all the same, and can be stopped.
                text = f"The output of {exec_id} is dropped: its files cannot be opened"
                log(Event.STATE_UNWRITABLE, text, exec_id=exec_id)
            spools = files or spools
            room = Quota(self._storage, spools, self._config().job_output_limit if files else 0)
        self._seen[exec_id] = None
        entry = self._history.get(history.RAN, exec_id)
        cancelled = handles.CANCELLED in notes
        one = Run(start, ours, spools, room, self._scopes, self._name(), True, cancelled)
        if not cancelled:
            one.release()
        self._take_up(one, entry.job.result if entry else None)

    def _claim(self, exec_id: str) -> None:
        """Give an id to one request for good, before anything is decided or recorded of it.

        :raises PeerdError: DUPLICATE
        """
        if exec_id in self._seen or self._history.has(history.RAN, exec_id) or self._storage.has(exec_id):
            raise PeerdError(Code.DUPLICATE, peer=self._name(), exec_id=exec_id)
        self._seen[exec_id] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def _find_room(self, caller: Caller) -> None:
        """See that one more command may run; as many as may are kept for callers who have not heard of their end.

        :raises PeerdError: BUSY where as many run as may, or of one peer half of that
        """
        limit, callers = self._config().max_commands, self._callers()
        if len(callers) >= limit:
            raise PeerdError(Code.BUSY, reason=f"{limit} commands run on {self._name()} (its max-commands)")
        share = max(1, limit // 2)
        if not caller.local and len(callers) >= share and callers.count(caller) >= share:
            reason = f"{share} commands of {caller.peer} run on {self._name()} (half of its max-commands)"
            raise PeerdError(Code.BUSY, reason=reason)
        if not caller.local:
            self._held.make_room(share, caller)
        self._held.make_room(limit)

    def _callers(self) -> list[Caller]:
        """Who asked for what runs or is being started, once for each."""
        # One whose start is over is held, or has failed.
        starting = [caller for task, caller in self._starting.values() if not task.done()]
        return [*starting, *(one.caller for one in self._held.running)]

    # --- ending

    async def _see_to_end(self, one: Run, known: ExecResult | None) -> None:
        """See a command to its end.

        :param known: its result where an earlier process saw its end, and only its caller did not hear of it
        """
        exec_id = one.request.exec_id
        try:
            one.result = await one.to_end()
        except Exception as error:
            report(error, f"command {exec_id}")
            one.result = ExecResult.failure(PeerdError(Code.INTERNAL, reason=type(error).__name__))
        if known:
            one.result = known
        else:
            self._record(one.job, one.caller.peer)
        one.ended.set()
        one.output.end()
        turns.do_after(turns.ANSWER, self._tell_of_end)
        if one.request.detach:
            self._storage.settle(exec_id)
            self._storage.expire(self._held.ids)
        self._held.ended(one)

    def _tell_of_end(self) -> None:
        self._spawner.refill()
        self._changed()
        self._history.trim(self._config().history_limit)

    def _record(self, job: Job, peer: str, keep: bool = True) -> None:
        assert job.result is not None
        if keep:
            self._history.put_soon(history.RAN, peer, job)
        result = job.result
        detail = f": {result.error.sentence}" if result.error else ""
        if result.error and result.error.code is Code.CUT_OFF and (still := result.error.details.get("reason")):
            detail += f". {still}"
        log(
            Event.COMMAND_ENDED,
            f"{job.exec_id} for {job.caller} ended: {result.outcome}, exit status {result.exit_status}{detail}",
            **describe(job, peer),
            outcome=result.outcome,
            exit_status=result.exit_status,
            duration_usec=result.duration_usec,
            unit=scopes.scope_name(job.exec_id),
        )

    def delivered(self, exec_id: str) -> None:
        """The caller has the result of its command: nothing of it is kept but its record."""
        self._held.delivered(exec_id)

    # --- hearing of them

    def find(self, exec_id: str) -> Run | None:
        """The command with this id, while it runs or its caller has not heard all of it."""
        return self._held.find(exec_id)

    async def _started(self, exec_id: str) -> Run | None:
        """The same, once it is no longer being started."""
        if starting := self._starting.get(exec_id):
            await asyncio.wait(starting[:1])
        return self.find(exec_id)

    def knows(self, exec_id: str) -> bool:
        """Whether a command with this id was started here, or refused."""
        return exec_id in self._held.ids or self._history.has(history.RAN, exec_id)

    def job(self, exec_id: str) -> Job:
        """What is known of a command that runs or ran here.

        :raises PeerdError: NO_SUCH_JOB
        """
        if one := self.find(exec_id):
            return one.job
        if entry := self._history.get(history.RAN, exec_id):
            return entry.job
        raise PeerdError(Code.NO_SUCH_JOB, exec_id=exec_id)

    @property
    def active(self) -> list[Job]:
        """The commands that run here."""
        return [one.job for one in self._held.running]

    def jobs(self, limit: int) -> Iterable[Job]:
        """The commands that run here, and the detached ones that have ended and whose output is kept."""
        self._storage.expire(self._held.ids)
        ended = self._history.find(history.RAN, detached=True, limit=limit)
        kept = [entry.job for entry in ended if entry.job.result and self._storage.has(entry.job.exec_id)]
        return [*self.active, *kept][:limit]

    async def wait(self, exec_id: str) -> Job:
        """Wait until a command has ended.

        :raises PeerdError: NO_SUCH_JOB
        """
        if one := await self._started(exec_id):
            await one.ended.wait()
        return self.job(exec_id)

    async def cancel(self, exec_id: str) -> Job:
        """Stop a command, and return when all of it is gone.

        :raises PeerdError: NO_SUCH_JOB
        """
        if one := await self._started(exec_id):
            one.cancel()
        else:
            self.job(exec_id)
            # A command that was cut off may still run.
            await run.stop(self._scopes, exec_id)
        return await self.wait(exec_id)

    async def attend(self, exec_id: str, session: Session, offsets: Offsets) -> ExecResult | None:
        """Be the audience of a command: pass on its output from these offsets, as it comes, until its result.

        :returns: the result; None where the caller of a detached command has heard enough
        :raises PeerdError: NO_SUCH_JOB; OUTPUT_GONE where its output is not kept any more
        :raises ConnectionError: when nobody is left to hear of it; the command may be attended again
        """
        one = await self._started(exec_id)
        if one is None:
            return await unless_cancelled(session, self._replay(exec_id, session, offsets))
        with self._held.attended(one):
            return await Audience(one, session).listen(offsets)

    async def _replay(self, exec_id: str, session: Session, offsets: Offsets) -> ExecResult | None:
        """The same for a command that has ended and that is not in memory any more."""
        job = self.job(exec_id)
        if job.result is None:
            raise PeerdError(Code.OUTPUT_GONE, exec_id=exec_id)
        spools = self._storage.open(exec_id) if job.detached else None
        if spools is None and job.result.outcome is not Outcome.LOST and job.result.sizes != offsets:
            raise PeerdError(Code.OUTPUT_GONE, exec_id=exec_id)
        await session.sink.started()
        if spools:
            output = Output(exec_id, {}, spools, Window())
            output.end()
            try:
                await output.follow(offsets, PacedSink(session.sink, session.delivery, offsets).output)
            finally:
                for spool in spools.values():
                    spool.close()
        return job.result
