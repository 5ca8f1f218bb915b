"""The daemon's end of the spawner process (see :mod:`peerd.spawner` for what it does and what is said to it)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peerd import spawner

_SPARE = 1
"""Gates that wait for a command: making one takes longer than all else that peerd has to do for it."""
_MOST_ORDERED = 16
"""Gates that are asked for at once, so that what is asked fits into the channel."""
_PAUSE = 0.05
"""Seconds after a gate was taken until the next is made, if its command has not ended before: who waits for a command
needs the processor more."""
_LIMIT = 25.0
"""Seconds for the spawner to make a gate."""


@dataclass(frozen=True)
class Gate:
    """What runs one command, once it is told which (see :mod:`peerd.spawner`).

    :ivar control: its socket, the owner's to close; it runs nothing more then
    :ivar pid: its process, which starts the command
    """

    control: socket.socket
    pid: int

    def waits(self) -> bool:
        """Whether it is still there; somebody may have killed it."""
        try:
            self.control.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False

    async def prepare(
        self,
        argv: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        streams: Sequence[int],
        user: Mapping[str, object] | None = None,
    ) -> None:
        """Tell it what to run once it is released.

        :param argv: the command, arguments as str with surrogateescape
        :param streams: stdin, stdout and stderr; the caller closes its own copies
        :param user: ``uid``, ``gid`` and ``groups`` of the user to run it as, if not root, and ``resolved``
        :raises OSError: when it is gone
        """
        request = {"argv": list(argv), "directory": directory, "environment": dict(environment), **(user or {})}
        payload = marshal.dumps(request)
        message = spawner.LENGTH.pack(len(payload)) + payload
        sent = socket.send_fds(self.control, [message], list(streams))
        await asyncio.get_running_loop().sock_sendall(self.control, message[sent:])


class Spawner:
    """Keeps gates at hand. The process behind it is started with the first use, and anew when it has died."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Queue[Gate | OSError] = asyncio.Queue()
        self._takers = 0
        self._ordered = 0
        self._due: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the process ahead of the first command, unless it runs already.

        :raises OSError: when it cannot be started
        """
        if self._channel and self._process and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(spawner.__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
            )
            stack.pop_all()
        ours.setblocking(False)
        self._channel = ours
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._receive, ours)
        self._order()

    async def take(self) -> Gate:
        """A gate for one command.

        :raises OSError: when the spawner cannot make one, or cannot be started
        """
        self.start()
        self._takers += 1
        try:
            async with asyncio.timeout(_LIMIT):
                while True:
                    if self._ready.empty():
                        self._order()
                    gate = await self._ready.get()
                    if isinstance(gate, OSError):
                        raise gate
                    if gate.waits():
                        return gate
                    gate.control.close()
        except TimeoutError:
            raise TimeoutError(f"no process for it was made within {_LIMIT:g} s") from None
        finally:
            self._takers -= 1
            if self._due is None:
                self._due = asyncio.get_running_loop().call_later(_PAUSE, self.refill)

    def refill(self) -> None:
        """Have gates at hand again. Now is a good time: a command has ended, or none was asked for of late."""
        if self._due:
            self._due.cancel()
            self._due = None
        if self._channel:
            self._order()

    def _order(self) -> None:
        wanted = min(self._takers + _SPARE - self._ready.qsize(), _MOST_ORDERED)
        assert self._channel
        with contextlib.suppress(OSError):
            while self._ordered < wanted:
                self._channel.send(b"\0")
                self._ordered += 1

    def _receive(self, channel: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, 2 * spawner.PID.size, 1)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if not message:
            self.close()
            self._fail(ConnectionError("the spawner died"))
            return
        self._ordered -= 1
        pid, *problem = (number for (number,) in spawner.PID.iter_unpack(message))
        if pid and not descriptors:
            # The kernel drops what this process has no room for; the gate ends by that.
            pid, problem = 0, [errno.EMFILE]
        if pid:
            control = socket.socket(fileno=descriptors[0])
            control.setblocking(False)
            self._ready.put_nowait(Gate(control, pid))
            self._order()
        else:
            # No more are asked for until somebody needs one: a machine that cannot fork is not helped by trying.
            self._fail(OSError(*problem, os.strerror(*problem)))

    def _fail(self, error: OSError) -> None:
        for _ in range(self._takers):
            self._ready.put_nowait(error)

    def close(self) -> None:
        """End the process and the gates that have no command; the others, in their scopes, go on."""
        if self._due:
            self._due.cancel()
            self._due = None
        if self._channel:
            if self._loop and not self._loop.is_closed():
                self._loop.remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        while not self._ready.empty():
            if isinstance(gate := self._ready.get_nowait(), Gate):
                gate.control.close()
        self._ordered = 0
        if self._process:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None
