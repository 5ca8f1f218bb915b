#!/usr/bin/python3
"""Runs on desktop: many workers in one process, each from an address of its own, that speak the real protocol.

    fleet.py LEADER COUNT

Lines on standard input are commands; each is answered by one line of JSON once all workers are registered again:

    wait      {"registered": N, "seconds": T}: since the last command
    change    one worker comes back as another version: the same, once every other one has heard of it
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import cast

from peerd.backoff import Backoff
from peerd.bookreader import receive_book
from peerd.connection import Connection
from peerd.messages import Registration
from peerd.peers import PeerBook

PORT = 3600
LOCAL_PORT = 700
HEARTBEAT = 10.0
HELLO: dict[str, object] = {"protocol": 1, "newest": 2, "version": "bench"}


class Fleet:
    """All workers, and the copy of the registry, which is the same for all of them."""

    def __init__(self, leader: str, count: int) -> None:
        self.leader = leader
        self.digest = PeerBook().digest
        self.registered: set[int] = set()
        self.heard: set[int] = set()
        self.news = ""
        self.version = "0.1.0"
        self.workers = [Worker(self, number) for number in range(1, count + 1)]
        self.moved = asyncio.Event()

    async def run(self) -> None:
        """Serve commands."""
        tasks = [asyncio.create_task(worker.run()) for worker in self.workers]
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode().strip():
            began = time.monotonic()
            if line == "change":
                await self._change()
            else:
                await self._until(lambda: len(self.registered) == len(self.workers))
            took = time.monotonic() - began
            await self._until(lambda: len(self.registered) == len(self.workers))
            await self._learn()
            print(json.dumps({"registered": len(self.registered), "seconds": took}), flush=True)
        for task in tasks:
            task.cancel()

    async def _change(self) -> None:
        first = self.workers[0]
        self.news, self.heard = f'"hostname":"{time.monotonic()}"', set()
        first.hostname = self.news.split('"')[3]
        first.drop()
        await self._until(lambda: len(self.heard) >= len(self.workers) - 1)

    async def _learn(self) -> None:
        """Have the copy that all workers have by now."""
        made = self.workers[0].bound()
        await asyncio.get_running_loop().sock_connect(made, (self.leader, PORT))
        _, link = await asyncio.get_running_loop().create_connection(Connection, sock=made)
        link.post("hello", HELLO)
        await link.expect("hello")
        await link.send("listPeers")
        self.digest = (await receive_book(link)).digest
        link.abort()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.moved.clear()
            await self.moved.wait()


class Worker(asyncio.Protocol):
    """One worker."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._number = number
        self._address = f"10.1.{number // 250}.{number % 250 + 1}"
        self.hostname = f"host-{number}"
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._expected = -1
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Be registered, and come back as a worker does."""
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while True:
            made = self.bound()
            self._over.clear()
            try:
                await loop.sock_connect(made, (self._fleet.leader, PORT))
                await loop.create_connection(lambda: self, sock=made)
            except OSError:
                made.close()
            else:
                backoff.reset()
                await self._live()
            await asyncio.sleep(backoff.take())

    def bound(self) -> socket.socket:
        """A socket with this worker's address and a port that only root has."""
        made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self._address, LOCAL_PORT + random.randrange(300)))
        return made

    async def _live(self) -> None:
        while not self._over.is_set():
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._over.wait()
            except TimeoutError:
                self._send({"type": "heartbeat"})

    def drop(self) -> None:
        """End the connection."""
        assert self._transport
        self._transport.abort()

    def _send(self, message: dict[str, object]) -> None:
        assert self._transport
        self._transport.write(json.dumps(message).encode() + b"\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer, self._expected = b"", -1
        self._send({"type": "hello", **HELLO})
        me = Registration(f"w{self._number}", self.hostname, "", self._fleet.version)
        self._send({"type": "registerPeer", **me.to_wire(), "digest": self._fleet.digest})

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        fleet = self._fleet
        if line.startswith(b'{"type":"reply"'):
            reply = json.loads(line)
            self._expected = 0 if reply.get("same") else reply["count"]
        elif line.startswith(b'{"type":"peers"'):
            if fleet.news and fleet.news.encode() in line:
                fleet.heard.add(self._number)
                fleet.moved.set()
            if self._expected > 0:
                self._expected -= line.count(b'"peer_id"')
        elif line.startswith(b'{"type":"error"'):
            sys.exit(line.decode())
        if self._expected == 0 and self._number not in fleet.registered:
            fleet.registered.add(self._number)
            fleet.moved.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fleet.registered.discard(self._number)
        self._over.set()


async def main() -> None:
    """Run until standard input ends."""
    await Fleet(sys.argv[1], int(sys.argv[2])).run()


if __name__ == "__main__":
    asyncio.run(main())
