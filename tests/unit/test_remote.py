"""A command on another peer whose connection breaks: got back to where it was, and run once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from peerd import remote
from peerd.backoff import Backoff
from peerd.connection import Connection
from peerd.errors import Code, Outcome, PeerdError
from peerd.messages import WINDOW, ExecRequest, ExecResult
from peerd.peers import Peer
from peerd.pool import Pool
from peerd.protocol import Frame, encode
from peerd.remote import Remote
from peerd.session import Caller, ConfirmingSink, Delivery, Hearing, Resume, Session
from peerd.stdin import Stdin
from unit.support import EXEC_ID, FakePeers, Heard, Slow, Wire

LAPTOP = Peer("laptop", "127.0.0.4", is_online=True)
REQUEST = ExecRequest(EXEC_ID, "/tmp", "make", timeout=5.0)
NO_SUCH_JOB = PeerdError(Code.NO_SUCH_JOB, exec_id=EXEC_ID).to_wire()
DUPLICATE = ExecResult.failure(PeerdError(Code.DUPLICATE, exec_id=EXEC_ID, peer="laptop")).to_wire()
DONE: dict[str, object] = {"outcome": "exited", "exitStatus": 3}
LONG = 1000.0
SMALL = 200_000


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "take", lambda self: 0.0)


class Calling:
    """A caller here, and the peers that it calls."""

    def __init__(
        self, peers: FakePeers, patience: float, heard: Heard, hearing: Hearing | None, resume: Resume | None
    ) -> None:
        self.peers = peers
        self.heard = heard
        self.cancel, self.gone = asyncio.Event(), asyncio.Event()
        self.said: list[str] = []
        self.asked: asyncio.Queue[tuple[int | None, int]] = asyncio.Queue()
        self.stdin = Stdin(lambda start, until, taken: self.asked.put_nowait((start, until)))
        self.delivery = Delivery()
        self.pool = Pool(peers.connect, lambda: 5.0)
        session = Session(
            Caller("vps", "ann"),
            ConfirmingSink(self.heard, self.delivery),
            self.cancel,
            self.gone,
            self.said.append,
            self.stdin,
            self.delivery,
            hearing=hearing,
            resume=resume,
        )
        self.remote = Remote(self.pool, LAPTOP, EXEC_ID, session, patience)

    def execute(self, request: ExecRequest = REQUEST) -> asyncio.Task[ExecResult]:
        return asyncio.create_task(self.remote.execute(request))

    def attach(self, begun: bool = False, **offsets: int) -> asyncio.Task[ExecResult]:
        return asyncio.create_task(self.remote.attach({"stdout": 0, "stderr": 0, **offsets}, begun))

    async def target(self, type_: str) -> Wire:
        """The next connection that the target gets, and which asks for this."""
        wire = await self.peers.links.get()
        self.last = await wire.expect(type_)
        return wire

    async def output(self, wire: Wire, data: bytes, stream: str = "stdout") -> None:
        """Send output, and wait until it was heard."""
        self.heard.spoke.clear()
        wire.link.post("output", {"stream": stream}, data)
        await self.heard.spoke.wait()


@asynccontextmanager
async def calling(
    patience: float = LONG, heard: Heard | None = None, hearing: Hearing | None = None, resume: Resume | None = None
) -> AsyncIterator[Calling]:
    async with FakePeers().serving() as peers:
        peers.boot = "boot 1"
        caller = Calling(peers, patience, heard or Heard(), hearing, resume)
        try:
            yield caller
        finally:
            caller.pool.drop()


async def refused(running: asyncio.Task[ExecResult]) -> Code:
    with pytest.raises(PeerdError) as caught:
        await running
    return caught.value.code


def attach_at(frame: Frame, stdout: int, stderr: int) -> bool:
    return frame.fields == {"execId": EXEC_ID, "stdout": stdout, "stderr": stderr}


def test_that_it_started_is_passed_on_once_however_often_it_is_said() -> None:
    starts: list[Heard] = []

    class Counting(Heard):
        async def started(self) -> None:
            starts.append(self)

    async def main() -> None:
        async with calling(heard=Counting()) as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            for _ in range(3):
                wire.link.post("started")
            await caller.output(wire, b"one ")
            wire.reset()
            wire = await caller.target("attachJob")
            wire.link.post("started")
            await wire.link.send("result", ExecResult(Outcome.EXITED, 0).to_wire())
            await running
            assert len(starts) == 1

    asyncio.run(main())


def test_a_connection_that_breaks_again_and_again_loses_and_repeats_nothing() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            wire.link.post("started")
            await caller.output(wire, b"one ")
            await caller.output(wire, b"err", "stderr")
            wire.reset()
            wire = await caller.target("attachJob")
            assert attach_at(caller.last, 4, 3)
            # Nothing new this time.
            wire.link.close()
            wire = await caller.target("attachJob")
            assert attach_at(caller.last, 4, 3)
            await caller.output(wire, b"two")
            wire.reset()
            wire = await caller.target("attachJob")
            assert attach_at(caller.last, 7, 3)
            wire.link.post("result", DONE)
            result = await running
            assert (result.outcome, result.exit_status) == (Outcome.EXITED, 3)
            assert caller.heard.streams == {"stdout": b"one two", "stderr": b"err"}
            assert (await wire.expect("done")).fields == {}
            assert caller.said == []

    asyncio.run(main())


@pytest.mark.parametrize("lost", [False, True])
def test_a_caller_that_pauses_keeps_nobody_waiting_and_misses_nothing(lost: bool) -> None:
    async def main() -> None:
        async with calling(heard=(slow := Slow())) as caller:
            running = caller.execute()
            expected = "one " + "." * SMALL
            wire = await caller.target("execRequest")
            wire.link.post("output", {"stream": "stdout"}, b"one ")
            # More than what its connection holds, in pieces that are mostly header.
            wire.link.post_encoded(encode("output", {"stream": "stdout"}, b".") * SMALL)
            await wire.link.drain()
            if lost:
                wire.reset()
                wire = await caller.target("attachJob")
                expected = "one ".ljust(int(str(caller.last.fields["stdout"])), ".")
                wire.link.post("error", PeerdError(Code.OUTPUT_GONE, exec_id=EXEC_ID).to_wire())
            else:
                wire.link.post("result", DONE)
            done, _ = await asyncio.wait((running,), timeout=0.05)
            assert not done
            slow.welcome.set()
            if lost:
                assert await refused(running) is Code.OUTPUT_GONE
            else:
                assert (await running).exit_status == 3
            assert slow.streams["stdout"].decode() == expected

    asyncio.run(main())


async def ran(caller: Calling) -> Wire:
    """Have a command run to its end; its connection."""
    running = caller.execute()
    wire = await caller.target("execRequest")
    wire.link.post("result", DONE)
    assert (await running).exit_status == 3
    return wire


def test_a_target_is_told_that_all_was_heard_once_it_was() -> None:
    async def main() -> None:
        hearing = Hearing()
        async with calling(hearing=hearing) as caller:
            wire = await ran(caller)
            # Meanwhile the connection is nobody else's.
            async with caller.pool.borrow("127.0.0.4") as other:
                await other.send("ping")
            assert (await (await caller.peers.links.get()).next()).type == "ping"
            await hearing.aclose()
            async with caller.pool.borrow("127.0.0.4") as same:
                await same.send("ping")
            assert [(await wire.next()).type for _ in range(2)] == ["done", "ping"]
            assert caller.peers.accepted == 2

    asyncio.run(main())


def test_a_target_is_not_told_so_where_nobody_knows() -> None:
    async def main() -> None:
        hearing = Hearing()
        async with calling(hearing=hearing) as caller:
            wire = await ran(caller)
            with pytest.raises(ConnectionError):
                async with hearing:
                    raise ConnectionError("the caller is gone")
            with pytest.raises(ConnectionError):
                await wire.link.expect("done")

    asyncio.run(main())


def test_what_was_heard_is_confirmed_and_again_on_each_new_connection() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            await caller.output(wire, b"12345")
            ack = await wire.next()
            assert (ack.type, ack.fields) == ("ack", {"stdout": 5, "stderr": 0})
            wire.reset()
            wire = await caller.target("attachJob")
            ack = await wire.next()
            assert (ack.type, ack.fields) == ("ack", {"stdout": 5, "stderr": 0})
            wire.link.post("result", DONE)
            await running

    asyncio.run(main())


def test_a_request_that_never_arrived_is_made_once_more() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await caller.target("execRequest")).reset()
            wire = await caller.target("attachJob")
            wire.link.post("error", NO_SUCH_JOB)
            wire = await caller.target("execRequest")
            assert ExecRequest.from_wire(caller.last.fields) == REQUEST
            await caller.output(wire, b"ran")
            wire.link.post("result", DONE)
            assert (await running).exit_status == 3
            assert caller.peers.accepted == 3

    asyncio.run(main())


def test_a_request_that_was_only_late_is_heard_of_and_does_not_run_twice() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await caller.target("execRequest")).reset()
            (await caller.target("attachJob")).link.post("error", NO_SUCH_JOB)
            wire = await caller.target("execRequest")
            wire.link.post("result", DUPLICATE)
            # The connection serves the next request, too.
            await wire.expect("attachJob")
            await caller.output(wire, b"ran")
            wire.link.post("result", DONE)
            assert (await running).exit_status == 3
            assert caller.heard.streams["stdout"] == b"ran"

    asyncio.run(main())


async def asked_twice(caller: Calling) -> Wire:
    """Have the target take the first request for one that is late; where it is asked after the command now."""
    (await caller.target("execRequest")).reset()
    (await caller.target("attachJob")).link.post("error", NO_SUCH_JOB)
    wire = await caller.target("execRequest")
    wire.link.post("result", DUPLICATE)
    await wire.expect("attachJob")
    return wire


def test_who_asked_twice_waits_for_the_command_to_be_started() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await asked_twice(caller)).link.post("error", NO_SUCH_JOB)
            (await caller.target("attachJob")).link.post("error", NO_SUCH_JOB)
            wire = await caller.target("attachJob")
            await caller.output(wire, b"ran")
            wire.link.post("result", DONE)
            assert (await running).exit_status == 3

    asyncio.run(main())


@pytest.mark.parametrize("how", ["patience", "cancel", "gone"])
def test_who_asked_twice_does_not_wait_for_ever(how: str) -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await asked_twice(caller)
            if how == "patience":
                caller.remote._patience = 0.0
            else:
                getattr(caller, how).set()
            wire.link.post("error", NO_SUCH_JOB)
            assert await refused(running) is Code.LOST

    asyncio.run(main())


def test_an_id_that_somebody_used_before_is_a_duplicate() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await caller.target("execRequest")).link.post("result", DUPLICATE)
            result = await running
            assert result.error is not None
            assert result.error.code is Code.DUPLICATE
            assert caller.peers.accepted == 1

    asyncio.run(main())


def test_a_target_that_was_rebooted_is_not_asked_again() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            caller.peers.boot = "boot 2"
            wire.reset()
            (await caller.target("attachJob")).link.post("error", NO_SUCH_JOB)
            assert await refused(running) is Code.LOST
            assert caller.peers.accepted == 2

    asyncio.run(main())


def test_a_command_of_which_something_was_heard_is_not_asked_for_again() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            await caller.output(wire, b"ran")
            wire.reset()
            (await caller.target("attachJob")).link.post("error", NO_SUCH_JOB)
            assert await refused(running) is Code.LOST
            assert caller.peers.accepted == 2

    asyncio.run(main())


def test_a_command_that_was_stopped_because_we_came_back_too_late_is_lost() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.ABANDONED, peer="laptop")).to_wire())
            result = await running
            assert (result.outcome, result.exit_status) == (Outcome.LOST, 255)

    asyncio.run(main())


@pytest.mark.parametrize(("begun", "code"), [(True, Code.LOST), (False, Code.NO_SUCH_JOB)])
def test_who_only_attaches_never_asks_for_a_run(begun: bool, code: Code) -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.attach(begun=begun, stdout=9)
            wire = await caller.target("attachJob")
            assert attach_at(caller.last, 9, 0)
            wire.link.post("error", NO_SUCH_JOB)
            assert await refused(running) is code
            assert caller.peers.accepted == 1

    asyncio.run(main())


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("attaching", [False, True])
@pytest.mark.parametrize("code", [Code.UNKNOWN_PEER, Code.UNKNOWN_MESSAGE, Code.INTERNAL])
def test_a_refusal_on_the_way_back_does_not_say_that_nothing_ran(code: Code, attaching: bool, heard: bool) -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.attach() if attaching else caller.execute()
            wire = await caller.target("attachJob" if attaching else "execRequest")
            if heard:
                await caller.output(wire, b"ran")
            wire.reset()
            refusal = PeerdError(code, peer="laptop")
            (await caller.target("attachJob")).link.post("error", refusal.to_wire())
            with pytest.raises(PeerdError) as caught:
                await running
            assert caught.value.code is Code.LOST
            assert caught.value.hints[0] == f"| {refusal.sentence}"

    asyncio.run(main())


def test_that_the_output_is_gone_is_passed_on() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await caller.target("execRequest")).reset()
            gone = PeerdError(Code.OUTPUT_GONE, exec_id=EXEC_ID)
            (await caller.target("attachJob")).link.post("error", gone.to_wire())
            assert await refused(running) is Code.OUTPUT_GONE

    asyncio.run(main())


@pytest.mark.parametrize("attaching", [False, True])
@pytest.mark.parametrize("code", [Code.UNKNOWN_PEER, Code.BUSY])
def test_a_refusal_of_what_was_never_begun_is_passed_on(code: Code, attaching: bool) -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.attach() if attaching else caller.execute()
            wire = await caller.target("attachJob" if attaching else "execRequest")
            wire.link.post("error", PeerdError(code).to_wire())
            assert await refused(running) is code
            assert caller.peers.accepted == 1

    asyncio.run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_a_target_that_is_too_busy_for_who_comes_back_is_tried_again(begun: bool) -> None:
    busy = PeerdError(Code.BUSY, reason="too many connections (max-connections)").to_wire()

    async def main() -> None:
        async with calling() as caller:
            running = caller.attach(begun=True) if begun else caller.execute()
            if not begun:
                (await caller.target("execRequest")).reset()
            for _ in range(3):
                (await caller.target("attachJob")).link.post("error", busy)
            (await caller.target("attachJob")).link.post("result", DONE)
            assert (await running).exit_status == 3

    asyncio.run(main())


@pytest.mark.parametrize("how", ["patience", "cancel", "gone"])
def test_who_comes_back_to_a_target_that_stays_too_busy_has_lost_the_command(how: str) -> None:
    async def main() -> None:
        async with calling(0.0 if how == "patience" else LONG) as caller:
            running = caller.attach(begun=True)
            wire = await caller.target("attachJob")
            if how != "patience":
                getattr(caller, how).set()
            wire.link.post("error", PeerdError(Code.BUSY).to_wire())
            assert await refused(running) is Code.LOST

    asyncio.run(main())


@pytest.mark.parametrize("how", ["patience", "cancel", "gone"])
def test_who_cannot_wait_any_longer_has_lost_the_command(how: str) -> None:
    async def main() -> None:
        async with calling(0.0 if how == "patience" else LONG) as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            await caller.output(wire, b"so far")
            if how == "cancel":
                caller.cancel.set()
                await wire.expect("cancel")
            elif how == "gone":
                caller.gone.set()
            # Nobody is there any more.
            caller.pool._connect = FakePeers().connect
            wire.reset()
            with pytest.raises(PeerdError) as caught:
                await running
            assert (caught.value.code, caught.value.details) == (Code.LOST, {"peer": "laptop", "exec_id": EXEC_ID})

    asyncio.run(main())


def test_who_waits_long_is_told_once_and_finds_a_target_that_comes_back() -> None:
    async def main() -> None:
        tries = 0

        async def connect(address: str) -> Connection:
            nonlocal tries
            tries += bool(caller.said)
            return await (caller.peers if tries > 5 else FakePeers()).connect(address)

        async with calling(1.0) as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            caller.pool._connect = connect
            wire.reset()
            (await caller.target("attachJob")).link.post("result", DONE)
            assert (await running).exit_status == 3
            assert tries == 6
            assert caller.said == ["Connection to laptop lost, trying to get back to the command"]

    asyncio.run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_only_who_heard_of_it_before_waits_for_a_target_that_is_not_there(begun: bool) -> None:
    async def main() -> None:
        tries = 0

        async def connect(address: str) -> Connection:
            nonlocal tries
            tries += 1
            return await (caller.peers if tries > 2 else FakePeers()).connect(address)

        async with calling() as caller:
            caller.pool._connect = connect
            running = caller.attach(begun)
            if begun:
                (await caller.target("attachJob")).link.post("result", DONE)
                assert (await running).exit_status == 3
            else:
                assert await refused(running) is Code.CONNECT_FAILED

    asyncio.run(main())


def test_a_cancel_while_the_connection_is_broken_is_passed_on_over_the_next() -> None:
    async def main() -> None:
        async with calling() as caller:
            tries = 0

            async def connect(address: str) -> Connection:
                nonlocal tries
                tries += 1
                # In the middle of the way back.
                caller.cancel.set()
                return await caller.peers.connect(address)

            running = caller.execute()
            wire = await caller.target("execRequest")
            caller.pool._connect = connect
            wire.reset()
            wire = await caller.target("attachJob")
            await wire.expect("cancel")
            wire.link.post("output", {"stream": "stdout"}, b"dropped")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.CANCELLED, peer="laptop")).to_wire())
            assert (await running).outcome is Outcome.CANCELLED
            assert (tries, caller.heard.streams["stdout"]) == (1, bytearray())

    asyncio.run(main())


@pytest.mark.parametrize("detach", [False, True])
def test_a_command_that_was_cancelled_before_it_was_sent_is_never_sent(detach: bool) -> None:
    async def main() -> None:
        async with calling() as caller:
            asked: list[bool] = []

            async def connect(address: str) -> Connection:
                caller.cancel.set()
                return await caller.peers.connect(address)

            caller.pool._connect = connect
            request = replace(REQUEST, detach=detach)
            with pytest.raises(PeerdError) as caught:
                await caller.remote.execute(request, lambda: asked.append(True))
            assert (caught.value.code, asked) == (Code.CANCELLED, [])
            await (await caller.peers.links.get()).end()

    asyncio.run(main())


def test_a_target_that_says_nothing_after_the_cancel_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CANCEL_LIMIT", 0.0)

    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            wire = await caller.target("execRequest")
            caller.cancel.set()
            await wire.expect("cancel")
            assert await refused(running) is Code.LOST

    asyncio.run(main())


def test_input_is_sent_again_from_where_the_target_is() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute(ExecRequest(EXEC_ID, "/tmp", "cat", stdin=True))
            wire = await caller.target("execRequest")
            wire.link.post("stdinWindow", {"from": 0, "until": WINDOW})
            assert await caller.asked.get() == (0, WINDOW)
            caller.stdin.feed(b"0123456789")
            assert (await wire.expect("stdin")).payload == b"0123456789"
            wire.reset()
            wire = await caller.target("attachJob")
            # The target has four of them, and has passed on two.
            wire.link.post("stdinWindow", {"from": 4, "until": WINDOW + 2})
            assert await caller.asked.get() == (None, WINDOW + 2)
            assert (await wire.expect("stdin")).payload == b"456789"
            caller.stdin.feed(b"more")
            assert (await wire.expect("stdin")).payload == b"more"
            caller.stdin.feed(b"")
            assert (await wire.expect("stdin")).payload == b""
            wire.reset()
            wire = await caller.target("attachJob")
            wire.link.post("stdinWindow", {"from": 12, "until": WINDOW + 2})
            assert [(await wire.expect("stdin")).payload for _ in range(2)] == [b"re", b""]
            wire.link.post("result", DONE)
            assert (await running).exit_status == 3

    asyncio.run(main())


def test_a_target_gets_a_window_beyond_what_it_was_sent_and_no_more() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute(ExecRequest(EXEC_ID, "/tmp", "cat", stdin=True))
            wire = await caller.target("execRequest")
            wire.link.post("stdinWindow", {"from": 0, "until": WINDOW})
            assert await caller.asked.get() == (0, WINDOW)
            caller.stdin.feed(bytes(1000))
            assert len((await wire.expect("stdin")).payload) == 1000
            wire.link.post("stdinWindow", {"until": WINDOW + 1000})
            assert await caller.asked.get() == (None, WINDOW + 1000)
            wire.reset()
            wire = await caller.target("attachJob")
            # It cannot have had more either.
            wire.link.post("stdinWindow", {"from": 1001, "until": WINDOW + 1001})
            assert await refused(running) is Code.LOST

    asyncio.run(main())


def test_a_detached_command_is_answered_once_it_was_started() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute(ExecRequest(EXEC_ID, "/tmp", "make", detach=True))
            (await caller.target("execRequest")).link.post("started")
            result = await running
            assert (result.error, caller.heard.begun.is_set()) == (None, True)

    asyncio.run(main())


def test_a_detached_command_that_may_run_already_is_not_said_to_be_cancelled() -> None:
    async def main() -> None:
        async with calling(resume=Resume(EXEC_ID, 1, {"stdout": 0, "stderr": 0})) as caller:
            caller.cancel.set()
            running = caller.execute(ExecRequest(EXEC_ID, "/tmp", "make", detach=True))
            (await caller.target("execRequest")).link.post("started")
            assert (await running).error is None

    asyncio.run(main())


def test_an_error_on_the_way_back_names_the_peer_as_it_is_known_here() -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.attach()
            wire = await caller.target("attachJob")
            wire.link.post("result", ExecResult.failure(PeerdError(Code.CUT_OFF, ["why"], peer="liar")).to_wire())
            result = await running
            assert str(result.error) == "Cut off: laptop went down, or its peerd was stopped, while the command ran"
            assert result.error
            assert result.error.lines == ["why"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        ("output", {"stream": "stdin"}),
        ("output", {}),
        ("stdinWindow", {"from": -1, "until": 5}),
        ("stdinWindow", {"from": 0}),
        ("stdinWindow", {"until": "x"}),
        ("stdinWindow", {"from": 0, "until": WINDOW + 1}),
        ("stdinWindow", {"from": 5, "until": WINDOW + 6}),
        ("stdinCredit", {"bytes": WINDOW + 1}),
        ("result", {"outcome": "exited", "exitStatus": 256}),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_loses_the_command(type_: str, fields: dict[str, object]) -> None:
    async def main() -> None:
        async with calling() as caller:
            running = caller.execute()
            (await caller.target("execRequest")).link.post(type_, fields)
            assert await refused(running) is Code.LOST
            assert caller.peers.accepted == 1

    asyncio.run(main())
