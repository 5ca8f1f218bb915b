"""The descriptors of a command, from one process of peerd to the next."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from peerd import config, fdstore, handles
from peerd.handles import Handles, HandlesError, Start
from peerd.messages import STREAMS, ExecRequest
from peerd.session import Caller
from unit.support import EXEC_ID, FakeStore, descriptors, scarce

NAME = f"peerd-exec-{EXEC_ID}.scope"
STDIN_NAME = f"{NAME}.stdin"
REQUEST = ExecRequest(
    EXEC_ID, "/tmp", "printf 'é\udcff\n'", timeout=5.0, env={"A": "1"}, user="ann", login=True, memory=1024, stdin=True
)
START = Start(REQUEST, Caller("laptop", "ann"), NAME, 4321, 12.5, 1_700_000_000_000_000)


class Made:
    """New descriptors, and the command's ends of them."""

    def __init__(self, stdin: bool = True, spooled: bool = True) -> None:
        control, self.control = socket.socketpair()
        control.setblocking(False)
        self.ours = Handles(control)
        self.stdin, self.stdout, self.stderr = self.ours.open(stdin, spooled)

    def close(self) -> None:
        """As a command that has ended."""
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)
        self.control.close()


@contextmanager
def made(stdin: bool = True, spooled: bool = True) -> Iterator[Made]:
    command = Made(stdin, spooled)
    try:
        yield command
    finally:
        command.close()


def let_go(ours: Handles, forget: bool = False) -> None:
    """Close all that is ours."""
    ours.close(forget)
    for spool in ours.spools.values():
        spool.close()


def adopted(given: dict[str, list[int]], seed: int = 0) -> tuple[Handles, Start, frozenset[str]]:
    """What the next process makes of what it is given, in any order."""
    kept = list(given[NAME])
    random.Random(seed).shuffle(kept)
    (pipe,) = given.get(STDIN_NAME, [None])
    return handles.adopt(NAME, kept, pipe)


@pytest.mark.parametrize(("stdin", "needed"), [(True, 7), (False, 5)])
def test_descriptors_that_cannot_all_be_made_leave_none(stdin: bool, needed: int) -> None:
    control, gate = socket.socketpair()
    with control, gate:
        for count in range(needed):
            ours, before = Handles(control), descriptors()
            with scarce(count), pytest.raises(OSError, match="Too many open files"):
                ours.open(stdin, spooled=True)
            assert descriptors() == before
            assert (ours.stdin, ours.pipes, ours.spools) == (None, {}, {})


def test_the_unit_has_room_for_the_commands_that_may_run_and_as_many_that_have_ended(store: FakeStore) -> None:
    unit = (Path(__file__).parents[2] / "units/peerd.service").read_text()
    (room,) = re.findall(r"^FileDescriptorStoreMax=(\d+)$", unit, re.MULTILINE)
    with made() as command:
        command.ours.keep(START)
        for stream, end in zip(STREAMS, (command.stdout, command.stderr), strict=True):
            os.write(end, b"x")
            command.ours.spools[stream].fill(command.ours.pipes[stream], 1)
        assert int(room) == sum(map(len, store.kept.values())) * 2 * config.MAX_COMMANDS
        let_go(command.ours, forget=True)


def test_a_commands_ends_are_blocking_and_ours_are_not_and_none_is_inherited() -> None:
    with made() as command:
        ours = [command.ours.control.fileno(), *command.ours.pipes.values()]
        assert command.ours.stdin is not None
        ours.append(command.ours.stdin[1])
        theirs = [command.stdin, command.stdout, command.stderr, command.control.fileno()]
        assert [os.get_blocking(fd) for fd in ours] == [False] * 4
        assert [os.get_blocking(fd) for fd in theirs] == [True] * 4
        assert not any(os.get_inheritable(fd) for fd in (*ours, *theirs))
        let_go(command.ours)


@pytest.mark.parametrize("stdin", [False, True])
def test_a_command_reads_what_it_is_sent_or_nothing(stdin: bool) -> None:
    with made(stdin) as command:
        assert (command.ours.stdin is not None) is stdin
        if command.ours.stdin:
            os.write(command.ours.stdin[1], b"sent")
            assert os.read(command.stdin, 10) == b"sent"
        else:
            assert os.read(command.stdin, 10) == b""
        let_go(command.ours)


@pytest.mark.parametrize("spooled", [False, True])
def test_output_is_spooled_in_memory_where_it_is_asked_for(spooled: bool) -> None:
    with made(spooled=spooled) as command:
        assert set(command.ours.spools) == (set(STREAMS) if spooled else set())
        let_go(command.ours)


@given(st.booleans(), st.booleans(), st.sets(st.sampled_from(STREAMS)), st.integers(0, 100))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_which_descriptor_is_which_is_known_whatever_their_order(
    store: FakeStore, stdin: bool, spooled: bool, silent: set[str], seed: int
) -> None:
    with made(stdin, spooled) as command:
        ends = {"stdout": command.stdout, "stderr": command.stderr}
        command.ours.keep(START)
        said = {stream: b"" if stream in silent or not spooled else f"of {stream}".encode() for stream in STREAMS}
        for stream, spool in command.ours.spools.items():
            os.write(ends[stream], said[stream])
            assert bytes(spool.extent(0, 100)) == b""
            if said[stream]:
                assert spool.fill(command.ours.pipes[stream], 100) == len(said[stream])
        if command.ours.stdin:
            command.ours.stdin[0].append(b"spool of stdin")
        let_go(command.ours)
        ours, start, notes = adopted(store.given(), seed)
        assert start == START
        assert not notes
        for stream, end in ends.items():
            os.write(end, stream.encode())
            assert os.read(ours.pipes[stream], 10) == stream.encode()
        command.control.send(b"report")
        assert ours.control.recv(10) == b"report"
        assert not ours.control.getblocking()
        assert {stream: bytes(spool.extent(0, 100)) for stream, spool in ours.spools.items()} == said
        assert (ours.stdin is not None) is stdin
        if ours.stdin:
            assert bytes(ours.stdin[0].extent(0, 100)) == b"spool of stdin"
            os.write(ours.stdin[1], b"sent")
            assert os.read(command.stdin, 10) == b"sent"
        let_go(ours, forget=True)
        assert store.kept == {}


def test_a_cancel_is_remembered_from_one_process_to_the_next_and_the_one_after(store: FakeStore) -> None:
    with made() as command:
        command.ours.keep(START)
        command.ours.note(handles.CANCELLED)
        let_go(command.ours)
        for _ in range(2):
            ours, start, notes = adopted(store.given())
            assert start == START
            assert list(notes) == [handles.CANCELLED]
            ours.note(handles.CANCELLED)
            let_go(ours)
        let_go(adopted(store.given())[0], forget=True)


def test_a_cancel_of_what_is_not_kept_is_nothing() -> None:
    with made() as command:
        command.ours.note(handles.CANCELLED)
        let_go(command.ours)


def test_the_end_of_the_input_is_seen_in_spite_of_the_copies(store: FakeStore) -> None:
    with made() as command:
        command.ours.keep(START)
        assert set(store.kept) == {NAME, STDIN_NAME}
        command.ours.close_stdin()
        command.ours.close_stdin()
        assert set(store.kept) == {NAME}
        assert os.read(command.stdin, 1) == b""
        let_go(command.ours)
        # The next process knows of no input any more, and holds nothing of it.
        before = len(descriptors())
        ours, _, _ = adopted(store.given())
        assert ours.stdin is None
        assert len(descriptors()) - before == 1 + 1 + 2
        let_go(ours, forget=True)


def test_the_next_process_can_end_the_input_too(store: FakeStore) -> None:
    with made() as command:
        command.ours.keep(START)
        let_go(command.ours)
        ours, _, _ = adopted(store.given())
        ours.close_stdin()
        assert os.read(command.stdin, 1) == b""
        let_go(ours, forget=True)


def test_what_was_never_kept_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(fdstore, "forget", forgotten.append)
    with made() as command:
        let_go(command.ours, forget=True)
    assert forgotten == []


def test_a_pipe_whose_command_is_gone_keeps_what_was_in_it(store: FakeStore) -> None:
    command = Made()
    command.ours.keep(START)
    os.write(command.stdout, b"last words")
    command.control.send(b"report")
    let_go(command.ours)
    command.close()
    ours, _, _ = adopted(store.given())
    assert os.read(ours.pipes["stdout"], 100) == b"last words"
    assert os.read(ours.pipes["stdout"], 100) == b""
    assert ours.control.recv(10) == b"report"
    let_go(ours, forget=True)


def memo(text: bytes) -> int:
    fd = os.memfd_create("peerd-memo")
    os.write(fd, text)
    return fd


GOOD = {"request": REQUEST.to_wire(), "caller": ["laptop", ""], "gate": 1, "began": 1.0, "startedUsec": 1, "roles": {}}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no JSON\n",
        b"[]\n",
        b"1\n",
        json.dumps(GOOD).encode(),
        *(json.dumps({key: value for key, value in GOOD.items() if key != name}).encode() for name in GOOD),
        json.dumps({**GOOD, "request": {"execId": "x"}}).encode(),
        json.dumps({**GOOD, "request": 1}).encode(),
        json.dumps({**GOOD, "caller": ["laptop", "ann", "more"]}).encode(),
        json.dumps({**GOOD, "caller": 1}).encode(),
        json.dumps({**GOOD, "gate": "x"}).encode(),
        json.dumps({**GOOD, "roles": []}).encode(),
        json.dumps({**GOOD, "roles": {"control": 1}}).encode(),
        b"\xff\xfe\n",
    ],
)
def test_a_memo_that_says_nothing_of_use_is_an_error_and_all_is_closed(text: bytes) -> None:
    # That nothing is left open is seen to after each test.
    read, write = os.pipe()
    with pytest.raises(HandlesError):
        handles.adopt(NAME, [read, memo(text)], write)


def test_descriptors_without_a_memo_are_an_error_and_closed() -> None:
    ends = os.pipe()
    with pytest.raises(HandlesError):
        handles.adopt(NAME, [*ends, os.memfd_create("stdout")], None)
    with pytest.raises(HandlesError):
        handles.adopt(NAME, [], None)


@pytest.mark.parametrize("missing", range(3))
def test_a_descriptor_that_is_missing_is_an_error_and_the_others_are_closed(store: FakeStore, missing: int) -> None:
    with made() as command:
        command.ours.keep(START)
        lost = [command.ours.control.fileno(), *command.ours.pipes.values()][missing]
        gone = os.fstat(lost)
        let_go(command.ours)
        given = store.given()
        for fd in list(given[NAME]):
            if (os.fstat(fd).st_dev, os.fstat(fd).st_ino) == (gone.st_dev, gone.st_ino):
                given[NAME].remove(fd)
                os.close(fd)
        with pytest.raises(HandlesError):
            adopted(given)
        for name in (NAME, STDIN_NAME):
            store.forget(name)


def test_a_descriptor_that_is_another_commands_is_an_error(store: FakeStore) -> None:
    with made() as command, made() as other:
        command.ours.keep(START)
        given = store.given()
        os.dup2(other.ours.pipes["stdout"], given[NAME][2])
        let_go(command.ours)
        let_go(other.ours)
        with pytest.raises(HandlesError):
            adopted(given)
        for name in (NAME, STDIN_NAME):
            store.forget(name)
