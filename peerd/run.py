"""One command on this machine, from its gate to the end of its tree."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pwd
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from peerd import connection, handles, scopes, spawner, turns, validate
from peerd.environment import login_environment
from peerd.errors import SIGNAL_BASE, Code, Outcome, PeerdError
from peerd.handles import Handles, Start
from peerd.job import Job
from peerd.journal import Event, log
from peerd.messages import ExecRequest, ExecResult
from peerd.scopes import Figures, Limits, ScopeManager, Stopper
from peerd.session import Caller
from peerd.spawning import Spawner
from peerd.spool import Spool
from peerd.streams import Input, Output, Room
from peerd.systemd1 import SystemdError

_MAX_REPORT = 4096
_USEC = 1_000_000

_DIRECTORY_ERRORS = {errno.ENOENT: Code.NO_SUCH_DIRECTORY, errno.ENOTDIR: Code.NOT_A_DIRECTORY}


def describe(job: Job, peer: str) -> dict[str, object]:
    """The fields that every record about a command has.

    :param peer: the other end
    """
    return {
        "exec_id": job.exec_id,
        "peer": peer,
        "caller": job.caller,
        "directory": job.directory,
        "command": job.line,
        "user": job.user,
    }


class Run:
    """One command.

    :param ours: its descriptors
    :param spools: its output, wherever that is
    :param room: how much of it may be kept
    :param scope_manager: what stops its scope
    :param name: the id of this machine, for error sentences
    :param adopted: whether an earlier process started it, which may have read what the gate said of that
    :param cancelled: whether it was cancelled in an earlier process
    :ivar started: set once the command runs, or will not
    :ivar began: whether it ever ran
    :ivar result: how it ended, or None while it runs
    """

    def __init__(
        self,
        start: Start,
        ours: Handles,
        spools: Mapping[str, Spool],
        room: Room,
        scope_manager: ScopeManager,
        name: str,
        adopted: bool = False,
        cancelled: bool = False,
    ) -> None:
        self.request = start.request
        self.caller = start.caller
        self.output = Output(start.request.exec_id, ours.pipes, spools, room)
        self.input = Input(*ours.stdin, ours.close_stdin) if ours.stdin else None
        self.started = asyncio.Event()
        self.began = adopted
        if adopted:
            self.started.set()
        self.result: ExecResult | None = None
        self.ended = asyncio.Event()
        self._start = start
        self._ours = ours
        self._spools = spools
        self._scopes = scope_manager
        self._timeout = start.request.timeout or 0.0
        self._name = name
        self._job = Job.of(self.request, name, str(self.caller), start.started_usec)
        # The scope's time runs from some moment between these two.
        self._released = start.began
        self._cancelled = cancelled
        self._abandoned = False
        self._report: dict[str, int | float] | None = None
        self._reported = asyncio.Event()
        # Set when it has reported, or is to be stopped.
        self._stirred = asyncio.Event()
        if cancelled:
            self._stirred.set()

    @property
    def job(self) -> Job:
        """What is known of it now."""
        return replace(self._job, result=self.result) if self.result else self._job

    def release(self) -> None:
        """Let it run, now that it is in its scope; one that does so already takes no notice."""
        if not self.began:
            self._released = time.monotonic()
        # What is noted has been done, or will be by whoever reads the note.
        self._ours.note(handles.RELEASED)
        # A gate that was killed is found out about by what it does not report.
        with contextlib.suppress(OSError):
            self._ours.control.send(b"\n")

    def cancel(self, abandoned: bool = False) -> None:
        """Stop it and all that it started; what it still says is dropped, unless it is detached.

        :param abandoned: whether that is because nobody is left to hear of it
        """
        if not self._cancelled:
            self._abandoned = abandoned
            self._ours.note(handles.CANCELLED)
            self._cancelled = True
            self._stirred.set()
            # For what a detached one still says there is room on the disk, or it is counted.
            if not self.request.detach:
                self.output.discard()

    def leave(self) -> None:
        """Leave it to another process of peerd, as it is."""
        self.output.stop()
        if self.input:
            self.input.stop()
        self.close(forget=False)

    def close(self, forget: bool = True) -> None:
        """Let go of its descriptors, and with ``forget`` of systemd's copies as well."""
        self._ours.close(forget)
        for spool in self._spools.values():
            spool.close()

    async def to_end(self) -> ExecResult:
        """See the command, which was released, and all that it started to their end."""
        self.output.start()
        if self.input:
            self.input.start()
        control = self._ours.control
        loop = asyncio.get_running_loop()
        loop.add_reader(control, self._hear)
        try:
            await self._stirred.wait()
            stopped_by_us = not self._reported.is_set() and not self._over_time(time.monotonic(), self._start.began)
            left = self._left()
            used = scopes.figures(self._start.scope)
            stopper = None
            if not stopped_by_us and (left != 0 or self._status is None or os.WIFSIGNALED(self._status)):
                stopper = await self._scopes.stopper(self._start.scope)
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_WR)
            if left != 0 or not self._reported.is_set():
                await stop(self._scopes, self.request.exec_id)
            await self._reported.wait()
        finally:
            loop.remove_reader(control)
        report = self._report
        at = float(report["at"]) if report and "at" in report and left == 0 else time.monotonic()
        self.output.finish()
        if self.input:
            self.input.close()
        result = self._result(report, at, used, stopped_by_us, stopper, left)
        return replace(
            result,
            duration_usec=round((at - self._start.began) * _USEC),
            started_usec=self._start.started_usec,
            cpu_usec=used.cpu_usec,
            memory_peak=used.memory_peak,
            sizes=self.output.sizes,
            dropped=self.output.dropped if self.request.detach or not self._cancelled else 0,
        )

    def _over_time(self, now: float, since: float) -> bool:
        return now - since >= self._timeout

    def _left(self) -> int | None:
        """How many processes there are beside the gate; None where that cannot be told, and all are stopped."""
        try:
            return sum(pid != self._start.gate for pid in scopes.processes(self._start.scope))
        except OSError as error:
            text = f"What {self.request.exec_id} left running is stopped uncounted: {connection.why(error)}"
            log(Event.INTERNAL_ERROR, text, exec_id=self.request.exec_id)
            return None

    def _hear(self) -> None:
        """Take what the gate says: that the command started, and how it ended; nothing where it was killed before.

        The latter is left in the socket, for another process to read should this one end now.
        """
        control = self._ours.control
        try:
            data = control.recv(_MAX_REPORT, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data.startswith(spawner.STARTED):
            control.recv(len(spawner.STARTED))
            self.began = True
            self.started.set()
            return
        asyncio.get_running_loop().remove_reader(control)
        self._report = json.loads(data) if data else None
        self.started.set()
        self._reported.set()
        self._stirred.set()

    @property
    def _status(self) -> int | None:
        """As from waitpid(2); None where the gate has not reported one."""
        return int(self._report["status"]) if self._report and "status" in self._report else None

    def _result(
        self,
        report: dict[str, int | float] | None,
        at: float,
        used: Figures,
        stopped_by_us: bool,
        stopper: Stopper | None,
        left: int | None,
    ) -> ExecResult:
        error: PeerdError | None = None
        status = self._status
        # On a busy machine a scope takes long to make, in which a command that ends by itself has not run.
        by_itself = status is not None and os.WIFEXITED(status) and left == 0
        since = self._released if by_itself else self._start.began
        if stopped_by_us and self._abandoned:
            error = PeerdError(Code.ABANDONED, peer=self._name)
        elif stopped_by_us:
            error = PeerdError(Code.CANCELLED, peer=self._name)
        elif report and "errno" in report:
            number = int(report["errno"])
            code = _DIRECTORY_ERRORS.get(number, Code.NO_ACCESS)
            error = PeerdError(code, peer=self._name, directory=self.request.directory, reason=os.strerror(number))
        elif self._over_time(float(report["at"]) if report else at, since):
            error = PeerdError(Code.TIMEOUT, peer=self._name, seconds=validate.duration(self._timeout))
        elif used.oom_kills and status != 0:
            error = PeerdError(Code.OUT_OF_MEMORY, peer=self._name)
        elif stopper is Stopper.SHUTDOWN and (status is None or os.WIFSIGNALED(status)):
            error = PeerdError(Code.CUT_OFF, peer=self._name)
        if error:
            return ExecResult.failure(error)
        if stopper:
            # What is left is what is being stopped, and was not left behind.
            left = 0
        if status is None:
            # Nothing but a SIGKILL keeps a gate from reporting.
            return ExecResult(Outcome.SIGNALED, SIGNAL_BASE + 9, 9)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return ExecResult(
                Outcome.SIGNALED, SIGNAL_BASE + number, number, left_behind=left, stopped=stopper is not None
            )
        return ExecResult(Outcome.EXITED, os.WEXITSTATUS(status), left_behind=left)


async def launch(
    request: ExecRequest,
    caller: Caller,
    spools: Mapping[str, Spool],
    room: Room,
    scope_manager: ScopeManager,
    spawner_: Spawner,
    grace: float,
    name: str,
    commit: Callable[[Job], None],
) -> Run:
    """Start a command, once no restart can lose it any more.

    :param spools: where its output goes on disk; none for memory
    :param commit: remembers that it runs; called before it does
    :raises PeerdError: NO_SUCH_USER, START_FAILED, or what ``commit`` raises; nothing is left of it then but what
        ``commit`` stored
    """
    entry = _entry(request.user or "root", name)
    scope = scopes.scope_name(request.exec_id)
    ours: Handles | None = None
    starting: asyncio.Task[None] | None = None
    try:
        gate = await spawner_.take()
        ours = Handles(gate.control)
        start = Start.now(request, caller, scope, gate.pid)
        description = validate.printable(f"peerd: {request.command}", 200)
        limits = Limits(request.memory, request.cpu, request.tasks)
        timeout = request.timeout or 0.0
        # systemd and the kernel take their time to move processes. Whatever else there is to do is done meanwhile.
        starting = asyncio.create_task(scope_manager.start(scope, (gate.pid,), description, timeout, grace, limits))
        await turns.let_pass(turns.CALL)
        theirs = ours.open(request.stdin, not spools)
        try:
            environment = {**login_environment(request.exec_id, str(caller), entry), **request.env}
            user_ = {**_credentials(entry), "resolved": request.resolved}
            await gate.prepare(_argv(request, entry), request.directory, environment, theirs, user_)
        finally:
            for fd in theirs:
                os.close(fd)
        ours.keep(start)
        run = Run(start, ours, spools or ours.spools, room, scope_manager, name)
        commit(run.job)
        await starting
    except BaseException as error:
        # Without its control socket the gate goes, and has started nothing.
        if ours:
            ours.close(forget=True)
            for spool in ours.spools.values():
                spool.close()
        if starting:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if isinstance(error, (OSError, EOFError, SystemdError)):
            reason = str(error) or type(error).__name__
            raise PeerdError(Code.START_FAILED, peer=name, reason=reason) from None
        raise
    run.release()
    log(
        Event.COMMAND_STARTED,
        f"{request.exec_id} for {caller} runs in {request.directory}: {request.command}",
        **describe(run.job, caller.peer),
        unit=scope,
    )
    return run


async def stop(scope_manager: ScopeManager, exec_id: str) -> None:
    """End what is left of a command's tree, if anything is."""
    scope = scopes.scope_name(exec_id)
    try:
        await scope_manager.stop(scope)
    except SystemdError as error:
        log(Event.INTERNAL_ERROR, f"{scope}: {error}", exec_id=exec_id)
        scopes.kill(scope)


def cut_off(job: Job, name: str) -> ExecResult:
    """The end, as far as it is known, of a command that an earlier process left and systemd did not keep.

    :param name: the id of this machine
    """
    reason = ""
    if scopes.populated(scopes.scope_name(job.exec_id)):
        reason = f"It still ran when peerd was back. To stop it: d cancelJob --job {job.exec_id}"
    return ExecResult.failure(PeerdError(Code.CUT_OFF, peer=name, reason=reason))


def _entry(user: str, name: str) -> pwd.struct_passwd:
    """What is known of a user.

    :raises PeerdError: NO_SUCH_USER; START_FAILED where nobody can be looked up
    """
    try:
        return pwd.getpwnam(user)
    except KeyError:
        try:
            # Where no file can be opened, nobody is found.
            open("/etc/passwd", "rb").close()
        except OSError as error:
            raise PeerdError(Code.START_FAILED, peer=name, reason=connection.why(error)) from None
        raise PeerdError(Code.NO_SUCH_USER, peer=name, user=user) from None


def _argv(request: ExecRequest, entry: pwd.struct_passwd) -> list[str]:
    if request.login:
        # The shell becomes the program, where there is one, so that it is found by the login shell's PATH.
        words = ["-c", 'exec "$@"', "sh", *request.argv] if request.argv else ["-c", request.shell_cmd]
        return [entry.pw_shell or "/bin/sh", "-l", *words]
    return list(request.argv) or ["/bin/sh", "-c", request.shell_cmd]


def _credentials(entry: pwd.struct_passwd) -> dict[str, object]:
    """What the spawner needs to know of a user, as initgroups(3) has it; nothing for root."""
    if not entry.pw_uid:
        return {}
    return {
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "groups": os.getgrouplist(entry.pw_name, entry.pw_gid),
    }
