"""A connection to a bus that does not do what buses do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peerd.buslink import Connection, leave


@contextlib.asynccontextmanager
async def bus(tmp_path: Path, hold: asyncio.Event, *answers: bytes) -> AsyncIterator[str]:
    """A bus that gives an answer to each line, and after one more hangs up once it may; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readline()
            writer.write(answer)
        await reader.readline()
        await hold.wait()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, tmp_path / "bus"):
        yield f"unix:path={tmp_path}/bus"
        hold.set()


def test_a_bus_that_hangs_up_as_one_greets_it_does_not_hold_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop, hold = asyncio.get_running_loop(), asyncio.Event()
        receive, reads = loop.sock_recv, itertools.count()

        async def counted(sock: object, size: int) -> bytes:
            assert next(reads) < 10
            return await receive(sock, size)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "sock_recv", counted)
        hold.set()
        async with bus(tmp_path, hold) as address:
            connection = Connection(address)
            with pytest.raises(EOFError, match="the bus hung up"):
                await connection.connect()
            await leave(connection)

    asyncio.run(main())


def test_a_connection_that_was_given_up_leaves_nothing_to_the_event_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with bus(tmp_path, asyncio.Event(), b"OK 0\r\n") as address:
            connection = Connection(address)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(connection.connect(), 0.05)
            await leave(connection)
            assert not asyncio.get_running_loop().remove_reader(connection._fd)

    asyncio.run(main())
