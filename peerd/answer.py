"""What a command has to say to whoever gave it. Pure code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from peerd.errors import PeerdError

Record = dict[str, object]


@dataclass(frozen=True)
class Batch:
    """Records of a journal that come together.

    :ivar cursor: the place of the last of them in the journal, as journalctl(1) has it; "" where it is not told
    """

    records: list[Record]
    cursor: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    :ivar data: for a command that shows data: what it shows
    :ivar more: instead of data: records as they come, until the caller has had enough
    :ivar text: for the others: a sentence, or ""
    :ivar error: what went wrong, or what to know beside the data
    :ivar status: the exit status of ``d``
    :ivar record: all that is known of the command that it ran, but for its output
    """

    data: Any = None
    more: AsyncGenerator[Batch, None] | None = None
    text: str = ""
    error: PeerdError | None = None
    status: int = 0
    record: Mapping[str, object] | None = None
