"""What a burst took is given back, once it is quiet."""

from __future__ import annotations

import asyncio

import pytest

from peerd import memory
from peerd.memory import Heap, resident, trim

PAGE = 4096
BLOCK = 64 * 1024


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much was resident each time that memory was given back; resident() says what a test sets."""
    given: list[int] = []
    monkeypatch.setattr(memory, "_QUIET", 0.02)
    monkeypatch.setattr(memory, "trim", lambda: given.append(memory.resident()))
    monkeypatch.setattr(memory, "resident", lambda: 1000)
    return given


def test_what_is_free_between_what_is_used_is_given_back() -> None:
    before = resident()
    blocks = [bytearray(BLOCK) for _ in range(1000)]
    for block in blocks:
        block[::PAGE] = bytes([1]) * (BLOCK // PAGE)
    kept = blocks[::100]
    taken = resident() - before
    del blocks, block
    trim()
    assert resident() - before < taken / 4
    assert len(kept) == 10


def test_memory_is_given_back_once_it_is_quiet(trims: list[int]) -> None:
    async def main() -> None:
        heap = Heap()
        for _ in range(10):
            heap.used()
            await asyncio.sleep(0)
            assert not trims
        await asyncio.sleep(0.2)
        assert trims == [1000]

    asyncio.run(main())


@pytest.mark.parametrize(("taken", "expected"), [(1050, []), (1150, [1150])])
def test_where_little_was_taken_nothing_is_given_back(
    trims: list[int], monkeypatch: pytest.MonkeyPatch, taken: int, expected: list[int]
) -> None:
    async def main() -> None:
        heap = Heap()
        heap.settle()
        monkeypatch.setattr(memory, "resident", lambda: taken)
        heap.used()
        await asyncio.sleep(0.2)
        assert trims == expected

    asyncio.run(main())


def test_a_loop_that_ended_does_not_keep_the_next_from_it(trims: list[int]) -> None:
    heap = Heap()

    async def ended() -> None:
        heap.used()

    async def main() -> None:
        heap.used()
        await asyncio.sleep(0.2)
        assert trims == [1000]

    asyncio.run(ended())
    asyncio.run(main())
