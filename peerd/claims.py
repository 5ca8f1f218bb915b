"""The registrations that made no peer: those that wait, and those that were refused, rejected or deleted. Pure code.

There is at most one for an address, which is what the VPN vouches for. It counts only where the book of peers has
nothing against the registration: nobody can keep a peer out by claiming its id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from peerd.config import Mode
from peerd.errors import Code, PeerdError
from peerd.messages import Registration
from peerd.peers import Peer, PeerBook, State, claimed, in_order

MAX_SHOWN = 200
"""How many are kept of those that strangers make. All of them fit into one frame."""

_OF_CODES = {
    Code.PENDING: State.PENDING,
    Code.ID_TAKEN: State.ID_TAKEN,
    Code.ADDRESS_TAKEN: State.ADDRESS_TAKEN,
    Code.KEY_CHANGED: State.KEY_CHANGED,
}


class Claims:
    """The registrations that made no peer, by address."""

    def __init__(self, claims: Iterable[Peer] = ()) -> None:
        self._by_address = {claim.ip_address: claim for claim in claims}

    def shown(self) -> list[Peer]:
        """Those that the administrator is shown, in the order of their addresses."""
        return in_order(claim for claim in self._by_address.values() if claim.state is not State.DELETED)

    def named(self, peer_id: str) -> list[Peer]:
        """Those that are shown under this id."""
        return [claim for claim in self.shown() if claim.peer_id == peer_id]

    def of(self, addresses: Iterable[str]) -> list[Peer]:
        """Those of these addresses."""
        return [claim for address in addresses if (claim := self._by_address.get(address))]

    def put(self, claim: Peer) -> None:
        """Keep one, in the place of what its address had."""
        self._by_address[claim.ip_address] = claim

    def drop(self, address: str) -> None:
        """Forget the one of this address, if any."""
        self._by_address.pop(address, None)

    def admit(self, book: PeerBook, claim: Registration, address: str, public_key: str, now: float, mode: Mode) -> Peer:
        """The peer that a registration makes or renews; neither the book nor this is changed.

        :raises PeerdError: why it makes none
        """
        peer = book.admit(claim, address, public_key, now)
        if book.by_id(claim.peer_id):
            return peer
        before = self._by_address.get(address)
        if before and before.state is State.REJECTED:
            raise PeerdError(Code.REJECTED, peer=claim.peer_id, address=address)
        if before and before.state is State.DELETED and before.peer_id == claim.peer_id and not claim.joining:
            raise PeerdError(Code.DELETED, peer=claim.peer_id)
        if mode is Mode.APPROVAL:
            raise PeerdError(Code.PENDING, peer=claim.peer_id, address=address)
        if mode is Mode.CLOSED:
            raise PeerdError(Code.REGISTRATION_CLOSED, peer=claim.peer_id, address=address)
        return peer

    def refused(self, claim: Registration, address: str, public_key: str, now: float, code: Code) -> Peer | None:
        """The entry to keep of a registration that was refused for this reason, or None where nothing is kept.

        What was rejected stays so, whatever its address claims later.
        """
        state = _OF_CODES.get(code)
        before = self._by_address.get(address)
        if state is None or (before and before.state is State.REJECTED):
            return None
        if before is None and len(self.shown()) >= MAX_SHOWN:
            return None
        if before and before.state is State.DELETED:
            before = None
        return replace(claimed(claim, address, public_key, now, before), state=state)
