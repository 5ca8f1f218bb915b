"""The registry as a leader sends it over a connection, read on the other end (see :mod:`peerd.news`)."""

from __future__ import annotations

from peerd import validate
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.messages import take, take_optional
from peerd.peers import Peer, PeerBook
from peerd.protocol import Frame

MAX_PEERS = 100_000
MAX_CLAIMS = 1000
"""What a leader may tell of: no fleet is larger, and a hostile one must not fill its workers."""


def _count(value: object) -> int:
    return validate.integer(value, 0, MAX_PEERS)


def _claims(value: object) -> list[Peer]:
    if not isinstance(value, list) or len(value) > MAX_CLAIMS:
        raise ValueError(f"must be a list of at most {MAX_CLAIMS}")
    return [Peer.from_wire(entry) for entry in value]


async def receive_book(link: Connection, copy: PeerBook | None = None) -> PeerBook:
    """All peers, as a leader sends them: how many there are, then their entries.

    :param copy: a copy of which the leader may say that it is still right
    :raises PeerdError: BAD_MESSAGE
    :raises ConnectionError: when the connection ends before the last of them
    """
    reply = (await link.expect("reply")).fields
    count = take(reply, "count", _count)
    claims = take_optional(reply, "claims", _claims) or []
    if copy is not None and take(reply, "same", validate.boolean, False):
        copy.claims = claims
        return copy
    book = PeerBook(claims=claims)
    received = 0
    while received < count:
        peers = entries(await link.expect("peers"))
        received += len(peers)
        for peer in peers:
            book.put(peer)
    return book


def entries(frame: Frame) -> list[Peer]:
    """The peers in a ``peers`` message.

    :raises PeerdError: BAD_MESSAGE
    """
    listed = frame.fields.get("peers")
    if not isinstance(listed, list) or not listed:
        raise PeerdError(Code.BAD_MESSAGE, reason="peers must be a list of peers")
    return [Peer.from_wire(entry) for entry in listed]
