"""The settings of peerd.conf(5): one table, from which parser, defaults and documentation derive. Pure code."""

from __future__ import annotations

import configparser
import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peerd import policy, validate

SECTION = "peerd"
MAX_COMMANDS = 2048
"""The most that max-commands can be. FileDescriptorStoreMax= of peerd.service has room for twice as many, as those that
have ended and are not heard of are kept as well."""


class ConfigError(ValueError):
    """A setting that cannot be used; the text names file, setting and reason."""


class Mode(enum.StrEnum):
    """What becomes of a machine that registers for the first time."""

    OPEN = "open"
    APPROVAL = "approval"
    CLOSED = "closed"


def _mode(text: str) -> Mode:
    if text not in list(Mode):
        raise ValueError(f"must be one of {', '.join(Mode)}")
    return Mode(text)


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _name(text: str) -> str:
    if not text or len(text) > 15 or "/" in text or not text.isprintable() or " " in text:
        raise ValueError(f"not the name of a network interface: {text!r}")
    return text


def _port(text: str) -> int:
    return validate.whole(text, 1, 65535)


def _count(text: str) -> int:
    return validate.whole(text, 1, 100_000)


def _commands(text: str) -> int:
    return min(_count(text), MAX_COMMANDS)


def _path(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return validate.string(text, "path", validate.MAX_PATH)


@dataclass(frozen=True)
class Setting:
    """One setting: its name in the file, its parser, its default as written in a file, and what it is for."""

    name: str
    parse: Callable[[str], Any]
    default: str
    help: str


SETTINGS: tuple[Setting, ...] = (
    Setting("vpn-interface", _name, "wg0", "The WireGuard interface. Peers are served and reached through it alone."),
    Setting("leader-address", validate.address, "10.0.0.1", "The leader that registerWorker joins by default."),
    Setting("registration", _mode, "open", "Whether a leader takes new peers: open, approval or closed."),
    Setting("registry-admins", policy.peers, "*", "Who may delete, approve and reject peers from another machine."),
    Setting("accept-exec", _yes_or_no, "yes", "Whether other peers may run commands here."),
    Setting("port", _port, "3600", "The TCP port of other peers. The port served here is peerd-tcp.socket's."),
    Setting("repository", validate.directory, "/opt/automateLinux", "Where remotePull runs pull-command."),
    Setting("pull-command", validate.shell_command, "git pull", "What remotePull runs here, by /bin/sh -c."),
    Setting("build-directory", _path, "daemon", "Where remoteBd runs build-command; relative to repository."),
    Setting(
        "build-command",
        validate.shell_command,
        "bash -c 'source ./build.sh'",
        "What remoteBd runs here, by /bin/sh -c.",
    ),
    Setting("default-timeout", validate.seconds, "30", "Seconds a command may run here when its caller names none."),
    Setting("build-timeout", validate.seconds, "1800", "The same for pull-command and build-command."),
    Setting("max-timeout", validate.seconds, "86400", "The longest timeout that a caller may ask for; seconds."),
    Setting("detached-timeout", validate.seconds, "86400", "Seconds a detached command may run here by default."),
    Setting(
        "reattach-timeout",
        validate.seconds,
        "10",
        "Seconds that a command goes on when the connection to its caller broke, and that a caller tries to get back.",
    ),
    Setting("stop-grace", validate.seconds, "5", "Seconds from SIGTERM to SIGKILL when a command is stopped."),
    Setting("connect-timeout", validate.seconds, "4", "Seconds to wait for a connection to another peer."),
    Setting("heartbeat-interval", validate.seconds, "10", "Seconds between a worker's heartbeats to the leader."),
    Setting("job-output-limit", validate.size, "64M", "Bytes of a detached command's output that are kept."),
    Setting("total-output-limit", validate.size, "1G", "Bytes of all detached commands' output that are kept."),
    Setting("job-retention", validate.seconds, "604800", "Seconds that the output of an ended detached command stays."),
    Setting("history-limit", _count, "50000", "How many commands the history holds."),
    Setting("max-commands", _commands, "1024", "How many commands may run here at once."),
    Setting(
        "max-connections", _count, "1024", "How many connections of peers and of local clients are served at once."
    ),
)


@dataclass(frozen=True)
class Config:
    """The settings in force; an attribute for each row of :data:`SETTINGS`, durations in seconds.

    :ivar policy: what peers may do here, accept-exec and registry-admins included
    """

    vpn_interface: str
    leader_address: str
    registration: Mode
    port: int
    repository: str
    pull_command: str
    build_directory: str
    build_command: str
    default_timeout: float
    build_timeout: float
    max_timeout: float
    detached_timeout: float
    reattach_timeout: float
    stop_grace: float
    connect_timeout: float
    heartbeat_interval: float
    job_output_limit: int
    total_output_limit: int
    job_retention: float
    history_limit: int
    max_commands: int
    max_connections: int
    policy: policy.Policy

    @property
    def build_path(self) -> str:
        """The absolute directory in which build-command runs."""
        if self.build_directory.startswith("/"):
            return self.build_directory
        return f"{self.repository.rstrip('/')}/{self.build_directory}"


def parse(sources: Iterable[tuple[str, str]]) -> tuple[Config, list[str]]:
    """The configuration in these files, and a warning for each thing in them that was ignored.

    :param sources: (file name, text) pairs; a later file wins over an earlier one
    :raises ConfigError: for text that is no configuration, for a value out of its bounds, and for anything in a policy
        that is not understood
    """
    values: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for file, text in sources:
        for section, settings in _read(file, text).items():
            parsers = _parsers(file, section)
            into = values if section == SECTION else sections.setdefault(section, {})
            for name, value in settings.items():
                if name in parsers:
                    try:
                        into[name] = parsers[name](value)
                    except ValueError as error:
                        raise ConfigError(f"{file}: {name}: {error}") from None
                elif section == SECTION:
                    warnings.append(f"{file}: unknown setting {name!r}, ignored")
                else:
                    raise ConfigError(f"{file}: [{section}]: unknown setting {name!r}")
    for setting in SETTINGS:
        values.setdefault(setting.name, setting.parse(setting.default))
    defaults = ("default-timeout", "build-timeout", "detached-timeout")
    if any(values[name] > values["max-timeout"] for name in defaults):
        raise ConfigError(f"{', '.join(defaults)} must not be more than max-timeout")
    try:
        rules = policy.build(sections, values.pop("accept-exec"), values.pop("registry-admins"))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Config(**{name.replace("-", "_"): value for name, value in values.items()}, policy=rules), warnings


def _parsers(file: str, section: str) -> Mapping[str, Callable[[str], Any]]:
    """The settings that a section may have. A policy that is not understood must not be ignored."""
    if section == SECTION:
        return {setting.name: setting.parse for setting in SETTINGS}
    kind, _, name = section.partition(" ")
    if kind not in policy.KINDS:
        raise ConfigError(f"{file}: unknown section [{section}]")
    try:
        validate.peer_id(name)
    except ValueError:
        raise ConfigError(f"{file}: [{section}]: a name is needed, of letters, digits, '.', '-' and '_'") from None
    return policy.KINDS[kind]


def _read(file: str, text: str) -> Mapping[str, Mapping[str, str]]:
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#", ";"), default_section="")
    try:
        parser.read_string(text, file)
    except configparser.Error as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from None
    return {name: dict(parser[name]) for name in parser.sections()}
