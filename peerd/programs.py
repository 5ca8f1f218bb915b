"""Programs that are run for what they print."""

from __future__ import annotations

import asyncio
import contextlib


async def output(*argv: str) -> bytes:
    """What a program writes to its standard output, however it ends; killed where nobody waits for that any more.

    :raises OSError: where it cannot be started
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        written, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return written
