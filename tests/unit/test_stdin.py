"""What a command reads: no more under way than was granted."""

from __future__ import annotations

import asyncio

import pytest

from peerd.errors import Code, PeerdError
from peerd.stdin import Stdin


def test_bytes_come_out_as_they_went_in_and_then_the_end() -> None:
    async def main() -> None:
        granted: list[int] = []
        stdin = Stdin(granted.append)
        stdin.grant(5)
        stdin.feed(b"ab")
        stdin.feed(b"c")
        assert await stdin.read() == b"abc"
        waiting = asyncio.create_task(stdin.read())
        await asyncio.sleep(0)
        assert not waiting.done()
        stdin.feed(b"de")
        assert await waiting == b"de"
        stdin.feed(b"")
        assert await stdin.read() == b""
        assert await stdin.read() == b""
        assert granted == [5]

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"abcd", b"x" * 100])
def test_more_than_was_granted_is_refused(data: bytes) -> None:
    stdin = Stdin(lambda size: None)
    stdin.grant(3)
    with pytest.raises(PeerdError) as caught:
        stdin.feed(data)
    assert caught.value.code is Code.BAD_MESSAGE


def test_nothing_comes_after_the_end() -> None:
    stdin = Stdin(lambda size: None)
    stdin.grant(3)
    stdin.feed(b"")
    for data in (b"", b"a"):
        with pytest.raises(PeerdError):
            stdin.feed(data)
