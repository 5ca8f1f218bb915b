"""The command line of ``d``: arguments in, an invocation or a finished reply out. Pure code.

Both ends use it: the daemon, which has click loaded, for every call; ``d`` itself only where no daemon answers.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from peerd.commands import BY_NAME, COMMANDS, Command, Option
from peerd.errors import KINDS, Code, suggestion
from peerd.jsonrecord import Printer
from peerd.render import no_result

PROG = "d"
COMPLETE = "--complete"
"""The first argument of a call that the shell's completion makes."""
_JSON = Option("--json", "Print JSON, as is the rule where stdout is no terminal.")
_RECORD = Option("--json", "Print one JSON object at the end: outcome, output and all that is known.")
_STREAM = Option("--stream", "With --json: print a JSON object a line, as things happen.")
_SUMMARY = """Run commands on this machine's peers, inside the VPN.

Exit status: the command's own; 124 when it ran out of time; 128+n when signal n ended it; 130 after Ctrl-C;
2 for wrong usage; 255 for everything that is peerd's, the network's or policy's doing.
"""


@dataclass(frozen=True)
class Invocation:
    """A command to do: its name, the options that were given, and whether JSON was asked for, and as a stream."""

    command: str
    params: dict[str, Any]
    json: bool = False
    stream: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer that needs no daemon: help, or what was wrong with the arguments."""

    stdout: str = ""
    stderr: str = ""
    status: int = 0


class _Value(click.ParamType):
    """A value that one of the table's validators checks."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar.lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        assert self.option.parse is not None
        try:
            return self.option.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Command(click.Command):
    """A command that makes its option --help once, as in click from 8.1.8 on.

    Before, each call made four, and looked on disk for a translation every time.
    """

    _own_help: click.Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        if self._own_help is None:
            self._own_help = super().get_help_option(ctx)
        return self._own_help


class _Group(_Command, click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [command.name for command in COMMANDS]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click itself would take a name that starts with no letter or digit for an option.
        if self.get_command(ctx, args[0]) is None:
            raise click.UsageError(_unknown(args[0]), ctx)
        return super().resolve_command(ctx, args)


def _unknown(name: str) -> str:
    hint = suggestion(name, BY_NAME) or "All of them: d help"
    return f"No such command: {click.format_filename(name)!r}. {hint}"


def _options(command: Command) -> list[Option]:
    """All options of a command: its own, and how its answer is printed."""
    return [*command.options, *[_JSON] * command.data, *[_RECORD, _STREAM] * command.record]


def _option(option: Option) -> click.Option:
    names = [option.flag, option.name, *([option.short] if option.short else [])]
    if option.parse is None:
        return click.Option(names, is_flag=True, default=None, help=option.help)
    kind: click.ParamType = click.Choice(option.choices) if option.choices else _Value(option)
    return click.Option(
        names,
        type=kind,
        required=option.required,
        multiple=option.multiple,
        metavar=option.metavar,
        help=option.help,
    )


def _command(command: Command) -> click.Command:
    params: list[click.Parameter] = [_option(option) for option in _options(command)]
    if command.rest:
        params.append(click.Argument([command.rest], nargs=-1, required=False, metavar="[-- PROGRAM [ARGUMENT]...]"))
    if command.argument:
        params.append(click.Argument([command.argument], required=False))

    def invoke(json: bool | None = None, stream: bool | None = None, **params: Any) -> Invocation:
        if stream and not json:
            raise click.UsageError("--stream goes with --json", click.get_current_context())
        given = {name: value for name, value in params.items() if value is not None and value != ()}
        return Invocation(command.name, given, bool(json), bool(stream))

    return _Command(command.name, callback=invoke, params=params, help=command.summary, short_help=command.summary)


_ROOT = _Group(
    PROG,
    {command.name: _command(command) for command in COMMANDS},
    help=_SUMMARY,
    subcommand_metavar="COMMAND [OPTIONS]",
    params=[click.Option(["--version"], is_flag=True, help="Show the version of the daemon.")],
    epilog="Help on one command: d COMMAND --help",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def parse(
    argv: Sequence[str], width: int = 80, known: Callable[[str], Iterable[str]] = lambda _: ()
) -> Invocation | Reply:
    """What these arguments ask for.

    :param argv: the arguments of ``d``, without its name
    :param width: columns for help texts
    :param known: gives the values that are known of an option, by its metavar, for completion
    """
    if argv[:1] == [COMPLETE]:
        return Reply("".join(f"{word}\n" for word in complete(argv[1:], known)))
    args = list(argv)
    if args[:1] == ["--version"]:
        args[0] = "version"
    if not args or args == ["help"]:
        args = ["--help"]
    elif args[0] == "help" and args[1] != "--" and set(args[2:]) <= {"-h", "--help"}:
        args = [args[1], "--help"]
    captured = io.StringIO()
    try:
        with contextlib.redirect_stdout(captured):
            outcome = _ROOT.main(args, PROG, standalone_mode=False, terminal_width=width, max_content_width=width)
    except click.UsageError as error:
        return _misused(error, args)
    if isinstance(outcome, Invocation):
        if outcome.command == "help":
            # There was a -- before it, or before what it is about.
            about = outcome.params.get("command")
            return parse(["--help"] if about is None else ["--", about, "--help"], width)
        return outcome
    return Reply(captured.getvalue())


def without_daemon(argv: Sequence[str], path: str, error: OSError) -> Reply:
    """Help and what is wrong with the arguments; for everything else why there is no daemon to do it.

    :param path: the daemon's socket
    :param error: what came of connecting to it
    """
    parsed = parse(argv)
    if isinstance(parsed, Reply):
        return parsed
    if error.errno == errno.EACCES:
        return _complain(
            "Permission denied: only root and members of the group peerd may use d",
            "To join the group: adduser USER peerd (as root), then log in again",
            code=Code.DENIED,
            asked=parsed,
        )
    return _complain(
        f"Cannot reach peerd on this machine: {error.strerror} ({path})",
        "Is it running? systemctl status peerd.socket peerd.service",
        "To start it: systemctl restart peerd.socket",
        code=Code.CONNECT_FAILED,
        asked=parsed,
    )


def too_long(argv: Sequence[str], size: int, limit: int) -> Reply:
    """What is wrong with arguments that are too long for a request, as they are or together.

    :param size: bytes that the request would have
    :param limit: bytes that it may have
    """
    parsed = parse(argv)
    if isinstance(parsed, Reply):
        return parsed
    return _complain(
        f"Arguments and variables are too long: {size} bytes, at most {limit}",
        "What is longer can go through standard input: --stdin",
        code=Code.USAGE,
        asked=parsed,
    )


def _complain(*lines: str, code: Code, asked: Invocation, prefix: str = "") -> Reply:
    """Why there is nobody to do what was asked; also as a record where that was to be printed."""
    prints = printer(asked)
    told = prints.result(no_result(code.value, lines)) if prints else ""
    return Reply(told, prefix + "\n  ".join(lines) + "\n", KINDS[code].exit_status)


def printer(asked: Invocation) -> Printer | None:
    """What prints the record that is asked for; None where none is."""
    return Printer(asked.stream) if asked.json and BY_NAME[asked.command].record else None


def complete(words: Sequence[str], known: Callable[[str], Iterable[str]]) -> list[str]:
    """What the last of these words can become.

    :param words: the words after ``d``, the last one as far as it is typed
    :param known: gives the values that are known of an option, by its metavar
    """
    command = BY_NAME.get(words[0]) if words[1:] else None
    options = _by_flag(command) if command else {}
    apart, prefix = _apart(words or [""], options)
    *before, current = apart
    previous = options.get(before[-1]) if before else None
    if command is None or command.argument:
        found = [each.name for each in COMMANDS] if len(before) == (1 if command else 0) else []
    elif "--" in before:
        found = []
    elif previous and previous.parse:
        found = list(previous.choices or known(previous.metavar))
    else:
        given = {options[word].flag for word in before if word in options and not options[word].multiple}
        found = [*({option.flag for option in options.values()} - given), "--help"]
    return sorted(prefix + word for word in found if word.startswith(current))


def _by_flag(command: Command) -> dict[str, Option]:
    """The options of a command by their flags, long and short."""
    return {flag: option for option in _options(command) for flag in (option.flag, option.short) if flag}


def _apart(words: Sequence[str], options: Mapping[str, Option]) -> tuple[list[str], str]:
    """The words with each --flag=value as two, and what of the last one comes before its value.

    In bash that is nothing: it gives three words for one, and completes the last of them.
    """
    takes = {flag for flag, option in options.items() if option.parse and flag.startswith("--")}
    apart: list[str] = []
    prefix, awaited = "", False
    for word in words:
        flag, equals, value = word.partition("=")
        prefix = ""
        if awaited:
            apart[-1], awaited = word, False
        elif word == "=" and apart and apart[-1] in takes:
            apart.append("")
            awaited = True
        elif equals and flag in takes:
            apart += [flag, value]
            prefix = f"{flag}="
        else:
            apart.append(word)
    return apart, prefix


def _misused(error: click.UsageError, args: Sequence[str]) -> Reply:
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.option_name == "--command":
        message = "No such option: --command. The command goes into --shellCmd."
    if isinstance(error, click.MissingParameter):
        # click would list choices on lines of their own.
        message = " ".join(message.split())
    # click does not say where an option lacks its value, or has one too many.
    path = error.ctx.command_path if error.ctx else f"{PROG} {args[0]}" if args[0] in BY_NAME else PROG
    return _complain(message, f"Help: {path} --help", code=Code.USAGE, asked=_meant(args), prefix=f"{PROG}: ")


def meant(argv: Sequence[str]) -> Invocation:
    """What these arguments ask for, also where they are wrong, as far as that can be told."""
    parsed = parse(argv)
    return parsed if isinstance(parsed, Invocation) else _meant(argv)


def _meant(args: Sequence[str]) -> Invocation:
    """What wrong arguments ask for, as far as that can be told: the command, and whether for JSON."""
    command = BY_NAME.get(args[0] if args else "", BY_NAME["help"])
    options = _by_flag(command)
    words = iter(args[1:])
    switches = set()
    for word in words:
        if word == "--":
            break
        if word in options and options[word].parse:
            next(words, None)
        switches.add(word)
    return Invocation(command.name, {}, "--json" in switches, "--stream" in switches)
