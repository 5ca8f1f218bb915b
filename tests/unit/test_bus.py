"""peerd on a real message bus of the test's own: calls, errors, signals, and a bus that goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.signature import SignatureTree

from peerd import busapi, busreader, scopes
from peerd.answer import Answer
from peerd.bus import Bus
from peerd.busapi import JOB, MANAGER, OBJECT_MANAGER, PEER, PROPERTIES, ROOT
from peerd.buslink import Connection, leave
from peerd.buspipes import Pipes
from peerd.errors import Code, Outcome, PeerdError
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult
from peerd.peers import Peer, PeerBook
from peerd.session import Session
from unit import support
from unit.support import FakeScopes, Journal, executing, read_all, readable, settings

BUS_CONFIG = """<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
VPS = Peer("vps", "10.0.0.1", first_seen=1.5, is_online=True)
Script = Callable[[str, dict[str, Any], Session], Awaitable[Answer]]


class FakeNode:
    """Whom this machine knows."""

    def __init__(self) -> None:
        self.peer_id = "here"
        self.book = PeerBook([VPS])


class FakeService:
    """Does what the test says, and shows a status."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.status: dict[str, object] = {"role": None, "peer_id": "here", "connected_to_leader": False}

    async def call(self, name: str, params: dict[str, Any], session: Session) -> Answer:
        if self.script and name != "getPeerStatus":
            return await self.script(name, params, session)
        return Answer(self.status)


class FakeJobs:
    """What runs here."""

    def __init__(self) -> None:
        self.active: list[Job] = []
        self.ended: dict[str, Job] = {}

    def job(self, exec_id: str) -> Job:
        return self.ended[exec_id]


class MessageDaemon:
    """A dbus-daemon(1) that can be stopped and started."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:path={directory}/bus"
        self._config = directory / "bus.conf"
        self._config.write_text(BUS_CONFIG.format(path=directory / "bus"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process = subprocess.Popen(
            ["dbus-daemon", "--nofork", "--print-address", f"--config-file={self._config}"], stdout=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stdout.readline()

    def stop(self) -> None:
        """End it, and with it every connection."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[MessageDaemon]:
    """A bus that runs."""
    message_daemon = MessageDaemon(tmp_path)
    message_daemon.start()
    yield message_daemon
    message_daemon.stop()


class Client:
    """Another program on the bus."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.signals: asyncio.Queue[Message] = asyncio.Queue()
        bus.add_message_handler(self._heard)

    def _heard(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and str(message.path).startswith(ROOT):
            self.signals.put_nowait(message)
        return False

    async def call(self, member: str, signature: str = "", *body: Any, interface: str = MANAGER) -> Message:
        """Call a method of the root object; the reply or the error."""
        message = Message(busapi.NAME, ROOT, interface, member, signature=signature, body=list(body))
        reply = await self.bus.call(message)
        assert reply
        return reply

    async def on_the_bus(self) -> None:
        """Wait until peerd has its name."""
        asked = Message("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "NameHasOwner", signature="s")
        asked.body = [busapi.NAME]
        while not (reply := await self.bus.call(asked)) or not reply.body[0]:
            asked.serial = 0
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def client_of(daemon: MessageDaemon) -> AsyncIterator[Client]:
    """A connection of another program, that hears all signals of peerd."""
    bus = await MessageBus(daemon.address, negotiate_unix_fd=True).connect()
    client = Client(bus)
    match = Message("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", signature="s")
    match.body = [f"type='signal',path_namespace='{ROOT}'"]
    await bus.call(match)
    try:
        yield client
    finally:
        await leave(bus)


@contextlib.asynccontextmanager
async def serving(
    daemon: MessageDaemon, service: FakeService, node: FakeNode | None = None, jobs: FakeJobs | None = None
) -> AsyncIterator[tuple[Bus, Client]]:
    """peerd on the bus, and another program that talks to it."""
    parts = node or FakeNode(), service, jobs or FakeJobs()
    bus = Bus(*cast(tuple[Any, Any, Any], parts), settings, daemon.address)
    bus.start()
    try:
        async with client_of(daemon) as client:
            await client.on_the_bus()
            yield bus, client
    finally:
        await bus.close()


def test_a_command_is_done_for_its_caller_and_answered(daemon: MessageDaemon) -> None:
    asked: list[tuple[str, dict[str, Any], str]] = []

    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        asked.append((name, params, session.caller.peer))
        await session.sink.output("stdout", b"a\0\xff")
        session.say("said")
        return Answer(status=7, record={"outcome": "exited"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("ExecOnPeer", "sssa{sv}", "vps", "/", "x", {"timeout": Variant("i", 3)})
            assert reply.body == ["exited", 7, b"a\0\xff", b"said\n"]
            assert reply.signature == "siayay"

    asyncio.run(main())
    assert asked == [
        ("execOnPeer", {"peer": "vps", "directory": "/", "shell_cmd": "x", "timeout": 3.0}, "here"),
    ]


def test_text_and_data_are_what_d_bus_can_carry(daemon: MessageDaemon) -> None:
    answers = {
        "ping": Answer(text="a\0b\udcff"),
        "getPeerInfo": Answer({"a": None, "b": True, "c": 2**40, "d": 1.5, "e": ["x"], "f": [], "g": {"h": "i"}}),
        "listCommands": Answer([{"list": [{"a": 1}]}]),
    }

    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        return answers[name]

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            assert (await client.call("Ping", "a{sv}", {})).body == ["a\\x00b\\udcff"]
            [data] = (await client.call("GetPeerInfo", "s", "vps")).body
            assert {key: value.signature for key, value in data.items()} == {
                "b": "b",
                "c": "x",
                "d": "d",
                "e": "as",
                "f": "as",
                "g": "a{sv}",
            }
            [rows] = (await client.call("ListCommands")).body
            assert rows[0]["list"].signature == "aa{sv}"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (PeerdError(Code.PEER_NOT_FOUND, peer="vps"), f"{busapi.NAME}.Error.PeerNotFound"),
        (PeerdError(Code.USAGE, reason="so"), "org.freedesktop.DBus.Error.InvalidArgs"),
        (ValueError("a secret"), "org.freedesktop.DBus.Error.Failed"),
    ],
    ids=["its own", "of the standard", "a bug"],
)
def test_an_error_has_a_name_and_no_traceback(
    daemon: MessageDaemon, error: Exception, name: str, records: Journal
) -> None:
    records.expect(Event.INTERNAL_ERROR)

    async def script(*_: object) -> Answer:
        raise error

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("RemotePull", "sa{sv}", "vps", {})
            assert reply.error_name == name
            assert "Traceback" not in reply.body[0]
            assert "secret" not in reply.body[0]
            if isinstance(error, PeerdError):
                assert reply.body[0] == error.text.rstrip("\n")

    asyncio.run(main())
    assert len(records.of(Event.INTERNAL_ERROR)) == isinstance(error, ValueError)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_command_that_may_have_run_has_a_reply(daemon: MessageDaemon, outcome: Outcome) -> None:
    code = next(code for code in Code if PeerdError(code).kind.outcome == outcome) if outcome not in (
        Outcome.EXITED, Outcome.SIGNALED) else None  # fmt: skip
    error = PeerdError(code) if code else None

    async def script(*_: object) -> Answer:
        return Answer(error=error, status=error.kind.exit_status if error else 1, record={"outcome": outcome.value})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("RemoteBd", "sa{sv}", "vps", {})
            if outcome in (Outcome.FAILED, Outcome.DENIED, Outcome.UNREACHABLE):
                assert reply.message_type is MessageType.ERROR
            else:
                assert reply.body[0] == outcome
                assert reply.body[3] == (error.text.encode() if error else b"")

    asyncio.run(main())


def test_more_output_than_a_reply_takes_is_an_error_that_says_how_it_ended(daemon: MessageDaemon) -> None:
    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        for _ in range(busapi.MAX_COLLECTED // 2**20 + 1):
            await session.sink.output("stdout", bytes(2**20))
        return Answer(status=3, record={"outcome": "exited"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("RemotePull", "sa{sv}", "vps", {})
            assert reply.error_name == f"{busapi.NAME}.Error.TooMuchOutput"
            assert "it ended as exited, exit status 3" in reply.body[0]

    asyncio.run(main())


@pytest.mark.parametrize("how", ["caller", "bus"])
def test_a_command_whose_caller_is_lost_is_cancelled(daemon: MessageDaemon, how: str) -> None:
    async def main() -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
            begun.set()
            await session.cancel.wait()
            cancelled.set()
            return Answer(record={"outcome": "cancelled"})

        async with serving(daemon, FakeService(script)) as (_, _one), client_of(daemon) as other:
            calling = asyncio.create_task(other.call("RemotePull", "sa{sv}", "vps", {}))
            await begun.wait()
            assert not cancelled.is_set()
            if how == "caller":
                other.bus.disconnect()
            else:
                daemon.stop()
            await cancelled.wait()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    asyncio.run(main())


def test_nobody_but_the_bus_says_that_a_caller_is_lost(daemon: MessageDaemon) -> None:
    async def main() -> None:
        begun, go_on, cancelled = asyncio.Event(), asyncio.Event(), []

        async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
            begun.set()
            await go_on.wait()
            cancelled.append(session.cancel.is_set())
            return Answer(record={"outcome": "exited"})

        async with serving(daemon, FakeService(script)) as (bus, client), client_of(daemon) as other:
            calling = asyncio.create_task(client.call("RemotePull", "sa{sv}", "vps", {}))
            await begun.wait()
            assert bus._bus
            body = [client.bus.unique_name, client.bus.unique_name, ""]
            for destination in (bus._bus.unique_name, None):
                dbus = "org.freedesktop.DBus"
                signal = Message.new_signal("/org/freedesktop/DBus", dbus, "NameOwnerChanged", "sss", body)
                signal.destination = cast(str, destination)
                await other.bus.send(signal)
            # The bus keeps the order of what one connection sends.
            await other.call("Ping", interface="org.freedesktop.DBus.Peer")
            go_on.set()
            await calling
            assert cancelled == [False]

    asyncio.run(main())


def test_changes_are_told(daemon: MessageDaemon) -> None:
    async def main() -> None:
        service, node = FakeService(), FakeNode()
        async with serving(daemon, service, node) as (bus, client):

            async def told() -> list[tuple[str, str]]:
                bus.changed()
                first = await client.signals.get()
                # All signals of one change come together; a reply sent after them comes last.
                await client.call("Ping", interface="org.freedesktop.DBus.Peer")
                rest = [client.signals.get_nowait() for _ in range(client.signals.qsize())]
                return [(str(signal.path), str(signal.member)) for signal in (first, *rest)]

            service.status = {**service.status, "connected_to_leader": True}
            assert await told() == [(ROOT, "PropertiesChanged")]
            nas = busapi.peer_path("nas")
            node.book.put(Peer("nas", "10.0.0.9"))
            assert await told() == [(ROOT, "InterfacesAdded"), (ROOT, "PeerAdded")]
            node.book.put(Peer("nas", "10.0.0.9", is_online=True, last_seen=5.0))
            assert await told() == [(nas, "PropertiesChanged"), (ROOT, "PeerOnline")]
            node.book.put(Peer("nas", "10.0.0.9", last_seen=6.0))
            assert await told() == [(nas, "PropertiesChanged"), (ROOT, "PeerOffline")]
            node.book.remove("nas")
            assert await told() == [(ROOT, "InterfacesRemoved"), (ROOT, "PeerRemoved")]

    asyncio.run(main())


def test_properties_are_read_and_not_set(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with serving(daemon, FakeService()) as (_, client):
            [role] = (await client.call("Get", "ss", MANAGER, "Role", interface=PROPERTIES)).body
            assert (role.signature, role.value) == ("s", "")
            [all_] = (await client.call("GetAll", "s", MANAGER, interface=PROPERTIES)).body
            assert all_["PeerId"].value == "here"
            assert (await client.call("GetAll", "s", "", interface=PROPERTIES)).body == [all_]
            [role] = (await client.call("Get", "ss", "", "Role", interface=PROPERTIES)).body
            assert role.value == ""
            refused = await client.call("Set", "ssv", MANAGER, "Role", Variant("s", "x"), interface=PROPERTIES)
            assert refused.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"
            [managed] = (await client.call("GetManagedObjects", interface=OBJECT_MANAGER)).body
            assert managed[busapi.peer_path("vps")][PEER]["FirstSeen"].value == 1_500_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("interface", "member", "signature", "body", "error"),
    [
        (MANAGER, "NoSuch", "", [], "UnknownMethod"),
        ("org.example.Other", "Ping", "", [], "UnknownInterface"),
        (MANAGER, "Version", "s", ["x"], "InvalidArgs"),
        (PROPERTIES, "Get", "ss", [MANAGER, "NoSuch"], "UnknownProperty"),
        (PROPERTIES, "GetAll", "s", ["org.example.Other"], "UnknownInterface"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_there_is_not_has_the_standard_error(
    daemon: MessageDaemon, interface: str, member: str, signature: str, body: list[str], error: str
) -> None:
    async def main() -> None:
        async with serving(daemon, FakeService()) as (_, client):
            reply = await client.call(member, signature, *body, interface=interface)
            assert reply.error_name == f"org.freedesktop.DBus.Error.{error}"

    asyncio.run(main())


def test_it_is_there_again_when_the_bus_is(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with serving(daemon, FakeService()) as (bus, _):
            daemon.stop()
            bus.changed()
            daemon.start()
            async with client_of(daemon) as again:
                await again.on_the_bus()
                assert (await again.call("Ping", interface="org.freedesktop.DBus.Peer")).body == []

    asyncio.run(main())


def test_a_job_is_an_object_and_its_beginning_and_end_are_told(daemon: MessageDaemon) -> None:
    job = Job("0" * 16, "here", "vps", "/srv", ("a b", "c"), "root", False, 1_500_000)
    path = busapi.job_path(job.exec_id)

    async def main() -> None:
        jobs = FakeJobs()
        async with serving(daemon, FakeService(), jobs=jobs) as (bus, client):
            jobs.active.append(job)
            bus.changed()
            added, started = [await client.signals.get() for _ in range(2)]
            assert (added.member, added.body[0]) == ("InterfacesAdded", path)
            assert added.body[1][JOB]["Command"].value == "'a b' c"
            assert (started.member, started.body) == ("JobStarted", [job.exec_id, path])
            [managed] = (await client.call("GetManagedObjects", interface=OBJECT_MANAGER)).body
            assert managed[path][JOB]["Started"].value == 1_500_000
            jobs.active.clear()
            jobs.ended[job.exec_id] = replace(job, result=ExecResult(Outcome.EXITED, 7))
            bus.changed()
            removed, finished = [await client.signals.get() for _ in range(2)]
            assert (removed.member, removed.body) == ("InterfacesRemoved", [path, [JOB]])
            assert (finished.member, finished.body) == ("JobFinished", [job.exec_id, path, "exited", 7])

    asyncio.run(main())


def test_a_job_that_is_over_at_once_is_told_of_and_its_object_is_not(daemon: MessageDaemon) -> None:
    job = Job("0" * 16, "here", "vps", "/srv", ("a b", "c"), "root", False, 1_500_000)
    path = busapi.job_path(job.exec_id)

    async def main() -> None:
        jobs = FakeJobs()
        async with serving(daemon, FakeService(), jobs=jobs) as (bus, client):
            for _ in range(2):
                jobs.active.append(job)
                bus.changed()
                jobs.active.clear()
                jobs.ended[job.exec_id] = replace(job, result=ExecResult(Outcome.EXITED, 7))
                bus.changed()
                started, finished = [await client.signals.get() for _ in range(2)]
                assert (started.member, started.body) == ("JobStarted", [job.exec_id, path])
                assert (finished.member, finished.body) == ("JobFinished", [job.exec_id, path, "exited", 7])
            assert path not in (await client.call("GetManagedObjects", interface=OBJECT_MANAGER)).body[0]
            assert client.signals.empty()

    asyncio.run(main())


def test_a_started_command_is_read_as_it_runs(daemon: MessageDaemon) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
            session.running("0" * 16, 1)
            await session.sink.started()
            await session.sink.output("stdout", b"first")
            await go_on.wait()
            await session.sink.output("stdout", bytes(300_000))
            session.say("said")
            return Answer(status=3, record={"outcome": "exited"})

        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("StartOnPeer", "sssa{sv}", "vps", "/", "x", {})
            assert (reply.signature, reply.body) == ("ohh", [busapi.job_path("0" * 16), 0, 1])
            out, err = reply.unix_fds
            await readable(out)
            assert os.read(out, 100) == b"first"
            go_on.set()
            assert await read_all(out) == bytes(300_000)
            assert await read_all(err) == b"said\n"
            for fd in (out, err):
                os.close(fd)
            members = {}
            while "JobFinished" not in members:
                signal = await client.signals.get()
                members[signal.member] = signal.body
            assert members["JobStarted"] == ["0" * 16, reply.body[0]]
            assert members["JobFinished"][2:] == ["exited", 3]

    asyncio.run(main())


def test_a_started_command_that_cannot_start_is_an_error(daemon: MessageDaemon) -> None:
    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        error = PeerdError(Code.NO_SUCH_DIRECTORY, peer="vps", directory="/x")
        return Answer(error=error, status=255, record={"outcome": "failed"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("StartOnPeer", "sssa{sv}", "vps", "/x", "x", {})
            assert reply.error_name == f"{busapi.NAME}.Error.NoSuchDirectory"
            assert not reply.unix_fds

    asyncio.run(main())


def test_a_started_command_that_was_not_even_asked_for_is_an_error(daemon: MessageDaemon) -> None:
    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        return Answer(error=PeerdError(Code.CANCELLED, peer="vps"), status=130, record={"outcome": "cancelled"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("StartOnPeer", "sssa{sv}", "vps", "/", "x", {})
            assert reply.error_name == f"{busapi.NAME}.Error.Cancelled"

    asyncio.run(main())


def test_a_started_command_ends_with_the_bus_that_goes_before_it_has_the_answer(daemon: MessageDaemon) -> None:
    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        session.running("0" * 16, 1)
        await session.sink.started()
        await session.cancel.wait()
        return Answer(status=130, record={"outcome": "cancelled"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (bus, client), asyncio.timeout(10):
            begin, begun = bus._jobs.begin, asyncio.Event()

            def last(job: Job) -> None:
                begin(job)
                daemon.stop()
                begun.set()

            bus._jobs.begin = last  # type: ignore[method-assign]
            calling = asyncio.create_task(client.call("StartOnPeer", "sssa{sv}", "vps", "/", "x", {}))
            await begun.wait()
            await asyncio.gather(*bus._tasks)
            assert not bus._jobs.shown
            calling.cancel()
            await asyncio.wait((calling,))

    asyncio.run(main())


def test_what_a_caller_has_of_a_command_is_nothing_of_the_next(daemon: MessageDaemon) -> None:
    async def main() -> None:
        offsets = []

        async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
            for step in (1, 2):
                session.running(str(step) * 16, step)
                offsets.append(session.delivery.offsets)
                await session.sink.output("stdout", b"pulled")
                offsets.append(session.delivery.offsets)
            return Answer(record={"outcome": "exited"})

        async with serving(daemon, FakeService(script)) as (_, client):
            await client.call("RemoteDeployDaemon", "sa{sv}", "vps", {})
        assert [each["stdout"] for each in offsets] == [0, 6, 0, 6]

    asyncio.run(main())


def test_a_started_command_ends_with_its_reader(daemon: MessageDaemon) -> None:
    async def main() -> None:
        stopped = asyncio.Event()

        async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
            session.running("0" * 16, 1)
            await session.sink.started()
            while not session.cancel.is_set():
                await session.sink.output("stdout", bytes(65_536))
            stopped.set()
            return Answer(status=130, record={"outcome": "cancelled"})

        async with serving(daemon, FakeService(script)) as (_, client):
            reply = await client.call("StartOnPeer", "sssa{sv}", "vps", "/", "x", {})
            for fd in reply.unix_fds:
                os.close(fd)
            await stopped.wait()

    asyncio.run(main())


@pytest.mark.parametrize("closed", [[0], [0, 1]])
def test_a_command_of_this_machine_is_stopped_at_once_when_nobody_reads_it(
    monkeypatch: pytest.MonkeyPatch, closed: list[int]
) -> None:
    monkeypatch.setattr(scopes, "processes", FakeScopes.members)

    async def main() -> None:
        pipes, given = Pipes(), []
        async with executing() as executor, asyncio.timeout(5):
            request = ExecRequest("0" * 16, "/", "while echo x; do sleep 0.1; done")
            running = asyncio.create_task(support.run(executor, request, pipes, pipes.cancel))
            await pipes.begun.wait()
            given, pipes.given = pipes.given, []
            await readable(given[0])
            for index in closed:
                os.close(given[index])
            result = await running
            assert (result.outcome, result.exit_status) == (Outcome.CANCELLED, 130)
        for index in {0, 1} - set(closed):
            os.close(given[index])
        pipes.close()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def bounded(daemon: MessageDaemon) -> AsyncIterator[tuple[Connection, Client, asyncio.Queue[Message]]]:
    """A connection of peerd, another program, and what the first hears of it."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    connection = Connection(daemon.address, negotiate_unix_fd=True)
    await connection.connect()
    try:
        async with client_of(daemon) as client:
            # After this call the bus has nothing more to say.
            await client.bus.call(to(connection))
            connection.add_message_handler(heard.put_nowait)
            yield connection, client, heard
    finally:
        await leave(connection)


def to(
    bus: MessageBus, signature: str = "", *body: Any, path: str = "/", kind: Any = MessageType.METHOD_CALL
) -> Message:
    """A message to a connection."""
    name = cast(str, bus.unique_name)
    return Message(name, path, "org.freedesktop.DBus.Peer", "Ping", kind, signature=signature, body=list(body))


async def let_go(client: Client, message: Message) -> None:
    """Send a message with a descriptor, and see that who gets it closes that."""
    reading, writing = os.pipe()
    message.unix_fds = [writing]
    await client.bus.send(message)
    os.close(writing)
    assert await read_all(reading) == b""
    os.close(reading)


TOO_LARGE = [("ay", bytes(busreader.LARGEST)), ("au", [1] * busreader.MOST_VALUES)]


@pytest.mark.parametrize(("signature", "value"), TOO_LARGE, ids=["bytes", "values"])
def test_a_call_that_is_too_large_is_refused_and_its_caller_told(
    daemon: MessageDaemon, signature: str, value: object
) -> None:
    async def main() -> None:
        async with serving(daemon, FakeService()) as (_, client):
            reply = await client.call("Version", signature, value)
            assert reply.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
            assert (await client.call("Ping", interface="org.freedesktop.DBus.Peer")).body == []

    asyncio.run(main())


@pytest.mark.parametrize(("signature", "value"), TOO_LARGE, ids=["bytes", "values"])
def test_a_signal_that_is_too_large_is_not_heard_and_its_descriptors_are_closed(
    daemon: MessageDaemon, signature: str, value: object
) -> None:
    async def main() -> None:
        async with bounded(daemon) as (connection, client, heard):
            await let_go(client, to(connection, f"{signature}h", value, 0, kind=MessageType.SIGNAL))
            await client.bus.call(to(connection))
            assert (await heard.get()).message_type is MessageType.METHOD_CALL
            assert heard.empty()

    asyncio.run(main())


def test_a_message_whose_path_is_too_long_is_passed_over(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with bounded(daemon) as (connection, client, heard):
            await let_go(client, to(connection, "sh", "x" * 400_000, 0, path="/a" * 300_000))
            await client.bus.call(to(connection))
            assert (await heard.get()).path == "/"
            assert heard.empty()

    asyncio.run(main())


def test_a_command_with_all_that_it_may_have_is_within_the_bounds(daemon: MessageDaemon) -> None:
    argv = ["x" * 30] * 4096
    env = [f"V{number}={'x' * 4000}" for number in range(256)]

    async def script(name: str, params: dict[str, Any], session: Session) -> Answer:
        assert len(params["argv"]) == len(argv)
        assert len(params["env"]) == len(env)
        return Answer(record={"outcome": "exited"})

    async def main() -> None:
        async with serving(daemon, FakeService(script)) as (_, client):
            options = {"argv": Variant("av", [Variant("s", item) for item in argv]), "env": Variant("as", env)}
            reply = await client.call("ExecOnPeer", "sssa{sv}", "vps", "/", "", options)
            assert reply.body[0] == "exited"

    asyncio.run(main())


def test_replies_have_no_bounds(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with bounded(daemon) as (connection, client, _):
            body = [1] * busreader.MOST_VALUES

            def answer(message: Message) -> Message | None:
                call = message.message_type is MessageType.METHOD_CALL
                return Message.new_method_return(message, "ayau", [bytes(busreader.LARGEST), body]) if call else None

            client.bus.add_message_handler(answer)
            reply = await connection.call(to(client.bus))
            assert reply
            assert reply.body[1] == body

    asyncio.run(main())


def test_the_event_loop_goes_on_between_two_messages(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with bounded(daemon) as (connection, client, heard):
            turns, seen = 0, []
            connection.add_message_handler(lambda _: seen.append(turns))
            sent = [client.bus.send(to(connection, kind=MessageType.SIGNAL)) for _ in range(20)]
            while heard.qsize() < len(sent):
                turns += 1
                await asyncio.sleep(0)
            assert len(set(seen)) == len(sent)

    asyncio.run(main())


def test_signatures_of_others_are_not_kept_for_ever(daemon: MessageDaemon) -> None:
    async def main() -> None:
        async with bounded(daemon) as (connection, client, _):
            cache = SignatureTree._cache
            cache.update(dict.fromkeys(map(str, range(1000))))
            await client.bus.call(to(connection))
            assert len(cache) < 1000

    asyncio.run(main())
