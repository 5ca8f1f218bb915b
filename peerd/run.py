"""One command on this machine, from its gate to the end of its tree."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import pwd
import socket
import sys
import termios
import time
from dataclasses import replace

from peerd import scopes, validate
from peerd.environment import login_environment
from peerd.errors import SIGNAL_BASE, Code, Outcome, PeerdError
from peerd.journal import Event, log
from peerd.messages import MAX_OUTPUT, ExecRequest, ExecResult
from peerd.scopes import Limits, ScopeEnd, ScopeError, ScopeManager
from peerd.session import Caller, Sink
from peerd.spawning import Spawner
from peerd.stdin import WINDOW, Stdin

_MAX_REPORT = 4096
_USEC = 1_000_000

_DIRECTORY_ERRORS = {errno.ENOENT: Code.NO_SUCH_DIRECTORY, errno.ENOTDIR: Code.NOT_A_DIRECTORY}


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
        "command": request.command or (f"({request.action})" if request.action else ""),
        "user": request.user,
    }


class Run:
    """One command, from its gate to the end of its tree."""

    def __init__(
        self,
        request: ExecRequest,
        caller: Caller,
        sink: Sink,
        cancel: asyncio.Event,
        stdin: Stdin | None,
        scope_manager: ScopeManager,
        spawner: Spawner,
        grace: float,
        name: str,
    ) -> None:
        self._request = request
        self._caller = caller
        self._sink = sink
        self._cancel = cancel
        self._stdin = stdin if request.stdin else None
        self._scopes = scope_manager
        self._spawner = spawner
        self._grace = grace
        self._timeout = request.timeout or 0.0
        self._name = name
        self._scope = scopes.scope_name(request.exec_id)
        self._tree_gone = asyncio.Event()
        self._input = -1
        self._cancelled = asyncio.create_task(cancel.wait())

    async def to_end(self) -> ExecResult:
        """Run it, and leave nothing of it behind, whatever happens."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._cancelled.cancel)
            try:
                control, pipes, pid = await self._spawn(stack)
            except PeerdError as error:
                return ExecResult.failure(error)
            except (OSError, EOFError) as error:
                return self._failed(f"{error}")
            began = time.monotonic()
            limits = Limits(self._request.memory, self._request.cpu, self._request.tasks)
            try:
                await self._scopes.start(self._scope, pid, self._description(), self._timeout, self._grace, limits)
            except ScopeError as error:
                # Closing the control socket ends the gate, which has started nothing.
                return self._failed(str(error))
            return await self._supervise(control, pipes, pid, began)

    def _description(self) -> str:
        return validate.printable(f"peerd: {self._request.command}", 200)

    async def _spawn(self, stack: contextlib.ExitStack) -> tuple[socket.socket, dict[str, int], int]:
        user = self._request.user or "root"
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise PeerdError(Code.NO_SUCH_USER, peer=self._name, user=user) from None
        control, gate_end = socket.socketpair()
        stack.enter_context(control)
        control.setblocking(False)
        pipes: dict[str, int] = {}
        with contextlib.ExitStack() as theirs:
            theirs.enter_context(gate_end)
            if self._stdin:
                read_end, self._input = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._input, False)
                stack.callback(self._close_input)
            else:
                read_end = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, read_end)
            ends = [read_end]
            for stream in ("stdout", "stderr"):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, write_end)
                stack.callback(os.close, read_end)
                os.set_blocking(read_end, False)
                pipes[stream] = read_end
                ends.append(write_end)
            pid = await self._spawner.spawn(
                self._argv(entry),
                self._request.directory,
                {**login_environment(self._request.exec_id, str(self._caller), entry), **self._request.env},
                [*ends, gate_end.fileno()],
                {**(_credentials(entry) if entry.pw_uid else {}), "resolved": self._request.resolved},
            )
        return control, pipes, pid

    def _argv(self, entry: pwd.struct_passwd) -> list[str]:
        request = self._request
        if request.login:
            # The shell becomes the program, where there is one, so that it is found by the login shell's PATH.
            words = ["-c", 'exec "$@"', "sh", *request.argv] if request.argv else ["-c", request.shell_cmd]
            return [entry.pw_shell or "/bin/sh", "-l", *words]
        return list(request.argv) or ["/bin/sh", "-c", request.shell_cmd]

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    async def _supervise(self, control: socket.socket, pipes: dict[str, int], gate: int, began: float) -> ExecResult:
        log(
            Event.COMMAND_STARTED,
            f"{self._request.exec_id} for {self._caller} runs in {self._request.directory}: {self._request.command}",
            **describe(self._request, self._caller.peer, str(self._caller)),
            unit=self._scope,
        )
        report_task = asyncio.create_task(_report(control))
        pumps = [asyncio.create_task(self._pump(stream, fd)) for stream, fd in pipes.items()]
        feeder = asyncio.create_task(self._feed())
        started_usec = time.time_ns() // 1000
        try:
            if self._cancel.is_set():
                control.shutdown(socket.SHUT_WR)  # The gate ignores SIGTERM; this tells it to go.
            else:
                # A gate that was killed, or a caller that is gone, is found out about below.
                with contextlib.suppress(ConnectionError):
                    control.send(b"\n")
                    await self._sink.started()
            await asyncio.wait({report_task, self._cancelled}, return_when=asyncio.FIRST_COMPLETED)
            over_time = time.monotonic() - began >= self._timeout
            # A gate that was cancelled before its release goes without a report.
            stopped_by_us = not report_task.done() or (self._cancel.is_set() and report_task.result() is None)
            left = 0 if stopped_by_us else len([pid for pid in scopes.processes(self._scope) if pid != gate])
            peak = scopes.memory_peak(self._scope)
            control.shutdown(socket.SHUT_WR)
            end = await self._stop()
            if end.result == "timeout" and not over_time:
                # systemd says so, too, where our own stop took more than SIGTERM.
                end = replace(end, result="success")
            report = await report_task
            duration = round((time.monotonic() - began) * _USEC)
            self._tree_gone.set()
            drained = asyncio.create_task(asyncio.wait(pumps))
            await asyncio.wait({self._cancelled, drained}, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                if pump.done():
                    pump.result()
        finally:
            tasks = (report_task, feeder, *pumps)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        outcome = self._result(report, end.result, stopped_by_us, left)
        return replace(
            outcome, duration_usec=duration, started_usec=started_usec, cpu_usec=end.cpu_usec, memory_peak=peak
        )

    async def _stop(self) -> ScopeEnd:
        """End what is left of the tree."""
        try:
            await self._scopes.stop(self._scope)
            return await self._scopes.end(self._scope)
        except ScopeError as error:
            log(Event.INTERNAL_ERROR, f"{self._scope}: {error}", exec_id=self._request.exec_id)
            scopes.kill(self._scope)
            return ScopeEnd("unknown", None)

    async def _feed(self) -> None:
        """Pass on what the caller sends to the command's standard input, at the pace at which it reads."""
        if self._stdin is None:
            return
        self._stdin.grant(WINDOW)
        loop = asyncio.get_running_loop()
        try:
            while data := await self._stdin.read():
                left = memoryview(data)
                while left:
                    try:
                        written = os.write(self._input, left)
                    except BlockingIOError:
                        writable = asyncio.Event()
                        loop.add_writer(self._input, writable.set)
                        try:
                            await writable.wait()
                        finally:
                            loop.remove_writer(self._input)
                        continue
                    left = left[written:]
                    self._stdin.grant(written)
        except BrokenPipeError:
            pass  # The command reads no more, which is its own business; it is granted no more either.
        self._close_input()

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

    def _result(self, report: dict[str, int | str] | None, result: str, stopped_by_us: bool, left: int) -> ExecResult:
        error: PeerdError | None = None
        if result == "timeout":
            error = PeerdError(Code.TIMEOUT, peer=self._name, seconds=f"{self._timeout:g}")
        elif result == "oom-kill":
            error = PeerdError(Code.OUT_OF_MEMORY, peer=self._name)
        elif stopped_by_us:
            error = PeerdError(Code.CANCELLED, peer=self._name)
        elif report is None:
            # Nothing but a SIGKILL keeps a gate from reporting.
            return ExecResult(Outcome.SIGNALED, SIGNAL_BASE + 9, 9)
        elif "errno" in report:
            number = int(report["errno"])
            if report["step"] == "directory":
                code = _DIRECTORY_ERRORS.get(number, Code.NO_ACCESS)
            else:
                code = Code.START_FAILED
            directory = self._request.directory
            error = PeerdError(code, peer=self._name, directory=directory, reason=os.strerror(number))
        if error:
            return ExecResult.failure(error)
        assert report is not None
        status = int(report["status"])
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return ExecResult(Outcome.SIGNALED, SIGNAL_BASE + number, number, left_behind=left)
        return ExecResult(Outcome.EXITED, os.WEXITSTATUS(status), left_behind=left)


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


def _credentials(entry: pwd.struct_passwd) -> dict[str, object]:
    """What the spawner needs to know of a user: as initgroups(3) has it."""
    return {
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "groups": os.getgrouplist(entry.pw_name, entry.pw_gid),
    }
