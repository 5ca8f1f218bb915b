"""What each command does. The unix socket, TCP and D-Bus are thin fronts of this; nothing here knows of a socket."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerd import __version__, network, remote, validate
from peerd.commands import BY_NAME, COMMANDS, snake_case
from peerd.config import Config
from peerd.errors import Code, PeerdError
from peerd.executor import Executor
from peerd.journal import Event, log
from peerd.messages import Action, ExecRequest, ExecResult
from peerd.node import LEADER, WORKER, Node
from peerd.peers import Peer
from peerd.registry import Identity, Registry
from peerd.render import moment, record
from peerd.run import describe
from peerd.session import Session

_USEC = 1_000_000


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    :ivar data: for a command that shows data: what it shows
    :ivar text: for the others: a sentence, or ""
    :ivar error: what went wrong, or what to know beside the data
    :ivar status: the exit status of ``d``
    :ivar record: all that is known of the command that it ran, but for its output
    """

    data: Any = None
    text: str = ""
    error: PeerdError | None = None
    status: int = 0
    record: Mapping[str, object] | None = None


class Service:
    """The commands. A method ``do_<name in snake case>`` takes the session and the parsed parameters."""

    def __init__(self, node: Node, executor: Executor, registry: Registry, config: Callable[[], Config]) -> None:
        self._node = node
        self._executor = executor
        self._registry = registry
        self._config = config

    async def call(self, name: str, params: Mapping[str, Any], session: Session) -> Answer:
        """Do a command.

        :param params: its options by name, as the table's parsers returned them; those not given are absent
        :raises PeerdError: what went wrong
        """
        answer: Answer = await getattr(self, f"do_{snake_case(BY_NAME[name].name)}")(session, **params)
        return answer

    async def do_exec_on_peer(
        self,
        session: Session,
        peer: str,
        directory: str,
        shell_cmd: str = "",
        timeout: float | None = None,
        stdin: bool = False,
        env: Sequence[tuple[str, str]] = (),
        user: str = "",
        login: bool = False,
        memory: int | None = None,
        cpu: float | None = None,
        tasks: int | None = None,
        argv: Sequence[str] = (),
    ) -> Answer:
        """Run a shell command, or a program with its arguments, on a peer."""
        if bool(shell_cmd) == bool(argv):
            raise PeerdError(Code.USAGE, reason="Either --shellCmd or a program after -- is needed, and not both")
        try:
            program = validate.arguments(argv) if argv else ()
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"The program and its arguments: {error}") from None
        request = ExecRequest(
            new_exec_id(),
            directory,
            shell_cmd,
            program,
            timeout=timeout,
            env=dict(env),
            user=user,
            login=login,
            stdin=stdin,
            memory=memory,
            cpu=cpu,
            tasks=tasks,
        )
        return _answer(peer, request, await self.execute(peer, request, session))

    async def do_remote_pull(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's pull-command."""
        return await self._act(session, peer, Action.PULL, timeout)

    async def do_remote_bd(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Run the peer's build-command."""
        return await self._act(session, peer, Action.BUILD, timeout)

    async def do_remote_deploy_daemon(self, session: Session, peer: str, timeout: float | None = None) -> Answer:
        """Pull, then build; stop at the first failure and say at which step."""
        for step, action in enumerate(Action, 1):
            session.say(f"{action} on {peer} (step {step} of {len(Action)})")
            answer = await self._act(session, peer, action, timeout)
            if answer.status:
                skipped = ", build not started" if action is Action.PULL else ""
                session.say(f"Deploy on {peer} failed: {action} ended with exit status {answer.status}{skipped}")
                return answer
        session.say(f"Deployed on {peer}")
        return Answer()

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
        return await self._become(Identity(role, id or now.peer_id or _own_id(), address), "Peer config saved. ")

    async def do_register_worker(self, session: Session, leader: str | None = None) -> Answer:
        """Join a leader under the host name; again, after a change or a deletion."""
        now = self._node.identity
        address = leader or now.leader_address or self._config().leader_address
        kept = now.peer_id if now.role == WORKER else ""
        return await self._become(Identity(WORKER, kept or _own_id(), address), "")

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
            data["leader_error"] = node.link.error.sentence if node.link.error else None
        return Answer(data)

    async def do_list_peers(self, session: Session) -> Answer:
        """All registered peers."""
        book, error = await self._node.peers()
        return Answer([self._show(peer) for peer in book.all()], error=error)

    async def do_get_peer_info(self, session: Session, peer: str) -> Answer:
        """One registered peer."""
        if self._node.link is None or not self._node.link.connected:
            return Answer(self._show(await self._node.resolve(peer)))
        book, error = await self._node.peers()
        found = book.by_id(peer)
        if not found:
            raise PeerdError(Code.PEER_NOT_FOUND, peer=peer)
        return Answer(self._show(found), error=error)

    async def do_delete_peer(self, session: Session, peer: str) -> Answer:
        """Delete a peer from the registry."""
        await self._node.delete(peer, str(session.caller))
        return Answer(text=f"Deleted peer: {peer}")

    async def do_db_sanity_check(self, session: Session) -> Answer:
        """Delete what a worker's database should not hold: registry entries."""
        role = self._node.identity.role
        stray = [] if role == LEADER else [peer.peer_id for peer in self._registry.peers()]
        actions = []
        if stray:
            deleted = self._registry.forget(stray)
            actions.append(
                {
                    "issue": "Worker has peer_registry data (leader-only table)",
                    "peer_count": len(stray),
                    "peer_ids": stray,
                    "action_taken": f"Deleted {deleted} peer records",
                }
            )
            log(Event.PEER_DELETED, f"dbSanityCheck deleted {deleted} stale entries", caller=str(session.caller))
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
        try:
            async with (
                self._node.pool.borrow(target.ip_address) as link,
                asyncio.timeout(self._config().connect_timeout),
            ):
                began = time.monotonic()
                await link.send("ping")
                await link.expect("pong")
                took = time.monotonic() - began
                return Answer(text=f"pong from {peer} ({target.ip_address}) in {took * 1000:.1f} ms")
        except OSError as error:
            raise remote.connect_failed(target, error) from None

    async def do_version(self, session: Session) -> Answer:
        """The version of this daemon."""
        return Answer(text=__version__)

    async def do_list_commands(self, session: Session) -> Answer:
        """The table of commands."""
        return Answer([{"command": command.name, "summary": command.summary} for command in COMMANDS])

    async def execute(self, peer_id: str, request: ExecRequest, session: Session) -> ExecResult:
        """Run a command on a peer, which may be this machine; every failure is a result too."""
        fields = describe(request, peer_id, str(session.caller))
        log(Event.COMMAND_ASKED, f"{request.exec_id} asked of {peer_id} by {session.caller}", **fields)
        began = time.monotonic()
        try:
            if peer_id == self._node.peer_id:
                result = await self._executor.run(request, session.caller, session.sink, session.cancel, session.stdin)
            else:
                result = await remote.execute(self._node.pool, await self._node.resolve(peer_id), request, session)
        except PeerdError as error:
            result = ExecResult.failure(error, round((time.monotonic() - began) * 1_000_000))
        if result.left_behind:
            count = f"{result.left_behind} background process{'es' if result.left_behind > 1 else ''}"
            session.say(f"Stopped {count} that the command left running on {peer_id}")
        log(
            Event.COMMAND_ANSWERED,
            f"{request.exec_id} asked of {peer_id} ended: {result.outcome}, exit status {result.exit_status}",
            **fields,
            outcome=result.outcome,
            exit_status=result.exit_status,
            duration_usec=result.duration_usec,
        )
        return result

    async def _act(self, session: Session, peer: str, action: Action, timeout: float | None) -> Answer:
        request = ExecRequest(new_exec_id(), action=action, timeout=timeout)
        return _answer(peer, request, await self.execute(peer, request, session))

    async def _become(self, identity: Identity, prefix: str) -> Answer:
        error = await self._node.become(identity)
        what = f"{prefix}Role: leader, ID: {identity.peer_id}"
        if identity.role == WORKER:
            where = f"connected to leader at {identity.leader_address}"
            if error:
                where = f"not connected to leader at {identity.leader_address} yet (peerd keeps trying)"
            what = f"{prefix}Registered as worker '{identity.peer_id}', {where}"
        return Answer(text=what, error=error, status=error.kind.exit_status if error else 0)

    def _show(self, peer: Peer) -> dict[str, object]:
        last_seen = time.time() if peer.peer_id == self._node.peer_id else peer.last_seen
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
        }


def _own_id() -> str:
    try:
        return validate.peer_id(network.hostname())
    except ValueError as error:
        raise PeerdError(Code.USAGE, reason=f"The host name is {error}; use --id") from None


def new_exec_id() -> str:
    """A fresh id for a command: 64 random bits, so that no two callers need to agree."""
    return secrets.token_hex(8)


def _answer(peer: str, request: ExecRequest, result: ExecResult) -> Answer:
    return Answer(error=result.error, status=result.exit_status, record=record(peer, request, result))
