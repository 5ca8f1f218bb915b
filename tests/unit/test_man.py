"""The manual pages: they name everything that there is, and nothing that is gone."""

from __future__ import annotations

import ast
import pwd
import re
import shlex
import shutil
import subprocess
import syslog
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from peerd import (
    app,
    busapi,
    buslink,
    busreader,
    cli,
    client,
    config,
    configfiles,
    errors,
    executor,
    fronts,
    job,
    jobs,
    links,
    logs,
    messages,
    policy,
    protocol,
    records,
    tcpfront,
    units,
    validate,
)
from peerd.busapi import INTERFACES, Arguments
from peerd.commands import BY_NAME, COMMANDS, Access, Command
from peerd.config import SETTINGS
from peerd.environment import login_environment
from peerd.errors import KINDS, Outcome
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult, Registration
from peerd.peers import Peer
from peerd.policy import CRITERIA

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man"
PAGES = sorted(MAN.glob("*.[1-8]"))
NAMES = [page.name for page in PAGES]
SOURCES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "peerd").glob("*.py"))}
TREES = list(SOURCES.values())

# mdoc(7): macros that may stand within a line, and so end the arguments of the one before them.
_MACROS = set("Ar Cm Dv Em Er Ev Fl Ic It Nm No Ns Oc Oo Op Pa Pq Ql Sx Sy Ta Va Xr".split())
_DELIMITERS = set(". , : ; ( ) [ ] ? ! |".split())
_PRIORITIES = {
    syslog.LOG_ERR: "err",
    syslog.LOG_WARNING: "warning",
    syslog.LOG_NOTICE: "notice",
    syslog.LOG_INFO: "info",
}


class Page:
    """The source of a page, by its mdoc(7) macros."""

    def __init__(self, name: str, lines: list[str] | None = None) -> None:
        self.name = name
        self.lines = (MAN / name).read_text().replace("\\\n", "").splitlines() if lines is None else lines

    def __repr__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """All of it, with the escapes of quotes undone."""
        return "\n".join(self.lines).replace("\\(aq", "'").replace("\\(dq", '"')

    def part(self, heading: str) -> Page:
        """The section or subsection with this heading."""
        start = self.lines.index(heading)
        ends = (".Sh",) if heading.startswith(".Sh") else (".Sh", ".Ss")
        rest = self.lines[start + 1 :]
        size = next((index for index, line in enumerate(rest) if line.startswith(ends)), len(rest))
        return Page(self.name, rest[:size])

    def arguments(self, macro: str) -> list[str]:
        """The arguments of a macro wherever it stands, without punctuation."""
        found = []
        for line in self.lines:
            inside = False
            for index, word in enumerate(_words(line)):
                name = word.removeprefix(".") if index == 0 else word
                if name in _MACROS or index == 0:
                    inside = name == macro
                elif inside and word not in _DELIMITERS:
                    found.append(word)
        return found

    def items(self, pattern: str) -> list[tuple[str, ...]]:
        """The groups of a regular expression in the heads of list items."""
        matches = (re.fullmatch(r"\.It " + pattern, line) for line in self.lines)
        return [match.groups() for match in matches if match]


D, PEERD, CONF, WIRE = map(Page, ("d.1", "peerd.8", "peerd.conf.5", "peerd-protocol.7"))
BUS = Page("org.automatelinux.peerd1.5")
BY_IP = Page("getPeerIdByIp.1")
ALL = (D, PEERD, CONF, WIRE, BUS, BY_IP)


_WORDS = {1: "a second", 2.5: "two and a half", 4: "four"}


def _words(line: str) -> list[str]:
    if not line.startswith(".") or line.startswith('.\\"'):
        return []
    return [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', line)]


def _calls(*names: str, trees: list[ast.Module] = TREES) -> Iterator[tuple[str, ast.Call]]:
    """The calls of functions and methods of these names."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in names:
                    yield name, node


def _constant(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _keys(node: ast.AST) -> list[tuple[int, str]]:
    """The keys of all dictionaries that are written out below a node, with their lines."""
    return [
        (key.lineno, str(key.value))
        for inner in ast.walk(node)
        if isinstance(inner, ast.Dict)
        for key in inner.keys
        if isinstance(key, ast.Constant)
    ]


def _function(module: str, name: str) -> ast.AST:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next(node for node in ast.walk(SOURCES[module]) if isinstance(node, functions) and node.name == name)


def _difference(documented: set[str], there: set[str]) -> str:
    return f"not in the page: {sorted(there - documented)}; only in the page: {sorted(documented - there)}"


# --- d(1)


def _head(command: Command) -> str:
    words = [".It Ic", command.name]
    for option in command.options:
        one = f"Fl {option.flag.removeprefix('-')}" + (f" Ar {option.metavar.lower()}" if option.metavar else "")
        words.append(one if option.required else f"Oo {one} Oc")
    words += ["Oo Fl -json Oc"] * (command.data or command.record) + ["Oo Fl -stream Oc"] * command.record
    words += [rf"Op Fl \&- Ar {command.rest}"] * bool(command.rest)
    words += [f"Op Ar {command.argument}"] * bool(command.argument)
    return " ".join(words)


def test_commands_stand_in_the_order_of_the_table_with_their_options() -> None:
    heads = [line for line in D.part(".Ss Commands").lines if line.startswith(".It Ic")]
    assert heads == [_head(command) for command in COMMANDS]


def test_every_value_of_an_option_is_explained() -> None:
    explained = D.part(".Ss Commands").arguments("Cm")
    for command in COMMANDS:
        for option in command.options:
            assert set(option.choices) <= set(explained)


def test_no_command_or_option_is_named_that_does_not_exist() -> None:
    flags = {flag for command in COMMANDS for option in command.options for flag in (option.flag, option.short)}
    flags |= {"--check", "--json", "--stream", "--version", "--help", "-h", r"-\&-"}
    assert {f"-{word}" for page in ALL for word in page.arguments("Fl")} <= flags
    assert {*D.arguments("Ic"), *PEERD.arguments("Ic")} <= set(BY_NAME)
    literal = "\n".join(page.text for page in ALL)
    assert set(re.findall(r"^\.Ql d ([a-zA-Z]+)", literal, re.MULTILINE)) <= {*BY_NAME, "command"}


def _examples(page: Page) -> Iterator[str]:
    literal = False
    for line in page.text.splitlines():
        literal = line.startswith(".Bd -literal") or (literal and line != ".Ed")
        text = line.removeprefix(".Dl ") if line.startswith(".Dl ") else line if literal else ""
        if match := re.match(r"(?:\w+# )?\s*(d [a-z]\w+.*)", text):
            yield match[1]


@pytest.mark.parametrize("example", [example for page in ALL for example in _examples(page)])
def test_examples_are_right(example: str) -> None:
    lexer = shlex.shlex(example.replace("$", ""), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    words = words[1 : words.index("|") if "|" in words else None]
    assert isinstance(cli.parse(words), cli.Invocation), cli.parse(words)


def test_fields_of_data_stand_in_their_order() -> None:
    peer = [name for _, name in _keys(_function("membership", "_show"))]
    assert [name for (name,) in D.part(".Ss Fields of listPeers and getPeerInfo").items(r"Va (\w+)")] == peer
    function = _function("membership", "do_get_peer_status")
    added = [
        (node.lineno, str(node.slice.value))
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    ]
    status = [name for _, name in sorted({*_keys(function), *added}, key=lambda pair: pair[0])]
    assert [name for (name,) in D.part(".Ss Fields of getPeerStatus").items(r"Va (\w+)")] == status
    check = {name for _, name in _keys(_function("membership", "do_db_sanity_check"))}
    assert {"role", "issues_found", "actions", "message"} <= check & set(D.part(".Ss Commands").arguments("Va"))


def test_fields_of_apps_stand_in_their_order() -> None:
    items = D.part(".Ss Fields of listApps and appStatus").items(r"Va (\w+)")
    assert tuple(name for (name,) in items) == app.SHOWN
    assert app.SHOWN[: len(app.LISTED)] == app.LISTED
    assert f"has the first {_WORDS[len(app.LISTED)]} fields" in D.text


def test_exit_statuses() -> None:
    statuses = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {0}
    assert {kind.exit_status for kind in KINDS.values()} <= statuses
    documented = {status for (status,) in D.part(".Sh EXIT STATUS").items(r"(\S+)")}
    assert documented == {*map(str, statuses), f"{errors.SIGNAL_BASE}+n"}


def _said_by_the_client() -> Iterator[str]:
    for _, call in _calls("_complain", "fail", "_Unusable", trees=[SOURCES["client"], SOURCES["cli"]]):
        first = call.args[0]
        if sentence := _constant(first):
            yield sentence
        elif isinstance(first, ast.JoinedStr):
            names = vars(client)
            yield "".join(
                _constant(part) or str(names.get(getattr(getattr(part, "value", None), "id", ""), "REASON"))
                for part in first.values
            )


def test_error_sentences() -> None:
    sentences = {
        re.sub(r"\{(\w+)\}", lambda match: match[1].upper().replace("_", "-"), kind.sentence) for kind in KINDS.values()
    }
    # The sentence of wrong usage is all reason.
    there = {sentence for sentence in sentences if re.search("[a-z]", sentence)} | set(_said_by_the_client())
    documented = {sentence for (sentence,) in D.part(".Sh DIAGNOSTICS").items('"(.*)"')}
    assert documented == there, _difference(documented, there)


def _environment(module: str) -> set[str]:
    return {
        name.decode() if isinstance(name, bytes) else name
        for _, call in _calls("get", trees=[SOURCES[module]])
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os.environ", "posix.environ")
        if isinstance(name := ast.literal_eval(call.args[0]), bytes | str)
    }


def test_environment() -> None:
    there = _environment("client") | login_environment("0" * 16, "peer", pwd.getpwnam("root")).keys()
    documented = set(D.part(".Sh ENVIRONMENT").arguments("Ev"))
    assert documented == there, _difference(documented, there)
    assert login_environment("0" * 16, "peer", pwd.getpwnam("root"))["PATH"] in D.text
    about = D.part(".Sh ENVIRONMENT").text
    assert "Of the user that it runs as" in about
    assert ".Fl -env" in about
    assert _environment("daemon") <= set(PEERD.part(".Sh ENVIRONMENT").arguments("Ev"))


# --- peerd.conf(5)


def test_settings_stand_in_the_order_of_the_table_with_their_defaults() -> None:
    text = CONF.part(".Sh SETTINGS").text
    items = re.findall(r"^\.It Cm (\S+)\n(?:(?!\.It ).*\n)*?Default:\n\.Ql (.*)$", text, re.MULTILINE)
    assert items == [(setting.name, setting.default) for setting in SETTINGS]
    assert text.count(".It ") == len(SETTINGS)


def test_nothing_that_can_be_set_or_come_out_is_named_that_does_not_exist() -> None:
    there = {
        *(setting.name for setting in SETTINGS),
        *(criterion.name for criterion in CRITERIA),
        *Outcome,
        *(_event_name(event) for event in Event),
        *(choice for command in COMMANDS for option in command.options for choice in option.choices),
        "help",
    }
    for page in ALL:
        assert set(page.arguments("Cm")) <= there, page.name


def test_the_settings_of_a_rule_stand_in_the_order_of_the_table() -> None:
    assert [name for (name,) in CONF.part(".Sh POLICY").items(r"Cm (\S+)")] == [row.name for row in CRITERIA]
    assert all(f"[{kind} NAME]" in CONF.part(".Sh POLICY").text for kind in policy.KINDS)


def test_the_example_of_a_policy_is_one() -> None:
    example = CONF.part(".Sh EXAMPLES").text.split(".Bd -literal -offset indent\n")[2].split("\n.Ed")[0]
    found, warnings = config.parse([("example", example)])
    assert [rule.name for rule in found.policy.rules] == ["deploy", "look"]
    assert warnings == []


# --- peerd(8)


def _event_name(event: Event) -> str:
    return event.name.lower().replace("_", "-")


def test_events_stand_in_the_order_of_the_table() -> None:
    items = PEERD.part(".Ss Events").items(r"Cm (\S+) Pq ([0-9a-f]{32}) , (\w+)")
    assert items == [(_event_name(event), event.value.message_id, _PRIORITIES[event.value.priority]) for event in Event]


def test_journal_fields() -> None:
    given = {word.arg for _, call in _calls("log") for word in call.keywords if word.arg and word.arg != "unit"}
    given |= {name for _, name in _keys(_function("run", "describe"))}
    there = {f"PEERD_{name.upper()}" for name in given}
    there |= {name for _, name in _keys(_function("journal", "log")) if name.startswith("PEERD_")}
    documented = {name for (name,) in PEERD.part(".Ss Fields").items(r"Va (PEERD_\w+)")}
    assert documented == there, _difference(documented, there)
    named = {word for page in ALL for word in page.arguments("Va") if word.startswith("PEERD_")}
    variables = login_environment("0" * 16, "peer", pwd.getpwnam("root")).keys()
    in_text = {word for page in ALL for word in re.findall(r"PEERD_[A-Z_]+", page.text)}
    assert named <= there
    assert in_text <= there | variables | _environment("client")


def test_actions_are_recorded_as_the_page_says() -> None:
    fields = PEERD.part(".Ss Fields")
    assert [word for word in fields.arguments("Ql") if word[0] == "("] == [f"({name})" for name in messages.Action]


def test_a_refused_connection_is_not_a_refused_caller() -> None:
    about = PEERD.text.split(".It Cm connection-refused")[1].split(".It Cm")[0]
    assert "unix socket" not in about


def test_units_files_and_exit_statuses_of_the_daemon() -> None:
    paths = PEERD.arguments("Pa")
    for unit in (path.name for path in (ROOT / "units").iterdir() if path.is_file()):
        assert unit in paths
    for path in (client.SOCKET, str(configfiles.CONFIG_FILE), f"{configfiles.CONFIG_DIRECTORY}/*.conf"):
        assert path in paths
    assert str(configfiles.CONFIG_FILE) in CONF.arguments("Pa")
    assert (str(configfiles.EX_CONFIG),) in PEERD.part(".Sh EXIT STATUS").items(r"(\S+)")


# --- peerd-protocol(7)


def _message_types() -> set[str]:
    there = {_constant(call.args[0]) for _, call in _calls("send", "post", "expect", "_ask") if call.args}
    there |= {_constant(call.args[1]) for _, call in _calls("request") if len(call.args) > 1}
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Match) and ast.unparse(node.subject).endswith(".type"):
            cases = (inner for case in node.cases for inner in ast.walk(case.pattern))
            there |= {_constant(inner.value) for inner in cases if isinstance(inner, ast.MatchValue)}
        elif isinstance(node, ast.Compare) and (
            ast.unparse(node.left).endswith(".type") or ast.unparse(node.left) == "kind"
        ):
            there |= {_constant(word) for word in node.comparators}
        elif isinstance(node, ast.Dict):
            there |= {_constant(v) for k, v in zip(node.keys, node.values, strict=True) if _constant(k) == "type"}
        elif isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            text = node.value if isinstance(node.value, str) else node.value.decode("ascii", "replace")
            there |= set(re.findall(r'^\{+"type":"(\w+)"', text))
    return {name for name in there if name}


def test_messages() -> None:
    there = _message_types()
    documented = {name for (name,) in WIRE.part(".Sh MESSAGES").items(r"Ic (\w+)")}
    assert documented == there, _difference(documented, there)
    assert set(WIRE.arguments("Ic")) <= there
    assert set(re.findall(r'"type":"(\w+)"', WIRE.text)) <= there


def test_fields_of_messages() -> None:
    given = {_constant(call.args[1]) for _, call in _calls("take", "take_optional") if len(call.args) > 1}
    for _, call in _calls("send", "post"):
        given |= {name for argument in call.args[1:2] for _, name in _keys(argument)}
    failure = errors.PeerdError(errors.Code.USAGE, reason="").to_wire()
    given |= {field.name for kind in (Peer, Registration) for field in fields(kind)}
    given |= {"type", "size"} | failure.keys() | messages.hello("0").keys()
    given |= ExecRequest("0" * 16).to_wire().keys() | ExecResult(Outcome.EXITED, 0).to_wire().keys()
    documented = set(WIRE.arguments("Va"))
    assert {name for name in given if name} <= documented, f"{given - documented}"
    words = {text for tree in TREES for node in ast.walk(tree) if (text := _constant(node))}
    assert documented <= words | {field.name for kind in (Peer, Registration) for field in fields(kind)}


def test_error_codes_stand_in_the_order_of_the_table_with_outcome_and_status() -> None:
    rows = WIRE.part(".Ss Codes of errors").items(r"Er (\S+) Ta (\S+) Ta (\d+)")
    assert rows == [(code.value, kind.outcome.value, str(kind.exit_status)) for code, kind in KINDS.items()]
    assert set(WIRE.arguments("Er")) <= set(errors.Code)


def test_outcomes_stand_in_the_order_of_the_table() -> None:
    assert [name for (name,) in WIRE.part(".Ss Outcomes").items(r"Cm (\w+)")] == list(Outcome)
    assert set(PEERD.part(".Ss Fields").arguments("Cm")) == set(Outcome)


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (WIRE, f"version {protocol.PROTOCOL_VERSION} of the protocol"),
        (WIRE, f"at most {protocol.MAX_HEADER} bytes"),
        (WIRE, f"1 to {protocol.MAX_TYPE} characters"),
        (WIRE, f"0 to {protocol.MAX_PAYLOAD}"),
        (WIRE, f"at most {messages.MAX_OUTPUT} of them"),
        (WIRE, f"at most {validate.MAX_PATH} bytes"),
        (WIRE, f"at most {validate.MAX_COMMAND} bytes"),
        (D, f"at most {validate.MAX_COMMAND} bytes"),
        (D, f"for at most {validate.MAX_VARIABLES} of them"),
        (D, f"may have {client._LONGEST} bytes as JSON"),
        (D, f"end after {job.MAX_SHOWN_COMMAND} characters"),
        (WIRE, f"0 to {validate.MAX_LINES}"),
        (D, f"at most {validate.MAX_LINES}."),
        (D, f"default is {records.DEFAULT_LINES},"),
        (D, f"more than {logs._MAX_HELD // 2**20} MiB"),
        (WIRE, f"At most {logs._MAX_READERS} of them run at once on a target, and {logs._OF_A_PEER} of one sender"),
        (WIRE, f"the last {executor._REMEMBERED} ids"),
        (WIRE, f"a window of {messages.WINDOW} bytes"),
        (WIRE, f"at most {jobs.MAX_JOBS}"),
        (D, f"no more than the newest {jobs.MAX_JOBS} are listed"),
        (WIRE, f"null or a list of at most {app.MAX_APPS} objects"),
        (WIRE, f"is a list of at most {app._MAX_NOTES} sentences"),
        (WIRE, f"at most {validate.MAX_UNIT} bytes each"),
        (WIRE, f"a list of at most {errors._MAX_LINES} strings"),
        (D, f"is watched for {_WORDS[units._WATCH]};"),
        (WIRE, f"cut after {job.MAX_SHOWN_COMMAND} characters"),
        (WIRE, f"for {fronts._HELLO_LIMIT:g} seconds"),
        (WIRE, f"for {tcpfront._IDLE_LIMIT:g} seconds"),
        (WIRE, f"then sent nothing for {tcpfront._STRANGER_LIMIT:g} seconds"),
        (CONF, f"a machine that is no peer {tcpfront._OF_A_STRANGER}."),
        (WIRE, f"hears nothing for {_WORDS[links._MISSED_HEARTBEATS]} of them"),
        (BUS, f"may have {busapi.MAX_COLLECTED} bytes"),
        (BUS, f"often {buslink.CALL_TIMEOUT:g} seconds"),
        (BUS, f"of more than {busreader.LARGEST // 2**20} MiB or {busreader.MOST_VALUES} values"),
        (CONF, f"silent for {_WORDS[links._MISSED_HEARTBEATS]} of them"),
    ],
    ids=repr,
)
def test_bounds(page: Page, sentence: str) -> None:
    assert sentence in " ".join(page.text.split())


def test_bounds_of_settings() -> None:
    year, most = 31_536_000, 100_000
    assert CONF.text.count(f"from 1 to {most}") == 2
    assert f"at most {year}," in CONF.text
    for setting in SETTINGS:
        kind = type(setting.parse(setting.default))
        limit = year if kind is float else {"port": 65_535}.get(setting.name, most)
        if setting.parse is validate.size:
            assert setting.parse("2K") == 2048
        elif setting.name == "max-commands":
            assert f"from 1 to {setting.parse(str(most))}," in CONF.text
            with pytest.raises(ValueError, match=r"\d"):
                setting.parse(str(most + 1))
        elif kind in (int, float):
            assert setting.parse(str(limit)) == limit
            with pytest.raises(ValueError, match=r"\d"):
                setting.parse(str(limit + 1))


# --- org.automatelinux.peerd1(5)


def _quoted(arguments: Arguments) -> list[str]:
    return [f'"{signature} {name}"' for name, signature in arguments]


def test_members_stand_in_the_order_of_the_table_with_their_signatures() -> None:
    manager, peer, job_ = (INTERFACES[name] for name in (busapi.MANAGER, busapi.PEER, busapi.JOB))
    heads = [line for line in BUS.part(".Ss Methods").lines if line.startswith((".It", ".Fa"))]
    assert heads == [
        line
        for name, method in manager.methods.items()
        for line in (" ".join([".It Fn", name, *_quoted(method.takes)]), f".Fa {' , '.join(_quoted(method.gives))} .")
    ]
    heads = [line for line in BUS.part(".Ss Signals").lines if line.startswith(".It")]
    assert heads == [" ".join([".It Fn", name, *_quoted(takes)]) for name, takes in manager.signals.items()]
    items = BUS.items(r"Va (\w+) Pq (\w)")
    assert items == [
        (name, shown.signature) for interface in (manager, peer, job_) for name, shown in interface.properties.items()
    ]


def test_an_address_is_that_of_the_same_interface_everywhere() -> None:
    mac = "Of the interface with the default route, else of the first that has one; or"
    assert mac in D.text
    assert mac in BUS.text


def test_a_command_that_is_no_method_is_named() -> None:
    missing = {command.name for command in COMMANDS if command not in busapi.CALLABLE.values()}
    assert set(BUS.part(".Sh DESCRIPTION").arguments("Ic")) == missing


def test_actions_and_errors_of_the_bus() -> None:
    assert BUS.part(".Sh WHO MAY").items(r"Ev (\S+)") == [(busapi.action(access),) for access in Access]
    policy = (ROOT / "units/polkit-1/org.automatelinux.peerd1.policy").read_text()
    assert re.findall(r'<action id="(.+)">', policy) == [busapi.action(access) for access in Access]
    standard = {
        name
        for _, call in _calls("Refused", trees=[SOURCES["bus"], SOURCES["polkit"]])
        if (name := _constant(call.args[0]))
    }
    # Names that are chosen as one goes, or belong to a library.
    standard |= {"InteractiveAuthorizationRequired", "LimitsExceeded", "Failed"}
    ours = {busapi.error_name(code).removeprefix("org.freedesktop.DBus.Error.") for code in errors.Code}
    standard |= {name for name in ours if "." not in name}
    documented = {name for line in BUS.lines if line.startswith(".It Er ") for name in line[7:].split(" , ")}
    assert documented == standard, _difference(documented, standard)
    assert {f"{busapi.NAME}.Error.{name}" for name in ("PeerNotFound", "TooMuchOutput")} <= ours


# --- all of them


def test_pages_are_these() -> None:
    assert [page.name for page in sorted(ALL, key=lambda page: page.name)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pages_refer_to_pages_that_exist(name: str) -> None:
    for line in Page(name).lines:
        if match := re.match(r"\.Xr (d|peerd\S*|org\S*) (\d)", line):
            assert f"{match[1]}.{match[2]}" in NAMES


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_mandoc_has_nothing_to_say(name: str) -> None:
    run = subprocess.run(
        ["mandoc", "-Tlint", "-Wstyle", name], cwd=MAN, capture_output=True, encoding="utf-8", check=False
    )
    # Which other pages are installed is the machine's matter; peerd's own were looked at above.
    lines = re.findall(r"^.*: (?:STYLE|WARNING|ERROR|UNSUPP): .*$", run.stdout + run.stderr, re.MULTILINE)
    assert [line for line in lines if "referenced manual not found" not in line] == []
    assert run.returncode <= 1
