"""Answers and properties as D-Bus has them, and its messages as the table of commands has its parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from dbus_next import Variant

from peerd import busapi
from peerd.answer import Answer
from peerd.busapi import INTERFACES, JOB, PEER
from peerd.commands import Command
from peerd.errors import Code, Outcome, PeerdError
from peerd.job import Job
from peerd.peers import Peer
from peerd.spool import Data

_USEC = 1_000_000
_NOT_RUN = (Outcome.FAILED, Outcome.DENIED, Outcome.UNREACHABLE)
"""Outcomes of commands that were certainly not started: they are errors here, all others are replies."""


class Collected:
    """A sink that keeps a command's output for a reply, within a bound."""

    def __init__(self) -> None:
        self.streams = {"stdout": bytearray(), "stderr": bytearray()}
        self.too_much = False

    async def started(self) -> None:
        """Nobody is told."""

    async def output(self, stream: str, data: Data) -> None:
        """Keep output of "stdout" or "stderr"; what is over the bound is dropped, and the command goes on."""
        self.too_much |= sum(map(len, self.streams.values())) + len(data) > busapi.MAX_COLLECTED
        if not self.too_much:
            self.streams[stream] += bytes(data)

    def say(self, line: str) -> None:
        """Keep what d(1) would write on standard error."""
        self.streams["stderr"] += f"{line}\n".encode("utf-8", "backslashreplace")


def reply(command: Command, answer: Answer, sink: Collected) -> list[Any]:
    """The body of the reply to a command.

    :raises PeerdError: where it failed, or there is more output than a reply takes
    """
    if command.record or command.output:
        expected = answer.error.kind.outcome if answer.error else Outcome.EXITED
        outcome = str((answer.record or {}).get("outcome", expected))
        if answer.error and outcome in _NOT_RUN:
            raise answer.error
        if sink.too_much:
            reason = f"more than {busapi.MAX_COLLECTED} bytes; it ended as {outcome}, exit status {answer.status}"
            raise PeerdError(Code.TOO_MUCH_OUTPUT, reason=reason)
        if answer.error:
            sink.say(answer.error.text.rstrip("\n"))
        return [outcome, answer.status, bytes(sink.streams["stdout"]), bytes(sink.streams["stderr"])]
    if answer.error and answer.status and answer.data is None:
        raise answer.error
    if not command.data:
        return [_text(answer.text)]
    if len(json.dumps(answer.data)) > busapi.MAX_DATA:
        raise PeerdError(Code.TOO_MUCH_OUTPUT, reason=f"more than {busapi.MAX_DATA} bytes; ask for less (limit, lines)")
    return [[_dictionary(row) for row in answer.data] if command.many else _dictionary(answer.data)]


def values(interface: str, source: Mapping[str, object]) -> dict[str, Variant]:
    """The properties of an interface; what is not known is empty, and times are in microseconds."""
    convert: dict[str, Callable[[Any], object]] = {
        "s": lambda value: _text(str(value or "")),
        "b": bool,
        "u": lambda value: int(value or 0),
        "t": lambda value: round((value or 0) * _USEC),
    }
    return {
        name: Variant(described.signature, convert[described.signature](source.get(described.source)))
        for name, described in INTERFACES[interface].properties.items()
    }


def of_peer(peer: Peer) -> dict[str, Variant]:
    """The properties of a peer."""
    return values(PEER, peer.to_wire())


def of_job(job: Job) -> dict[str, Variant]:
    """The properties of a job, the command cut where it is long."""
    job = job.shortened()
    fields = {
        name: getattr(job, name) for name in ("exec_id", "peer", "caller", "directory", "line", "user", "detached")
    }
    return values(JOB, {**fields, "started": job.started_usec / _USEC})


def plain(value: Any) -> Any:
    """What a message contains, with variants as their values."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _text(text: str) -> str:
    # A NUL in a string would have the bus disconnect us, and a lone surrogate cannot be sent at all.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _dictionary(data: Mapping[str, object]) -> dict[str, Variant]:
    """Data as a{sv}; D-Bus has no null, so what is null is absent."""
    return {_text(key): _variant(value) for key, value in data.items() if value is not None}


def _variant(value: object) -> Variant:
    if isinstance(value, Mapping):
        return Variant("a{sv}", _dictionary(value))
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Mapping) for item in value):
            return Variant("aa{sv}", [_dictionary(item) for item in value])
        return Variant("as", [_text(str(item)) for item in value])
    if isinstance(value, (bool, int, float)):
        return Variant({bool: "b", int: "x", float: "d"}[type(value)], value)
    return Variant("s", _text(str(value)))
