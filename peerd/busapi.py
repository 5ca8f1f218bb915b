"""What peerd shows on D-Bus: its objects, their members and the introspection of both. Pure code.

The methods are those of the table of commands: the required options are arguments, all others go into ``options``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from peerd.commands import COMMANDS, Access, Command
from peerd.errors import Code, PeerdError

NAME = "org.automatelinux.peerd1"
ROOT = "/org/automatelinux/peerd1"
PEERS = f"{ROOT}/peer"
JOBS = f"{ROOT}/job"
MANAGER = f"{NAME}.Manager"
PEER = f"{NAME}.Peer"
JOB = f"{NAME}.Job"
START = "StartOnPeer"
"""The method that no command is: execOnPeer with its output as streams."""
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
STANDARD_PEER = "org.freedesktop.DBus.Peer"
OPTIONS = "a{sv}"
"""The type of a method's last argument, which a caller may leave out: so a command can get its first option later."""
MAX_COLLECTED = 8 * 1024 * 1024
"""Bytes of output of one command in a reply: a system bus takes messages of 32 MiB (dbus-daemon(1))."""
MAX_DATA = 4 * 1024 * 1024
"""Bytes of data in a reply, as JSON; on the bus it is up to three times as much, and takes a second to put together."""

_SHELL_CMD = "shell_cmd"
_STREAMED = ("stdin", "follow", "detach")
"""Options that a caller with one reply cannot use."""

Arguments = tuple[tuple[str, str], ...]
"""Names and signatures."""


@dataclass(frozen=True)
class Method:
    """A method: what it takes and gives."""

    takes: Arguments = ()
    gives: Arguments = ()

    @property
    def signature(self) -> str:
        """The signature of what it takes."""
        return "".join(signature for _, signature in self.takes)

    @property
    def returns(self) -> str:
        """The signature of what it gives."""
        return "".join(signature for _, signature in self.gives)


@dataclass(frozen=True)
class Property:
    """A property, which can be read alone.

    :ivar source: where its value is: the key of ``getPeerStatus``, or the field of a peer or a job
    :ivar announced: whether a signal says when it changed
    """

    signature: str
    source: str
    announced: bool = True


@dataclass(frozen=True)
class Interface:
    """An interface: its members by name."""

    methods: Mapping[str, Method]
    signals: Mapping[str, Arguments]
    properties: Mapping[str, Property]


def method_name(command: Command) -> str:
    """``execOnPeer`` as ``ExecOnPeer``."""
    return command.name[0].upper() + command.name[1:]


def _leading(command: Command) -> list[str]:
    # Either the shell command or argv is needed; the former is what nearly everybody wants.
    return [option.name for option in command.options if option.required or option.name == _SHELL_CMD]


def _method(command: Command) -> Method:
    leading = _leading(command)
    takes = [(name if name != _SHELL_CMD else "shellCmd", "s") for name in leading]
    if command.rest or len(leading) < len(command.options):
        takes.append(("options", OPTIONS))
    gives: Arguments = (("text", "s"),)
    if command.record or command.output:
        gives = (("outcome", "s"), ("exit_status", "i"), ("stdout", "ay"), ("stderr", "ay"))
    elif command.data:
        gives = (("list", "aa{sv}"),) if command.many else (("data", "a{sv}"),)
    return Method(tuple(takes), gives)


CALLABLE: Mapping[str, Command] = {method_name(command): command for command in COMMANDS if not command.argument}
"""The commands by the names of their methods."""

_ABOUT_PEER: Arguments = (("peer_id", "s"), ("peer", "o"))
_ABOUT_JOB: Arguments = (("exec_id", "s"), ("job", "o"))
_METHODS = {name: _method(command) for name, command in CALLABLE.items()}
INTERFACES: Mapping[str, Interface] = {
    MANAGER: Interface(
        {
            **_METHODS,
            START: Method(_METHODS["ExecOnPeer"].takes, (("job", "o"), ("stdout", "h"), ("stderr", "h"))),
        },
        {
            **dict.fromkeys(("PeerAdded", "PeerRemoved", "PeerOnline", "PeerOffline"), _ABOUT_PEER),
            "JobStarted": _ABOUT_JOB,
            "JobFinished": (*_ABOUT_JOB, ("outcome", "s"), ("exit_status", "i")),
        },
        {
            "Version": Property("s", "daemon_version"),
            "Role": Property("s", "role"),
            "PeerId": Property("s", "peer_id"),
            "IpAddress": Property("s", "ip_address"),
            "LeaderAddress": Property("s", "leader_address"),
            "LeaderError": Property("s", "leader_error"),
            "IsLeader": Property("b", "is_leader"),
            "ConnectedToLeader": Property("b", "connected_to_leader"),
            "ConnectedWorkers": Property("u", "connected_workers"),
            "KnownPeers": Property("u", "known_peers"),
            "RunningCommands": Property("u", "running_commands"),
        },
    ),
    PEER: Interface(
        {},
        {},
        {
            "PeerId": Property("s", "peer_id"),
            "IpAddress": Property("s", "ip_address"),
            "MacAddress": Property("s", "mac_address"),
            "Hostname": Property("s", "hostname"),
            "DaemonVersion": Property("s", "daemon_version"),
            "PublicKey": Property("s", "public_key"),
            "IsOnline": Property("b", "is_online"),
            "State": Property("s", "state"),
            "FirstSeen": Property("t", "first_seen"),
            "LastSeen": Property("t", "last_seen", announced=False),
        },
    ),
    JOB: Interface(
        {},
        {},
        {
            "ExecId": Property("s", "exec_id"),
            "Peer": Property("s", "peer"),
            "Caller": Property("s", "caller"),
            "Directory": Property("s", "directory"),
            "Command": Property("s", "line"),
            "User": Property("s", "user"),
            "Detached": Property("b", "detached"),
            "Started": Property("t", "started"),
        },
    ),
    INTROSPECTABLE: Interface({"Introspect": Method((), (("xml", "s"),))}, {}, {}),
    STANDARD_PEER: Interface({"Ping": Method(), "GetMachineId": Method((), (("machine_uuid", "s"),))}, {}, {}),
    PROPERTIES: Interface(
        {
            "Get": Method((("interface", "s"), ("name", "s")), (("value", "v"),)),
            "GetAll": Method((("interface", "s"),), (("properties", "a{sv}"),)),
            "Set": Method((("interface", "s"), ("name", "s"), ("value", "v"))),
        },
        {"PropertiesChanged": (("interface", "s"), ("changed", "a{sv}"), ("invalidated", "as"))},
        {},
    ),
    OBJECT_MANAGER: Interface(
        {"GetManagedObjects": Method((), (("objects", "a{oa{sa{sv}}}"),))},
        {
            "InterfacesAdded": (("object", "o"), ("interfaces", "a{sa{sv}}")),
            "InterfacesRemoved": (("object", "o"), ("interfaces", "as")),
        },
        {},
    ),
}
_EVERYWHERE = (INTROSPECTABLE, STANDARD_PEER)
_BRANCHES = (PEERS, JOBS)


def peer_path(peer_id: str) -> str:
    """The object of a peer, by its id."""
    return f"{PEERS}/{_encoded(peer_id)}"


@functools.lru_cache(maxsize=1 << 14)
def _encoded(text: str) -> str:
    # sd_bus_path_encode(3): what is no letter or digit, and a leading digit, becomes _ and two hexadecimal digits.
    plain = [c.isascii() and (c.isalpha() or (index > 0 and c.isdigit())) for index, c in enumerate(text)]
    return "".join(c if is_plain else f"_{ord(c):02x}" for c, is_plain in zip(text, plain, strict=True))


def job_path(exec_id: str) -> str:
    """The object of a job, by its id."""
    return f"{JOBS}/{_encoded(exec_id)}"


def interfaces_of(path: str, objects: Mapping[str, str]) -> tuple[str, ...]:
    """The interfaces of an object; of a path that only leads to objects what every path has; of others none.

    :param objects: the interfaces of the peers and jobs by their paths
    """
    if path == ROOT:
        return (MANAGER, OBJECT_MANAGER, PROPERTIES, *_EVERYWHERE)
    if path in objects:
        return (objects[path], PROPERTIES, *_EVERYWHERE)
    if any(other.startswith(f"{path.rstrip('/')}/") for other in (*_BRANCHES, *objects)) or path in _BRANCHES:
        return _EVERYWHERE
    return ()


def introspection(path: str, objects: Mapping[str, str]) -> str:
    """The XML of a path, as the D-Bus specification has it."""
    lines = [
        '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"',
        '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">',
        "<node>",
    ]
    for name in interfaces_of(path, objects):
        lines += [f' <interface name="{name}">', *_members(INTERFACES[name]), " </interface>"]
    prefix = f"{path.rstrip('/')}/"
    below = {other.removeprefix(prefix).split("/")[0] for other in (*_BRANCHES, *objects) if other.startswith(prefix)}
    lines += [f" <node name={quoteattr(name)}/>" for name in sorted(below)]
    return "\n".join([*lines, "</node>", ""])


def _members(interface: Interface) -> Iterable[str]:
    for name, method in interface.methods.items():
        yield f'  <method name="{name}">'
        yield from _arguments(method.takes, ' direction="in"')
        yield from _arguments(method.gives, ' direction="out"')
        yield "  </method>"
    for name, arguments in interface.signals.items():
        yield f'  <signal name="{name}">'
        yield from _arguments(arguments, "")
        yield "  </signal>"
    for name, property_ in interface.properties.items():
        yield f'  <property name="{name}" type="{property_.signature}" access="read">'
        if not property_.announced:
            yield '   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>'
        yield "  </property>"


def _arguments(arguments: Arguments, direction: str) -> Iterable[str]:
    return (f'   <arg name="{name}" type="{signature}"{direction}/>' for name, signature in arguments)


def parameters(command: Command, arguments: list[object]) -> dict[str, object]:
    """The parameters in the arguments of a command's method, by name, not checked yet.

    :param arguments: of the types of the method's signature, variants as their values
    :raises PeerdError: USAGE, for an option that is an argument too, or cannot be used here
    """
    leading = _leading(command)
    given = {name: value for name, value in zip(leading, arguments, strict=False) if (name, value) != (_SHELL_CMD, "")}
    named = arguments[len(leading)] if len(arguments) > len(leading) else None
    if isinstance(named, Mapping):
        options = {name.replace("-", "_"): value for name, value in named.items()}
        refused = sorted({*leading, *_STREAMED} & options.keys())
        if refused:
            raise PeerdError(Code.USAGE, reason=f"{command.name}: no options here: {', '.join(refused)}")
        given |= options
    return given


def action(access: Access) -> str:
    """The action of polkit(8) for a kind of commands."""
    return f"{NAME}.{access}"


_STANDARD_ERRORS = {Code.USAGE: "InvalidArgs", Code.INTERNAL: "Failed"}


def error_name(code: Code) -> str:
    """The name of an error: of the standard where it has one, else ``peer-not-found`` as ``….Error.PeerNotFound``."""
    if code in _STANDARD_ERRORS:
        return f"org.freedesktop.DBus.Error.{_STANDARD_ERRORS[code]}"
    return f"{NAME}.Error." + "".join(word.capitalize() for word in code.split("-"))
