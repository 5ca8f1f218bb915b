"""How many refusals of one party are recorded: a flood of them must not push out what else is on record."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from peerd.journal import Event, log

_MOST = 600
_INTERVAL = 60.0
_MOST_PARTIES = 10_000
_OTHERS = "(others)"
"""All parties together that come when there are as many as are told apart; no peer, address or user is called so."""


class Refusals:
    """Counts the refusals of each party, in intervals.

    :param what: of what, in the plural
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._counts: Counter[str] = Counter()
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def recorded(self, who: str) -> bool:
        """Whether one more of this party's, should it be one, is recorded by itself."""
        if time.monotonic() > self._until:
            self._begin()
        return self._counts[self._party(who)] < _MOST

    def count(self, who: str) -> None:
        """One of this party's was refused."""
        party = self._party(who)
        self._counts[party] += 1
        if self._counts[party] > _MOST and self._timer is None:
            # Who stops by then is told of all the same.
            self._timer = asyncio.get_running_loop().call_at(self._until, self._begin)

    def refused(self, who: str) -> bool:
        """Count one of this party's that was refused; whether it is recorded by itself."""
        recorded = self.recorded(who)
        self.count(who)
        return recorded

    def _party(self, who: str) -> str:
        return who if who in self._counts or len(self._counts) < _MOST_PARTIES else _OTHERS

    def _begin(self) -> None:
        """Tell of what was left out, and begin another interval."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for party, count in self._counts.items():
            if count > _MOST:
                text = f"{count - _MOST} more {self._what} of {party} were refused"
                log(Event.REFUSALS_LEFT_OUT, text, caller=party)
        self._counts.clear()
        self._until = time.monotonic() + _INTERVAL


requests = Refusals("requests")
"""What peers ask for, by their ids."""
connections = Refusals("connections and registrations")
"""What comes over connections before it is a peer's request, by address; of local callers by user."""
