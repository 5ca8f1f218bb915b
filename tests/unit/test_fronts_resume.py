"""The unix socket from one connection to the next: which command runs, and where its caller goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from peerd import turns
from peerd.errors import Code, Outcome, PeerdError
from peerd.jsonrecord import complete_record
from peerd.messages import NARROW_WINDOW, STREAMS, WINDOW, ExecRequest, ExecResult, Offsets
from peerd.registry import Identity
from peerd.session import Caller, Session, Sink
from unit.support import EXEC_ID, FakeExecutor, dialled
from unit.test_fronts import EXEC, LEADER, greeted, invoke, served

WORKER = Identity("worker", "desktop", "127.0.0.9")
NONE = {"stdout": 0, "stderr": 0}
RESUME = {"execId": EXEC_ID, "step": 1, "stdout": 5, "stderr": 2}
Attend = Callable[[str, Session, Offsets], Coroutine[Any, Any, ExecResult]]


def attended(executor: FakeExecutor, attend: Attend) -> None:
    """Have the test say what happens to who attends."""
    executor.attend = attend  # type: ignore[method-assign, assignment]


async def done(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
    return ExecResult(Outcome.EXITED, 3)


def test_a_caller_is_told_which_command_runs_and_of_others_that_they_were_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            first = await wire.ask("invoke", {"argv": ["dbSanityCheck"]})
            assert (first.type, first.fields) == ("running", {"execId": "", "step": 1})
            while (await wire.next()).type != "exit":
                pass
            first = await wire.ask("invoke", {"argv": EXEC})
            ((request, _),) = local.executor.requests
            assert (first.type, first.fields) == ("running", {"execId": request.exec_id, "step": 1})
            assert (await wire.next()).type == "exit"

    asyncio.run(main())


def test_each_step_is_told_of_with_its_own_id(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            await wire.link.send("invoke", {"argv": ["remoteDeployDaemon", "--peer", "here"]})
            running = []
            while (frame := await wire.next()).type != "exit":
                if frame.type == "running":
                    running.append((frame.fields["execId"], frame.fields["step"]))
            ids = [request.exec_id for request, _ in local.executor.requests]
            assert running == [(ids[0], 1), (ids[1], 2)]

    asyncio.run(main())


def test_who_resumes_attends_where_it_was_and_starts_nothing(tmp_path: Path) -> None:
    seen: list[object] = []

    async def attend(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        seen.append((exec_id, dict(offsets), dict(session.delivery.offsets)))
        return ExecResult(Outcome.EXITED, 3)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            attended(local.executor, attend)
            assert (await invoke(wire, *EXEC, resume=RESUME)).status == 3
            at = {"stdout": 5, "stderr": 2}
            assert seen == [(EXEC_ID, at, at)]
            assert local.executor.requests == []

    asyncio.run(main())


@pytest.mark.parametrize("how", ["asks", "goes"])
def test_a_command_is_kept_until_its_caller_asks_for_something_else_or_goes(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            await invoke(wire, *EXEC)
            ((request, _),) = local.executor.requests
            # It may be about to write what was the last for peerd.
            for type_ in ("ack", "cancel", "stdin"):
                await wire.link.send(type_)
            await turns.let_pass(10)
            assert local.executor.heard == []
            if how == "asks":
                assert (await wire.ask("ping")).type == "pong"
            else:
                await wire.link.finish()
                await asyncio.wait(local.front._connections)
            assert local.executor.heard == [request.exec_id]

    asyncio.run(main())


def test_each_step_is_kept_until_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            await invoke(wire, "remoteDeployDaemon", "--peer", "here")
            assert local.executor.heard == []
            await wire.ask("ping")
            assert local.executor.heard == [local.executor.requests[0][0].exec_id]

    asyncio.run(main())


def test_a_daemon_that_is_stopped_lets_go_of_no_command_that_its_caller_may_not_have(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            assert (await invoke(wire, *EXEC)).status == 0
            await local.front.close()
            await wire.end()
            assert local.executor.heard == []

    asyncio.run(main())


def test_a_program_that_cannot_come_back_has_what_it_was_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            params = {"peer": "here", "directory": "/tmp", "shell_cmd": "make"}
            await wire.link.send("call", {"command": "execOnPeer", "params": params})
            while (await wire.next()).type != "reply":
                pass
            assert len(local.executor.heard) == 1

    asyncio.run(main())


def test_who_resumes_a_later_step_does_not_repeat_the_one_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            attended(local.executor, done)
            await wire.link.send(
                "invoke", {"argv": ["remoteDeployDaemon", "--peer", "here"], "resume": {**RESUME, "step": 2}}
            )
            assert (await wire.next()).fields == {"execId": EXEC_ID, "step": 2}
            while (frame := await wire.next()).type != "exit":
                assert frame.fields.get("execId", EXEC_ID) == EXEC_ID
            assert frame.fields["status"] == 3
            assert local.executor.requests == []

    asyncio.run(main())


def test_who_resumes_the_first_step_goes_on_with_the_second_from_its_beginning(tmp_path: Path) -> None:
    seen: list[object] = []

    async def attend(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        seen.append((exec_id, dict(offsets)))
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            attended(local.executor, attend)
            shown = await invoke(wire, "remoteDeployDaemon", "--peer", "here", resume=RESUME)
            assert shown.status == 0
            assert "step 1" not in shown.stderr
            ((request, _),) = local.executor.requests
            assert request.action == "deploy"
            assert seen == [(EXEC_ID, {"stdout": 5, "stderr": 2}), (request.exec_id, NONE)]

    asyncio.run(main())


def test_who_was_cut_off_before_its_command_was_started_has_it_started_now(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            local.executor.all_known = False
            assert (await invoke(wire, *EXEC, resume={**RESUME, "stdout": 0, "stderr": 0})).status == 0
            assert [request.exec_id for request, _ in local.executor.requests] == [EXEC_ID]

    asyncio.run(main())


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_nobody_knows_any_more_but_whose_output_came_is_lost(tmp_path: Path, stream: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            local.executor.all_known = False
            shown = await invoke(wire, *EXEC, resume={**RESUME, **NONE, stream: 1})
            assert (shown.status, shown.stderr.splitlines()[0]) == (255, str(PeerdError(Code.LOST, peer="here")))
            assert local.executor.requests == []

    asyncio.run(main())


@pytest.mark.parametrize("more", [(), ("--detach",)])
@pytest.mark.parametrize(("identity", "why"), [(LEADER, "Peer not found: laptop"), (WORKER, "Not connected to leader")])
def test_who_resumes_and_whose_peer_cannot_be_found_has_lost_the_command(
    tmp_path: Path, identity: Identity, why: str, more: Sequence[str]
) -> None:
    async def main() -> None:
        async with (
            served(tmp_path, identity=identity, reattach_timeout=0.1, connect_timeout=0.05) as local,
            greeted(local.path) as wire,
        ):
            argv = ["execOnPeer", "--peer", "laptop", "--directory", "/", "--shellCmd", "make", *more]
            first, reason, *_ = (await invoke(wire, *argv, resume=RESUME)).stderr.splitlines()
            assert first == str(PeerdError(Code.LOST, peer="laptop"))
            assert reason == f"  | {why}"
            first, *_ = (await invoke(wire, *argv)).stderr.splitlines()
            assert first == why

    asyncio.run(main())


@pytest.mark.parametrize(
    "resume",
    [
        {},
        {"execId": EXEC_ID},
        {**RESUME, "execId": "../x"},
        {**RESUME, "step": 0},
        {**RESUME, "step": 101},
        {**RESUME, "stdout": -1},
        {**RESUME, "stderr": "1"},
        [],
        "x",
        1,
    ],
    ids=str,
)
def test_a_resume_out_of_bounds_is_an_error(tmp_path: Path, resume: object) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            refused = await wire.ask("invoke", {"argv": EXEC, "resume": resume})
            assert (refused.type, refused.fields["code"]) == ("error", "bad-message")
            assert (await wire.ask("ping")).type == "pong"
            assert local.executor.requests == []

    asyncio.run(main())


def test_only_what_is_confirmed_of_the_command_that_runs_counts(tmp_path: Path) -> None:
    seen: list[Offsets] = []
    attending = asyncio.Event()

    async def attend(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        confirmed = asyncio.Event()

        def listen(offsets: Offsets) -> None:
            seen.append(dict(offsets))
            if offsets["stdout"] == 7:
                confirmed.set()

        session.delivery.listen(listen)
        attending.set()
        await confirmed.wait()
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            attended(local.executor, attend)
            await wire.link.send("invoke", {"argv": EXEC})
            running = (await wire.next()).fields
            await attending.wait()
            await wire.link.send("ack", {"execId": "1" * 16, "stdout": 99, "stderr": 99})
            await wire.link.send("ack", {**running, "stdout": 3, "stderr": 1})
            await wire.link.send("ack", {"stdout": 7})
            assert (await wire.next()).type == "exit"
            assert seen == [NONE, {"stdout": 3, "stderr": 1}, {"stdout": 7, "stderr": 0}]

    asyncio.run(main())


@pytest.mark.parametrize("name", ["invoke", "call"])
def test_output_counts_as_heard_where_the_caller_cannot_come_back(tmp_path: Path, name: str) -> None:
    seen: list[Offsets] = []

    async def attend(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        session.delivery.listen(lambda offsets: seen.append(dict(offsets)))
        await session.sink.output("stdout", b"12345")
        await session.sink.output("stderr", b"67")
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            attended(local.executor, attend)
            params: dict[str, Any] = {"peer": "here", "directory": "/tmp", "shell_cmd": "make"}
            fields = {"argv": EXEC} if name == "invoke" else {"command": "execOnPeer", "params": params}
            await wire.link.send(name, fields)
            while (await wire.next()).type not in ("exit", "reply"):
                pass
            heard = [{"stdout": 5, "stderr": 0}, {"stdout": 5, "stderr": 2}] if name == "call" else []
            assert seen == [NONE, *heard]

    asyncio.run(main())


def test_a_record_is_collected_by_the_caller_and_what_peerd_says_is_marked(tmp_path: Path) -> None:
    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        await sink.output("stdout", b"out")
        return ExecResult(Outcome.EXITED, 3, left_behind=1)

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as wire:
            collect = await wire.ask("invoke", {"argv": [*EXEC, "--json", "--stream"]})
            assert (collect.type, collect.fields) == ("collect", {"events": True})
            frames = []
            while (frame := await wire.next()).type != "exit":
                frames.append((frame.type, frame.fields.get("by"), frame.payload[:3]))
            assert frames == [
                ("running", None, b""),
                ("output", None, b"out"),
                ("output", "peerd", b"Sto"),
            ]
            assert isinstance(frame.fields["record"], dict)
            assert (frame.fields["status"], frame.fields["record"]["exit_status"]) == (3, 3)

    asyncio.run(main())


def test_a_detached_command_is_answered_with_its_record_and_collects_nothing(tmp_path: Path) -> None:
    async def detach(request: ExecRequest, caller: Caller) -> ExecResult:
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            local.executor.detach = detach  # type: ignore[method-assign]
            shown = await invoke(wire, *EXEC, "--detach")
            assert (len(shown.stdout.strip()), shown.status) == (len(EXEC_ID), 0)
            shown = await invoke(wire, *EXEC, "--detach", "--json")
            assert '"detached": true' in shown.stdout
            shown = await invoke(wire, *EXEC, "--detach", "--json", "--stream")
            [event] = map(json.loads, shown.stdout.splitlines())
            assert (event["event"], event["detached"], event["outcome"]) == ("result", True, None)

    asyncio.run(main())


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_a_command_that_was_not_asked_for_has_a_record_too(tmp_path: Path, more: Sequence[str]) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            await wire.link.send("invoke", {"argv": [*EXEC[:-2], "--json", *more]})
            printed = {"stdout": "", "stderr": ""}
            while (frame := await wire.next()).type != "exit":
                if "stream" in frame.fields:
                    printed[str(frame.fields["stream"])] += frame.payload.decode()
            # To a record that d completes, it adds the output.
            record = frame.fields.get("record")
            record = json.loads(complete_record(record) if isinstance(record, dict) else printed["stdout"])
            output = [f"{stream}{more}" for stream in STREAMS for more in ("", "_encoding", "_bytes")]
            assert list(record) == ["schema", "exec_id", "outcome", "exit_status", "error", *output]
            assert (record["schema"], record["exit_status"], record["error"]["code"]) == (1, 2, "usage")
            assert printed["stderr"].splitlines()[0] == record["error"]["message"]

    asyncio.run(main())


@pytest.mark.parametrize(("newest", "window"), [(1, NARROW_WINDOW), (2, NARROW_WINDOW), (3, WINDOW), (4, WINDOW)])
def test_no_more_input_is_granted_than_is_kept(tmp_path: Path, newest: int, window: int) -> None:
    quarter = window // 4

    async def attend(exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        session.stdin.open(3, WINDOW, 0)
        session.stdin.grant(WINDOW + quarter - 1, quarter - 1)
        session.stdin.grant(WINDOW + quarter, quarter)
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            attended(local.executor, attend)
            wire.link.post("hello", {"protocol": 1, "newest": newest})
            await wire.link.expect("hello")
            wire.link.post("invoke", {"argv": EXEC})
            told = []
            while (frame := await wire.next()).type != "exit":
                if frame.type.startswith("stdin"):
                    told.append(frame.fields)
            if newest == 1:
                assert told == [{"bytes": window}, {"bytes": quarter}]
            else:
                assert told == [{"from": 3, "until": window}, {"until": window + quarter}]

    asyncio.run(main())
