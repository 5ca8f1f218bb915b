"""The TCP socket: who may do what, over real connections that come through an interface."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from peerd import fronts, hub, messages, network, protocol, refusals, tcpfront, validate
from peerd.answer import Batch
from peerd.app import App
from peerd.apphost import AppHost
from peerd.bookreader import receive_book
from peerd.config import Mode
from peerd.errors import Code, Outcome, PeerdError
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult, Offsets
from peerd.node import Node
from peerd.peers import Peer
from peerd.policy import Policy, Rule
from peerd.protocol import PROTOCOL_VERSION, Frame
from peerd.records import Query
from peerd.registry import Identity, Registry
from peerd.session import Caller, Session, Sink
from peerd.tcpfront import TcpFront
from peerd.units import Units
from unit.fake_systemd import FakeSystemd, FakeUnit
from unit.support import (
    EXEC_ID,
    FakeExecutor,
    FakePeers,
    Journal,
    Script,
    Wire,
    dialled,
    key_table,
    linked,
    registration,
    settings,
    tcp_server,
)

LEADER = Identity("leader", "vps", "")
LAPTOP = Peer("laptop", "127.0.0.4", public_key="")
EXEC: dict[str, object] = {"execId": EXEC_ID, "directory": "/tmp", "shellCmd": "make", "timeout": 5}


async def succeed(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
    return ExecResult(Outcome.EXITED, 0)


async def until_cancelled(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
    await sink.started()
    await cancel.wait()
    return ExecResult.failure(PeerdError(Code.CANCELLED, peer="vps"))


@pytest.fixture(autouse=True)
def _vpn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback takes the VPN's place: all of its addresses but the first are other machines'."""

    async def public_keys(interface: str) -> network.KeyTable:
        return key_table({f"127.0.0.{number}": f"key of 127.0.0.{number}" for number in range(20)})

    monkeypatch.setattr(network, "is_own_address", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(network, "public_keys", public_keys)
    monkeypatch.setattr(hub, "_KEYS_APART", 0.0)
    # Whoever runs the tests need not be root.
    monkeypatch.setattr(network, "RESERVED_BELOW", 65536)


@dataclass
class Remote:
    """A daemon's TCP side."""

    port: int
    executor: FakeExecutor
    node: Node
    registry: Registry
    front: TcpFront


@asynccontextmanager
async def served(
    script: Script = succeed,
    identity: Identity = LEADER,
    packet_info: bool = True,
    interface: str = "lo",
    systemd: FakeSystemd | None = None,
    executor: FakeExecutor | None = None,
    **changes: Any,
) -> AsyncIterator[Remote]:
    """A leader at 127.0.0.1 that knows the peer laptop at 127.0.0.4."""
    registry = Registry(":memory:")
    registry.set_identity(identity)
    registry.store([LAPTOP])
    config = settings(vpn_interface=interface, **changes)
    node = Node(registry, lambda: config, lambda: None)
    node.start()
    executor = executor or FakeExecutor(script)
    apps = AppHost(registry, Units(systemd or FakeSystemd()), lambda: "vps")
    front = TcpFront(node, executor, apps, lambda: config)
    try:
        async with tcp_server(front.accept, packet_info) as port:
            yield Remote(port, executor, node, registry, front)
    finally:
        await node.close()
        registry.close()


async def backlog_of_who_does_not_read(remote: Remote, frame: bytes, count: int, first: bytes = b"") -> int:
    """How many bytes wait for desktop, which sends so many frames and takes no answer.

    :param first: what it sends, and is answered, before
    """
    async with linked() as (near, far):
        serving = asyncio.create_task(remote.front._converse(far, "127.0.0.2"))
        wire = Wire(near)
        await wire.greet()
        if first:
            near.post_encoded(first)
            await wire.next()
        near._transport.pause_reading()
        near.post_encoded(frame * count)
        most = stalled = 0
        while stalled < 100:
            await asyncio.sleep(0)
            stalled = stalled + 1 if far.backlog <= most else 0
            most = max(most, far.backlog)
        serving.cancel()
        await asyncio.wait((serving,))
        return most


@asynccontextmanager
async def greeted(remote: Remote, source: str = "127.0.0.4") -> AsyncIterator[Wire]:
    async with dialled(remote.port, source) as wire:
        await wire.greet()
        yield wire


def test_who_comes_from_a_port_that_any_user_can_have_is_dropped(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "RESERVED_BELOW", 1024)

    async def main() -> None:
        async with served() as remote:
            async with dialled(remote.port, "127.0.0.4") as wire:
                await wire.end()
            (record,) = records.of(Event.CONNECTION_REFUSED)
            assert record.message == "Connection from 127.0.0.4 refused: from a port that any user can have"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({"interface": "wg0"}, "127.0.0.4"),
        ({"packet_info": False}, "127.0.0.4"),
        ({}, "127.0.0.1"),
    ],
    ids=["another interface", "interface not known", "own address"],
)
def test_who_does_not_come_through_the_vpn_is_dropped_without_a_word(
    records: Journal, changes: dict[str, Any], source: str
) -> None:
    async def main() -> None:
        async with served(**changes) as remote:
            async with dialled(remote.port, source) as wire:
                await wire.end()
            (record,) = records.of(Event.CONNECTION_REFUSED)
            assert record.text("address") == source
            assert remote.executor.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        ("execRequest", EXEC),
        ("getPeerInfo", {"peer": "laptop"}),
        ("appRequest", {"command": "listApps"}),
        ("listPeers", {}),
        ("deletePeer", {"peer": "laptop"}),
        ("approvePeer", {"peer": "laptop"}),
        ("rejectPeer", {"peer": "laptop"}),
        ("heartbeat", {}),
        ("ping", {}),
        ("noSuchMessage", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_is_no_peer_gets_no_word_for_anything_but_a_registration(
    records: Journal, type_: str, fields: dict[str, object]
) -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote, "127.0.0.66") as wire:
            await wire.link.send(type_, fields)
            await wire.end()
            (record,) = records.of(Event.CONNECTION_REFUSED)
            assert record.message == "Connection from 127.0.0.66 refused: not a registered peer"
            assert remote.executor.requests == []
            assert {peer.peer_id for peer in remote.registry.peers()} == {"laptop", "vps"}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "event"),
    [(b'{"type":"listJobs"}\n', Event.CONNECTION_REFUSED), (b"garbage\n", Event.PROTOCOL_ERROR)],
    ids=["asks", "breaks the protocol"],
)
def test_a_stranger_who_tries_without_end_is_recorded_no_more_than_so_often(
    records: Journal, monkeypatch: pytest.MonkeyPatch, sent: bytes, event: Event
) -> None:
    monkeypatch.setattr(refusals, "_MOST", 2)

    async def main() -> None:
        async with served() as remote:
            for _ in range(4):
                async with greeted(remote, "127.0.0.66") as wire:
                    wire.link.post_encoded(sent)
                    if event is Event.PROTOCOL_ERROR:
                        await wire.expect("error")
                    await wire.end()
            assert len(records.of(event)) == 2

    asyncio.run(main())


@pytest.mark.parametrize("greets", [False, True])
def test_who_is_no_peer_is_kept_short(records: Journal, greets: bool) -> None:
    long = "a" * protocol.MAX_GREETING

    async def main() -> None:
        async with served() as remote, dialled(remote.port, "127.0.0.66") as wire:
            if greets:
                await wire.greet()
                await wire.link.send("registerPeer", {**registration("phone").to_wire(), "more": long})
            else:
                await wire.link.send("hello", {**messages.hello("test"), "more": long})
            assert "header longer" in str((await wire.next()).fields["message"])
            await wire.end()

    asyncio.run(main())


@pytest.mark.parametrize("registers", [False, True])
def test_a_peer_may_have_much_to_say_from_its_first_request_on(registers: bool) -> None:
    long = {**EXEC, "shellCmd": "#" * validate.MAX_COMMAND}

    async def main() -> None:
        async with served() as remote, greeted(remote, "127.0.0.2" if registers else "127.0.0.4") as wire:
            if registers:
                assert (await wire.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
                await receive_book(wire.link)
            assert (await wire.ask("execRequest", long)).type == "result"

    asyncio.run(main())


def test_what_is_said_to_a_peer_leaves_through_the_interface_that_it_came_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound: list[tuple[int, str]] = []
    bind = network.bind_to

    def note(connection: socket.socket, interface: str) -> None:
        bind(connection, interface)
        bound.append((connection.getpeername()[1], interface))

    monkeypatch.setattr(network, "bind_to", note)

    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            assert bound == [(wire.link.socket.getsockname()[1], "lo")]

    asyncio.run(main())


def test_a_message_cannot_claim_who_sent_it() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote, "127.0.0.66") as wire:
            claim = {**EXEC, "peer": "laptop", "peer_id": "laptop", "address": "127.0.0.4", "ip_address": "127.0.0.4"}
            await wire.link.send("execRequest", claim)
            await wire.end()
            assert remote.executor.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("identity", "changes"),
    [
        (Identity("", "desktop", ""), {}),
        (Identity("worker", "desktop", "127.0.0.9"), {}),
        (LEADER, {"registration": Mode.CLOSED}),
    ],
    ids=["no role", "worker", "closed"],
)
def test_where_nobody_may_register_a_stranger_is_not_even_greeted(
    records: Journal, identity: Identity, changes: dict[str, Any]
) -> None:
    async def main() -> None:
        async with served(identity=identity, **changes) as remote:
            async with dialled(remote.port, "127.0.0.66") as wire:
                await wire.end()
            (record,) = records.of(Event.CONNECTION_REFUSED)
            assert record.message == "Connection from 127.0.0.66 refused: not a registered peer"

    asyncio.run(main())


def test_a_peers_address_with_another_key_behind_it_is_nobodys(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stolen(interface: str) -> network.KeyTable:
        return key_table({"127.0.0.2": "another key"})

    async def main() -> None:
        async with served() as remote:
            async with greeted(remote, "127.0.0.2") as wire:
                assert (await wire.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
            monkeypatch.setattr(network, "public_keys", stolen)
            async with greeted(remote, "127.0.0.2") as wire:
                await wire.link.send("execRequest", EXEC)
                await wire.end()
            assert remote.executor.requests == []
            (record,) = records.of(Event.CONNECTION_REFUSED)
            assert record.message.endswith("its WireGuard key is not the one that it registered with")
            async with greeted(remote, "127.0.0.2") as wire:
                refused = await wire.ask("registerPeer", registration("desktop").to_wire())
                assert refused.fields["code"] == "key-changed"

    asyncio.run(main())


def test_a_machine_that_waits_can_do_nothing_until_it_is_approved(records: Journal) -> None:
    async def main() -> None:
        async with served(registration=Mode.APPROVAL) as remote:
            for _ in range(2):
                async with greeted(remote, "127.0.0.2") as wire:
                    waits = await wire.ask("registerPeer", registration("desktop").to_wire())
                    assert (waits.type, waits.fields["code"]) == ("error", "pending")
                    await wire.link.send("execRequest", EXEC)
                    await wire.end()
            assert remote.executor.requests == []
            assert len(records.of(Event.PEER_PENDING)) == 1
            async with greeted(remote) as wire:
                await wire.link.send("listPeers")
                book = await receive_book(wire.link)
                assert [(claim.peer_id, claim.state) for claim in book.claims] == [("desktop", "pending")]
                assert (await wire.ask("approvePeer", {"peer": "desktop"})).type == "reply"
                assert [record.text("caller") for record in records.of(Event.PEER_APPROVED)] == ["laptop"]
            async with greeted(remote, "127.0.0.2") as wire:
                assert (await wire.ask("registerPeer", registration("desktop").to_wire())).type == "registered"

    asyncio.run(main())


def test_a_command_of_a_peer_runs_and_streams() -> None:
    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        await sink.started()
        await sink.output("stdout", b"\0\xff\n")
        await sink.output("stderr", b"err")
        return ExecResult(Outcome.EXITED, 3, duration_usec=5)

    async def main() -> None:
        async with served(script) as remote, greeted(remote) as wire:
            assert (await wire.ask("execRequest", EXEC)).type == "started"
            out, err, result = [await wire.next() for _ in range(3)]
            assert (out.type, out.fields, out.payload) == ("output", {"stream": "stdout"}, b"\0\xff\n")
            assert (err.type, err.fields, err.payload) == ("output", {"stream": "stderr"}, b"err")
            assert result.type == "result"
            assert ExecResult.from_wire(result.fields) == ExecResult(Outcome.EXITED, 3, duration_usec=5)
            assert remote.executor.requests == [(ExecRequest(EXEC_ID, "/tmp", "make", timeout=5.0), "laptop")]
            assert (await wire.ask("ping")).type == "pong"
            assert remote.executor.heard == []
            await wire.link.send("done")
            assert (await wire.ask("ping")).type == "pong"
            assert remote.executor.heard == [EXEC_ID]

    asyncio.run(main())


def test_a_caller_that_goes_without_having_confirmed_the_result_has_not_heard_it(records: Journal) -> None:
    async def main() -> None:
        async with served() as remote:
            async with greeted(remote) as wire:
                assert (await wire.ask("execRequest", EXEC)).type == "result"
            async with greeted(remote) as wire:
                assert (await wire.ask("attachJob", {"execId": EXEC_ID})).type == "result"
                assert remote.executor.heard == []
                await wire.link.send("done")
                assert (await wire.ask("ping")).type == "pong"
                assert remote.executor.heard == [EXEC_ID]

    asyncio.run(main())


@pytest.mark.parametrize(
    "change", [{"execId": "x"}, {"directory": "tmp"}, {"shellCmd": ""}, {"timeout": -1}, {"action": "rm"}], ids=str
)
def test_a_request_out_of_bounds_is_an_error_and_runs_nothing(change: dict[str, object]) -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            refused = await wire.ask("execRequest", {**EXEC, **change})
            assert refused.fields["code"] == "bad-message"
            assert remote.executor.requests == []
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("depth", [100, 900, 940, 960, 970, 980, 985])
@pytest.mark.parametrize("name", ["execId", "directory", "shellCmd", "timeout", "action"])
def test_a_request_that_is_nested_deeply_is_an_error_of_its_sender(name: str, depth: int) -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            fields = {key: value for key, value in EXEC.items() if key != name}
            rest = "".join(f',"{key}":"{value}"' for key, value in fields.items())
            nested = "[" * depth + "]" * depth
            wire.link.post_encoded(f'{{"type":"execRequest","{name}":{nested}{rest}}}\n'.encode())
            assert (await wire.next()).fields["code"] == "bad-message"
            assert remote.executor.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("owner", "rules", "allowed"),
    [
        ("desktop", Policy(), True),
        ("laptop", Policy(rules=(Rule("some", ("laptop",), users=("ann",)),)), True),
        ("desktop", Policy(rules=(Rule("some", ("laptop",), users=("ann",)),)), False),
        ("root@here", Policy(rules=(Rule("some", ("laptop",), users=("ann",)),)), False),
        ("desktop", Policy(rules=(Rule("all", ("laptop",)),)), True),
        ("laptop", Policy(accept=False), False),
    ],
)
def test_a_peer_deals_with_the_commands_that_the_policy_gives_it(
    owner: str, rules: Policy, allowed: bool, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("0" * 16, "vps", owner, "/", "true", "root", True, 1, ExecResult(Outcome.EXITED, 3))
    monkeypatch.setattr(FakeExecutor, "job", lambda self, exec_id: job)
    monkeypatch.setattr(FakeExecutor, "jobs", lambda self, limit: [job])

    async def main() -> None:
        async with served(policy=rules) as remote, greeted(remote) as wire:
            for message in ("getJob", "cancelJob", "waitJob"):
                monkeypatch.setattr(FakeExecutor, message.removesuffix("Job"), done, raising=False)
                answer = await wire.ask(message, {"execId": job.exec_id})
                assert (answer.type, answer.fields.get("code")) == (("reply", None) if allowed else ("error", "denied"))
            assert (await wire.ask("listJobs")).fields == {"count": 1 if allowed else 0}
        accessed = [(record.text("caller"), record.text("command")) for record in records.of(Event.COMMAND_ACCESSED)]
        assert accessed == ([("laptop", "cancelJob")] if allowed and owner != "laptop" else [])

    async def done(self: FakeExecutor, exec_id: str) -> Job:
        return job

    asyncio.run(main())


def test_cancel_stops_the_command() -> None:
    async def main() -> None:
        async with served(until_cancelled) as remote, greeted(remote) as wire:
            assert (await wire.ask("execRequest", EXEC)).type == "started"
            result = await wire.ask("cancel")
            assert (result.type, result.fields["outcome"]) == ("result", "cancelled")
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_a_cancel_that_comes_too_late_is_nothing() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            assert (await wire.ask("execRequest", EXEC)).type == "result"
            for late in ("done", "cancel", "ack", "stdin"):
                await wire.link.send(late)
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
def test_a_caller_that_is_lost_stops_its_command(how: str) -> None:
    over = asyncio.Event()

    async def script(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        result = await until_cancelled(request, caller, sink, cancel)
        over.set()
        return result

    async def main() -> None:
        async with served(script) as remote, greeted(remote) as wire:
            assert (await wire.ask("execRequest", EXEC)).type == "started"
            if how == "close":
                wire.link.close()
            elif how == "reset":
                wire.reset()
            else:
                wire.link.post_encoded(b"garbage\n")
            await over.wait()

    asyncio.run(main())


def test_an_unknown_message_is_an_error_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            refused = await wire.ask("restartDaemon\n")
            assert (refused.type, refused.fields["code"]) == ("error", "unknown-message")
            assert refused.fields["details"] == {"name": r"restartDaemon\n"}
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"protocol": PROTOCOL_VERSION + 1, "version": "9"}, "version"),
        ({}, "bad-message"),
        ({"protocol": "1"}, "bad-message"),
        ({"protocol": PROTOCOL_VERSION, "boot": 1}, "bad-message"),
    ],
    ids=str,
)
def test_a_greeting_that_is_none_gets_an_error_and_the_end(
    records: Journal, hello: dict[str, object], code: str
) -> None:
    async def main() -> None:
        async with served() as remote, dialled(remote.port, "127.0.0.4") as wire:
            assert (await wire.ask("hello", hello)).fields["code"] == code
            await wire.end()
            (record,) = records.of(Event.PROTOCOL_ERROR)
            assert record.message.startswith("127.0.0.4: ")

    asyncio.run(main())


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x02\0\n", b'{"type":"hello"}}\n'])
def test_bytes_that_are_no_frame_get_an_error_and_the_end(garbage: bytes) -> None:
    async def main() -> None:
        async with served() as remote:
            async with dialled(remote.port, "127.0.0.4") as wire:
                wire.link.post_encoded(garbage)
                assert (await wire.next()).fields["code"] == "bad-message"
                await wire.end()
            async with greeted(remote) as wire:
                assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_garbage_from_who_is_gone_already_harms_nobody(records: Journal) -> None:
    async def main() -> None:
        async with served() as remote:
            async with greeted(remote) as wire:
                assert (await wire.ask("ping")).type == "pong"
                wire.link.post_encoded(b"garbage\n")
                wire.reset()
            async with greeted(remote) as wire:
                assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_a_peer_is_told_of_another_by_id_or_by_address() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            for fields in ({"peer": "laptop"}, {"address": "127.0.0.4"}):
                assert Peer.from_wire((await wire.ask("getPeerInfo", dict(fields))).fields) == LAPTOP
            missed = (await wire.ask("getPeerInfo", {"peer": "lapto"})).fields
            # To look for what is like it would hold up everybody.
            assert (missed["code"], missed["details"]) == ("peer-not-found", {"peer": "lapto", "suggestion": ""})
            assert (await wire.ask("getPeerInfo", {"address": "127.0.0.9"})).fields["code"] == "peer-not-found"
            assert (await wire.ask("getPeerInfo", {})).fields["code"] == "bad-message"
            assert (await wire.ask("getPeerInfo", {"address": "vps"})).fields["code"] == "bad-message"

    asyncio.run(main())


def test_the_leader_is_there_whenever_somebody_asks() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            remote.node.book.see("vps", 1.0)
            await wire.link.send("listPeers")
            listed = (await receive_book(wire.link)).by_id("vps")
            remote.node.book.see("vps", 1.0)
            asked = Peer.from_wire((await wire.ask("getPeerInfo", {"peer": "vps"})).fields)
            for vps in (listed, asked):
                assert vps is not None
                assert vps.last_seen == pytest.approx(time.time(), abs=60)

    asyncio.run(main())


def test_a_peer_is_told_of_all() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            await wire.link.send("listPeers")
            assert [peer.peer_id for peer in (await receive_book(wire.link)).all()] == ["vps", "laptop"]

    asyncio.run(main())


REGISTRATION = protocol.encode("registerPeer", registration("desktop").to_wire())


@pytest.mark.parametrize(
    ("frame", "count", "first"),
    [
        (protocol.encode("listPeers"), 2000, REGISTRATION),
        (protocol.encode("heartbeat"), 20_000, REGISTRATION),
        (protocol.encode("ping"), 20_000, REGISTRATION),
        (protocol.encode("ping"), 20_000, REGISTRATION + protocol.encode("execRequest", EXEC)),
        (REGISTRATION, 1000, b""),
    ],
    ids=["listPeers", "heartbeat", "ping", "ping to a command", "registerPeer"],
)
def test_who_asks_and_does_not_read_is_answered_at_its_pace(
    records: Journal, monkeypatch: pytest.MonkeyPatch, frame: bytes, count: int, first: bytes
) -> None:
    monkeypatch.setattr(fronts, "_MAX_BACKLOG", 50_000)

    async def main() -> None:
        async with served(until_cancelled) as remote:
            assert await backlog_of_who_does_not_read(remote, frame, count, first) < 100_000

    asyncio.run(main())


def test_a_peer_deletes_another_but_not_the_leader(records: Journal) -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            assert (await wire.ask("deletePeer", {"peer": "vps"})).fields["code"] == "self-delete"
            assert (await wire.ask("deletePeer", {"peer": "phone"})).fields["code"] == "peer-not-found"
            assert (await wire.ask("deletePeer", {"peer": "laptop"})).type == "reply"
            assert remote.node.book.by_id("laptop") is None
            assert [record.text("caller") for record in records.of(Event.PEER_DELETED)] == ["laptop"]
            # From now on it is nobody.
            await wire.link.send("listPeers")
            await wire.end()

    asyncio.run(main())


def test_only_the_registrys_admins_change_it() -> None:
    async def main() -> None:
        async with served(policy=Policy(registry_admins=())) as remote, greeted(remote) as wire:
            for type_ in ("deletePeer", "approvePeer", "rejectPeer"):
                denied = await wire.ask(type_, {"peer": "laptop"})
                assert (denied.type, denied.fields["code"]) == ("error", "denied")
            assert remote.node.book.by_id("laptop") is not None

    asyncio.run(main())


def test_a_worker_registers_beats_and_goes() -> None:
    async def main() -> None:
        async with served() as remote:
            async with greeted(remote, "127.0.0.2") as wire:
                assert (await wire.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
                book = await receive_book(wire.link)
                assert [peer.peer_id for peer in book.all()] == ["vps", "desktop", "laptop"]
                desktop = book.by_id("desktop")
                assert desktop is not None
                assert (desktop.ip_address, desktop.public_key) == ("127.0.0.2", "key of 127.0.0.2")
                assert desktop.is_online
                assert (await wire.ask("heartbeat")).type == "heartbeat"
                assert (await wire.ask("ping")).type == "pong"
            async with greeted(remote) as wire:
                gone = Peer.from_wire((await wire.ask("getPeerInfo", {"peer": "desktop"})).fields)
                assert not gone.is_online

    asyncio.run(main())


def test_a_worker_may_run_commands_over_the_connection_that_it_registered_on() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote, "127.0.0.2") as wire:
            assert (await wire.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
            await receive_book(wire.link)
            assert (await wire.ask("execRequest", EXEC)).type == "result"
            assert [caller for _, caller in remote.executor.requests] == ["desktop"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("claim", "source", "code"),
    [
        (registration("laptop").to_wire(), "127.0.0.2", "id-taken"),
        (registration("phone").to_wire(), "127.0.0.4", "address-taken"),
        (registration("vps").to_wire(), "127.0.0.2", "id-taken"),
        ({"peer_id": "a b"}, "127.0.0.2", "bad-message"),
        ({}, "127.0.0.2", "bad-message"),
        (registration("nas", hostname="\udcff").to_wire(), "127.0.0.2", "bad-message"),
    ],
    ids=["id", "address", "leader", "bad", "empty", "no text"],
)
def test_a_registration_that_is_refused_says_why(claim: dict[str, object], source: str, code: str) -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote, source) as wire:
            refused = await wire.ask("registerPeer", claim)
            assert (refused.type, refused.fields["code"]) == ("error", code)
            assert remote.node.hub is not None
            assert remote.node.hub.workers == 0

    asyncio.run(main())


def test_who_is_no_leader_takes_no_registration_and_keeps_no_registry() -> None:
    async def main() -> None:
        async with served(identity=Identity("worker", "desktop", "127.0.0.9")) as remote:
            assert remote.node.link is not None
            remote.node.link.book.put(LAPTOP)
            async with greeted(remote) as wire:
                refused = await wire.ask("registerPeer", registration("laptop").to_wire())
                assert refused.fields["code"] == "not-leader"
            assert remote.registry.claims() == []

    asyncio.run(main())


def test_what_only_a_leader_answers_is_unknown_to_others() -> None:
    async def main() -> None:
        async with served(identity=Identity("worker", "desktop", "127.0.0.9")) as remote:
            assert remote.node.link is not None
            remote.node.link.book.put(LAPTOP)
            async with greeted(remote) as wire:
                for type_ in ("listPeers", "deletePeer", "approvePeer", "rejectPeer", "heartbeat"):
                    assert (await wire.ask(type_, {"peer": "laptop"})).fields["code"] == "unknown-message"
                assert (await wire.ask("execRequest", EXEC)).type == "result"

    asyncio.run(main())


def test_a_worker_that_was_started_just_now_knows_who_comes_back_once_its_leader_has_told_it() -> None:
    async def main() -> None:
        async with FakePeers().serving() as leader:
            worker = Identity("worker", "desktop", "127.0.0.1")
            async with (
                served(identity=worker, port=leader.port) as remote,
                dialled(remote.port, "127.0.0.4") as wire,
            ):
                wire.link.post("hello", messages.hello("test"))
                await wire.link.send("execRequest", EXEC)
                await book_told(leader, LAPTOP)
                assert (await wire.next()).type == "hello"
                assert (await wire.next()).type == "result"
                assert [caller for _, caller in remote.executor.requests] == ["laptop"]

    asyncio.run(main())


async def book_told(leader: FakePeers, *peers: Peer) -> Wire:
    """Let a worker register, and tell it of these peers; the connection over which it did."""
    registering = await leader.links.get()
    await registering.expect("registerPeer")
    registering.link.post("registered", {"peer_id": "desktop"})
    registering.link.post("reply", {"count": len(peers)})
    registering.link.post("peers", {"peers": [peer.to_wire() for peer in peers]})
    return registering


@pytest.mark.parametrize("told", ["before", "meanwhile"])
def test_a_stranger_has_few_connections_also_while_a_worker_asks_its_leader_about_it(
    records: Journal, told: str
) -> None:
    most = tcpfront._OF_A_STRANGER

    async def main() -> None:
        async with FakePeers().serving() as leader, AsyncExitStack() as stack:
            worker = Identity("worker", "desktop", "127.0.0.1")
            remote = await stack.enter_async_context(served(identity=worker, port=leader.port))
            if told == "before":
                await book_told(leader, LAPTOP)
                assert remote.node.link
                await remote.node.link.outcome(5.0)
            dialling = (dialled(remote.port, "127.0.0.66") for _ in range(most + 10))
            wires = [await stack.enter_async_context(wire) for wire in dialling]
            if told == "meanwhile":
                await book_told(leader, LAPTOP)
            for wire in wires[most:]:
                await wire.end()
            for _ in range(most):
                await (await leader.links.get()).expect("getPeerInfo")
            assert leader.accepted == 1 + most
            assert all(wire.link.usable for wire in wires[:most])

    asyncio.run(main())


def test_a_peer_that_was_cut_off_comes_back_with_all_its_connections_before_the_leader_has_told_of_it() -> None:
    async def main() -> None:
        async with FakePeers().serving() as leader, AsyncExitStack() as stack:
            worker = Identity("worker", "desktop", "127.0.0.1")
            remote = await stack.enter_async_context(served(identity=worker, port=leader.port))
            dialling = (dialled(remote.port, "127.0.0.4") for _ in range(2 * tcpfront._OF_A_STRANGER))
            wires = [await stack.enter_async_context(wire) for wire in dialling]
            await book_told(leader, LAPTOP)
            for wire in wires:
                await wire.greet()

    asyncio.run(main())


def test_a_worker_whose_leader_is_away_knows_nobody(records: Journal) -> None:
    async def main() -> None:
        async with FakePeers().serving() as leader:
            worker = Identity("worker", "desktop", "127.0.0.1")
            async with (
                served(identity=worker, port=leader.port) as remote,
                dialled(remote.port, "127.0.0.4") as wire,
            ):
                wire.link.post("hello", messages.hello("test"))
                (await leader.links.get()).reset()
                await wire.end()
        (record,) = records.of(Event.CONNECTION_REFUSED)
        assert record.message == "Connection from 127.0.0.4 refused: not a registered peer"

    asyncio.run(main())


@asynccontextmanager
async def busy(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AsyncIterator[tuple[Remote, list[Wire]]]:
    """A machine, and the connections over which laptop runs a command, follows the log and waits."""

    class Endless:
        async def read(self, query: Query, stops: Sequence[asyncio.Event], peer: str) -> AsyncIterator[Batch]:
            yield Batch([])
            await stops[1].wait()

    monkeypatch.setattr(tcpfront, "Reader", Endless)
    async with (
        served(until_cancelled, **changes) as remote,
        greeted(remote) as running,
        greeted(remote) as following,
        greeted(remote) as waiting,
    ):
        assert (await running.ask("execRequest", EXEC)).type == "started"
        assert (await following.ask("getLog", {"follow": True})).type == "records"
        assert (await waiting.ask("ping")).type == "pong"
        yield remote, [running, following, waiting]


@pytest.mark.parametrize("how", ["deletePeer", "rejectPeer"])
def test_the_connections_of_a_peer_end_with_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with busy(monkeypatch) as (remote, wires), greeted(remote, "127.0.0.2") as other:
            assert (await other.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
            await receive_book(other.link)
            async with greeted(remote, "127.0.0.2") as asking:
                assert (await asking.ask(how, {"peer": "laptop"})).type == "reply"
                for wire in wires:
                    await wire.end()
                assert (await asking.ask("ping")).type == "pong"
            assert other.link.usable

    asyncio.run(main())


def test_a_peer_that_deletes_itself_has_the_answer() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            assert (await wire.ask("deletePeer", {"peer": "laptop"})).type == "reply"
            await wire.link.send("ping")
            await wire.end()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["removed", "missing", "this machine deleted"])
def test_the_connections_of_who_is_no_peer_any_more_end_on_workers(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        vps, worker = Peer("vps", "127.0.0.1"), Identity("worker", "desktop", "127.0.0.1")
        heard = asyncio.Event()
        async with FakePeers().serving() as leader:
            admitting = asyncio.create_task(book_told(leader, LAPTOP, vps))
            async with busy(monkeypatch, identity=worker, port=leader.port) as (remote, wires):
                link = (await admitting).link
                # The same again, and news of others, are no reason to end anything.
                link.close()
                link = (await book_told(leader, LAPTOP)).link
                remote.node._tell = lambda: heard.set() if remote.node.book.by_id("vps") else None
                link.post("peers", {"peers": [vps.to_wire()]})
                await heard.wait()
                for wire in wires:
                    assert (await wire.ask("ping")).type == "pong"
                if how == "removed":
                    link.post("peerRemoved", {"peer_id": "laptop"})
                elif how == "missing":
                    link.close()
                    await book_told(leader, vps)
                else:
                    link.post("error", PeerdError(Code.DELETED, peer="desktop").to_wire())
                for wire in wires:
                    await wire.end()

    asyncio.run(main())


def test_the_peers_of_one_leader_keep_their_connections_when_a_machine_goes_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with FakePeers().serving() as leader:
            admitting = asyncio.create_task(book_told(leader, LAPTOP))
            worker = Identity("worker", "desktop", "127.0.0.3")
            async with busy(monkeypatch, identity=worker, port=leader.port) as (remote, wires):
                await admitting
                moving = asyncio.create_task(remote.node.become(replace(worker, leader_address="127.0.0.5")))
                await book_told(leader, Peer("vps", "127.0.0.5"))
                assert await moving is None
                for wire in wires[:2]:
                    assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


JOB = Job(EXEC_ID, "vps", "laptop", "/tmp", "make", "root", True, 5)


@pytest.mark.parametrize(
    ("owner", "detached", "recorded"), [("laptop", False, []), ("laptop", True, []), ("desktop", True, ["attachJob"])]
)
def test_a_peer_attaches_to_its_own_command_or_to_a_detached_one_and_that_is_recorded(
    owner: str, detached: bool, recorded: list[str], records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attached(owner, detached, monkeypatch) == "result"
    assert [record.text("command") for record in records.of(Event.COMMAND_ACCESSED)] == recorded


def test_a_peer_does_not_attach_to_what_another_one_waits_for(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attached("desktop", False, monkeypatch) == "not-detached"
    assert not records.of(Event.COMMAND_ACCESSED)


def attached(owner: str, detached: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What laptop gets when it attaches to a command: the type of the answer, or the code of an error."""
    job = replace(JOB, caller=owner, detached=detached, result=ExecResult(Outcome.EXITED, 3))
    monkeypatch.setattr(FakeExecutor, "job", lambda self, exec_id: job)

    async def attend(self: FakeExecutor, exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        return ExecResult(Outcome.EXITED, 3)

    monkeypatch.setattr(FakeExecutor, "attend", attend)

    async def main() -> str:
        async with served() as remote, greeted(remote) as wire:
            frame = await wire.ask("attachJob", {"execId": EXEC_ID})
            return str(frame.fields.get("code", frame.type))

    return asyncio.run(main())


class Jobs(FakeExecutor):
    """An executor with one job that runs until it is let go or cancelled."""

    def __init__(self) -> None:
        super().__init__(succeed)
        self.over, self.waiting = asyncio.Event(), asyncio.Event()
        self.cancelled = False

    def job(self, exec_id: str) -> Job:
        if exec_id != EXEC_ID:
            raise PeerdError(Code.NO_SUCH_JOB, exec_id=exec_id)
        return replace(JOB, result=ExecResult(Outcome.EXITED, 3)) if self.over.is_set() else JOB

    def jobs(self, limit: int) -> list[Job]:
        return [replace(JOB, exec_id=f"{number:016x}") for number in range(40)][:limit]

    async def attend(self, exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        return self.job(exec_id).result or ExecResult(Outcome.EXITED, 0)

    async def wait(self, exec_id: str) -> Job:
        self.waiting.set()
        await self.over.wait()
        return self.job(exec_id)

    async def cancel(self, exec_id: str) -> Job:
        self.cancelled = True
        self.over.set()
        return await self.wait(exec_id)


@asynccontextmanager
async def with_jobs() -> AsyncIterator[tuple[Jobs, Remote]]:
    executor = Jobs()
    async with served(executor=executor) as remote:
        yield executor, remote


def test_a_job_is_told_of_waited_for_and_cancelled() -> None:
    async def main() -> None:
        async with with_jobs() as (executor, remote), greeted(remote) as wire, greeted(remote) as other:
            told = await wire.ask("getJob", {"execId": EXEC_ID})
            assert (told.type, Job.from_wire(told.fields["job"])) == ("reply", JOB)
            await wire.link.send("waitJob", {"execId": EXEC_ID})
            await executor.waiting.wait()
            # Who waits is answered when it asks for a sign of life.
            assert (await wire.ask("ping")).type == "pong"
            ended = Job.from_wire((await other.ask("cancelJob", {"execId": EXEC_ID})).fields["job"])
            assert executor.cancelled
            assert ended.result is not None
            assert Job.from_wire((await wire.next()).fields["job"]) == ended
            for asking in (wire, other):
                assert (await asking.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("type_", ["getJob", "waitJob", "cancelJob", "attachJob"])
def test_a_job_that_there_is_not_or_cannot_be_is_an_error(type_: str) -> None:
    async def main() -> None:
        async with with_jobs() as (executor, remote), greeted(remote) as wire:
            executor.over.set()
            for fields, code in (({"execId": "1" * 16}, "no-such-job"), ({"execId": "../x"}, "bad-message")):
                refused = await wire.ask(type_, dict(fields))
                assert (refused.type, refused.fields["code"]) == ("error", code)
            assert (await wire.ask(type_)).fields["code"] == "bad-message"
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_goes_waits_no_more_and_the_job_goes_on(how: str) -> None:
    async def main() -> None:
        async with with_jobs() as (executor, remote), greeted(remote) as wire:
            await wire.link.send("waitJob", {"execId": EXEC_ID})
            await executor.waiting.wait()
            if how == "close":
                wire.link.close()
            else:
                wire.reset()
            async with greeted(remote) as other:
                told = await other.ask("getJob", {"execId": EXEC_ID})
                assert Job.from_wire(told.fields["job"]).result is None
            assert not executor.cancelled

    asyncio.run(main())


def test_all_jobs_are_listed_in_frames_that_each_fit() -> None:
    async def main() -> None:
        async with with_jobs() as (_, remote), greeted(remote) as wire:
            assert (await wire.ask("listJobs")).fields == {"count": 40}
            listed: list[Job] = []
            while len(listed) < 40:
                entries = (await wire.next()).fields["jobs"]
                assert isinstance(entries, list)
                listed += map(Job.from_wire, entries)
            assert [int(job.exec_id, 16) for job in listed] == list(range(40))
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_who_sends_many_requests_at_once_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = 0
    find = TcpFront._find

    def counted(self: TcpFront, fields: Mapping[str, object]) -> Peer:
        nonlocal answered
        answered += 1
        return find(self, fields)

    monkeypatch.setattr(TcpFront, "_find", counted)

    async def main() -> None:
        async with served() as remote, greeted(remote) as wire, greeted(remote) as other:
            wire.link.post_encoded(protocol.encode("getPeerInfo", {"peer": "laptop"}) * 500)
            assert (await other.ask("ping")).type == "pong"
            assert answered < 50
            for _ in range(500):
                await wire.next()

    asyncio.run(main())


def test_jobs_are_looked_up_for_one_peer_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, turns = 0, []

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def listed(self: FakeExecutor, limit: int) -> list[Job]:
        turns.append(turn)
        return []

    monkeypatch.setattr(FakeExecutor, "jobs", listed)

    async def main() -> None:
        async with served() as remote, AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(greeted(remote)) for _ in range(20)]
            for wire in wires:
                assert (await wire.ask("ping")).type == "pong"
            counting = asyncio.create_task(count())
            for wire in wires:
                wire.link.post("listJobs")
            for wire in wires:
                assert (await wire.next()).fields == {"count": 0}
            counting.cancel()
            assert len(turns) == len(set(turns)) == len(wires)

    asyncio.run(main())


def test_where_no_peer_may_run_anything_jobs_are_not_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(self: FakeExecutor, limit: int) -> list[Job]:
        pytest.fail("they were")

    monkeypatch.setattr(FakeExecutor, "jobs", listed)

    async def main() -> None:
        async with served(policy=Policy(accept=False)) as remote, greeted(remote) as wire:
            assert (await wire.ask("listJobs")).fields == {"count": 0}

    asyncio.run(main())


RECORDS = [
    {
        "time": "now",
        "priority": 6,
        "message": f"{event} of {caller}",
        "event": event,
        **({"caller": caller} if caller else {}),
    }
    for event, caller in (
        ("command-allowed", "laptop"),
        ("command-started", "laptop"),
        ("command-denied", "laptop"),
        ("app-denied", "laptop"),
        ("registry-denied", "laptop"),
        ("command-ended", "laptop"),
        ("command-ended", "desktop"),
        ("internal-error", ""),
    )
]


class Read:
    """Reads the records above, and once more where the test lets it."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.more: asyncio.Event | None = None

    async def read(self, query: object, stops: object, peer: str) -> AsyncIterator[Batch]:
        self.callers.append(peer)
        yield Batch(list(RECORDS), "s=1f;i=1")
        if self.more:
            await self.more.wait()
            yield Batch(list(RECORDS), "s=1f;i=2")


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Policy(), RECORDS),
        (Policy(rules=(Rule("all", ("laptop",)),)), RECORDS),
        (Policy(rules=(Rule("some", ("laptop",), users=("ann",)),)), [RECORDS[1], RECORDS[5]]),
    ],
    ids=["no rule", "everything", "something"],
)
def test_a_peer_reads_of_its_own_commands_and_nothing_of_the_rules(rules: Policy, told: list[object]) -> None:
    async def main() -> None:
        async with served(policy=rules) as remote, greeted(remote) as wire:
            remote.front._reader = Read()  # type: ignore[assignment]
            assert (await wire.ask("getLog")).fields == {"records": told, "cursor": "s=1f;i=1"}
            assert (await wire.next()).type == "reply"
            assert remote.front._reader.callers == ["laptop"]  # type: ignore[attr-defined]

    asyncio.run(main())


@pytest.mark.parametrize("follow", [False, True])
def test_the_journal_is_not_even_read_for_who_may_read_nothing_of_it(follow: bool) -> None:
    async def main() -> None:
        async with served(policy=Policy(accept=False)) as remote, greeted(remote) as wire:
            remote.front._reader = Read()  # type: ignore[assignment]
            assert (await wire.ask("getLog", {"follow": follow})).type == "reply"
            assert remote.front._reader.callers == []  # type: ignore[attr-defined]

    asyncio.run(main())


def test_who_follows_the_log_is_held_to_the_policy_of_now() -> None:
    async def main() -> None:
        async with served() as remote, greeted(remote) as wire:
            remote.front._reader = reader = Read()  # type: ignore[assignment]
            reader.more = asyncio.Event()
            assert (await wire.ask("getLog", {"follow": True})).fields["records"] == RECORDS
            changed = settings(policy=Policy(accept=False))
            remote.front._config = lambda: changed
            reader.more.set()
            assert (await wire.next()).fields["records"] == []
            assert (await wire.next()).type == "reply"

    asyncio.run(main())


def test_offsets_and_confirmations_reach_who_attends() -> None:
    seen: list[object] = []

    class Attended(Jobs):
        async def attend(self, exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
            seen.append(offsets)
            confirmed = asyncio.Event()

            def listen(offsets: Offsets) -> None:
                seen.append(offsets)
                if offsets["stdout"]:
                    confirmed.set()

            session.delivery.listen(listen)
            await confirmed.wait()
            return ExecResult(Outcome.EXITED, 3)

    async def main() -> None:
        async with served(executor=Attended()) as remote, greeted(remote) as wire:
            await wire.link.send("attachJob", {"execId": EXEC_ID, "stdout": 7})
            await wire.link.send("ack", {"stdout": 9, "stderr": 1})
            assert (await wire.next()).type == "result"
            assert seen == [{"stdout": 7, "stderr": 0}, {"stdout": 0, "stderr": 0}, {"stdout": 9, "stderr": 1}]

    asyncio.run(main())


@pytest.mark.parametrize("field", [{"stdout": -1}, {"stderr": "x"}, {"stdout": 2**63}], ids=str)
def test_offsets_out_of_bounds_are_an_error(field: dict[str, object]) -> None:
    async def main() -> None:
        async with with_jobs() as (_, remote), greeted(remote) as wire:
            assert (await wire.ask("attachJob", {"execId": EXEC_ID, **field})).fields["code"] == "bad-message"

    asyncio.run(main())


def test_a_detached_command_is_answered_once_it_was_started() -> None:
    class Starting(Jobs):
        async def detach(self, request: ExecRequest, caller: Caller) -> ExecResult:
            if request.directory == "/missing":
                error = PeerdError(Code.NO_SUCH_DIRECTORY, peer="vps", directory="/missing")
                return ExecResult.failure(error)
            return ExecResult(Outcome.EXITED, 0)

    async def main() -> None:
        async with served(executor=Starting()) as remote, greeted(remote) as wire:
            assert (await wire.ask("execRequest", {**EXEC, "detach": True})).type == "started"
            failed = await wire.ask("execRequest", {**EXEC, "detach": True, "directory": "/missing"})
            assert (failed.type, failed.fields["outcome"]) == ("result", "failed")
            assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_a_connection_too_many_is_told_so() -> None:
    async def main() -> None:
        async with served(max_connections=1) as remote, greeted(remote) as first:
            async with dialled(remote.port, "127.0.0.4") as second:
                assert (await second.next()).fields["code"] == "busy"
                await second.end()
            assert (await first.ask("ping")).type == "pong"

    asyncio.run(main())


def test_one_address_cannot_have_all_connections() -> None:
    async def main() -> None:
        async with served(max_connections=4) as remote, greeted(remote) as first, greeted(remote) as second:
            async with dialled(remote.port, "127.0.0.4") as third:
                assert (await third.next()).fields["code"] == "busy"
                await third.end()
            async with greeted(remote, "127.0.0.2") as other:
                assert (await other.ask("registerPeer", registration("desktop").to_wire())).type == "registered"
            for wire in (first, second):
                assert (await wire.ask("ping")).type == "pong"

    asyncio.run(main())


def test_a_stranger_that_says_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpfront, "_STRANGER_LIMIT", 0.01)

    async def main() -> None:
        async with served() as remote, greeted(remote, "127.0.0.66") as wire:
            await wire.end()

    asyncio.run(main())


def test_a_worker_that_loses_its_connection_within_a_heartbeat_is_offline() -> None:
    async def main() -> None:
        async with served() as remote:
            async with greeted(remote, "127.0.0.2") as wire:
                await wire.ask("registerPeer", registration("desktop").to_wire())
                await receive_book(wire.link)
                wire.link.post_encoded(b'{"type":"heart')
                wire.link.close()
            async with greeted(remote) as wire:
                gone = Peer.from_wire((await wire.ask("getPeerInfo", {"peer": "desktop"})).fields)
                assert not gone.is_online

    asyncio.run(main())


def run_apps(systemd: FakeSystemd, *requests: dict[str, object], **changes: Any) -> list[Frame]:
    """The answers to these requests about the apps of a machine that has cad in both modes."""

    async def main() -> list[Frame]:
        async with served(systemd=systemd, **changes) as remote, greeted(remote) as wire:
            remote.registry.store_apps([App("cad", mode, f"cad-{mode}.service") for mode in ("dev", "prod")])
            return [await wire.ask("appRequest", request) for request in requests]

    return asyncio.run(main())


def test_a_peer_looks_after_apps(records: Journal) -> None:
    systemd = FakeSystemd(cad_prod=FakeUnit())
    listed, started, missing = run_apps(
        systemd,
        {"command": "listApps"},
        {"command": "startApp", "app": "cad", "mode": "all"},
        {"command": "startApp", "app": "cad", "mode": "dev"},
    )
    assert (listed.type, started.type, missing.type) == ("reply", "reply", "error")
    assert listed.fields["data"] == [
        {"app": "cad", "mode": mode, "unit": f"cad-{mode}.service", "directory": None} for mode in ("dev", "prod")
    ]
    assert started.fields["text"] == "Started cad-prod.service on vps"
    assert started.fields["notes"] == ["cad-dev.service does not exist, skipped"]
    assert missing.fields["code"] == "no-such-unit"
    assert systemd.calls == [("StartUnit", "cad-prod.service")]
    (record,) = records.of(Event.APP_CHANGED)
    assert [record.text(name) for name in ("app", "mode", "peer", "caller", "command")] == (
        ["cad", "prod", "laptop", "laptop", "startApp"]
    )
    assert record.fields["OBJECT_SYSTEMD_UNIT"] == b"cad-prod.service"


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": "execOnPeer"},
        {"command": "startApp"},
        {"command": "startApp", "app": "../cad"},
        {"command": "startApp", "app": "cad", "mode": "test"},
        {"command": "addApp", "app": "cad", "unit": "../../tmp/x.service"},
        {"command": "addApp", "app": "cad", "directory": "/srv/../etc"},
    ],
    ids=str,
)
def test_a_request_about_apps_that_is_out_of_bounds_is_refused(request_: dict[str, object]) -> None:
    systemd = FakeSystemd(cad_prod=FakeUnit())
    (answer,) = run_apps(systemd, request_)
    assert (answer.type, answer.fields["code"]) == ("error", "bad-message")
    assert not systemd.calls


def test_who_may_not_run_everything_as_root_has_nothing_to_do_with_apps(records: Journal) -> None:
    systemd = FakeSystemd(cad_prod=FakeUnit())
    policy = Policy(rules=(Rule("some", ("laptop",), shell_commands=("uptime",)),))
    answers = run_apps(
        systemd, {"command": "listApps"}, {"command": "startApp", "app": "cad", "mode": "prod"}, policy=policy
    )
    assert [answer.fields["message"] for answer in answers] == ["Permission denied: vps does not allow this"] * 2
    assert not systemd.calls
    assert len(records.of(Event.APP_DENIED)) == 2


def test_what_is_asked_of_an_app_goes_on_when_its_caller_goes(records: Journal) -> None:
    async def main() -> None:
        systemd = FakeSystemd(cad_prod=FakeUnit())
        systemd.hold = True
        async with served(systemd=systemd) as remote, greeted(remote) as wire:
            remote.registry.store_apps([App("cad", "prod", "cad-prod.service")])
            await wire.link.send("appRequest", {"command": "stopApp", "app": "cad", "mode": "prod"})
            await systemd.begun.wait()
            wire.reset()
            await systemd.given_up.wait()
        (record,) = records.of(Event.APP_FAILED)
        assert record.text("reason") == "it goes on, and nobody waits for it"

    asyncio.run(main())
