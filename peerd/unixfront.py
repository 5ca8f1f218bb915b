"""The unix socket: what the messages of ``d`` and of other local programs mean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

from peerd import cli, messages, network, parameters, refusals, users, validate
from peerd.answer import Answer, Batch, Record, whole
from peerd.commands import BY_NAME, Command
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import EXIT_CANCELLED, Code, PeerdError
from peerd.fronts import LATE, Conversation, FrameSink, Front
from peerd.journal import Event, log
from peerd.jsonrecord import Printer
from peerd.messages import take, take_optional
from peerd.node import Node
from peerd.protocol import MAX_HEADER, Frame
from peerd.render import Renderer, failure, in_portions, render, render_more
from peerd.service import Service
from peerd.session import Caller, ConfirmingSink, Hearing, Resume, Session

_MAX_ARGUMENTS = 4 * validate.MAX_ARGUMENTS
"""More than any command takes, which then says so itself."""


class UnixFront(Front):
    """Serves local callers: ``d``, by its arguments, and programs, by command and parameters."""

    def __init__(self, node: Node, service: Service, config: Callable[[], Config]) -> None:
        super().__init__(node, config)
        self._service = service

    def who(self, link: Connection) -> str:
        """The user at the other end."""
        uid, _ = users.credentials(link.socket)
        return users.name(uid)

    async def _serve(self, link: Connection, who: str) -> None:
        network.make_room(link.socket, 2 * messages.MAX_OUTPUT)
        await self._greet(link)
        frame = await link.receive()
        while frame:
            # Who asks for something else or goes by itself has heard all, and comes back for nothing.
            async with Hearing() as hearing:
                await self._answer(link, partial(self._handle, link, who, hearing), frame)
                while (frame := await link.receive()) and frame.type in LATE:
                    pass

    async def _handle(self, link: Connection, who: str, hearing: Hearing, frame: Frame) -> None:
        if not users.is_member(link.socket):
            if refusals.connections.refused(who):
                log(Event.CALLER_REFUSED, f"Connection from {who} refused: no member of the group", caller=who)
            raise PeerdError(Code.DENIED, reason="only root and members of the group peerd may use d")
        match frame.type:
            case "invoke":
                await self._invoke(link, who, hearing, frame.fields)
            case "call":
                await self._call(link, who, frame.fields)
            case _:
                raise PeerdError(Code.UNKNOWN_MESSAGE, name=frame.type)

    async def _invoke(self, link: Connection, who: str, hearing: Hearing, fields: Mapping[str, object]) -> None:
        """A command line of ``d``: answered with what to print and the exit status."""
        argv = take(fields, "argv", _arguments)
        terminal = take(fields, "terminal", validate.boolean, False)
        color = take(fields, "color", validate.boolean, False)
        width = take(fields, "width", lambda value: validate.integer(value, 20, 1000), 80)
        parsed = cli.parse(argv, width, self._service.known)
        if isinstance(parsed, cli.Reply):
            await _print(link, "stdout", parsed.stdout)
            await _print(link, "stderr", parsed.stderr)
            await link.send("exit", {"status": parsed.status})
            return

        command = BY_NAME[parsed.command]
        collects = parsed.json and command.record and not parsed.params.get("detach")
        if collects:
            # The client holds the output until the record is complete: it may be more than a daemon should.
            await link.send("collect", {"events": parsed.stream})
        resume = take_optional(fields, "resume", _resume)
        after = take(fields, "after", validate.cursor, "")
        async with Conversation(link) as talk:
            answer = await self._run(link, who, parsed.command, parsed.params, talk, resume, hearing, after)
            comes = answer.more or answer.rows
            if answer.more is not None:
                answer = await _tell_more(link, command, answer.more, parsed.json or not terminal, color)
            elif answer.rows is not None:
                renderer = in_portions(command, parsed.json or not terminal, color)
                answer = await _tell_rows(link, answer.rows, renderer, talk.cancel)
            if comes and talk.cancel.is_set():
                answer = Answer(status=EXIT_CANCELLED)
        last: dict[str, object] = {"status": answer.status}
        data = _record(answer) if parsed.json and command.record else answer.data
        if collects:
            last["record"] = data
        elif parsed.json and command.record and (parsed.stream or answer.record is None):
            # What was not even asked for has a record with its output, which is none.
            await _print(link, "stdout", Printer(parsed.stream).result(_record(answer)))
        elif data is not None:
            await _print(link, "stdout", render(command, data, parsed.json or not terminal, color))
        elif answer.text:
            await _print(link, "stdout", f"{answer.text}\n")
        if answer.error and not (collects and answer.record):
            await _print(link, "stderr", answer.error.text)
        await link.send("exit", last)

    async def _call(self, link: Connection, who: str, fields: Mapping[str, object]) -> None:
        """A command by name and parameters: answered with its data."""
        name = take(fields, "command", parameters.command_name)
        params = parameters.check(name, fields.get("params"))
        async with Conversation(link) as talk:
            answer = await self._run(link, who, name, params, talk)
            comes = answer.more or answer.rows
            answer = await whole(answer, MAX_HEADER)
            if answer.more is not None:
                answer = await _tell_more(link, BY_NAME[name], answer.more, True, False)
            if comes and talk.cancel.is_set():
                answer = Answer(status=EXIT_CANCELLED)
        reply = {"data": answer.data, "text": answer.text, "status": answer.status, "record": answer.record}
        if answer.error:
            reply["error"] = answer.error.to_wire()
        await link.send("reply", reply)

    async def _run(
        self,
        link: Connection,
        who: str,
        name: str,
        params: Mapping[str, Any],
        talk: Conversation,
        resume: Resume | None = None,
        hearing: Hearing | None = None,
        after: str = "",
    ) -> Answer:
        def say(line: str) -> None:
            link.post("output", {"stream": "stderr", "by": "peerd"}, f"{line}\n".encode())

        def running(exec_id: str, step: int) -> None:
            talk.exec_id = exec_id
            at = resume.offsets if resume and resume.step == step else dict.fromkeys(messages.STREAMS, 0)
            talk.delivery.confirm(at)
            link.post("running", {"execId": exec_id, "step": step})

        async def leave_with_caller() -> None:
            # The end of a local connection is the end of its program, which wants no more of what it asked for.
            await talk.gone.wait()
            talk.cancel.set()

        # Only a command line can be resumed.
        sink = talk.sink() if hearing else ConfirmingSink(FrameSink(link), talk.delivery)
        caller = Caller(self._node.peer_id, who)
        session = Session(
            caller, sink, talk.cancel, talk.gone, say, talk.stdin, talk.delivery, running, resume, hearing, after
        )
        command = BY_NAME[name]
        if not (command.record or command.output):
            # From here on its caller must not ask again; of a command on a peer it hears once that is asked for.
            link.post("running", {"execId": "", "step": 1})
        leaving = asyncio.create_task(leave_with_caller())
        try:
            return await self._service.call(name, params, session)
        except PeerdError as error:
            return Answer(error=error, status=error.kind.exit_status)
        finally:
            leaving.cancel()


async def _tell_more(
    link: Connection,
    command: Command,
    more: AsyncGenerator[Batch, None],
    as_json: bool,
    color: bool,
) -> Answer:
    """Print records as they come; what remains to be said at their end."""
    try:
        async with contextlib.aclosing(more):
            async for batch in more:
                await _print(link, "stdout", render_more(command, batch.records, as_json, color), batch.cursor)
    except PeerdError as error:
        return Answer(error=error, status=error.kind.exit_status)
    return Answer()


async def _tell_rows(
    link: Connection, rows: AsyncGenerator[list[Record], None], renderer: Renderer, cancel: asyncio.Event
) -> Answer:
    """Print data that comes some at a time; what remains to be said at its end."""
    try:
        async with contextlib.aclosing(rows):
            async for some in rows:
                await _print(link, "stdout", renderer.add(some))
        # What is not whole must not look so.
        for text in () if cancel.is_set() else renderer.rest():
            await _print(link, "stdout", text)
            # All of it takes long.
            await asyncio.sleep(0)
    except PeerdError as error:
        return Answer(error=error, status=error.kind.exit_status)
    return Answer()


def _record(answer: Answer) -> Mapping[str, object]:
    if answer.record:
        return answer.record
    assert answer.error is not None
    return failure(answer.error, answer.status)


async def _print(link: Connection, stream: str, text: str, cursor: str = "") -> None:
    """Print some text.

    :param cursor: how far who has all of it has come in a journal
    """
    data = text.encode("utf-8", "backslashreplace")
    pieces = [data[start : start + messages.MAX_OUTPUT] for start in range(0, len(data), messages.MAX_OUTPUT)]
    last = {"cursor": cursor} if cursor else {}
    for piece in pieces[:-1]:
        await link.send("output", {"stream": stream, "by": "peerd"}, piece)
    if pieces or last:
        await link.send("output", {"stream": stream, "by": "peerd", **last}, pieces[-1] if pieces else b"")


def _resume(value: object) -> Resume:
    fields = value if isinstance(value, dict) else {}
    step = take(fields, "step", lambda step: validate.integer(step, 1, 100))
    return Resume(take(fields, "execId", validate.exec_id), step, messages.take_offsets(fields))


def _arguments(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > _MAX_ARGUMENTS:
        raise ValueError(f"must be a list of at most {_MAX_ARGUMENTS} strings")
    return [validate.string(item, "argument", validate.MAX_COMMAND) for item in value]
