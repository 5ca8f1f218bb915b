"""The command that tells what ran here and what was asked from here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator

from peerd import history
from peerd.answer import Answer, Record
from peerd.config import Config
from peerd.errors import PeerdError
from peerd.history import Entry, History
from peerd.jobs import Jobs
from peerd.memory import heap
from peerd.render import record
from peerd.session import Session

_LIMIT = 100
_MOST_ASKED = 32
_ASKED_AFTER = 200
"""How many commands of unknown end are looked at for such of peers that can be asked."""
_USEC = 1_000_000


class Recall:
    """A part of the service."""

    def __init__(self, jobs: Jobs, past: History, config: Callable[[], Config]) -> None:
        self._jobs = jobs
        self._history = past
        self._config = config
        self._telling = asyncio.Lock()

    async def do_history(
        self,
        session: Session,
        peer: str | None = None,
        outcome: str | None = None,
        since: float = 0.0,
        limit: int = _LIMIT,
    ) -> Answer:
        """What ran here and what was asked from here."""
        await self._refresh()
        most = min(limit, self._config().history_limit)
        return Answer(rows=self._tell(session, self._history.portions(None, peer, outcome, round(since * _USEC), most)))

    async def _tell(self, session: Session, portions: Iterator[list[Entry]]) -> AsyncGenerator[list[Record], None]:
        while not (session.cancel.is_set() or session.gone.is_set()):
            # However many ask, what there is to do for one must not hold up all else for longer.
            async with self._telling:
                entries = next(portions, None)
                rows = [{"side": entry.side, **record(entry.job)} for entry in entries or ()]
                await asyncio.sleep(0)
            if entries is None:
                return
            heap.used()
            yield rows

    async def _refresh(self) -> None:
        """Ask after commands of whose end nothing is known here: detached, or cut off from their callers."""

        async def ask(entry: Entry) -> None:
            with contextlib.suppress(PeerdError):
                job = await self._jobs.request("getJob", entry.job.exec_id, entry.peer)
                self._jobs.learn(entry.peer, job.exec_id, job.result)

        online = {peer.peer_id for peer in self._jobs.others}
        entries = [
            entry for entry in self._history.find(history.ASKED, outcome="", limit=_ASKED_AFTER) if entry.peer in online
        ]
        # Whoever does not answer by then is asked again the next time.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config().connect_timeout):
                await asyncio.gather(*(ask(entry) for entry in entries[:_MOST_ASKED]))
