"""The two sockets: what their messages mean, and who may send them. What they do is the service's to know."""

from __future__ import annotations

import asyncio
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from peerd import __version__, cli, messages, network, validate
from peerd.commands import BY_NAME
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.executor import Caller, Executor
from peerd.journal import Event, log, report
from peerd.messages import ExecRequest, Registration, take
from peerd.node import Node
from peerd.peers import Peer
from peerd.protocol import Frame
from peerd.render import render
from peerd.service import Answer, Service, Session

_HELLO_LIMIT = 10.0
_IDLE_LIMIT = 300.0
_MAX_ARGUMENTS = 4096
_UCRED = struct.Struct("3i")


class FrameSink:
    """Sends a command's output over a connection, at the pace of whoever reads it."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    async def started(self) -> None:
        """Tell that the command was started."""
        await self._link.send("started")

    async def output(self, stream: str, data: bytes) -> None:
        """Send output of "stdout" or "stderr"."""
        await self._link.send("output", {"stream": stream}, data)


class Front:
    """Serves one listening socket."""

    def __init__(self, node: Node, config: Callable[[], Config]) -> None:
        self._node = node
        self._config = config
        self._connections: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; the callback of asyncio's servers."""
        link = Connection(reader, writer)
        who = self.who(link)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._config().max_connections:
                raise PeerdError(Code.BUSY, reason="too many connections (max-connections)")
            await self._serve(link, who)
        except PeerdError as error:
            log(Event.PROTOCOL_ERROR, f"{who}: {error.sentence}")
            link.post("error", error.to_wire())
        except (OSError, asyncio.CancelledError):
            link.abort()
        except Exception as error:
            report(error, who)
            link.abort()
        finally:
            self._connections.discard(task)
            link.close()

    def close(self) -> None:
        """End all connections."""
        for task in self._connections:
            task.cancel()

    def who(self, link: Connection) -> str:
        """The other end, for the journal."""
        raise NotImplementedError

    async def _serve(self, link: Connection, who: str) -> None:
        raise NotImplementedError

    async def _greet(self, link: Connection) -> None:
        async with asyncio.timeout(_HELLO_LIMIT):
            messages.check_hello((await link.expect("hello")).fields)
        await link.send("hello", messages.hello(__version__))

    async def _answer(self, link: Connection, handler: Callable[[Frame], Awaitable[None]], frame: Frame) -> None:
        """Handle one message; an error of its sender's making is the answer, and the connection goes on."""
        try:
            await handler(frame)
        except PeerdError as error:
            await link.send("error", error.to_wire())
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__} while handling {validate.printable(frame.type)}"
            report(error, reason)
            await link.send("error", PeerdError(Code.INTERNAL, reason=reason).to_wire())


async def _cancellable(link: Connection, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Do work while listening for ``cancel`` and for the loss of the connection, both of which set the event."""
    cancel = asyncio.Event()
    watcher = asyncio.create_task(_watch(link, cancel))
    try:
        await work(cancel)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _watch(link: Connection, cancel: asyncio.Event) -> None:
    try:
        while True:
            frame = await link.receive()
            if frame is None or frame.type == "cancel":
                break
            if frame.type != "ping":
                link.post("error", PeerdError(Code.BAD_MESSAGE, reason="a command runs on this connection").to_wire())
                break
            link.post("pong")
    except PeerdError as error:
        link.post("error", error.to_wire())
    finally:
        if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
            cancel.set()


class TcpFront(Front):
    """Serves other peers. A peer is the address that its connection comes from, through the VPN's interface."""

    def __init__(self, node: Node, executor: Executor, config: Callable[[], Config]) -> None:
        super().__init__(node, config)
        self._executor = executor

    def who(self, link: Connection) -> str:
        """The address of the other end."""
        return link.address

    async def _serve(self, link: Connection, who: str) -> None:
        if not network.came_through(link.socket, self._config().vpn_interface) or network.is_own_address(who):
            log(Event.CONNECTION_REFUSED, f"Connection from {who} refused: not through the VPN", address=who)
            link.abort()
            return
        network.tune(link.socket)
        await self._greet(link)
        registered = ""
        try:
            while True:
                async with asyncio.timeout(None if registered else _IDLE_LIMIT):
                    frame = await link.receive()
                if frame is None:
                    return
                if frame.type == "registerPeer":
                    try:
                        registered = await self._register(link, who, frame)
                    except PeerdError as error:
                        await link.send("error", error.to_wire())
                elif frame.type == "heartbeat" and registered and self._node.hub:
                    self._node.hub.heard(link, registered)
                else:
                    await self._answer(link, lambda frame: self._handle(link, who, frame), frame)
        finally:
            if registered and self._node.hub:
                self._node.hub.left(link, registered)

    async def _register(self, link: Connection, address: str, frame: Frame) -> str:
        if self._node.hub is None:
            raise PeerdError(Code.NOT_LEADER, address=self._node.address or self._node.peer_id)
        return (await self._node.hub.register(link, address, Registration.from_wire(frame.fields))).peer_id

    async def _handle(self, link: Connection, address: str, frame: Frame) -> None:
        if frame.type == "ping":
            await link.send("pong")
        if frame.type in ("ping", "cancel"):  # A cancel may come as its command ends.
            return
        peer = await self._node.identify(address)
        match frame.type:
            case "execRequest":
                await self._execute(link, peer, ExecRequest.from_wire(frame.fields))
            case "getPeerInfo":
                await link.send("reply", self._find(frame.fields).to_wire())
            case "listPeers" if self._node.hub:
                self._node.hub.tell_all(link)
            case "deletePeer" if self._node.hub:
                await self._node.delete(take(frame.fields, "peer", validate.peer_id), peer.peer_id)
                await link.send("reply")
            case _:
                raise PeerdError(Code.UNKNOWN_MESSAGE, name=frame.type)

    def _find(self, fields: Mapping[str, object]) -> Peer:
        if "address" in fields:
            wanted = take(fields, "address", validate.address)
            found = self._node.book.by_address(wanted)
        else:
            wanted = take(fields, "peer", validate.peer_id)
            found = self._node.book.by_id(wanted)
        if found is None:
            raise PeerdError(Code.PEER_NOT_FOUND, peer=wanted)
        return found

    async def _execute(self, link: Connection, peer: Peer, request: ExecRequest) -> None:
        async def work(cancel: asyncio.Event) -> None:
            result = await self._executor.run(request, Caller(peer.peer_id), FrameSink(link), cancel)
            await link.send("result", result.to_wire())

        await _cancellable(link, work)


class UnixFront(Front):
    """Serves local callers: ``d``, by its arguments, and programs, by command and parameters."""

    def __init__(self, node: Node, service: Service, config: Callable[[], Config]) -> None:
        super().__init__(node, config)
        self._service = service

    def who(self, link: Connection) -> str:
        """The user at the other end."""
        _, uid, _ = _UCRED.unpack(link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"

    async def _serve(self, link: Connection, who: str) -> None:
        await self._greet(link)
        while True:
            frame = await link.receive()
            if frame is None:
                return
            await self._answer(link, lambda frame: self._handle(link, who, frame), frame)

    async def _handle(self, link: Connection, who: str, frame: Frame) -> None:
        match frame.type:
            case "ping":
                await link.send("pong")
            case "cancel":  # The command ended as it came.
                return
            case "invoke":
                await self._invoke(link, who, frame.fields)
            case "call":
                await self._call(link, who, frame.fields)
            case _:
                raise PeerdError(Code.UNKNOWN_MESSAGE, name=frame.type)

    async def _invoke(self, link: Connection, who: str, fields: Mapping[str, object]) -> None:
        """A command line of ``d``: answered with what to print and the exit status."""
        argv = take(fields, "argv", _arguments)
        terminal = take(fields, "terminal", validate.boolean, False)
        width = take(fields, "width", lambda value: validate.integer(value, 20, 1000), 80)
        parsed = cli.parse(argv, width)
        if isinstance(parsed, cli.Reply):
            await _print(link, "stdout", parsed.stdout)
            await _print(link, "stderr", parsed.stderr)
            await link.send("exit", {"status": parsed.status})
            return

        async def work(cancel: asyncio.Event) -> None:
            answer = await self._run(link, who, parsed.command, parsed.params, cancel)
            if answer.data is not None:
                as_json = parsed.json or not terminal
                await _print(link, "stdout", render(BY_NAME[parsed.command], answer.data, as_json))
            await _print(link, "stdout", f"{answer.text}\n" if answer.text else "")
            await _print(link, "stderr", answer.error.text if answer.error else "")
            await link.send("exit", {"status": answer.status})

        await _cancellable(link, work)

    async def _call(self, link: Connection, who: str, fields: Mapping[str, object]) -> None:
        """A command by name and parameters: answered with its data."""
        name = take(fields, "command", _command)
        params = _parameters(name, fields.get("params"))

        async def work(cancel: asyncio.Event) -> None:
            answer = await self._run(link, who, name, params, cancel)
            reply = {"data": answer.data, "text": answer.text, "status": answer.status}
            if answer.error:
                reply["error"] = answer.error.to_wire()
            await link.send("reply", reply)

        await _cancellable(link, work)

    async def _run(
        self, link: Connection, who: str, name: str, params: Mapping[str, Any], cancel: asyncio.Event
    ) -> Answer:
        def say(line: str) -> None:
            link.post("output", {"stream": "stderr"}, f"{line}\n".encode())

        session = Session(Caller(self._node.peer_id, who), FrameSink(link), cancel, say)
        try:
            return await self._service.call(name, params, session)
        except PeerdError as error:
            return Answer(error=error, status=error.kind.exit_status)


async def _print(link: Connection, stream: str, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    for start in range(0, len(data), messages.MAX_OUTPUT):
        await link.send("output", {"stream": stream}, data[start : start + messages.MAX_OUTPUT])


def _arguments(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > _MAX_ARGUMENTS:
        raise ValueError(f"must be a list of at most {_MAX_ARGUMENTS} strings")
    return [validate.string(item, "argument", validate.MAX_COMMAND) for item in value]


def _command(value: object) -> str:
    command = BY_NAME.get(value) if isinstance(value, str) else None
    if command is None or command.argument:
        raise ValueError(f"no such command: {validate.shown(value)}")
    return command.name


def _parameters(name: str, given: object) -> dict[str, Any]:
    options = {option.name: option for option in BY_NAME[name].options}
    pairs = {} if given is None else given
    if not isinstance(pairs, dict):
        raise PeerdError(Code.BAD_MESSAGE, reason="params must be an object")
    unknown = [key for key in pairs if key not in options]
    missing = [key for key, option in options.items() if option.required and key not in pairs]
    if unknown or missing:
        raise PeerdError(Code.USAGE, reason=f"{name}: unknown {unknown}, missing {missing}")
    checked = {}
    for key, value in pairs.items():
        option = options[key]
        try:
            checked[key] = option.parse(value) if option.parse else validate.boolean(value)
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"{name}: {key}: {error}") from None
        if option.choices and checked[key] not in option.choices:
            raise PeerdError(Code.USAGE, reason=f"{name}: {key} must be one of {', '.join(option.choices)}")
    return checked
