"""How many refusals of one peer are recorded: a flood of them must not push out what else is on record."""

from __future__ import annotations

import time
from collections import Counter

from peerd.journal import Event, log

_MOST = 600
_INTERVAL = 60.0


class Refusals:
    """Counts the refusals of each peer, in intervals."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._until = 0.0

    def recorded(self, peer: str) -> bool:
        """Whether one more of this peer's, should it be one, is recorded by itself."""
        if time.monotonic() > self._until:
            for who, count in self._counts.items():
                if count > _MOST:
                    log(Event.COMMAND_DENIED, f"{count - _MOST} more requests of {who} were refused", peer=who)
            self._counts.clear()
            self._until = time.monotonic() + _INTERVAL
        return self._counts[peer] < _MOST

    def count(self, peer: str) -> None:
        """A request of this peer was refused."""
        self._counts[peer] += 1
