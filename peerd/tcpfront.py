"""The TCP socket: what the messages of other peers mean, and who may send them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from peerd import guard, jobs, messages, network, policy, protocol, refusals, validate
from peerd.app import AppRequest, answer_to_wire
from peerd.apphost import AppHost
from peerd.config import Config, Mode
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.executor import Executor
from peerd.fronts import Conversation, Front
from peerd.job import Job
from peerd.journal import Event, log
from peerd.logs import Reader
from peerd.messages import ExecRequest, ExecResult, Offsets, Registration, RegistryAction, take, take_optional
from peerd.node import Node
from peerd.peers import Peer
from peerd.protocol import Frame
from peerd.records import Query
from peerd.session import Caller, Session, unless

T = TypeVar("T")
_IDLE_LIMIT = 300.0
"""Seconds without a request after which a peer's connection is ended."""
_STRANGER_LIMIT = 10.0
"""Seconds for a connection to say something that only a peer may."""
_OF_A_STRANGER = 16
"""Connections of one address that is no peer's."""


class TcpFront(Front):
    """Serves other peers. A peer is the address that its connection comes from, through the VPN's interface."""

    def __init__(self, node: Node, executor: Executor, apps: AppHost, config: Callable[[], Config]) -> None:
        super().__init__(node, config)
        self._executor = executor
        self._apps = apps
        self._reader = Reader()
        self._of: Counter[str] = Counter()
        self._listing = asyncio.Lock()
        self._links: dict[Connection, asyncio.Task[Any] | None] = {}
        node.removed = self._dismiss

    def who(self, link: Connection) -> str:
        """The address of the other end."""
        return link.address

    async def _serve(self, link: Connection, who: str) -> None:
        if refusal := self._refusal(link, who):
            self._drop(link, who, refusal)
            return
        self._of[who] += 1
        count = self._of[who]
        try:
            # Elsewhere than on a leader that takes new peers, a stranger does not even hear that somebody is there.
            if not self._takes_registrations() and (refusal := await self._unwelcome(who, count)):
                self._drop(link, who, refusal)
                return
            if count > self._share(self._knows(who)):
                raise PeerdError(Code.BUSY, reason="too many connections of one peer (half of max-connections)")
            await self._converse(link, who)
        finally:
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]

    async def _unwelcome(self, who: str, count: int) -> str:
        """Why an address has nothing to say here, or "".

        :param count: how many connections it has; the leader is asked about no more than a stranger may have
        """
        if not self._knows(who):
            # Who was cut off by a restart comes back with all that it had, and before the leader has told of it.
            if count <= self._share(True):
                await self._node.informed()
            if count > self._share(self._knows(who)):
                return "too many connections, and not of a registered peer"
        return await self._stranger(who)

    def _knows(self, who: str) -> bool:
        return self._node.book.by_address(who) is not None

    def _share(self, known: bool) -> int:
        """How many connections one address may have, so that nobody is kept out by one peer or some strangers."""
        most = self._config().max_connections
        return max(1, most // 2 if known else min(_OF_A_STRANGER, most // 2))

    async def _converse(self, link: Connection, who: str) -> None:
        network.tune(link.socket)
        network.bind_to(link.socket, self._config().vpn_interface)
        # Who comes in elsewhere is a peer.
        if self._takes_registrations():
            link.limit_headers(protocol.MAX_GREETING)
        await self._greet(link)
        registered, genuine = "", False
        self._links[link] = asyncio.current_task()
        try:
            while True:
                if link.unread:
                    # Who sends many requests at once must not keep all others waiting for the last of them.
                    await asyncio.sleep(0)
                if self._knows(who):
                    link.limit_headers(protocol.MAX_HEADER)
                async with asyncio.timeout(None if registered else _IDLE_LIMIT if genuine else _STRANGER_LIMIT):
                    frame = await link.receive()
                if frame is None:
                    return
                if frame.type == "registerPeer":
                    try:
                        registered = await self._register(link, who, frame)
                        await link.drain()
                    except PeerdError as error:
                        await link.send("error", error.to_wire())
                    continue
                if refusal := await self._stranger(who, genuine):
                    self._drop(link, who, refusal)
                    return
                genuine = True
                if frame.type == "heartbeat" and registered and self._node.hub:
                    self._node.hub.heard(link, registered)
                    await link.drain()
                else:
                    await self._answer(link, lambda frame: self._handle(link, who, frame), frame)
        finally:
            del self._links[link]
            if registered and self._node.hub:
                self._node.hub.left(link, registered)

    def _dismiss(self, peer: Peer) -> None:
        """End the connections of who is no peer any more: what it asked for before would go on over them."""
        for link, task in list(self._links.items()):
            # One is closed already, with a word why; who asked for this over another is to have its answer.
            if link.address == peer.ip_address and link.usable and task is not asyncio.current_task():
                link.abort()

    def _refusal(self, link: Connection, who: str) -> str:
        if not network.came_through(link.socket, self._config().vpn_interface):
            return "not through the VPN"
        if network.is_own_address(who):
            return "from this machine itself"
        return "" if link.port < network.RESERVED_BELOW else "from a port that any user can have"

    def _takes_registrations(self) -> bool:
        return self._node.hub is not None and self._config().registration is not Mode.CLOSED

    async def _stranger(self, who: str, genuine: bool = False) -> str:
        """Why an address has nothing to say here, or "".

        :param genuine: whether the key behind it was looked at before
        """
        try:
            peer = await self._node.identify(who)
        except PeerdError:
            return "not a registered peer"
        if self._node.hub and not genuine and not await self._node.hub.genuine(peer):
            return "its WireGuard key is not the one that it registered with"
        return ""

    def _drop(self, link: Connection, who: str, refusal: str) -> None:
        if refusals.connections.refused(who):
            log(Event.CONNECTION_REFUSED, f"Connection from {who} refused: {refusal}", address=who)
        link.abort()

    async def _register(self, link: Connection, address: str, frame: Frame) -> str:
        if self._node.hub is None:
            raise PeerdError(Code.NOT_LEADER, address=self._node.address or self._node.peer_id)
        digest = take_optional(frame.fields, "digest", _digest)
        return (await self._node.hub.register(link, address, Registration.from_wire(frame.fields), digest)).peer_id

    async def _handle(self, link: Connection, address: str, frame: Frame) -> None:
        peer = await self._node.identify(address)
        match frame.type:
            case "execRequest":
                await self._execute(link, peer, ExecRequest.from_wire(frame.fields))
            case "attachJob":
                await self._attach(link, peer, frame.fields)
            case "getJob" | "waitJob" | "cancelJob":
                await self._job(link, peer, frame.type, frame.fields)
            case "listJobs":
                await jobs.tell(link, await self._jobs_for(peer))
            case "appRequest":
                await self._serve_app(link, peer, AppRequest.from_wire(frame.fields))
            case "getLog":
                await self._send_log(link, peer, Query.from_wire(frame.fields))
            case "getPeerInfo":
                await link.send("reply", self._find(frame.fields).to_wire())
            case "listPeers" if self._node.hub:
                self._node.hub.tell_all(link)
                await link.drain()
            case "deletePeer" | "approvePeer" | "rejectPeer" if self._node.hub:
                await self._change_registry(RegistryAction(frame.type), peer, frame.fields)
                await link.send("reply")
            case _:
                raise PeerdError(Code.UNKNOWN_MESSAGE, name=frame.type)

    async def _change_registry(self, action: RegistryAction, peer: Peer, fields: Mapping[str, object]) -> None:
        wanted = take(fields, "peer", validate.peer_id)
        address = take_optional(fields, "address", validate.address)
        guard.consent(self._config().policy, action, wanted, peer.peer_id)
        await self._node.change_registry(action, wanted, address, peer.peer_id)

    async def _send_log(self, link: Connection, peer: Peer, query: Query) -> None:
        if not self._config().policy.accept:
            # It may read none of them.
            await link.send("reply")
            return
        # Who follows may pause for long, and nothing needs to know at once that it is gone.
        with network.pausable(link.socket):
            async with (
                Conversation(link) as talk,
                contextlib.aclosing(self._reader.read(query, (talk.cancel, talk.gone), peer.peer_id)) as batches,
            ):
                async for batch in batches:
                    # The policy of now: it may have been reloaded since.
                    rules = self._config().policy
                    told = [
                        record
                        for record in batch.records
                        if policy.decide_record(
                            rules, peer.peer_id, str(record.get("event")), str(record.get("caller", ""))
                        ).allowed
                    ]
                    await link.send("records", {"records": told, "cursor": batch.cursor})
        await link.send("reply")

    def _find(self, fields: Mapping[str, object]) -> Peer:
        if self._node.hub:
            self._node.hub.see_self()
        if "address" in fields:
            wanted = take(fields, "address", validate.address)
            found = self._node.book.by_address(wanted)
        else:
            wanted = take(fields, "peer", validate.peer_id)
            found = self._node.book.by_id(wanted)
        if found is None:
            # What it may be a slip of is found by who asks: that takes long.
            raise PeerdError(Code.PEER_NOT_FOUND, peer=wanted, suggestion="")
        return found

    async def _execute(self, link: Connection, peer: Peer, request: ExecRequest) -> None:
        caller = Caller(peer.peer_id)
        try:
            if request.detach:
                result = await self._executor.detach(request, caller)
                if result.error is None:
                    await link.send("started")
                    return
                raise result.error
            await self._executor.launch(request, caller)
        except PeerdError as error:
            await link.send("result", ExecResult.failure(error).to_wire())
            return
        await self._attend(link, caller, request.exec_id, dict.fromkeys(messages.STREAMS, 0))

    async def _attach(self, link: Connection, peer: Peer, fields: Mapping[str, object]) -> None:
        exec_id = self._allowed(peer, fields)
        job = self._executor.job(exec_id)
        if not job.detached and job.caller != peer.peer_id:
            raise PeerdError(Code.NOT_DETACHED, exec_id=exec_id)
        guard.note_access("attachJob", exec_id, job.caller, peer.peer_id, peer.peer_id)
        await self._attend(link, Caller(peer.peer_id), exec_id, messages.take_offsets(fields))

    async def _attend(self, link: Connection, caller: Caller, exec_id: str, offsets: Offsets) -> None:
        async with Conversation(link) as talk:
            session = Session(caller, talk.sink(), talk.cancel, talk.gone, stdin=talk.stdin, delivery=talk.delivery)
            result = await self._executor.attend(exec_id, session, offsets)
            if result is None:
                raise ConnectionError("the caller has heard enough")
            if link.resumable:
                await link.send("result", result.to_wire())
                if not await talk.heard():
                    raise ConnectionError("the caller is gone")
        if not link.resumable:
            await link.send("result", result.to_wire())
        self._executor.delivered(exec_id)

    def _allowed(self, peer: Peer, fields: Mapping[str, object]) -> str:
        """The id of the command that a message is about, if that is its sender's to deal with."""
        exec_id = take(fields, "execId", validate.exec_id)
        guard.attend(self._config().policy, self._executor.job(exec_id), peer.peer_id, self._node.peer_id)
        return exec_id

    async def _jobs_for(self, peer: Peer) -> list[Job]:
        """The jobs that a peer may see."""
        rules = self._config().policy
        if not rules.accept:
            return []
        # However many ask, what there is to do for one must not hold up all else for longer.
        async with self._listing:
            every = self._executor.jobs(jobs.MAX_JOBS)
            await asyncio.sleep(0)
        return [job for job in every if policy.decide_job(rules, peer.peer_id, job.caller).allowed]

    async def _job(self, link: Connection, peer: Peer, type_: str, fields: Mapping[str, object]) -> None:
        exec_id = self._allowed(peer, fields)
        if type_ == "cancelJob":
            guard.note_access(type_, exec_id, self._executor.job(exec_id).caller, peer.peer_id, peer.peer_id)
        async with Conversation(link) as talk:
            job = await _while_there(talk, jobs.answer(self._executor, type_, exec_id))
        # Only now: what comes after the answer is the next request, and not said during this one.
        await link.send("reply", {"job": job.to_wire()})

    async def _serve_app(self, link: Connection, peer: Peer, request: AppRequest) -> None:
        guard.entrust(self._config().policy, request, peer.peer_id, self._node.peer_id)
        notes: list[str] = []
        async with Conversation(link) as talk:
            answer = await _while_there(talk, self._apps.do(request, Caller(peer.peer_id), notes.append))
        await link.send("reply", answer_to_wire(answer, notes))


def _digest(value: object) -> str:
    return validate.string(value, "digest", messages.MAX_TEXT)


async def _while_there(talk: Conversation, work: Coroutine[Any, Any, T]) -> T:
    """The result of this work, unless the caller goes before."""
    result = await unless((talk.gone,), work)
    if result is None:
        raise ConnectionError("the caller is gone")
    return result
