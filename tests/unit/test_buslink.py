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
async def bus(tmp_path: Path, *answers: bytes) -> AsyncIterator[str]:
    """A bus that gives an answer to each line, and hangs up at the next; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readline()
            writer.write(answer)
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, tmp_path / "bus")
    async with server:
        yield f"unix:path={tmp_path}/bus"


def test_a_bus_that_hangs_up_as_one_greets_it_does_not_hold_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        receive, reads = loop.sock_recv, itertools.count()

        async def counted(sock: object, size: int) -> bytes:
            assert next(reads) < 10
            return await receive(sock, size)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "sock_recv", counted)
        async with bus(tmp_path) as address:
            connection = Connection(address)
            with pytest.raises(EOFError, match="the bus hung up"):
                await connection.connect()
            await leave(connection)

    asyncio.run(main())
