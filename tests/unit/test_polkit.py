"""What polkit is asked, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from dbus_next import Message, MessageFlag

from peerd import polkit
from peerd.busapi import Refused
from peerd.commands import BY_NAME
from peerd.polkit import Polkit

MESSAGE = Message("org.automatelinux.peerd1", "/", "x.y", "ExecOnPeer")
HOSTNAME = {"peer": "laptop", "directory": "/", "shell_cmd": "hostname"}
SOMEBODY = os.getuid() + 1


def asked(params: dict[str, Any], name: str = "execOnPeer") -> tuple[str, dict[str, str]]:
    """The action and the details of the question about a command."""
    questions: list[list[Any]] = []

    async def call(*arguments: Any) -> list[Any]:
        questions.append(arguments[5])
        return [[True, False, {}]]

    asyncio.run(Polkit(call).authorize(MESSAGE, SOMEBODY, BY_NAME[name], params))
    [[_, action, details, _, _]] = questions
    return action, details


def test_the_details_say_what_would_be_done() -> None:
    action, details = asked({**HOSTNAME, "user": "ann"})
    assert action == "org.automatelinux.peerd1.run"
    assert details == {"peer": "laptop", "user": "ann", "directory": "/", "command": "hostname"}
    assert asked({}, "listPeers") == ("org.automatelinux.peerd1.read", {"user": "root", "command": "listPeers"})


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"env": (("PATH", "/tmp/evil"),)}, "PATH=/tmp/evil hostname"),
        ({"env": (("A", "1 2"), ("B", ""))}, "A='1 2' B='' hostname"),
        ({"login": True}, "login hostname"),
        ({"shell_cmd": "", "argv": ("hostname", "-f x")}, "hostname '-f x'"),
        ({"shell_cmd": "hostname\nid"}, "$'hostname\\nid'"),
        ({"shell_cmd": "hostname\\nid"}, "hostname\\nid"),
    ],
)
def test_all_that_changes_a_command_is_in_what_a_rule_compares(changes: dict[str, Any], command: str) -> None:
    assert asked({**HOSTNAME, **changes})[1]["command"] == command


def test_root_is_not_asked_about() -> None:
    async def call(*arguments: Any) -> list[Any]:
        raise AssertionError

    asyncio.run(Polkit(call).authorize(MESSAGE, os.getuid(), BY_NAME["execOnPeer"], HOSTNAME))


@pytest.mark.parametrize(
    ("answer", "flags", "name"),
    [
        ([False, False, {}], MessageFlag.NONE, "AccessDenied"),
        ([False, True, {}], MessageFlag.NONE, "InteractiveAuthorizationRequired"),
        ([False, True, {}], MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION, "AccessDenied"),
        (Refused("ServiceUnknown", "no polkit"), MessageFlag.NONE, "AccessDenied"),
    ],
)
def test_who_may_not_is_refused(answer: Any, flags: MessageFlag, name: str) -> None:
    async def call(*arguments: Any) -> list[Any]:
        if isinstance(answer, Refused):
            raise answer
        return [answer]

    message = Message("org.automatelinux.peerd1", "/", "x.y", "ExecOnPeer", flags=flags)
    with pytest.raises(Refused) as caught:
        asyncio.run(Polkit(call).authorize(message, SOMEBODY, BY_NAME["execOnPeer"], HOSTNAME))
    assert caught.value.name == f"org.freedesktop.DBus.Error.{name}"


def test_who_takes_time_to_answer_does_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "_AT_ONCE", {False: 2, True: 1})

    async def main() -> None:
        asked, most, password = 0, 0, asyncio.Event()

        async def call(*arguments: Any) -> list[Any]:
            nonlocal asked, most
            if arguments[5][3]:
                await password.wait()
            asked += 1
            most = max(most, asked)
            await asyncio.sleep(0)
            asked -= 1
            return [[True, False, {}]]

        authority = Polkit(call)
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        slow = Message("org.automatelinux.peerd1", "/", "x.y", "ExecOnPeer", flags=flags)
        command = BY_NAME["execOnPeer"]
        typing = [asyncio.create_task(authority.authorize(slow, SOMEBODY, command, HOSTNAME)) for _ in range(3)]
        await asyncio.gather(*(authority.authorize(MESSAGE, SOMEBODY, command, HOSTNAME) for _ in range(9)))
        assert most <= 2
        password.set()
        await asyncio.gather(*typing)

    asyncio.run(main())
