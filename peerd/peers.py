"""Who the peers are: the registry in memory, the same on the leader (which stores it) and on workers (which copy it).

Pure code: what a registration changes, or why it is refused, is decided here.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from peerd import validate
from peerd.errors import Code, PeerdError, suggestion
from peerd.messages import MAX_TEXT, Registration, take


class State(enum.StrEnum):
    """What the leader makes of an entry. All but the first are no peers; the last is not shown."""

    REGISTERED = "registered"
    PENDING = "pending"
    ID_TAKEN = "id-taken"
    ADDRESS_TAKEN = "address-taken"
    KEY_CHANGED = "key-changed"
    REJECTED = "rejected"
    DELETED = "deleted"


@dataclass(frozen=True)
class Peer:
    """One row of the registry, or a registration that did not become one.

    :ivar public_key: the WireGuard public key behind the address, or "" where it is not known
    :ivar first_seen: seconds since the epoch
    :ivar last_seen: seconds since the epoch
    """

    peer_id: str
    ip_address: str
    mac_address: str = ""
    hostname: str = ""
    daemon_version: str = ""
    public_key: str = ""
    first_seen: float = 0.0
    last_seen: float = 0.0
    is_online: bool = False
    state: State = State.REGISTERED

    def to_wire(self) -> dict[str, object]:
        """The peer as an entry of a peers message."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_wire(cls, entry: object) -> Peer:
        """The peer in an entry of a peers message.

        :raises PeerdError: BAD_MESSAGE
        """
        if not isinstance(entry, Mapping):
            raise PeerdError(Code.BAD_MESSAGE, reason="a peer must be an object")

        def text(name: str) -> str:
            return take(entry, name, lambda value: validate.utf8(value, name, MAX_TEXT), "")

        def moment(name: str) -> float:
            return take(entry, name, validate.moment, 0.0)

        return cls(
            take(entry, "peer_id", validate.peer_id),
            take(entry, "ip_address", validate.address),
            take(entry, "mac_address", validate.mac_address, ""),
            text("hostname"),
            text("daemon_version"),
            text("public_key"),
            moment("first_seen"),
            moment("last_seen"),
            take(entry, "is_online", validate.boolean, False),
            take(entry, "state", _state, State.REGISTERED),
        )


_FIELDS = tuple(field.name for field in fields(Peer))
_OF_THE_MOMENT = ("last_seen", "is_online")
_COPIED = tuple(name for name in _FIELDS if name not in _OF_THE_MOMENT)
_DIGEST_SIZE = 8


def _fingerprint(peer: Peer) -> int:
    """A number for what there is to know of a peer beyond the moment, the same on every machine."""
    text = json.dumps([getattr(peer, name) for name in _COPIED])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_DIGEST_SIZE).digest())


def _state(value: object) -> State:
    return State(validate.string(value, "state", MAX_TEXT))


def in_order(peers: Iterable[Peer]) -> list[Peer]:
    """Peers in the order of their addresses."""
    return sorted(peers, key=lambda peer: tuple(map(int, peer.ip_address.split("."))))


def claimed(claim: Registration, address: str, public_key: str, now: float, before: Peer | None) -> Peer:
    """The entry that a registration makes, or renews where there was one before."""
    return replace(
        before or Peer(claim.peer_id, address, first_seen=now),
        peer_id=claim.peer_id,
        mac_address=claim.mac_address,
        hostname=claim.hostname,
        daemon_version=claim.daemon_version,
        public_key=public_key or (before.public_key if before else ""),
        last_seen=now,
    )


class PeerBook:
    """The peers, found by id and by address. An id has one address and an address has one id.

    :ivar claims: the registrations that are to be shown beside them (see :mod:`peerd.claims`)
    """

    def __init__(self, peers: Iterable[Peer] = (), claims: Iterable[Peer] = ()) -> None:
        self.claims = list(claims)
        self._by_id: dict[str, Peer] = {}
        self._by_address: dict[str, Peer] = {}
        self._fingerprints: dict[str, int] = {}
        self._digest = 0
        for peer in peers:
            self.put(peer)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_id.values())

    @property
    def digest(self) -> str:
        """The same for two books with the same peers, whatever of them is only of the moment."""
        return f"{self._digest:0{2 * _DIGEST_SIZE}x}"

    def all(self) -> list[Peer]:
        """All peers in the order of their addresses."""
        return in_order(self._by_id.values())

    def ids(self) -> list[str]:
        """The ids of all peers."""
        return list(self._by_id)

    def by_id(self, peer_id: str) -> Peer | None:
        """The peer with this id."""
        return self._by_id.get(peer_id)

    def by_address(self, address: str) -> Peer | None:
        """The peer with this address."""
        return self._by_address.get(address)

    def missing(self, wanted: str) -> PeerdError:
        """The error for an id or address that is nobody's: PEER_NOT_FOUND, with the ids that it may be a slip of."""
        return PeerdError(Code.PEER_NOT_FOUND, peer=wanted, suggestion=suggestion(wanted, self._by_id))

    def explain(self, error: PeerdError, wanted: str) -> PeerdError:
        """The error of another machine that was asked for a peer, as it would be said here."""
        known = error.code is not Code.PEER_NOT_FOUND or error.details.get("suggestion")
        return error if known else self.missing(wanted)

    def put(self, peer: Peer) -> None:
        """Add or replace; whatever held the same id or the same address goes."""
        for old in (self._by_id.get(peer.peer_id), self._by_address.get(peer.ip_address)):
            if old:
                self.remove(old.peer_id)
        self._by_id[peer.peer_id] = peer
        self._by_address[peer.ip_address] = peer
        self._fingerprints[peer.peer_id] = fingerprint = _fingerprint(peer)
        self._digest ^= fingerprint

    def see(self, peer_id: str, now: float | None = None, online: bool = True) -> None:
        """Change what is of the moment: whether a peer is online and, in seconds since the epoch, when it was seen."""
        known = self._by_id.get(peer_id)
        if known:
            peer = replace(known, is_online=online, last_seen=known.last_seen if now is None else now)
            self._by_id[peer_id] = self._by_address[peer.ip_address] = peer

    def remove(self, peer_id: str) -> Peer | None:
        """Remove the peer with this id and return it, or None where there is none."""
        peer = self._by_id.pop(peer_id, None)
        if peer:
            del self._by_address[peer.ip_address]
            self._digest ^= self._fingerprints.pop(peer_id)
        return peer

    def admit(self, claim: Registration, address: str, public_key: str, now: float) -> Peer:
        """The peer that a registration makes or renews; the book itself is not changed.

        :param address: where the registration came from, as the VPN vouches for it
        :param public_key: the WireGuard key behind that address, "" where unknown
        :param now: seconds since the epoch
        :raises PeerdError: ID_TAKEN, ADDRESS_TAKEN or KEY_CHANGED
        """
        holder = self.by_id(claim.peer_id)
        if holder and holder.ip_address != address:
            raise PeerdError(Code.ID_TAKEN, peer=claim.peer_id, address=holder.ip_address)
        tenant = self.by_address(address)
        if tenant and tenant.peer_id != claim.peer_id:
            raise PeerdError(Code.ADDRESS_TAKEN, peer=tenant.peer_id, address=address)
        if holder and holder.public_key and public_key and holder.public_key != public_key:
            raise PeerdError(Code.KEY_CHANGED, peer=claim.peer_id, address=address)
        return claimed(claim, address, public_key, now, holder)
