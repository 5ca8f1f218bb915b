"""Pauses between attempts to reach another machine."""

from __future__ import annotations

import random

SHORTEST = 0.25
"""Seconds; the least between two attempts, and between two questions for a sign of life."""
LONGEST = 5.0


class Pauses:
    """How long to wait before the next attempt: ever longer, and never as long as all others.

    The jitter keeps the workers of a leader that comes back from arriving together.
    """

    def __init__(self) -> None:
        self._next = SHORTEST

    def reset(self, delay: float | None = None) -> None:
        """Begin anew, or with this delay, in seconds."""
        self._next = SHORTEST if delay is None else delay

    def take(self) -> float:
        """The seconds to wait now."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, LONGEST)
        return pause
