"""The unix socket: what `d` and programs ask, over real connections to a real service, with the executor replaced."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peerd import __version__, history, logs, messages, refusals, users
from peerd.answer import Answer, Batch, Record
from peerd.apphost import AppHost
from peerd.errors import Code, Outcome, PeerdError
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult
from peerd.node import Node
from peerd.protocol import PROTOCOL_VERSION, Frame, encode
from peerd.records import Query
from peerd.registry import Identity, Registry
from peerd.service import Service
from peerd.session import Caller, Session, Sink
from peerd.units import Units
from peerd.unixfront import UnixFront
from unit.fake_systemd import FakeSystemd
from unit.support import FakeExecutor, Journal, Script, Wire, dialled, settings, unix_server

USER = pwd.getpwuid(os.getuid()).pw_name
ALONE = Identity("", "here", "")
LEADER = Identity("leader", "here", "")
EXEC = ["execOnPeer", "--peer", "here", "--directory", "/tmp", "--shellCmd", "make"]


async def succeed(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
    return ExecResult(Outcome.EXITED, 0)


async def until_cancelled(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
    await sink.started()
    await cancel.wait()
    return ExecResult.failure(PeerdError(Code.CANCELLED, peer="here"))


@dataclass
class Local:
    """A daemon's unix side."""

    path: Path
    executor: FakeExecutor
    front: UnixFront
    past: History


@asynccontextmanager
async def served(
    directory: Path, script: Script = succeed, identity: Identity = ALONE, **changes: Any
) -> AsyncIterator[Local]:
    registry = Registry(":memory:")
    registry.set_identity(identity)
    config = settings(vpn_interface="lo", **changes)
    node = Node(registry, lambda: config, lambda: None)
    node.start()
    executor = FakeExecutor(script)
    past = History(":memory:")
    apps = AppHost(registry, Units(FakeSystemd()), lambda: node.peer_id)
    front = UnixFront(node, Service(node, executor, registry, past, apps, lambda: config), lambda: config)
    try:
        async with unix_server(front.accept, directory / "peerd.sock") as path:
            yield Local(path, executor, front, past)
    finally:
        await node.close()
        past.close()
        registry.close()


def test_who_is_not_in_the_group_is_denied_even_where_the_socket_lets_it_in(
    tmp_path: Path, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "is_member", lambda connection: False)

    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            await wire.greet()
            for type_ in ("invoke", "call"):
                denied = await wire.ask(type_, {"argv": EXEC, "command": "deletePeer"})
                assert (denied.type, denied.fields["code"]) == ("error", "denied")
            assert local.executor.requests == []
            assert len(records.of(Event.CALLER_REFUSED)) == 2
            monkeypatch.setattr(refusals, "_MOST", 2)
            assert (await wire.ask("invoke", {"argv": EXEC})).fields["code"] == "denied"
            assert len(records.of(Event.CALLER_REFUSED)) == 2

    asyncio.run(main())


def test_no_stranger_fills_the_journal_with_what_should_not_have_happened(
    tmp_path: Path, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.expect(Event.INTERNAL_ERROR)
    monkeypatch.setattr(refusals, "_MOST", 2)

    async def fail(self: UnixFront, link: object, who: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(UnixFront, "_serve", fail)

    async def main() -> None:
        async with served(tmp_path) as local:
            for _ in range(4):
                async with dialled(local.path) as wire:
                    assert await wire.link.receive() is None
            assert len(records.of(Event.INTERNAL_ERROR)) == 2

    asyncio.run(main())


@dataclass(frozen=True)
class Said:
    """What `d` would have shown, and its exit status."""

    stdout: str
    stderr: str
    status: int


async def asked(wire: Wire, *argv: str) -> Frame:
    """Call a command that runs something: the first frame that is not about which command it is."""
    await wire.link.send("invoke", {"argv": list(argv)})
    frame = await wire.next()
    assert (frame.type, bool(frame.fields["execId"]), frame.fields["step"]) == ("running", True, 1)
    return await wire.next()


async def called(wire: Wire, name: str) -> Mapping[str, Any]:
    """The answer to a call that runs nothing."""
    running = await wire.ask("call", {"command": name, "params": {}})
    assert (running.type, running.fields) == ("running", {"execId": "", "step": 1})
    reply = await wire.next()
    assert reply.type == "reply"
    return reply.fields


async def said(wire: Wire) -> Said:
    """What is to be shown until the exit status comes."""
    streams = {"stdout": b"", "stderr": b""}
    while True:
        frame = await wire.next()
        if frame.type == "exit":
            return Said(streams["stdout"].decode(), streams["stderr"].decode(), int(str(frame.fields["status"])))
        if frame.type == "output":
            streams[str(frame.fields["stream"])] += frame.payload
        else:
            assert frame.type in ("running", "started"), frame


async def invoke(wire: Wire, *argv: str, **fields: Any) -> Said:
    await wire.link.send("invoke", {"argv": list(argv), **fields})
    return await said(wire)


@asynccontextmanager
async def greeted(where: Path) -> AsyncIterator[Wire]:
    async with dialled(where) as wire:
        await wire.greet()
        yield wire


def test_help_goes_to_stdout_with_0(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            shown = await invoke(wire, "help")
            assert (shown.stderr, shown.status) == ("", 0)
            assert shown.stdout.startswith("Usage: d ")

    asyncio.run(main())


def test_help_has_the_width_of_the_callers_terminal(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            narrow = await invoke(wire, "help", width=40)
            assert max(map(len, narrow.stdout.splitlines())) <= 40

    asyncio.run(main())


def test_wrong_usage_goes_to_stderr_with_2(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            shown = await invoke(wire, "xyzzy")
            assert (shown.stdout, shown.status) == ("", 2)
            assert "No such command: 'xyzzy'" in shown.stderr

    asyncio.run(main())


def test_a_detached_command_that_is_taken_back_at_once_is_not_started(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            encoded = [encode("invoke", {"argv": [*EXEC, "--detach"]}), encode("cancel")]
            wire.link.post_encoded(b"".join(encoded))
            shown = await said(wire)
            assert (shown.status, local.executor.requests) == (130, [])
            assert shown.stderr.startswith("Cancelled: ")

    asyncio.run(main())


def test_one_connection_serves_one_command_after_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            for _ in range(3):
                assert await invoke(wire, "version") == Said(f"{__version__}\n", "", 0)
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_hello_and_command_may_come_in_one_piece(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            wire.link.post_encoded(
                b'{"type":"hello","protocol":1,"version":"d"}\n{"type":"invoke","argv":["version"]}\n'
            )
            await wire.link.expect("hello")
            assert await said(wire) == Said(f"{__version__}\n", "", 0)

    asyncio.run(main())


def test_a_machine_without_a_role_lists_no_peers_and_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            shown = await invoke(wire, "listPeers")
            assert (shown.stdout, shown.status) == ("", 255)
            assert shown.stderr == PeerdError(Code.NO_ROLE).text

    asyncio.run(main())


@pytest.mark.parametrize(
    ("argv", "fields", "as_json"),
    [
        (["listPeers"], {}, True),
        (["listPeers"], {"terminal": False}, True),
        (["listPeers"], {"terminal": True}, False),
        (["listPeers", "--json"], {"terminal": True}, True),
    ],
    ids=str,
)
def test_data_is_json_unless_a_terminal_shows_it(
    tmp_path: Path, argv: list[str], fields: dict[str, Any], as_json: bool
) -> None:
    async def main() -> None:
        async with served(tmp_path, identity=LEADER) as local, greeted(local.path) as wire:
            shown = await invoke(wire, *argv, **fields)
            assert (shown.stderr, shown.status) == ("", 0)
            if as_json:
                (peer,) = json.loads(shown.stdout)
                assert list(peer)[:7] == [
                    *("peer_id", "ip_address", "mac_address", "hostname", "last_seen", "is_online", "daemon_version")
                ]
                assert (peer["peer_id"], peer["ip_address"], peer["is_online"]) == ("here", "127.0.0.1", True)
            else:
                assert shown.stdout.startswith("PEER ID  IP ADDRESS")

    asyncio.run(main())


def test_a_command_on_this_machine_streams_and_ends_with_its_own_status(tmp_path: Path) -> None:
    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        await sink.started()
        await sink.output("stdout", b"out\n")
        await sink.output("stderr", b"err\n")
        return ExecResult(Outcome.EXITED, 7)

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as wire:
            assert await invoke(wire, *EXEC, "--timeout", "5") == Said("out\n", "err\n", 7)
            ((request, caller),) = local.executor.requests
            assert (request.directory, request.shell_cmd, request.timeout) == ("/tmp", "make", 5.0)
            assert caller == f"{USER}@here"

    asyncio.run(main())


def test_output_comes_before_the_command_has_ended(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        await sink.output("stdout", b"early")
        await go_on.wait()
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as wire:
            frame = await asked(wire, *EXEC)
            assert (frame.type, frame.payload) == ("output", b"early")
            go_on.set()
            assert await said(wire) == Said("", "", 0)

    asyncio.run(main())


def test_what_went_wrong_is_said_on_stderr_with_its_status(tmp_path: Path) -> None:
    error = PeerdError(Code.TIMEOUT, peer="here", seconds="30")

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        return ExecResult.failure(error)

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as wire:
            assert await invoke(wire, *EXEC) == Said("", error.text, 124)

    asyncio.run(main())


def test_each_command_has_an_id_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            for _ in range(20):
                await invoke(wire, *EXEC)
            assert len({request.exec_id for request, _ in local.executor.requests}) == 20

    asyncio.run(main())


def test_cancel_stops_the_command_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, until_cancelled) as local, greeted(local.path) as wire:
            assert (await asked(wire, *EXEC)).type == "started"
            await wire.link.send("cancel")
            assert await said(wire) == Said("", PeerdError(Code.CANCELLED, peer="here").text, 130)
            assert await invoke(wire, "version") == Said(f"{__version__}\n", "", 0)

    asyncio.run(main())


def test_a_cancel_that_comes_too_late_is_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            assert (await invoke(wire, *EXEC)).status == 0
            await wire.link.send("cancel")
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_caller_that_goes_stops_its_command(tmp_path: Path, how: str) -> None:
    over = asyncio.Event()

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        result = await until_cancelled(request, caller, sink, cancel)
        over.set()
        return result

    async def main() -> None:
        async with served(tmp_path, script) as local:
            async with greeted(local.path) as wire:
                await asked(wire, *EXEC)
                if how == "close":
                    wire.link.close()
                else:
                    wire.link.abort()
            await over.wait()

    asyncio.run(main())


def test_a_running_command_answers_pings(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, until_cancelled) as local, greeted(local.path) as wire:
            assert (await asked(wire, *EXEC)).type == "started"
            assert (await wire.ask("ping")).type == "pong"
            await wire.link.send("cancel")
            assert (await said(wire)).status == 130

    asyncio.run(main())


def test_a_second_command_beside_a_running_one_is_refused_and_stops_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, until_cancelled) as local, greeted(local.path) as wire:
            assert (await asked(wire, *EXEC)).type == "started"
            refused = await wire.ask("invoke", {"argv": ["version"]})
            assert (refused.type, refused.fields["code"]) == ("error", "bad-message")
            assert (await said(wire)).status == 130

    asyncio.run(main())


def test_a_call_is_answered_with_its_data(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, identity=LEADER) as local, greeted(local.path) as wire:
            status = await called(wire, "getPeerStatus")
            assert isinstance(status["data"], dict)
            assert list(status["data"])[:6] == [
                *("role", "peer_id", "leader_address", "is_leader", "connected_to_leader", "connected_workers")
            ]
            assert (status["data"]["role"], status["status"]) == ("leader", 0)
            version = await called(wire, "version")
            assert (version["text"], version["data"]) == (__version__, None)

    asyncio.run(main())


def test_a_call_that_failed_is_answered_with_its_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            reply = await called(wire, "listPeers")
            assert (reply["status"], reply["error"]["code"]) == (255, "no-role")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "command is missing"),
        ({"command": "xyzzy"}, "no such command"),
        ({"command": "help"}, "no such command"),
        ({"command": ["ping"]}, "no such command"),
        ({"command": {}}, "no such command"),
        ({"command": 1}, "no such command"),
        ({"command": "ping", "params": {"per": "vps"}}, "per"),
        ({"command": "execOnPeer", "params": {"peer": "vps"}}, "directory"),
        ({"command": "execOnPeer"}, "directory"),
        ({"command": "ping", "params": {"peer": "a b"}}, "not a valid peer id"),
        ({"command": "ping", "params": {"peer": ["vps"]}}, "not a valid peer id"),
        ({"command": "ping", "params": {"peer": None}}, "not a valid peer id"),
        ({"command": "setPeerConfig", "params": {"role": "boss"}}, "must be one of leader, worker"),
        ({"command": "setPeerConfig", "params": {"role": []}}, "must be one of leader, worker"),
        ({"command": "ping", "params": [1]}, "params"),
        ({"command": "ping", "params": "x"}, "params"),
    ],
    ids=str,
)
def test_a_call_for_what_there_is_not_is_an_error(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            refused = await wire.ask("call", fields)
            assert refused.type == "error"
            assert words in str(refused.fields["message"])
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"argv": None},
        {"argv": "help"},
        {"argv": [1]},
        {"argv": ["a\0b"]},
        {"argv": ["\ud800"]},
        {"argv": ["x"] * 20_000},
        {"argv": [], "width": 1},
        {"argv": [], "width": "80"},
        {"argv": [], "width": 10**6},
        {"argv": [], "terminal": 1},
    ],
    ids=lambda fields: ascii(fields)[:30],
)
def test_an_invocation_out_of_bounds_is_an_error(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            refused = await wire.ask("invoke", fields)
            assert (refused.type, refused.fields["code"]) == ("error", "bad-message")
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("depth", [100, 900, 940, 960, 970, 980, 985])
@pytest.mark.parametrize("where", ["command", "params"])
def test_a_call_that_is_nested_deeply_is_an_error_of_its_sender(tmp_path: Path, where: str, depth: int) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            nested = "[" * depth + "]" * depth
            fields = nested if where == "command" else f'"ping","params":{{"peer":{nested}}}'
            wire.link.post_encoded(f'{{"type":"call","command":{fields}}}\n'.encode())
            refused = await wire.next()
            assert refused.type == "error"
            assert refused.fields["code"] in ("bad-message", "usage")

    asyncio.run(main())


def test_an_unknown_message_is_an_error_and_the_connection_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            refused = await wire.ask("startApp\x1b[31m")
            assert (refused.type, refused.fields["code"]) == ("error", "unknown-message")
            assert str(refused.fields["message"]).isprintable()
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\n", b"{}\n", b'{"type":"invoke"\n', b'{"type":"x","size":-1}\n', b"\xff\xfe\n"],
)
@pytest.mark.parametrize("greet", [False, True])
def test_bytes_that_are_no_frame_get_an_error_and_the_end(
    tmp_path: Path, records: Journal, garbage: bytes, greet: bool
) -> None:
    async def main() -> None:
        async with served(tmp_path) as local:
            async with dialled(local.path) as wire:
                if greet:
                    await wire.greet()
                wire.link.post_encoded(garbage)
                refused = await wire.next()
                assert (refused.type, refused.fields["code"]) == ("error", "bad-message")
                await wire.end()
            assert [record.message.split(":")[0] for record in records.of(Event.PROTOCOL_ERROR)] == [USER]
            async with greeted(local.path) as wire:
                assert (await invoke(wire, "version")).status == 0

    asyncio.run(main())


@pytest.mark.parametrize("part", [b"{", b'{"type":"hello","protocol":1}\n{"ty', b'{"type":"x","size":3}\n'])
def test_a_caller_that_goes_in_the_middle_of_a_frame_harms_nobody(tmp_path: Path, part: bytes) -> None:
    async def main() -> None:
        async with served(tmp_path) as local:
            async with dialled(local.path) as wire:
                wire.link.post_encoded(part)
                wire.link.close()
            async with dialled(local.path) as wire:
                wire.link.post_encoded(part)
                await wire.link.drain()
                wire.link.abort()
            async with greeted(local.path) as wire:
                assert (await invoke(wire, "version")).status == 0

    asyncio.run(main())


def test_a_caller_that_does_not_greet_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            refused = await wire.ask("invoke", {"argv": ["version"]})
            assert "'hello' was due" in str(refused.fields["message"])
            await wire.end()

    asyncio.run(main())


def test_a_caller_of_another_protocol_is_told_both_versions(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            refused = await wire.ask("hello", {"protocol": PROTOCOL_VERSION + 1, "version": "9"})
            assert refused.fields["code"] == "version"
            assert refused.fields["details"] == {"theirs": str(PROTOCOL_VERSION + 1), "ours": str(PROTOCOL_VERSION)}
            await wire.end()

    asyncio.run(main())


def test_a_connection_too_many_is_told_so_and_the_others_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, max_connections=1) as local, greeted(local.path) as first:
            async with dialled(local.path) as second:
                refused = await second.next()
                assert refused.fields["code"] == "busy"
                await second.end()
            assert (await first.ask("ping")).type == "pong"

    asyncio.run(main())


def test_a_fault_of_our_own_is_recorded_and_answered_and_the_connection_goes_on(
    tmp_path: Path, records: Journal
) -> None:
    records.expect(Event.INTERNAL_ERROR)

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        raise ZeroDivisionError("a fault\nof our own")

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as wire:
            answer = await asked(wire, *EXEC)
            assert (answer.type, answer.fields["code"]) == ("error", "internal")
            assert "ZeroDivisionError" in str(answer.fields["message"])
            assert (await wire.ask("ping")).type == "pong"
            (record,) = records.of(Event.INTERNAL_ERROR)
            assert "in script" in record.message

    asyncio.run(main())


def test_a_caller_that_does_not_read_holds_up_only_its_own_command(tmp_path: Path) -> None:
    sent = 0
    chunk = bytes(64 * 1024)

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        nonlocal sent
        if request.shell_cmd == "make":
            while sent < 100:
                await sink.output("stdout", chunk)
                sent += 1
        return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(tmp_path, script) as local, greeted(local.path) as slow, greeted(local.path) as other:
            await slow.link.send("invoke", {"argv": EXEC})
            for _ in range(5):
                assert (await invoke(other, *EXEC[:-1], "true")).status == 0
            assert sent < 50
            shown = await said(slow)
            assert (len(shown.stdout), shown.status) == (100 * len(chunk), 0)

    asyncio.run(main())


def test_closing_ends_all_connections(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, until_cancelled) as local, greeted(local.path) as idle, greeted(local.path) as busy:
            await asked(busy, *EXEC)
            await local.front.close()
            await idle.end()
            await busy.end()

    asyncio.run(main())


def test_a_call_can_give_all_that_the_command_line_can(tmp_path: Path) -> None:
    params = {
        "peer": "here",
        "directory": "/tmp",
        "argv": ["cat", "-n"],
        "env": ["A=1", "B=2=3"],
        "user": "ann",
        "login": True,
        "memory": "1M",
        "cpu": 50,
        "tasks": 3,
        "timeout": 1.5,
    }

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            peer = (await called(wire, "getPeerStatus"))["data"]
            await wire.link.send("call", {"command": "execOnPeer", "params": {**params, "peer": peer["peer_id"]}})
            while (frame := await wire.link.receive()) and frame.type != "reply":
                pass
            ((request, _),) = local.executor.requests
            assert (request.argv, request.env) == (("cat", "-n"), {"A": "1", "B": "2=3"})
            assert (request.memory, request.cpu, request.tasks, request.timeout) == (1024**2, 50, 3, 1.5)
            assert (request.user, request.login) == ("ann", True)
            out_of_bounds: list[dict[str, object]] = [{"env": "A=1"}, {"env": ["A"]}, {"argv": []}, {"argv": "ls"}]
            out_of_bounds += [{"login": "yes"}, {"more": 1}]
            for wrong in out_of_bounds:
                assert (
                    await wire.ask("call", {"command": "execOnPeer", "params": {**params, **wrong}})
                ).type == "error"

    asyncio.run(main())


def test_the_end_of_what_is_printed_of_a_log_tells_how_far_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_OUTPUT", 80)
    queries: list[Query] = []

    class Reader:
        async def read(self, query: Query, stops: object) -> AsyncIterator[Batch]:
            queries.append(query)
            yield Batch([], "s=1f;i=1")
            yield Batch([{"time": "now", "priority": 6, "message": "x" * 60}], "s=1f;i=2")

    monkeypatch.setattr(logs, "Reader", Reader)

    async def main() -> None:
        async with served(tmp_path) as local, dialled(local.path) as wire:
            await wire.greet()
            for after in ({}, {"after": "s=1f;i=0"}):
                await wire.link.send("invoke", {"argv": ["log", "--follow"], **after})
                assert (await wire.next()).type == "running"
                frames = [await wire.next() for _ in range(4)]
                assert [frame.fields.get("cursor") for frame in frames] == ["s=1f;i=1", None, "s=1f;i=2", None]
                assert [len(frame.payload) for frame in frames] == [0, 80, len(frames[2].payload), 0]
                assert frames[3].fields == {"status": 0}
            assert [query.after for query in queries] == ["", "s=1f;i=0"]
            bad = await wire.ask("invoke", {"argv": ["log", "--follow"], "after": "-f"})
            assert (bad.type, bad.fields["code"]) == ("error", "bad-message")

    asyncio.run(main())


def test_a_long_history_comes_as_one_array_in_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PORTION", 2)

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            for number in range(5):
                job = Job(f"{number:016x}", "here", "ann@here", "/", "make", "root", False, number + 1)
                local.past.put(history.RAN, "here", job)
            await wire.link.send("invoke", {"argv": ["history", "--json"]})
            pieces = []
            while (frame := await wire.next()).type != "exit":
                pieces += [frame.payload] if frame.type == "output" else []
            assert (frame.fields, len(pieces)) == ({"status": 0}, 4)
            listed = json.loads(b"".join(pieces))
            assert [int(row["exec_id"], 16) for row in listed] == [4, 3, 2, 1, 0]
            assert b"".join(pieces).decode() == json.dumps(listed, indent=2) + "\n"
            table = await invoke(wire, "history", terminal=True)
            assert len(table.stdout.splitlines()) == 6
            assert (await called(wire, "history"))["data"] == listed

    asyncio.run(main())


def test_a_history_that_was_taken_back_does_not_look_whole(tmp_path: Path) -> None:
    async def some() -> AsyncGenerator[list[Record], None]:
        yield [{"exec_id": "1"}]

    async def taken_back(session: Session) -> Answer:
        session.cancel.set()
        return Answer(rows=some())

    async def main() -> None:
        async with served(tmp_path) as local, greeted(local.path) as wire:
            local.front._service._methods["history"] = taken_back
            shown = await invoke(wire, "history", "--json")
            assert (shown.stdout, shown.status) == ('[\n  {\n    "exec_id": "1"\n  }', 130)
            reply = await called(wire, "history")
            assert (reply["data"], reply["status"]) == (None, 130)

    asyncio.run(main())
