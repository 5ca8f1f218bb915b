"""What several unit tests need: settings, connections over real sockets, and the fakes at peerd's edges."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from peerd import config, connection, messages
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Outcome, PeerdError
from peerd.executor import Executor
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult, Offsets, Registration
from peerd.network import KeyTable
from peerd.protocol import Decoder, Frame
from peerd.run import Run
from peerd.scopes import Limits, ScopeManager, Stopper
from peerd.session import Caller, ConfirmingSink, Delivery, Session, Sink
from peerd.spool import Data
from peerd.storage import Storage
from peerd.systemd1 import Systemd, SystemdError

LOCALHOST = "127.0.0.1"
IP_PKTINFO = 8
"""ip(7); the module socket has no name for it."""
EXEC_ID = "0123456789abcdef"


def brief(value: object) -> str:
    """The id of a parameter: short, and not that of another."""
    text = ascii(value)
    return text if len(text) <= 30 else f"{text[:24]}...{len(text)}"


def settings(**changes: Any) -> Config:
    """The default configuration, with changes."""
    return replace(config.parse([])[0], **changes)


def registration(peer_id: str = "laptop", **changes: Any) -> Registration:
    """What a worker says of itself."""
    return replace(Registration(peer_id, f"{peer_id}-host", "02:00:00:00:00:01", "0.1.0"), **changes)


def key_table(keys: Mapping[str, str]) -> KeyTable:
    """The WireGuard keys of these addresses."""
    return KeyTable("\n" + "".join(f"{key}\t\t\t{address}/32\n" for address, key in keys.items()))


@dataclass(frozen=True)
class Record:
    """One record that peerd wrote to the journal, with the names of its fields as journald has them."""

    message: str
    fields: dict[str, bytes]

    @property
    def event(self) -> Event:
        """Which event it records, by its MESSAGE_ID."""
        return next(event for event in Event if event.value.message_id == self.fields["MESSAGE_ID"].decode())

    def text(self, name: str) -> str | None:
        """A PEERD_ field as text, or None where it is absent."""
        value = self.fields.get(f"PEERD_{name.upper()}")
        return None if value is None else value.decode("utf-8", "surrogateescape")


@dataclass
class Journal:
    """Takes the place of systemd's journal: keeps what was sent."""

    records: list[Record] = field(default_factory=list)
    expected: set[Event] = field(default_factory=set)

    def sendv(self, *fields: bytes) -> None:
        """As systemd.journal.sendv."""
        record = {name.decode(): value for name, _, value in (field.partition(b"=") for field in fields)}
        self.records.append(Record(record.pop("MESSAGE").decode("utf-8", "surrogateescape"), record))

    def expect(self, event: Event) -> None:
        """Let this test record an event that no good run has."""
        self.expected.add(event)

    def of(self, event: Event) -> list[Record]:
        """The records of one event."""
        return [record for record in self.records if record.event is event]


class Wire:
    """The other end of a connection of peerd's, for tests: whole frames or any bytes."""

    def __init__(self, link: Connection) -> None:
        self.link = link

    async def greet(self) -> None:
        """Say hello and take the answer."""
        self.link.post("hello", messages.hello("test"))
        await self.link.expect("hello")

    async def ask(self, type_: str, fields: dict[str, object] | None = None) -> Frame:
        """Send a frame and return the next one that comes."""
        await self.link.send(type_, fields)
        return await self.next()

    async def next(self) -> Frame:
        """The next frame; the end of the connection is a failure."""
        frame = await self.link.receive()
        assert frame is not None, "the connection ended"
        return frame

    async def expect(self, type_: str) -> Frame:
        """The next frame but for confirmations of an earlier command; one of another type is a failure."""
        while (frame := await self.next()).type != type_:
            assert frame.type in ("ack", "done"), frame
        return frame

    async def end(self) -> None:
        """Take the end of the connection; anything else is a failure."""
        assert await self.link.receive() is None

    def reset(self) -> None:
        """Break the connection, so that the other end gets ECONNRESET."""
        self.link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.link.abort()


Accept = Callable[[Connection], Awaitable[None]]


@contextlib.asynccontextmanager
async def tcp_server(accept: Accept, packet_info: bool = True) -> AsyncIterator[int]:
    """A server on all of loopback's addresses, as PassPacketInfo= of systemd.socket(5) makes it; gives its port."""
    listener = socket.create_server(("0.0.0.0", 0))
    listener.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, packet_info)
    server = await asyncio.get_running_loop().create_server(partial(Connection, accept), sock=listener)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def unix_server(accept: Accept, path: Path) -> AsyncIterator[Path]:
    """A server on a unix socket; gives its path."""
    server = await asyncio.get_running_loop().create_unix_server(partial(Connection, accept), path)
    try:
        yield path
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def dialled(where: int | Path, source: str = LOCALHOST) -> AsyncIterator[Wire]:
    """A connection to a port of loopback, from one of its addresses, or to a unix socket."""
    loop = asyncio.get_running_loop()
    if isinstance(where, int):
        _, link = await loop.create_connection(Connection, LOCALHOST, where, local_addr=(source, 0))
    else:
        _, link = await loop.create_unix_connection(Connection, str(where))
    wire = Wire(link)
    try:
        yield wire
    finally:
        await wire.link.finish()


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Connection, Connection]]:
    """Two connected ends over TCP, with small buffers in the kernel: the one that dialled, and the other."""
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    listener, dialling = socket.create_server((LOCALHOST, 0)), socket.socket()
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, 4096)
        dialling.setsockopt(socket.SOL_SOCKET, option, 4096)

    async def accept(link: Connection) -> None:
        accepted.set_result(link)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, accept), sock=listener)
    dialling.setblocking(False)
    await loop.sock_connect(dialling, listener.getsockname())
    _, near = await loop.create_connection(Connection, sock=dialling)
    far = await accepted
    try:
        yield near, far
    finally:
        for end in (near, far):
            if end.socket.fileno() >= 0:
                end.abort()
            await end.finish()
        server.close()
        await server.wait_closed()


class FakePeers:
    """Other machines' daemons, as a server whose connections a test takes one after another, already greeted.

    :ivar boot: the boot id that they give
    """

    def __init__(self) -> None:
        self.boot = ""
        self.links: asyncio.Queue[Wire] = asyncio.Queue()
        self.port = 0
        self.accepted = 0
        self._wires: list[Wire] = []

    async def _accept(self, link: Connection) -> None:
        wire = Wire(link)
        self._wires.append(wire)
        self.accepted += 1
        try:
            await wire.link.expect("hello")
        except ConnectionError:
            return
        wire.link.post("hello", messages.hello("fake", self.boot))
        self.links.put_nowait(wire)

    async def connect(self, address: str) -> Connection:
        """A connection to one of them, as a pool and a link to a leader are given."""
        return await connection.connect(address, self.port, "lo", 5)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakePeers]:
        """Accept connections while the block runs."""
        async with tcp_server(self._accept) as self.port:
            try:
                yield self
            finally:
                for wire in self._wires:
                    wire.link.abort()
                    await wire.link.finish()


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.begun = asyncio.Event()
        self.spoke = asyncio.Event()

    async def started(self) -> None:
        """As :class:`Sink` has it."""
        self.begun.set()

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        self.streams[stream] += bytes(data)
        self.spoke.set()


class Slow(Heard):
    """A sink that takes nothing until it is welcome."""

    def __init__(self) -> None:
        super().__init__()
        self.welcome = asyncio.Event()

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        await self.welcome.wait()
        await super().output(stream, data)


Script = Callable[[ExecRequest, Caller, Sink, asyncio.Event], Awaitable[ExecResult]]


class FakeExecutor(Executor):
    """Takes the executor's place: each command does what the test says."""

    def __init__(self, script: Script) -> None:
        none: Any = None
        super().__init__(FakeScopes(), none, none, settings, lambda: "here", lambda: None)
        self._script = script
        self._asked: dict[str, tuple[ExecRequest, Caller]] = {}
        self.requests: list[tuple[ExecRequest, str]] = []
        self.heard: list[str] = []
        self.all_known = True

    async def launch(self, request: ExecRequest, caller: Caller) -> Run:
        """As the executor has it, but for what it returns."""
        self.requests.append((request, str(caller)))
        self._asked[request.exec_id] = request, caller
        none: Any = None
        run: Run = none
        return run

    def knows(self, exec_id: str) -> bool:
        """Every command that a caller comes back to was started."""
        return self.all_known or exec_id in self._asked

    def job(self, exec_id: str) -> Job:
        """The command as it was asked for."""
        request, caller = self._asked[exec_id]
        return Job.of(request, "here", str(caller), 1)

    async def attend(self, exec_id: str, session: Session, offsets: Offsets) -> ExecResult:
        """Do what the script says."""
        request, caller = self._asked[exec_id]
        told = asyncio.create_task(self._tell(session))
        try:
            return await self._script(request, caller, session.sink, session.cancel)
        finally:
            told.cancel()

    async def detach(self, request: ExecRequest, caller: Caller) -> ExecResult:
        """Start it."""
        await self.launch(request, caller)
        return ExecResult(Outcome.EXITED, 0)

    async def _tell(self, session: Session) -> None:
        # A caller that has gone is one that wants no more.
        await session.gone.wait()
        session.cancel.set()

    def delivered(self, exec_id: str) -> None:
        """Note that the caller has heard the result."""
        self.heard.append(exec_id)


class FakeScopes(ScopeManager):
    """Takes systemd's place: a scope is its gate, and what has the id of its command in the environment.

    :ivar calls: what was asked for, in order
    :ivar refuse: why starts are refused, or ""
    :ivar stopped_by: why systemd stops scopes by itself
    :cvar all_gates: the gate of each scope that there ever was
    """

    all_gates: ClassVar[dict[str, int]] = {}

    def __init__(self, refuse: str = "") -> None:
        super().__init__(Systemd())
        self.calls: list[tuple[str, str]] = []
        self.timeouts: list[tuple[float, float]] = []
        self.gates: dict[str, int] = {}
        self.refuse = refuse
        self.refuse_stop = ""
        self.stopped_by: Stopper | None = None
        self._grace = 0.0

    async def start(
        self,
        name: str,
        pids: Sequence[int],
        description: str,
        timeout: float,
        grace: float,
        limits: Limits | None = None,
    ) -> None:
        self.calls.append(("start", name))
        self.timeouts.append((timeout, grace))
        self.gates[name] = self.all_gates[name] = pids[0]
        self._grace = grace
        if self.refuse:
            raise SystemdError(self.refuse)

    async def stopper(self, name: str) -> Stopper | None:
        return self.stopped_by

    async def stop(self, name: str) -> None:
        self.calls.append(("stop", name))
        if self.refuse_stop:
            raise SystemdError(self.refuse_stop)
        held = []
        for pid in self.members(name):
            with contextlib.suppress(ProcessLookupError):
                held.append(os.pidfd_open(pid))
        try:
            self.kill(name, signal.SIGTERM)
            late = asyncio.get_running_loop().call_later(self._grace, self.kill, name, signal.SIGKILL)
            for fd in held:
                await readable(fd)
            late.cancel()
        finally:
            for fd in held:
                os.close(fd)

    @classmethod
    def members(cls, name: str) -> list[int]:
        """The processes in a scope, as :func:`peerd.scopes.processes`."""
        mark = b"PEERD_EXEC_ID=" + name.removeprefix("peerd-exec-").removesuffix(".scope").encode()
        found = []
        for pid in _processes():
            with contextlib.suppress(OSError):
                if pid == cls.all_gates.get(name) or mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal all of a scope. The gate ignores SIGTERM and lives to report."""
        for pid in self.members(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class FakeStore:
    """Takes the place of systemd's store of descriptors.

    :ivar kept: its copies, by name
    """

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}

    def keep(self, name: str, descriptors: Sequence[int]) -> None:
        """As :func:`peerd.fdstore.keep`."""
        self.kept.setdefault(name, []).extend(os.dup(fd) for fd in descriptors)

    def forget(self, name: str) -> None:
        """As :func:`peerd.fdstore.forget`."""
        for fd in self.kept.pop(name, []):
            os.close(fd)

    def given(self) -> dict[str, list[int]]:
        """What the next process of peerd is given; the store keeps its own."""
        return {name: [os.dup(fd) for fd in descriptors] for name, descriptors in self.kept.items()}


async def readable(fd: int) -> None:
    """Wait until a descriptor can be read; one of pidfd_open(2) can once its process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def _processes() -> dict[int, tuple[int, int, str]]:
    """All processes: the parent, the session and the name of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): pid, the name in parentheses, state, parent, process group, session.
            head, _, tail = path.read_text("utf-8", "replace").rpartition(")")
            pid, _, name = head.partition(" (")
            state, parent, _, session = tail.split()[:4]
            found[int(pid)] = (int(parent), int(session), f"{name} ({state})")
    return found


async def read_all(fd: int) -> bytes:
    """All that comes out of a pipe until its end."""
    os.set_blocking(fd, False)
    data = b""
    while True:
        await readable(fd)
        chunk = os.read(fd, 65536)
        if not chunk:
            return data
        data += chunk


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, with what they are."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return {fd: what for fd, what in found.items() if what != f"/proc/{os.getpid()}/fd"}


def children() -> dict[int, str]:
    """The children of this process, zombies among them, with their names."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    return {pid: name for pid, (parent, _, name) in _processes().items() if parent == os.getpid()}


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, closed at the end: to read from, to write to."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for fd in ends:
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def scarce(count: int) -> Iterator[None]:
    """This process can open no more than so many descriptors (RLIMIT_NOFILE of setrlimit(2))."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = itertools.filterfalse(descriptors().__contains__, itertools.count())
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def full() -> Iterator[None]:
    """Nothing can be written to any file: as a full disk, but for the error (setrlimit(2))."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
        # The traceback of a failure has the statement, and that the file.
        gc.collect()


def frames(data: bytes) -> list[Frame]:
    """The frames in these bytes."""
    decoder = Decoder()
    decoder.feed(data)
    found = []
    while frame := decoder.next():
        found.append(frame)
    assert not decoder.partial
    return found


CALLER = Caller("laptop", "ann")


@contextlib.asynccontextmanager
async def executing(scope_manager: ScopeManager | None = None, **changes: Any) -> AsyncIterator[Executor]:
    """An executor that has nothing to do any more at the end."""
    config = settings(**changes)
    with tempfile.TemporaryDirectory() as state:
        past = History(Path(state) / "jobs.db")
        storage = Storage(Path(state) / "jobs", lambda: config)
        executor = Executor(scope_manager or FakeScopes(), past, storage, lambda: config, lambda: "vps", lambda: None)
        try:
            yield executor
            assert executor.running == 0
        finally:
            await executor.close()
            past.close()


async def run(
    executor: Executor,
    asked: ExecRequest,
    sink: Sink | None = None,
    cancel: asyncio.Event | None = None,
    caller: Caller = CALLER,
) -> ExecResult:
    """Run a command to its end for a caller who hears all of it."""
    try:
        await executor.launch(asked, caller)
    except PeerdError as error:
        return ExecResult.failure(error)
    return await hear(executor, asked, sink, cancel)


async def hear(
    executor: Executor, asked: ExecRequest, sink: Sink | None = None, cancel: asyncio.Event | None = None
) -> ExecResult:
    """Hear of a command to its end, from where this sink left it."""
    delivery, heard = Delivery(), sink or Heard()
    if isinstance(heard, Heard):
        delivery.confirm({stream: len(data) for stream, data in heard.streams.items()})
    audience = Session(CALLER, ConfirmingSink(heard, delivery), cancel or asyncio.Event(), delivery=delivery)
    result = await executor.attend(asked.exec_id, audience, delivery.offsets)
    assert result is not None
    executor.delivered(asked.exec_id)
    return result
