"""The history: what is asked of it is answered from disk, and no disk keeps a command from running."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import peewee
import pytest

from peerd import history
from peerd.errors import Code, Outcome, PeerdError
from peerd.history import ASKED, RAN, History
from peerd.job import MAX_SHOWN_COMMAND, Job
from peerd.journal import Event
from peerd.messages import ExecResult
from unit.support import EXEC_ID, Journal

JOB = Job(EXEC_ID, "vps", "ann@laptop", "/srv", "make", "root", False, 1_000_000)
DONE = ExecResult(
    Outcome.EXITED, 3, duration_usec=5, started_usec=1_000_001, cpu_usec=7, sizes={"stdout": 1, "stderr": 2}
)
FAILED = ExecResult.failure(PeerdError(Code.TIMEOUT, peer="vps", seconds="30"))
DENIED = ExecResult.failure(PeerdError(Code.DENIED, reason="no"))


def job(number: int, result: ExecResult | None = DONE, detached: bool = False) -> Job:
    """The job with this number; a higher one started later."""
    return replace(JOB, exec_id=f"{number:016x}", started_usec=number, result=result, detached=detached)


@pytest.fixture
def past(tmp_path: Path) -> Iterator[History]:
    past = History(tmp_path / "jobs.db")
    yield past
    past.close()
    # A statement that failed holds the file until it is collected with its exception.
    gc.collect()


def ids(past: History, *of: object, **filters: object) -> list[int]:
    """The numbers of the jobs that are found."""
    return [int(entry.job.exec_id, 16) for entry in past.find(*of, **filters)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kept",
    [
        JOB,
        replace(JOB, result=DONE),
        replace(JOB, command=("printf", "%s", "é\udcff"), detached=True, directory="", user="ann"),
        replace(JOB, result=ExecResult(Outcome.SIGNALED, 137, 9, left_behind=2, dropped=4)),
    ],
    ids=["runs", "done", "words", "signaled"],
)
def test_a_command_is_there_as_it_was_also_after_a_restart(tmp_path: Path, kept: Job) -> None:
    past = History(tmp_path / "jobs.db")
    past.put(RAN, "laptop", kept)
    past.close()
    past = History(tmp_path / "jobs.db")
    entry = past.get(RAN, EXEC_ID)
    past.close()
    assert entry == history.Entry(RAN, "laptop", kept)


def test_an_error_is_there_with_what_it_says(past: History) -> None:
    past.put(RAN, "laptop", replace(JOB, result=FAILED))
    entry = past.get(RAN, EXEC_ID)
    assert entry is not None
    assert entry.job.result is not None
    assert str(entry.job.result.error) == str(FAILED.error)
    assert entry.job.result.outcome is Outcome.TIMEOUT


@pytest.mark.parametrize(
    "column", ["job = '{'", "job = '[]'", "job = '{}'", "job = 7", "job = CAST(x'7bff' AS TEXT)", "peer = x'ff'"]
)
def test_a_row_that_cannot_be_read_is_passed_over_and_its_id_stays_taken(
    tmp_path: Path, past: History, column: str
) -> None:
    for number in (1, 2, 3):
        past.put(RAN, "laptop", job(number, None))
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute(f"UPDATE command SET {column} WHERE started = 2")
        database.commit()
    assert ids(past, RAN, outcome="") == [3, 1]
    assert past.get(RAN, job(2).exec_id) is None
    assert past.has(RAN, job(2).exec_id)
    assert past.get(RAN, job(3).exec_id) == history.Entry(RAN, "laptop", job(3, None))


def test_the_file_is_its_owners_alone(tmp_path: Path, past: History) -> None:
    assert stat.S_IMODE((tmp_path / "jobs.db").stat().st_mode) == 0o600


def test_what_is_not_there_is_none(past: History) -> None:
    assert past.get(RAN, EXEC_ID) is None
    assert past.find() == []


def test_what_is_put_again_is_there_once_with_what_is_known_now(past: History) -> None:
    past.put(RAN, "laptop", JOB)
    past.put(RAN, "laptop", replace(JOB, result=DONE))
    (entry,) = past.find()
    assert entry.job.result == DONE


def test_the_two_sides_of_a_command_are_two_entries(past: History) -> None:
    past.put(RAN, "laptop", JOB)
    past.put(ASKED, "desktop", replace(JOB, result=DONE))
    ran, asked = past.get(RAN, EXEC_ID), past.get(ASKED, EXEC_ID)
    assert ran is not None
    assert asked is not None
    assert (ran.peer, ran.job.result, asked.peer, asked.job.result) == ("laptop", None, "desktop", DONE)


def test_a_long_command_is_kept_short(past: History) -> None:
    past.put(RAN, "laptop", replace(JOB, command="x" * (MAX_SHOWN_COMMAND + 1)))
    entry = past.get(RAN, EXEC_ID)
    assert entry is not None
    assert entry.job.command == "x" * (MAX_SHOWN_COMMAND - 1) + "…"


def test_a_program_with_long_arguments_is_kept_short_as_what_it_is(past: History) -> None:
    half = "x" * (MAX_SHOWN_COMMAND // 2)
    for given, kept in (
        (("echo", half), ("echo", half)),
        (("echo", half, half), ("echo", half, half[:-7] + "…")),
        (("y" * MAX_SHOWN_COMMAND, "", "z"), ("y" * MAX_SHOWN_COMMAND, "…")),
        (("y", *["z"] * MAX_SHOWN_COMMAND), ("y", *["z"] * (MAX_SHOWN_COMMAND // 2 - 1), "…")),
    ):
        past.put(RAN, "laptop", replace(JOB, command=given))
        entry = past.get(RAN, EXEC_ID)
        assert entry is not None
        assert entry.job.command == kept


def test_commands_are_found_by_what_they_have_the_newest_first(past: History) -> None:
    past.put(RAN, "laptop", job(1))
    past.put(RAN, "desktop", job(4, FAILED))
    past.put(ASKED, "laptop", job(2, None, detached=True))
    past.put(ASKED, "desktop", job(3, DONE, detached=True))
    assert ids(past) == [4, 3, 2, 1]
    assert ids(past, RAN) == [4, 1]
    assert ids(past, peer="laptop") == [2, 1]
    assert ids(past, outcome="exited") == [3, 1]
    assert ids(past, outcome="timeout") == [4]
    assert ids(past, outcome="") == [2]
    assert ids(past, detached=True) == [3, 2]
    assert ids(past, detached=False) == [4, 1]
    assert ids(past, since_usec=3) == [4, 3]
    assert ids(past, limit=2) == [4, 3]
    assert ids(past, ASKED, "laptop", "", 2, True, 1) == [2]
    assert ids(past, ASKED, "laptop", "", 3, True, 1) == []
    assert ids(past, peer="' OR 1=1 --") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 1000])
def test_portions_are_what_is_found_at_once(past: History, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(history, "_PORTION", 2)
    for number, started in enumerate((1, 3, 3, 3, 2, 4)):
        past.put(RAN, "laptop", replace(job(number), started_usec=started))
    portions = list(past.portions(RAN, "laptop", "exited", 1, limit))
    found = [entry for portion in portions for entry in portion]
    assert found == past.find(RAN, "laptop", "exited", 1, limit=limit)
    assert all(len(portion) <= 2 for portion in portions)


def test_what_comes_and_goes_between_two_portions_moves_nothing(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PORTION", 2)
    for number in range(6):
        past.put(RAN, "laptop", job(number))
    portions = past.portions()
    next(portions)
    past.put(RAN, "laptop", job(6))
    past.drop(RAN, f"{4:016x}")
    assert [[int(entry.job.exec_id, 16) for entry in portion] for portion in portions] == [[3, 2], [1, 0], []]


def test_detached_ones_are_found_without_looking_at_all_others(past: History, tmp_path: Path) -> None:
    async def fill() -> None:
        for number in range(5000):
            past.put_soon(RAN, "laptop", job(number, detached=number % 1000 == 0))
        # As a peerd of before left it.
        past.catch_up()
        past._database.execute_sql("DROP INDEX IF EXISTS command_detached")

    asyncio.run(fill())
    later = History(tmp_path / "jobs.db")
    steps: list[None] = []
    later._database.connection().set_progress_handler(lambda: steps.append(None), 100)
    assert ids(later, RAN, detached=True, limit=10) == [4000, 3000, 2000, 1000, 0]
    later.close()
    assert len(steps) < 10


def test_only_the_newest_are_kept_and_all_that_run(past: History) -> None:
    past.put(RAN, "laptop", job(1, None))
    for number in range(2, 10):
        past.put(RAN, "laptop", job(number))
    past.trim(3)
    assert ids(past) == [9, 8, 7, 1]
    past.put(RAN, "laptop", job(10))
    past.trim(3)
    assert ids(past) == [10, 9, 8, 1]


@pytest.mark.parametrize(("most", "every"), [(50, 5), (50_000, 1000)])
def test_it_is_not_trimmed_after_each_command_but_before_it_is_a_tenth_too_long(
    past: History, monkeypatch: pytest.MonkeyPatch, most: int, every: int
) -> None:
    times: list[None] = []

    def writing() -> contextlib.AbstractContextManager[None]:
        times.append(None)
        return contextlib.nullcontext()

    monkeypatch.setattr(past._store, "writing", writing)
    for _ in range(every):
        past.trim(most)
    assert len(times) == 1
    past.trim(most)
    assert len(times) == 2


def test_what_was_asked_of_a_peer_goes_though_nobody_ever_heard_of_its_end(past: History) -> None:
    for number in range(10):
        past.put(ASKED, "laptop", job(number, None, detached=True))
    past.put(RAN, "laptop", job(0, None))
    past.trim(3)
    assert ids(past, ASKED) == [9, 8, 7]
    assert ids(past, RAN) == [0]


def test_what_was_denied_has_no_other_command_forgotten(past: History) -> None:
    for number in range(3):
        past.put(RAN, "laptop", job(number))
    for number in range(3, 50):
        past.put(RAN, "mallory", job(number, DENIED))
    past.trim(20)
    assert ids(past) == [49, 48, 2, 1, 0]


def test_fewer_than_the_limit_all_stay(past: History) -> None:
    for number in range(3):
        past.put(RAN, "laptop", job(number))
    past.trim(3)
    assert ids(past) == [2, 1, 0]


def test_a_database_that_cannot_be_written_is_recorded_and_keeps_nobody_from_anything(
    past: History, records: Journal
) -> None:
    past.put(RAN, "laptop", job(1))
    past._database.pragma("query_only", 1)
    past.put(RAN, "laptop", job(2))
    past.trim(0)
    trouble, refused, untrimmed = records.of(Event.STATE_UNWRITABLE)
    assert trouble.message.endswith("cannot be written: attempt to write a readonly database")
    assert refused.text("exec_id") == f"{2:016x}"
    assert "trimmed" in untrimmed.message
    assert ids(past) == [1]
    # How a command ended is known all the same, and stored when that can be done; where it runs, nobody needs to know.
    past.put(RAN, "laptop", job(3, None))
    entry = past.get(RAN, f"{2:016x}")
    assert entry is not None
    assert entry.job.result == DONE
    assert past.get(RAN, f"{3:016x}") is None
    assert [record.text("exec_id") for record in records.of(Event.STATE_UNWRITABLE)[3:]] == [f"{3:016x}"]
    past._database.pragma("query_only", 0)
    assert ids(past) == [2, 1]


def test_a_database_that_cannot_be_read_knows_nothing(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise peewee.OperationalError("disk I/O error")

    past.put(RAN, "laptop", JOB)
    monkeypatch.setattr(past._database, "execute_sql", fail)
    assert past.get(RAN, EXEC_ID) is None


@pytest.mark.parametrize("what", ["directory", "no directory"])
def test_a_file_that_cannot_be_used_is_said_to_be_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "jobs.db"
    if what == "directory":
        path.mkdir()
    else:
        path = path / "jobs.db"
    with pytest.raises(PeerdError, match="cannot use the database") as caught:
        History(path)
    assert caught.value.code is Code.INTERNAL


def stored(path: Path) -> list[str]:
    """The outcomes on disk, as another process sees them."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [outcome for (outcome,) in database.execute("SELECT outcome FROM command ORDER BY exec_id")]


def test_what_may_wait_is_stored_in_a_moment_and_is_there_at_once(past: History, tmp_path: Path) -> None:
    async def main() -> None:
        past.put_soon(ASKED, "vps", job(1, None))
        past.put_soon(ASKED, "vps", job(2))
        assert stored(tmp_path / "jobs.db") == []
        assert past.has(ASKED, job(2).exec_id)
        past.put_soon(ASKED, "vps", job(1))
        await asyncio.sleep(2 * history._SOON)
        assert stored(tmp_path / "jobs.db") == ["exited", "exited"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "look",
    [
        lambda past: past.get(ASKED, job(1).exec_id),
        lambda past: past.find(),
        lambda past: past.drop(ASKED, job(2).exec_id),
        lambda past: past.put(RAN, "laptop", job(3, None)),
        lambda past: past.catch_up(),
        lambda past: past.close(),
    ],
    ids=["get", "find", "drop", "put", "catch-up", "close"],
)
def test_whoever_looks_finds_what_waits(past: History, tmp_path: Path, look: Callable[[History], object]) -> None:
    async def main() -> None:
        past.put_soon(ASKED, "vps", job(1))
        look(past)
        assert stored(tmp_path / "jobs.db")[0] == "exited"

    asyncio.run(main())
