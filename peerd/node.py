"""This machine's part among the peers: alone, worker or leader, and whom it therefore knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from peerd import __version__, network
from peerd.bookreader import receive_book
from peerd.config import Config
from peerd.dialler import Dialler
from peerd.errors import Code, Outcome, PeerdError
from peerd.hub import Hub
from peerd.journal import Event, log, report
from peerd.links import LeaderLink
from peerd.messages import Registration, RegistryAction
from peerd.peers import Peer, PeerBook
from peerd.pool import Pool
from peerd.registry import Identity, Registry

LEADER = "leader"
WORKER = "worker"
_FLUSH_INTERVAL = 60.0
"""Seconds between two times that the leader stores who was seen when."""
_REGISTER_MARGIN = 2.0
"""Seconds beyond connecting and the answer, until a registration is taken for unanswered."""


class Node:
    """Role, id and leader of this machine, and what follows from them.

    :ivar hub: the registry, on the leader
    :ivar link: the connection to the leader, on a worker
    :ivar pool: connections to other peers
    :ivar removed: called with a peer that is none any more
    :param changed: called when something changed that the status line shows
    """

    def __init__(self, registry: Registry, config: Callable[[], Config], changed: Callable[[], None]) -> None:
        self._registry = registry
        self._config = config
        self._tell = changed
        self._change = asyncio.Event()
        self.identity = registry.identity()
        self.hub: Hub | None = None
        self.link: LeaderLink | None = None
        self.removed: Callable[[Peer], None] = lambda peer: None
        self._known = ("", PeerBook())
        self._dialler = Dialler(config)
        self.pool = Pool(self._dialler.connect, lambda: config().connect_timeout)
        self._watch: network.NetworkWatch | None = None
        self._changing = asyncio.Lock()
        self._joining: Identity | None = None
        self._tending: asyncio.Task[None] | None = None

    @property
    def peer_id(self) -> str:
        """The id of this machine; its host name while none is set."""
        return self.identity.peer_id or network.hostname()

    @property
    def address(self) -> str | None:
        """This machine's address in the VPN, or None while the interface is down."""
        return network.interface_address(self._config().vpn_interface)

    @property
    def book(self) -> PeerBook:
        """The peers that this machine knows."""
        if self.hub:
            return self.hub.book
        return self.link.book if self.link else PeerBook()

    def start(self) -> None:
        """Take up the stored role."""
        self._watch = network.NetworkWatch(self._network_changed)
        self._take_up(self.identity, self._link(self.identity) if self.identity.role == WORKER else None)
        self._tending = asyncio.create_task(self._tend())

    async def close(self) -> None:
        """Leave: close the links and store what is to be stored."""
        if self._watch:
            self._watch.close()
        if self._tending:
            self._tending.cancel()
            await asyncio.wait((self._tending,))
        if self.hub:
            self.hub.close()
        if self.link:
            await self.link.close()
        self.hub = self.link = None
        self.pool.drop()

    async def become(self, identity: Identity) -> PeerdError | None:
        """Change role, id or leader. A worker whose leader refuses it keeps what it had before.

        :returns: why a worker is not connected to its leader yet, or None; the change holds all the same
        :raises PeerdError: OWN_ADDRESS, ID_TAKEN, or the leader's refusal; nothing is changed then
        """
        if identity.role == WORKER and network.is_own_address(identity.leader_address):
            raise PeerdError(Code.OWN_ADDRESS, address=identity.leader_address)
        async with self._changing:
            if identity.role == LEADER:
                self._see_that_id_is_free(identity.peer_id)
            self._registry.set_identity(identity)
            link, error = None, None
            if identity.role == WORKER:
                link, error = await self._join(identity)
            before = self.link
            self._take_up(identity, link)
            log(
                Event.ROLE_SET,
                f"Role: {identity.role}, id: {self.peer_id}, leader: {identity.leader_address or 'none'}",
                peer=self.peer_id,
            )
            if before and before is not link:
                await before.close()
            return error

    async def resolve(self, peer_id: str) -> Peer:
        """The peer with this id, from the registry or its copy; a worker asks the leader about one it does not know.

        :raises PeerdError: PEER_NOT_FOUND, or why the leader cannot be asked
        """
        return await self._look_up(self.book.by_id(peer_id), "peer", peer_id)

    async def at(self, address: str) -> Peer:
        """The peer with this address, as :meth:`resolve` finds it."""
        return await self._look_up(self.book.by_address(address), "address", address)

    @property
    def refusal(self) -> PeerdError | None:
        """Why the leader does not take this machine for a peer, or None."""
        error = self.link.error if self.link else None
        return error if error and error.kind.outcome is Outcome.DENIED and error.code is not Code.BUSY else None

    async def departure(self, peer: Peer) -> None:
        """Wait until the id of a peer has come to be at another address or, where it was known here, nowhere."""
        known = False
        while True:
            now = self.book.by_id(peer.peer_id)
            if now.ip_address != peer.ip_address if now else known:
                return
            known = now is not None
            await self._change.wait()

    async def informed(self) -> None:
        """Wait until a worker that was started just now has heard of its peers, or that it does not hear of them now.

        Who was cut off when it was stopped comes back at once.
        """
        if self.link:
            await self.link.outcome(self._config().connect_timeout)

    async def identify(self, address: str) -> Peer:
        """The peer that a connection from this address belongs to.

        :raises PeerdError: UNKNOWN_PEER
        """
        if self.book.by_address(address) is None:
            await self.informed()
        if peer := self.book.by_address(address):
            return peer
        # A peer may have registered a moment ago, and its first command be quicker than the leader's news of it.
        with contextlib.suppress(PeerdError):
            return Peer.from_wire(await self._ask("getPeerInfo", {"address": address}))
        raise PeerdError(Code.UNKNOWN_PEER, address=address, peer=self.peer_id)

    async def peers(self) -> tuple[PeerBook, PeerdError | None]:
        """All peers, on a worker as the leader knows them now.

        :returns: the peers, and why they are only the last known ones, or None
        :raises PeerdError: NO_ROLE; and why the leader cannot be asked, where it was never reached
        """
        if self.hub:
            return self.hub.book, None
        await self.informed()
        if self.link is None:
            raise PeerdError(Code.NO_ROLE)
        error = self.link.unavailable()
        if self.link.connected:
            with contextlib.suppress(OSError):
                async with self.pool.borrow(self.link.address) as link, asyncio.timeout(self._config().connect_timeout):
                    await link.send("listPeers")
                    return await receive_book(link), None
        if not len(self.link.book):
            raise error
        return self.link.book, error

    async def peer(self, peer_id: str) -> tuple[Peer, PeerdError | None]:
        """One peer, on a worker as the leader knows it now.

        :returns: the peer, and why it is only as it was known last, or None
        :raises PeerdError: PEER_NOT_FOUND, or why the leader cannot be asked
        """
        if self.link is None or not self.link.connected:
            return await self.resolve(peer_id), None
        try:
            return Peer.from_wire(await self._ask("getPeerInfo", {"peer": peer_id})), None
        except PeerdError as error:
            known = self.book.by_id(peer_id)
            if error.code is not Code.NOT_CONNECTED or known is None:
                raise
            return known, error

    async def change_registry(
        self, action: RegistryAction, peer_id: str, address: str | None, caller: str
    ) -> str | None:
        """Delete, approve or reject a peer, on a worker by asking the leader.

        :param address: where its registration came from, if the id alone does not tell
        :returns: where that was, as far as it is known here
        :raises PeerdError: PEER_NOT_FOUND, USAGE, SELF_DELETE, NO_ROLE or why the leader cannot be asked
        """
        if self.hub is None:
            log(
                Event.REGISTRY_ASKED, f"{action} {peer_id} asked of the leader by {caller}", peer=peer_id, caller=caller
            )
            await self._ask(action, {"peer": peer_id, **({"address": address} if address else {})})
        elif peer_id == self.peer_id and (action is RegistryAction.APPROVE or address in (None, self.address)):
            raise PeerdError(Code.SELF_DELETE, peer=peer_id)
        elif action is RegistryAction.DELETE:
            self.hub.delete(peer_id, address, caller)
        elif action is RegistryAction.APPROVE:
            self.hub.approve(peer_id, address, caller)
        else:
            address = self.hub.reject(peer_id, address, caller).ip_address
        return address

    async def _look_up(self, known: Peer | None, key: str, wanted: str) -> Peer:
        if known:
            return known
        if self.hub:
            raise self.book.missing(wanted)
        try:
            return Peer.from_wire(await self._ask("getPeerInfo", {key: wanted}))
        except PeerdError as error:
            raise self.book.explain(error, wanted) from None

    async def _ask(self, type_: str, fields: Mapping[str, object]) -> Mapping[str, object]:
        await self.informed()
        link = self.link
        if link is None:
            raise PeerdError(Code.NO_ROLE)
        if not link.connected:
            raise link.unavailable()
        try:
            return (await self.pool.request(link.address, type_, fields)).fields
        except OSError:
            # By now this machine may have another leader, or none.
            raise PeerdError(Code.NOT_CONNECTED, address=link.address) from None

    def _see_that_id_is_free(self, peer_id: str) -> None:
        """Raise ID_TAKEN where a leader of this id would take it from another peer of its registry."""
        book = self.hub.book if self.hub else PeerBook(self._registry.peers())
        holder, address = book.by_id(peer_id), self.address
        # A machine that keeps its id may have got another address; unless its entry is that of a former id.
        kept = peer_id == self.identity.peer_id and not (address and book.by_address(address))
        if holder and holder.ip_address != address and not kept:
            raise PeerdError(Code.ID_TAKEN, peer=peer_id, address=holder.ip_address)

    async def _join(self, identity: Identity) -> tuple[LeaderLink, PeerdError | None]:
        """Register with a leader; what this machine is until then it goes on to be.

        :returns: the link, and why it is not connected yet, or None
        :raises PeerdError: the leader's refusal; all is as it was before then
        """
        timeout, joining, before = self._config().connect_timeout, self._joining, self.link
        self._joining = identity
        link = self._link(identity)
        # A leader knows one link of a machine.
        replaces = before is not None and before.address == link.address
        if before and replaces:
            self.link = link
            await before.close()
        try:
            error = await link.outcome(timeout * 2 + _REGISTER_MARGIN)
        except asyncio.CancelledError:
            await link.close()
            raise
        if error is None or error.kind.outcome is not Outcome.DENIED or error.code is Code.PENDING:
            return link, error
        self._joining = joining
        if replaces:
            self.link = self._link(self.identity)
        await link.close()
        self._registry.set_identity(self.identity)
        if self.link:
            await self.link.outcome(timeout)
        raise error

    def _link(self, identity: Identity) -> LeaderLink:
        """A link to the leader of this identity, with what is known of its peers."""
        leader, known = self._known
        book = known if leader == identity.leader_address else PeerBook()
        if there := book.by_address(leader):
            book.see(there.peer_id, online=False)
        return LeaderLink(
            identity.leader_address,
            self._dialler.connect,
            lambda: self._registration(identity),
            self._config,
            lambda connected, detail: self._link_changed(identity, connected, detail),
            lambda error: self._link_refused(identity, error),
            self._book_changed,
            self._peer_removed,
            book,
        )

    def _take_up(self, identity: Identity, link: LeaderLink | None) -> None:
        if self.hub:
            self.hub.close()
        self.identity, self.link, self.hub = identity, link, None
        if identity.role == LEADER:
            self._known = ("", PeerBook())
            self.hub = Hub(self._registry, self._config, self._changed, self._peer_removed)
            self._enter_self()
        self._book_changed()

    def _registration(self, identity: Identity) -> Registration:
        peer_id = identity.peer_id or network.hostname()
        joining = self._joining is identity
        return Registration(peer_id, network.hostname(), network.primary_mac_address(), __version__, joining)

    def _enter_self(self) -> None:
        address = self.address
        # Where it cannot be stored it is recorded, and tried again.
        with contextlib.suppress(PeerdError):
            if self.hub and address:
                self.hub.set_self(self._registration(self.identity), address)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_INTERVAL)
            try:
                if self.hub:
                    self._enter_self()
                    self.hub.flush()
                self._registry.back_up()
            except Exception as error:
                # Whatever it was, what is to be stored is stored the next time.
                report(error, "upkeep of the registry")

    def resumed(self) -> None:
        """This machine has slept: what was connected may be so no more, and nobody has said it."""
        self.pool.drop()
        self._network_changed()

    def reloaded(self) -> None:
        """Other settings are in force: the VPN may be behind another interface."""
        self._network_changed()

    def _network_changed(self) -> None:
        self._dialler.renew()
        self._enter_self()
        if self.link:
            self.link.wake()

    def _link_refused(self, identity: Identity, error: PeerdError) -> None:
        leader = identity.leader_address
        log(Event.LEADER_REFUSED, f"Leader {leader} refuses: {error.sentence}", peer=identity.peer_id, address=leader)

    def _link_changed(self, identity: Identity, connected: bool, detail: str) -> None:
        if connected and self._joining is identity:
            self._joining = None
        leader = identity.leader_address
        event, verb = (Event.LEADER_CONNECTED, "Connected to") if connected else (Event.LEADER_LOST, "Lost")
        log(event, f"{verb} leader {leader}: {detail}", address=leader)
        self._book_changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        self._tell()

    def _peer_removed(self, peer: Peer) -> None:
        self.removed(peer)

    def _book_changed(self) -> None:
        (leader, known), link = self._known, self.link
        if link and link.book is not known:
            self._known = link.address, link.book
            # Who moves this machine to another leader, maybe by a command of its own, is to hear how that went.
            for peer in known if leader == link.address else ():
                if link.book.by_address(peer.ip_address) is None:
                    self.removed(peer)
        self._changed()
