"""What units wrote to the journal, by journalctl(1)."""

from __future__ import annotations

import asyncio

from peerd import programs

LINES = 10
"""The most that is read of a unit."""
_TIMEOUT = 5.0
"""Seconds for journalctl(1)."""


async def tail(unit: str, since: float) -> list[str]:
    """The last lines that the processes of a unit wrote, as they are; none where the journal cannot tell in time.

    :param since: seconds since the epoch
    """
    journalctl = ("journalctl", "--quiet", "--no-pager")
    try:
        async with asyncio.timeout(_TIMEOUT):
            # What a process wrote just before its end may be still on its way.
            await programs.output(*journalctl, "--sync")
            written = await programs.output(
                *journalctl, "--output=cat", f"--lines={LINES}", f"--since=@{since:.6f}", f"_SYSTEMD_UNIT={unit}"
            )
    except OSError:
        return []
    return written.decode("utf-8", "replace").splitlines()[-LINES:]
