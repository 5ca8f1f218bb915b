"""Bytes between a pipe and a file: the same, in the same order, whatever the pieces."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.spool import _RELEASE_STEP, Spool
from unit.support import pipe

PIECES = st.lists(st.binary(max_size=9000), max_size=8)
LIMITS = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


@contextmanager
def spooled() -> Iterator[Spool]:
    spool = Spool.in_memory("test")
    try:
        yield spool
    finally:
        spool.close()


@contextmanager
def unblocked() -> Iterator[tuple[int, int]]:
    with pipe() as ends:
        for end in ends:
            os.set_blocking(end, False)
        yield ends


def moved_in(spool: Spool, data: bytes) -> None:
    """Let data into a spool through a pipe, as far as it fits."""
    with unblocked() as (read, write):
        assert os.write(write, data) == len(data)
        os.close(write)
        while spool.fill(read, len(data)):
            pass


@given(PIECES, LIMITS)
def test_what_comes_out_of_a_pipe_is_in_the_file_whatever_the_pieces(pieces: list[bytes], limits: list[int]) -> None:
    with spooled() as spool, unblocked() as (read, write):
        for turn, piece in enumerate(pieces):
            before, taken = spool.size, 0
            assert os.write(write, piece) == len(piece) if piece else True
            while taken < len(piece):
                limit = limits[turn % len(limits)]
                moved = spool.fill(read, limit)
                assert 0 < moved <= limit
                taken += moved
            assert spool.size == before + len(piece)
        with pytest.raises(BlockingIOError):
            spool.fill(read, 1)
        os.close(write)
        assert spool.fill(read, 1) == 0
        whole = b"".join(pieces)
        assert spool.size == len(whole)
        assert bytes(spool.extent(0, len(whole) + 1)) == whole


@given(PIECES, LIMITS)
def test_what_goes_into_a_pipe_is_what_was_appended_whatever_the_pieces(pieces: list[bytes], limits: list[int]) -> None:
    with spooled() as spool, unblocked() as (read, write):
        came = b""
        for turn, piece in enumerate(pieces):
            spool.append(piece)
            while spool.drained < spool.size:
                before = spool.drained
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(spool, "size", min(spool.size, before + limits[turn % len(limits)]))
                    moved = spool.drain(write)
                assert spool.drained == before + moved
                came += os.read(read, moved)
        assert spool.drain(write) == 0
        assert came == b"".join(pieces)


def test_a_pipe_that_is_full_takes_the_rest_later_and_a_later_process_goes_on_there() -> None:
    data = bytes(range(256)) * 1024
    with spooled() as spool, unblocked() as (read, write):
        spool.append(data)
        came = b""
        while True:
            try:
                spool.drain(write)
            except BlockingIOError:
                break
        assert 0 < spool.drained < len(data)
        # The file itself knows where it was.
        again = Spool(os.dup(spool.fd))
        assert (again.size, again.drained, again.ended) == (len(data), spool.drained, False)
        while again.drained < again.size:
            came += os.read(read, 65536)
            again.drain(write)
        os.close(write)
        while chunk := os.read(read, 65536):
            came += chunk
        again.close()
        assert came == data


def test_a_pipe_that_nobody_reads_is_broken() -> None:
    with spooled() as spool, unblocked() as (read, write):
        spool.append(b"x")
        os.close(read)
        with pytest.raises(BrokenPipeError):
            spool.drain(write)
        assert spool.drained == 0


@given(st.binary(min_size=1, max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_any_part_can_be_read_any_number_of_times(data: bytes, offset: int, limit: int) -> None:
    with spooled() as spool:
        spool.append(data)
        for _ in range(2):
            assert bytes(spool.extent(offset, limit)) == data[offset : offset + limit]
        # Reading is not draining.
        assert spool.drained == 0


def test_what_is_released_gives_its_space_back_and_leaves_offsets_as_they_are() -> None:
    data = os.urandom(_RELEASE_STEP) + b"kept"
    with spooled() as spool:
        spool.append(data)
        before = os.fstat(spool.fd).st_blocks
        spool.release(_RELEASE_STEP)
        assert os.fstat(spool.fd).st_blocks < before / 4
        assert spool.size == len(data)
        assert bytes(spool.extent(_RELEASE_STEP, 100)) == b"kept"
        assert bytes(spool.extent(0, 10)) == bytes(10)
        spool.append(b" and more")
        assert bytes(spool.extent(_RELEASE_STEP, 100)) == b"kept and more"


def test_a_release_leaves_what_a_pipe_has_not_passed_on_yet() -> None:
    data = os.urandom(_RELEASE_STEP + 100)
    with spooled() as spool, unblocked() as (read, write):
        spool.append(data)
        passed = b""
        while spool.drained < spool.size:
            try:
                spool.drain(write)
            except BlockingIOError:
                passed += os.read(read, 4096)
        # The pipe has the file's own pages, and what was drained ends in the middle of one.
        spool.release(spool.drained)
        os.close(write)
        while piece := os.read(read, 65536):
            passed += piece
        assert passed == data


def test_a_little_is_not_worth_the_release() -> None:
    with spooled() as spool:
        spool.append(b"x" * _RELEASE_STEP)
        spool.release(_RELEASE_STEP - 1)
        assert bytes(spool.extent(0, 1)) == b"x"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_a_file_system_without_holes_keeps_the_bytes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with spooled() as spool:
        spool.append(b"x" * _RELEASE_STEP)
        monkeypatch.setattr(fcntl, "ioctl", refuse)
        spool.release(_RELEASE_STEP)
        assert bytes(spool.extent(0, 1)) == b"x"


def test_the_end_is_remembered_by_the_file_and_nothing_comes_after_it() -> None:
    with spooled() as spool:
        spool.append(b"all")
        ended = [spool.ended]
        spool.end()
        spool.end()
        again = Spool(os.dup(spool.fd))
        ended += [spool.ended, again.ended]
        assert ended == [False, True, True]
        with pytest.raises(PermissionError):
            again.append(b"more")
        assert bytes(again.extent(0, 10)) == b"all"
        again.close()


def test_a_file_on_disk_is_made_once_for_its_owner_alone_and_opened_again_with_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "output"
    spool = Spool.on_disk(path, create=True)
    moved_in(spool, b"one ")
    spool.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Spool.on_disk(path, create=True)
    again = Spool.on_disk(path)
    assert again.size == 4
    moved_in(again, b"two")
    assert bytes(again.extent(0, 100)) == b"one two"
    again.close()


def test_a_file_is_not_followed_where_it_is_a_link_and_not_made_where_it_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    for name, create in (("link", False), ("link", True), ("none", False)):
        with pytest.raises(OSError, match=name):
            Spool.on_disk(tmp_path / name, create=create)
    assert not (tmp_path / "none").exists()


def test_a_disk_that_is_full_leaves_the_bytes_in_the_pipe() -> None:
    with spooled() as spool, unblocked() as (read, write):
        os.write(write, b"kept")
        fcntl.fcntl(spool.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        with pytest.raises(OSError, match="not permitted"):
            spool.fill(read, 100)
        assert (spool.size, os.read(read, 100)) == (0, b"kept")


def test_closing_twice_is_no_error() -> None:
    spool = Spool.in_memory("test")
    spool.close()
    spool.close()


def test_a_file_is_made_with_the_first_bytes_and_not_before() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(os.memfd_create("test"))
        return made[-1]

    with unblocked() as (read, write):
        spool = Spool(-1, make)
        with pytest.raises(BlockingIOError):
            spool.fill(read, 10)
        assert (made, spool.size, bytes(spool.extent(0, 10))) == ([], 0, b"")
        os.write(write, b"said")
        assert spool.fill(read, 10) == 4
        with pytest.raises(BlockingIOError):
            spool.fill(read, 10)
        os.write(write, b" more")
        os.close(write)
        assert [spool.fill(read, 10), spool.fill(read, 10)] == [5, 0]
        assert (made, bytes(spool.extent(0, 10))) == ([spool.fd], b"said more")
        spool.close()


def test_a_pipe_that_ends_without_a_word_needs_no_file() -> None:
    with unblocked() as (read, write):
        os.close(write)
        spool = Spool(-1, pytest.fail)
        assert spool.fill(read, 10) == 0
        spool.close()


def test_bytes_for_which_no_file_can_be_made_stay_in_the_pipe() -> None:
    def make() -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with unblocked() as (read, write):
        spool = Spool(-1, make)
        os.write(write, b"said")
        with pytest.raises(OSError, match="Too many open files"):
            spool.fill(read, 10)
        assert os.read(read, 10) == b"said"
