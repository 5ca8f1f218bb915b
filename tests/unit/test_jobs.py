"""The commands about commands: where a job is found, what is heard of it, and what Ctrl-C leaves of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerd import busvalues, history, jobs, network, scopes, turns, validate
from peerd.answer import Answer, Record, whole
from peerd.apphost import AppHost
from peerd.backoff import Backoff
from peerd.busapi import MAX_DATA
from peerd.commands import BY_NAME
from peerd.errors import Code, Outcome, PeerdError
from peerd.executor import Executor
from peerd.history import History
from peerd.job import MAX_SHOWN_COMMAND, Job
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult
from peerd.node import Node
from peerd.peers import Peer
from peerd.registry import Identity, Registry
from peerd.scopes import Stopper
from peerd.service import Service
from peerd.session import Caller, ConfirmingSink, Delivery, Resume, Session
from peerd.spool import Data
from peerd.stdin import Stdin
from peerd.storage import Storage
from peerd.units import Units
from unit.fake_systemd import FakeSystemd
from unit.support import EXEC_ID, FakePeers, FakeScopes, Heard, Journal, Wire, linked, settings

LAPTOP = Peer("laptop", "127.0.0.4", is_online=True)
DESKTOP = Peer("desktop", "127.0.0.2", is_online=True)
PHONE = Peer("phone", "127.0.0.9", is_online=False)
JOB = Job(EXEC_ID, "laptop", "ann@vps", "/srv", "make", "root", True, 1_000_000)
RESULT = ExecResult(Outcome.EXITED, 3, duration_usec=5, started_usec=1_000_000, sizes={"stdout": 5, "stderr": 0})
ENDED = replace(JOB, result=RESULT)
NO_SUCH_JOB = PeerdError(Code.NO_SUCH_JOB, exec_id=EXEC_ID)
CANCELLED_STATUS = 130
OTHER = Caller("laptop")


@pytest.fixture(autouse=True)
def _others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback's addresses are other machines', and nothing waits between one try and the next."""
    monkeypatch.setattr(network, "is_own_address", lambda address: False)
    monkeypatch.setattr(scopes, "processes", FakeScopes.members)
    monkeypatch.setattr(jobs, "_RETRY_DELAY", 0.0)
    monkeypatch.setattr(Backoff, "take", lambda self: 0.0)


class Here:
    """This machine, which runs commands, and the others."""

    def __init__(self, service: Service, executor: Executor, past: History, peers: FakePeers, node: Node) -> None:
        self.service = service
        self.executor = executor
        self.past = past
        self.peers = peers
        self.node = node
        self.heard = Heard()
        self.cancel, self.gone = asyncio.Event(), asyncio.Event()
        self.said: list[str] = []
        self.running: list[tuple[str, int]] = []

    def call(self, name: str, resume: Resume | None = None, **params: Any) -> asyncio.Task[Answer]:
        """Start a command."""
        delivery = Delivery()
        session = Session(
            Caller("vps", "ann"),
            ConfirmingSink(self.heard, delivery),
            self.cancel,
            self.gone,
            self.said.append,
            Stdin(lambda start, until, taken: None),
            delivery,
            lambda exec_id, step: self.running.append((exec_id, step)),
            resume,
        )
        return asyncio.create_task(self.service.call(name, params, session))

    async def history(self, **params: Any) -> list[Record]:
        """What the history tells."""
        rows: list[Record] = (await whole(await self.call("history", **params), MAX_DATA)).data
        return rows

    async def asked(self, *answers: str, **tell: object) -> list[Wire]:
        """The next connections, each of which asks for this."""
        wires = []
        for type_ in answers:
            wire = await self.peers.links.get()
            assert (await wire.expect(type_)).fields == {"execId": EXEC_ID, **tell}
            wires.append(wire)
        return wires

    async def runs(self, command: str, exec_id: str = EXEC_ID, detach: bool = False, caller: Caller = OTHER) -> None:
        """Have a command run here that somebody else asked for."""
        await self.executor.launch(ExecRequest(exec_id, "/", command, detach=detach), caller)


@asynccontextmanager
async def machine(tmp_path: Path, *known: Peer, **changes: Any) -> AsyncIterator[Here]:
    """The leader vps at 127.0.0.1, which knows these peers."""
    registry = Registry(":memory:")
    registry.set_identity(Identity("leader", "vps", ""))
    registry.store(known or [LAPTOP])
    async with FakePeers().serving() as peers:
        config = settings(vpn_interface="lo", port=peers.port, **changes)
        node = Node(registry, lambda: config, lambda: None)
        node.start()
        assert node.hub is not None
        for peer in known or [LAPTOP]:
            node.hub.book.put(peer)
        past = History(":memory:")
        storage = Storage(tmp_path / "jobs", lambda: config)
        executor = Executor(FakeScopes(), past, storage, lambda: config, lambda: "vps", lambda: None)
        apps = AppHost(registry, Units(FakeSystemd()), lambda: "vps")
        here = Here(Service(node, executor, registry, past, apps, lambda: config), executor, past, peers, node)
        try:
            yield here
        finally:
            await executor.close()
            await node.close()
            past.close()
            registry.close()


async def refused(running: asyncio.Task[Answer]) -> Code:
    with pytest.raises(PeerdError) as caught:
        await running
    return caught.value.code


def tell(wire: Wire, job: Job) -> None:
    """Answer with a job."""
    wire.link.post("reply", {"job": job.to_wire()})


def refuse(wire: Wire) -> None:
    wire.link.post("error", NO_SUCH_JOB.to_wire())


# --- where a job is found


def test_a_job_of_this_machine_is_found_here_and_nobody_is_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo all; exit 4", detach=True)
            await here.executor.wait(EXEC_ID)
            data = (await here.call("getJob", job=EXEC_ID)).data
            assert (data["exec_id"], data["peer"], data["outcome"], data["exit_status"]) == (
                EXEC_ID,
                "vps",
                "exited",
                4,
            )
            assert here.peers.accepted == 0

    asyncio.run(main())


def test_tab_is_offered_what_is_known_here_of_jobs_and_peers(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            assert set(here.service.known("JOB")) == set(here.service.known("TIMEOUT")) == set()
            here.past.put(history.ASKED, "laptop", replace(JOB, exec_id="a" * 16))
            here.past.put(history.ASKED, "laptop", replace(JOB, exec_id="b" * 16, detached=False))
            await here.runs("echo all", detach=True)
            assert set(here.service.known("JOB")) == {EXEC_ID, "a" * 16}
            assert set(here.service.known("PEER")) == {"vps", "laptop"}
            assert here.peers.accepted == 0

    asyncio.run(main())


def test_what_a_peer_says_of_its_job_is_learnt_of_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            others = "d" * 16
            here.past.put(history.ASKED, "laptop", JOB)
            here.past.put(history.ASKED, "desktop", replace(JOB, exec_id=others, peer="desktop"))
            getting = here.call("getJob", job=EXEC_ID)
            (wire,) = await here.asked("getJob")
            tell(wire, replace(ENDED, exec_id=others, peer="desktop"))
            shown = (await getting).data
            assert (shown["exec_id"], shown["peer"], shown["exit_status"]) == (EXEC_ID, "laptop", 3)
            other = here.past.get(history.ASKED, others)
            assert other is not None
            assert other.job.result is None

    asyncio.run(main())


def test_a_job_that_was_asked_from_here_is_found_where_it_was_asked_and_its_end_is_learnt(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            here.past.put(history.ASKED, "laptop", JOB)
            getting = here.call("getJob", job=EXEC_ID)
            (wire,) = await here.asked("getJob")
            tell(wire, ENDED)
            assert (await getting).data["exit_status"] == 3
            assert here.peers.accepted == 1
            entry = here.past.get(history.ASKED, EXEC_ID)
            assert entry is not None
            assert entry.job.result == RESULT

    asyncio.run(main())


def test_any_other_job_is_looked_for_on_all_peers_that_are_online(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP, PHONE) as here:
            getting = here.call("getJob", job=EXEC_ID)
            refusing, telling = await here.asked("getJob", "getJob")
            refuse(refusing)
            tell(telling, ENDED)
            tell(telling, ENDED)
            # Asked where it is, and then about it.
            assert (await telling.link.expect("getJob")).fields == {"execId": EXEC_ID}
            assert (await getting).data["exit_status"] == 3
            assert here.peers.accepted == 2

    asyncio.run(main())


class Away:
    """The link to a leader that is away."""

    address = PHONE.ip_address
    connected = False

    async def close(self) -> None:
        """As LeaderLink has it."""


def test_a_leader_that_is_not_back_yet_is_asked_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, PHONE) as here:
            here.node.link = Away()  # type: ignore[assignment]
            getting = here.call("getJob", job=EXEC_ID)
            (telling,) = await here.asked("getJob")
            tell(telling, ENDED)
            assert (await telling.link.expect("getJob")).fields == {"execId": EXEC_ID}
            tell(telling, ENDED)
            assert (await getting).data["exit_status"] == 3

    asyncio.run(main())


def test_a_job_that_nobody_has_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            getting = here.call("getJob", job=EXEC_ID)
            for wire in await here.asked("getJob", "getJob"):
                refuse(wire)
            assert await refused(getting) is Code.NO_SUCH_JOB

    asyncio.run(main())


@pytest.mark.parametrize("name", ["getJob", "waitJob", "cancelJob", "attachJob"])
def test_where_several_say_that_a_job_is_there_none_is_believed(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            asking = here.call(name, job=EXEC_ID)
            for wire in await here.asked("getJob", "getJob"):
                tell(wire, ENDED)
            with pytest.raises(PeerdError, match=r"desktop, laptop.*--peer") as caught:
                await asking
            assert caught.value.code is Code.USAGE

    asyncio.run(main())


def test_a_peer_that_is_named_is_the_only_one_that_is_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            await here.runs("true", detach=True)
            await here.executor.wait(EXEC_ID)
            getting = here.call("getJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("getJob")
            refuse(wire)
            assert await refused(getting) is Code.NO_SUCH_JOB
            assert await refused(here.call("getJob", job=EXEC_ID, peer="nobody")) is Code.PEER_NOT_FOUND
            assert (await here.call("getJob", job=EXEC_ID, peer="vps")).data["exit_status"] == 0

    asyncio.run(main())


def test_a_peer_that_cannot_be_reached_does_not_hide_the_job_of_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            getting = here.call("getJob", job=EXEC_ID)
            silent, telling = await here.asked("getJob", "getJob")
            silent.reset()
            tell(telling, ENDED)
            tell(telling, ENDED)
            assert (await getting).data["exit_status"] == 3

    asyncio.run(main())


def test_that_a_peer_which_is_online_could_not_be_asked_is_not_told_as_no_such_job(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP, PHONE) as here:
            getting = here.call("getJob", job=EXEC_ID)
            silent, refusing = await here.asked("getJob", "getJob")
            silent.reset()
            refuse(refusing)
            assert await refused(getting) is Code.CONNECT_FAILED

    asyncio.run(main())


def test_a_peer_that_is_too_old_to_have_jobs_has_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            getting = here.call("getJob", job=EXEC_ID)
            (wire,) = await here.asked("getJob")
            wire.link.post("error", PeerdError(Code.UNKNOWN_MESSAGE, name="getJob").to_wire())
            assert await refused(getting) is Code.NO_SUCH_JOB

    asyncio.run(main())


# --- found again after a restart


RESUME = Resume(EXEC_ID, 1, {"stdout": 2, "stderr": 0})


@pytest.mark.parametrize("name", ["attachJob", "waitJob", "cancelJob"])
def test_who_was_cut_off_finds_a_job_once_its_peer_is_back(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path, replace(LAPTOP, is_online=False)) as here:
            asking = here.call(name, RESUME, job=EXEC_ID)
            await turns.let_pass(10)
            assert here.node.hub
            here.node.hub.book.put(LAPTOP)
            (wire,) = await here.asked("getJob")
            tell(wire, JOB)
            if name == "attachJob":
                await wire.expect("getJob")
                tell(wire, JOB)
                assert (await wire.expect("attachJob")).fields == {"execId": EXEC_ID, "stdout": 2, "stderr": 0}
                wire.link.post("result", RESULT.to_wire())
            else:
                await wire.expect(name)
                tell(wire, ENDED)
            assert (await asking).status == (0 if name == "cancelJob" else 3)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["attachJob", "waitJob", "cancelJob", "remoteDeployDaemon"])
def test_who_was_cut_off_waits_for_the_leader(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            resolve, away = here.node.resolve, [PeerdError(Code.NOT_CONNECTED)]

            async def late(peer_id: str) -> Peer:
                if away:
                    raise away.pop()
                return await resolve(peer_id)

            here.node.resolve = late  # type: ignore[method-assign]
            deploys = name == "remoteDeployDaemon"
            resume = replace(RESUME, step=2) if deploys else RESUME
            asking = here.call(name, resume, peer="laptop", **({} if deploys else {"job": EXEC_ID}))
            wire = await here.peers.links.get()
            if name == "attachJob":
                await wire.expect("getJob")
                tell(wire, JOB)
            if deploys or name == "attachJob":
                await wire.expect("attachJob")
                wire.link.post("result", RESULT.to_wire())
            else:
                await wire.expect(name)
                tell(wire, ENDED)
            assert (await asking).status == (0 if name == "cancelJob" else 3)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["attachJob", "waitJob", "cancelJob"])
def test_what_does_not_come_back_is_said_in_time(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path, PHONE, reattach_timeout=0.05) as here, asyncio.timeout(5):
            assert await refused(here.call(name, RESUME, job=EXEC_ID)) is Code.NO_SUCH_JOB

    asyncio.run(main())


@pytest.mark.parametrize("name", ["waitJob", "cancelJob"])
def test_who_waits_may_come_back(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("exit 4", detach=True)
            await here.call(name, job=EXEC_ID)
            assert here.running == [(EXEC_ID, 1)]

    asyncio.run(main())


# --- detached


def test_a_detached_command_prints_its_id_at_once_and_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            answer = await here.call(
                "execOnPeer", peer="vps", directory="/", shell_cmd="echo up; exec sleep 1000", detach=True
            )
            assert (answer.error, answer.status) == (None, 0)
            assert answer.record is not None
            assert (answer.record["exec_id"], answer.record["outcome"]) == (answer.text, None)
            assert here.executor.running == 1
            cancelled = await here.call("cancelJob", job=answer.text)
            assert (cancelled.status, here.executor.running) == (0, 0)
            assert f"{answer.text} on vps ended: cancelled" in cancelled.text

    asyncio.run(main())


@pytest.mark.parametrize("where", ["vps", "laptop"])
def test_a_detached_command_that_cannot_start_says_so_at_once(tmp_path: Path, where: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            starting = here.call("execOnPeer", peer=where, directory="/missing", shell_cmd="true", detach=True)
            if where == "laptop":
                wire = await here.peers.links.get()
                await wire.expect("execRequest")
                error = PeerdError(Code.NO_SUCH_DIRECTORY, peer="laptop", directory="/missing")
                wire.link.post("result", ExecResult.failure(error).to_wire())
            answer = await starting
            assert (str(answer.error), answer.status) == (f"No such directory on {where}: /missing", 255)

    asyncio.run(main())


def test_a_detached_command_on_a_peer_is_remembered_until_its_end_is_known(tmp_path: Path, records: Journal) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            starting = here.call("execOnPeer", peer="laptop", directory="/", shell_cmd="make", detach=True)
            wire = await here.peers.links.get()
            asked = ExecRequest.from_wire((await wire.expect("execRequest")).fields)
            assert asked.detach
            wire.link.post("started")
            assert (await starting).text == asked.exec_id
            looking = asyncio.create_task(here.history())
            assert (await wire.expect("getJob")).fields == {"execId": asked.exec_id}
            tell(wire, replace(ENDED, exec_id=asked.exec_id))
            (entry,) = await looking
            assert (entry["side"], entry["outcome"], entry["exit_status"]) == ("asked", "exited", 3)
            # Now it is known, and nobody is asked.
            assert await here.history() == [entry]
            getting = here.call("getJob", job=asked.exec_id)
            await wire.expect("getJob")
            tell(wire, replace(ENDED, exec_id=asked.exec_id))
            await getting
            (record,) = records.of(Event.COMMAND_ANSWERED)
            fields = [record.text(name) for name in ("exec_id", "outcome", "exit_status", "caller")]
            assert fields == [asked.exec_id, "exited", "3", "ann@vps"]

    asyncio.run(main())


def test_who_asks_for_detached_commands_only_has_no_longer_history(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, history_limit=2) as here:
            for number in range(4):
                here.past.put(history.ASKED, "laptop", replace(JOB, exec_id=f"{number:016x}", started_usec=number))
            starting = here.call("execOnPeer", peer="laptop", directory="/", shell_cmd="make", detach=True)
            wire = await here.peers.links.get()
            await wire.expect("execRequest")
            wire.link.post("started")
            newest = (await starting).text
            found = [entry.job.exec_id for entry in here.past.find()]
            assert (found[0], len(found)) == (newest, 2)

    asyncio.run(main())


def test_only_peers_that_are_online_are_asked_how_commands_ended_and_nobody_waits_for_them_long(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with machine(tmp_path, LAPTOP, PHONE, connect_timeout=0.2) as here:
            here.past.put(history.ASKED, "laptop", JOB)
            for number in range(100):
                job = replace(JOB, exec_id=f"{number:016x}", peer="phone", started_usec=JOB.started_usec + number + 1)
                here.past.put(history.ASKED, "phone", job)
            looking = asyncio.create_task(here.history(outcome="exited"))
            (wire,) = await here.asked("getJob")
            assert await looking == []
            looking = asyncio.create_task(here.history(outcome="exited"))
            (wire,) = await here.asked("getJob")
            tell(wire, ENDED)
            assert [row["exec_id"] for row in await looking] == [EXEC_ID]
            assert here.peers.accepted == 2

    asyncio.run(main())


def test_a_detached_command_needs_nobody_to_send_it_input(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            starting = here.call("execOnPeer", peer="vps", directory="/", shell_cmd="cat", detach=True, stdin=True)
            assert await refused(starting) is Code.USAGE

    asyncio.run(main())


@pytest.mark.parametrize("where", ["vps", "laptop"])
def test_who_resumes_the_start_of_a_detached_command_gets_its_id_and_starts_no_other(
    tmp_path: Path, where: str
) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            if where == "vps":
                await here.runs("exec sleep 1000", detach=True)
            resume = Resume(EXEC_ID, 1, {"stdout": 0, "stderr": 0})
            starting = here.call(
                "execOnPeer", resume, peer=where, directory="/", shell_cmd="exec sleep 1000", detach=True
            )
            if where == "laptop":
                wire = await here.peers.links.get()
                assert (await wire.expect("execRequest")).fields["execId"] == EXEC_ID
                error = PeerdError(Code.DUPLICATE, exec_id=EXEC_ID, peer="laptop")
                wire.link.post("result", ExecResult.failure(error).to_wire())
            answer = await starting
            assert (answer.error, answer.text) == (None, EXEC_ID)
            if where == "vps":
                assert here.executor.running == 1
                await here.call("cancelJob", job=EXEC_ID)

    asyncio.run(main())


# --- attaching


def test_all_output_of_a_job_is_heard_by_each_who_attaches(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo all; exit 4", detach=True)
            for _ in range(2):
                answer = await here.call("attachJob", job=EXEC_ID)
                assert answer.status == 4
                assert answer.record is not None
                assert answer.record["outcome"] == "exited"
            assert here.heard.streams["stdout"] == b"all\n" * 2
            assert here.running == [(EXEC_ID, 1)] * 2

    asyncio.run(main())


def test_who_resumes_hears_only_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo 0123456789", detach=True)
            resume = Resume(EXEC_ID, 1, {"stdout": 7, "stderr": 0})
            assert (await here.call("attachJob", resume, job=EXEC_ID)).status == 0
            assert here.heard.streams["stdout"] == b"789\n"

    asyncio.run(main())


def test_ctrl_c_leaves_a_job_running(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo up; exec sleep 1000", detach=True)
            attaching = here.call("attachJob", job=EXEC_ID)
            await here.heard.spoke.wait()
            here.cancel.set()
            answer = await attaching
            assert (answer.status, answer.error) == (CANCELLED_STATUS, None)
            assert answer.record
            assert (answer.record["outcome"], answer.record["exit_status"]) == (None, CANCELLED_STATUS)
            assert here.said == [f"Left {EXEC_ID} running on vps; to hear of it again: d attachJob --job {EXEC_ID}"]
            assert here.executor.running == 1
            here.cancel.clear()
            await here.call("cancelJob", job=EXEC_ID)

    asyncio.run(main())


class Paused(Heard):
    """A sink that has heard enough for now."""

    async def output(self, stream: str, data: Data) -> None:
        """As :class:`Sink` has it."""
        await super().output(stream, data)
        await asyncio.Event().wait()


def test_ctrl_c_leaves_a_job_that_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo all", detach=True)
            await here.executor.wait(EXEC_ID)
            here.heard = Paused()
            attaching = here.call("attachJob", job=EXEC_ID)
            await here.heard.spoke.wait()
            here.cancel.set()
            assert (await attaching).status == CANCELLED_STATUS
            assert here.said == [f"Left {EXEC_ID}; to hear of it again: d attachJob --job {EXEC_ID}"]

    asyncio.run(main())


def test_ctrl_c_leaves_a_job_of_a_peer_running(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            attaching = here.call("attachJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("getJob")
            tell(wire, JOB)
            assert (await wire.expect("attachJob")).fields == {"execId": EXEC_ID, "stdout": 0, "stderr": 0}
            wire.link.post("output", {"stream": "stdout"}, b"up")
            await here.heard.spoke.wait()
            here.cancel.set()
            answer = await attaching
            assert (answer.status, answer.error) == (CANCELLED_STATUS, None)
            # It is told to nobody as a cancel of the job itself: the target of a detached one takes it as a farewell.
            assert here.said[-1].startswith(f"Left {EXEC_ID} running on laptop")

    asyncio.run(main())


def test_only_a_detached_command_can_be_attached_to(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("exec sleep 1000")
            assert await refused(here.call("attachJob", job=EXEC_ID)) is Code.NOT_DETACHED
            attaching = here.call("attachJob", job="1" * 16, peer="laptop")
            wire = await here.peers.links.get()
            await wire.expect("getJob")
            tell(wire, replace(JOB, exec_id="1" * 16, detached=False))
            assert await refused(attaching) is Code.NOT_DETACHED
            await here.executor.cancel(EXEC_ID)
            here.executor.delivered(EXEC_ID)

    asyncio.run(main())


def test_output_that_is_not_kept_any_more_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo all", detach=True)
            await here.executor.wait(EXEC_ID)
            for path in (tmp_path / "jobs").iterdir():
                path.unlink()
            answer = await here.call("attachJob", job=EXEC_ID)
            assert str(answer.error) == f"Output is not kept any more: {EXEC_ID}"
            assert answer.record is not None
            told = [answer.record[name] for name in ("exec_id", "peer", "command", "outcome", "exit_status")]
            assert told == [EXEC_ID, "vps", "echo all", "failed", answer.status] == [*told[:4], 255]
            assert not here.heard.begun.is_set()
            with pytest.raises(PeerdError, match="not kept any more"):
                busvalues.reply(BY_NAME["attachJob"], answer, busvalues.Collected())
            # How it ended is known all the same.
            assert (await here.call("waitJob", job=EXEC_ID)).status == 0

    asyncio.run(main())


def test_output_for_which_there_was_no_room_is_told_of(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, job_output_limit=10) as here:
            await here.runs("head -c 15 /dev/zero", detach=True)
            assert (await here.call("attachJob", job=EXEC_ID)).status == 0
            assert here.heard.streams["stdout"] == bytes(10)
            why = "there was no room (job-output-limit or total-output-limit there, or its disk)"
            assert here.said == [f"5 bytes of output were not kept on vps: {why}"]

    asyncio.run(main())


def test_processes_that_a_job_left_behind_are_told_of(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("sleep 1000 >/dev/null 2>&1 & exit 4", detach=True)
            assert (await here.call("attachJob", job=EXEC_ID)).status == 4
            assert here.said == ["Stopped 1 background process that the command left running on vps"]

    asyncio.run(main())


def test_that_systemd_stopped_a_job_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopper(self: FakeScopes, name: str) -> Stopper:
        return Stopper.SOMEBODY

    monkeypatch.setattr(FakeScopes, "stopper", stopper)

    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("kill $$", detach=True)
            assert (await here.call("attachJob", job=EXEC_ID)).status == 143
            assert here.said == ["systemd stopped the command on vps, as somebody told it to there (systemctl stop)"]

    asyncio.run(main())


def test_a_job_whose_connection_is_lost_is_not_told_as_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, reattach_timeout=0.05) as here:
            attaching = here.call("attachJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("getJob")
            tell(wire, JOB)
            await wire.expect("attachJob")
            here.node.pool._connect = FakePeers().connect
            wire.reset()
            with pytest.raises(PeerdError, match=r"Failed to connect to peer: laptop \(127\.0\.0\.4\)"):
                await attaching
            assert (
                here.said[-1] == f"Left {EXEC_ID} running on laptop; to hear of it again: d attachJob --job {EXEC_ID}"
            )

    asyncio.run(main())


# --- waiting and cancelling


def test_who_waits_gets_the_exit_status_of_the_job(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("exit 4", detach=True)
            answer = await here.call("waitJob", job=EXEC_ID)
            assert (answer.status, answer.error, answer.data["outcome"]) == (4, None, "exited")

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_wait_goes_on_over_a_connection_that_breaks(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            waiting = here.call("waitJob", job=EXEC_ID, peer="laptop")
            for _ in range(3):
                (wire,) = await here.asked("waitJob")
                wire.link.close() if how == "close" else wire.reset()
            (wire,) = await here.asked("waitJob")
            tell(wire, ENDED)
            assert (await waiting).status == 3

    asyncio.run(main())


def test_a_wait_for_a_peer_that_does_not_come_back_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, reattach_timeout=0.05) as here:
            waiting = here.call("waitJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("waitJob")
            here.node.pool._connect = FakePeers().connect
            wire.reset()
            assert await refused(waiting) is Code.CONNECT_FAILED
            assert await refused(here.call("waitJob", job=EXEC_ID, peer="laptop")) is Code.CONNECT_FAILED

    asyncio.run(main())


@pytest.mark.parametrize("name", ["waitJob", "cancelJob"])
def test_a_wait_for_a_peer_that_hangs_up_each_time_ends(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with machine(tmp_path, reattach_timeout=0.05) as here, asyncio.timeout(10):
            waiting = here.call(name, job=EXEC_ID, peer="laptop")
            while not waiting.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        (wire,) = await here.asked(name)
                        wire.link.close()
            assert await refused(waiting) is Code.CONNECT_FAILED

    asyncio.run(main())


def test_a_wait_over_connections_that_last_does_not_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, reattach_timeout=0.0) as here:
            waiting = here.call("waitJob", job=EXEC_ID, peer="laptop")
            for _ in range(3):
                (wire,) = await here.asked("waitJob")
                wire.link.close()
            (wire,) = await here.asked("waitJob")
            tell(wire, ENDED)
            assert (await waiting).status == 3

    asyncio.run(main())


@pytest.mark.parametrize("where", ["vps", "laptop"])
@pytest.mark.parametrize("how", ["cancel", "gone"])
def test_ctrl_c_ends_the_wait_and_not_the_job(tmp_path: Path, where: str, how: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("exec sleep 1000", detach=True)
            waiting = here.call("waitJob", job=EXEC_ID, peer=where)
            wires = await here.asked("waitJob") if where == "laptop" else []
            (here.cancel if how == "cancel" else here.gone).set()
            assert await refused(waiting) is Code.NOT_WAITED
            for wire in wires:
                await wire.end()
            assert here.executor.running == 1
            await here.executor.cancel(EXEC_ID)

    asyncio.run(main())


def test_ctrl_c_in_a_cancel_does_not_say_that_the_job_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            cancelling = here.call("cancelJob", job=EXEC_ID, peer="laptop")
            await here.asked("cancelJob")
            here.cancel.set()
            with pytest.raises(PeerdError) as caught:
                await cancelling
            assert caught.value.hints == [f"Whether it was stopped: d getJob --job {EXEC_ID}"]

    asyncio.run(main())


def test_a_job_of_a_peer_is_cancelled_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            cancelling = here.call("cancelJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("cancelJob")
            tell(wire, replace(JOB, result=ExecResult.failure(PeerdError(Code.CANCELLED, peer="laptop"))))
            answer = await cancelling
            assert (answer.status, answer.error) == (0, None)
            assert f"{EXEC_ID} on laptop ended: cancelled" in answer.text

    asyncio.run(main())


def accessed(records: Journal) -> list[list[str | None]]:
    """What is on record of another's commands."""
    names = ("caller", "command", "exec_id", "peer")
    return [[record.text(name) for name in names] for record in records.of(Event.COMMAND_ACCESSED)]


@pytest.mark.parametrize("caller", [OTHER, Caller("vps", "root"), Caller("vps", "ann")], ids=str)
def test_who_deals_with_another_ones_job_is_on_record(tmp_path: Path, records: Journal, caller: Caller) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            await here.runs("echo up; exec sleep 1000", detach=True, caller=caller)
            attaching = here.call("attachJob", job=EXEC_ID)
            await here.heard.spoke.wait()
            here.cancel.set()
            await attaching
            here.cancel.clear()
            await here.call("cancelJob", job=EXEC_ID)
            await here.call("attachJob", Resume(EXEC_ID, 1, {"stdout": 3, "stderr": 0}), job=EXEC_ID)
        own = str(caller) == "ann@vps"
        assert accessed(records) == (
            [] if own else [["ann@vps", command, EXEC_ID, "vps"] for command in ("attachJob", "cancelJob")]
        )
        assert all(str(caller) in record.message for record in records.of(Event.COMMAND_ACCESSED))

    asyncio.run(main())


@pytest.mark.parametrize("caller", ["", "bob@vps", "ann@vps"])
def test_who_stops_another_ones_job_on_a_peer_is_on_record(tmp_path: Path, records: Journal, caller: str) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            if caller:
                here.past.put(history.ASKED, "laptop", replace(JOB, caller=caller))
            cancelling = here.call("cancelJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("cancelJob")
            assert accessed(records) == ([] if caller == "ann@vps" else [["ann@vps", "cancelJob", EXEC_ID, "laptop"]])
            tell(wire, ENDED)
            await cancelling

    asyncio.run(main())


def test_who_attaches_to_a_job_on_a_peer_that_was_not_asked_from_here_is_on_record(
    tmp_path: Path, records: Journal
) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            attaching = here.call("attachJob", job=EXEC_ID, peer="laptop")
            (wire,) = await here.asked("getJob")
            tell(wire, ENDED)
            await wire.expect("attachJob")
            wire.link.post("result", RESULT.to_wire())
            await attaching
            assert accessed(records) == [["ann@vps", "attachJob", EXEC_ID, "laptop"]]

    asyncio.run(main())


# --- listing


def test_the_jobs_of_all_peers_are_listed_the_oldest_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP, PHONE) as here:
            await here.runs("exec sleep 1000", detach=True)
            listing = here.call("listJobs")
            told, broken = [await here.peers.links.get() for _ in range(2)]
            for wire in (told, broken):
                await wire.expect("listJobs")
            many = [replace(JOB, exec_id=f"{number:016x}", started_usec=number) for number in range(40, 0, -1)]
            await jobs.tell(told.link, many)
            broken.reset()
            data = (await listing).data
            assert [int(job["exec_id"], 16) for job in data] == [*range(1, 41), int(EXEC_ID, 16)]
            (said,) = here.said
            assert said.startswith("Failed to connect to peer: ")
            await here.executor.cancel(EXEC_ID)

    asyncio.run(main())


def test_jobs_are_told_of_however_much_there_is_to_say_of_each() -> None:
    long = replace(JOB, command="\U0001f600" * MAX_SHOWN_COMMAND, directory="/" + "\1" * (validate.MAX_PATH - 1))
    many = [replace(long, exec_id=f"{number:016x}") for number in range(jobs._PER_FRAME)]

    async def main() -> None:
        async with linked() as (near, far):
            telling = asyncio.create_task(jobs.tell(far, many))
            assert await jobs._receive(near) == many
            await telling

    asyncio.run(main())


def test_of_a_command_no_more_is_held_than_is_told() -> None:
    long = replace(JOB, command="x" * validate.MAX_COMMAND)

    async def main() -> None:
        async with linked() as (near, far):
            far.post("reply", {"count": 1})
            far.post("jobs", {"jobs": [long.to_wire()]})
            assert await jobs._receive(near) == [long.shortened()]

    asyncio.run(main())


@pytest.mark.parametrize(
    "frames",
    [
        [("reply", {"count": -1})],
        [("reply", {"count": jobs.MAX_JOBS + 1})],
        [("reply", {"count": 1}), ("jobs", {"jobs": []})],
        [("reply", {"count": 1}), ("jobs", {"jobs": "x"})],
        [("reply", {"count": 1}), ("jobs", {"jobs": [{"execId": "x"}]})],
        [("reply", {"count": 1}), ("jobs", {"jobs": [1]})],
        [("reply", {"count": 1}), ("peers", {})],
    ],
    ids=str,
)
def test_a_list_that_is_none_is_said_to_be_so(tmp_path: Path, frames: list[tuple[str, dict[str, object]]]) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            listing = here.call("listJobs")
            wire = await here.peers.links.get()
            await wire.expect("listJobs")
            for type_, fields in frames:
                wire.link.post(type_, fields)
            assert (await listing).data == []
            assert "Malformed message" in here.said[0]

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_that_jobs_may_be_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS", 2)

    async def main() -> None:
        async with machine(tmp_path) as here:
            for number in range(count):
                await here.runs("echo all", f"{number:016x}", detach=True)
                await here.executor.wait(f"{number:016x}")
            listing = here.call("listJobs")
            wire = await here.peers.links.get()
            await wire.expect("listJobs")
            await jobs.tell(wire.link, [replace(ENDED, exec_id=f"{7 + number:016x}") for number in range(count)])
            assert len((await listing).data) == 2 * count
            said = [f"Of {peer} no more than the newest 2 jobs are listed" for peer in ("vps", "laptop")]
            assert here.said == (said if count == 2 else [])

    asyncio.run(main())


def test_only_the_jobs_of_the_peer_that_is_named_are_listed(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, DESKTOP, LAPTOP) as here:
            await here.runs("exec sleep 1000", detach=True)
            assert [job["exec_id"] for job in (await here.call("listJobs", peer="vps")).data] == [EXEC_ID]
            listing = here.call("listJobs", peer="laptop")
            wire = await here.peers.links.get()
            await wire.expect("listJobs")
            await jobs.tell(wire.link, [])
            assert (await listing).data == []
            assert here.peers.accepted == 1
            await here.executor.cancel(EXEC_ID)

    asyncio.run(main())


def test_the_history_is_found_by_what_is_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path, history_limit=3) as here:
            for number in range(1, 6):
                side = history.RAN if number % 2 else history.ASKED
                job = replace(ENDED, exec_id=f"{number:016x}", detached=False, started_usec=number * 1_000_000)
                result = replace(RESULT, started_usec=number * 1_000_000)
                here.past.put(side, "laptop" if number < 4 else "desktop", replace(job, result=result))
            asked: dict[str, dict[str, Any]] = {
                "all": {},
                "limit": {"limit": 2},
                "peer": {"peer": "laptop"},
                "since": {"since": 4.0},
                "outcome": {"outcome": "lost"},
            }
            found = {
                key: [int(str(entry["exec_id"]), 16) for entry in await here.history(**params)]
                for key, params in asked.items()
            }
            assert found == {"all": [5, 4, 3], "limit": [5, 4], "peer": [3, 2, 1], "since": [5, 4], "outcome": []}

    asyncio.run(main())


def test_of_a_long_history_no_caller_has_more_put_together_than_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PORTION", 2)

    async def main() -> None:
        async with machine(tmp_path) as here:
            for number in range(1, 8):
                here.past.put(history.RAN, "laptop", replace(ENDED, exec_id=f"{number:016x}", started_usec=number))
            first, second = [(await here.call("history")).rows for _ in range(2)]
            assert first is not None
            assert second is not None
            taken = await asyncio.gather(anext(first), anext(second))
            assert [len(rows) for rows in taken] == [2, 2]
            # Who reads slowly keeps nobody from reading.
            assert [len(rows) async for rows in second] == [2, 2, 1]
            here.cancel.set()
            assert [rows async for rows in first] == []

    asyncio.run(main())


def test_a_history_that_is_too_long_for_one_piece_is_refused_as_such(tmp_path: Path) -> None:
    async def main() -> None:
        async with machine(tmp_path) as here:
            here.past.put(history.RAN, "laptop", ENDED)
            with pytest.raises(PeerdError, match="too large"):
                await whole(await here.call("history"), 100)

    asyncio.run(main())
