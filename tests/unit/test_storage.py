"""The output of detached commands on disk: within its quotas, and there after a restart."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerd import storage
from peerd.config import Config
from peerd.journal import Event
from peerd.messages import STREAMS
from peerd.spool import Spool
from peerd.storage import Quota, Storage
from peerd.streams import OutputStream
from unit.support import Journal, settings

A, B, C = "a" * 16, "b" * 16, "c" * 16


class Disk:
    """A storage whose spools are closed at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = settings()
        self.spools: list[Spool] = []
        self.storage = self.again()

    def limit(self, **changes: Any) -> None:
        self.config = settings(**changes)

    def again(self) -> Storage:
        """The storage of the next process."""

        def current() -> Config:
            return self.config

        self.storage = Storage(self.directory, current)
        return self.storage

    def wrote(self, exec_id: str, stdout: bytes = b"", stderr: bytes = b"", age: float | None = None) -> None:
        """A command that wrote this, and that ended some time ago, or runs."""
        spools = self.storage.create(exec_id)
        self.spools += spools.values()
        spools["stdout"].append(stdout)
        spools["stderr"].append(stderr)
        if age is not None:
            self.storage.settle(exec_id)
            for stream in STREAMS:
                os.utime(self.directory / f"{exec_id}.{stream}", (time.time() - age,) * 2)

    def opened(self, exec_id: str, live: bool = False) -> dict[str, bytes] | None:
        """What is kept of a command."""
        spools = self.storage.open(exec_id, live)
        if spools is None:
            return None
        self.spools += spools.values()
        return {stream: bytes(spool.extent(0, 1 << 20)) for stream, spool in spools.items()}

    def files(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "jobs")
    yield disk
    for spool in disk.spools:
        spool.close()


def stream(spool: Spool) -> OutputStream:
    """A stream into a spool that a quota is asked about."""
    none: Any = None
    return OutputStream(-1, spool, none, lambda: None)


def test_the_directory_is_its_owners_alone(disk: Disk) -> None:
    assert disk.directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_used_is_said_to_be_so_and_tried_again(tmp_path: Path, records: Journal) -> None:
    (tmp_path / "jobs").touch()
    storage = Storage(tmp_path / "jobs", settings)
    (record,) = records.of(Event.STATE_UNWRITABLE)
    assert record.message.startswith(f"The directory {tmp_path / 'jobs'} cannot be used: ")
    with pytest.raises(OSError, match="exists"):
        storage.create(A)
    (tmp_path / "jobs").unlink()
    for spool in storage.create(A).values():
        spool.close()
    assert storage.has(A)


def test_what_a_command_wrote_is_kept_while_it_runs_and_after(disk: Disk) -> None:
    disk.wrote(A, b"out", b"err")
    assert disk.storage.has(A)
    assert disk.opened(A) == {"stdout": b"out", "stderr": b"err"}
    disk.storage.settle(A)
    assert disk.storage.has(A)
    assert disk.opened(A) == {"stdout": b"out", "stderr": b"err"}
    assert not disk.storage.has(B)
    assert disk.opened(B) is None


def test_an_id_has_its_files_once(disk: Disk) -> None:
    disk.wrote(A, b"first")
    with pytest.raises(FileExistsError):
        disk.storage.create(A)
    assert disk.opened(A) == {"stdout": b"first", "stderr": b""}


def test_files_that_cannot_all_be_made_leave_none(disk: Disk) -> None:
    (disk.directory / f"{A}.stderr").touch()
    with pytest.raises(FileExistsError):
        disk.storage.create(A)
    assert disk.files() == {f"{A}.stderr"}
    assert not disk.storage.has(A)


def test_half_of_the_files_are_none(disk: Disk) -> None:
    disk.wrote(A, b"out", b"err", age=0)
    (disk.directory / f"{A}.stderr").unlink()
    assert disk.opened(A) is None


def test_what_is_removed_is_gone_also_for_the_sum(disk: Disk) -> None:
    disk.wrote(A, b"123", b"45", age=0)
    disk.wrote(B, b"678")
    assert disk.storage.used == 8
    disk.storage.remove(A)
    assert (disk.storage.used, disk.files()) == (3, {f"{B}.stdout", f"{B}.stderr"})
    disk.storage.remove(B)
    disk.storage.remove(C)
    assert (disk.storage.used, disk.files()) == (0, set())


def test_the_next_process_finds_what_was_kept_and_how_much_it_is(disk: Disk) -> None:
    disk.wrote(A, b"123", b"45", age=0)
    disk.wrote(B, b"678")
    disk.again()
    assert disk.storage.used == 8
    assert disk.storage.has(A)
    # A command that runs still goes on where it was, and counts as it grows.
    assert disk.opened(B, live=True) == {"stdout": b"678", "stderr": b""}
    assert disk.storage.used == 8
    disk.spools[-1].append(b"more")
    assert disk.storage.used == 12
    disk.storage.settle(B)
    assert disk.storage.used == 12


def test_a_command_gets_its_quota_for_both_streams_together(disk: Disk) -> None:
    disk.wrote(A)
    spools = dict(zip(STREAMS, disk.spools, strict=True))
    quota = Quota(disk.storage, spools, 10)
    assert not quota.waits
    assert quota.left(stream(spools["stdout"])) == 10
    spools["stdout"].append(b"123456")
    assert quota.left(stream(spools["stderr"])) == 4
    spools["stderr"].append(b"7890")
    assert [quota.left(stream(spool)) for spool in spools.values()] == [0, 0]
    spools["stderr"].append(b"!")
    assert quota.left(stream(spools["stdout"])) < 0


def test_where_there_is_room_nobody_gives_way(disk: Disk) -> None:
    disk.limit(total_output_limit=100)
    disk.wrote(A, b"x" * 60, age=100)
    assert disk.storage.room(40) == 40
    assert disk.storage.has(A)


def test_the_oldest_output_of_a_command_that_ended_gives_way_first_and_only_as_much_as_must(disk: Disk) -> None:
    disk.limit(total_output_limit=100)
    for exec_id, age in ((A, 10), (B, 30), (C, 20)):
        disk.wrote(exec_id, b"x" * 30, age=age)
    # The next process goes by when they ended.
    disk.again()
    assert disk.storage.room(20) == 20
    assert [disk.storage.has(exec_id) for exec_id in (A, B, C)] == [True, False, True]
    assert disk.storage.room(90) == 90
    assert [disk.storage.has(exec_id) for exec_id in (A, B, C)] == [False, False, False]
    assert disk.files() == set()


def test_in_one_process_the_first_that_ended_gives_way_first(disk: Disk) -> None:
    disk.limit(total_output_limit=100)
    disk.wrote(A, b"x" * 40)
    disk.wrote(B, b"x" * 40, age=0)
    disk.storage.settle(A)
    assert disk.storage.room(50) == 50
    assert [disk.storage.has(exec_id) for exec_id in (A, B)] == [True, False]


def test_the_output_of_a_command_that_runs_gives_way_to_none(disk: Disk) -> None:
    disk.limit(total_output_limit=100)
    disk.wrote(A, b"x" * 70)
    disk.wrote(B, b"x" * 20, age=5)
    assert disk.storage.room(50) == 30
    assert [disk.storage.has(exec_id) for exec_id in (A, B)] == [True, False]
    disk.wrote(C, b"x" * 40)
    assert disk.storage.room(1) < 0


def test_all_output_together_is_a_quota_for_each(disk: Disk) -> None:
    disk.limit(total_output_limit=100)
    disk.wrote(A, b"x" * 95)
    disk.wrote(B)
    spools = dict(zip(STREAMS, disk.spools[2:], strict=True))
    assert Quota(disk.storage, spools, 50).left(stream(spools["stdout"])) == 5


def test_output_goes_a_while_after_its_command_ended(disk: Disk) -> None:
    disk.limit(job_retention=1000.0)
    disk.wrote(A, b"old", age=1500)
    disk.wrote(B, b"new", age=500)
    disk.wrote(C, b"runs")
    os.utime(disk.directory / f"{C}.stdout", (0, 0))
    disk.storage.expire([])
    assert [disk.storage.has(exec_id) for exec_id in (A, B, C)] == [False, True, True]
    assert len(disk.files()) == 4


def test_how_long_ago_a_command_ended_has_nothing_to_do_with_when_it_last_wrote(disk: Disk) -> None:
    disk.limit(job_retention=1000.0)
    disk.wrote(A, b"started", b"the result")
    for stream in STREAMS:
        os.utime(disk.directory / f"{A}.{stream}", (0, 0))
    disk.storage.settle(A)
    disk.storage.expire([])
    assert disk.storage.has(A)
    disk.again().expire([])
    assert disk.storage.has(A)


def test_of_very_many_the_oldest_goes_however_little_it_is(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MOST", 2)
    for exec_id in (A, B, C):
        disk.wrote(exec_id, age=1)
    assert [disk.storage.has(exec_id) for exec_id in (A, B, C)] == [False, True, True]


def test_output_that_somebody_hears_still_does_not_go(disk: Disk) -> None:
    disk.limit(job_retention=1000.0)
    disk.wrote(A, b"old", age=1500)
    disk.storage.expire({A: None})
    assert disk.storage.has(A)
    disk.storage.expire({})
    assert not disk.storage.has(A)


def test_output_whose_file_went_by_itself_is_forgotten(disk: Disk) -> None:
    disk.wrote(A, b"out", age=0)
    (disk.directory / f"{A}.stdout").unlink()
    disk.storage.expire([])
    assert (disk.storage.has(A), disk.storage.used, disk.files()) == (False, 0, set())
