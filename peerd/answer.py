"""What a command has to say to whoever gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peerd.errors import PeerdError


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    :ivar data: for a command that shows data: what it shows
    :ivar text: for the others: a sentence, or ""
    :ivar error: what went wrong, or what to know beside the data
    :ivar status: the exit status of ``d``
    :ivar record: all that is known of the command that it ran, but for its output
    """

    data: Any = None
    text: str = ""
    error: PeerdError | None = None
    status: int = 0
    record: Mapping[str, object] | None = None
