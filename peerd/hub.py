"""The leader's side: the registry, the links of its workers, and who hears of what changed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from peerd import network, refusals
from peerd.claims import Claims
from peerd.config import Config
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.messages import Registration
from peerd.network import KeyTable
from peerd.news import News
from peerd.peers import Peer, PeerBook, State, claimed
from peerd.registry import Registry

_KEYS_APART = 0.05
"""Seconds that are at least between two questions to wg(8)."""
_CLAIMS_AT_ONCE = 10
"""Refused registrations of one address that are stored when they come; those after them wait for the next flush."""
_AT_ONCE, _APART = 10, 2.0
"""Registrations of one address that are heard as they come; from then on one is in so many seconds, the rest waits."""


class Hub:
    """The registry of a leader.

    :ivar book: all peers; what is stored is a copy of it, but for ``last_seen``, for what a full disk held up and for
        what one address claims again and again, which :meth:`flush` writes
    :param config: gives the settings in force
    :param changed: called when a peer comes, goes or changes
    :param removed: called with a peer that was deleted, rejected or replaced
    """

    def __init__(
        self,
        registry: Registry,
        config: Callable[[], Config],
        changed: Callable[[], None],
        removed: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        self._registry = registry
        self._config = config
        self._changed = changed
        self._removed = removed
        self._seen: set[str] = set()
        self._unstored: set[str] = set()
        self._unstored_claims: set[str] = set()
        self._claims_stored: Counter[str] = Counter()
        self._turns: dict[str, float] = {}
        self._closed = False
        self._me = ""
        self._keys: tuple[float, KeyTable] = (-math.inf, KeyTable(""))
        self._asking = asyncio.Lock()
        self._news = News(lambda: self.book)
        self._claims = Claims(registry.claims())
        self.book = PeerBook(registry.peers(), self._claims.shown())

    @property
    def workers(self) -> int:
        """How many workers are connected."""
        return len(self._news)

    def set_self(self, me: Registration, address: str) -> None:
        """Enter this machine under its id and present address, in the place of whoever has one of them."""
        now = time.time()
        self._me = me.peer_id
        found = (self.book.by_id(me.peer_id), self.book.by_address(address))
        before = found[0] if found[0] is found[1] else None
        peer = replace(
            claimed(me, address, "", now, before), is_online=True, last_seen=before.last_seen if before else now
        )
        others = [other for other in found if other and (other.peer_id, other.ip_address) != (me.peer_id, address)]
        self._store(peer, others)
        for other in others:
            self._news.close(other.peer_id, PeerdError(Code.DELETED, peer=other.peer_id))
            log(
                Event.PEER_DELETED,
                f"Peer {other.peer_id} ({other.ip_address}) deleted: this leader is {me.peer_id} ({address})",
                peer=other.peer_id,
                caller=me.peer_id,
            )
        self._put(peer)

    async def register(self, link: Connection, address: str, claim: Registration, digest: str | None = None) -> Peer:
        """Enter a worker that registers over this link, and tell everybody.

        :param address: where the link comes from
        :param digest: that of the copy of the registry which it has, None where it keeps none
        :raises PeerdError: why it is no peer; PENDING where it may become one
        :raises ConnectionError: where meanwhile the worker has gone, or this machine is the leader no more
        """
        await self._wait_turn(link, address)
        key = await self._key(address)
        if self._closed:
            raise ConnectionError("the registry was closed")
        now = time.time()
        try:
            admitted = self._claims.admit(self.book, claim, address, key, now, self._config().registration)
        except PeerdError as error:
            self._refuse(claim, address, key, now, error)
            raise
        peer = replace(admitted, is_online=True)
        self._store(peer)
        old = self._news.leave(peer.peer_id)
        if old and old is not link:
            old.abort()
        self._put(peer)
        self._news.join(peer.peer_id, link, digest)
        log(
            Event.PEER_REGISTERED,
            f"Peer {peer.peer_id} ({address}) registered, peerd {peer.daemon_version}",
            peer=peer.peer_id,
            address=address,
        )
        return peer

    def tell_all(self, link: Connection) -> None:
        """Send every peer over a link: how many there are, then their entries."""
        self.see_self()
        self._news.tell_all(link)

    def see_self(self) -> None:
        """Note that this machine is there, which no heartbeat says."""
        self.book.see(self._me, time.time())

    def heard(self, link: Connection, peer_id: str) -> None:
        """A heartbeat came over a link; answer it."""
        if self._news.link(peer_id) is link:
            self.book.see(peer_id, time.time())
            self._seen.add(peer_id)
            link.post("heartbeat")

    def left(self, link: Connection, peer_id: str) -> None:
        """A link has ended."""
        if self._news.link(peer_id) is not link:
            return
        self._news.leave(peer_id)
        peer = self.book.by_id(peer_id)
        if peer:
            self._put(replace(peer, is_online=False))
            log(Event.PEER_OFFLINE, f"Peer {peer_id} ({peer.ip_address}) is offline", peer=peer_id)

    def delete(self, peer_id: str, address: str | None, caller: str) -> None:
        """Delete a peer from the registry and close its link, and forget what was claimed under its id.

        A worker that was deleted is kept out until it is told to register.

        :param address: forget only what has this address
        :raises PeerdError: PEER_NOT_FOUND
        """
        found = [*filter(None, [self.book.by_id(peer_id)]), *self._claims.named(peer_id)]
        chosen = [entry for entry in found if address in (None, entry.ip_address)]
        peer = next((entry for entry in chosen if entry.state is State.REGISTERED), None)
        claims = [entry for entry in chosen if entry is not peer]
        if not (peer or claims):
            raise _elsewhere(found, peer_id) if found else PeerdError(Code.PEER_NOT_FOUND, peer=peer_id, suggestion="")
        deleted = replace(peer, is_online=False, state=State.DELETED) if peer else None
        with self._registry.changing():
            for claim in claims:
                self._registry.forget_claim(claim.ip_address)
            if deleted:
                self._registry.forget([peer_id])
                self._registry.store_claim(deleted)
        for claim in claims:
            self._drop_claim(claim.ip_address)
        if peer and deleted:
            self._remove(peer, PeerdError(Code.DELETED, peer=peer_id))
            self._keep_claim(deleted)
        where = peer.ip_address if peer else claims[0].ip_address
        log(Event.PEER_DELETED, f"Peer {peer_id} ({where}) deleted by {caller}", peer=peer_id, caller=caller)

    def approve(self, peer_id: str, address: str | None, caller: str) -> Peer:
        """Make a peer of a registration that waits or was refused, in the place of whoever has its id or address.

        :param address: where the registration came from, if the id alone does not tell
        :raises PeerdError: PEER_NOT_FOUND, USAGE
        """
        claims, known = self._claims.named(peer_id), self.book.by_id(peer_id)
        if known and not claims:
            raise PeerdError(Code.USAGE, reason=f"{peer_id} is registered already, from {known.ip_address}")
        claim = _only(claims, peer_id, address)
        peer = replace(claim, state=State.REGISTERED)
        others = [other for other in (self.book.by_id(peer_id), self.book.by_address(claim.ip_address)) if other]
        self._store(peer, others)
        for other in others:
            if self.book.by_id(other.peer_id) is other:
                self._remove(other, PeerdError(Code.DELETED, peer=other.peer_id))
        self._put(peer)
        log(
            Event.PEER_APPROVED,
            f"Peer {peer_id} ({peer.ip_address}) approved by {caller}",
            peer=peer_id,
            address=peer.ip_address,
            caller=caller,
        )
        return peer

    def reject(self, peer_id: str, address: str | None, caller: str) -> Peer:
        """Keep a registration, or a peer, out until it is approved or deleted.

        :param address: where it came from, if the id alone does not tell
        :raises PeerdError: PEER_NOT_FOUND, USAGE
        """
        peer = self.book.by_id(peer_id)
        found = _only([*([peer] if peer else []), *self._claims.named(peer_id)], peer_id, address)
        rejected = replace(found, is_online=False, state=State.REJECTED)
        with self._registry.changing():
            if found is peer:
                self._registry.forget([peer_id])
            self._registry.store_claim(rejected)
        if found is peer:
            self._remove(found, PeerdError(Code.REJECTED, peer=peer_id, address=found.ip_address))
        self._keep_claim(rejected)
        log(
            Event.PEER_REJECTED,
            f"Peer {peer_id} ({found.ip_address}) rejected by {caller}",
            peer=peer_id,
            address=found.ip_address,
            caller=caller,
        )
        return found

    async def genuine(self, peer: Peer) -> bool:
        """Whether the WireGuard key behind a peer's address is the one that it registered with, as far as is known."""
        key = await self._key(peer.ip_address)
        return not key or not peer.public_key or key == peer.public_key

    def flush(self) -> None:
        """Store what heartbeats have changed since the last time, and what could not be stored when it was new."""
        # Where it cannot be stored now it is the next time.
        with contextlib.suppress(PeerdError):
            if unstored := self._listed(self._unstored):
                self._registry.store(unstored)
            self._unstored.clear()
            if seen := self._listed(self._seen):
                self._registry.store_seen(seen)
            self._seen.clear()
            if claims := self._claims.of(self._unstored_claims):
                with self._registry.changing():
                    for claim in claims:
                        self._registry.store_claim(claim)
            self._unstored_claims.clear()
        self._claims_stored.clear()
        now = time.monotonic()
        self._turns = {address: turn for address, turn in self._turns.items() if turn > now}

    def _listed(self, peer_ids: Iterable[str]) -> list[Peer]:
        return [peer for peer_id in peer_ids if (peer := self.book.by_id(peer_id))]

    def close(self) -> None:
        """Store what is to be stored and close the links."""
        self._closed = True
        self.flush()
        self._news.close_all()

    async def _wait_turn(self, link: Connection, address: str) -> None:
        """Each registration is on record, stored and told to everybody: one address must not have too many of them."""
        now = time.monotonic()
        turn = self._turns[address] = max(now, self._turns.get(address, now)) + _APART
        if (early := turn - now - _AT_ONCE * _APART) > 0:
            await asyncio.sleep(early)
            if not link.usable:
                raise ConnectionError("the worker has gone")

    async def _key(self, address: str) -> str:
        """The WireGuard key behind an address, by an answer no older than the question; "" where it is not known.

        All who ask while an answer is on its way share the next one.
        """
        now = asyncio.get_running_loop().time
        since = now()
        async with self._asking:
            asked, table = self._keys
            if asked < since:
                await asyncio.sleep(asked + _KEYS_APART - now())
                asked = now()
                table = await network.public_keys(self._config().vpn_interface)
                self._keys = (asked, table)
            return table.of(address)

    def _refuse(self, claim: Registration, address: str, key: str, now: float, error: PeerdError) -> None:
        entry = self._claims.refused(claim, address, key, now, error.code)
        news = entry and all(
            (known.peer_id, known.state) != (entry.peer_id, entry.state) for known in self._at(address)
        )
        # What cannot be stored changes nothing about the refusal, and comes again with the next one.
        with contextlib.suppress(PeerdError):
            if entry:
                self._note_claim(entry)
        pending = error.code is Code.PENDING
        if (news or not pending) and refusals.connections.refused(address):
            log(
                Event.PEER_PENDING if pending else Event.PEER_REFUSED,
                f"Registration of {claim.peer_id} from {address} refused: {error.sentence}",
                peer=claim.peer_id,
                address=address,
            )

    def _note_claim(self, entry: Peer) -> None:
        """Keep a registration that was refused.

        Who registers again and again must not have the disk, for which all else here waits, each time.

        :raises PeerdError: NOT_STORED
        """
        address = entry.ip_address
        same = any(replace(known, last_seen=entry.last_seen) == entry for known in self._at(address))
        if same or self._claims_stored[address] >= _CLAIMS_AT_ONCE:
            self._unstored_claims.add(address)
        else:
            self._claims_stored[address] += 1
            self._registry.store_claim(entry)
        self._keep_claim(entry)

    def _at(self, address: str) -> list[Peer]:
        return [claim for claim in self.book.claims if claim.ip_address == address]

    # Who is a peer is stored already: memory must not know more of that than a restart would.
    # Not so of a registration that made none: its machine registers again.

    def _keep_claim(self, claim: Peer) -> None:
        self._claims.put(claim)
        self.book.claims = self._claims.shown()

    def _drop_claim(self, address: str) -> None:
        self._claims.drop(address)
        self.book.claims = self._claims.shown()

    def _remove(self, peer: Peer, why: PeerdError) -> None:
        """Take a peer out of the book, and tell it why and the others that it is gone."""
        self.book.remove(peer.peer_id)
        self._news.close(peer.peer_id, why)
        self._news.removed(peer.peer_id)
        self._removed(peer)
        self._changed()

    def _put(self, peer: Peer) -> None:
        known = self.book.by_id(peer.peer_id)
        if known == peer:
            return
        self._seen.add(peer.peer_id)
        if known == replace(peer, is_online=not peer.is_online, last_seen=known.last_seen if known else 0.0):
            self.book.see(peer.peer_id, peer.last_seen, peer.is_online)
            self._news.came_or_went(peer.peer_id)
        else:
            self.book.put(peer)
            self._news.changed(peer.peer_id)
        self._changed()

    def _store(self, peer: Peer, instead_of: Iterable[Peer] = ()) -> None:
        """Store a peer in the place of others and of its claim, where more than its being seen is new.

        :raises PeerdError: NOT_STORED; not for a peer that stays who it is, which :meth:`flush` then stores
        """
        known, others = self.book.by_id(peer.peer_id), list(instead_of)
        if known and not others and peer == replace(known, is_online=peer.is_online, last_seen=peer.last_seen):
            return
        try:
            with self._registry.changing():
                self._registry.forget(other.peer_id for other in others)
                if known is None or others:
                    self._registry.forget_claim(peer.ip_address)
                self._registry.store([peer])
        except PeerdError:
            if known is None or others or peer.public_key != known.public_key:
                raise
            self._unstored.add(peer.peer_id)
        else:
            if known is None or others:
                self._drop_claim(peer.ip_address)


def _only(found: list[Peer], peer_id: str, address: str | None) -> Peer:
    chosen = [peer for peer in found if address in (None, peer.ip_address)]
    if not chosen:
        raise _elsewhere(found, peer_id)
    if len(chosen) > 1:
        raise PeerdError(Code.USAGE, reason=f"{peer_id} registers from {_addresses(chosen)}: --address is needed")
    return chosen[0]


def _elsewhere(found: list[Peer], peer_id: str) -> PeerdError:
    """The error for an id that is not at the address which was named, or is nowhere."""
    suggestion = f"{peer_id} registers from {_addresses(found)}." if found else ""
    return PeerdError(Code.PEER_NOT_FOUND, peer=peer_id, suggestion=suggestion)


def _addresses(entries: list[Peer]) -> str:
    return " and ".join(entry.ip_address for entry in entries)
