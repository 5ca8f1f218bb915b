"""Runs commands on this machine, each in a scope of its own, and says how each ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import termios
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from peerd import scopes, validate
from peerd.config import Config
from peerd.environment import login_environment
from peerd.errors import SIGNAL_BASE, Code, Outcome, PeerdError
from peerd.journal import Event, log
from peerd.messages import MAX_OUTPUT, Action, ExecRequest, ExecResult
from peerd.scopes import ScopeError, ScopeManager
from peerd.spawning import Spawner

_REMEMBERED = 100_000
"""How many exec ids are remembered, so that none runs twice."""
_MAX_REPORT = 4096
_USEC = 1_000_000

_DIRECTORY_ERRORS = {errno.ENOENT: Code.NO_SUCH_DIRECTORY, errno.ENOTDIR: Code.NOT_A_DIRECTORY}


class Sink(Protocol):
    """Who hears of a running command."""

    async def started(self) -> None:
        """The command was started."""

    async def output(self, stream: str, data: bytes) -> None:
        """Some output of "stdout" or "stderr"; returns when more is welcome.

        :raises ConnectionError: when nobody is left to hear it
        """


@dataclass(frozen=True)
class Caller:
    """Who asked: the id of the peer, and for a local caller the user, as the journal shows them."""

    peer: str
    user: str = ""

    def __str__(self) -> str:
        return f"{self.user}@{self.peer}" if self.user else self.peer


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

    async def run(self, request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        """Run a command to its end and return how it ended; every failure is a result too.

        :param cancel: when set, the command is stopped and what it still says is dropped
        """
        try:
            request = self._resolve(request)
            self._admit(request)
        except PeerdError as error:
            return self._record(request, caller, ExecResult.failure(error))
        self.running += 1
        self._changed()
        run = _Run(request, caller, sink, cancel, self._scopes, self._spawner, self._config().stop_grace, self._name())
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
        return ExecRequest(request.exec_id, directory, command, request.action, timeout)

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


def describe(request: ExecRequest, peer: str, caller: str) -> dict[str, object]:
    """The fields that every record about a command has.

    :param peer: the other end
    :param caller: who asked
    """
    return {
        "exec_id": request.exec_id,
        "peer": peer,
        "caller": caller,
        "directory": request.directory,
        "command": request.shell_cmd or (f"({request.action})" if request.action else ""),
    }


class _Run:
    """One command, from its gate to the end of its tree."""

    def __init__(
        self,
        request: ExecRequest,
        caller: Caller,
        sink: Sink,
        cancel: asyncio.Event,
        scope_manager: ScopeManager,
        spawner: Spawner,
        grace: float,
        name: str,
    ) -> None:
        self._request = request
        self._caller = caller
        self._sink = sink
        self._cancel = cancel
        self._scopes = scope_manager
        self._spawner = spawner
        self._grace = grace
        self._timeout = request.timeout or 0.0
        self._name = name
        self._scope = scopes.scope_name(request.exec_id)
        self._tree_gone = asyncio.Event()
        self._cancelled = asyncio.create_task(cancel.wait())

    async def to_end(self) -> ExecResult:
        """Run it, and leave nothing of it behind, whatever happens."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._cancelled.cancel)
            try:
                control, pipes, pid = await self._spawn(stack)
            except (OSError, EOFError) as error:
                return self._failed(f"{error}")
            began = time.monotonic()
            try:
                await self._scopes.start(self._scope, pid, self._description(), self._timeout, self._grace)
            except ScopeError as error:
                # Closing the control socket ends the gate, which has started nothing.
                return self._failed(str(error))
            return await self._supervise(control, pipes, pid, began)

    def _description(self) -> str:
        return validate.printable(f"peerd: {self._request.shell_cmd}", 200)

    async def _spawn(self, stack: contextlib.ExitStack) -> tuple[socket.socket, dict[str, int], int]:
        control, gate_end = socket.socketpair()
        stack.enter_context(control)
        control.setblocking(False)
        pipes: dict[str, int] = {}
        with contextlib.ExitStack() as theirs:
            theirs.enter_context(gate_end)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, null)
            write_ends = []
            for stream in ("stdout", "stderr"):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, write_end)
                stack.callback(os.close, read_end)
                os.set_blocking(read_end, False)
                pipes[stream] = read_end
                write_ends.append(write_end)
            pid = await self._spawner.spawn(
                ["/bin/sh", "-c", self._request.shell_cmd],
                self._request.directory,
                login_environment(self._request.exec_id, str(self._caller)),
                [null, *write_ends, gate_end.fileno()],
            )
        return control, pipes, pid

    async def _supervise(self, control: socket.socket, pipes: dict[str, int], gate: int, began: float) -> ExecResult:
        log(
            Event.COMMAND_STARTED,
            f"{self._request.exec_id} for {self._caller} runs in {self._request.directory}: {self._request.shell_cmd}",
            **describe(self._request, self._caller.peer, str(self._caller)),
            unit=self._scope,
        )
        report_task = asyncio.create_task(_report(control))
        pumps = [asyncio.create_task(self._pump(stream, fd)) for stream, fd in pipes.items()]
        try:
            if self._cancel.is_set():
                control.shutdown(socket.SHUT_WR)  # The gate ignores SIGTERM; this tells it to go.
            else:
                control.send(b"\n")
                with contextlib.suppress(ConnectionError):
                    await self._sink.started()
            await asyncio.wait({report_task, self._cancelled}, return_when=asyncio.FIRST_COMPLETED)
            over_time = time.monotonic() - began >= self._timeout
            # A gate that was cancelled before its release goes without a report.
            stopped_by_us = not report_task.done() or (self._cancel.is_set() and report_task.result() is None)
            left = 0 if stopped_by_us else len([pid for pid in scopes.processes(self._scope) if pid != gate])
            result = await self._stop()
            if result == "timeout" and not over_time:
                # systemd says so, too, where our own stop took more than SIGTERM.
                result = "success"
            report = await report_task
            duration = round((time.monotonic() - began) * _USEC)
            self._tree_gone.set()
            drained = asyncio.create_task(asyncio.wait(pumps))
            await asyncio.wait({self._cancelled, drained}, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                if pump.done():
                    pump.result()
        finally:
            for task in (report_task, *pumps):
                task.cancel()
            await asyncio.wait((report_task, *pumps))
        return self._result(report, result, stopped_by_us, duration, left)

    async def _stop(self) -> str:
        """End what is left of the tree; systemd's Result for the scope."""
        try:
            await self._scopes.stop(self._scope)
            return await self._scopes.end(self._scope)
        except ScopeError as error:
            log(Event.INTERNAL_ERROR, f"{self._scope}: {error}", exec_id=self._request.exec_id)
            scopes.kill(self._scope)
            return "unknown"

    async def _pump(self, stream: str, fd: int) -> None:
        """Pass on output as it comes, at the pace of the sink, until the pipe's end.

        Once the tree is gone, what the pipe then holds is all there is: a process that escaped with the pipe in its
        hands cannot keep a caller waiting.
        """
        left: int | None = None
        try:
            while left is None or left > 0:
                if left is None and self._tree_gone.is_set():
                    left = _fill(fd)
                    continue
                try:
                    data = os.read(fd, MAX_OUTPUT if left is None else min(left, MAX_OUTPUT))
                except BlockingIOError:
                    await self._readable_or_gone(fd)
                    continue
                if not data:
                    return
                if left is not None:
                    left -= len(data)
                if not self._cancel.is_set():
                    await self._sink.output(stream, data)
        except ConnectionError:
            self._cancel.set()

    async def _readable_or_gone(self, fd: int) -> None:
        readable = asyncio.Event()
        waits = [asyncio.create_task(event.wait()) for event in (readable, self._tree_gone)]
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, readable.set)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(fd)
            for wait in waits:
                wait.cancel()

    def _failed(self, reason: str) -> ExecResult:
        return ExecResult.failure(PeerdError(Code.START_FAILED, peer=self._name, reason=reason))

    def _result(
        self, report: dict[str, int | str] | None, result: str, stopped_by_us: bool, duration: int, left: int
    ) -> ExecResult:
        error: PeerdError | None = None
        if result == "timeout":
            error = PeerdError(Code.TIMEOUT, peer=self._name, seconds=f"{self._timeout:g}")
        elif result == "oom-kill":
            error = PeerdError(Code.OUT_OF_MEMORY, peer=self._name)
        elif stopped_by_us:
            error = PeerdError(Code.CANCELLED, peer=self._name)
        elif report is None:
            # Nothing but a SIGKILL keeps a gate from reporting.
            return ExecResult(Outcome.SIGNALED, SIGNAL_BASE + 9, 9, duration)
        elif "errno" in report:
            number = int(report["errno"])
            if report["step"] == "directory":
                code = _DIRECTORY_ERRORS.get(number, Code.NO_ACCESS)
            else:
                code = Code.START_FAILED
            directory = self._request.directory
            error = PeerdError(code, peer=self._name, directory=directory, reason=os.strerror(number))
        if error:
            return ExecResult.failure(error, duration)
        assert report is not None
        status = int(report["status"])
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return ExecResult(Outcome.SIGNALED, SIGNAL_BASE + number, number, duration, left)
        return ExecResult(Outcome.EXITED, os.WEXITSTATUS(status), None, duration, left)


async def _report(control: socket.socket) -> dict[str, int | str] | None:
    """What the gate says of the command's end; None when it was killed before it could."""
    loop = asyncio.get_running_loop()
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_REPORT:
        chunk = await loop.sock_recv(control, _MAX_REPORT)
        if not chunk:
            return None
        data += chunk
    report: dict[str, int | str] = json.loads(data)
    return report


def _fill(pipe: int) -> int:
    """How many bytes a pipe holds (FIONREAD, ioctl_tty(2))."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
