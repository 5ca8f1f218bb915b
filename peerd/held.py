"""The commands that run here, and those that have ended and that their callers have not heard all of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from peerd.config import Config
from peerd.history import History
from peerd.run import Run
from peerd.session import Caller


@dataclass(eq=False)
class _Record:
    """One of them.

    :ivar task: what sees it to its end
    :ivar attending: how many hear of it now
    :ivar timer: what is in store for it while nobody does
    """

    run: Run
    task: asyncio.Task[None]
    attending: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def ended(self) -> bool:
        """Whether its result is known."""
        return self.run.result is not None


class Held:
    """Holds each until its caller has heard all of it, or has not come back for reattach-timeout.

    :param config: gives the settings in force
    """

    def __init__(self, past: History, config: Callable[[], Config]) -> None:
        self._history = past
        self._config = config
        self._records: dict[str, _Record] = {}
        self._leaving = False

    @property
    def ids(self) -> Collection[str]:
        """The ids of all of them."""
        return self._records.keys()

    @property
    def running(self) -> list[Run]:
        """Those that run."""
        return [record.run for record in self._records.values() if not record.ended]

    def find(self, exec_id: str) -> Run | None:
        """The one with this id."""
        record = self._records.get(exec_id)
        return record.run if record else None

    def add(self, run: Run, task: asyncio.Task[None]) -> None:
        """Hold one more.

        :param task: what sees it to its end
        """
        record = self._records[run.request.exec_id] = _Record(run, task)
        self._watch_over(record)

    @contextlib.contextmanager
    def attended(self, run: Run) -> Iterator[None]:
        """While somebody hears of it."""
        record = self._records[run.request.exec_id]
        record.attending += 1
        self._watch_over(record)
        try:
            yield
        finally:
            record.attending -= 1
            if not self._over(record):
                self._watch_over(record)

    def ended(self, run: Run) -> None:
        """Its result is known: nobody waits for that of a detached one."""
        # Behind those that ended before.
        record = self._records[run.request.exec_id] = self._records.pop(run.request.exec_id)
        self._over(record)

    def make_room(self, most: int, caller: Caller | None = None) -> None:
        """See that fewer than so many have ended, all or those of one caller: the first that nobody hears of goes.

        Each that is heard of has a connection, and those have bounds of their own.
        """
        if len(self._records) < most:
            return
        ended = [one for one in self._records.values() if one.ended and caller in (None, one.run.caller)]
        if len(ended) >= most and (first := next((one for one in ended if not one.attending), None)):
            self._forget(first)

    def delivered(self, exec_id: str) -> None:
        """The caller has the result: nothing of it is kept but its record."""
        record = self._records.get(exec_id)
        if record and record.ended and not record.attending:
            self._forget(record)

    def watch_no_more(self) -> None:
        """Nobody can come back to this process any more: the next one waits for the callers."""
        self._leaving = True
        for record in self._records.values():
            self._watch_over(record)

    async def leave(self) -> None:
        """Leave all of them to another process of peerd, as they are."""
        tasks = [record.task for record in self._records.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for record in self._records.values():
            record.run.leave()

    def _over(self, record: _Record) -> bool:
        """Let go of a detached one that has ended and that nobody hears of; whether it was."""
        over = record.run.request.detach and record.ended and not record.attending
        if over:
            self._forget(record)
        return over

    def _watch_over(self, record: _Record) -> None:
        """See that one that nobody listens to any more does not outlive reattach-timeout, unless it may."""
        if record.timer:
            record.timer.cancel()
            record.timer = None
        if not (self._leaving or record.run.request.detach or record.attending):
            loop = asyncio.get_running_loop()
            record.timer = loop.call_later(self._config().reattach_timeout, self._abandon, record)

    def _abandon(self, record: _Record) -> None:
        if record.ended:
            self._forget(record)
        else:
            record.run.cancel(abandoned=True)
            self._watch_over(record)

    def _forget(self, record: _Record) -> None:
        del self._records[record.run.request.exec_id]
        if record.timer:
            record.timer.cancel()
        # Without its descriptors the next process would have nothing but the history to know the end from.
        self._history.catch_up()
        record.run.close()
