"""What any bytes may do to the protocol: become frames and messages, or be refused with a PeerdError."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from peerd import messages, protocol
from peerd.bookreader import entries
from peerd.errors import PeerdError
from peerd.messages import Action, ExecRequest, ExecResult, Registration
from peerd.peers import Peer
from peerd.protocol import Decoder, Frame

# Whole conversations, as they are and to be mutated.
SEEDS = [
    protocol.encode("hello", messages.hello("0.1.0")) + protocol.encode("ping"),
    protocol.encode("registerPeer", Registration("laptop", "host", "02:00:00:00:00:01", "0.1.0", True).to_wire()),
    protocol.encode(
        "execRequest",
        ExecRequest(
            "0123456789abcdef",
            "/srv",
            argv=("git", "pull"),
            timeout=1.5,
            env={"A": "1"},
            user="nobody",
            login=True,
            stdin=True,
            memory=1024,
            cpu=50.0,
            tasks=3,
        ).to_wire(),
    ),
    protocol.encode("execRequest", ExecRequest("0123456789abcdef", "/", "true", env={"B": "\udc80"}).to_wire()),
    protocol.encode("execRequest", ExecRequest("0123456789abcdef", action=Action.PULL).to_wire()),
    protocol.encode("result", {"outcome": "exited", "exitStatus": 3, "signal": None, "durationUsec": 5}),
    protocol.encode("result", {"outcome": "denied", "exitStatus": 255, "error": {"code": "denied", "message": "x"}}),
    protocol.encode("error", {"code": "id-taken", "message": "x", "details": {"peer": "a", "address": "10.0.0.1"}}),
    protocol.encode("peers", {"peers": [Peer("laptop", "10.0.0.4", first_seen=1.0, is_online=True).to_wire()]}),
    protocol.encode("deletePeer", {"peer": "laptop", "address": "10.0.0.4"}),
    protocol.encode("stdin", None, b"some\0input\n") + protocol.encode("cancel"),
]
_TOKENS = [*(bytes([byte]) for byte in b'"{}[]:,\n\xff'), *rb"\u0000 \ud800 null NaN 1e999 -1 true {}".split()]


def _entry(fields: Mapping[str, object]) -> object:
    return entries(Frame("peers", fields))


# Each takes the fields of any frame.
READERS: tuple[Callable[[Mapping[str, object]], object], ...] = (
    messages.check_hello,
    Registration.from_wire,
    ExecRequest.from_wire,
    ExecResult.from_wire,
    Peer.from_wire,
    PeerdError.from_wire,
    _entry,
)


def check(data: bytes) -> int:
    """Read bytes as peerd does; the number of frames in them.

    Any exception but PeerdError leaves this function, and so does an AssertionError where what was read does not
    survive being written and read again, or more is held than the bounds of the protocol allow.
    """
    decoder = Decoder()
    count = 0
    try:
        # In two pieces, so that a frame is cut at any place.
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            decoder.feed(piece)
            while frame := decoder.next():
                count += 1
                _check_frame(frame)
    except PeerdError as error:
        _check_text(error.text.replace("\n", ""))
    return count


def _check_text(text: str) -> None:
    assert text.isprintable()


def _check_frame(frame: Frame) -> None:
    assert len(frame.payload) <= protocol.MAX_PAYLOAD
    for read in READERS:
        try:
            value = read(frame.fields)
        except PeerdError as error:
            _check_text(error.sentence)
            continue
        if isinstance(value, (ExecRequest, Registration, Peer)):
            assert type(value).from_wire(value.to_wire()) == value
            protocol.encode("again", value.to_wire())


def mutated(seed: int) -> bytes:
    """One of the conversations with some of its bytes changed, the same for the same seed."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at:at] = chance.choice(_TOKENS)
            case 2:
                del data[at : at + chance.randint(1, 8)]
            case 3:
                data[at:at] = chance.choice(SEEDS)[: chance.randint(1, 60)]
            case _:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(data)


def encoded(fields: Mapping[str, object]) -> bytes:
    """A frame with these fields."""
    return protocol.encode("any", fields)


def names(data: bytes) -> set[str]:
    """The names of the fields in a conversation."""
    decoder = Decoder()
    decoder.feed(data)
    found: set[str] = set()
    while frame := decoder.next():
        found |= frame.fields.keys()
    return found
