"""What a command has to say to whoever gave it. Pure code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerd.errors import PeerdError


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    :ivar data: for a command that shows data: what it shows
    :ivar more: instead of data: rows of it as they come, until the caller has had enough
    :ivar text: for the others: a sentence, or ""
    :ivar error: what went wrong, or what to know beside the data
    :ivar status: the exit status of ``d``
    :ivar record: all that is known of the command that it ran, but for its output
    """

    data: Any = None
    more: AsyncGenerator[Sequence[Mapping[str, object]], None] | None = None
    text: str = ""
    error: PeerdError | None = None
    status: int = 0
    record: Mapping[str, object] | None = None
