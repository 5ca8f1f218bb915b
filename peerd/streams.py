"""The three standard streams of a command here: what it writes, for any number of readers, and what it reads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import termios
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from peerd.errors import Code, PeerdError
from peerd.messages import MAX_OUTPUT, NARROW_WINDOW, WINDOW, Offsets
from peerd.spool import Extent, Spool

_STEP = MAX_OUTPUT
"""Bytes that are moved before others get their turn."""
_WORTH_TELLING = NARROW_WINDOW // 2
"""Bytes by which a grant grows before the sender hears of it, who has as many left by then, or more."""


class Room(Protocol):
    """How many more bytes of output may be kept."""

    waits: bool
    """Whether the command waits where there is no room; else its output is dropped."""

    def left(self, stream: OutputStream) -> int:
        """Bytes that the stream may still add; none, or less, where there is no room."""


class Window:
    """Room for an attached command: it writes no more than a window ahead of what its caller has confirmed."""

    waits = True

    def left(self, stream: OutputStream) -> int:
        """As :class:`Room` has it."""
        return stream.confirmed + WINDOW - stream.spool.size


class OutputStream:
    """One stream, from the command's pipe into a spool.

    :param pipe: the end to read, not blocking; -1 for a stream that has ended. It stays its owner's to close
    :ivar confirmed: the offset up to which nobody will ask again
    :ivar dropped: bytes for which there was no room
    """

    def __init__(self, pipe: int, spool: Spool, room: Room, changed: Callable[[], None]) -> None:
        self.spool = spool
        self.confirmed = 0
        self.dropped = 0
        self.ended = pipe < 0
        self._pipe = pipe
        self._room = room
        self._changed = changed
        self._discarding = False
        self._reading = False

    def start(self) -> None:
        """Take what comes."""
        if not self.ended and not self._reading:
            asyncio.get_running_loop().add_reader(self._pipe, self._move)
            self._reading = True

    def confirm(self, offset: int) -> None:
        """Give back what is before an offset; a command that waits for room goes on."""
        if not self.confirmed < offset <= self.spool.size:
            return
        self.confirmed = offset
        self.spool.release(offset)
        self.start()

    def discard(self) -> None:
        """Keep nothing of what still comes."""
        self._discarding = True
        self.start()

    def finish(self) -> None:
        """Take what the pipe holds now, whatever room there is, and no more.

        To be called when all of the command is gone. A process that escaped with the pipe in its hands cannot keep
        anybody waiting.
        """
        if self.ended:
            return
        # FIONREAD of ioctl_tty(2).
        left = int.from_bytes(fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
        with contextlib.suppress(BlockingIOError):
            while left > 0 and (moved := self._take(left if self._room.waits else self._room.left(self))):
                left -= moved
        self.stop()
        self.ended = True
        self._changed()

    def stop(self) -> None:
        """Take no more for now."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._pipe)
            self._reading = False

    def _take(self, room: int) -> int:
        if room > 0 and not self._discarding:
            try:
                return self.spool.fill(self._pipe, min(room, _STEP))
            except BlockingIOError:
                raise
            except OSError:
                # The disk is full: what does not fit is dropped and counted, as over a quota.
                self._discarding = True
        dropped = len(os.read(self._pipe, MAX_OUTPUT))
        self.dropped += dropped
        return dropped

    def _move(self) -> None:
        room = self._room.left(self)
        if room <= 0 and self._room.waits and not self._discarding:
            self.stop()
            return
        with contextlib.suppress(BlockingIOError):
            if not self._take(room):
                self.stop()
                self.ended = True
            self._changed()


class Output:
    """What a command writes.

    :param exec_id: which command it is, for error sentences
    """

    def __init__(self, exec_id: str, pipes: Mapping[str, int], spools: Mapping[str, Spool], room: Room) -> None:
        self._exec_id = exec_id
        self._readers: set[asyncio.Event] = set()
        self.streams = {
            name: OutputStream(pipes.get(name, -1), spool, room, self._changed) for name, spool in spools.items()
        }
        self.over = False

    def start(self) -> None:
        """Take what the command writes."""
        for stream in self.streams.values():
            stream.start()

    def discard(self) -> None:
        """Keep nothing of what the command still writes."""
        for stream in self.streams.values():
            stream.discard()

    def stop(self) -> None:
        """Take no more, and leave what is there to another process."""
        for stream in self.streams.values():
            stream.stop()

    def finish(self) -> None:
        """All of the command is gone: take the rest."""
        for stream in self.streams.values():
            stream.finish()

    def end(self) -> None:
        """There will be no more; readers come to their end."""
        self.over = True
        self._changed()

    def confirm(self, offsets: Offsets) -> None:
        """Nobody will ask again for what is before these offsets."""
        for name, offset in offsets.items():
            self.streams[name].confirm(offset)

    @property
    def sizes(self) -> Offsets:
        """How many bytes of each stream there are."""
        return {name: stream.spool.size for name, stream in self.streams.items()}

    @property
    def dropped(self) -> int:
        """Bytes for which there was no room."""
        return sum(stream.dropped for stream in self.streams.values())

    async def follow(self, offsets: Offsets, deliver: Callable[[str, Extent], Awaitable[None]]) -> None:
        """Deliver all output from these offsets on, as it comes, until its end.

        :raises PeerdError: OUTPUT_GONE where some of it was confirmed already
        """
        position = {name: offsets.get(name, 0) for name in self.streams}
        if any(position[name] < stream.confirmed for name, stream in self.streams.items()):
            raise PeerdError(Code.OUTPUT_GONE, exec_id=self._exec_id)
        poked = asyncio.Event()
        self._readers.add(poked)
        try:
            while True:
                poked.clear()
                over, moved = self.over, False
                for name, stream in self.streams.items():
                    if data := stream.spool.extent(position[name], MAX_OUTPUT):
                        position[name] += len(data)
                        moved = True
                        await deliver(name, data)
                if not moved:
                    if over:
                        return
                    await poked.wait()
        finally:
            self._readers.discard(poked)

    def _changed(self) -> None:
        for poked in self._readers:
            poked.set()


class Input:
    """What a command reads: from whoever sends it, through a spool, into the command's pipe.

    :ivar feeder: who passes on what is sent; one at a time, as each goes on from what had come when it began
    :param pipe: the end to write, not blocking
    :param closed: called when the command gets no more, to close the pipe everywhere
    """

    def __init__(self, spool: Spool, pipe: int, closed: Callable[[], None]) -> None:
        self._spool = spool
        self._pipe = pipe
        self._closed = closed
        self.feeder: asyncio.Task[None] | None = None
        self._open = True
        self._last_until = 0
        self._writing = False
        self._read = asyncio.Event()

    def is_open(self) -> bool:
        """Whether the command still gets what is sent."""
        return self._open

    @property
    def received(self) -> int:
        """Bytes that have come from the sender."""
        return self._spool.size

    @property
    def until(self) -> int:
        """The offset up to which the sender may send."""
        return self._spool.drained + WINDOW if self._open else self._last_until

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes as they arrived; no bytes are the end of the input.

        :raises PeerdError: BAD_MESSAGE when the sender was not granted them
        """
        if not self._open:
            return
        if self.received + len(data) > self.until or (data and self._spool.ended):
            raise PeerdError(Code.BAD_MESSAGE, reason=f"stdin up to {self.received + len(data)}, granted: {self.until}")
        if data:
            self._spool.append(data)
        else:
            self._spool.end()
        self.start()

    def start(self) -> None:
        """Pass on what there is, at the pace at which the command reads."""
        if self._open and not self._writing:
            asyncio.get_running_loop().add_writer(self._pipe, self._move)
            self._writing = True

    def stop(self) -> None:
        """Pass on no more for now."""
        if self._writing:
            asyncio.get_running_loop().remove_writer(self._pipe)
            self._writing = False

    async def taken(self, until: int) -> int:
        """Wait until so much more than up to this offset is granted that it is worth a message; the new offset."""
        while self.until < until + _WORTH_TELLING:
            self._read.clear()
            await self._read.wait()
        return self.until

    def _move(self) -> None:
        try:
            moved = self._spool.drain(self._pipe)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The command reads no more, which is its own business; no more is granted either.
            self.close()
            return
        if moved:
            self._spool.release(self._spool.drained)
            self._read.set()
        if self._spool.drained == self._spool.size:
            self.stop()
            if self._spool.ended:
                self.close()

    def close(self) -> None:
        """The command gets no more."""
        self.stop()
        if self._open:
            # The spool goes with the pipe.
            self._last_until = self.until
            self._open = False
            self._closed()
