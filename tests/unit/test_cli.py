"""The command line of d: what arguments ask for, and what is said when they ask for nothing there is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd import validate
from peerd.cli import Invocation, Reply, parse
from peerd.commands import COMMANDS, Command

SERVED = [command for command in COMMANDS if command.name != "help"]
NAMES = [command.name for command in COMMANDS]
EXEC = ["execOnPeer", "--peer", "vps", "--directory", "/opt", "--shellCmd", "git pull"]


def reply(*argv: str, width: int = 80) -> Reply:
    parsed = parse(argv, width)
    assert isinstance(parsed, Reply)
    return parsed


def invocation(*argv: str) -> Invocation:
    parsed = parse(argv)
    assert isinstance(parsed, Invocation), parsed
    return parsed


def usage_error(*argv: str) -> str:
    said = reply(*argv)
    assert said.status == 2
    assert said.stdout == ""
    first, second = said.stderr.splitlines()
    assert first.startswith("d: ")
    assert re.fullmatch(r"  Help: d( \w+)? --help", second)
    return said.stderr


def shown(*argv: str, width: int = 80) -> str:
    said = reply(*argv, width=width)
    assert (said.status, said.stderr) == (0, "")
    return said.stdout


@pytest.mark.parametrize("command", SERVED, ids=lambda command: command.name)
def test_help_on_a_command_names_all_its_options(command: Command) -> None:
    text = shown(command.name, "--help")
    assert text.startswith(f"Usage: d {command.name}")
    assert command.summary in " ".join(text.split())
    for option in command.options:
        assert option.flag in text
        assert option.help in " ".join(text.split())
    assert ("--json" in text) == (command.data or command.record)


@pytest.mark.parametrize("command", SERVED, ids=lambda command: command.name)
def test_there_are_three_ways_to_ask_for_help_on_a_command(command: Command) -> None:
    assert shown(command.name, "--help") == shown(command.name, "-h") == shown("help", command.name)


@pytest.mark.parametrize(
    "argv", [["help", "--", "ping"], ["--", "help", "ping"], ["--", "help", "--", "ping"], ["help", "ping", "--"]]
)
def test_help_on_a_command_may_stand_after_the_options(argv: list[str]) -> None:
    assert shown(*argv) == shown("help", "ping")


@pytest.mark.parametrize("name", ["-x", "--help", "", "xyzzy"])
def test_what_stands_after_the_options_is_the_name_of_a_command(name: str) -> None:
    assert f"No such command: {name!r}" in usage_error("help", "--", name)


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["-h"], ["help"], ["help", "--help"], ["--", "help"], ["help", "--"], ["--", "help", "--"]]
)
def test_help_names_all_commands_with_what_they_do(argv: list[str]) -> None:
    text = shown(*argv)
    assert text == shown()
    for command in COMMANDS:
        assert re.search(rf"^  {command.name}  +\w", text, re.MULTILINE)


def test_help_explains_the_exit_status() -> None:
    text = shown()
    assert all(status in text for status in ("124", "128+n", "130", "255"))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("argv", [["--help"], ["execOnPeer", "--help"]], ids=["all", "one"])
def test_help_keeps_to_the_width_of_the_terminal(width: int, argv: list[str]) -> None:
    assert max(map(len, shown(*argv, width=width).splitlines())) <= width


def test_help_uses_the_width_it_has() -> None:
    assert len(shown("execOnPeer", "-h", width=160).splitlines()) < len(
        shown("execOnPeer", "-h", width=50).splitlines()
    )


def test_the_options_of_execonpeer_become_its_parameters() -> None:
    assert invocation(*EXEC) == Invocation(
        "execOnPeer", {"peer": "vps", "directory": "/opt", "shell_cmd": "git pull"}, False
    )
    assert invocation(*EXEC, "--timeout", "0.5").params["timeout"] == 0.5


@pytest.mark.parametrize("order", [EXEC, [EXEC[0], *EXEC[5:], *EXEC[1:5]], [EXEC[0], "--peer=vps", *EXEC[3:]]])
def test_the_order_and_the_spelling_of_options_do_not_matter(order: list[str]) -> None:
    assert invocation(*order) == invocation(*EXEC)


def test_a_command_line_for_the_shell_is_taken_as_it_is() -> None:
    command = "d startApp --app cad --mode prod && echo '--help' $X \udcff\n"
    assert invocation(*EXEC[:-1], command).params["shell_cmd"] == command


@pytest.mark.parametrize("command", ["--help", "-h", "--version", "--peer"])
def test_a_command_line_for_the_shell_may_look_like_an_option(command: str) -> None:
    assert invocation(*EXEC[:-1], command).params["shell_cmd"] == command


@pytest.mark.parametrize("name", ["registerWorker", "getPeerStatus", "listPeers", "dbSanityCheck", "ping", "version"])
def test_what_was_not_given_is_absent(name: str) -> None:
    assert invocation(name) == Invocation(name, {}, False)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.data and not c.options], ids=lambda c: c.name)
def test_json_is_an_option_of_every_command_that_shows_data(command: Command) -> None:
    assert invocation(command.name, "--json").json
    assert not invocation(command.name).json


def test_json_is_no_option_of_a_command_that_shows_none() -> None:
    assert "No such option: --json" in usage_error("version", "--json")


@pytest.mark.parametrize("argv", [["--version"], ["version"]])
def test_the_version_is_asked_for_as_a_command_or_an_option(argv: list[str]) -> None:
    assert invocation(*argv) == Invocation("version", {}, False)


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option.flag) for command in COMMANDS for option in command.options if option.required],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_missing_option_is_named(command: Command, option: str) -> None:
    values = {"--peer": "vps", "--directory": "/", "--shellCmd": "true", "--app": "cad", "--mode": "prod"}
    given_ = [
        part
        for other in command.options
        if other.required and other.flag != option
        for part in (other.flag, values[other.flag])
    ]
    message = usage_error(command.name, *given_)
    assert f"Missing option '{option}'" in message
    assert f"Help: d {command.name} --help" in message


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_an_unknown_option_is_named(command: Command) -> None:
    assert "--frobnicate" in usage_error(command.name, "--frobnicate")


@pytest.mark.parametrize("spelling", [["--command", "git pull"], ["--command=git pull"], ["--command"]])
def test_the_option_command_is_refused_with_the_one_that_is_meant(spelling: list[str]) -> None:
    message = usage_error(*EXEC[:-2], *spelling)
    assert "No such option: --command" in message
    assert "--shellCmd" in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("execonpeer", "execOnPeer"), ("listpeers", "listPeers"), ("registerworker", "registerWorker")),
        *(("pong", "ping"), ("getPeerInf", "getPeerInfo"), ("remotepul", "remotePull")),
        ("dbSanitycheck", "dbSanityCheck"),
    ],
)
def test_a_mistyped_command_is_answered_with_the_one_that_is_meant(typed: str, meant: str) -> None:
    message = usage_error(typed)
    assert f"No such command: {typed!r}" in message
    assert "Did you mean" in message
    assert meant in message


@pytest.mark.parametrize("typed", ["xyzzy", "", "-", "é", "\udcff", "\x1b[31m"])
def test_an_unknown_command_is_answered_with_where_to_find_them(typed: str) -> None:
    assert "No such command" in usage_error(typed)
    assert "d help" in usage_error(typed)


def test_help_on_an_unknown_command_says_that_there_is_none() -> None:
    assert "No such command: 'xyzzy'" in usage_error("help", "xyzzy")


@pytest.mark.parametrize("argv", [["ping", "vps"], ["listPeers", "x", "y"], ["help", "ping", "x"]])
def test_an_argument_too_many_is_refused(argv: list[str]) -> None:
    assert argv[-1] in usage_error(*argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ping", "--peer", "a b"], "'--peer': not a valid peer id"),
        (["ping", "--peer", ""], "'--peer': not a valid peer id"),
        ([*EXEC[:4], "opt", *EXEC[5:]], "'--directory': directory must be an absolute path"),
        ([*EXEC[:-1], ""], "'--shellCmd': shellCmd is empty"),
        ([*EXEC[:-1], "x" * (validate.MAX_COMMAND + 1)], "'--shellCmd': shellCmd is too long"),
        ([*EXEC, "--timeout", "soon"], "'--timeout': not a number of seconds"),
        ([*EXEC, "--timeout", "0"], "'--timeout': not a number of seconds"),
        ([*EXEC, "--timeout", "-1"], "'--timeout': not a number of seconds"),
        ([*EXEC, "--timeout"], "'--timeout' requires an argument"),
        (["setPeerConfig", "--role", "boss"], "'boss' is not one of 'leader', 'worker'"),
        (["setPeerConfig", "--id", "-"], "'--id': not a valid peer id"),
        (["registerWorker", "--leader", "vps"], "'--leader': not an IPv4 address"),
    ],
    ids=[*"abcdefghijkl"],
)
def test_a_bad_value_is_refused_by_the_name_of_its_option(argv: list[str], words: str) -> None:
    assert words in usage_error(*argv)


@pytest.mark.parametrize("argv", [["ping", "--peer"], ["ping", "--nosuch"], ["execOnPeer", "--stdin=3"]], ids=str)
def test_whoever_uses_a_command_wrongly_is_shown_the_way_to_its_help(argv: list[str]) -> None:
    assert f"Help: d {argv[0]} --help\n" in usage_error(*argv)


@pytest.mark.parametrize("more", [["--timeout", "0"], ["--nonsense"], ["--json=1"], ["--timeout"]], ids=str)
def test_wrong_usage_is_a_record_where_one_was_asked_for(more: list[str]) -> None:
    said = reply(*EXEC, "--json", *more)
    record = json.loads(said.stdout)
    assert (record["schema"], record["outcome"], record["exit_status"], said.status) == (1, "failed", 2, 2)
    assert said.stderr.splitlines()[0] == f"d: {record['error']['message']}"
    [event] = reply(*EXEC, "--json", "--stream", *more).stdout.splitlines()
    assert json.loads(event) == {"event": "result", **{key: record[key] for key in json.loads(event) if key != "event"}}


@pytest.mark.parametrize(
    "argv", [["getJob", "--json"], [*EXEC, "--user", "--json"], [*EXEC, "--x", "--", "--json"], ["xyzzy", "--json"]]
)
def test_wrong_usage_is_no_record_where_none_was_asked_for(argv: list[str]) -> None:
    usage_error(*argv)


@given(
    st.lists(
        st.sampled_from([*NAMES, "--help", "-h", "--json", "--peer", "vps", "--", "", "-", "help", "-x", "--=", "="])
        | st.text(max_size=5),
        max_size=5,
    )
)
def test_any_arguments_have_an_answer(argv: list[str]) -> None:
    parsed = parse(argv)
    if isinstance(parsed, Reply):
        assert parsed.status in (0, 2)
        assert bool(parsed.stderr) == (parsed.status == 2)
        assert parsed.stdout or parsed.status == 2


@given(
    st.lists(
        st.sampled_from([*NAMES, "--peer", "--peer=", "--peer=v", "-n", "--json", "--", "", "=", "v"])
        | st.text(max_size=5),
        max_size=6,
    )
)
def test_any_words_can_be_completed(words: list[str]) -> None:
    assert isinstance(parse(["--complete", *words]), Reply)


def test_asking_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    parse(["--help"])
    parse(["xyzzy"])
    parse(EXEC)
    assert capfd.readouterr() == ("", "")


KNOWN = {"PEER": ("desktop", "laptop", "vps"), "APP": ("cad", "mail")}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ([], NAMES),
        ([""], NAMES),
        (["remoteP"], ["remotePull"]),
        (["remotePull", "--peer", ""], KNOWN["PEER"]),
        (["remotePull", "--peer", "l"], ["laptop"]),
        (["remotePull", "--peer", "laptop", "--pe"], []),
        (["remotePull", "--t"], ["--timeout"]),
        (["remotePull", "--timeout", ""], []),
        (["startApp", "--app", "c"], ["cad"]),
        (["waitJob", "--job", ""], []),
        (["execOnPeer", "--env", "A=1", "--en"], ["--env"]),
        (["setPeerConfig", "--role", ""], ["leader", "worker"]),
        (["listPeers", "--"], ["--help", "--json"]),
        (["help", "get"], ["getJob", "getPeerIdByIp", "getPeerInfo", "getPeerStatus"]),
        (["waitJob", "--"], ["--help", "--job", "--json", "--peer"]),
        (["noSuchCommand", ""], []),
        # As bash has them.
        (["remotePull", "--peer", "="], KNOWN["PEER"]),
        (["remotePull", "--peer", "=", "l"], ["laptop"]),
        (["remotePull", "--peer", "=", "laptop", "--t"], ["--timeout"]),
        (["remotePull", "--peer", "=", "laptop", "--pe"], []),
        (["execOnPeer", "--env", "A", "=", "--peer"], ["--peer"]),
        # As zsh and fish have them.
        (["remotePull", "--peer="], [f"--peer={peer}" for peer in KNOWN["PEER"]]),
        (["remotePull", "--peer=l"], ["--peer=laptop"]),
        (["remotePull", "--peer=laptop", "--t"], ["--timeout"]),
        (["remotePull", "--peer=laptop", "--pe"], []),
        (["execOnPeer", "--env", "A=1", "--env=B=2", "--en"], ["--env"]),
        (["execOnPeer", "--shellCmd=--peer=", "--peer", "v"], ["vps"]),
        (["remotePull", "--json="], []),
        (["log", "-n", ""], []),
        (["log", "-n", "5", "--l"], []),
        (["log", "-f", "--fo"], []),
        (["log", "-f", "--peer", "v"], ["vps"]),
        (["remotePull", "--json", "--js"], []),
        (["remotePull", "--json", "--stream", "--"], ["--help", "--peer", "--timeout"]),
        (["execOnPeer", "--peer", "vps", "--", ""], []),
        (["execOnPeer", "--peer", "vps", "--", "ls", "--"], []),
    ],
)
def test_completion_offers_what_can_come_next(typed: list[str], offered: Sequence[str]) -> None:
    reply = parse(["--complete", *typed], known=lambda metavar: KNOWN.get(metavar, ()))
    assert reply == Reply("".join(f"{word}\n" for word in sorted(offered)))
