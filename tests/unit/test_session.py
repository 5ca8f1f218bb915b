"""How far output runs ahead of what its caller has confirmed, and how a caller takes its request back."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pytest

from peerd.messages import WINDOW
from peerd.session import Caller, Delivery, PacedSink, Session, unless_cancelled
from peerd.stdin import Stdin
from unit.support import Heard

T = TypeVar("T")
HALF = bytes(WINDOW // 2)


async def waits(work: asyncio.Task[T]) -> bool:
    """Whether this has not ended, although it had every chance."""
    await asyncio.sleep(0.01)
    return not work.done()


@pytest.mark.parametrize("start", [0, WINDOW // 2, 3 * WINDOW])
def test_output_is_sent_a_window_ahead_of_what_was_confirmed_and_no_further(start: int) -> None:
    async def main() -> None:
        heard, delivery = Heard(), Delivery()
        paced = PacedSink(heard, delivery, {"stdout": start, "stderr": 0})
        for _ in range(2):
            await paced.output("stdout", HALF)
        further = asyncio.create_task(paced.output("stdout", b"x"))
        assert await waits(further)
        # The other stream has its own window.
        await paced.output("stderr", HALF)
        delivery.confirm({"stdout": start, "stderr": WINDOW // 2})
        assert await waits(further)
        delivery.confirm({"stdout": start + 1, "stderr": WINDOW // 2})
        await further
        assert len(heard.streams["stdout"]) == WINDOW + 1

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "gone"])
def test_work_ends_when_its_caller_wants_no_more(how: str) -> None:
    async def main() -> None:
        session = Session(
            Caller("vps"),
            Heard(),
            asyncio.Event(),
            asyncio.Event(),
            print,
            Stdin(lambda start, until, taken: None),
            Delivery(),
        )
        assert await unless_cancelled(session, asyncio.sleep(0, "done")) == "done"

        ended = asyncio.Event()

        async def forever() -> bool:
            try:
                return await asyncio.Event().wait()
            finally:
                ended.set()

        working = asyncio.create_task(unless_cancelled(session, forever()))
        assert await waits(working)
        getattr(session, how).set()
        assert await working is None
        assert ended.is_set()

    asyncio.run(main())
