"""What polkit is asked, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from dbus_next import Message, MessageFlag
from hypothesis import given
from hypothesis import strategies as st

from peerd import polkit, turns
from peerd.buslink import Refused
from peerd.commands import BY_NAME
from peerd.polkit import Polkit

INTERACTIVE = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
MESSAGE = Message("org.automatelinux.peerd1", "/", "x.y", "ExecOnPeer")
PATIENT = Message("org.automatelinux.peerd1", "/", "x.y", "ExecOnPeer", flags=INTERACTIVE)
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
        ({"shell_cmd": "hostname\\nid\n"}, "$'hostname\\\\nid\\n'"),
        ({"shell_cmd": "echo 'a'\n"}, "$'echo \\'a\\'\\n'"),
        ({"shell_cmd": "$'hostname\\nid'"}, "$'$\\'hostname\\\\nid\\''"),
        ({"shell_cmd": "login hostname"}, "$'login hostname'"),
        ({"shell_cmd": "", "argv": ("login", "hostname")}, "$'login hostname'"),
        ({"shell_cmd": "PATH=/tmp/evil hostname"}, "$'PATH=/tmp/evil hostname'"),
        ({"env": (("A", "1\n2"),)}, "A=$'1\\n2' hostname"),
        ({"env": (("A", "$'1\\n2'"),), "login": True}, """A='$'"'"'1\\n2'"'"'' login hostname"""),
    ],
)
def test_all_that_changes_a_command_is_in_what_a_rule_compares(changes: dict[str, Any], command: str) -> None:
    assert asked({**HOSTNAME, **changes})[1]["command"] == command


@given(
    *[
        st.tuples(
            st.lists(st.tuples(st.sampled_from("AB"), st.text("$'\\n\n =A1", max_size=4))),
            st.booleans(),
            st.one_of(st.text("$'\\n\n =A1", min_size=1, max_size=6), st.sampled_from(["login x", "A=1 x"])),
        )
    ]
    * 2
)
def test_two_commands_do_not_look_the_same(one: Any, other: Any) -> None:
    first, second = (
        polkit._details(BY_NAME["execOnPeer"], {"env": env, "login": login, "shell_cmd": text})
        for env, login, text in (one, other)
    )
    assert (first == second) == (one == other)


def test_root_is_not_asked_about() -> None:
    async def call(*arguments: Any) -> list[Any]:
        raise AssertionError

    asyncio.run(Polkit(call).authorize(MESSAGE, os.getuid(), BY_NAME["execOnPeer"], HOSTNAME))


@pytest.mark.parametrize(
    ("answer", "flags", "name"),
    [
        ([False, False, {}], MessageFlag.NONE, "AccessDenied"),
        ([False, True, {}], MessageFlag.NONE, "InteractiveAuthorizationRequired"),
        ([False, True, {}], INTERACTIVE, "AccessDenied"),
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


class Authority:
    """A polkit that lets a user do everything at once, another after a password, and counts what it is asked.

    :ivar asked: how often, without and with a password
    :ivar most: how many questions of each kind there were at once
    """

    def __init__(self, needs_password: Callable[[], bool]) -> None:
        self.needs_password = needs_password
        self.password = asyncio.Event()
        self.asked, self.now, self.most = Counter[int](), Counter[int](), Counter[int]()

    async def call(self, *arguments: Any) -> list[Any]:
        """Answer a question."""
        interactive = arguments[5][3]
        challenge = self.needs_password()
        self.asked[interactive] += 1
        self.now[interactive] += 1
        self.most[interactive] = max(self.most[interactive], self.now[interactive])
        await (self.password.wait() if interactive and challenge else asyncio.sleep(0))
        self.now[interactive] -= 1
        return [[interactive or not challenge, challenge and not interactive, {}]]


def test_who_needs_no_password_is_asked_about_once() -> None:
    async def main() -> None:
        authority = Authority(lambda: False)
        await Polkit(authority.call).authorize(PATIENT, SOMEBODY, BY_NAME["execOnPeer"], HOSTNAME)
        assert authority.asked == {0: 1}

    asyncio.run(main())


def test_a_password_is_asked_for_where_that_is_needed_and_wanted() -> None:
    async def main() -> None:
        authority = Authority(lambda: True)
        authority.password.set()
        await Polkit(authority.call).authorize(PATIENT, SOMEBODY, BY_NAME["execOnPeer"], HOSTNAME)
        assert authority.asked == {0: 1, 1: 1}

    asyncio.run(main())


@pytest.mark.parametrize("message", [MESSAGE, PATIENT], ids=["at once", "patient"])
def test_who_takes_time_to_answer_does_not_keep_others_out(message: Message) -> None:
    async def main() -> None:
        needs_password = True
        authority = Authority(lambda: needs_password)
        asking, command = Polkit(authority.call), BY_NAME["execOnPeer"]
        typing = [asyncio.create_task(asking.authorize(PATIENT, SOMEBODY, command, HOSTNAME)) for _ in range(40)]
        await turns.let_pass(20)
        assert authority.now[1] == polkit._AT_ONCE[True][1]
        needs_password = False
        await asking.authorize(message, SOMEBODY + 1, command, HOSTNAME)
        needs_password = True
        other = asyncio.create_task(asking.authorize(PATIENT, SOMEBODY + 2, command, HOSTNAME))
        await turns.let_pass(20)
        authority.password.set()
        await asyncio.gather(*typing, other)
        assert authority.most[0] <= polkit._AT_ONCE[False][1] + 1
        assert authority.most[1] == polkit._AT_ONCE[True][1] + 1

    asyncio.run(main())


def test_there_are_no_more_questions_at_once_than_the_bus_takes() -> None:
    async def main() -> None:
        authority = Authority(lambda: False)
        asking, command = Polkit(authority.call), BY_NAME["execOnPeer"]
        users = (SOMEBODY + number % 8 for number in range(800))
        await asyncio.gather(*(asking.authorize(MESSAGE, uid, command, HOSTNAME) for uid in users))
        assert authority.most[0] == polkit._AT_ONCE[False][0]

    asyncio.run(main())
