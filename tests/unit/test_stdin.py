"""Standard input between its sender and its reader: by credit, and held until it is taken for good."""

from __future__ import annotations

import asyncio

import pytest

from peerd.errors import Code, PeerdError
from peerd.messages import MAX_OUTPUT, WINDOW
from peerd.stdin import Stdin


class Sender:
    """Hears from which offset on, and up to which, it may send."""

    def __init__(self) -> None:
        self.windows: list[tuple[int | None, int]] = []
        self.stdin = Stdin(lambda start, until, taken: self.windows.append((start, until)))


def test_bytes_are_read_in_their_order_from_any_offset_that_is_held() -> None:
    async def main() -> None:
        sender = Sender()
        sender.stdin.open(0, WINDOW, 0)
        sender.stdin.feed(b"one")
        sender.stdin.feed(b"two")
        assert await sender.stdin.read(0) == b"onetwo"
        assert await sender.stdin.read(4) == b"wo"
        sender.stdin.feed(b"")
        assert await sender.stdin.read(6) == b""
        assert sender.windows == [(0, WINDOW)]

    asyncio.run(main())


def test_a_reader_waits_for_what_is_not_there_yet() -> None:
    async def main() -> None:
        sender = Sender()
        sender.stdin.open(0, WINDOW, 0)
        reading = asyncio.create_task(sender.stdin.read(2))
        sender.stdin.feed(b"ab")
        await asyncio.sleep(0)
        assert not reading.done()
        sender.stdin.feed(b"c")
        assert await reading == b"c"

    asyncio.run(main())


def test_what_is_a_window_behind_the_grant_is_let_go() -> None:
    async def main() -> None:
        sender = Sender()
        sender.stdin.open(0, WINDOW, 0)
        sender.stdin.feed(b"x" * WINDOW)
        sender.stdin.grant(WINDOW + 10, 10)
        sender.stdin.feed(b"y" * 10)
        assert await sender.stdin.read(0) == b"x" * MAX_OUTPUT
        assert await sender.stdin.read(WINDOW - MAX_OUTPUT + 10) == b"x" * (MAX_OUTPUT - 10)
        assert await sender.stdin.read(WINDOW) == b"y" * 10
        assert sender.windows[-1] == (None, WINDOW + 10)
        sender.stdin.grant(WINDOW, 0)
        assert sender.windows[-1] == (None, WINDOW + 10)

    asyncio.run(main())


def test_a_reader_that_comes_back_does_not_start_the_sender_anew() -> None:
    async def main() -> None:
        sender = Sender()
        sender.stdin.open(0, WINDOW, 0)
        sender.stdin.feed(b"abc")
        sender.stdin.open(1, WINDOW + 1, 1)
        assert sender.windows == [(0, WINDOW), (None, WINDOW + 1)]
        assert await sender.stdin.read(1) == b"bc"

    asyncio.run(main())


def test_a_sender_that_resumes_starts_where_the_reader_is() -> None:
    async def main() -> None:
        sender = Sender()
        sender.stdin.open(500, WINDOW + 400, 500)
        sender.stdin.feed(b"abc")
        assert await sender.stdin.read(500) == b"abc"
        assert sender.windows == [(500, WINDOW + 400)]

    asyncio.run(main())


@pytest.mark.parametrize("granted", [None, 3])
def test_more_than_was_granted_is_refused(granted: int | None) -> None:
    sender = Sender()
    if granted is not None:
        sender.stdin.open(0, granted, 0)
    with pytest.raises(PeerdError) as caught:
        sender.stdin.feed(b"four")
    assert caught.value.code is Code.BAD_MESSAGE


def test_nothing_comes_after_the_end() -> None:
    sender = Sender()
    sender.stdin.open(0, WINDOW, 0)
    sender.stdin.feed(b"")
    with pytest.raises(PeerdError):
        sender.stdin.feed(b"more")
