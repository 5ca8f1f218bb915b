"""Commands from their request to their result, with the real spawner and a fake systemd."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerd import history, refusals, scopes
from peerd.errors import Code, Outcome, PeerdError
from peerd.execution import new_exec_id
from peerd.journal import Event
from peerd.messages import MAX_OUTPUT, WINDOW, Action, ExecRequest, ExecResult
from peerd.scopes import Figures, Limits, Stopper, scope_name
from peerd.session import Caller
from peerd.spool import Data
from unit.support import EXEC_ID, FakeScopes, Heard, Journal, executing, hear, run, scarce

CALLER = Caller("laptop", "ann")
SCOPE = scope_name(EXEC_ID)


@pytest.fixture(autouse=True)
def _members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in a scope, where there are no control groups."""
    monkeypatch.setattr(scopes, "processes", FakeScopes.members)


def request(command: str, directory: str = "/", **changes: Any) -> ExecRequest:
    return ExecRequest(changes.pop("exec_id", EXEC_ID), directory, command, **changes)


def result_of(command: str, directory: str = "/", **changes: Any) -> tuple[ExecResult, Heard]:
    """Run one command to its end."""

    async def main() -> tuple[ExecResult, Heard]:
        heard = Heard()
        async with executing(**changes) as executor:
            return await run(executor, request(command, directory), heard), heard

    return asyncio.run(main())


def code(result: ExecResult) -> Code:
    assert result.error is not None
    return result.error.code


@pytest.mark.parametrize("status", [0, 1, 124, 127, 255])
def test_the_exit_status_is_the_commands_own(status: int) -> None:
    result, _ = result_of(f"exit {status}")
    assert (result.outcome, result.exit_status, result.signal, result.error) == (Outcome.EXITED, status, None, None)
    assert result.duration_usec is not None
    assert result.duration_usec > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_signal_is_128_and_its_number(number: signal.Signals) -> None:
    result, _ = result_of(f"kill -{number} $$")
    assert (result.outcome, result.exit_status, result.signal) == (Outcome.SIGNALED, 128 + number, number)


def test_output_comes_byte_for_byte_on_its_own_stream(tmp_path: Path) -> None:
    every = bytes(range(256)) * 3
    (tmp_path / "out").write_bytes(every)
    (tmp_path / "err").write_bytes(every[::-1])
    result, heard = result_of("cat out; cat err >&2", str(tmp_path))
    assert result.exit_status == 0
    assert heard.streams == {"stdout": every, "stderr": every[::-1]}


def test_a_command_without_output_has_none() -> None:
    result, heard = result_of("true")
    assert result.exit_status == 0
    assert heard.begun.is_set()
    assert heard.streams == {"stdout": b"", "stderr": b""}


def test_the_last_words_before_the_end_are_heard() -> None:
    result, heard = result_of("head -c 60000 /dev/zero; printf last >&2; kill -9 $$")
    assert result.signal == 9
    assert heard.streams == {"stdout": bytes(60000), "stderr": b"last"}


def test_what_runs_on_in_the_background_is_heard_until_it_is_stopped(tmp_path: Path) -> None:
    background = "(trap 'echo stopped; exit' TERM; echo ready; echo >fifo; while :; do sleep 0.01; done)"
    result, heard = result_of(f"mkfifo fifo; {background} & read x <fifo; exit 3", str(tmp_path))
    assert result.exit_status == 3
    assert heard.streams["stdout"] == b"ready\nstopped\n"


class Slow(Heard):
    """A sink that lets other things happen between any two pieces, and notes how large they are."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def output(self, stream: str, data: Data) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        self.sizes.append(len(data))
        await super().output(stream, data)


def test_large_output_arrives_whole_at_the_pace_of_a_slow_sink() -> None:
    async def main() -> None:
        slow = Slow()
        async with executing() as executor:
            result = await run(executor, request("seq 400000; seq 100000 >&2"), slow)
        assert result.exit_status == 0
        assert slow.streams["stdout"] == "".join(f"{n}\n" for n in range(1, 400001)).encode()
        assert slow.streams["stderr"] == "".join(f"{n}\n" for n in range(1, 100001)).encode()
        assert max(slow.sizes) <= MAX_OUTPUT

    asyncio.run(main())


class Stuck(Heard):
    """A sink that takes one piece and then no more until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def output(self, stream: str, data: Data) -> None:
        await super().output(stream, data)
        await self.go_on.wait()


def test_a_sink_that_takes_no_more_stops_the_command_at_a_full_pipe(tmp_path: Path) -> None:
    # More than a window and the pipe have room for.
    size = 3 * WINDOW

    async def main() -> None:
        stuck = Stuck()
        async with executing() as executor:
            running = asyncio.create_task(
                run(executor, request(f"head -c {size} /dev/zero; touch done", str(tmp_path)), stuck)
            )
            await stuck.spoke.wait()
            # Another command comes and goes; this one is still where it was.
            assert (await run(executor, request("true", exec_id=new_exec_id()))).exit_status == 0
            assert not (tmp_path / "done").exists()
            assert len(stuck.streams["stdout"]) <= MAX_OUTPUT
            stuck.go_on.set()
            assert (await running).exit_status == 0
            assert len(stuck.streams["stdout"]) == size

    asyncio.run(main())


def test_cancel_stops_the_command_and_says_when_it_is_gone() -> None:
    async def main() -> None:
        fake, heard, cancel = FakeScopes(), Heard(), asyncio.Event()
        async with executing(fake) as executor:
            running = asyncio.create_task(run(executor, request("echo up; exec sleep 1000"), heard, cancel))
            await heard.spoke.wait()
            assert executor.running == 1
            cancel.set()
            result = await running
        assert (result.outcome, result.exit_status, code(result)) == (Outcome.CANCELLED, 130, Code.CANCELLED)
        assert fake.calls == [("start", SCOPE), ("stop", SCOPE)]
        with pytest.raises(ProcessLookupError):
            os.killpg(fake.gates[SCOPE], 0)

    asyncio.run(main())


def test_cancel_does_not_wait_for_a_sink_that_takes_no_more() -> None:
    async def main() -> None:
        stuck, cancel = Stuck(), asyncio.Event()
        async with executing() as executor:
            running = asyncio.create_task(run(executor, request("exec yes"), stuck, cancel))
            await stuck.spoke.wait()
            cancel.set()
            assert (await running).outcome is Outcome.CANCELLED

    asyncio.run(main())


def test_a_command_whose_caller_cancelled_before_it_began_is_stopped_at_once() -> None:
    async def main() -> None:
        cancel = asyncio.Event()
        cancel.set()
        async with executing() as executor:
            result = await run(executor, request("exec sleep 1000"), Heard(), cancel)
        assert (result.outcome, result.exit_status) == (Outcome.CANCELLED, 130)

    asyncio.run(main())


class Gone(Heard):
    """A sink whose reader has gone."""

    async def output(self, stream: str, data: Data) -> None:
        raise ConnectionResetError("gone")


def test_a_command_whose_output_nobody_takes_is_stopped() -> None:
    async def main() -> None:
        async with executing(reattach_timeout=0.05) as executor:
            with pytest.raises(ConnectionError):
                await run(executor, request("exec yes"), Gone())
            result = (await executor.wait(EXEC_ID)).result
            assert result is not None
            assert result.outcome is Outcome.CANCELLED

    asyncio.run(main())


def test_an_id_runs_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with executing() as executor:
            assert (await run(executor, request("echo x >>ran", str(tmp_path)))).exit_status == 0
            again = await run(executor, request("echo x >>ran", str(tmp_path)))
        assert (again.outcome, again.exit_status, code(again)) == (Outcome.FAILED, 255, Code.DUPLICATE)
        assert (tmp_path / "ran").read_text() == "x\n"

    asyncio.run(main())


def test_an_id_runs_once_even_at_the_same_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with executing() as executor:
            results = await asyncio.gather(*(run(executor, request("echo x >>ran", str(tmp_path))) for _ in range(5)))
        assert sorted(result.outcome for result in results) == [Outcome.EXITED, *[Outcome.FAILED] * 4]
        assert (tmp_path / "ran").read_text() == "x\n"

    asyncio.run(main())


def test_no_more_commands_run_at_once_than_are_allowed() -> None:
    async def main() -> None:
        heard, cancel = Heard(), asyncio.Event()
        async with executing(max_commands=1) as executor:
            first = asyncio.create_task(run(executor, request("echo up; exec sleep 1000"), heard, cancel))
            await heard.spoke.wait()
            refused = await run(executor, request("true", exec_id="1" * 16))
            assert (refused.outcome, refused.exit_status, code(refused)) == (Outcome.DENIED, 255, Code.BUSY)
            cancel.set()
            await first
            assert (await run(executor, request("true", exec_id="2" * 16))).exit_status == 0

    asyncio.run(main())


def test_a_timeout_over_the_maximum_is_denied() -> None:
    async def main() -> None:
        async with executing(max_timeout=60.0) as executor:
            denied = await run(executor, request("true", timeout=60.5))
            assert (denied.outcome, code(denied)) == (Outcome.DENIED, Code.DENIED)
            assert "60.5" in str(denied.error)
            assert (await run(executor, request("true", timeout=60.0, exec_id="1" * 16))).exit_status == 0

    asyncio.run(main())


def test_a_refusal_is_remembered_for_who_did_not_hear_it_and_its_id_is_used_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with executing(max_timeout=60.0) as executor:
            refused = request("touch ran", str(tmp_path), timeout=61.0)
            await run(executor, refused)
            assert code(await hear(executor, refused)) is Code.DENIED
            assert code(await run(executor, replace(refused, timeout=1.0))) is Code.DUPLICATE
            # That it was asked for again changes nothing of what is known of it.
            assert code(await hear(executor, refused)) is Code.DENIED
        assert not (tmp_path / "ran").exists()

    asyncio.run(main())


def test_a_refusal_under_the_id_of_another_command_changes_nothing_that_is_known_of_that() -> None:
    async def main() -> None:
        async with executing(max_timeout=60.0) as executor:
            assert (await run(executor, request("echo mine", timeout=5.0, detach=True))).exit_status == 0
            before = executor.job(EXEC_ID)
            for forged in (request("x", timeout=61.0), request("x", timeout=61.0, detach=True)):
                with pytest.raises(PeerdError) as caught:
                    await executor.launch(forged, Caller("mallory"))
                assert caught.value.code is Code.DUPLICATE
            assert executor.job(EXEC_ID) == before
            assert before.caller == "ann@laptop"

    asyncio.run(main())


def test_output_that_is_kept_keeps_its_id_when_its_record_is_forgotten() -> None:
    async def main() -> None:
        async with executing() as executor:
            await executor.detach(request("echo mine", detach=True), CALLER)
            await executor.wait(EXEC_ID)
            executor._history.drop(history.RAN, EXEC_ID)
            executor._seen.clear()
            with pytest.raises(PeerdError) as caught:
                await executor.launch(request("x", detach=True), Caller("mallory"))
            assert caught.value.code is Code.DUPLICATE

    asyncio.run(main())


def test_who_is_refused_without_end_is_recorded_no_more_than_so_often(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MOST", 3)

    async def main() -> None:
        async with executing(max_timeout=60.0) as executor:
            asked = [request("x" * 9999, timeout=61.0, exec_id=f"{number:016x}") for number in range(9)]
            for one in asked:
                with pytest.raises(PeerdError):
                    await executor.launch(one, Caller("mallory"))
            with pytest.raises(PeerdError):
                await executor.launch(request("x", timeout=61.0), Caller("laptop"))
            assert [len(records.of(Event.COMMAND_ENDED)), len(executor._history.find(history.RAN))] == [4, 4]
            assert len(executor.job(asked[0].exec_id).line) == 256
            refusals.requests._until = 0.0
            with pytest.raises(PeerdError):
                await executor.launch(request("x", timeout=61.0), Caller("mallory"))
            (more,) = records.of(Event.REFUSALS_LEFT_OUT)
            assert (more.message, more.text("caller")) == ("6 more requests of mallory were refused", "mallory")

    asyncio.run(main())


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("most", [0, 600])
def test_of_a_start_that_failed_no_more_is_known_than_its_refusal(
    most: int, detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MOST", most)

    async def main() -> None:
        async with executing(FakeScopes(refuse="Unit already exists")) as executor:
            with pytest.raises(PeerdError):
                await executor.launch(request("true", detach=detach), Caller("laptop"))
            assert executor.knows(EXEC_ID) is bool(most)
            # What has no end is taken for cut off when peerd starts the next time.
            assert not executor._history.find(history.RAN, outcome="")

    asyncio.run(main())


def test_one_peer_runs_no_more_than_half_of_the_commands() -> None:
    async def main() -> None:
        async with executing(max_commands=4) as executor:

            async def start(number: int, caller: Caller) -> Code | None:
                try:
                    await executor.launch(request("exec sleep 1000", exec_id=f"{number:016x}"), caller)
                except PeerdError as error:
                    return error.code
                return None

            laptop, desktop, here = Caller("laptop"), Caller("desktop"), Caller("vps", "root")
            assert [await start(number, laptop) for number in range(3)] == [None, None, Code.BUSY]
            assert [await start(5, desktop), await start(6, here)] == [None, None]
            assert [await start(7, desktop), await start(8, here)] == [Code.BUSY, Code.BUSY]
            for number in (0, 1, 5, 6):
                await executor.cancel(f"{number:016x}")

    asyncio.run(main())


def test_one_peer_starts_no_more_than_half_of_the_commands_at_once() -> None:
    async def main() -> None:
        async with executing(max_commands=4) as executor:
            asked = [request("exec sleep 1000", exec_id=f"{number:016x}") for number in range(4)]
            starting = (executor.launch(one, Caller("laptop")) for one in asked)
            results = await asyncio.gather(*starting, return_exceptions=True)
            refused = [result.code for result in results if isinstance(result, PeerdError)]
            assert refused == [Code.BUSY, Code.BUSY]
            await executor.launch(request("exec sleep 1000"), Caller("desktop"))
            for job in executor.active:
                await executor.cancel(job.exec_id)

    asyncio.run(main())


def test_of_those_that_ended_unheard_as_many_are_kept_as_may_run_and_half_for_one_peer() -> None:
    async def main() -> None:
        async with executing(max_commands=4) as executor:

            async def end(number: int, caller: Caller) -> None:
                one = await executor.launch(request("echo all", exec_id=f"{number:016x}"), caller)
                await one.ended.wait()

            def kept() -> list[int]:
                return [number for number in range(9) if executor.find(f"{number:016x}")]

            await end(0, Caller("desktop"))
            for number in (1, 2, 3):
                await end(number, Caller("laptop"))
            assert kept() == [0, 2, 3]
            for number in (4, 5, 6):
                await end(number, CALLER)
            assert kept() == [3, 4, 5, 6]
            heard = Heard()
            assert (await hear(executor, request("", exec_id=f"{3:016x}"), heard)).exit_status == 0
            assert heard.streams["stdout"] == b"all\n"
            # Of what was let go there is the record still.
            assert executor.job(f"{0:016x}").result
            with pytest.raises(PeerdError) as caught:
                await hear(executor, request("", exec_id=f"{0:016x}"))
            assert caught.value.code is Code.OUTPUT_GONE
            for number in kept():
                executor.delivered(f"{number:016x}")

    asyncio.run(main())


def test_the_first_that_ended_goes_first_and_none_that_is_heard_of() -> None:
    async def main() -> None:
        heard, long, short, last = (f"{number:016x}" for number in range(4))
        size, stuck = 2 * MAX_OUTPUT, Stuck()
        async with executing(max_commands=2) as executor:
            hearing = asyncio.create_task(run(executor, request(f"head -c {size} /dev/zero", exec_id=heard), stuck))
            await stuck.spoke.wait()
            await executor.wait(heard)
            await executor.launch(request("exec sleep 1000", exec_id=long), CALLER)
            await executor.launch(request("true", exec_id=short), CALLER)
            await executor.wait(short)
            await executor.cancel(long)
            await executor.launch(request("true", exec_id=last), CALLER)
            await executor.wait(last)
            assert [bool(executor.find(one)) for one in (heard, long, short, last)] == [True, True, False, True]
            stuck.go_on.set()
            assert (await hearing).exit_status == 0
            assert len(stuck.streams["stdout"]) == size
            executor.delivered(long)
            executor.delivered(last)

    asyncio.run(main())


def test_a_command_that_ends_by_itself_has_not_run_out_of_the_time_that_its_scope_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = FakeScopes.start

    async def late(self: FakeScopes, *arguments: Any) -> None:
        await begin(self, *arguments)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(FakeScopes, "start", late)

    async def main() -> None:
        async with executing() as executor:
            result = await run(executor, request("exit 3", timeout=0.2))
            assert (result.outcome, result.exit_status) == (Outcome.EXITED, 3)
            stopped = await run(executor, request("kill $$", timeout=0.2, exec_id="1" * 16))
            assert stopped.outcome is Outcome.TIMEOUT

    asyncio.run(main())


def test_the_output_of_a_detached_command_is_heard_also_where_its_end_is_not_known() -> None:
    async def main() -> None:
        heard = Heard()
        async with executing() as executor:
            await executor.detach(request("echo all", detach=True), CALLER)
            job = await executor.wait(EXEC_ID)
            lost = ExecResult.failure(PeerdError(Code.CUT_OFF, peer="vps"))
            executor._history.put(history.RAN, "laptop", replace(job, result=lost))
            assert code(await hear(executor, request("", detach=True), heard)) is Code.CUT_OFF
            assert heard.streams["stdout"] == b"all\n"

    asyncio.run(main())


def test_what_a_detached_command_says_when_it_is_stopped_is_kept() -> None:
    script = "trap 'echo last; seq 100000 >&2; exit 0' TERM; echo first; sleep 1000 & wait"

    async def main() -> None:
        heard = Heard()
        async with executing(job_output_limit=1000) as executor:
            one = await executor.launch(request(script, detach=True), CALLER)
            hearing = asyncio.create_task(hear(executor, request("", detach=True), heard))
            await heard.spoke.wait()
            one.cancel()
            result = await hearing
        assert result.outcome is Outcome.CANCELLED
        assert heard.streams["stdout"] == b"first\nlast\n"
        assert result.dropped
        assert result.dropped + len(heard.streams["stderr"]) == 588895

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "timeout"),
    [
        (request("true"), 30.0),
        (request("true", timeout=0.5), 0.5),
        (ExecRequest(EXEC_ID, action=Action.PULL), 1800.0),
        (ExecRequest(EXEC_ID, action=Action.BUILD, timeout=7.0), 7.0),
    ],
    ids=["default", "given", "action", "action given"],
)
def test_systemd_is_told_the_timeout_and_the_grace(asked: ExecRequest, timeout: float) -> None:
    async def main() -> None:
        fake = FakeScopes()
        async with executing(fake, repository="/", build_directory="/", pull_command="true", build_command="true") as e:
            assert (await run(e, asked)).exit_status == 0
        assert fake.timeouts == [(timeout, 5.0)]

    asyncio.run(main())


@pytest.mark.parametrize(("action", "expected"), [(Action.PULL, b"pulled\n"), (Action.BUILD, b"built\n")])
def test_an_action_runs_what_this_machine_has_set_for_it(tmp_path: Path, action: Action, expected: bytes) -> None:
    (tmp_path / "daemon").mkdir()

    async def main() -> None:
        heard = Heard()
        changes: dict[str, Any] = {
            "repository": str(tmp_path),
            "pull_command": f"[ $(pwd) = {tmp_path} ] && echo pulled",
            "build_command": f"[ $(pwd) = {tmp_path}/daemon ] && echo built",
        }
        async with executing(**changes) as executor:
            assert (await run(executor, ExecRequest(EXEC_ID, action=action), heard)).exit_status == 0
        assert heard.streams["stdout"] == expected

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("missing", Code.NO_SUCH_DIRECTORY), ("file", Code.NOT_A_DIRECTORY), ("loop", Code.NO_ACCESS)],
)
def test_a_directory_that_cannot_be_entered_is_an_error_of_its_own(tmp_path: Path, name: str, expected: Code) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    result, heard = result_of("echo ran", str(tmp_path / name))
    assert (result.outcome, result.exit_status, code(result)) == (Outcome.FAILED, 255, expected)
    assert str(tmp_path / name) in str(result.error)
    assert "vps" in str(result.error)
    assert heard.streams["stdout"] == b""


def test_without_a_scope_nothing_is_run(tmp_path: Path) -> None:
    async def main() -> None:
        fake = FakeScopes(refuse="Unit already exists")
        async with executing(fake) as executor:
            result = await run(executor, request("touch ran", str(tmp_path)))
            assert (result.outcome, result.exit_status, code(result)) == (Outcome.FAILED, 255, Code.START_FAILED)
            assert "Unit already exists" in str(result.error)
            # Once the spawner has served another command to its end, the gate before it is gone for good.
            fake.refuse = ""
            assert (await run(executor, request("true", exec_id="1" * 16))).exit_status == 0
        assert not (tmp_path / "ran").exists()
        assert fake.calls[0] == ("start", SCOPE)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("command", "outcome"), [("kill -9 $$", Outcome.OOM), ("exit 137", Outcome.OOM), ("true", Outcome.EXITED)]
)
def test_a_command_that_failed_when_memory_ran_out_is_out_of_memory(
    command: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "figures", lambda name: Figures(1000, 4096, oom_kills=1))
    result, _ = result_of(command)
    assert (result.outcome, result.cpu_usec, result.memory_peak) == (outcome, 1000, 4096)
    assert result.exit_status == (0 if outcome is Outcome.EXITED else 255)


class Timed(FakeScopes):
    """Stops the scope itself when its time is over, as systemd does."""

    def __init__(self) -> None:
        super().__init__()

    async def start(
        self,
        name: str,
        pids: Sequence[int],
        description: str,
        timeout: float,
        grace: float,
        limits: Limits | None = None,
    ) -> None:
        await super().start(name, pids, description, timeout, grace, limits)
        loop = asyncio.get_running_loop()
        loop.call_later(timeout, self.kill, name)
        loop.call_later(timeout + 2, self.kill, name, signal.SIGKILL)


def test_a_command_that_ran_out_of_time_says_after_how_long() -> None:
    async def main() -> None:
        async with executing(Timed()) as executor:
            result = await run(executor, request("exec sleep 1000", timeout=0.1))
        assert (result.outcome, result.exit_status) == (Outcome.TIMEOUT, 124)
        assert str(result.error) == "Timeout waiting for response from vps (0.1 s)"

    asyncio.run(main())


def test_a_command_that_ignores_the_stop_at_its_timeout_still_ran_out_of_time() -> None:
    async def main() -> None:
        async with executing(Timed()) as executor:
            result = await run(executor, request("trap 'exit 0' TERM; while :; do sleep 0.01; done", timeout=0.1))
        assert (result.outcome, result.exit_status) == (Outcome.TIMEOUT, 124)

    asyncio.run(main())


def test_a_systemd_that_does_not_answer_the_stop_leaves_nothing_running(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.expect(Event.INTERNAL_ERROR)
    fake = FakeScopes()
    fake.refuse_stop = "no answer from systemd"

    def kill(name: str) -> None:
        fake.kill(name, signal.SIGKILL)

    monkeypatch.setattr(scopes, "kill", kill)

    async def main() -> None:
        async with executing(fake) as executor:
            result = await run(executor, request("sleep 1000 & exit 4"))
            assert (result.outcome, result.exit_status, result.left_behind) == (Outcome.EXITED, 4, 1)
        assert fake.calls == [("start", SCOPE), ("stop", SCOPE)]
        (record,) = records.of(Event.INTERNAL_ERROR)
        assert "no answer from systemd" in record.message

    asyncio.run(main())


def test_what_is_left_running_and_cannot_be_counted_is_stopped(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.expect(Event.INTERNAL_ERROR)

    def unreadable(name: str) -> list[int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(scopes, "processes", unreadable)

    async def main() -> None:
        fake = FakeScopes()
        async with executing(fake) as executor:
            result = await run(executor, request("sleep 1000 & exit 4"))
            assert (result.outcome, result.exit_status, result.left_behind) == (Outcome.EXITED, 4, None)
        assert fake.calls == [("start", SCOPE), ("stop", SCOPE)]
        (record,) = records.of(Event.INTERNAL_ERROR)
        assert "Too many open files" in record.message

    asyncio.run(main())


def test_a_user_that_cannot_be_looked_up_may_exist() -> None:
    async def main() -> None:
        async with executing() as executor:
            with scarce(0):
                result = await run(executor, request("true", user="root"))
            assert result.error is not None
            assert result.error.sentence == "Could not start the command on vps: Too many open files"
            assert code(await run(executor, request("true", user="nemo", exec_id="1" * 16))) is Code.NO_SUCH_USER

    asyncio.run(main())


class Late(FakeScopes):
    """Scopes that are made when it is time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.due = asyncio.Event(), asyncio.Event()

    async def start(self, *args: Any, **more: Any) -> None:
        self.asked.set()
        await self.due.wait()
        await super().start(*args, **more)


@pytest.mark.parametrize(("cancel", "outcome"), [(True, Outcome.CANCELLED), (False, Outcome.EXITED)])
def test_a_command_that_is_being_started_is_waited_for_and_cancelled_as_one_that_runs(
    cancel: bool, outcome: Outcome
) -> None:
    async def main() -> None:
        late = Late()
        async with executing(late) as executor:
            asked = request("exec sleep 1000" if cancel else "exit 0", detach=True)
            detaching = asyncio.create_task(executor.detach(asked, CALLER))
            await late.asked.wait()
            ending = asyncio.create_task((executor.cancel if cancel else executor.wait)(EXEC_ID))
            await asyncio.sleep(0)
            assert not ending.done()
            late.due.set()
            job = await ending
            assert job.result is not None
            assert job.result.outcome is outcome
            await detaching

    asyncio.run(main())


def test_the_start_of_a_command_that_is_waited_for_may_fail() -> None:
    async def main() -> None:
        late = Late()
        late.refuse = "no"
        async with executing(late) as executor:
            running = asyncio.create_task(run(executor, request("exec sleep 1000")))
            await late.asked.wait()
            ending = asyncio.create_task(executor.cancel(EXEC_ID))
            await asyncio.sleep(0)
            late.due.set()
            job, result = await ending, await running
            assert job.result is not None
            assert code(job.result) is code(result) is Code.START_FAILED

    asyncio.run(main())


def test_a_job_whose_output_was_kept_for_long_enough_is_listed_no_more() -> None:
    async def main() -> None:
        async with executing(job_retention=1000.0) as executor:
            await executor.detach(request("true", detach=True), CALLER)
            await executor.wait(EXEC_ID)
            assert [job.exec_id for job in executor.jobs(10)] == [EXEC_ID]
            later = time.time() + 1001
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "time", lambda: later)
                assert list(executor.jobs(10)) == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("stopper", "command", "outcome", "stopped"),
    [
        (Stopper.SOMEBODY, "sleep 1000 & kill $$; wait", Outcome.SIGNALED, True),
        (Stopper.SOMEBODY, "sleep 1000 & exit 3", Outcome.EXITED, False),
        (Stopper.SHUTDOWN, "sleep 1000 & kill $$; wait", Outcome.LOST, False),
        (Stopper.SHUTDOWN, "kill -9 $PPID", Outcome.LOST, False),
        (Stopper.SHUTDOWN, "sleep 1000 & exit 3", Outcome.EXITED, False),
        (None, "kill $$", Outcome.SIGNALED, False),
    ],
)
def test_a_command_that_systemd_stops_by_itself_ends_by_that(
    stopper: Stopper | None, command: str, outcome: Outcome, stopped: bool
) -> None:
    async def main() -> None:
        fake = FakeScopes()
        fake.stopped_by = stopper
        async with executing(fake) as executor:
            result = await run(executor, request(command))
        assert (result.outcome, result.stopped, result.left_behind or 0) == (outcome, stopped, 0)
        assert (outcome is Outcome.LOST) == (result.error is not None and code(result) is Code.CUT_OFF)

    asyncio.run(main())


class Blind(FakeScopes):
    """A systemd from whose scope a process has escaped: its stop reaches nobody."""

    async def stop(self, name: str) -> None:
        pass


@pytest.mark.parametrize("escaped", ["sleep 1000", "yes"])
def test_a_process_that_escaped_with_the_pipe_in_its_hands_keeps_no_caller_waiting(
    escaped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read

    def late_read(fd: int, size: int) -> bytes:
        """As os.read, but so late that "yes" has written again."""
        select.select([fd], [], [], 1)
        return read(fd, size)

    if escaped == "yes":
        monkeypatch.setattr(os, "read", late_read)

    async def main() -> None:
        fake, heard = Blind(), Slow()
        async with executing(fake) as executor:
            try:
                async with asyncio.timeout(5):
                    result = await run(executor, request(f"{escaped} & echo started; exit 3"), heard)
            finally:
                fake.kill(SCOPE, signal.SIGKILL)
        assert result.exit_status == 3
        assert b"started\n" in heard.streams["stdout"]

    asyncio.run(main())


def test_a_command_that_kills_its_gate_has_ended_by_sigkill() -> None:
    result, _ = result_of("kill -9 $PPID; exec sleep 1000")
    assert (result.outcome, result.exit_status, result.signal) == (Outcome.SIGNALED, 137, 9)


def test_a_command_knows_its_id_and_its_caller() -> None:
    _, heard = result_of('echo "$PEERD_EXEC_ID $PEERD_CALLER"')
    assert heard.streams["stdout"] == f"{EXEC_ID} ann@laptop\n".encode()


def test_a_command_that_is_no_unicode_is_run_as_it_is(records: Journal) -> None:
    _, heard = result_of("printf '\udcff\udcfe'")
    assert heard.streams["stdout"] == b"\xff\xfe"
    assert records.of(Event.COMMAND_ENDED)[0].fields["PEERD_COMMAND"] == b"printf '\xff\xfe'"


def test_the_journal_has_the_start_and_the_end_with_their_fields(records: Journal) -> None:
    result, _ = result_of("exit 3\n", "/tmp")
    started, ended = records.of(Event.COMMAND_STARTED) + records.of(Event.COMMAND_ENDED)
    for record in (started, ended):
        assert [record.text(name) for name in ("exec_id", "peer", "caller", "directory", "command")] == [
            *(EXEC_ID, "laptop", "ann@laptop", "/tmp", "exit 3\n")
        ]
        assert record.fields["OBJECT_SYSTEMD_UNIT"] == SCOPE.encode()
    assert [ended.text(name) for name in ("outcome", "exit_status", "duration_usec")] == [
        *("exited", "3", str(result.duration_usec))
    ]


def test_the_journal_has_what_was_refused(records: Journal) -> None:
    async def main() -> None:
        async with executing(max_timeout=60.0) as executor:
            await run(executor, request("true", timeout=61.0))

    asyncio.run(main())
    assert not records.of(Event.COMMAND_STARTED)
    (ended,) = records.of(Event.COMMAND_ENDED)
    assert ended.text("outcome") == "denied"
    assert "max-timeout" in ended.message


def test_a_caller_is_named_with_its_user() -> None:
    assert str(Caller("laptop")) == "laptop"
    assert str(Caller("laptop", "ann")) == "ann@laptop"


def test_a_caller_that_gives_up_leaves_a_command_that_can_be_heard_of_again() -> None:
    async def main() -> None:
        heard, cancel = Heard(), asyncio.Event()
        asked = request("echo up; exec sleep 1000")
        async with executing() as executor:
            running = asyncio.create_task(run(executor, asked, heard))
            await heard.spoke.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert executor.running == 1
            cancel.set()
            assert (await hear(executor, asked, heard, cancel)).outcome is Outcome.CANCELLED

    asyncio.run(main())


def test_a_command_that_never_began_is_not_said_to_have_started(tmp_path: Path) -> None:
    _, heard = result_of("true", str(tmp_path / "missing"))
    assert not heard.begun.is_set()
