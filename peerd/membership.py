"""The commands about this machine's part among the peers, and about the registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from peerd import __version__, network, remote, validate
from peerd.answer import Answer
from peerd.config import Config
from peerd.errors import EXIT_FAILURE, Code, PeerdError
from peerd.executor import Executor
from peerd.journal import Event, log
from peerd.node import LEADER, WORKER, Node
from peerd.peers import Peer
from peerd.registry import Identity, Registry
from peerd.render import moment
from peerd.session import Session

_PATIENCE = 1.0
"""Seconds after which somebody who waits is told for what."""


class Membership:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node, executor: Executor, registry: Registry, config: Callable[[], Config]) -> None:
        self._node = node
        self._executor = executor
        self._registry = registry
        self._config = config

    async def do_set_peer_config(
        self, session: Session, role: str | None = None, id: str | None = None, leader: str | None = None
    ) -> Answer:
        """Set role, id and leader; what is not given stays."""
        now = self._node.identity
        role = role or now.role
        if not role:
            raise PeerdError(
                Code.USAGE, reason="This machine has no role yet: --role leader or --role worker is needed"
            )
        if role == LEADER and leader:
            raise PeerdError(Code.USAGE, reason="--leader goes with --role worker: a leader has none")
        if role == WORKER and not (leader or now.leader_address):
            leader = self._config().leader_address
        address = (leader or now.leader_address) if role == WORKER else ""
        identity = Identity(role, id or now.peer_id or _own_id("--id"), address)
        return await self._become(identity, "Peer config saved. ", session)

    async def do_register_worker(self, session: Session, leader: str | None = None) -> Answer:
        """Join a leader under the host name; again, after a change or a deletion."""
        now = self._node.identity
        address = leader or now.leader_address or self._config().leader_address
        kept = now.peer_id if now.role == WORKER else ""
        return await self._become(
            Identity(WORKER, kept or _own_id("d setPeerConfig --role worker --id NAME"), address), "", session
        )

    async def do_get_peer_status(self, session: Session) -> Answer:
        """This machine's role, id and connection."""
        node = self._node
        data: dict[str, object] = {
            "role": node.identity.role or None,
            "peer_id": node.peer_id,
            "leader_address": (node.address if node.hub else node.identity.leader_address) or None,
            "is_leader": node.hub is not None,
            "connected_to_leader": node.link.connected if node.link else False,
        }
        if node.hub:
            data["connected_workers"] = node.hub.workers
        data |= {
            "ip_address": node.address,
            "known_peers": len(node.book),
            "running_commands": self._executor.running,
            "daemon_version": __version__,
        }
        if node.link:
            data["leader_error"] = node.link.trouble
        return Answer(data)

    async def do_list_peers(self, session: Session) -> Answer:
        """All registered peers."""
        book, error = await self._node.peers()
        return Answer([self._show(peer) for peer in (*book.all(), *book.claims)], error=error)

    async def do_get_peer_info(self, session: Session, peer: str) -> Answer:
        """One registered peer."""
        found, error = await self._node.peer(peer)
        return Answer(self._show(found), error=error)

    async def do_get_peer_id_by_ip(self, session: Session, ip: str) -> Answer:
        """The id of the peer with an address."""
        return Answer(text=(await self._node.at(ip)).peer_id)

    async def do_db_sanity_check(self, session: Session) -> Answer:
        """Delete what a worker's database should not hold: registry entries, and the registrations that made none."""
        role = self._node.identity.role
        peers, claims = ([], []) if role == LEADER else (self._registry.peers(), self._registry.claims())
        stray = peers + claims
        actions = [
            {
                "issue": f"Worker has {table} data (leader-only table)",
                "peer_count": len(entries),
                "peer_ids": [entry.peer_id for entry in entries],
                "action_taken": f"Deleted {len(entries)} peer records",
            }
            for table, entries in (("peer_registry", peers), ("peer_claim", claims))
            if entries
        ]
        if stray:
            with self._registry.changing():
                self._registry.forget(peer.peer_id for peer in peers)
                for claim in claims:
                    self._registry.forget_claim(claim.ip_address)
            log(Event.PEER_DELETED, f"dbSanityCheck deleted {len(stray)} stale entries", caller=str(session.caller))
        if role == LEADER:
            message = "No sanity check needed for role: leader"
        else:
            message = f"Sanity check {'completed: issues found and fixed' if stray else 'passed: no issues found'}"
        return Answer({"role": role or None, "issues_found": bool(stray), "actions": actions, "message": message})

    async def do_ping(self, session: Session, peer: str | None = None) -> Answer:
        """A sign of life of this daemon, or of a peer's with the round trip time."""
        if peer is None or peer == self._node.peer_id:
            return Answer(text="pong")
        target = await self._node.resolve(peer)
        async with remote.borrow(self._node.pool, target, self._config().connect_timeout) as link:
            began = time.monotonic()
            await link.send("ping")
            await link.expect("pong")
            took = time.monotonic() - began
        return Answer(text=f"pong from {peer} ({target.ip_address}) in {took * 1000:.1f} ms")

    async def _become(self, identity: Identity, prefix: str, session: Session) -> Answer:
        def wait() -> None:
            if identity.role == WORKER:
                session.say(f"Waiting for the leader at {identity.leader_address}")

        patience = asyncio.get_running_loop().call_later(_PATIENCE, wait)
        try:
            error = await self._node.become(identity)
        finally:
            patience.cancel()
        what = f"Role: {identity.role}, ID: {identity.peer_id}"
        if error and error.code is Code.PENDING:
            return Answer(text=f"{prefix}Asked to join as '{identity.peer_id}'", error=error, status=EXIT_FAILURE)
        if error:
            what += f", not connected to leader at {identity.leader_address} yet (peerd keeps trying)"
        elif identity.role == WORKER:
            what = f"Registered as worker '{identity.peer_id}', connected to leader at {identity.leader_address}"
        return Answer(text=f"{prefix}{what}", error=error, status=error.kind.exit_status if error else 0)

    def _show(self, peer: Peer) -> dict[str, object]:
        # A clock that was set back must not show what is to come.
        now = time.time()
        last_seen = now if peer.peer_id == self._node.peer_id else min(peer.last_seen, now)
        return {
            "peer_id": peer.peer_id,
            "ip_address": peer.ip_address,
            "mac_address": peer.mac_address,
            "hostname": peer.hostname,
            "last_seen": moment(last_seen),
            "is_online": peer.is_online,
            "daemon_version": peer.daemon_version,
            "public_key": peer.public_key,
            "first_seen": moment(peer.first_seen),
            "state": peer.state.value,
        }


def _own_id(otherwise: str) -> str:
    try:
        return validate.peer_id(network.hostname())
    except ValueError as error:
        raise PeerdError(Code.USAGE, reason=f"The host name is {error}; use {otherwise}") from None
