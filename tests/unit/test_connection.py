"""Frames over real sockets: order, the pace of the reader, and every way a connection can end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from itertools import pairwise

import pytest

from peerd import connection, messages, protocol
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.protocol import MAX_HEADER, Frame
from unit.support import LOCALHOST, FakePeers, Wire, linked, tcp_server


def test_frames_arrive_in_order_with_their_bytes() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("one", {"n": 1})
            near.post("two", None, b"\0\n\xff")
            await near.send("three")
            assert [await far.receive() for _ in range(3)] == [
                Frame("one", {"n": 1}),
                Frame("two", {}, b"\0\n\xff"),
                Frame("three"),
            ]

    asyncio.run(main())


def test_a_reader_that_does_not_read_stops_the_sender() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            chunk = bytes(64 * 1024)
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for _ in range(300):
                    await near.send("output", None, chunk)
                    sent += 1

            flooding = asyncio.create_task(flood())
            stalled = 0
            # The sender is at a standstill when turn after turn of the loop brings nothing more.
            while stalled < 100:
                before = sent
                await asyncio.sleep(0)
                stalled = stalled + 1 if sent == before else 0
            assert sent < 200
            assert near.backlog < 4 * len(chunk)
            received = 0
            while received < 300:
                frame = await far.receive()
                assert frame is not None
                assert len(frame.payload) == len(chunk)
                received += 1
            await flooding
            assert sent == 300

    asyncio.run(main())


def test_the_end_between_two_frames_is_the_end() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("last")
            near.close()
            assert (await far.expect("last")).type == "last"
            assert await far.receive() is None
            assert not far.usable

    asyncio.run(main())


def test_a_large_payload_may_come_in_pieces_of_any_size() -> None:
    async def main() -> None:
        payload = os.urandom(messages.MAX_OUTPUT)
        frames = protocol.encode("output", {}, payload) + protocol.encode("small")
        cuts = [0, 3, 60, 2000, 70_000, 70_001, 300_000, len(frames) - 40, len(frames) - 20, len(frames)]
        async with linked() as (near, far):
            receiving = asyncio.create_task(far.receive())
            for start, end in pairwise(cuts):
                near.post_encoded(frames[start:end])
                await near.drain()
                await asyncio.sleep(0.002)
            assert await receiving == Frame("output", {}, payload)
            assert await far.receive() == Frame("small")

    asyncio.run(main())


@pytest.mark.parametrize(
    "part",
    [
        b"{",
        b'{"type":"x"}',
        b'{"type":"x","size":2}\n',
        b'{"type":"x","size":2}\na',
        b'{"type":"x","size":400000}\n' + bytes(200_000),
    ],
    ids=["brace", "no end", "no payload", "half of a payload", "half of a large payload"],
)
def test_the_end_within_a_frame_is_an_error(part: bytes) -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post_encoded(part)
            near.close()
            with pytest.raises(PeerdError, match="ended inside a frame"):
                await far.receive()

    asyncio.run(main())


def test_a_connection_that_was_reset_is_at_its_end() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            Wire(near).reset()
            assert await far.receive() is None
            with pytest.raises(ConnectionError):
                await far.expect("x")

    asyncio.run(main())


def test_sending_into_a_lost_connection_is_an_error() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            Wire(far).reset()
            assert await near.receive() is None
            with pytest.raises(ConnectionError):
                await near.send("x")
            assert not near.usable

    asyncio.run(main())


def test_what_was_queued_is_sent_before_the_end() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("big", None, bytes(1_000_000))
            assert near.backlog > 0
            finishing = asyncio.create_task(near.finish())
            assert len((await far.expect("big")).payload) == 1_000_000
            assert await far.receive() is None
            far.close()
            await finishing

    asyncio.run(main())


def test_aborting_what_has_sent_all_and_closed_is_no_error() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("big", None, bytes(1_000_000))
            assert near.backlog > 0
            near.close()
            await far.expect("big")
            far.close()
            await near.finish()
            near.abort()

    asyncio.run(main())


def test_an_error_that_comes_instead_is_raised() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("error", PeerdError(Code.PEER_NOT_FOUND, peer="a").to_wire())
            with pytest.raises(PeerdError, match="Peer not found: a") as caught:
                await far.expect("reply")
            assert caught.value.code is Code.PEER_NOT_FOUND

    asyncio.run(main())


def test_another_message_than_the_one_that_is_due_is_malformed() -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post("surprise\x1b[31m")
            with pytest.raises(PeerdError, match=r"'surprise\\x1b\[31m' where 'reply' was due") as caught:
                await far.expect("reply")
            assert caught.value.code is Code.BAD_MESSAGE

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\n", b"x" * MAX_HEADER], ids=["http", "empty", "endless"]
)
def test_bytes_that_are_no_frame_are_malformed(garbage: bytes) -> None:
    async def main() -> None:
        async with linked() as (near, far):
            near.post_encoded(garbage)
            with pytest.raises(PeerdError) as caught:
                await far.receive()
            assert caught.value.code is Code.BAD_MESSAGE

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EPIPE], ids=errno.errorcode.get)
def test_whatever_ends_a_connection_is_a_lost_connection_to_who_sends(number: int) -> None:
    async def main() -> None:
        async with linked() as (near, _):
            near.connection_lost(OSError(number, os.strerror(number)))
            with pytest.raises(ConnectionError) as caught:
                await near.send("ping")
            assert caught.value.errno == number

    asyncio.run(main())


def test_connecting_greets() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            link = await connection.connect(LOCALHOST, peers.port, "lo", 5)
            await peers.links.get()
            assert link.usable
            await link.send("ping")
            link.abort()
            await link.finish()

    asyncio.run(main())


def test_connecting_to_nobody_is_refused() -> None:
    async def main() -> None:
        with socket.create_server((LOCALHOST, 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await connection.connect(LOCALHOST, port, "lo", 5)

    asyncio.run(main())


def test_connecting_through_an_interface_that_is_not_there_is_refused_though_somebody_has_the_address() -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            with pytest.raises(OSError, match="there is no interface no-such") as caught:
                await connection.connect(LOCALHOST, peers.port, "no-such", 5)
            assert connection.why(caught.value) == "there is no interface no-such"
            assert peers.accepted == 0

    asyncio.run(main())


@pytest.mark.parametrize("answer", ["other version", "garbage", "error", "nothing", "silence"])
def test_a_greeting_that_fails_closes_the_connection(answer: str) -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def accept(link: Connection) -> None:
            match answer:
                case "other version":
                    link.post("hello", {"protocol": 99})
                case "garbage":
                    link.post_encoded(b"SSH-2.0-OpenSSH\r\n")
                case "error":
                    link.post("error", PeerdError(Code.BUSY, reason="no").to_wire())
                case "nothing":
                    link.close()
            # What gives up on a greeting resets the connection.
            while await link.receive():
                pass
            await link.finish()
            over.set()

        expected: dict[str, type[Exception]] = {"nothing": ConnectionError, "silence": TimeoutError}
        async with tcp_server(accept) as port:
            with pytest.raises(expected.get(answer, PeerdError)):
                await connection.connect(LOCALHOST, port, "lo", 0.05 if answer == "silence" else 5)
            await over.wait()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "Connection refused"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.4', 3600)"), "No route to host"),
        (TimeoutError(), "no answer in time"),
        (ConnectionError("the leader closed the connection"), "the leader closed the connection"),
        (ConnectionError(), "connection closed"),
    ],
    ids=["refused", "no-route", "timeout", "closed", "silent"],
)
def test_what_stood_in_the_way_is_said_in_words(error: OSError, words: str) -> None:
    assert connection.why(error) == words


def test_a_hello_has_the_versions_of_protocol_and_daemon_and_the_boot_id() -> None:
    assert messages.hello("0.1.0", "b" * 32) == {
        "protocol": 1,
        "newest": 3,
        "version": "0.1.0",
        "boot": "b" * 32,
    }
