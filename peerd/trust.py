"""The commands that say who is a peer."""

from __future__ import annotations

from peerd.answer import Answer
from peerd.messages import RegistryAction
from peerd.node import Node
from peerd.session import Session


class Trust:
    """A part of the service: a method for each of these commands."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def do_delete_peer(self, session: Session, peer: str) -> Answer:
        """Delete a peer from the registry."""
        return await self._change(session, RegistryAction.DELETE, peer, None, "Deleted")

    async def do_approve_peer(self, session: Session, peer: str, address: str | None = None) -> Answer:
        """Make a peer of a registration that waits or was refused."""
        return await self._change(session, RegistryAction.APPROVE, peer, address, "Approved")

    async def do_reject_peer(self, session: Session, peer: str, address: str | None = None) -> Answer:
        """Keep a peer or a registration out until it is approved or deleted."""
        return await self._change(session, RegistryAction.REJECT, peer, address, "Rejected")

    async def _change(
        self, session: Session, action: RegistryAction, peer: str, address: str | None, done: str
    ) -> Answer:
        await self._node.change_registry(action, peer, address, str(session.caller))
        return Answer(text=f"{done} peer: {peer}")
