"""The commands of ``d``: one table, from which the parser, help, completion and the service derive. Pure code."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from peerd import validate
from peerd.app import ALL, DEFAULT_PATTERN, MODES
from peerd.config import SETTINGS
from peerd.errors import Outcome

_OUTCOMES = tuple(outcome.value for outcome in Outcome)
_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


class Known(enum.StrEnum):
    """Values of which a daemon knows some, by what help calls them: Tab offers those."""

    PEER = "PEER"
    JOB = "JOB"
    APP = "APP"


@dataclass(frozen=True)
class Option:
    """One option of a command.

    :ivar flag: as it is typed, with its dashes
    :ivar parse: turns the text into the value, or raises ValueError with a sentence; None for a switch
    :ivar short: the flag in one letter, with its dash, or ""
    :ivar multiple: whether it may be given more than once; its value then is a tuple
    :ivar choices: the only values there are, if they can be listed
    """

    flag: str
    help: str
    metavar: str = ""
    parse: Callable[[Any], Any] | None = None
    required: bool = False
    choices: tuple[str, ...] = ()
    multiple: bool = False
    short: str = ""

    @property
    def name(self) -> str:
        """The name of the parameter: the flag in Python's spelling."""
        return snake_case(self.flag.lstrip("-"))

    def check(self, value: object) -> Any:
        """The value of a parameter that did not come from a command line.

        :raises ValueError: with a sentence
        """
        if self.parse is None:
            return validate.boolean(value)
        if self.multiple:
            if not isinstance(value, list):
                raise ValueError("must be a list")
            return tuple(self.parse(item) for item in value)
        checked = self.parse(value)
        if self.choices and checked not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return checked


class Access(enum.StrEnum):
    """The kinds of commands that polkit(8) tells apart, each an action of its own."""

    RUN = "run"
    CONFIGURE = "configure"
    READ = "read"
    READ_LOG = "read-log"


@dataclass(frozen=True)
class Command:
    """One command.

    :ivar summary: one line of help
    :ivar data: whether its answer is data: JSON where --json is given or stdout is no terminal, else a table
    :ivar columns: the columns of its table, where not all of the data's keys
    :ivar record: whether its answer is a command's output, with --json a record of the command, with --stream events
    :ivar output: whether a command's output is in its answer, also where a record is not
    :ivar many: whether its data is a list
    :ivar log: whether its rows are records of a journal, a line each for people
    :ivar asks: whether it changes nothing and may wait for another machine: who takes it back needs no answer
    :ivar access: what somebody on D-Bus has to be allowed for it
    :ivar argument: the name of its one optional positional argument, or ""
    :ivar rest: the name of the arguments after ``--``, or ""
    """

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    data: bool = False
    columns: tuple[str, ...] = ()
    record: bool = False
    output: bool = False
    many: bool = False
    log: bool = False
    asks: bool = False
    access: Access = Access.RUN
    argument: str = ""
    rest: str = ""


def snake_case(name: str) -> str:
    """``execOnPeer`` as ``exec_on_peer``."""
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).replace("-", "_").lower()


def _peer(help_: str, required: bool = True) -> Option:
    return Option("--peer", help_, Known.PEER, validate.peer_id, required)


PEER = _peer("The peer, by its id (see listPeers).")
TIMEOUT = Option(
    "--timeout",
    f"Stop the command after this many seconds (the peer's default: {_DEFAULTS['default-timeout']}).",
    "SECONDS",
    validate.seconds,
)
BUILD_TIMEOUT = Option(
    "--timeout",
    f"Stop it after this many seconds (the peer's build-timeout: {_DEFAULTS['build-timeout']}).",
    "SECONDS",
    validate.seconds,
)
JOB = Option("--job", "The job, by its id (see listJobs).", Known.JOB, validate.exec_id, True)
JOB_PEER = _peer("The peer where it runs, if its id alone does not find it.", False)
ENV = Option(
    "--env", "Set a variable for the command; may be repeated.", "NAME=VALUE", validate.assignment, multiple=True
)
APP = Option("--app", "The app, by its name (see listApps).", Known.APP, validate.app, True)
ONE_MODE = Option("--mode", "dev, prod, or all that the app has.", "MODE", str, True, choices=(*MODES, ALL))
ANY_MODE = replace(ONE_MODE, help="dev, prod, or all (all).", required=False)
APP_PEER = _peer("The peer that has the app, if not this machine.", False)
FROM = Option(
    "--address", "The address that it registers from, where its id is not enough.", "ADDRESS", validate.address
)
LEADER = Option(
    "--leader", f"The leader's address in the VPN ({_DEFAULTS['leader-address']}).", "ADDRESS", validate.address
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "execOnPeer",
        "Run a shell command in a directory on a peer.",
        (
            PEER,
            Option("--directory", "Where to run it: an absolute path on the peer.", "PATH", validate.directory, True),
            Option("--shellCmd", "The command, for /bin/sh -c.", "COMMAND", validate.shell_command),
            TIMEOUT,
            Option("--stdin", "Send standard input to the command; without it, it reads nothing."),
            ENV,
            Option("--user", "Run it as this user of the peer (root).", "USER", validate.user),
            Option("--login", "Run it by the user's own shell, as a login shell."),
            Option(
                "--memory", "Let it use at most so many bytes; K, M, G, T for powers of 1024.", "SIZE", validate.size
            ),
            Option("--cpu", "Let it use at most this share of one CPU.", "PERCENT", validate.percentage),
            Option("--tasks", "Let it have at most so many processes and threads.", "COUNT", validate.count),
            Option("--detach", "Print its job id and leave it running; its output is kept there."),
        ),
        record=True,
        rest="argv",
    ),
    Command(
        "remotePull", "Run the peer's pull-command (git pull) in its repository.", (PEER, BUILD_TIMEOUT), record=True
    ),
    Command("remoteBd", "Run the peer's build-command in its build-directory.", (PEER, BUILD_TIMEOUT), record=True),
    Command(
        "remoteDeployDaemon",
        "remotePull, then remoteBd; stops at a failure, and sees that peerd works.",
        (PEER, BUILD_TIMEOUT, Option("--no-rollback", "Leave a peerd that does not work as it is.")),
        output=True,
    ),
    Command(
        "listJobs",
        "List what runs on the peers, and the detached jobs whose output is kept.",
        (_peer("Only this peer's.", False),),
        data=True,
        columns=("exec_id", "peer", "caller", "command", "detached", "started", "outcome", "exit_status"),
        many=True,
        asks=True,
        access=Access.READ_LOG,
    ),
    Command("getJob", "Show one job.", (JOB, JOB_PEER), data=True, access=Access.READ_LOG),
    Command(
        "attachJob",
        "Show a detached job's output from its beginning, then live; Ctrl-C leaves it.",
        (JOB, JOB_PEER),
        record=True,
    ),
    Command(
        "waitJob",
        "Wait for the end of a job; the exit status is the job's.",
        (JOB, JOB_PEER),
        data=True,
        access=Access.READ_LOG,
    ),
    Command("cancelJob", "Stop a job and all that it started.", (JOB, JOB_PEER)),
    Command(
        "history",
        "List what ran here and what was asked from here, the newest first.",
        (
            _peer("Only what has this peer at the other end.", False),
            Option("--outcome", "Only what ended so.", "OUTCOME", str, choices=_OUTCOMES),
            Option("--since", "Only what started since: 30m, 2h, 7d ago, or at a time.", "TIME", validate.since),
            Option("--limit", "At most so many (100).", "COUNT", validate.count),
        ),
        data=True,
        columns=("started", "side", "peer", "caller", "command", "outcome", "exit_status", "duration", "exec_id"),
        many=True,
        asks=True,
        access=Access.READ_LOG,
    ),
    Command("startApp", "Start an app, and wait until it runs.", (APP, ONE_MODE, APP_PEER)),
    Command("stopApp", "Stop an app, and wait until it is gone.", (APP, ONE_MODE, APP_PEER)),
    Command("restartApp", "Stop an app if it runs, then start it.", (APP, ONE_MODE, APP_PEER)),
    Command("enableApp", "Have an app started at boot.", (APP, ONE_MODE, APP_PEER)),
    Command("disableApp", "Have an app no longer started at boot.", (APP, ONE_MODE, APP_PEER)),
    Command(
        "appStatus",
        "Show what systemd says of an app, or of all apps.",
        (replace(APP, required=False), ANY_MODE, APP_PEER),
        data=True,
        columns=("app", "mode", "unit", "active", "sub", "enabled", "main_pid", "since"),
        many=True,
        access=Access.READ_LOG,
    ),
    Command("listApps", "List the registered apps.", (APP_PEER,), data=True, many=True, access=Access.READ_LOG),
    Command(
        "addApp",
        "Register an app, or change what is registered of it.",
        (
            replace(APP, help="Its name."),
            ANY_MODE,
            Option("--unit", f"Its unit ({DEFAULT_PATTERN}).", "UNIT", validate.unit_pattern),
            Option("--directory", "Where it lives; {app} and {mode} as in --unit.", "PATH", validate.app_directory),
            APP_PEER,
        ),
    ),
    Command("removeApp", "Forget an app; its units stay as they are.", (APP, ANY_MODE, APP_PEER)),
    Command(
        "setPeerConfig",
        "Set this machine's role, id and leader.",
        (
            Option("--role", "leader keeps the registry; worker joins one.", "ROLE", str, choices=("leader", "worker")),
            Option("--id", "This machine's peer id (the host name).", "ID", validate.peer_id),
            LEADER,
        ),
        access=Access.CONFIGURE,
    ),
    Command(
        "registerWorker",
        "Join the leader as a worker, with the host name as id.",
        (LEADER,),
        access=Access.CONFIGURE,
    ),
    Command("getPeerStatus", "Show this machine's role, id and connection.", data=True, access=Access.READ),
    Command(
        "listPeers",
        "List the registered peers.",
        data=True,
        columns=("peer_id", "ip_address", "hostname", "state", "is_online", "last_seen", "daemon_version"),
        many=True,
        asks=True,
        access=Access.READ,
    ),
    Command("getPeerInfo", "Show one registered peer.", (PEER,), data=True, asks=True, access=Access.READ),
    Command(
        "getPeerIdByIp",
        "Show the id of the peer with this address.",
        (Option("--ip", "The peer's address in the VPN.", "ADDRESS", validate.address, True),),
        asks=True,
        access=Access.READ,
    ),
    Command("deletePeer", "Delete a peer from the registry.", (PEER, FROM), access=Access.CONFIGURE),
    Command(
        "approvePeer", "Make a peer of a registration that waits or was refused.", (PEER, FROM), access=Access.CONFIGURE
    ),
    Command(
        "rejectPeer",
        "Keep a peer or a registration out until it is approved or deleted.",
        (PEER, FROM),
        access=Access.CONFIGURE,
    ),
    Command(
        "checkPolicy",
        "Say whether a peer may run a command on this machine, and why.",
        (
            PEER,
            Option("--directory", "Where it would run.", "PATH", validate.directory),
            Option("--user", "Whom it would run as (root).", "USER", validate.user),
            Option("--shellCmd", "The command, for /bin/sh -c.", "COMMAND", validate.shell_command),
            Option("--action", "remotePull or remoteBd.", "ACTION", str, choices=("pull", "build")),
            ENV,
            Option("--timeout", "The timeout that it asks for.", "SECONDS", validate.seconds),
        ),
        data=True,
        access=Access.READ_LOG,
        rest="argv",
    ),
    Command(
        "dbSanityCheck",
        "Delete registry entries that a worker should not have.",
        data=True,
        access=Access.CONFIGURE,
    ),
    Command(
        "ping",
        "Ask the daemon, or a peer's, for a sign of life.",
        (_peer("Ask this peer's daemon.", False),),
        asks=True,
        access=Access.READ,
    ),
    Command(
        "log",
        "Show what peerd recorded here, or on a peer.",
        (
            _peer("Ask this peer's daemon.", False),
            Option("--since", "From this time on: 30m, 2h, 7d ago, or at a time.", "TIME", validate.since),
            Option("--lines", "The last so many (100; all with --since).", "COUNT", validate.lines, short="-n"),
            Option("--follow", "Go on with those to come, until Ctrl-C.", short="-f"),
        ),
        data=True,
        many=True,
        log=True,
        access=Access.READ_LOG,
    ),
    Command("version", "Show the version of the daemon.", access=Access.READ),
    Command("help", "Show help on d or on one command.", argument="command"),
    Command("listCommands", "List the commands.", data=True, many=True, access=Access.READ),
)
BY_NAME = {command.name: command for command in COMMANDS}
