"""The table of commands: every command has its method in the service, with exactly the table's parameters."""

from __future__ import annotations

import inspect
import keyword

import pytest

from peerd.apps import Apps
from peerd.commands import BY_NAME, COMMANDS, Command, snake_case
from peerd.deploy import Deploy
from peerd.errors import KINDS, Code
from peerd.execution import Execution
from peerd.jobs import Jobs
from peerd.logs import Logs
from peerd.membership import Membership
from peerd.recall import Recall
from peerd.service import Service
from peerd.trust import Trust

SEED = (
    "execOnPeer remotePull remoteBd remoteDeployDaemon setPeerConfig registerWorker getPeerStatus listPeers "
    "getPeerInfo deletePeer dbSanityCheck ping version help listCommands"
).split()
SERVED = [command for command in COMMANDS if command.name != "help"]
METHODS = {
    name: method
    for part in (Service, Execution, Jobs, Recall, Apps, Deploy, Logs, Membership, Trust)
    for name, method in vars(part).items()
    if name.startswith("do_")
}


@pytest.mark.parametrize("name", SEED)
def test_a_command_has_the_name_that_its_users_know(name: str) -> None:
    assert name in BY_NAME


def test_no_name_is_there_twice() -> None:
    assert len(BY_NAME) == len(COMMANDS)
    assert len({name.lower() for name in BY_NAME}) == len(COMMANDS)


@pytest.mark.parametrize(
    ("name", "snake"),
    [("execOnPeer", "exec_on_peer"), ("dbSanityCheck", "db_sanity_check"), ("ping", "ping"), ("shellCmd", "shell_cmd")],
)
def test_a_name_becomes_one_of_python(name: str, snake: str) -> None:
    assert snake_case(name) == snake


@pytest.mark.parametrize("command", SERVED, ids=lambda command: command.name)
def test_the_service_has_a_method_with_exactly_the_options_of_the_table(command: Command) -> None:
    method = METHODS[f"do_{snake_case(command.name)}"]
    assert inspect.iscoroutinefunction(method)
    parameters = list(inspect.signature(method).parameters.values())[2:]
    assert [(parameter.name, parameter.default is inspect.Parameter.empty) for parameter in parameters] == [
        *((option.name, option.required) for option in command.options),
        *([(command.rest, False)] if command.rest else []),
    ]


def test_the_service_has_no_method_that_the_table_does_not_know() -> None:
    assert METHODS.keys() == {f"do_{snake_case(command.name)}" for command in SERVED}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_says_what_it_does(command: Command) -> None:
    assert command.summary.endswith(".")
    assert len(command.summary) <= 80
    for option in command.options:
        assert option.flag.startswith("--")
        assert option.help.rstrip(")").endswith(".") or option.help.endswith(").")
        assert option.name.isidentifier()
        assert not keyword.iskeyword(option.name)
        assert (option.metavar != "") == (option.parse is not None)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_only_data_has_columns(command: Command) -> None:
    assert command.data or not command.columns


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_an_optional_option_comes_after_the_required_ones(command: Command) -> None:
    required = [option.required for option in command.options]
    assert required == sorted(required, reverse=True)


def test_advice_in_errors_names_commands_and_options_that_there_are() -> None:
    words = [text.split() for code in Code for text in KINDS[code].hints if " d " in f" {text}"]
    named = [line[place + 1].strip(",.)") for line in words for place, word in enumerate(line) if word == "d"]
    assert named
    assert set(named) <= set(BY_NAME)
    flags = {option.flag for command in COMMANDS for option in command.options}
    used = {word.strip("[]().,") for line in words for word in line if word.startswith(("--", "[--", "(--"))}
    assert used <= flags | {"--"}
