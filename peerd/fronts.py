"""What the two sockets have in common: connections, their greeting, and what is said while a command runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from peerd import __version__, messages, network, refusals, validate
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log, report
from peerd.node import Node
from peerd.protocol import Frame
from peerd.session import ConfirmingSink, Delivery, Sink
from peerd.spool import Data, Extent
from peerd.stdin import Stdin

_HELLO_LIMIT = 10.0
"""Seconds from the connection to its hello."""
_MAX_BACKLOG = 4 * 1024 * 1024
"""Bytes that wait to be taken by the other end, more than output ever is, beyond which nothing is heard of it."""
LATE = ("cancel", "stdin", "ack", "done")
"""What may come just as its command ends, and then means nothing."""


class FrameSink:
    """Sends a command's output over a connection, at the pace of whoever reads it."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    async def started(self) -> None:
        """Tell that the command was started."""
        self._link.post_with_next("started")

    async def output(self, stream: str, data: Data) -> None:
        """Send output of "stdout" or "stderr"."""
        if isinstance(data, Extent):
            await self._link.send_extent("output", {"stream": stream}, data)
        else:
            await self._link.send("output", {"stream": stream}, data)


class Front:
    """Serves one listening socket."""

    def __init__(self, node: Node, config: Callable[[], Config]) -> None:
        self._node = node
        self._config = config
        self._connections: set[asyncio.Task[None]] = set()

    async def accept(self, link: Connection) -> None:
        """Serve one connection to its end."""
        who = self.who(link)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._config().max_connections:
                raise PeerdError(Code.BUSY, reason="too many connections (max-connections)")
            await self._serve(link, who)
        except PeerdError as error:
            if refusals.connections.refused(who):
                log(Event.PROTOCOL_ERROR, f"{who}: {error.sentence}")
            link.post("error", error.to_wire())
        except (OSError, asyncio.CancelledError):
            link.abort()
        except Exception as error:
            if refusals.connections.refused(who):
                report(error, who)
            link.abort()
        finally:
            self._connections.discard(task)
            link.close()

    async def close(self) -> None:
        """End all connections."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def who(self, link: Connection) -> str:
        """The other end, for the journal."""
        raise NotImplementedError

    async def _serve(self, link: Connection, who: str) -> None:
        raise NotImplementedError

    async def _greet(self, link: Connection) -> None:
        async with asyncio.timeout(_HELLO_LIMIT):
            link.hello = messages.check_hello((await link.expect("hello")).fields)
        await link.send("hello", messages.hello(__version__, network.boot_id()))

    async def _answer(self, link: Connection, handler: Callable[[Frame], Awaitable[None]], frame: Frame) -> None:
        """Handle one message; an error of its sender's making is the answer, and the connection goes on."""
        try:
            if frame.type == "ping":
                await link.send("pong")
            elif frame.type not in LATE:
                await handler(frame)
        except PeerdError as error:
            await link.send("error", error.to_wire())
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__} while handling {validate.printable(frame.type)}"
            report(error, reason)
            await link.send("error", PeerdError(Code.INTERNAL, reason=reason).to_wire())


class Conversation:
    """What comes over a connection while a command runs. It listens as long as the ``async with`` block.

    :ivar cancel: set when the other end wants the command stopped
    :ivar gone: set when the connection is at its end
    :ivar done: set when the other end has heard the result
    :ivar stdin: what it sends to the command's standard input
    :ivar delivery: what it confirms of the command's output
    :ivar exec_id: whose output the confirmations are about, where they name it
    """

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._watcher: asyncio.Task[None] | None = None
        self.cancel, self.gone, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.stdin = Stdin(self._tell_window)
        self.delivery = Delivery()
        self.exec_id = ""
        self._until = 0

    async def __aenter__(self) -> Conversation:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watcher is not None
        self._watcher.cancel()
        await asyncio.wait((self._watcher,))

    async def heard(self) -> bool:
        """Wait until the other end has heard the result; whether it has, or has gone instead."""
        assert self._watcher is not None
        await asyncio.wait((self._watcher,))
        return self.done.is_set()

    def _tell_window(self, start: int | None, until: int, taken: int) -> None:
        # Who keeps less must not be granted more, and less than a quarter more is not worth a message.
        until = min(until, taken + self._link.window)
        if start is None and until < self._until + self._link.window // 4:
            return
        if self._link.resumable:
            self._link.post("stdinWindow", {"until": until} if start is None else {"from": start, "until": until})
        else:
            self._link.post("stdinCredit", {"bytes": until - self._until})
        self._until = until

    def sink(self) -> Sink:
        """Where output goes. Who does not confirm what it received has it all, as far as anybody knows."""
        sink = FrameSink(self._link)
        return sink if self._link.resumable else ConfirmingSink(sink, self.delivery)

    async def _watch(self) -> None:
        try:
            while not self.done.is_set():
                frame = await self._link.receive()
                if frame is None:
                    break
                self._take(frame)
                # Not sooner: a cancel must get through to a command whose output nobody takes.
                if self._link.backlog > _MAX_BACKLOG:
                    with contextlib.suppress(ConnectionError):
                        await self._link.drain()
        except PeerdError as error:
            self._link.post("error", error.to_wire())
        finally:
            if not (self.done.is_set() or asyncio.current_task().cancelling()):  # type: ignore[union-attr]
                self.gone.set()
                if not self._link.resumable:
                    self.cancel.set()

    def _take(self, frame: Frame) -> None:
        match frame.type:
            case "cancel":
                self.cancel.set()
            case "stdin":
                self.stdin.feed(frame.payload)
            case "ack":
                if frame.fields.get("execId", self.exec_id) == self.exec_id:
                    self.delivery.confirm(messages.take_offsets(frame.fields))
            case "done":
                self.done.set()
            case "ping":
                self._link.post("pong")
            case _:
                raise PeerdError(Code.BAD_MESSAGE, reason="a command runs on this connection")
