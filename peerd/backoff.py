"""Pauses between attempts to reach something that is not there."""

from __future__ import annotations

import random


class Backoff:
    """How long to wait before the next attempt: ever longer, and never as long as all others.

    The jitter keeps the workers of a leader that comes back from arriving together.

    :ivar taken: pauses since the last reset
    :param longest: seconds; LONGEST if not given
    """

    SHORTEST = 0.25
    """Seconds; the least between two attempts, and between two questions for a sign of life."""
    LONGEST = 5.0

    def __init__(self, longest: float | None = None) -> None:
        self._longest = longest or self.LONGEST
        self.reset()

    def reset(self, delay: float | None = None) -> None:
        """Begin anew, or with this delay, in seconds."""
        self.taken = 0
        self._next = self.SHORTEST if delay is None else delay

    def take(self) -> float:
        """The seconds to wait now."""
        self.taken += 1
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._longest)
        return pause
