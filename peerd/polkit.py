"""Asks polkit(8) whether a caller on D-Bus may do a command."""

from __future__ import annotations

import os
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

Call = Callable[[str, str, str, str, str, list[Any], float], Awaitable[list[Any]]]
"""Calls a method of another service: its name, path, interface, member, signature, body and timeout."""


async def authorize(call: Call, message: Message, uid: int, command: Command, params: Mapping[str, Any]) -> None:
    """Return where a caller may do this; root always may.

    :raises Refused: where it may not
    """
    if uid == os.getuid():
        return
    action = busapi.action(command.access)
    details = {
        "peer": params.get("peer", ""),
        "user": params.get("user") or "root",
        "directory": params.get("directory", ""),
        "command": params.get("shell_cmd") or " ".join(params.get("argv", ())) or command.name,
    }
    shown = {key: validate.printable(str(value)) for key, value in details.items() if value}
    interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
    subject = ["system-bus-name", {"name": Variant("s", str(message.sender))}]
    body = [subject, action, shown, int(interactive), ""]
    timeout = _PASSWORD_TIMEOUT if interactive else _TIMEOUT
    try:
        [answer] = await call(_NAME, _PATH, _INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", body, timeout)
    except Refused as error:
        raise Refused("AccessDenied", f"Permission denied: polkit cannot be asked ({error})") from None
    authorized, challenge, _ = answer
    if not authorized:
        name = "InteractiveAuthorizationRequired" if challenge and not interactive else "AccessDenied"
        raise Refused(name, f"Permission denied: {action} is for root and the group peerd")
