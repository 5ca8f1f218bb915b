"""What a command has to say to whoever gave it. Pure code."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from peerd.errors import Code, PeerdError

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
    :ivar rows: instead of data: what it shows, in portions that are put together when they are taken
    :ivar text: for the others: a sentence, or ""
    :ivar error: what went wrong, or what to know beside the data
    :ivar status: the exit status of ``d``
    :ivar record: all that is known of the command that it ran, but for its output
    """

    data: Any = None
    more: AsyncGenerator[Batch, None] | None = None
    rows: AsyncGenerator[list[Record], None] | None = None
    text: str = ""
    error: PeerdError | None = None
    status: int = 0
    record: Mapping[str, object] | None = None


async def whole(answer: Answer, most: int) -> Answer:
    """An answer with its rows as data, for who takes it in one piece.

    :param most: how many bytes of data, as JSON
    :raises PeerdError: TOO_MUCH_OUTPUT
    """
    if answer.rows is None:
        return answer
    data: list[Record] = []
    size = 0
    async with contextlib.aclosing(answer.rows) as portions:
        async for rows in portions:
            size += len(json.dumps(rows))
            if size > most:
                raise PeerdError(Code.TOO_MUCH_OUTPUT, reason=f"more than {most} bytes; ask for less (limit)")
            data += rows
    return replace(answer, data=data, rows=None)
