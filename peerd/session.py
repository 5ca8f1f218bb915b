"""Who asked for a command, and how the two hear of each other while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from peerd.stdin import Stdin


class Sink(Protocol):
    """Who hears of a running command."""

    async def started(self) -> None:
        """The command was started."""

    async def output(self, stream: str, data: bytes) -> None:
        """Some output of "stdout" or "stderr"; returns when more is welcome.

        :raises ConnectionError: when nobody is left to hear it
        """


@dataclass(frozen=True)
class Caller:
    """Who asked: the id of the peer, and for a local caller the user, as the journal shows them."""

    peer: str
    user: str = ""

    def __str__(self) -> str:
        return f"{self.user}@{self.peer}" if self.user else self.peer


@dataclass(frozen=True)
class Session:
    """Who called, where output goes, and how the caller takes it back.

    :ivar say: shows a line of progress
    :ivar stdin: what the caller sends to a command that reads
    """

    caller: Caller
    sink: Sink
    cancel: asyncio.Event
    say: Callable[[str], None]
    stdin: Stdin
