"""The objects that are shown on D-Bus, and what is told of them as they change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from dbus_next import Variant

from peerd import busapi, busvalues
from peerd.busapi import INTERFACES, JOB, MANAGER, OBJECT_MANAGER, PEER, ROOT
from peerd.busjobs import Jobs
from peerd.node import Node
from peerd.peers import Peer


class Objects:
    """The manager, the peers and the jobs.

    :param status: gives what getPeerStatus shows
    :param signal: sends a signal: path, interface, member and body
    """

    def __init__(
        self,
        node: Node,
        status: Callable[[], Awaitable[Mapping[str, object]]],
        jobs: Jobs,
        signal: Callable[[str, str, str, list[Any]], None],
    ) -> None:
        self._node = node
        self._read = status
        self._jobs = jobs
        self._signal = signal
        self._status: Mapping[str, Variant] = {}
        self._peers: Mapping[str, Peer] = {}

    def paths(self) -> dict[str, str]:
        """The paths of peers and jobs, and their interfaces."""
        peers = {busapi.peer_path(peer_id): PEER for peer_id in self._node.book.ids()}
        return {**peers, **{busapi.job_path(exec_id): JOB for exec_id in self._jobs.shown}}

    async def all(self, only: str | None = None) -> dict[str, dict[str, dict[str, Variant]]]:
        """Properties by path and interface, of all objects or of one."""
        objects: dict[str, dict[str, dict[str, Variant]]] = {}
        if only in (None, ROOT):
            objects[ROOT] = {MANAGER: await self._read_status()}
        for peer in self._node.book:
            if only in (None, path := busapi.peer_path(peer.peer_id)):
                objects[path] = {PEER: busvalues.of_peer(peer)}
        for exec_id, job in self._jobs.shown.items():
            if only in (None, path := busapi.job_path(exec_id)):
                objects[path] = {JOB: busvalues.of_job(job)}
        return objects

    async def begin(self) -> None:
        """Tell from now on what changes."""
        self._status = await self._read_status()
        self._peers = {peer.peer_id: peer for peer in self._node.book}

    async def announce(self) -> None:
        """Tell what has changed since the last time."""
        status, self._status = self._status, await self._read_status()
        before, now = self._peers, {peer.peer_id: peer for peer in self._node.book}
        self._peers = now
        for peer_id in before.keys() - now.keys():
            self._signal(ROOT, OBJECT_MANAGER, "InterfacesRemoved", [busapi.peer_path(peer_id), [PEER]])
            self._about_peer("PeerRemoved", peer_id)
        for peer_id, peer in now.items():
            known = before.get(peer_id)
            if known is peer:
                continue
            path = busapi.peer_path(peer_id)
            if known is None:
                self._signal(ROOT, OBJECT_MANAGER, "InterfacesAdded", [path, {PEER: busvalues.of_peer(peer)}])
                self._about_peer("PeerAdded", peer_id)
            elif known != replace(peer, last_seen=known.last_seen):
                self._tell_properties(path, PEER, busvalues.of_peer(known), busvalues.of_peer(peer))
            if peer.is_online != (known is not None and known.is_online):
                self._about_peer("PeerOnline" if peer.is_online else "PeerOffline", peer_id)
        self._tell_properties(ROOT, MANAGER, status, self._status)

    def _tell_properties(
        self, path: str, interface: str, before: Mapping[str, Variant], now: Mapping[str, Variant]
    ) -> None:
        described = INTERFACES[interface].properties
        changed = {key: value for key, value in now.items() if described[key].announced and before.get(key) != value}
        if changed:
            self._signal(path, busapi.PROPERTIES, "PropertiesChanged", [interface, changed, []])

    def _about_peer(self, member: str, peer_id: str) -> None:
        self._signal(ROOT, MANAGER, member, [peer_id, busapi.peer_path(peer_id)])

    async def _read_status(self) -> dict[str, Variant]:
        return busvalues.values(MANAGER, await self._read())
