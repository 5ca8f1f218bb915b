"""The jobs that are shown on D-Bus: what runs here, and what its callers started elsewhere to read its streams."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from peerd import busapi, busvalues
from peerd.busapi import JOB, MANAGER, OBJECT_MANAGER, ROOT
from peerd.errors import EXIT_FAILURE, PeerdError
from peerd.executor import Executor
from peerd.job import Job


class Jobs:
    """Which jobs there are, and who hears of their beginnings and ends.

    :ivar shown: the jobs by their ids
    :param signal: sends a signal: path, interface, member and body
    """

    def __init__(self, executor: Executor, signal: Callable[[str, str, str, list[Any]], None]) -> None:
        self._executor = executor
        self._signal = signal
        self._streamed: dict[str, Job] = {}
        self._ended: dict[str, tuple[str, int]] = {}
        self._new: set[str] = set()
        self.shown: dict[str, Job] = {}

    def begin(self, job: Job) -> None:
        """A caller reads the streams of this job."""
        self._streamed[job.exec_id] = job
        self.changed()

    def end(self, exec_id: str, outcome: str, exit_status: int) -> None:
        """That job has ended."""
        self._ended[exec_id] = (outcome, exit_status)
        del self._streamed[exec_id]
        self.changed()
        self._ended.pop(exec_id, None)

    def changed(self) -> None:
        """Tell at once what began and what ended: a job may be too short to be told of later."""
        running = {**self._streamed, **{job.exec_id: job for job in self._executor.active}}
        before, self.shown = self.shown, running
        for exec_id in running.keys() - before.keys():
            self._new.add(exec_id)
            self._signal(ROOT, MANAGER, "JobStarted", [exec_id, busapi.job_path(exec_id)])
        for exec_id in before.keys() - running.keys():
            path = busapi.job_path(exec_id)
            # An object that has gone before anybody was told of it is not told of.
            if exec_id not in self._new:
                self._signal(ROOT, OBJECT_MANAGER, "InterfacesRemoved", [path, [JOB]])
            self._new.discard(exec_id)
            self._signal(ROOT, MANAGER, "JobFinished", [exec_id, path, *self._how_ended(exec_id)])

    def added(self) -> list[tuple[str, str, str, list[Any]]]:
        """The signals about objects that are new since the last call; they go before all others."""
        new, self._new = self._new, set()
        return [
            (ROOT, OBJECT_MANAGER, "InterfacesAdded", [busapi.job_path(exec_id), {JOB: busvalues.of_job(job)}])
            for exec_id, job in self.shown.items()
            if exec_id in new
        ]

    def _how_ended(self, exec_id: str) -> tuple[str, int]:
        """Outcome and exit status of a job."""
        if exec_id in self._ended:
            return self._ended[exec_id]
        with contextlib.suppress(PeerdError):
            if result := self._executor.job(exec_id).result:
                return result.outcome.value, result.exit_status
        return "", EXIT_FAILURE
