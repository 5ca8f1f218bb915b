"""Commands on other peers and what a node says of itself, against peers that do what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from peerd import __version__, connection, membership, network, turns
from peerd.answer import Answer, Batch
from peerd.apphost import AppHost
from peerd.backoff import Backoff
from peerd.connection import Connection
from peerd.errors import Code, Outcome, PeerdError
from peerd.history import History
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult
from peerd.node import Node
from peerd.peers import Peer, State
from peerd.policy import Policy, Rule
from peerd.registry import Identity, Registry
from peerd.service import Service
from peerd.session import Caller, Delivery, Session, Sink
from peerd.spool import Data
from peerd.stdin import Stdin
from peerd.units import Units
from unit.fake_systemd import FakeSystemd
from unit.support import FakeExecutor, FakePeers, Heard, Journal, Script, Wire, settings

LEADER = Identity("leader", "vps", "")
WORKER = Identity("worker", "desktop", "127.0.0.1")
LAPTOP = Peer("laptop", "127.0.0.4", is_online=True)
EXEC = {"peer": "laptop", "directory": "/tmp", "shell_cmd": "make"}


async def succeed(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
    return ExecResult(Outcome.EXITED, 0)


@pytest.fixture(autouse=True)
def _others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback's addresses are other machines'."""
    monkeypatch.setattr(network, "is_own_address", lambda address: False)


@dataclass
class Here:
    """This machine, and the others."""

    service: Service
    node: Node
    peers: FakePeers
    executor: FakeExecutor
    registry: Registry

    def __post_init__(self) -> None:
        self.heard = Heard()
        self.cancel = asyncio.Event()
        self.said: list[str] = []
        self.granted: list[int] = []

    def call(self, name: str, **params: Any) -> asyncio.Task[Answer]:
        """Start a command."""
        session = Session(
            Caller("vps", "ann"),
            self.heard,
            self.cancel,
            asyncio.Event(),
            self.said.append,
            Stdin(lambda start, until, taken: self.granted.append(until)),
            Delivery(),
        )
        return asyncio.create_task(self.service.call(name, params, session))

    async def target(self) -> Wire:
        """The next connection that the target gets."""
        return await self.peers.links.get()


@asynccontextmanager
async def machine(
    identity: Identity = LEADER, script: Script = succeed, *known: Peer, **changes: Any
) -> AsyncIterator[Here]:
    """A machine at 127.0.0.1 that knows the peer laptop."""
    registry = Registry(":memory:")
    registry.set_identity(identity)
    registry.store(known or [LAPTOP])
    async with FakePeers().serving() as peers:
        config = settings(vpn_interface="lo", port=peers.port, **changes)
        node = Node(registry, lambda: config, lambda: None)
        node.start()
        executor = FakeExecutor(script)
        past = History(":memory:")
        try:
            apps = AppHost(registry, Units(FakeSystemd()), lambda: node.peer_id)
            service = Service(node, executor, registry, past, apps, lambda: config)
            yield Here(service, node, peers, executor, registry)
        finally:
            await node.close()
            past.close()
            registry.close()


def code(answer: Answer) -> Code:
    assert answer.error is not None
    return answer.error.code


def succeeded(answer: Answer, status: int = 0) -> bool:
    """Whether the command ran to its end, with this exit status."""
    return (answer.error, answer.status) == (None, status)


RESULT: dict[str, object] = {"outcome": "exited", "exitStatus": 3}


def test_a_command_on_a_peer_streams_and_ends_with_its_own_status(records: Journal) -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC, timeout=5.0)
            wire = await here.target()
            asked = ExecRequest.from_wire((await wire.link.expect("execRequest")).fields)
            assert (asked.directory, asked.shell_cmd, asked.timeout) == ("/tmp", "make", 5.0)
            wire.link.post("started")
            wire.link.post("output", {"stream": "stdout"}, b"\0\xff")
            wire.link.post("output", {"stream": "stderr"}, b"err")
            wire.link.post("result", RESULT)
            assert succeeded(await running, 3)
            assert (await wire.next()).type == "done"
            assert here.heard.streams == {"stdout": b"\0\xff", "stderr": b"err"}
            assert here.heard.begun.is_set()
            (record,) = records.of(Event.COMMAND_ANSWERED)
            assert [record.text(name) for name in ("exec_id", "peer", "caller", "outcome", "exit_status")] == [
                *(asked.exec_id, "laptop", "ann@vps", "exited", "3")
            ]

    asyncio.run(main())


def test_the_next_command_uses_the_same_connection() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            for _ in range(2):
                await wire.expect("execRequest")
                wire.link.post("result", RESULT)
                assert (await running).status == 3
                running = here.call("execOnPeer", **EXEC)
            await wire.expect("execRequest")
            wire.link.post("result", RESULT)
            await running
            assert here.peers.accepted == 1

    asyncio.run(main())


def test_a_command_on_this_machine_asks_nobody() -> None:
    async def main() -> None:
        async with machine() as here:
            assert succeeded(await here.call("execOnPeer", **{**EXEC, "peer": "vps"}))
            assert len(here.executor.requests) == 1
            assert here.peers.accepted == 0

    asyncio.run(main())


def test_what_is_asked_of_this_machine_is_recorded_before_it_is_begun_or_refused(records: Journal) -> None:
    async def refuse(request: ExecRequest, caller: Caller, sink: Sink, cancel: asyncio.Event) -> ExecResult:
        assert len(records.of(Event.COMMAND_ASKED)) == 1
        raise PeerdError(Code.BUSY, reason="why")

    async def main() -> None:
        async with machine(LEADER, refuse) as here:
            assert code(await here.call("execOnPeer", **{**EXEC, "peer": "vps"})) is Code.BUSY
            assert len(records.of(Event.COMMAND_ASKED)) == 1

    asyncio.run(main())


@pytest.mark.parametrize("code_", [Code.NO_SUCH_DIRECTORY, Code.TIMEOUT, Code.BUSY, Code.START_FAILED])
def test_an_error_names_the_peer_as_it_is_known_here(code_: Code) -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            await wire.expect("execRequest")
            error = PeerdError(code_, peer="liar", directory="/tmp", seconds="30", reason="why")
            wire.link.post("result", ExecResult.failure(error).to_wire())
            answer = await running
            assert code(answer) is code_
            assert "liar" not in str(answer.error)
            assert answer.status == error.kind.exit_status

    asyncio.run(main())


def test_a_peer_that_denies_is_believed() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            await wire.expect("execRequest")
            wire.link.post("error", PeerdError(Code.UNKNOWN_PEER, address="127.0.0.1", peer="laptop").to_wire())
            answer = await running
            assert (code(answer), answer.status) == (Code.UNKNOWN_PEER, 255)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["garbage", "nonsense"])
def test_a_command_whose_target_does_not_keep_to_the_protocol_is_lost(records: Journal, how: str) -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            asked = await wire.expect("execRequest")
            wire.link.post("output", {"stream": "stdout"}, b"so far")
            if how == "garbage":
                wire.link.post_encoded(b"garbage\n")
            else:
                wire.link.post("result", {"outcome": "fine", "exitStatus": 0})
            answer = await running
            assert (code(answer), answer.status) == (Code.LOST, 255)
            assert "laptop" in str(answer.error)
            assert str(asked.fields["execId"]) in (answer.error.text if answer.error else "")
            assert here.heard.streams["stdout"] == b"so far"
            assert here.peers.accepted == 1
            await turns.let_pass(turns.ANSWER + 1)
            (record,) = records.of(Event.COMMAND_ANSWERED)
            assert record.text("outcome") == "lost"

    asyncio.run(main())


@pytest.mark.parametrize("how", ["end", "half", "reset"])
def test_a_command_whose_connection_breaks_is_got_back_to_and_not_run_again(how: str) -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            asked = await wire.expect("execRequest")
            wire.link.post("output", {"stream": "stdout"}, b"so far")
            await here.heard.spoke.wait()
            if how == "reset":
                wire.reset()
            else:
                wire.link.post_encoded(b'{"type":"result","outc' if how == "half" else b"")
                wire.link.close()
            wire = await here.target()
            again = await wire.expect("attachJob")
            assert again.fields == {"execId": asked.fields["execId"], "stdout": 6, "stderr": 0}
            wire.link.post("output", {"stream": "stdout"}, b", and more")
            wire.link.post("result", RESULT)
            assert succeeded(await running, 3)
            assert here.heard.streams["stdout"] == b"so far, and more"
            assert here.said == []

    asyncio.run(main())


def test_a_peer_that_cannot_be_reached_is_named_with_its_address() -> None:
    async def main() -> None:
        async with FakePeers().serving() as gone:
            pass
        async with machine() as here:
            here.node.pool._connect = gone.connect
            answer = await here.call("execOnPeer", **EXEC)
            assert (str(answer.error), answer.status) == ("Failed to connect to peer: laptop (127.0.0.4)", 255)
            assert answer.error is not None
            assert "Connection refused" in answer.error.text

    asyncio.run(main())


def test_a_peer_that_is_not_known_is_not_found() -> None:
    async def main() -> None:
        async with machine() as here:
            answer = await here.call("execOnPeer", **{**EXEC, "peer": "phone"})
            assert (str(answer.error), answer.status) == ("Peer not found: phone", 255)

    asyncio.run(main())


def test_a_machine_without_a_role_says_so_and_knows_nobody() -> None:
    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            assert code(await here.call("execOnPeer", **EXEC)) is Code.NO_ROLE
            with pytest.raises(PeerdError, match="This machine has no role yet"):
                await here.call("getPeerInfo", peer="laptop")

    asyncio.run(main())


def test_cancel_is_passed_on_and_its_end_awaited() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            await wire.expect("execRequest")
            here.cancel.set()
            await wire.expect("cancel")
            assert not running.done()
            wire.link.post("output", {"stream": "stdout"}, b"dropped")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.CANCELLED, peer="laptop")).to_wire())
            answer = await running
            assert (code(answer), answer.status) == (Code.CANCELLED, 130)
            assert here.heard.streams["stdout"] == b""

    asyncio.run(main())


def test_a_caller_that_is_gone_stops_the_command() -> None:
    class Gone(Heard):
        async def output(self, stream: str, data: Data) -> None:
            raise ConnectionResetError

    async def main() -> None:
        async with machine() as here:
            here.heard = Gone()
            running = here.call("execOnPeer", **EXEC)
            wire = await here.target()
            await wire.expect("execRequest")
            wire.link.post("output", {"stream": "stdout"}, b"x")
            await wire.expect("cancel")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.CANCELLED, peer="laptop")).to_wire())
            assert (await running).status == 130

    asyncio.run(main())


@pytest.mark.parametrize(("name", "action"), [("remotePull", "pull"), ("remoteBd", "build")])
def test_an_action_is_asked_for_by_its_name(name: str, action: str) -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call(name, peer="laptop")
            wire = await here.target()
            fields = (await wire.expect("execRequest")).fields
            assert (fields["action"], fields.get("timeout")) == (action, None)
            assert "shellCmd" not in fields
            wire.link.post("result", {"outcome": "exited", "exitStatus": 0})
            assert succeeded(await running)

    asyncio.run(main())


def test_a_deploy_pulls_and_builds_and_says_so() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("remoteDeployDaemon", peer="laptop")
            wire = await here.target()
            assert (await wire.expect("execRequest")).fields["action"] == "pull"
            wire.link.post("result", {"outcome": "exited", "exitStatus": 0})
            request = (await wire.expect("execRequest")).fields
            assert (request["action"], request["detach"]) == ("deploy", True)
            wire.link.post("started")
            assert (await wire.expect("attachJob")).fields["execId"] == request["execId"]
            wire.link.post("output", {"stream": "stdout"}, b"built\n")
            wire.link.post("result", {"outcome": "exited", "exitStatus": 0})
            assert (await running).status == 0
            assert here.heard.streams["stdout"] == b"built\n"
            assert here.said[-1] == "Deployed on laptop"

    asyncio.run(main())


def test_a_deploy_stops_at_the_first_failure() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("remoteDeployDaemon", peer="laptop")
            wire = await here.target()
            await wire.expect("execRequest")
            wire.link.post("result", RESULT)
            assert (await running).status == 3
            assert "build not started" in here.said[-1]

    asyncio.run(main())


def test_a_deploy_that_was_cut_off_is_not_called_a_failure() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call("remoteDeployDaemon", peer="laptop")
            wire = await here.target()
            await wire.expect("execRequest")
            wire.link.post("result", {"outcome": "exited", "exitStatus": 0})
            await wire.expect("execRequest")
            wire.link.post("started")
            await wire.expect("attachJob")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.CUT_OFF, peer="laptop")).to_wire())
            assert (await running).status == 255
            assert (
                here.said[-1] == "A deploy that was cut off by a stop of peerd goes on: journalctl -t peerd, on laptop"
            )

    asyncio.run(main())


def test_ping_goes_to_a_peer_and_back() -> None:
    async def main() -> None:
        async with machine() as here:
            assert (await here.call("ping")).text == "pong"
            assert (await here.call("ping", peer="vps")).text == "pong"
            pinging = here.call("ping", peer="laptop")
            wire = await here.target()
            await wire.link.expect("ping")
            wire.link.post("pong")
            assert (await pinging).text.startswith("pong from laptop (127.0.0.4) in ")

    asyncio.run(main())


def test_ping_of_a_peer_that_is_silent_fails_to_connect() -> None:
    async def main() -> None:
        async with machine(connect_timeout=0.2) as here:
            with pytest.raises(PeerdError, match="Failed to connect to peer: laptop"):
                await here.call("ping", peer="laptop")

    asyncio.run(main())


async def admit(here: Here, *known: Peer) -> Wire:
    """Play the leader to a worker that registers."""
    wire = await here.target()
    await wire.link.expect("registerPeer")
    wire.link.post("registered", {"peer_id": "desktop"})
    wire.link.post("reply", {"count": len(known)})
    wire.link.post("peers", {"peers": [peer.to_wire() for peer in known]})
    assert here.node.link is not None
    assert await here.node.link.outcome(5) is None
    return wire


def test_a_worker_asks_the_leader_about_a_peer_that_it_does_not_know() -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            await admit(here, Peer("vps", "127.0.0.1"))
            running = here.call("execOnPeer", **EXEC)
            leader = await here.target()
            assert (await leader.link.expect("getPeerInfo")).fields == {"peer": "laptop"}
            leader.link.post("reply", LAPTOP.to_wire())
            target = await here.target()
            await target.link.expect("execRequest")
            target.link.post("result", RESULT)
            assert (await running).status == 3

    asyncio.run(main())


def test_what_is_asked_for_as_peerd_starts_waits_for_the_leader() -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            asking = [
                here.call("execOnPeer", **EXEC),
                here.call("listPeers"),
                here.call("getPeerIdByIp", ip="127.0.0.4"),
            ]
            await admit(here, Peer("vps", "127.0.0.1"))
            for _ in asking:
                wire = await here.target()
                frame = await wire.next()
                if frame.type == "getPeerInfo":
                    wire.link.post("reply", LAPTOP.to_wire())
                else:
                    assert frame.type == "listPeers"
                    wire.link.post("reply", {"count": 1})
                    wire.link.post("peers", {"peers": [LAPTOP.to_wire()]})
            target = await here.target()
            await target.link.expect("execRequest")
            target.link.post("result", RESULT)
            assert [answer.status for answer in await asyncio.gather(*asking)] == [3, 0, 0]

    asyncio.run(main())


def test_who_waits_for_a_leader_that_does_not_answer_waits_no_longer_than_for_a_peer() -> None:
    async def main() -> None:
        async with machine(WORKER, connect_timeout=0.2) as here, asyncio.timeout(2):
            assert code(await here.call("execOnPeer", **EXEC)) is Code.NOT_CONNECTED
            with pytest.raises(PeerdError, match="Not connected to leader"):
                await here.call("listPeers")

    asyncio.run(main())


def test_an_address_has_the_id_that_the_registry_gives_it() -> None:
    async def main() -> None:
        async with machine() as here:
            assert (await here.call("getPeerIdByIp", ip=LAPTOP.ip_address)).text == "laptop"
            with pytest.raises(PeerdError) as caught:
                await here.call("getPeerIdByIp", ip="127.0.0.77")
            assert (caught.value.code, caught.value.details["peer"]) == (Code.PEER_NOT_FOUND, "127.0.0.77")
        async with machine(WORKER) as here:
            await admit(here)
            asking = here.call("getPeerIdByIp", ip=LAPTOP.ip_address)
            wire = await here.target()
            assert (await wire.link.expect("getPeerInfo")).fields["address"] == LAPTOP.ip_address
            wire.link.post("reply", LAPTOP.to_wire())
            assert (await asking).text == "laptop"

    asyncio.run(main())


def test_a_worker_without_its_leader_reaches_the_peers_that_it_knows() -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            wire = await admit(here, Peer("vps", "127.0.0.1"), LAPTOP)
            wire.link.close()
            running = here.call("execOnPeer", **EXEC)
            # The link to the leader comes back as well; who runs commands is the target.
            target = await here.target()
            while (await target.next()).type != "execRequest":
                target = await here.target()
            target.link.post("result", RESULT)
            assert (await running).status == 3

    asyncio.run(main())


async def follow(here: Here) -> tuple[Wire, asyncio.Task[Batch]]:
    """Follow laptop's log: its end of that, and what comes next."""
    more = (await here.call("log", peer="laptop", follow=True)).more
    assert more
    batch = asyncio.create_task(anext(more))
    wire = await here.target()
    await wire.expect("getLog")
    wire.link.post("records", {"records": [], "cursor": "s=1f"})
    assert await batch == Batch([], "s=1f")
    return wire, asyncio.create_task(anext(more))


@pytest.mark.parametrize("how", ["deleted", "rejected"])
def test_the_log_of_who_is_out_is_followed_no_more(how: str) -> None:
    async def main() -> None:
        async with machine() as here:
            wire, following = await follow(here)
            assert here.node.hub
            (here.node.hub.delete if how == "deleted" else here.node.hub.reject)("laptop", None, "ann@vps")
            with pytest.raises(PeerdError, match="Peer not found: laptop"):
                await following
            assert await wire.link.receive() is None

    asyncio.run(main())


@pytest.mark.parametrize("told", ["at once", "later"])
def test_the_log_of_an_id_is_followed_to_where_it_is(told: str) -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            moved = replace(LAPTOP, ip_address="127.0.0.5")
            leader = await admit(here, LAPTOP if told == "at once" else Peer("vps", "127.0.0.1"))
            if told == "later":
                following = asyncio.create_task(follow(here))
                asked = await here.target()
                await asked.expect("getPeerInfo")
                asked.link.post("reply", LAPTOP.to_wire())
                before, batch = await following
                leader.link.post("peers", {"peers": [LAPTOP.to_wire()]})
            else:
                before, batch = await follow(here)
            leader.link.post("presence", {"online": [], "offline": ["laptop"]})
            leader.link.post("peers", {"peers": [moved.to_wire()]})
            after = await here.target()
            assert after.link.socket.getsockname()[0] == moved.ip_address
            assert (await after.expect("getLog")).fields["after"] == "s=1f"
            assert await before.link.receive() is None
            after.link.post("reply")
            with pytest.raises(StopAsyncIteration):
                await batch

    asyncio.run(main())


def test_a_worker_that_never_reached_its_leader_says_so() -> None:
    async def main() -> None:
        async with machine(Identity("worker", "desktop", "192.0.2.1"), connect_timeout=0.05) as here:
            answer = await here.call("execOnPeer", **EXEC)
            assert (str(answer.error), answer.status) == ("Not connected to leader", 255)
            with pytest.raises(PeerdError, match="Not connected to leader"):
                await here.call("listPeers")

    asyncio.run(main())


def test_a_worker_says_why_it_is_not_connected() -> None:
    async def main() -> None:
        async with machine(Identity("worker", "desktop", "192.0.2.1"), connect_timeout=0.05) as here:
            assert here.node.link is not None
            error = await here.node.link.outcome(5)
            assert error is not None
            data = (await here.call("getPeerStatus")).data
            assert data["leader_error"] == f"Not connected to leader{error.details['reason']}"
            assert data["leader_error"].endswith(")")

    asyncio.run(main())


def test_a_worker_lists_the_peers_as_the_leader_knows_them_now() -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            await admit(here, Peer("vps", "127.0.0.1"))
            listing = here.call("listPeers")
            leader = await here.target()
            await leader.link.expect("listPeers")
            leader.link.post("reply", {"count": 1})
            leader.link.post("peers", {"peers": [LAPTOP.to_wire()]})
            answer = await listing
            assert [peer["peer_id"] for peer in answer.data] == ["laptop"]
            assert (answer.error, answer.status) == (None, 0)

    asyncio.run(main())


def test_what_a_machine_says_of_itself_follows_from_its_role() -> None:
    async def main() -> None:
        async with machine() as here:
            data = (await here.call("getPeerStatus")).data
            assert (data["role"], data["peer_id"], data["leader_address"]) == ("leader", "vps", "127.0.0.1")
            assert (data["is_leader"], data["connected_to_leader"], data["connected_workers"]) == (True, False, 0)
            assert data["daemon_version"] == __version__
        async with machine(Identity("", "", "")) as here:
            data = (await here.call("getPeerStatus")).data
            assert (data["role"], data["leader_address"], data["is_leader"]) == (None, None, False)
            assert "connected_workers" not in data

    asyncio.run(main())


def test_the_sanity_check_deletes_what_a_worker_should_not_have(records: Journal) -> None:
    async def main() -> None:
        async with machine(Identity("", "desktop", "")) as here:
            data = (await here.call("dbSanityCheck")).data
            assert (data["issues_found"], data["actions"][0]["peer_ids"]) == (True, ["laptop"])
            assert here.registry.peers() == []
            assert not (await here.call("dbSanityCheck")).data["issues_found"]

    asyncio.run(main())


def test_the_sanity_check_deletes_what_was_claimed_as_well(records: Journal) -> None:
    async def main() -> None:
        async with machine(Identity("", "desktop", "")) as here:
            here.registry.forget(["laptop"])
            here.registry.store_claim(replace(LAPTOP, state=State.REJECTED))
            data = (await here.call("dbSanityCheck")).data
            assert (data["issues_found"], data["actions"][0]["peer_ids"]) == (True, ["laptop"])
            assert here.registry.claims() == []
            assert not (await here.call("dbSanityCheck")).data["issues_found"]
            assert len(records.of(Event.PEER_DELETED)) == 1

    asyncio.run(main())


def test_the_sanity_check_leaves_a_leader_alone() -> None:
    async def main() -> None:
        async with machine() as here:
            assert not (await here.call("dbSanityCheck")).data["issues_found"]
            assert {peer.peer_id for peer in here.registry.peers()} == {"vps", "laptop"}

    asyncio.run(main())


def test_a_worker_registers_and_keeps_its_role() -> None:
    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            setting = here.call("setPeerConfig", role="worker", id="desktop", leader="127.0.0.1")
            wire = await here.target()
            claim = (await wire.link.expect("registerPeer")).fields
            assert claim["peer_id"] == "desktop"
            wire.link.post("registered", {"peer_id": "desktop"})
            wire.link.post("reply", {"count": 1})
            wire.link.post("peers", {"peers": [LAPTOP.to_wire()]})
            answer = await setting
            assert (answer.error, answer.status) == (None, 0)
            assert "Registered as worker 'desktop', connected to leader at 127.0.0.1" in answer.text
            assert here.registry.identity() == WORKER

    asyncio.run(main())


def test_somebody_who_waits_for_the_leader_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_PATIENCE", 0)

    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            setting = here.call("registerWorker", leader="127.0.0.1")
            wire = await here.target()
            await wire.link.expect("registerPeer")
            assert here.said == ["Waiting for the leader at 127.0.0.1"]
            wire.link.post("error", PeerdError(Code.ID_TAKEN, peer="laptop", address="127.0.0.4").to_wire())
            with pytest.raises(PeerdError):
                await setting

    asyncio.run(main())


def test_a_worker_that_is_refused_keeps_what_it_had() -> None:
    async def main() -> None:
        async with machine(Identity("", "old", "")) as here:
            setting = here.call("setPeerConfig", role="worker", id="laptop", leader="127.0.0.1")
            wire = await here.target()
            await wire.link.expect("registerPeer")
            wire.link.post("error", PeerdError(Code.ID_TAKEN, peer="laptop", address="127.0.0.4").to_wire())
            with pytest.raises(PeerdError) as caught:
                await setting
            assert caught.value.code is Code.ID_TAKEN
            assert here.registry.identity() == here.node.identity == Identity("", "old", "")
            assert here.node.link is None

    asyncio.run(main())


def test_a_worker_that_is_refused_another_id_knows_its_peers_and_is_connected_again(records: Journal) -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            await admit(here, Peer("vps", "127.0.0.1", is_online=True), LAPTOP)
            known = here.node.book
            setting = here.call("setPeerConfig", id="vps")
            wire = await here.target()
            assert (await wire.link.expect("registerPeer")).fields["digest"] == known.digest
            assert here.node.book is known
            assert (here.node.identity, here.node.peer_id) == (WORKER, "desktop")
            vps = known.by_id("vps")
            assert vps is not None
            assert not vps.is_online
            wire.link.post("error", PeerdError(Code.ID_TAKEN, peer="vps", address="127.0.0.1").to_wire())
            wire = await here.target()
            claim = (await wire.link.expect("registerPeer")).fields
            assert (claim["peer_id"], claim["digest"], claim["joining"]) == ("desktop", known.digest, False)
            assert here.node.book is known
            assert not setting.done()
            wire.link.post("registered", {"peer_id": "desktop"})
            wire.link.post("reply", {"count": len(known), "same": True})
            with pytest.raises(PeerdError, match="Peer id is taken"):
                await setting
            assert here.node.link is not None
            assert here.node.link.connected
            assert here.node.book is known
            assert here.registry.identity() == here.node.identity == WORKER
            assert not records.of(Event.ROLE_SET)

    asyncio.run(main())


@pytest.mark.parametrize("before", [LEADER, WORKER], ids=["leader", "worker"])
def test_a_machine_that_another_leader_refuses_is_not_disturbed(before: Identity, records: Journal) -> None:
    async def main() -> None:
        async with machine(before) as here:
            if before is WORKER:
                await admit(here, LAPTOP)
            was = here.node.hub, here.node.link
            setting = here.call("setPeerConfig", role="worker", leader="127.0.0.5")
            wire = await here.target()
            await wire.link.expect("registerPeer")
            assert (here.node.hub, here.node.link) == was
            wire.link.post("error", PeerdError(Code.NOT_LEADER, address="127.0.0.5").to_wire())
            with pytest.raises(PeerdError, match="is not the leader"):
                await setting
            assert (here.node.hub, here.node.link) == was
            assert here.registry.identity() == here.node.identity == before
            assert not records.of(Event.ROLE_SET) + records.of(Event.LEADER_LOST)
            assert here.node.link is None or here.node.link.connected

    asyncio.run(main())


@pytest.mark.parametrize("before", [LEADER, WORKER], ids=["leader", "worker"])
def test_a_daemon_that_is_stopped_while_its_machine_registers_leaves_no_link(before: Identity) -> None:
    async def main() -> None:
        async with machine(before) as here:
            if before is WORKER:
                await admit(here, LAPTOP)
            setting = here.call("setPeerConfig", role="worker", leader="127.0.0.5")
            wire = await here.target()
            await wire.link.expect("registerPeer")
            setting.cancel()
            await wire.end()

    asyncio.run(main())


def test_a_worker_that_registers_while_its_leader_is_away_knows_its_peers_still() -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            await admit(here, LAPTOP)
            async with FakePeers().serving() as gone:
                pass
            here.node._dialler.connect = gone.connect  # type: ignore[method-assign]
            assert code(await here.call("registerWorker")) is Code.NOT_CONNECTED
            assert (await here.node.identify(LAPTOP.ip_address)).peer_id == "laptop"
            listed = await here.call("listPeers")
            assert [peer["peer_id"] for peer in listed.data] == ["laptop"]
            assert code(listed) is Code.NOT_CONNECTED

    asyncio.run(main())


def test_a_worker_whose_leader_is_away_is_one_all_the_same() -> None:
    async def main() -> None:
        async with FakePeers().serving() as gone:
            pass
        async with machine(Identity("", "", "")) as here:
            here.node._config = lambda: settings(vpn_interface="lo", port=gone.port)
            answer = await here.call("setPeerConfig", role="worker", id="desktop", leader="127.0.0.1")
            assert (code(answer), answer.status) == (Code.NOT_CONNECTED, 255)
            where = "not connected to leader at 127.0.0.1 yet (peerd keeps trying)"
            assert answer.text == f"Peer config saved. Role: worker, ID: desktop, {where}"
            assert here.registry.identity() == WORKER

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "params"), [("listPeers", {}), ("getPeerInfo", {"peer": "x"}), ("getPeerIdByIp", {"ip": "127.0.0.9"})]
)
def test_who_asks_a_leader_that_is_silent_can_leave_it(name: str, params: dict[str, str]) -> None:
    async def main() -> None:
        async with machine(WORKER) as here:
            await admit(here)
            asking = here.call(name, **params)
            await (await here.target()).next()
            here.cancel.set()
            assert await asking == Answer(status=130)

    asyncio.run(main())


@pytest.mark.parametrize(("name", "peer"), [("ping", "laptop"), ("listJobs", "laptop")])
def test_who_asks_a_peer_that_is_silent_can_leave_it(name: str, peer: str) -> None:
    async def main() -> None:
        async with machine() as here:
            asking = here.call(name, peer=peer)
            await (await here.target()).next()
            here.cancel.set()
            assert await asking == Answer(status=130)

    asyncio.run(main())


def test_a_machine_cannot_be_its_own_leaders_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "is_own_address", lambda address: True)

    async def main() -> None:
        async with machine() as here:
            with pytest.raises(PeerdError) as caught:
                await here.call("registerWorker", leader="127.0.0.1")
            assert caught.value.code is Code.OWN_ADDRESS
            assert here.registry.identity() == LEADER

    asyncio.run(main())


@pytest.mark.parametrize(
    "params", [{"id": "x"}, {"leader": "127.0.0.1"}, {}, {"role": "leader", "leader": "127.0.0.1"}], ids=str
)
def test_a_role_that_does_not_fit_is_wrong_usage(params: dict[str, str]) -> None:
    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            with pytest.raises(PeerdError) as caught:
                await here.call("setPeerConfig", **params)
            assert caught.value.kind.exit_status == 2
            assert here.registry.identity() == Identity("", "", "")

    asyncio.run(main())


def test_a_host_name_that_is_no_id_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "hostname", lambda: "my host")

    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            with pytest.raises(PeerdError, match="--id") as caught:
                await here.call("setPeerConfig", role="leader")
            assert caught.value.kind.exit_status == 2
            assert caught.value.hints == ["Help: d help setPeerConfig"]
            with pytest.raises(PeerdError, match="use d setPeerConfig --role worker --id NAME"):
                await here.call("registerWorker")

    asyncio.run(main())


def test_a_leader_that_is_renamed_is_one_peer() -> None:
    async def main() -> None:
        async with machine() as here:
            answer = await here.call("setPeerConfig", id="hub")
            assert "Role: leader, ID: hub" in answer.text
            assert [peer.peer_id for peer in here.node.book.all()] == ["hub", "laptop"]
            assert {peer.peer_id for peer in here.registry.peers()} == {"hub", "laptop"}

    asyncio.run(main())


@pytest.mark.parametrize("before", [LEADER, WORKER, Identity("worker", "laptop", "127.0.0.1")], ids=str)
def test_a_leader_takes_no_id_that_another_peer_has(before: Identity, records: Journal) -> None:
    me = Peer("vps", "127.0.0.1")

    async def main() -> None:
        async with machine(before, succeed, me, LAPTOP) as here:
            with pytest.raises(PeerdError) as caught:
                await here.call("setPeerConfig", role="leader", id="laptop")
            assert str(caught.value) == "Peer id is taken: laptop belongs to 127.0.0.4"
            assert caught.value.kind.exit_status == 255
            assert here.node.identity == here.registry.identity() == before
            assert {peer.peer_id: peer.ip_address for peer in here.registry.peers()}["laptop"] == "127.0.0.4"
            assert not records.of(Event.ROLE_SET)

    asyncio.run(main())


def test_a_leader_at_another_address_keeps_its_id_and_what_it_replaces_is_recorded(records: Journal) -> None:
    async def main() -> None:
        async with machine(Identity("worker", "vps", "127.0.0.1"), succeed, Peer("vps", "10.0.0.1")) as here:
            answer = await here.call("setPeerConfig", role="leader")
            assert "Role: leader, ID: vps" in answer.text
            assert [(peer.peer_id, peer.ip_address) for peer in here.registry.peers()] == [("vps", "127.0.0.1")]
            (record,) = records.of(Event.PEER_DELETED)
            assert (record.text("peer"), record.text("caller")) == ("vps", "vps")
            assert "10.0.0.1" in record.message

    asyncio.run(main())


def test_a_peer_is_deleted_on_the_leader_by_itself_and_on_a_worker_by_asking() -> None:
    async def main() -> None:
        async with machine() as here:
            assert (await here.call("deletePeer", peer="laptop")).text == "Deleted peer: laptop"
            with pytest.raises(PeerdError, match="Peer not found"):
                await here.call("deletePeer", peer="laptop")
            with pytest.raises(PeerdError) as caught:
                await here.call("deletePeer", peer="vps")
            assert caught.value.code is Code.SELF_DELETE
        async with machine(WORKER) as here:
            await admit(here, LAPTOP)
            deleting = here.call("deletePeer", peer="laptop")
            leader = await here.target()
            assert (await leader.link.expect("deletePeer")).fields == {"peer": "laptop"}
            leader.link.post("reply")
            assert (await deleting).text == "Deleted peer: laptop"

    asyncio.run(main())


def test_the_registry_is_changed_on_the_leader_by_itself_and_on_a_worker_by_asking(records: Journal) -> None:
    async def main() -> None:
        async with machine() as here:
            for name in ("approvePeer", "rejectPeer"):
                with pytest.raises(PeerdError, match="Peer not found"):
                    await here.call(name, peer="phone")
                with pytest.raises(PeerdError) as caught:
                    await here.call(name, peer="vps")
                assert caught.value.code is Code.SELF_DELETE
            assert (await here.call("rejectPeer", peer="laptop")).text == "Rejected peer: laptop"
            shown = (await here.call("listPeers")).data
            assert [(peer["peer_id"], peer["state"]) for peer in shown] == [
                ("vps", "registered"),
                ("laptop", "rejected"),
            ]
            assert (await here.call("approvePeer", peer="laptop", address="127.0.0.4")).text == "Approved peer: laptop"
            assert here.node.book.by_id("laptop") is not None
        async with machine(WORKER) as here:
            await admit(here, LAPTOP)
            approving = here.call("approvePeer", peer="phone", address="127.0.0.9")
            leader = await here.target()
            assert (await leader.link.expect("approvePeer")).fields == {"peer": "phone", "address": "127.0.0.9"}
            leader.link.post("error", PeerdError(Code.DENIED, reason="no").to_wire())
            with pytest.raises(PeerdError, match="Permission denied: no"):
                await approving
            assert [record.text("caller") for record in records.of(Event.REGISTRY_ASKED)] == ["ann@vps"]

    asyncio.run(main())


def test_who_rejects_what_a_peer_claimed_is_told_that_it_stays_a_peer() -> None:
    async def main() -> None:
        claim = replace(LAPTOP, peer_id="phone", state=State.ADDRESS_TAKEN)
        async with machine() as here:
            here.registry.store_claim(claim)
            await here.node.become(LEADER)
            answer = await here.call("rejectPeer", peer="phone")
            assert answer.text == "Rejected peer: phone; 127.0.0.4 stays registered as laptop"
            assert here.node.book.by_id("laptop") is not None
        async with machine(WORKER) as here:
            await admit(here, LAPTOP)
            rejecting = here.call("rejectPeer", peer="phone", address=LAPTOP.ip_address)
            leader = await here.target()
            await leader.link.expect("rejectPeer")
            leader.link.post("reply")
            assert "127.0.0.4 stays registered as laptop" in (await rejecting).text

    asyncio.run(main())


def test_a_worker_that_must_wait_stays_a_worker_and_goes_on_asking(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "SHORTEST", 0.001)
    monkeypatch.setattr(Backoff, "LONGEST", 0.001)
    pending = PeerdError(Code.PENDING, peer="desktop", address="127.0.0.2")

    async def main() -> None:
        async with machine(Identity("", "", "")) as here:
            joining = here.call("setPeerConfig", role="worker", id="desktop", leader="127.0.0.1")
            for _ in range(3):
                wire = await here.target()
                assert (await wire.link.expect("registerPeer")).fields["joining"] is True
                wire.link.post("error", pending.to_wire())
            answer = await joining
            assert (code(answer), answer.status) == (Code.PENDING, 255)
            assert "Asked to join as 'desktop'" in answer.text
            assert here.registry.identity() == WORKER
            refused = await here.call("execOnPeer", **EXEC)
            assert code(refused) is Code.PENDING
            # One record for all of its attempts.
            assert len(records.of(Event.LEADER_REFUSED)) == 1

    asyncio.run(main())


def test_a_policy_explains_itself() -> None:
    rule = Rule("deploy", ("laptop",), users=("root",), programs=(("git", "pull"),), max_timeout=60.0)
    asked = {"peer": "laptop", "directory": "/"}

    async def main() -> None:
        async with machine(policy=Policy(rules=(rule,))) as here:
            answer = await here.call("checkPolicy", **asked, argv=("git", "pull"))
            assert answer.status == 0
            assert answer.data == {
                "allowed": True,
                "rule": "deploy",
                "reason": "allowed by [allow deploy]",
                "peer": "laptop",
                "registered": True,
                "user": "root",
                "directory": "/",
                "max_timeout": 60.0,
            }
            denied = await here.call("checkPolicy", peer="phone", action="pull")
            assert (denied.status, denied.data["allowed"], denied.data["registered"]) == (255, False, False)
            assert denied.data["directory"] == "/opt/automateLinux"
            assert denied.data["reason"] == "[allow deploy]: phone is not among peers"
            for wrong in (
                {},
                {**asked, "action": "pull"},
                {"shell_cmd": "x"},
                {**asked, "shell_cmd": "x", "argv": ("x",)},
                {"action": "pull", "user": "nobody"},
                {"action": "pull", "env": [("A", "x")]},
            ):
                with pytest.raises(PeerdError) as caught:
                    await here.call("checkPolicy", **{"peer": "laptop", **wrong})
                assert caught.value.code is Code.USAGE
            assert here.executor.requests == []

    asyncio.run(main())


def test_no_policy_holds_the_users_of_this_machine_itself() -> None:
    asked = {"peer": "vps", "directory": "/", "shell_cmd": "true"}

    async def main() -> None:
        for own in (LEADER, Identity("", "vps", "")):
            async with machine(own, policy=Policy(accept=False), max_timeout=60.0, default_timeout=30.0) as here:
                answer = await here.call("checkPolicy", **asked)
                assert (answer.status, answer.data["allowed"], answer.data["rule"]) == (0, True, None)
                assert answer.data["reason"] == "who uses d on this machine itself is not subject to its policy"
                assert not (await here.call("checkPolicy", **asked, timeout=61.0)).data["allowed"]

    asyncio.run(main())


def test_a_policy_is_explained_as_it_is_applied(records: Journal) -> None:
    asked = {"directory": "/", "shell_cmd": "true"}

    async def main() -> None:
        async with machine(max_timeout=60.0, default_timeout=30.0) as here:
            late = await here.call("checkPolicy", peer="laptop", **asked, timeout=61.0)
            assert (late.status, late.data["allowed"]) == (255, False)
            assert late.data["reason"] == "a timeout of 61 s is more than max-timeout of vps, 60 s"
            assert (await here.call("checkPolicy", peer="laptop", **asked, timeout=60.0)).status == 0
            nobody = await here.call("checkPolicy", peer="phone", **asked)
            assert (nobody.status, nobody.data["allowed"], nobody.data["registered"]) == (255, False, False)
            assert nobody.data["reason"] == "phone is not a registered peer; else no rule limits registered peers"
        async with machine(policy=Policy(accept=False), max_timeout=60.0) as here:
            denied = await here.call("checkPolicy", peer="laptop", **asked, timeout=61.0)
            assert denied.data["reason"] == "accept-exec is no"

    asyncio.run(main())


def test_the_database_on_disk_has_what_was_set(tmp_path: Path) -> None:
    async def main() -> None:
        registry = Registry(tmp_path / "peerd.db")
        node = Node(registry, lambda: settings(vpn_interface="lo"), lambda: None)
        node.start()
        await node.become(Identity("leader", "vps", ""))
        await node.close()
        registry.close()
        again = Registry(tmp_path / "peerd.db")
        assert again.identity() == Identity("leader", "vps", "")
        assert [(peer.peer_id, peer.ip_address) for peer in again.peers()] == [("vps", "127.0.0.1")]
        again.close()

    asyncio.run(main())


@pytest.mark.parametrize("given", [{}, {"shell_cmd": "true", "argv": ("true",)}], ids=["neither", "both"])
def test_a_command_is_a_shell_command_or_a_program_and_not_both(given: dict[str, Any]) -> None:
    async def main() -> None:
        async with machine() as here:
            with pytest.raises(PeerdError) as caught:
                await here.call("execOnPeer", peer="laptop", directory="/", **given)
            assert caught.value.code is Code.USAGE

    asyncio.run(main())


def test_everything_that_is_asked_for_reaches_the_target() -> None:
    async def main() -> None:
        async with machine() as here:
            running = here.call(
                "execOnPeer",
                peer="laptop",
                directory="/tmp",
                argv=("cat", "-n"),
                env=(("A", "1"), ("B", "")),
                user="ann",
                login=True,
                stdin=True,
                memory=1024,
                cpu=50.0,
                tasks=3,
            )
            wire = await here.target()
            request = ExecRequest.from_wire((await wire.expect("execRequest")).fields)
            assert (request.argv, request.env, request.user) == (("cat", "-n"), {"A": "1", "B": ""}, "ann")
            assert (request.login, request.stdin, request.memory, request.cpu, request.tasks) == (
                True,
                True,
                1024,
                50,
                3,
            )
            wire.link.post("stdinWindow", {"from": 0, "until": 10})
            wire.link.post("result", {"outcome": "exited", "exitStatus": 0})
            assert succeeded(await running)
            assert here.granted == [10]

    asyncio.run(main())


def test_a_peer_that_was_seen_before_the_clock_was_set_back_is_not_seen_in_the_future() -> None:
    async def main() -> None:
        ahead = time.time() + 1e6
        async with machine(LEADER, succeed, replace(LAPTOP, first_seen=1.0, last_seen=ahead)) as here:
            answer = await here.call("getPeerInfo", peer="laptop")
            assert isinstance(answer.data, dict)
            assert datetime.fromisoformat(str(answer.data["last_seen"])).timestamp() <= time.time()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("online", "error", "attempts"),
    [(True, TimeoutError, 2), (False, TimeoutError, 1), (True, ConnectionRefusedError, 1)],
)
def test_a_peer_that_is_online_and_does_not_answer_is_asked_twice(
    online: bool, error: type[OSError], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def connect(address: str, *_: object) -> Connection:
        asked.append(address)
        raise error

    monkeypatch.setattr(connection, "connect", connect)

    async def main() -> None:
        async with machine(LEADER, succeed, LAPTOP) as here:
            here.node.book.put(replace(LAPTOP, is_online=online))
            assert code(await here.call("execOnPeer", **EXEC)) is Code.CONNECT_FAILED
            assert asked == [LAPTOP.ip_address] * attempts

    asyncio.run(main())
