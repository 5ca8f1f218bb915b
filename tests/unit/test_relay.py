"""Output for a caller who is slow to take it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from peerd import relay
from peerd.messages import MAX_OUTPUT
from peerd.relay import Relay
from peerd.session import Caller, Delivery, Session
from peerd.spool import Data
from peerd.stdin import Stdin
from unit.support import Slow

SMALL = 100_000


class Pieces(Slow):
    """One that remembers how output came, and that may be gone."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[str, bytes]] = []
        self.gone = False

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        await super().output(stream, data)
        if self.gone:
            raise ConnectionError
        self.pieces.append((stream, bytes(data)))


@asynccontextmanager
async def slow() -> AsyncIterator[tuple[Relay, Pieces, asyncio.Event]]:
    sink, cancel = Pieces(), asyncio.Event()
    session = Session(
        Caller("vps"), sink, cancel, asyncio.Event(), print, Stdin(lambda start, until, taken: None), Delivery()
    )
    passing = Relay(session)
    try:
        yield passing, sink, cancel
    finally:
        await passing.close()


def test_output_is_taken_at_once_and_passed_on_as_it_came() -> None:
    async def main() -> None:
        async with slow() as (passing, sink, _):
            came = [("stdout", b"1"), ("stderr", b"2"), ("stdout", b"3"), ("stdout", bytes(MAX_OUTPUT))]
            for stream, data in came:
                await passing.put(stream, data)
            assert sink.pieces == []
            sink.welcome.set()
            await passing.finish()
            assert sink.pieces == came

            await passing.put("stdout", b"5")
            await passing.finish()
            assert sink.pieces[4:] == [("stdout", b"5")]

    asyncio.run(main())


def test_small_pieces_are_put_together_and_each_stream_keeps_its_order() -> None:
    async def main() -> None:
        async with slow() as (passing, sink, _):
            sent = {"stdout": b"", "stderr": b""}
            for number in range(SMALL):
                stream = "stderr" if number % 3 == 1 else "stdout"
                await passing.put(stream, data := b"%d " % number)
                sent[stream] += data
            sink.welcome.set()
            await passing.finish()
            assert sink.streams == sent
            assert len(sink.pieces) <= relay._IN_ORDER + 3

            # What was put together is passed on in messages that are not too long.
            sink.welcome.clear()
            before = len(sink.pieces)
            for _ in range(relay._IN_ORDER):
                await passing.put("stdout", b".")
            for _ in range(5):
                await passing.put("stdout", bytes(MAX_OUTPUT - 1))
            sink.welcome.set()
            await passing.finish()
            later = [len(data) for _, data in sink.pieces[before:]]
            assert max(later) == MAX_OUTPUT
            assert sum(later) == relay._IN_ORDER + 5 * (MAX_OUTPUT - 1)

    asyncio.run(main())


def test_who_knows_no_window_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MOST", 10)

    async def main() -> None:
        async with slow() as (passing, sink, _):
            await passing.put("stdout", b"0123456789")
            waiting = asyncio.create_task(passing.put("stdout", b"more"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.05)
            sink.welcome.set()
            await waiting
            await passing.finish()
            assert sink.streams["stdout"] == b"0123456789more"

    asyncio.run(main())


def test_a_caller_that_is_gone_is_told_of_and_hears_no_more() -> None:
    async def main() -> None:
        async with slow() as (passing, sink, cancel):
            sink.gone = True
            await passing.put("stdout", b"1")
            await passing.put("stdout", b"2")
            sink.welcome.set()
            await passing.finish()
            assert cancel.is_set()
            await passing.put("stdout", b"3")
            await passing.finish()
            assert sink.pieces == []

    asyncio.run(main())


def test_what_a_cancelled_caller_has_not_taken_is_dropped() -> None:
    async def main() -> None:
        async with slow() as (passing, sink, cancel):
            await passing.put("stdout", b"1")
            await asyncio.sleep(0)
            await passing.put("stderr", b"2")
            cancel.set()
            sink.welcome.set()
            await passing.finish()
            assert sink.pieces == [("stdout", b"1")]

    asyncio.run(main())
