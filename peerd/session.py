"""Who asked for a command, and how the two hear of each other while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from peerd.messages import STREAMS, WINDOW, Offsets
from peerd.spool import Data
from peerd.stdin import Stdin

T = TypeVar("T")


class Sink(Protocol):
    """Who hears of a running command."""

    async def started(self) -> None:
        """The command was started."""

    async def output(self, stream: str, data: Data) -> None:
        """Some output of "stdout" or "stderr"; returns when more is welcome.

        :raises ConnectionError: when nobody is left to hear it
        """


@dataclass(frozen=True)
class Caller:
    """Who asked: the id of the peer, and for a local caller the user, as the journal shows them."""

    peer: str
    user: str = ""

    @property
    def local(self) -> bool:
        """Whether it is a user of this machine, whom no policy holds."""
        return bool(self.user)

    def __str__(self) -> str:
        return f"{self.user}@{self.peer}" if self.user else self.peer


class Delivery:
    """How much of a command's output its caller has for good, and so will not ask for again."""

    def __init__(self) -> None:
        self.offsets: Offsets = dict.fromkeys(STREAMS, 0)
        self._listener: Callable[[Offsets], None] | None = None
        self._confirmed = asyncio.Event()

    def confirm(self, offsets: Offsets) -> None:
        """The caller has all that is before these offsets."""
        self.offsets = offsets
        self._confirmed.set()
        if self._listener:
            self._listener(offsets)

    async def reaches(self, stream: str, offset: int) -> None:
        """Wait until the caller has all of a stream that is before an offset."""
        while self.offsets[stream] < offset:
            self._confirmed.clear()
            await self._confirmed.wait()

    def listen(self, listener: Callable[[Offsets], None] | None) -> None:
        """Tell somebody of every confirmation, the last one at once."""
        self._listener = listener
        if listener:
            listener(self.offsets)


class ConfirmingSink:
    """A sink whose caller has all that it took, for good."""

    def __init__(self, sink: Sink, delivery: Delivery) -> None:
        self._sink = sink
        self._delivery = delivery

    async def started(self) -> None:
        """As :class:`Sink` has it."""
        await self._sink.started()

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        await self._sink.output(stream, data)
        offsets = self._delivery.offsets
        self._delivery.confirm({**offsets, stream: offsets[stream] + len(data)})


class PacedSink:
    """A sink that is sent no more than a window ahead of what its caller has confirmed.

    :param offsets: from where on it is sent a command's output
    """

    def __init__(self, sink: Sink, delivery: Delivery, offsets: Offsets) -> None:
        self._sink = sink
        self._delivery = delivery
        self._start = offsets
        self._sent = dict(offsets)

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        self._sent[stream] += len(data)
        if self._sent[stream] - WINDOW > self._start[stream]:
            await self._delivery.reaches(stream, self._sent[stream] - WINDOW)
        await self._sink.output(stream, data)


class Hearing(AsyncExitStack):
    """An exit stack for what is held until a caller has all of its command's output.

    It is closed without an exception where the caller is known to have it, with one where nobody knows.
    """

    def then(self, work: Callable[[], None]) -> None:
        """Do something once the caller is known to have all."""
        self.push(lambda failed, *_: None if failed else work())


@dataclass(frozen=True)
class Resume:
    """Where a caller goes on that was cut off while a command ran.

    :ivar step: which of the caller's commands it was, from 1
    :ivar offsets: how much of its output the caller has
    """

    exec_id: str
    step: int
    offsets: Offsets


@dataclass(frozen=True)
class Session:
    """Who called, where output goes, and how the caller takes it back.

    :ivar cancel: set when the caller wants the command stopped
    :ivar gone: set when nobody is left to hear of it
    :ivar say: shows a line of progress
    :ivar stdin: what the caller sends to a command that reads
    :ivar delivery: what the caller confirms of the output
    :ivar running: tells the caller the id of its command, and which of its commands it is
    :ivar resume: where the caller goes on, or None for a new command
    :ivar after: the cursor of the last record that a caller has who was cut off while it followed them, or ""
    :ivar hearing: lasts until the caller has all of a command; None where it has all that was given to it
    """

    caller: Caller
    sink: Sink
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    say: Callable[[str], None] = lambda line: None
    stdin: Stdin = field(default_factory=lambda: Stdin(lambda start, until, taken: None))
    delivery: Delivery = field(default_factory=Delivery)
    running: Callable[[str, int], None] = lambda exec_id, step: None
    resume: Resume | None = None
    hearing: Hearing | None = None
    after: str = ""

    def resumed(self, step: int) -> Resume | None:
        """Where the caller goes on with this one of its commands, or None where it does not."""
        return self.resume if self.resume and self.resume.step == step else None


async def unless(stops: Sequence[asyncio.Event], work: Coroutine[Any, Any, T]) -> T | None:
    """The result of this work; None where one of these events was set before."""
    working = asyncio.create_task(work)
    waits = [asyncio.create_task(event.wait()) for event in stops]
    try:
        await asyncio.wait((working, *waits), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, *waits):
            task.cancel()
        await asyncio.wait((working, *waits))
        if not working.cancelled():
            # What becomes of it now is nobody's.
            working.exception()


async def unless_cancelled(session: Session, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of this work; None where the caller took it back before."""
    return await unless((session.cancel, session.gone), work)
