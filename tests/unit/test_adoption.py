"""Commands that outlive peerd: one executor leaves them, the next one takes them up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peerd import fdstore, history, render, scopes, settling
from peerd.errors import Code, Outcome, PeerdError
from peerd.executor import Executor
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import WINDOW, Action, ExecRequest, ExecResult
from peerd.scopes import Figures, scope_name
from peerd.session import Caller, ConfirmingSink, Delivery, Session
from peerd.stdin import Stdin
from peerd.storage import Storage
from unit.support import EXEC_ID, FakeScopes, FakeStore, Heard, Journal, readable, settings

CALLER = Caller("laptop", "ann")
SCOPE = scope_name(EXEC_ID)
SECONDS = 1_000_000


@pytest.fixture(autouse=True)
def _members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in a scope, where there are no control groups."""
    monkeypatch.setattr(scopes, "processes", FakeScopes.members)


@asynccontextmanager
async def process(
    state: Path, store: FakeStore, fake: FakeScopes | None = None, **changes: Any
) -> AsyncIterator[Executor]:
    """One process of peerd, from its start to a restart; what runs is left to the next one."""
    config = settings(**changes)
    past = History(state / "jobs.db")
    storage = Storage(state / "jobs", lambda: config)
    executor = Executor(fake or FakeScopes(), past, storage, lambda: config, lambda: "vps", lambda: None)
    try:
        executor.start(store.given())
        yield executor
    finally:
        await executor.close()
        past.close()


def request(command: str, directory: Path | str = "/", **changes: Any) -> ExecRequest:
    return ExecRequest(changes.pop("exec_id", EXEC_ID), str(directory), command, **changes)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[int]:
    """To let a command go on that reads a line from the file "fifo"."""
    os.mkfifo(tmp_path / "fifo")
    # Both ends, so that neither open(2) waits for the other (fifo(7)).
    fd = os.open(tmp_path / "fifo", os.O_RDWR)
    yield fd
    os.close(fd)


class Listener:
    """Somebody who hears of a command from one process after another, and who sends it input.

    :ivar given: its input so far; None for none yet, and nothing after it is the end
    """

    def __init__(self, given: bytes | None = None) -> None:
        self.heard = Heard()
        self.given = given
        self.cancel = asyncio.Event()
        self.asked: list[tuple[int | None, int]] = []

    @property
    def offsets(self) -> dict[str, int]:
        return {stream: len(data) for stream, data in self.heard.streams.items()}

    async def attend(self, executor: Executor, exec_id: str = EXEC_ID) -> ExecResult | None:
        delivery = Delivery()
        delivery.confirm(self.offsets)
        stdin = Stdin(lambda start, until, taken: self._send(stdin, start, until))
        session = Session(
            CALLER,
            ConfirmingSink(self.heard, delivery),
            self.cancel,
            asyncio.Event(),
            lambda line: None,
            stdin,
            delivery,
        )
        return await executor.attend(exec_id, session, delivery.offsets)

    def _send(self, stdin: Stdin, start: int | None, until: int) -> None:
        self.asked.append((start, until))
        if start is not None and self.given is not None:
            asyncio.get_running_loop().call_soon(stdin.feed, self.given[start:until])

    async def heard_first(self, executor: Executor, data: bytes) -> None:
        """Hear of a command until this has been heard on its standard output."""
        attending = asyncio.create_task(self.attend(executor))
        while not self.heard.streams["stdout"].endswith(data):
            self.heard.spoke.clear()
            await self.heard.spoke.wait()
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)

    async def to_end(self, executor: Executor) -> ExecResult:
        result = await self.attend(executor)
        assert result is not None
        executor.delivered(EXEC_ID)
        return result


def code(result: ExecResult) -> Code:
    assert result.error is not None
    return result.error.code


WAITING = "echo before; read line <fifo; seq 100000; echo after >&2; exit 7"
SAID = b"before\n" + "".join(f"{number}\n" for number in range(1, 100_001)).encode()


def test_a_command_outlives_peerd_and_all_of_it_is_heard_once(
    tmp_path: Path, store: FakeStore, records: Journal, fifo: int
) -> None:
    async def main() -> None:
        listener = Listener()
        async with process(tmp_path, store) as executor:
            await executor.launch(request(WAITING, tmp_path), CALLER)
            await listener.heard_first(executor, b"before\n")
            assert executor.running == 1
        # It goes on while there is no peerd.
        os.write(fifo, b"go on\n")
        async with process(tmp_path, store) as executor:
            assert executor.running == 1
            result = await listener.to_end(executor)
            assert executor.running == 0
            assert executor.find(EXEC_ID) is None
        assert (result.outcome, result.exit_status, result.error) == (Outcome.EXITED, 7, None)
        assert listener.heard.streams == {"stdout": SAID, "stderr": b"after\n"}
        assert result.sizes == {"stdout": len(SAID), "stderr": 6}
        assert store.kept == {}
        assert [len(records.of(event)) for event in (Event.COMMAND_STARTED, Event.COMMAND_ENDED)] == [1, 1]

    asyncio.run(main())


def test_a_command_that_ended_while_there_was_no_peerd_has_its_own_status_and_time(
    tmp_path: Path, store: FakeStore, fifo: int
) -> None:
    async def main() -> None:
        listener, fake = Listener(), FakeScopes()
        async with process(tmp_path, store, fake) as executor:
            await executor.launch(request("echo before; read line <fifo; echo last; exit 9", tmp_path), CALLER)
            await listener.heard_first(executor, b"before\n")
            started = executor.job(EXEC_ID).started_usec
        (shell,) = (pid for pid in fake.members(SCOPE) if pid != fake.gates[SCOPE])
        held = os.pidfd_open(shell)
        os.write(fifo, b"go on\n")
        await readable(held)
        os.close(held)
        async with process(tmp_path, store) as executor:
            result = await listener.to_end(executor)
        assert result.exit_status == 9
        assert listener.heard.streams["stdout"] == b"before\nlast\n"
        assert result.started_usec == started
        assert result.duration_usec is not None
        assert 0 < result.duration_usec < 15 * SECONDS

    asyncio.run(main())


@pytest.mark.parametrize("restarts", [1, 3])
def test_more_than_a_window_is_heard_over_any_number_of_restarts(
    tmp_path: Path, store: FakeStore, restarts: int
) -> None:
    size = 4 * WINDOW

    async def main() -> None:
        listener = Listener()
        done = 0
        async with process(tmp_path, store) as executor:
            await executor.launch(request(f"head -c {size} /dev/zero; exit 3"), CALLER)
        for _ in range(restarts):
            async with process(tmp_path, store) as executor:
                attending = asyncio.create_task(listener.attend(executor))
                while len(listener.heard.streams["stdout"]) < done + size // 8:
                    listener.heard.spoke.clear()
                    await listener.heard.spoke.wait()
                attending.cancel()
                await asyncio.gather(attending, return_exceptions=True)
                done = len(listener.heard.streams["stdout"])
        async with process(tmp_path, store) as executor:
            assert (await listener.to_end(executor)).exit_status == 3
        assert listener.heard.streams["stdout"] == bytes(size)

    asyncio.run(main())


def test_a_command_that_was_cancelled_before_the_restart_is_stopped_after_it(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        listener, fake = Listener(), FakeScopes()
        ignoring = request("trap '' TERM; echo up; while :; do sleep 0.01; done")
        async with process(tmp_path, store, fake, stop_grace=1000.0) as executor:
            one = await executor.launch(ignoring, CALLER)
            await listener.heard_first(executor, b"up\n")
            one.cancel()
        # Nobody else will stop it.
        fake._grace = 0.0
        async with process(tmp_path, store, fake) as executor:
            result = await listener.to_end(executor)
        assert (result.outcome, code(result)) == (Outcome.CANCELLED, Code.CANCELLED)
        assert fake.calls[-1] == ("stop", SCOPE)

    asyncio.run(main())


def test_a_command_can_be_cancelled_after_the_restart(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        listener = Listener()
        fake = FakeScopes()
        async with process(tmp_path, store, fake) as executor:
            await executor.launch(request("echo up; exec sleep 1000"), CALLER)
            await listener.heard_first(executor, b"up\n")
        async with process(tmp_path, store, fake) as executor:
            listener.cancel.set()
            result = await listener.to_end(executor)
        assert result.outcome is Outcome.CANCELLED
        assert fake.calls == [("start", SCOPE), ("stop", SCOPE)]

    asyncio.run(main())


def test_a_command_whose_gate_was_killed_meanwhile_has_ended_by_sigkill(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        listener, fake = Listener(), FakeScopes()
        async with process(tmp_path, store, fake) as executor:
            await executor.launch(request("echo up; exec sleep 1000"), CALLER)
            await listener.heard_first(executor, b"up\n")
        fake.kill(SCOPE, signal.SIGKILL)
        async with process(tmp_path, store, fake) as executor:
            result = await listener.to_end(executor)
        assert (result.outcome, result.exit_status, result.signal) == (Outcome.SIGNALED, 137, 9)

    asyncio.run(main())


def test_a_command_to_which_nobody_comes_back_in_time_is_cancelled(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        fake = FakeScopes()
        async with process(tmp_path, store, fake) as executor:
            await executor.launch(request("exec sleep 1000"), CALLER)
        async with process(tmp_path, store, fake, reattach_timeout=0.05) as executor:
            job = await executor.wait(EXEC_ID)
            assert job.result is not None
            assert job.result.outcome is Outcome.CANCELLED
            assert code(await Listener().to_end(executor)) is Code.ABANDONED

    asyncio.run(main())


def test_a_command_outlives_the_process_that_ends_however_long_that_takes(
    tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun, go_on = FakeScopes.start, asyncio.Event(), asyncio.Event()
    other = "1" * 16

    async def late(self: FakeScopes, name: str, *arguments: Any) -> None:
        await begin(self, name, *arguments)
        if name == scope_name(other):
            begun.set()
            await go_on.wait()

    monkeypatch.setattr(FakeScopes, "start", late)

    async def main() -> None:
        fake, listener = FakeScopes(), Listener()
        async with process(tmp_path, store, fake, reattach_timeout=0.05) as executor:
            await executor.launch(request("echo up; exec sleep 1000"), CALLER)
            starting = asyncio.create_task(executor.launch(request("true", exec_id=other), CALLER))
            await begun.wait()
            # The end of the process waits for that, and longer than anybody waits for a caller.
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        await starting
        assert ("stop", SCOPE) not in fake.calls
        async with process(tmp_path, store, fake) as executor:
            await executor.wait(other)
            executor.delivered(other)
            listener.cancel.set()
            assert (await listener.to_end(executor)).outcome is Outcome.CANCELLED

    asyncio.run(main())


def test_a_result_that_nobody_heard_is_heard_after_the_restart_as_it_was_and_recorded_once(
    tmp_path: Path, store: FakeStore, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "figures", lambda name: Figures(1000, 4096))

    async def main() -> None:
        listener = Listener()
        async with process(tmp_path, store) as executor:
            await executor.launch(request("echo all; exit 4"), CALLER)
            await executor.wait(EXEC_ID)
            # The connection broke between the result and the word that it was heard.
            before = await Listener().attend(executor)
            assert before is not None
            assert (before.exit_status, before.memory_peak) == (4, 4096)
        # The scope is gone by now, with its figures.
        monkeypatch.setattr(scopes, "figures", lambda name: Figures())
        async with process(tmp_path, store) as executor:
            assert await listener.to_end(executor) == before
            assert executor.job(EXEC_ID).result == before
            assert len(records.of(Event.COMMAND_ENDED)) == 1
            assert listener.heard.streams["stdout"] == b"all\n"

    asyncio.run(main())


def test_an_end_is_stored_before_all_else_of_it_is_let_go(
    tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_SOON", 1000.0)

    def outcomes() -> list[str]:
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
            return [outcome for (outcome,) in database.execute("SELECT outcome FROM command")]

    async def main() -> None:
        async with process(tmp_path, store) as executor:
            await executor.launch(request("exit 4"), CALLER)
            await executor.wait(EXEC_ID)
            assert outcomes() == [""]
            assert store.kept
            await Listener().to_end(executor)
            assert not store.kept
            assert outcomes() == ["exited"]

    asyncio.run(main())


def test_input_goes_on_where_the_command_had_it(tmp_path: Path, store: FakeStore, fifo: int) -> None:
    async def main() -> None:
        listener = Listener(given=b"one\n")
        async with process(tmp_path, store) as executor:
            command = "read line; echo got $line; read line <fifo; cat; echo end"
            await executor.launch(request(command, tmp_path, stdin=True), CALLER)
            await listener.heard_first(executor, b"got one\n")
        os.write(fifo, b"go on\n")
        listener.given = b"one\ntwo\nthree\n"
        async with process(tmp_path, store) as executor:
            attending = asyncio.create_task(listener.attend(executor))
            while not listener.heard.streams["stdout"].endswith(b"three\n"):
                listener.heard.spoke.clear()
                await listener.heard.spoke.wait()
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
        async with process(tmp_path, store) as executor:
            # There is no more to send, and the command sees so.
            assert (await listener.to_end(executor)).exit_status == 0
        assert listener.heard.streams["stdout"] == b"got one\ntwo\nthree\nend\n"
        assert [start for start, _ in listener.asked if start is not None] == [0, 4, 14]

    asyncio.run(main())


@pytest.mark.parametrize("restart", [False, True])
def test_who_comes_back_to_a_command_that_reads_no_more_hears_the_rest(
    tmp_path: Path, store: FakeStore, fifo: int, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        listener = Listener()
        asked = request("exec <&-; echo up; read line <fifo; echo more; read line <fifo; exit 3", tmp_path, stdin=True)
        async with process(tmp_path, store) as executor:
            one = await executor.launch(asked, CALLER)
            await listener.heard_first(executor, b"up\n")
            listener.given = b"not read"
            assert one.input is not None
            closed, close = asyncio.Event(), one.input._closed

            def note() -> None:
                close()
                closed.set()

            monkeypatch.setattr(one.input, "_closed", note)
            attending = asyncio.create_task(listener.attend(executor))
            # What is given is written to nobody at its own pace.
            await closed.wait()
            os.write(fifo, b"go on\n")
            await listener.heard_first(executor, b"more\n")
            assert not one.input.is_open()
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
            os.write(fifo, b"go on\n")
            if not restart:
                assert (await listener.to_end(executor)).exit_status == 3
        if restart:
            async with process(tmp_path, store) as executor:
                assert (await listener.to_end(executor)).exit_status == 3

    asyncio.run(main())


def test_an_id_runs_once_over_any_number_of_restarts(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        asked = request("echo x >>ran", tmp_path)
        async with process(tmp_path, store) as executor:
            await executor.launch(asked, CALLER)
            await Listener().to_end(executor)
        for _ in range(2):
            async with process(tmp_path, store) as executor:
                with pytest.raises(PeerdError) as caught:
                    await executor.launch(asked, CALLER)
                assert caught.value.code is Code.DUPLICATE
        assert (tmp_path / "ran").read_text() == "x\n"

    asyncio.run(main())


def test_an_id_that_runs_still_is_not_run_again_after_the_restart(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        asked = request("echo up; exec sleep 1000")
        listener = Listener()
        async with process(tmp_path, store) as executor:
            await executor.launch(asked, CALLER)
            await listener.heard_first(executor, b"up\n")
        async with process(tmp_path, store) as executor:
            with pytest.raises(PeerdError) as caught:
                await executor.launch(asked, CALLER)
            assert caught.value.code is Code.DUPLICATE
            listener.cancel.set()
            assert (await listener.to_end(executor)).outcome is Outcome.CANCELLED

    asyncio.run(main())


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_a_command_that_was_kept_and_never_began_is_dropped_and_may_be_asked_for_again(
    tmp_path: Path, store: FakeStore, stored: bool, detach: bool
) -> None:
    class Killed(BaseException):
        """The end of the process, where it hurts most."""

    def killed(*_: object) -> None:
        raise Killed

    async def killed_later(*_: object) -> None:
        await asyncio.sleep(0.01)
        raise Killed

    async def main() -> None:
        asked = request("echo x >>ran", tmp_path, detach=detach, stdin=not detach)
        with pytest.MonkeyPatch.context() as patch:
            # Before it is in the history, or while it is moved into its scope.
            patch.setattr(*((FakeScopes, "start", killed_later) if stored else (History, "put", killed)))
            # A process that is killed has no time to let go of what is kept, or of its files, or of its row.
            patch.setattr(fdstore, "forget", lambda name: None)
            patch.setattr(Storage, "remove", lambda self, exec_id: None)
            patch.setattr(History, "drop", lambda self, side, exec_id: None)
            async with process(tmp_path, store) as executor:
                with pytest.raises(Killed):
                    await executor._launch(settling.resolve(asked, settings()), CALLER)
        assert SCOPE in store.kept
        async with process(tmp_path, store) as executor:
            assert (executor.running, executor.find(EXEC_ID), store.kept) == (0, None, {})
            assert not executor.knows(EXEC_ID)
            assert list((tmp_path / "jobs").iterdir()) == []
            assert not (tmp_path / "ran").exists()
            await executor.launch(asked, CALLER)
            assert (await executor.wait(EXEC_ID)).result is not None
            executor.delivered(EXEC_ID)
        assert (tmp_path / "ran").read_text() == "x\n"

    asyncio.run(main())


def test_what_is_kept_of_no_command_is_recorded_and_let_go(tmp_path: Path, store: FakeStore, records: Journal) -> None:
    records.expect(Event.INTERNAL_ERROR)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            store.keep(SCOPE, [ours.fileno()])
            store.keep(f"{SCOPE}.stdin", [theirs.fileno()])
        async with process(tmp_path, store) as executor:
            assert executor.running == 0
        (record,) = records.of(Event.INTERNAL_ERROR)
        assert SCOPE in record.message
        assert store.kept == {}

    asyncio.run(main())


def test_a_command_that_was_not_kept_and_still_runs_is_said_to_and_can_be_stopped(
    tmp_path: Path, store: FakeStore, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "populated", lambda name: name == SCOPE)

    async def main() -> None:
        past = History(tmp_path / "jobs.db")
        past.put(history.RAN, "laptop", Job.of(request("sleep 1000"), "vps", "ann@laptop", 5))
        past.put(history.RAN, "laptop", Job.of(request("true", exec_id="1" * 16), "vps", "ann@laptop", 6))
        past.close()
        fake = FakeScopes()
        async with process(tmp_path, store, fake) as executor:
            still = f"It still ran when peerd was back. To stop it: d cancelJob --job {EXEC_ID}"
            told = {record.text("exec_id"): record.message for record in records.of(Event.COMMAND_ENDED)}
            assert told[EXEC_ID].endswith(still)
            assert "still" not in told["1" * 16]
            job = await executor.cancel(EXEC_ID)
            assert job.result is not None
            assert job.result.error is not None
            assert job.result.error.hints[-1] == still
            assert fake.calls == [("stop", SCOPE)]

    asyncio.run(main())


def test_a_command_that_was_not_kept_is_lost_and_not_run_again(
    tmp_path: Path, store: FakeStore, records: Journal
) -> None:
    async def main() -> None:
        asked = request("echo x >>ran", tmp_path)
        past = History(tmp_path / "jobs.db")
        past.put(history.RAN, "laptop", Job.of(asked, "vps", "ann@laptop", 5))
        past.put(history.ASKED, "desktop", Job.of(request("true", exec_id="1" * 16), "desktop", "ann@vps", 5))
        past.close()
        async with process(tmp_path, store) as executor:
            result = await Listener().to_end(executor)
            assert (result.outcome, result.exit_status, code(result)) == (Outcome.LOST, 255, Code.CUT_OFF)
            told = render.record(executor.job(EXEC_ID))
            assert [told[name] for name in ("duration", "cpu", "left_behind", "dropped")] == [None] * 4
            with pytest.raises(PeerdError) as caught:
                await executor.launch(asked, CALLER)
            assert caught.value.code is Code.DUPLICATE
        ended = records.of(Event.COMMAND_ENDED)
        assert [(record.text("exec_id"), record.text("outcome"), record.text("peer")) for record in ended[:1]] == [
            (EXEC_ID, "lost", "laptop")
        ]
        assert ended[0].text("duration_usec") is None
        # What was asked of others is theirs to tell.
        past = History(tmp_path / "jobs.db")
        (entry,) = past.find(history.ASKED)
        past.close()
        assert entry.job.result is None
        assert not (tmp_path / "ran").exists()

    asyncio.run(main())


def test_a_detached_command_outlives_peerd_with_all_of_its_output(tmp_path: Path, store: FakeStore, fifo: int) -> None:
    async def main() -> None:
        async with process(tmp_path, store, reattach_timeout=0.01) as executor:
            asked = request(WAITING, tmp_path, detach=True)
            assert (await executor.detach(asked, CALLER)).error is None
            assert [job.exec_id for job in executor.jobs(10)] == [EXEC_ID]
        os.write(fifo, b"go on\n")
        async with process(tmp_path, store, reattach_timeout=0.01) as executor:
            assert executor.running == 1
            job = await executor.wait(EXEC_ID)
            assert job.result is not None
            assert (job.result.exit_status, job.detached) == (7, True)
            assert [job.exec_id for job in executor.jobs(10)] == [EXEC_ID]
        assert store.kept == {}
        for _ in range(2):
            listener = Listener()
            async with process(tmp_path, store) as executor:
                assert executor.running == 0
                result = await listener.attend(executor)
                assert result == job.result
                assert listener.heard.streams == {"stdout": SAID, "stderr": b"after\n"}

    asyncio.run(main())


def test_a_detached_command_whose_files_are_gone_is_seen_to_its_end_without_its_output(
    tmp_path: Path, store: FakeStore, fifo: int, records: Journal
) -> None:
    async def main() -> None:
        fake, stopped = FakeScopes(), "1" * 16
        async with process(tmp_path, store, fake) as executor:
            await executor.detach(request("read line <fifo; seq 100000; exit 7", tmp_path, detach=True), CALLER)
            await executor.detach(request("exec sleep 1000", detach=True, exec_id=stopped), CALLER)
        shutil.rmtree(tmp_path / "jobs")
        for _ in range(2):
            async with process(tmp_path, store, fake) as executor:
                assert {job.exec_id for job in executor.active} == {EXEC_ID, stopped}
        assert len(records.of(Event.STATE_UNWRITABLE)) == 4
        async with process(tmp_path, store, fake) as executor:
            assert (await executor.cancel(stopped)).result
            os.write(fifo, b"go on\n")
            result = (await executor.wait(EXEC_ID)).result
            assert result is not None
            assert (result.exit_status, result.dropped) == (7, len(SAID) - len(b"before\n"))
            assert set(result.sizes.values()) == {0}
            assert executor.running == 0

    asyncio.run(main())


def test_an_action_is_known_by_what_it_runs_also_after_the_restart(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        listener = Listener()
        changes: dict[str, Any] = {"repository": str(tmp_path), "pull_command": "echo up; exec sleep 1000"}
        async with process(tmp_path, store, **changes) as executor:
            await executor.launch(ExecRequest(EXEC_ID, action=Action.PULL), CALLER)
            await listener.heard_first(executor, b"up\n")
            before = executor.job(EXEC_ID)
        async with process(tmp_path, store) as executor:
            assert executor.job(EXEC_ID) == before
            assert (before.directory, before.command) == (str(tmp_path), "echo up; exec sleep 1000")
            listener.cancel.set()
            await listener.to_end(executor)

    asyncio.run(main())


def test_the_limit_of_commands_counts_those_that_were_taken_up(tmp_path: Path, store: FakeStore) -> None:
    async def main() -> None:
        listener = Listener()
        async with process(tmp_path, store) as executor:
            await executor.launch(request("echo up; exec sleep 1000"), CALLER)
            await listener.heard_first(executor, b"up\n")
        async with process(tmp_path, store, max_commands=1) as executor:
            with pytest.raises(PeerdError) as caught:
                await executor.launch(request("true", exec_id="1" * 16), CALLER)
            assert caught.value.code is Code.BUSY
            listener.cancel.set()
            await listener.to_end(executor)

    asyncio.run(main())


def test_a_command_that_the_history_could_not_take_outlives_peerd_all_the_same(
    tmp_path: Path, store: FakeStore, fifo: int, records: Journal
) -> None:
    async def main() -> None:
        asked = request("echo x >>ran; echo up; read line <fifo; exit 3", tmp_path)
        listener = Listener()
        with pytest.MonkeyPatch.context() as patch:
            # A disk that is full.
            patch.setattr(History, "put", lambda self, side, peer, job: None)
            async with process(tmp_path, store) as executor:
                await executor.launch(asked, CALLER)
                await listener.heard_first(executor, b"up\n")
        async with process(tmp_path, store) as executor:
            with pytest.raises(PeerdError) as caught:
                await executor.launch(asked, CALLER)
            assert caught.value.code is Code.DUPLICATE
            os.write(fifo, b"go on\n")
            assert (await listener.to_end(executor)).exit_status == 3
        assert (tmp_path / "ran").read_text() == "x\n"

    asyncio.run(main())
