"""Frames over a stream of asyncio: what moves the bytes of :mod:`peerd.protocol`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from peerd import __version__, memory, messages, network, protocol
from peerd.errors import Code, PeerdError
from peerd.messages import Hello
from peerd.protocol import Decoder, Frame
from peerd.spool import Extent

_MOST_HELD = protocol.MAX_PAYLOAD
"""Bytes that have arrived and that nobody has taken, beyond which no more are read; no less than one frame may have."""
_APART = 16 * 1024
"""Bytes of a payload that is written by itself: to copy it behind its header would take longer than another call."""
_AT_ONCE = 64 * 1024
"""Bytes of a payload for which the kernel may wait before it wakes this process, which costs more than to take them.
While it waits it acknowledges every other packet, which costs as well."""
_TOGETHER = 0.01
"""Seconds that a frame which is in no hurry waits for another to go with it."""
_NO_LINGER = struct.pack("ii", 1, 0)
"""socket(7): SO_LINGER, on, 0 seconds."""
_INBOX = memoryview(bytearray(2 * _APART))
"""Where bytes of whichever connection arrive that have no place yet. They have left it before the next ones come."""


class Connection(asyncio.BufferedProtocol):
    """One end of a connection, as a protocol of asyncio.

    :param accepted: serves a connection that was accepted, to its end
    :ivar hello: what the other end said of itself
    """

    def __init__(self, accepted: Callable[[Connection], Awaitable[None]] | None = None) -> None:
        self._accepted = accepted
        self._serving: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._decoder = Decoder()
        self._space: memoryview | None = None
        self._awaited = 1
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._over = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None
        self._held = b""
        self._due: asyncio.TimerHandle | None = None
        self.hello = Hello(protocol.OLDEST_VERSION, "")

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""
        self._transport = cast("asyncio.Transport", transport)
        if self._accepted:
            self._serving = asyncio.ensure_future(self._accepted(self))

    def get_buffer(self, sizehint: int) -> memoryview:
        """As asyncio has it."""
        self._space = self._decoder.space
        # A short rest is better received with what comes behind it.
        if self._space is None or len(self._space) < _APART:
            self._space = None
            return _INBOX
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        """As asyncio has it."""
        if self._space is None:
            self._decoder.feed(_INBOX[:nbytes])
        else:
            self._decoder.arrived(nbytes)
            self._space = None
        if self._decoder.held > _MOST_HELD:
            self._transport.pause_reading()
        if self._decoder.lacking:
            self._await_more()
        else:
            self._arrived.set()

    def eof_received(self) -> bool:
        """As asyncio has it; the other end may still read."""
        self._ended = True
        self._arrived.set()
        return True

    def pause_writing(self) -> None:
        """As asyncio has it."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """As asyncio has it."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        memory.heap.used()
        self._ended, self._error = True, exc
        for event in (self._arrived, self._writable, self._over):
            event.set()

    # --- the other end

    @property
    def socket(self) -> socket.socket:
        """The socket, for what the kernel knows of the other end."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock

    @property
    def address(self) -> str:
        """Where a TCP connection comes from, also after its end; "unknown" where it ended before anybody could ask."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if name else "unknown"

    @property
    def port(self) -> int:
        """The port from which a TCP connection comes; 0 where it is not known."""
        name = self._transport.get_extra_info("peername")
        return int(name[1]) if name else 0

    @property
    def resumable(self) -> bool:
        """Whether the other end confirms what it received and can get back to a command."""
        return self.hello.protocol >= protocol.RESUMABLE

    @property
    def window(self) -> int:
        """Bytes of input that the other end keeps until they were taken for good."""
        return messages.WINDOW if self.hello.protocol >= protocol.WIDE else messages.NARROW_WINDOW

    @property
    def usable(self) -> bool:
        """Whether nothing has yet said that the connection is at its end."""
        return not (self._ended or self._transport.is_closing())

    @property
    def backlog(self) -> int:
        """Bytes that were sent and not yet taken by the kernel."""
        return self._transport.get_write_buffer_size()

    def limit_headers(self, size: int) -> None:
        """Take no header of more bytes from now on."""
        self._decoder.max_header = size

    @property
    def unread(self) -> int:
        """Bytes that have arrived and that nobody has taken."""
        return self._decoder.held

    def post(self, type_: str, fields: Mapping[str, object] | None = None, payload: bytes | bytearray = b"") -> None:
        """Queue a frame without waiting; for small ones.

        :raises PeerdError: BAD_MESSAGE when it would be over the bounds of a frame
        """
        header = protocol.encode_header(type_, fields, len(payload))
        if len(payload) < _APART:
            self.post_encoded(header + payload)
        else:
            self.post_encoded(header)
            self._transport.write(payload)

    def post_encoded(self, frames: bytes) -> None:
        """Queue frames that were encoded once for several connections (:func:`peerd.protocol.encode`)."""
        held, self._held = self._held, b""
        self._transport.write(held + frames)

    def post_with_next(self, type_: str) -> None:
        """Queue a frame that nobody waits for, to go with the next one: a packet costs more than what is in it."""
        self._held += protocol.encode(type_)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_TOGETHER, self._let_go)

    def _let_go(self) -> None:
        self._due = None
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    async def send(
        self, type_: str, fields: Mapping[str, object] | None = None, payload: bytes | bytearray = b""
    ) -> None:
        """Send a frame and wait while the other end is slow to take what was sent.

        :raises PeerdError: BAD_MESSAGE when it would be over the bounds of a frame
        :raises ConnectionError: when the connection is lost
        """
        self.post(type_, fields, payload)
        await self.drain()

    async def send_extent(self, type_: str, fields: Mapping[str, object], payload: Extent) -> None:
        """Send a frame whose payload is in a file; the kernel moves it by itself as far as it can (sendfile(2)).

        :raises ConnectionError: when the connection is lost
        """
        first = os.pread(payload.fd, min(payload.size, _APART), payload.offset)
        self.post_encoded(protocol.encode_header(type_, fields, payload.size) + first)
        sent = len(first)
        if sent < payload.size and not self.backlog and self.usable:
            with contextlib.suppress(OSError):
                sent += os.sendfile(self.socket.fileno(), payload.fd, payload.offset + sent, payload.size - sent)
        if sent < payload.size:
            memory.heap.used()
            self._transport.write(os.pread(payload.fd, payload.size - sent, payload.offset + sent))
        await self.drain()

    async def drain(self) -> None:
        """Wait while the other end is slow to take what was sent.

        :raises ConnectionError: when the connection is lost
        """
        if self._transport.is_closing() and not self._over.is_set():
            # Its loss is about to be said.
            await asyncio.sleep(0)
        await self._writable.wait()
        if self._over.is_set():
            # What TCP says of a machine that vanished (ETIMEDOUT, EHOSTUNREACH) is none of Python's ConnectionErrors.
            raise ConnectionError(*(self._error.args if self._error else ("connection lost",)))

    async def receive(self) -> Frame | None:
        """The next frame, or None at the end of the stream.

        :raises PeerdError: BAD_MESSAGE when the bytes are no frame, or the stream ends inside one
        """
        while True:
            frame = self._decoder.next()
            if frame:
                if len(frame.payload) >= _APART:
                    memory.heap.used()
                if self._decoder.held <= _MOST_HELD:
                    self._transport.resume_reading()
                return frame
            if self._ended:
                if self._decoder.partial and not self._error:
                    raise PeerdError(Code.BAD_MESSAGE, reason="the connection ended inside a frame")
                return None
            # Whatever is held by now is the beginning of one frame, which has its bounds.
            self._transport.resume_reading()
            self._arrived.clear()
            self._await_more()
            await self._arrived.wait()

    async def receive_or_end(self) -> Frame | None:
        """The next frame, or None at the end of the stream, also inside a frame: so a peerd ends that is killed.

        :raises PeerdError: BAD_MESSAGE when the bytes are no frame
        """
        try:
            return await self.receive()
        except PeerdError:
            if self.usable:
                raise
            return None

    def _await_more(self) -> None:
        """Have a payload not wake this process for every packet of it (SO_RCVLOWAT of socket(7))."""
        awaited = min(self._decoder.lacking, _AT_ONCE) if self._decoder.lacking >= _APART else 1
        if awaited != self._awaited:
            self._awaited = awaited
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, awaited)

    async def expect(self, type_: str) -> Frame:
        """The next frame, which must be of this type.

        :raises PeerdError: the error that came instead; BAD_MESSAGE for another type
        :raises ConnectionError: at the end of the stream
        """
        frame = await self.receive()
        if frame is None:
            raise ConnectionError("connection closed")
        if frame.type == "error":
            raise PeerdError.from_wire(frame.fields)
        if frame.type != type_:
            raise PeerdError(Code.BAD_MESSAGE, reason=f"{frame.type!r} where {type_!r} was due")
        return frame

    def close(self) -> None:
        """Close; what was queued is still sent."""
        self._let_go()
        self._transport.close()

    def abort(self) -> None:
        """Close at once and drop what was queued."""
        self._held = b""
        # The transport of a socket that is closed already has let go of its event loop.
        if self.socket.fileno() < 0:
            return
        if self.socket.family == socket.AF_INET:
            # A reset, so that the local port is free again: reserved ones are few, and TIME_WAIT lasts a minute.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    async def finish(self) -> None:
        """Close and wait until what was queued has been sent or the connection is lost."""
        self.close()
        await self._over.wait()


async def connect(address: str, port: int, interface: str, timeout: float) -> Connection:
    """A connection to another peer, greeted.

    :param interface: the one through which it goes, whatever the routes are
    :param timeout: seconds for connection and greeting together
    :raises OSError: when the peer is not reachable, TimeoutError among them
    :raises PeerdError: when it answers with an error, or speaks another protocol version
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            dialled = await network.dial(address, port, interface)
            network.tune(dialled)
            _, connection = await asyncio.get_running_loop().create_connection(Connection, sock=dialled)
            connection.post("hello", messages.hello(__version__, network.boot_id()))
            connection.hello = messages.check_hello((await connection.expect("hello")).fields)
    except BaseException:
        if connection:
            connection.abort()
        raise
    return connection


def why(error: OSError) -> str:
    """What stood in the way of a connection, in the words of strerror(3)."""
    if error.errno:
        return os.strerror(error.errno)
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or "connection closed"
