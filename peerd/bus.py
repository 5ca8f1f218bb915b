"""peerd on the system bus: what :mod:`peerd.busapi` describes, as a thin front of the service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus

from peerd import busapi, busvalues, parameters, users
from peerd.answer import Answer, whole
from peerd.backoff import Backoff
from peerd.busapi import INTERFACES, MANAGER, ROOT
from peerd.buscallers import Callers
from peerd.busjobs import Jobs
from peerd.buslink import CALL_TIMEOUT, DRIVER, Connection, Refused, ask, deliver, enter, gone, is_heard, leave, post
from peerd.busobjects import Objects
from peerd.buspipes import Pipes
from peerd.busvalues import Collected
from peerd.commands import Command
from peerd.config import Config
from peerd.errors import EXIT_FAILURE, PeerdError
from peerd.executor import Executor
from peerd.job import Job
from peerd.journal import Event, log, report
from peerd.messages import STREAMS, ExecRequest
from peerd.node import Node
from peerd.polkit import Polkit
from peerd.service import Service
from peerd.session import Caller, ConfirmingSink, Delivery, Session

_DBUS = "org.freedesktop.DBus"
_QUIET_ATTEMPTS = 4
"""At installation the policy that gives us the name is on its way, and needs no words."""
_GATHER = 0.05
_GATHER_PER_PEER = 0.0002
"""Seconds in which changes become one signal; all peers are looked through for what has changed."""
_TOGETHER = 0.01
"""Seconds for which a signal waits: the commands that it tells of do not wait for it."""
_NO_QUEUE = 4
_OWNER = (1, 4)
"""Flag and replies of RequestName in the D-Bus specification: become or already be the owner, or fail."""


class Bus:
    """Holds peerd's name on the system bus, whenever there is one, and serves its callers.

    :param address: the bus, where it is another than the system's
    """

    def __init__(
        self, node: Node, service: Service, executor: Executor, config: Callable[[], Config], address: str = ""
    ) -> None:
        self._node = node
        self._service = service
        self._address = address
        self._bus: MessageBus | None = None
        self._holder: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._polkit = Polkit(self._call)
        self._callers = Callers(self._ask_bus, lambda: config().max_connections)
        self._jobs = Jobs(executor, self._signal)
        self._objects = Objects(node, self._status, self._jobs, self._signal)
        self._due: asyncio.TimerHandle | None = None
        self._untold: list[tuple[str, str, str, list[Any]]] = []
        self._telling: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take the name as soon as there is a bus."""
        self._holder = asyncio.create_task(self._hold())

    async def close(self) -> None:
        """Leave the bus; calls that still run are not answered."""
        for timer in (self._due, self._telling):
            if timer:
                timer.cancel()
        tasks = [*self._tasks, *([self._holder] if self._holder else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self) -> None:
        """Something may have changed that a property shows; signals follow."""
        self._jobs.changed()
        if self._bus and self._due is None:
            gather = _GATHER + _GATHER_PER_PEER * len(self._node.book)
            self._due = asyncio.get_running_loop().call_later(gather, self._announce_soon)

    # --- the connection

    async def _hold(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._serve()
                backoff.reset()
            except Exception as error:
                if backoff.taken == _QUIET_ATTEMPTS:
                    log(Event.BUS_UNAVAILABLE, f"Not on the system bus: {type(error).__name__}: {error}")
            await asyncio.sleep(backoff.take())

    async def _serve(self) -> None:
        """Be on the bus until it goes away."""
        bus = Connection(self._address, BusType.SYSTEM, negotiate_unix_fd=True)
        try:
            await enter(bus)
            self._bus = bus
            await self._objects.begin()
            bus.add_message_handler(self._on_message)
            [reply] = await self._ask_bus("RequestName", "su", [busapi.NAME, _NO_QUEUE])
            if reply not in _OWNER:
                raise ConnectionError(f"{busapi.NAME} belongs to somebody else")
            await gone(bus)
        finally:
            self._bus = None
            self._callers.all_left()
            await leave(bus)

    async def _ask_bus(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        return await self._call(*DRIVER, member, signature, body)

    async def _call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        timeout: float = CALL_TIMEOUT,
    ) -> list[Any]:
        if self._bus is None:
            raise ConnectionError("not on the bus")
        return await ask(self._bus, destination, path, interface, member, signature, body, timeout)

    def _send(self, message: Message) -> None:
        # What a reply is about was told before.
        self._tell()
        if self._bus and self._bus.connected:
            post(self._bus, message)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls

    def _on_message(self, message: Message) -> bool:
        for fd in message.unix_fds:
            os.close(fd)
        if message.message_type is MessageType.METHOD_CALL:
            self._spawn(self._answer(message))
            return True
        if is_heard(message, _DBUS, "NameOwnerChanged"):
            name, _, owner = message.body
            if not owner:
                self._callers.left(name)
        return False

    async def _answer(self, message: Message) -> None:
        try:
            answered = await self._handle(message)
            if answered is None:
                return
            reply = Message.new_method_return(message, *answered)
        except PeerdError as error:
            reply = Message.new_error(message, busapi.error_name(error.code), error.text.rstrip("\n"))
        except Refused as error:
            reply = Message.new_error(message, error.name, str(error))
        except (OSError, EOFError) as error:
            reply = Message.new_error(message, f"{_DBUS}.Error.Failed", f"{type(error).__name__}: {error}")
        except Exception as error:
            report(error, f"{message.interface}.{message.member} on D-Bus")
            reply = Message.new_error(message, f"{_DBUS}.Error.Failed", f"Internal error: {type(error).__name__}")
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._send(reply)

    async def _handle(self, message: Message) -> tuple[str, list[Any]] | None:
        """Do what a message asks for: the signature and the body of the reply, or None where it has been sent."""
        interfaces = busapi.interfaces_of(message.path, self._objects.paths())
        if not interfaces:
            raise Refused("UnknownObject", f"No such object: {message.path}")
        name, method = self._find(message, interfaces)
        if message.signature not in (method.signature, method.signature.removesuffix(busapi.OPTIONS)):
            raise Refused("InvalidArgs", f"{message.member} takes ({method.signature}), not ({message.signature})")
        if name == MANAGER and message.member == busapi.START:
            await self._start(message)
            return None
        if name == MANAGER:
            return method.returns, await self._do(message, busapi.CALLABLE[message.member])
        return method.returns, await self._standard(message)

    @staticmethod
    def _find(message: Message, interfaces: Sequence[str]) -> tuple[str, busapi.Method]:
        if message.interface and message.interface not in interfaces:
            raise Refused("UnknownInterface", f"No such interface at {message.path}: {message.interface}")
        for name in [message.interface] if message.interface else interfaces:
            if message.member in INTERFACES[name].methods:
                return name, INTERFACES[name].methods[message.member]
        raise Refused("UnknownMethod", f"No such method at {message.path}: {message.member}")

    async def _standard(self, message: Message) -> list[Any]:
        match message.member:
            case "Introspect":
                return [busapi.introspection(message.path, self._objects.paths())]
            case "GetMachineId":
                return [_machine_id()]
            case "GetManagedObjects":
                objects = await self._objects.all()
                return [{path: shown for path, shown in objects.items() if path != ROOT}]
            case "Get" | "GetAll" | "Set":
                return await self._properties(message)
        return []

    async def _properties(self, message: Message) -> list[Any]:
        interface, *rest = message.body
        if interface and interface not in busapi.interfaces_of(message.path, self._objects.paths()):
            raise Refused("UnknownInterface", f"No such interface at {message.path}: {interface}")
        shown = (await self._objects.all(message.path)).get(message.path, {})
        # An empty name stands for every interface (D-Bus Specification, Standard Interfaces).
        values = shown.get(interface, {}) if interface else ChainMap(*shown.values())
        if message.member == "GetAll":
            return [dict(values)]
        if rest[0] not in values:
            raise Refused("UnknownProperty", f"No such property of {interface}: {rest[0]}")
        if message.member == "Set":
            raise Refused("PropertyReadOnly", f"{rest[0]} cannot be set; see SetPeerConfig")
        return [values[rest[0]]]

    async def _do(self, message: Message, command: Command) -> list[Any]:
        """Do a command for whoever may."""
        params, sink = _parameters(message, command), Collected()
        async with self._calling(message, command, params, sink) as session:
            answer = await whole(await self._service.call(command.name, params, session), busapi.MAX_DATA)
            return busvalues.reply(command, answer, sink)

    async def _start(self, message: Message) -> None:
        """Start a command and answer with its job and its streams; return when it has ended."""
        command = busapi.CALLABLE["ExecOnPeer"]
        params, pipes = _parameters(message, command), Pipes()
        ids: list[str] = []
        try:
            async with self._calling(message, command, params, pipes) as session:
                pipes.cancel = session.cancel
                telling = replace(session, running=lambda exec_id, step: ids.append(exec_id))
                work = asyncio.ensure_future(self._service.call(command.name, params, telling))
                begun = asyncio.ensure_future(pipes.begun.wait())
                try:
                    await asyncio.wait((work, begun), return_when=asyncio.FIRST_COMPLETED)
                    if not begun.done():
                        # It has ended before it began, so this raises why.
                        answer = await work
                        if answer.error and not ids:
                            raise answer.error
                        busvalues.reply(command, answer, Collected())
                    await self._stream(message, ids[0], params, session.caller, pipes, work)
                finally:
                    for task in (work, begun):
                        task.cancel()
                    await asyncio.wait((work, begun))
        finally:
            pipes.close()

    async def _stream(
        self,
        message: Message,
        exec_id: str,
        params: Mapping[str, Any],
        caller: Caller,
        pipes: Pipes,
        work: asyncio.Future[Answer],
    ) -> None:
        given = {name: params[name] for name in ("directory", "shell_cmd", "argv", "user") if name in params}
        request = ExecRequest(exec_id, **given)
        self._jobs.begin(Job.of(request, params["peer"], str(caller), time.time_ns() // 1000))
        outcome, status = "", EXIT_FAILURE
        try:
            self._tell()
            body = [busapi.job_path(exec_id), 0, 1]
            if self._bus and self._bus.connected:
                await deliver(self._bus, Message.new_method_return(message, "ohh", body, unix_fds=pipes.given))
            pipes.give()
            answer = await work
            if answer.error:
                pipes.say(answer.error.text.rstrip("\n"))
            outcome, status = str((answer.record or {}).get("outcome", "")), answer.status
        finally:
            self._jobs.end(exec_id, outcome, status)

    @contextlib.asynccontextmanager
    async def _calling(
        self, message: Message, command: Command, params: Mapping[str, Any], sink: Collected | Pipes
    ) -> AsyncIterator[Session]:
        """The session of a call, for whoever may; it is cancelled when its caller leaves the bus."""
        async with self._callers.calling(str(message.sender)) as (uid, left):
            await self._polkit.authorize(message, uid, command, params)
            yield _session(Caller(self._node.peer_id, users.name(uid)), sink, left)

    # --- what is shown

    async def _status(self) -> Mapping[str, object]:
        session = _session(Caller(self._node.peer_id), Collected(), asyncio.Event())
        status = (await self._service.call("getPeerStatus", {}, session)).data
        assert isinstance(status, dict)
        return status

    def _announce_soon(self) -> None:
        self._due = None
        self._spawn(self._objects.announce())

    def _signal(self, path: str, interface: str, member: str, body: list[Any]) -> None:
        self._untold.append((path, interface, member, body))
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TOGETHER, self._tell)

    def _tell(self) -> None:
        """Send the signals that wait."""
        if self._telling:
            self._telling.cancel()
            self._telling = None
        untold, self._untold = [*self._jobs.added(), *self._untold], []
        if self._bus and self._bus.connected:
            for path, interface, member, body in untold:
                signature = "".join(signature for _, signature in INTERFACES[interface].signals[member])
                post(self._bus, Message.new_signal(path, interface, member, signature, body))


def _machine_id() -> str:
    return Path("/etc/machine-id").read_text("ascii").strip()


def _parameters(message: Message, command: Command) -> dict[str, Any]:
    return parameters.check(command.name, busapi.parameters(command, [busvalues.plain(item) for item in message.body]))


def _session(caller: Caller, sink: Collected | Pipes, cancel: asyncio.Event) -> Session:
    """The session of a caller that has all that its sink took, sends nothing, and once lost wants nothing more."""
    delivery = Delivery()

    def running(exec_id: str, step: int) -> None:
        # The output of each command begins anew.
        delivery.confirm(dict.fromkeys(STREAMS, 0))

    confirming = ConfirmingSink(sink, delivery)
    return Session(caller, confirming, cancel, say=sink.say, delivery=delivery, running=running)
