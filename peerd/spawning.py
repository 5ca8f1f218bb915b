"""The daemon's end of the spawner process (see :mod:`peerd.spawner` for what it does and the format of requests)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peerd import spawner


class Spawner:
    """Starts gates. The process behind it is started with the first use, and anew when it has died."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process ahead of the first command, unless it runs already.

        :raises OSError: when it cannot be started
        """
        if self._process and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(spawner.__file__))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
            )
        ours.setblocking(False)
        self._channel = ours

    async def spawn(
        self,
        argv: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        user: Mapping[str, object] | None = None,
    ) -> int:
        """Start a gate for one command; it waits for a byte on its control socket before it starts anything.

        :param argv: the command, arguments as str with surrogateescape
        :param user: ``uid``, ``gid`` and ``groups`` of the user to run it as, if not root, and ``resolved``
        :param descriptors: stdin, stdout, stderr and control; the caller closes its own copies
        :returns: the pid of the gate
        :raises OSError: when the spawner cannot be started or dies
        """
        payload = json.dumps(
            {"argv": argv, "directory": directory, "environment": environment, **(user or {})}
        ).encode()
        async with self._lock:
            self.start()
            channel = self._channel
            assert channel is not None
            loop = asyncio.get_running_loop()
            try:
                # One byte into an empty buffer: the previous request was answered, so this cannot block.
                socket.send_fds(channel, [b"\0"], list(descriptors))
                await loop.sock_sendall(channel, spawner.LENGTH.pack(len(payload)) + payload)
                answer = await loop.sock_recv(channel, spawner.LENGTH.size)
            except BaseException:
                # Half a request leaves the stream out of step.
                self.close()
                raise
            if len(answer) != spawner.LENGTH.size:
                self.close()
                raise ConnectionError("the spawner died")
            return int(spawner.LENGTH.unpack(answer)[0])

    def close(self) -> None:
        """End the process; gates in their scopes go on."""
        if self._channel:
            self._channel.close()
            self._channel = None
        if self._process:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None
