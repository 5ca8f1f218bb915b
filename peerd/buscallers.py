"""Who calls peerd on a bus: which user it is, how much of the calls may be its, and when it has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from peerd.buslink import Refused

_TOO_MANY = "too many calls at once (max-connections)"
_TOO_MANY_OF_ONE = "too many calls of one user at once (half of max-connections)"


@dataclass
class _Caller:
    """A connection whose calls are being done.

    :ivar uid: whose it is, once the bus has said so
    :ivar calls: set once it has left, one for each of its calls
    """

    uid: asyncio.Task[int]
    calls: list[asyncio.Event] = field(default_factory=list)


class Callers:
    """The connections whose calls are being done.

    Any local user may call, over many connections, and none may keep the others out.

    :param call: calls a method of the bus: its name, signature and body
    :param most: gives how many calls may be done at once; one user may have half of them
    """

    def __init__(self, call: Callable[[str, str, list[Any]], Awaitable[list[Any]]], most: Callable[[], int]) -> None:
        self._call = call
        self._most = most
        self._callers: dict[str, _Caller] = {}
        self._calls_of: Counter[int] = Counter()

    @contextlib.asynccontextmanager
    async def calling(self, name: str) -> AsyncIterator[tuple[int, asyncio.Event]]:
        """The user that a call is of, and what is set when its caller has left the bus.

        :param name: the unique name of the caller's connection
        :raises Refused: where it has too many calls, or has left
        """
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(asyncio.create_task(self._identify(name)))
        elif not caller.uid.done():
            # Nobody knows yet whose they are: the more of these connections there are, the less each may have.
            unknown = sum(not other.uid.done() for other in self._callers.values())
            if len(caller.calls) >= self._most() // unknown:
                raise _refused(_TOO_MANY)
        left = asyncio.Event()
        caller.calls.append(left)
        try:
            uid = await asyncio.shield(caller.uid)
            if self._calls_of[uid] >= max(1, self._most() // 2):
                raise _refused(_TOO_MANY_OF_ONE)
            if self._calls_of.total() >= self._most():
                raise _refused(_TOO_MANY)
            self._calls_of[uid] += 1
            try:
                yield uid, left
            finally:
                self._calls_of[uid] -= 1
                if not self._calls_of[uid]:
                    del self._calls_of[uid]
        finally:
            caller.calls.remove(left)
            if not caller.calls:
                del self._callers[name]
                caller.uid.cancel()
                with contextlib.suppress(OSError, EOFError, Refused):
                    await self._call("RemoveMatch", "s", [_rule(name)])

    async def _identify(self, name: str) -> int:
        # Watched first: one that has gone by now has no user any more. Once for all its calls: the bus has no more than
        # 512 rules for a connection (max_match_rules_per_connection, dbus-daemon(1)).
        await self._call("AddMatch", "s", [_rule(name)])
        [uid] = await self._call("GetConnectionUnixUser", "s", [name])
        return int(uid)

    def left(self, name: str) -> None:
        """This connection has left the bus."""
        for call in self._callers[name].calls if name in self._callers else ():
            call.set()

    def all_left(self) -> None:
        """The bus itself has gone."""
        for name in self._callers:
            self.left(name)


def _refused(text: str) -> Refused:
    return Refused("LimitsExceeded", text)


def _rule(name: str) -> str:
    return f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{name}'"
