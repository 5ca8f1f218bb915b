"""The unix socket, and what both sockets have in common. What messages do is the service's to know."""

from __future__ import annotations

import asyncio
import pwd
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from peerd import __version__, cli, messages, network, validate
from peerd.answer import Answer
from peerd.commands import BY_NAME
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log, report
from peerd.messages import take
from peerd.node import Node
from peerd.protocol import Frame
from peerd.render import encoded, error_fields, event_line, render
from peerd.service import Service
from peerd.session import Caller, Session, Sink
from peerd.stdin import Stdin

_HELLO_LIMIT = 10.0
_MAX_ARGUMENTS = 4096
_LATE = ("cancel", "stdin")
"""What may come just as its command ends, and then means nothing."""


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


class EventSink:
    """Prints a command's output as events, one JSON object a line, on the caller's stdout."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    async def started(self) -> None:
        """Print that the command was started."""
        await _print(self._link, "stdout", event_line("started", {}))

    async def output(self, stream: str, data: bytes) -> None:
        """Print some output of "stdout" or "stderr"."""
        await _print(self._link, "stdout", event_line("output", {"stream": stream, **encoded(data)}))


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
            if frame.type == "ping":
                await link.send("pong")
            elif frame.type not in _LATE:
                await handler(frame)
        except PeerdError as error:
            await link.send("error", error.to_wire())
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__} while handling {validate.printable(frame.type)}"
            report(error, reason)
            await link.send("error", PeerdError(Code.INTERNAL, reason=reason).to_wire())


async def cancellable(link: Connection, work: Callable[[asyncio.Event, Stdin], Awaitable[None]]) -> None:
    """Do work while listening for stdin, for ``cancel`` and for the end of the connection; the latter set the event."""
    cancel = asyncio.Event()
    stdin = Stdin(lambda size: link.post("stdinCredit", {"bytes": size}))
    watcher = asyncio.create_task(_watch(link, cancel, stdin))
    try:
        await work(cancel, stdin)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _watch(link: Connection, cancel: asyncio.Event, stdin: Stdin) -> None:
    try:
        while True:
            frame = await link.receive()
            if frame is None or frame.type == "cancel":
                break
            if frame.type == "stdin":
                stdin.feed(frame.payload)
                continue
            if frame.type != "ping":
                link.post("error", PeerdError(Code.BAD_MESSAGE, reason="a command runs on this connection").to_wire())
                break
            link.post("pong")
    except PeerdError as error:
        link.post("error", error.to_wire())
    finally:
        if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
            cancel.set()


class UnixFront(Front):
    """Serves local callers: ``d``, by its arguments, and programs, by command and parameters."""

    def __init__(self, node: Node, service: Service, config: Callable[[], Config]) -> None:
        super().__init__(node, config)
        self._service = service

    def who(self, link: Connection) -> str:
        """The user at the other end."""
        options = socket.SOL_SOCKET, socket.SO_PEERCRED, network.UCRED.size
        _, uid, _ = network.UCRED.unpack(link.socket.getsockopt(*options))
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
        if not network.is_member(link.socket):
            log(Event.CONNECTION_REFUSED, f"Connection from {who} refused: no member of the group", caller=who)
            raise PeerdError(Code.DENIED, reason="only root and members of the group peerd may use d")
        match frame.type:
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
        parsed = cli.parse(argv, width, sorted({self._node.peer_id, *self._node.book.ids()}))
        if isinstance(parsed, cli.Reply):
            await _print(link, "stdout", parsed.stdout)
            await _print(link, "stderr", parsed.stderr)
            await link.send("exit", {"status": parsed.status})
            return

        command = BY_NAME[parsed.command]

        async def work(cancel: asyncio.Event, stdin: Stdin) -> None:
            sink = EventSink(link) if parsed.stream else FrameSink(link)
            if parsed.json and command.record and not parsed.stream:
                # The client holds the output until the record is complete: it may be more than a daemon should.
                await link.send("collect")
            answer = await self._run(link, who, parsed.command, parsed.params, sink, cancel, stdin)
            if parsed.stream:
                await _print(link, "stdout", event_line("result", answer.record or _failure(answer)))
            elif parsed.json and command.record:
                await link.send("exit", {"status": answer.status, "record": answer.record or _failure(answer)})
                return
            elif answer.data is not None:
                await _print(link, "stdout", render(command, answer.data, parsed.json or not terminal))
            await _print(link, "stdout", f"{answer.text}\n" if answer.text else "")
            await _print(link, "stderr", answer.error.text if answer.error else "")
            await link.send("exit", {"status": answer.status})

        await cancellable(link, work)

    async def _call(self, link: Connection, who: str, fields: Mapping[str, object]) -> None:
        """A command by name and parameters: answered with its data."""
        name = take(fields, "command", _command)
        params = _parameters(name, fields.get("params"))

        async def work(cancel: asyncio.Event, stdin: Stdin) -> None:
            answer = await self._run(link, who, name, params, FrameSink(link), cancel, stdin)
            reply = {"data": answer.data, "text": answer.text, "status": answer.status, "record": answer.record}
            if answer.error:
                reply["error"] = answer.error.to_wire()
            await link.send("reply", reply)

        await cancellable(link, work)

    async def _run(
        self,
        link: Connection,
        who: str,
        name: str,
        params: Mapping[str, Any],
        sink: Sink,
        cancel: asyncio.Event,
        stdin: Stdin,
    ) -> Answer:
        def say(line: str) -> None:
            link.post("output", {"stream": "stderr", "by": "peerd"}, f"{line}\n".encode())

        session = Session(Caller(self._node.peer_id, who), sink, cancel, say, stdin)
        try:
            return await self._service.call(name, params, session)
        except PeerdError as error:
            return Answer(error=error, status=error.kind.exit_status)


def _failure(answer: Answer) -> dict[str, object]:
    assert answer.error is not None
    return {
        "outcome": answer.error.kind.outcome.value,
        "exit_status": answer.status,
        "error": error_fields(answer.error),
    }


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
    command = BY_NAME[name]
    options = {option.name: option for option in command.options}
    pairs = {} if given is None else given
    if not isinstance(pairs, dict):
        raise PeerdError(Code.BAD_MESSAGE, reason="params must be an object")
    unknown = [key for key in pairs if key not in options and key != command.rest]
    missing = [key for key, option in options.items() if option.required and key not in pairs]
    if unknown or missing:
        raise PeerdError(Code.USAGE, reason=f"{name}: unknown {unknown}, missing {missing}")
    checked = {}
    for key, value in pairs.items():
        try:
            checked[key] = options[key].check(value) if key in options else validate.arguments(value)
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"{name}: {key}: {error}") from None
    return checked
