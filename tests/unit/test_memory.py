"""What a burst took is given back, once it is quiet."""

from __future__ import annotations

import asyncio

import pytest

from peerd import memory
from peerd.memory import Heap, resident, trim

PAGE = 4096
BLOCK = 64 * 1024


class Process:
    """One that has so many pages in memory, and that gives some back."""

    def __init__(self) -> None:
        self.pages = 1000
        self.looked = asyncio.Event()
        self.trims: list[int] = []

    def resident(self) -> int:
        self.looked.set()
        return self.pages

    def trim(self) -> None:
        self.trims.append(self.pages)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """What is looked at once it is quiet, which is soon."""
    one = Process()
    monkeypatch.setattr(memory, "_QUIET", 0.02)
    monkeypatch.setattr(memory, "resident", one.resident)
    monkeypatch.setattr(memory, "trim", one.trim)
    return one


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


def test_memory_is_given_back_once_it_is_quiet(process: Process) -> None:
    async def main() -> None:
        heap = Heap()
        for _ in range(10):
            heap.used()
            await asyncio.sleep(0)
            assert not process.trims
        await process.looked.wait()
        assert process.trims == [1000]

    asyncio.run(main())


@pytest.mark.parametrize(("taken", "expected"), [(1050, []), (1150, [1150])])
def test_where_little_was_taken_nothing_is_given_back(process: Process, taken: int, expected: list[int]) -> None:
    async def main() -> None:
        heap = Heap()
        heap.settle()
        process.looked.clear()
        process.pages = taken
        heap.used()
        await process.looked.wait()
        assert process.trims == expected

    asyncio.run(main())


def test_a_loop_that_ended_does_not_keep_the_next_from_it(process: Process) -> None:
    heap = Heap()

    async def ended() -> None:
        heap.used()

    async def main() -> None:
        heap.used()
        await process.looked.wait()
        assert process.trims == [1000]

    asyncio.run(ended())
    asyncio.run(main())
