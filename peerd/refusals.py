"""How many refusals of one party are recorded: a flood of them must not push out what else is on record."""

from __future__ import annotations

import time
from collections import Counter

from peerd.journal import Event, log

_MOST = 600
_INTERVAL = 60.0
_MOST_PARTIES = 10_000


class Refusals:
    """Counts the refusals of each party, in intervals.

    :param what: of what, in the plural
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._counts: Counter[str] = Counter()
        self._until = 0.0

    def recorded(self, who: str) -> bool:
        """Whether one more of this party's, should it be one, is recorded by itself."""
        if time.monotonic() > self._until or len(self._counts) > _MOST_PARTIES:
            for party, count in self._counts.items():
                if count > _MOST:
                    text = f"{count - _MOST} more {self._what} of {party} were refused"
                    log(Event.REFUSALS_LEFT_OUT, text, caller=party)
            self._counts.clear()
            self._until = time.monotonic() + _INTERVAL
        return self._counts[who] < _MOST

    def count(self, who: str) -> None:
        """One of this party's was refused."""
        self._counts[who] += 1
