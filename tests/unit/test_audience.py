"""Who listens to a command, and to whom it listens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from peerd.audience import Audience
from peerd.errors import Code, Outcome, PeerdError
from peerd.messages import MAX_OUTPUT, STREAMS, WINDOW, ExecRequest, ExecResult
from peerd.run import Run
from peerd.session import Caller, Delivery, Session
from peerd.spool import Data, Spool
from peerd.stdin import Stdin
from peerd.streams import Input, Output, Window
from unit.support import EXEC_ID, Heard

RESULT = ExecResult(Outcome.EXITED, 3)


class FakeRun(Run):
    """Takes the place of a command: says and ends as the test wants it."""

    def __init__(self, detach: bool = False, stdin: FakeInput | None = None) -> None:
        self.request = ExecRequest(EXEC_ID, "/", "make", detach=detach)
        self.spools = {stream: Spool.in_memory(stream) for stream in STREAMS}
        self.output = Output(EXEC_ID, {}, self.spools, Window())
        self.input = stdin
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.began = False
        self.result: ExecResult | None = None
        self.cancels = 0

    def begin(self) -> None:
        self.began = True
        self.started.set()

    def say(self, data: bytes) -> None:
        self.spools["stdout"].append(data)
        self.output._changed()

    def end(self, result: ExecResult = RESULT) -> None:
        self.result = result
        self.started.set()
        self.ended.set()
        self.output.end()

    def cancel(self, abandoned: bool = False) -> None:
        self.cancels += 1

    def close(self, forget: bool = True) -> None:
        for spool in self.spools.values():
            spool.close()


class FakeInput(Input):
    """Takes the place of a command's standard input: takes nothing until it is told to."""

    def __init__(self, received: int = 0) -> None:
        self._open = True
        self.feeder = None
        self.got = bytearray(received)
        self.taken_so_far = received
        self.fed: list[int] = []
        self.ended = asyncio.Event()
        self._more = asyncio.Event()

    @property
    def received(self) -> int:
        return len(self.got)

    @property
    def until(self) -> int:
        return self.taken_so_far + WINDOW

    def feed(self, data: bytes | bytearray) -> None:
        assert len(self.got) + len(data) <= self.until
        self.got += data
        self.fed.append(len(data))
        if not data:
            self.ended.set()

    def take(self, count: int) -> None:
        self.taken_so_far += count
        self._more.set()

    async def taken(self, until: int) -> int:
        while self.until <= until:
            self._more.clear()
            await self._more.wait()
        return self.until


class Listener:
    """Who listens, and sends."""

    def __init__(self, run: FakeRun, sink: Heard | None = None) -> None:
        self.heard = sink or Heard()
        self.cancel, self.gone = asyncio.Event(), asyncio.Event()
        self.windows: list[tuple[int | None, int]] = []
        self.granted = asyncio.Event()
        self.stdin = Stdin(self._window)
        self.delivery = Delivery()
        session = Session(
            Caller("laptop"), self.heard, self.cancel, self.gone, lambda line: None, self.stdin, self.delivery
        )
        self.listening = asyncio.create_task(Audience(run, session).listen(dict.fromkeys(STREAMS, 0)))

    def _window(self, start: int | None, until: int, taken: int) -> None:
        self.windows.append((start, until))
        self.granted.set()


async def turns() -> None:
    """Let everybody do what is due."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_listener_hears_the_start_the_output_and_the_result_in_this_order() -> None:
    async def main() -> None:
        run = FakeRun()
        listener = Listener(run)
        run.say(b"early")
        await turns()
        assert (listener.heard.begun.is_set(), listener.heard.streams["stdout"]) == (False, bytearray())
        run.begin()
        await listener.heard.spoke.wait()
        assert listener.heard.begun.is_set()
        run.say(b", late")
        run.end()
        assert await listener.listening == RESULT
        assert listener.heard.streams["stdout"] == b"early, late"
        run.close()

    asyncio.run(main())


def test_a_command_that_never_began_is_not_said_to_have_started() -> None:
    async def main() -> None:
        run = FakeRun()
        listener = Listener(run)
        failed = ExecResult.failure(PeerdError(Code.NO_SUCH_DIRECTORY, peer="vps", directory="/x"))
        run.end(failed)
        assert await listener.listening == failed
        assert not listener.heard.begun.is_set()
        run.close()

    asyncio.run(main())


def test_a_cancel_stops_the_command_and_waits_for_its_end() -> None:
    async def main() -> None:
        run = FakeRun()
        listener = Listener(run)
        run.begin()
        listener.cancel.set()
        await turns()
        assert (run.cancels, listener.listening.done()) == (1, False)
        # Nothing more is heard of it.
        run.say(b"dropped")
        await turns()
        run.end()
        assert await listener.listening == RESULT
        assert listener.heard.streams["stdout"] == b""
        run.close()

    asyncio.run(main())


def test_a_cancel_of_who_listens_to_a_detached_command_is_a_farewell() -> None:
    async def main() -> None:
        run = FakeRun(detach=True)
        listener = Listener(run)
        run.begin()
        run.say(b"up")
        await listener.heard.spoke.wait()
        listener.cancel.set()
        assert await listener.listening is None
        assert run.cancels == 0
        run.close()

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_who_is_gone_hears_no_result_and_stops_nothing(cancelled: bool) -> None:
    async def main() -> None:
        run = FakeRun()
        listener = Listener(run)
        run.begin()
        if cancelled:
            listener.cancel.set()
            await turns()
        listener.gone.set()
        with pytest.raises(ConnectionError):
            await listener.listening
        assert run.cancels == cancelled
        run.close()

    asyncio.run(main())


def test_a_sink_that_fails_ends_the_listening() -> None:
    class Broken(Heard):
        async def output(self, stream: str, data: Data) -> None:
            raise ConnectionResetError("gone")

    async def main() -> None:
        run = FakeRun()
        listener = Listener(run, Broken())
        run.begin()
        run.say(b"x")
        with pytest.raises(ConnectionResetError):
            await listener.listening
        assert run.cancels == 0
        run.close()

    asyncio.run(main())


@pytest.mark.parametrize("detach", [False, True])
def test_what_is_confirmed_is_let_go_but_for_a_detached_command(detach: bool) -> None:
    async def main() -> None:
        run = FakeRun(detach)
        listener = Listener(run)
        run.begin()
        run.say(b"12345")
        await listener.heard.spoke.wait()
        listener.delivery.confirm({"stdout": 3, "stderr": 0})
        assert run.output.streams["stdout"].confirmed == (0 if detach else 3)
        run.end()
        await listener.listening
        # Nobody listens any more.
        listener.delivery.confirm({"stdout": 5, "stderr": 0})
        assert run.output.streams["stdout"].confirmed == (0 if detach else 3)
        run.close()

    asyncio.run(main())


def test_a_confirmation_that_came_before_is_taken_at_once() -> None:
    async def main() -> None:
        run = FakeRun()
        run.say(b"12345")
        session: Any = Session(
            *(Caller("laptop"), Heard(), asyncio.Event(), asyncio.Event()),
            *(lambda line: None, Stdin(lambda start, until, taken: None), Delivery()),
        )
        session.delivery.confirm({"stdout": 4, "stderr": 0})
        listening = asyncio.create_task(Audience(run, session).listen({"stdout": 4, "stderr": 0}))
        run.begin()
        run.end()
        await listening
        assert run.output.streams["stdout"].confirmed == 4
        assert session.sink.streams["stdout"] == b"5"
        run.close()

    asyncio.run(main())


def test_input_goes_in_at_the_pace_of_the_reader_in_pieces_of_a_message() -> None:
    async def main() -> None:
        reader = FakeInput()
        run = FakeRun(stdin=reader)
        listener = Listener(run)
        run.begin()
        await listener.granted.wait()
        assert listener.windows == [(0, WINDOW)]
        listener.stdin.feed(bytes(WINDOW))
        await turns()
        assert (reader.received, max(reader.fed)) == (WINDOW, MAX_OUTPUT)
        reader.take(10)
        await turns()
        assert listener.windows[1:] == [(None, WINDOW + 10)]
        listener.stdin.feed(b"0123456789")
        listener.stdin.feed(b"")
        await reader.ended.wait()
        assert bytes(reader.got[WINDOW:]) == b"0123456789"
        run.end()
        assert await listener.listening == RESULT
        run.close()

    asyncio.run(main())


def test_input_starts_where_the_reader_is() -> None:
    async def main() -> None:
        reader = FakeInput(received=5)
        run = FakeRun(stdin=reader)
        listener = Listener(run)
        await listener.granted.wait()
        assert listener.windows == [(5, WINDOW + 5)]
        listener.stdin.feed(b"more")
        await turns()
        assert bytes(reader.got[5:]) == b"more"
        run.end()
        await listener.listening
        run.close()

    asyncio.run(main())


def test_of_two_who_send_only_the_later_one_is_heard() -> None:
    async def main() -> None:
        reader = FakeInput()
        run = FakeRun(stdin=reader)
        run.begin()
        before = Listener(run)
        await before.granted.wait()
        before.stdin.feed(b"one ")
        await turns()
        later = Listener(run)
        await later.granted.wait()
        assert later.windows == [(4, WINDOW)]
        # The rest of what was on its way comes again.
        later.stdin.feed(b"two ")
        before.stdin.feed(b"two ")
        await turns()
        before.stdin.feed(b"three ")
        later.stdin.feed(b"three")
        later.stdin.feed(b"")
        await reader.ended.wait()
        assert bytes(reader.got) == b"one two three"
        run.end()
        await asyncio.gather(before.listening, later.listening)
        run.close()

    asyncio.run(main())


@pytest.mark.parametrize("stdin", [False, True])
def test_no_input_is_asked_of_who_listens_to_a_command_that_takes_none(stdin: bool) -> None:
    async def main() -> None:
        run = FakeRun(detach=stdin, stdin=FakeInput() if stdin else None)
        listener = Listener(run)
        run.begin()
        await turns()
        assert listener.windows == []
        run.end()
        await listener.listening
        run.close()

    asyncio.run(main())
