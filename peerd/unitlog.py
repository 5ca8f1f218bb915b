"""What units wrote to the journal, by journalctl(1)."""

from __future__ import annotations

import asyncio

LINES = 10
"""The most that is read of a unit."""
_TIMEOUT = 5.0


async def tail(unit: str, since: float) -> list[str]:
    """The last lines that the processes of a unit wrote, as they are; none where the journal cannot tell in time.

    :param since: seconds since the epoch
    """
    try:
        async with asyncio.timeout(_TIMEOUT):
            # What a process wrote just before its end may be still on its way.
            await _journalctl("--sync")
            output = await _journalctl(
                "--output=cat", f"--lines={LINES}", f"--since=@{since:.6f}", f"_SYSTEMD_UNIT={unit}"
            )
    except (OSError, TimeoutError):
        return []
    return output.decode("utf-8", "replace").splitlines()[-LINES:]


async def _journalctl(*arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "journalctl",
        "--quiet",
        "--no-pager",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return output
