"""What holds for every unit test: a journal that is looked at, an asyncio that is silent, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import hypothesis
import pytest

from peerd import fdstore, journal, refusals
from peerd.journal import Event
from unit.support import FakeStore, Journal, children, descriptors

T = TypeVar("T")
_LIMIT = 15.0
_TURNS = 50
# systemd.journal-fields(7): upper-case letters, digits and underscores; a leading underscore is journald's own.
_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

hypothesis.settings.register_profile("peerd", derandomize=True, database=None, deadline=None, max_examples=60)
hypothesis.settings.load_profile("peerd")


@pytest.fixture(autouse=True, scope="session")
def _collected() -> None:
    """What is loaded by now stays; the collections after each test need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """The journal. Every record is checked, and one of an internal error fails the test unless it is expected."""
    sink = Journal()
    monkeypatch.setattr(journal, "journal", sink)
    for name in ("requests", "connections"):
        monkeypatch.setattr(refusals, name, refusals.Refusals(name))
    yield sink
    for record in sink.records:
        assert record.message.isprintable(), record
        assert "Traceback" not in record.message or Event.INTERNAL_ERROR in sink.expected, record
        assert record.event is not Event.INTERNAL_ERROR or Event.INTERNAL_ERROR in sink.expected, record
        assert record.fields["SYSLOG_IDENTIFIER"] == b"peerd"
        assert all(_FIELD.fullmatch(name) for name in record.fields), record


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    """The store of descriptors, which is empty when all is over."""
    fake = FakeStore()
    monkeypatch.setattr(fdstore, "keep", fake.keep)
    monkeypatch.setattr(fdstore, "forget", fake.forget)
    yield fake
    left = list(fake.kept)
    for name in left:
        fake.forget(name)
    assert not left, f"kept for ever: {left}"


@pytest.fixture
def _quiet_loop() -> Iterator[None]:
    """What asyncio complains of (exceptions nobody took, a callback that failed) fails the test."""
    complaints: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                complaints.append(self.format(record))

    handler = Keep()
    logging.getLogger("asyncio").addHandler(handler)
    yield
    logging.getLogger("asyncio").removeHandler(handler)
    assert not complaints, "\n".join(complaints)


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch, _quiet_loop: None) -> Iterator[None]:
    """No test leaves a task, a descriptor or a child process; none of asyncio's waits for ever."""
    run = asyncio.run

    async def whole(main: Coroutine[Any, Any, T]) -> T:
        async with asyncio.timeout(_LIMIT):
            result = await main
        del main
        # What was cancelled or closed a moment ago needs some turns of the loop to be gone.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left: {left}"
        return result

    def checked(main: Coroutine[Any, Any, T]) -> T:
        try:
            return run(whole(main))
        finally:
            # An exception that nobody took is complained of when its task is collected.
            gc.collect()

    monkeypatch.setattr(asyncio, "run", checked)
    before, born_before = descriptors(), children()
    yield
    after, born = descriptors(), children()
    left = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert not left, f"descriptors left: {left}"
    assert not born.keys() - born_before.keys(), f"children left: {born}"
