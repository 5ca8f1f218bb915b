"""The records that peerd leaves in the journal: one table of events, each with its MESSAGE_ID (journald)."""

from __future__ import annotations

import contextlib
import enum
import sys
import syslog
import traceback
from dataclasses import dataclass

from systemd import journal

from peerd.validate import printable

IDENTIFIER = "peerd"
_MAX_FIELD = 8192
_UNIT = "OBJECT_SYSTEMD_UNIT"


@dataclass(frozen=True)
class _Kind:
    message_id: str
    priority: int = syslog.LOG_INFO


class Event(enum.Enum):
    """What can happen. A MESSAGE_ID never changes its meaning."""

    STARTED = _Kind("4b93e200b1d7492999603408bc3f4fb1")
    CONFIG_INVALID = _Kind("4a28d0ab56644571baec13124aceeb9c", syslog.LOG_ERR)
    CONFIG_WARNING = _Kind("e22dc39e71c2468eb68821d6ba16e997", syslog.LOG_WARNING)
    ROLE_SET = _Kind("dd9160a4b18c4845941f0d8d6e50e826", syslog.LOG_NOTICE)
    PEER_REGISTERED = _Kind("25fd43e63b284515974c4cd0e7b709eb", syslog.LOG_NOTICE)
    PEER_REFUSED = _Kind("74844330429944d8b72e8513e02ea384", syslog.LOG_WARNING)
    PEER_PENDING = _Kind("8041fac3ea764728912f983ae87e82a1", syslog.LOG_NOTICE)
    PEER_APPROVED = _Kind("2e28a0083c94410080a5b6deedc94cb6", syslog.LOG_NOTICE)
    PEER_REJECTED = _Kind("13da0daa65a748bdb02ce92ad4fedcf3", syslog.LOG_NOTICE)
    PEER_DELETED = _Kind("56ab12366a894330ae02cf63343d4bc3", syslog.LOG_NOTICE)
    REGISTRY_DENIED = _Kind("1c9961d765f547bc8dfd065673b18156", syslog.LOG_WARNING)
    REGISTRY_ASKED = _Kind("b8008833d3b84ded90803a10201a56db", syslog.LOG_NOTICE)
    PEER_OFFLINE = _Kind("afb1e9ca27814e33aa32ee3f350c4fb3")
    LEADER_CONNECTED = _Kind("6b11caa1b4c744c88765e19d679ac777")
    LEADER_REFUSED = _Kind("d3456b070aa946b681bd0b44ba3078a0", syslog.LOG_WARNING)
    LEADER_LOST = _Kind("c7b5daf2269642f39bce8c66ceb19f4c", syslog.LOG_WARNING)
    RESUMED = _Kind("a1805ebb55f545c1baf97cfc3d5d22ba")
    COMMAND_ASKED = _Kind("0b277d5a8822450fa712b1b1c0669147")
    COMMAND_ANSWERED = _Kind("789ffe05f2134fdbbde92bce47f31a98")
    COMMAND_ALLOWED = _Kind("4dc3610915c54eb8b7c1c4e9e70fcc59")
    COMMAND_DENIED = _Kind("da1b529ff02041e495d577627ac01d1f", syslog.LOG_WARNING)
    COMMAND_STARTED = _Kind("35c1bf74278c406caece77f389c208e1")
    COMMAND_ENDED = _Kind("9ec0fec5d2cc41e982525b0da0a1419a")
    COMMAND_ACCESSED = _Kind("29ed8f826fbe481a9757e432a955ecc7", syslog.LOG_NOTICE)
    APP_ASKED = _Kind("e782adc4948148799341de5caf96493e")
    APP_CHANGED = _Kind("413598f7a2924a5aad75b4e8377c5da1", syslog.LOG_NOTICE)
    APP_FAILED = _Kind("40a6e09d67874d8796725dde1a7612e7", syslog.LOG_WARNING)
    APP_DENIED = _Kind("8731327c1f0a4598b8eb035fe6076256", syslog.LOG_WARNING)
    STATE_UNWRITABLE = _Kind("4a87bb86328541c4b9c985cac2dca50b", syslog.LOG_WARNING)
    STATE_WRITABLE = _Kind("6e042ba01d584067ad1e36029b0b185f", syslog.LOG_NOTICE)
    STATE_SET_ASIDE = _Kind("a311b083399240eaa617265425e578a1", syslog.LOG_WARNING)
    STATE_RESTORED = _Kind("b337409d296b40b591a36d2d731bf30d", syslog.LOG_WARNING)
    CONNECTION_REFUSED = _Kind("c9621526a9a2424f9af753904e229c8c", syslog.LOG_WARNING)
    CALLER_REFUSED = _Kind("921f1c840b1c479cbc1274cd84762d62", syslog.LOG_WARNING)
    REFUSALS_LEFT_OUT = _Kind("47e33b183c994317945f787d583862e1", syslog.LOG_WARNING)
    PROTOCOL_ERROR = _Kind("667123d8dd9e4a76959038140667769c", syslog.LOG_WARNING)
    BUS_UNAVAILABLE = _Kind("c38f6951f977460d82d5509a5431ff13", syslog.LOG_WARNING)
    INTERNAL_ERROR = _Kind("1e30da0d49644763ab26d98cd6fd8c02", syslog.LOG_ERR)


def log(event: Event, message: str, **fields: object) -> None:
    """Write one record. Where the journal does not take it, its sentence goes to standard error, and all goes on.

    :param message: the sentence; control characters in it are escaped, so that one record stays one line
    :param fields: PEERD_ fields without that prefix, in lower case, but for ``unit``, which is OBJECT_SYSTEMD_UNIT;
        None and "" are left out, others cut after 8192 characters. Control characters are kept as they are, because a
        field of the journal has a length and not an end
    """
    kind = event.value
    record = {
        "MESSAGE": printable(message, _MAX_FIELD),
        "MESSAGE_ID": kind.message_id,
        "PRIORITY": kind.priority,
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "PEERD_EVENT": event.name.lower().replace("_", "-"),
    }
    for name, value in fields.items():
        if value is not None and value != "":
            record[_UNIT if name == "unit" else f"PEERD_{name.upper()}"] = str(value)[:_MAX_FIELD]
    encoded = [f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in record.items()]
    try:
        # Not journal.send, which looks up its caller for every record.
        journal.sendv(*encoded)
    except OSError as error:
        # The way into a machine whose journald is down is the way to mend it.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{error.strerror}: {record['MESSAGE']}\n")


def report(error: BaseException, where: str) -> None:
    """Record an exception that should not have happened, with its traceback, as one line."""
    trace = " | ".join("".join(traceback.format_exception(error)).split("\n"))
    log(Event.INTERNAL_ERROR, f"{where}: {type(error).__name__}: {error}: {trace}")
