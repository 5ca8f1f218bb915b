"""Asks polkit(8) whether a caller on D-Bus may do a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from dbus_next import Message, MessageFlag, Variant

from peerd import busapi, validate
from peerd.buslink import CALL_TIMEOUT, Refused
from peerd.commands import Command

_NAME = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_PASSWORD_TIMEOUT = 300.0
"""Seconds for somebody to enter a password."""

_AT_ONCE = {False: (64, 16), True: (32, 4)}
"""Questions at once, and those of one user, without and with somebody to enter a password: the bus refuses more than
128 that wait for a reply (max_replies_per_connection, dbus-daemon(1)), and nobody must keep the others out."""

_AMBIGUOUS = re.compile(r"\w+=|login |\$'")

Call = Callable[[str, str, str, str, str, list[Any], float], Awaitable[list[Any]]]
"""Calls a method of another service: its name, path, interface, member, signature, body and timeout."""


class Polkit:
    """The authority on the system bus.

    :param call: calls a method of another service
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._turns = {interactive: _Turns(*bounds) for interactive, bounds in _AT_ONCE.items()}

    async def authorize(self, message: Message, uid: int, command: Command, params: Mapping[str, Any]) -> None:
        """Return where a caller may do this; root always may.

        :raises Refused: where it may not
        """
        if uid == os.getuid():
            return
        action = busapi.action(command.access)
        body = [["system-bus-name", {"name": Variant("s", str(message.sender))}], action, _details(command, params)]
        authorized, challenge = await self._ask(uid, body)
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        # Asked again: who needs no password must not wait for those who do.
        if challenge and interactive:
            authorized, _ = await self._ask(uid, body, interactive)
        if not authorized:
            name = "InteractiveAuthorizationRequired" if challenge and not interactive else "AccessDenied"
            raise Refused(
                name,
                f"Permission denied: {action} is for root and the group peerd\n"
                "  To join the group: adduser USER peerd (as root), then log in again",
            )

    async def _ask(self, uid: int, body: list[Any], interactive: bool = False) -> tuple[bool, bool]:
        """Whether polkit allows it, and whether it might after asking for a password."""
        timeout = _PASSWORD_TIMEOUT if interactive else CALL_TIMEOUT
        try:
            async with self._turns[interactive].of(uid):
                body = [*body, int(interactive), ""]
                [answer] = await self._call(
                    _NAME, _PATH, _INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", body, timeout
                )
        except Refused as error:
            raise Refused("AccessDenied", f"Permission denied: polkit cannot be asked ({error})") from None
        authorized, challenge, _ = answer
        return authorized, challenge


class _Turns:
    """So many at once, and of one user fewer.

    :param most: of all users
    :param of_one: of one of them
    """

    def __init__(self, most: int, of_one: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._of_one = of_one
        self._of: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def of(self, uid: int) -> AsyncIterator[None]:
        """A turn of this user."""
        # Its own first: those who wait for that keep nobody else waiting.
        own = self._of.setdefault(uid, asyncio.Semaphore(self._of_one))
        async with own, self._all:
            yield


def _details(command: Command, params: Mapping[str, Any]) -> dict[str, str]:
    """What a rule of an administrator can go by.

    The command has in it all that changes what it does, so that a rule that allows it allows no more than that.
    """
    words = [
        f"{name}={shlex.quote(value) if value.isprintable() else _quoted(value)}"
        for name, value in params.get("env", ())
    ]
    words += ["login"] * bool(params.get("login"))
    words.append(_shown(params.get("shell_cmd") or shlex.join(params.get("argv", ())) or command.name))
    details = {
        "peer": _shown(params.get("peer", "")),
        "user": _shown(params.get("user") or "root"),
        "directory": _shown(params.get("directory", "")),
        "command": " ".join(words),
    }
    return {key: value for key, value in details.items() if value}


def _shown(text: str) -> str:
    # What only looks like a variable, a login shell or something quoted must not be taken for that.
    return text if text.isprintable() and not _AMBIGUOUS.match(text) else _quoted(text)


def _quoted(text: str) -> str:
    """As bash(1) reads it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{validate.printable(escaped)}'"
