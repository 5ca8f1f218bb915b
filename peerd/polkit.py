"""Asks polkit(8) whether a caller on D-Bus may do a command."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dbus_next import Message, MessageFlag, Variant

from peerd import busapi, validate
from peerd.busapi import Refused
from peerd.commands import Command

_NAME = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_TIMEOUT = 25.0
_PASSWORD_TIMEOUT = 300.0
"""Seconds for somebody to enter a password."""

_AT_ONCE = {False: 64, True: 32}
"""Questions at once, without and with somebody to enter a password: the bus refuses more than 128 that wait for a reply
(max_replies_per_connection, dbus-daemon(1)), and who takes time to answer must not keep the others out."""

Call = Callable[[str, str, str, str, str, list[Any], float], Awaitable[list[Any]]]
"""Calls a method of another service: its name, path, interface, member, signature, body and timeout."""


class Polkit:
    """The authority on the system bus.

    :param call: calls a method of another service
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._turns = {interactive: asyncio.Semaphore(most) for interactive, most in _AT_ONCE.items()}

    async def authorize(self, message: Message, uid: int, command: Command, params: Mapping[str, Any]) -> None:
        """Return where a caller may do this; root always may.

        :raises Refused: where it may not
        """
        if uid == os.getuid():
            return
        action = busapi.action(command.access)
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        subject = ["system-bus-name", {"name": Variant("s", str(message.sender))}]
        body = [subject, action, _details(command, params), int(interactive), ""]
        timeout = _PASSWORD_TIMEOUT if interactive else _TIMEOUT
        try:
            async with self._turns[interactive]:
                [answer] = await self._call(
                    _NAME, _PATH, _INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", body, timeout
                )
        except Refused as error:
            raise Refused("AccessDenied", f"Permission denied: polkit cannot be asked ({error})") from None
        authorized, challenge, _ = answer
        if not authorized:
            name = "InteractiveAuthorizationRequired" if challenge and not interactive else "AccessDenied"
            raise Refused(
                name,
                f"Permission denied: {action} is for root and the group peerd\n"
                "  To join the group: adduser USER peerd (as root), then log in again",
            )


def _details(command: Command, params: Mapping[str, Any]) -> dict[str, str]:
    """What a rule of an administrator can go by.

    The command has in it all that changes what it does, so that a rule that allows it allows no more than that.
    """
    words = [f"{name}={shlex.quote(value)}" for name, value in params.get("env", ())]
    words += ["login"] * bool(params.get("login"))
    words.append(params.get("shell_cmd") or shlex.join(params.get("argv", ())) or command.name)
    details = {
        "peer": params.get("peer", ""),
        "user": params.get("user") or "root",
        "directory": params.get("directory", ""),
        "command": " ".join(words),
    }
    return {key: _shown(value) for key, value in details.items() if value}


def _shown(text: str) -> str:
    # Quoted as bash(1) does it: a newline must not look like a backslash and an n.
    return text if text.isprintable() else f"$'{validate.printable(text)}'"
