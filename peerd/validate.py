"""Validators for everything that another party can say. Pure code.

Each takes the value and returns it in its proper type, or raises :class:`ValueError` with a sentence
that names what was wrong.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import posixpath
import re
import time
from collections.abc import Sequence

MAX_COMMAND = 128 * 1024 - 1
"""Bytes in one argument: MAX_ARG_STRLEN of execve(2) is 32 pages, with the final NUL."""
MAX_ARGUMENTS = 4096
MAX_VARIABLES = 256
MAX_UNIT = 255
"""Bytes in the name of a unit (systemd.unit(5)), and in the directory of an app."""
MAX_PATH = 4095
"""Bytes in a path: PATH_MAX of limits.h is 4096, with the final NUL."""
MAX_LINES = 10_000
"""Records of a journal that may be asked for at once."""

_MAX_SHOWN = 80
_FIRST = 1.0
"""A time before anything happened: 0 says that none is given, and systemd knows none before the epoch."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,254}\$?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)")
_PERCENT = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)%?")
_AGO = re.compile(r"-?([0-9]{1,9})([smhd])")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.\\-]*(?:@[A-Za-z0-9:_.\\-]+)?\.(?:service|socket|target|timer|path)")
_EXEC_ID = re.compile(r"[0-9a-f]{16,32}")
_CURSOR = re.compile(r"[a-z0-9=;]{1,256}")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def printable(text: str, limit: int | None = None) -> str:
    """The text with every character that is not printable escaped, and cut to ``limit`` characters with "…".

    Bytes that are no UTF-8, which are surrogates in a str, are shown as such: ``\\xff``.
    """
    text = _cut(text, limit)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() else _escaped(c) for c in text), limit)


def _escaped(character: str) -> str:
    code = ord(character)
    # PEP 383
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def _cut(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def shown(value: object) -> str:
    """A refused value as an error message quotes it; of anything but text and numbers only the kind."""
    if isinstance(value, (str, int, float)):
        return repr(printable(str(value), _MAX_SHOWN))
    return type(value).__name__


def string(value: object, what: str, limit: int) -> str:
    """A string without NUL, of at most ``limit`` bytes."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string")
    if "\0" in value:
        raise ValueError(f"{what} must not contain a NUL character")
    try:
        size = len(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode") from None
    if size > limit:
        raise ValueError(f"{what} is too long: {size} bytes, at most {limit}")
    return value


def utf8(value: object, what: str, limit: int) -> str:
    """A :func:`string` without bytes that are no UTF-8, which a command may have and a database does not take."""
    checked = string(value, what, limit)
    try:
        checked.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid UTF-8") from None
    return checked


def peer_id(value: object) -> str:
    """A peer id: a letter or digit, then up to 62 letters, digits, dots, dashes and underscores."""
    return _name(value, "peer id")


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        hint = "a letter or digit, then letters, digits, '.', '-' or '_'; at most 63"
        raise ValueError(f"not a valid {what}: {shown(value)} ({hint})")
    return value


def exec_id(value: object) -> str:
    """The id of one command: 16 to 32 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not _EXEC_ID.fullmatch(value):
        raise ValueError("not a valid exec id: 16 to 32 lower-case hexadecimal digits")
    return value


def address(value: object) -> str:
    """An IPv4 address of a machine, in its canonical spelling."""
    try:
        parsed = ipaddress.IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"not an IPv4 address: {shown(value)}") from None
    if parsed.is_unspecified or parsed.is_multicast or parsed == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(f"not the address of a machine: {parsed}")
    return str(parsed)


def mac_address(value: object) -> str:
    """A MAC address as lower-case colon-separated hexadecimal, or the empty string where there is none."""
    text = value.lower() if isinstance(value, str) else "?"
    if text and not _MAC.fullmatch(text):
        raise ValueError("not a MAC address")
    return text


def directory(value: object) -> str:
    """An absolute path of a directory. Whether it exists is the target's to find out."""
    text = string(value, "directory", MAX_PATH)
    if not text.startswith("/"):
        raise ValueError(f"directory must be an absolute path: {shown(text)}")
    return text


def app(value: object) -> str:
    """The name of an app: what may be part of a unit's name."""
    return _name(value, "name of an app")


def unit(value: object) -> str:
    """The name of a unit that can be started: a service, socket, target, timer or path (systemd.unit(5))."""
    if not isinstance(value, str) or not _UNIT.fullmatch(value) or len(value) > MAX_UNIT:
        raise ValueError(f"not the name of a unit: {shown(value)} (for example cad-prod.service)")
    return value


def unit_pattern(value: object) -> str:
    """The name of a unit in which {app} and {mode} stand for the two."""
    text = string(value, "unit", MAX_UNIT)
    try:
        unit(text.replace("{app}", "a").replace("{mode}", "m"))
    except ValueError:
        raise ValueError(f"not the name of a unit: {shown(value)} (for example {{app}}-{{mode}}.service)") from None
    return text


def app_directory(value: object) -> str:
    """The directory of an app, in its shortest spelling; {app} and {mode} stand for the two."""
    text = directory(string(value, "directory", MAX_UNIT))
    if text != posixpath.normpath(text) or text.startswith("//") or not text.isprintable():
        raise ValueError(f"directory must be without '.', '..', '//' and a slash at its end: {shown(text)}")
    return text


def shell_command(value: object) -> str:
    """A command line for ``/bin/sh -c``."""
    text = string(value, "shellCmd", MAX_COMMAND)
    if not text.strip():
        raise ValueError("shellCmd is empty")
    return text


def seconds(value: object) -> float:
    """A duration in seconds, more than zero and at most a year; fractions are allowed."""
    number: float = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            # float() takes the digits of every script, and what Python has in its own numbers.
            number = float("" if isinstance(value, str) and ("_" in value or not value.isascii()) else value)
        except (ValueError, OverflowError):
            number = math.nan
    if not 0 < number <= 365 * 86400:
        raise ValueError(f"not a number of seconds: {shown(value)} (more than 0, at most a year, fractions allowed)")
    return max(number, 0.001)


def duration(number: float) -> str:
    """Seconds as people write them, to the millisecond."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def user(value: object) -> str:
    """A name that a user may have; whether one has it, the user database knows."""
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise ValueError(f"not a user name: {shown(value)}")
    return value


def assignment(value: object) -> tuple[str, str]:
    """A variable of the environment from ``NAME=VALUE``. Names that start with PEERD_ are peerd's own."""
    name, equals, content = string(value, "variable", MAX_COMMAND).partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        raise ValueError(f"not an assignment: {shown(value)} (NAME=VALUE)")
    if name.startswith("PEERD_"):
        raise ValueError(f"{name} is set by peerd")
    return name, content


def variables(value: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The variables of a command's environment, each of them an :func:`assignment`; of two with one name the last."""
    if len(checked := dict(value)) > MAX_VARIABLES:
        raise ValueError(f"at most {MAX_VARIABLES} variables")
    return checked


def arguments(value: object) -> tuple[str, ...]:
    """A program and its arguments, to be run without a shell; together within the bound of a shell command."""
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MAX_ARGUMENTS:
        raise ValueError(f"must be 1 to {MAX_ARGUMENTS} arguments")
    checked = tuple(string(item, "argument", MAX_COMMAND) for item in value)
    if sum(len(item.encode("utf-8", "surrogateescape")) + 1 for item in checked) > MAX_COMMAND:
        raise ValueError(f"arguments are too long: at most {MAX_COMMAND} bytes together")
    if not checked[0]:
        raise ValueError("the program's name is empty")
    return checked


def size(value: object) -> int:
    """A number of bytes: a whole number with K, M, G or T for powers of 1024 (systemd.resource-control(5))."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    number = int(match[1]) << 10 * " KMGT".index(match[2] or " ") if match else value
    return integer(number, 1, 2**62)


def percentage(value: object) -> float:
    """A share of one CPU in percent, over 100 for several (CPUQuota= of systemd.resource-control(5))."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    number = float(match[1]) if match else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 1_000_000:
        raise ValueError(f"not a percentage: {shown(value)} (more than 0)")
    return float(number)


def count(value: object) -> int:
    """A count, at least one."""
    return whole(value, 1, 2**31)


def lines(value: object) -> int:
    """How many records of a journal."""
    return whole(value, 0, MAX_LINES)


def whole(value: object, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, also as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        # No number that is allowed anywhere is longer.
        value = int(value[:19])
    return integer(value, low, high)


def moment(value: object) -> float:
    """A time in seconds since the epoch."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**40:
        raise ValueError("must be seconds since the epoch")
    return float(value)


def cursor(value: object) -> str:
    """A place in a journal, as journalctl(1) shows it."""
    text = value if isinstance(value, str) else ""
    if not _CURSOR.fullmatch(text):
        raise ValueError("must be a cursor of journalctl")
    return text


def since(value: object) -> float:
    """A time in seconds since the epoch: from RFC 3339, or so long ago: a number with s, m, h or d."""
    text = value if isinstance(value, str) else ""
    if match := _AGO.fullmatch(text):
        return max(time.time() - int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]], _FIRST)
    try:
        # Without a zone it is local time, as in journalctl(1).
        return max(datetime.datetime.fromisoformat(text).timestamp(), _FIRST)
    except (ValueError, OverflowError):
        raise ValueError(f"not a time: {shown(value)} (30m, 2h, 7d, or 2026-01-31T12:00:00Z)") from None


def boolean(value: object) -> bool:
    """A boolean of JSON."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def integer(value: object, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return value
