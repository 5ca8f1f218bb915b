"""Turns of the event loop: who waits for an answer goes first, and what only has to be remembered comes behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

ANSWER = 4
"""Turns from the end of a command, or from its result, until the answer to its caller is written: a task each for who
follows the output, for who waits for that, for the conversation, and one to spare."""
CALL = 3
"""Turns from a call on a message bus until its message is written: the task that makes it, the library's wait for the
socket to take it, and the write."""
SCOPE = CALL + 2
"""Turns from the decision that a command may run until the call that makes its scope is written."""


async def let_pass(turns: int) -> None:
    """Return once what is ready now, and what that leads to in so many turns, has been done."""
    for _ in range(turns):
        await asyncio.sleep(0)


def do_after(turns: int, work: Callable[[], None]) -> None:
    """Do work after so many turns, which nobody waits for; it is done even where its caller is cancelled."""
    loop = asyncio.get_running_loop()
    loop.call_soon(do_after, turns - 1, work) if turns else loop.call_soon(work)
