"""The leader's side: the registry, the links of its workers, and who hears of what changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from peerd import network
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.messages import Registration
from peerd.peers import Peer, PeerBook
from peerd.registry import Registry

_PER_FRAME = 100
_MAX_BACKLOG = 4 * 1024 * 1024


class Hub:
    """The registry of a leader.

    :ivar book: all peers; what is stored is a copy of it, but for ``last_seen``, which is written by :meth:`flush`
    :param changed: called when a peer comes, goes or changes
    """

    def __init__(self, registry: Registry, interface: Callable[[], str], changed: Callable[[], None]) -> None:
        self._registry = registry
        self._interface = interface
        self._changed = changed
        self._links: dict[str, Connection] = {}
        self._seen: set[str] = set()
        self.book = PeerBook(registry.peers())

    @property
    def workers(self) -> int:
        """How many workers are connected."""
        return len(self._links)

    def set_self(self, me: Registration, address: str) -> None:
        """Enter this machine under its id and present address, whatever was there."""
        for other in (self.book.by_id(me.peer_id), self.book.by_address(address)):
            if other and (other.peer_id, other.ip_address) != (me.peer_id, address):
                self._registry.forget([other.peer_id])
                self._drop_link(other.peer_id)
        now = time.time()
        known = self.book.by_address(address)
        self._put(
            replace(
                known
                if known and known.peer_id == me.peer_id
                else Peer(me.peer_id, address, first_seen=now, last_seen=now),
                mac_address=me.mac_address,
                hostname=me.hostname,
                daemon_version=me.daemon_version,
                is_online=True,
            )
        )

    async def register(self, link: Connection, address: str, claim: Registration) -> Peer:
        """Enter a worker that registers over this link, and tell everybody.

        :param address: where the link comes from
        :raises PeerdError: ID_TAKEN, ADDRESS_TAKEN or KEY_CHANGED
        """
        key = await network.public_key(self._interface(), address)
        try:
            peer = replace(self.book.admit(claim, address, key, time.time()), is_online=True)
        except PeerdError as error:
            log(
                Event.PEER_REFUSED,
                f"Registration of {claim.peer_id} from {address} refused: {error.sentence}",
                peer=claim.peer_id,
                address=address,
            )
            raise
        old = self._links.pop(peer.peer_id, None)
        if old and old is not link:
            old.abort()
        self._put(peer)
        self._links[peer.peer_id] = link
        link.post("registered", {"peer_id": peer.peer_id})
        self.tell_all(link)
        log(
            Event.PEER_REGISTERED,
            f"Peer {peer.peer_id} ({address}) registered, peerd {peer.daemon_version}",
            peer=peer.peer_id,
            address=address,
        )
        return peer

    def tell_all(self, link: Connection) -> None:
        """Send every peer over a link: how many there are, then their entries."""
        link.post("reply", {"count": len(self.book)})
        self._send(link, self.book.all())

    def heard(self, link: Connection, peer_id: str) -> None:
        """A heartbeat came over a link; answer it."""
        peer = self.book.by_id(peer_id)
        if peer and self._links.get(peer_id) is link:
            self.book.put(replace(peer, last_seen=time.time()))
            self._seen.add(peer_id)
            link.post("heartbeat")

    def left(self, link: Connection, peer_id: str) -> None:
        """A link has ended."""
        if self._links.get(peer_id) is not link:
            return
        del self._links[peer_id]
        peer = self.book.by_id(peer_id)
        if peer:
            self._put(replace(peer, is_online=False))
            log(Event.PEER_OFFLINE, f"Peer {peer_id} ({peer.ip_address}) is offline", peer=peer_id)

    def delete(self, peer_id: str, caller: str) -> None:
        """Delete a peer from the registry and close its link.

        :raises PeerdError: PEER_NOT_FOUND
        """
        peer = self.book.by_id(peer_id)
        if not peer:
            raise self.book.missing(peer_id)
        self._registry.forget([peer_id])
        self.book.remove(peer_id)
        self._drop_link(peer_id)
        for link in self._links.values():
            link.post("peerRemoved", {"peer_id": peer_id})
        log(Event.PEER_DELETED, f"Peer {peer_id} ({peer.ip_address}) deleted by {caller}", peer=peer_id, caller=caller)
        self._changed()

    def flush(self) -> None:
        """Store what heartbeats have changed since the last time."""
        peers = [peer for peer_id in self._seen if (peer := self.book.by_id(peer_id))]
        self._seen.clear()
        if peers:
            self._registry.store(peers)

    def close(self) -> None:
        """Store what is to be stored and close the links."""
        self.flush()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _drop_link(self, peer_id: str) -> None:
        link = self._links.pop(peer_id, None)
        if link:
            link.post("error", PeerdError(Code.DELETED, peer=peer_id).to_wire())
            link.close()

    def _put(self, peer: Peer) -> None:
        if self.book.by_id(peer.peer_id) == peer:
            return
        # Stored first: where that fails, memory must not know more than a restart would.
        self._registry.store([peer])
        self.book.put(peer)
        for link in list(self._links.values()):
            self._send(link, [peer])
        self._changed()

    def _send(self, link: Connection, peers: list[Peer]) -> None:
        # A worker that does not read is dropped: when it comes back it gets the whole registry again.
        if link.backlog > _MAX_BACKLOG:
            link.abort()
            return
        for chunk in _chunks(peers):
            link.post("peers", {"peers": [peer.to_wire() for peer in chunk]})


def _chunks(peers: list[Peer]) -> Iterable[list[Peer]]:
    return (peers[start : start + _PER_FRAME] for start in range(0, len(peers), _PER_FRAME))
