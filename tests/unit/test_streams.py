"""What a command writes, for whoever follows it, and what it reads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.errors import Code, PeerdError
from peerd.messages import MAX_OUTPUT, STREAMS, WINDOW
from peerd.spool import Data, Spool
from peerd.streams import _WORTH_TELLING, Input, Output, OutputStream, Room, Window
from unit.support import EXEC_ID, Heard, pipe, read_all, readable


class Capped:
    """Room for so many bytes of all streams; what is over it is dropped."""

    waits = False

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def left(self, stream: OutputStream) -> int:
        return self.limit - stream.spool.size


class Command:
    """A command's ends of its output, and ours."""

    def __init__(self, writes: dict[str, int], output: Output) -> None:
        self.writes = writes
        self.output = output

    def write(self, data: bytes, stream: str = "stdout") -> int:
        """Write as much as the pipe takes."""
        return os.write(self.writes[stream], data)

    async def wrote(self, data: bytes, stream: str = "stdout") -> None:
        """Write all, at the pace at which it is taken."""
        while data:
            await writable(self.writes[stream])
            data = data[os.write(self.writes[stream], data) :]

    def close(self) -> None:
        """End its output."""
        for fd in self.writes.values():
            os.close(fd)
        self.writes.clear()


@contextmanager
def writing(room: Room | None = None) -> Iterator[Command]:
    spools = {stream: Spool.in_memory(stream) for stream in STREAMS}
    pipes, writes = {}, {}
    for stream in STREAMS:
        pipes[stream], writes[stream] = os.pipe()
        os.set_blocking(pipes[stream], False)
        os.set_blocking(writes[stream], False)
    command = Command(writes, Output(EXEC_ID, pipes, spools, room or Window()))
    try:
        yield command
    finally:
        command.close()
        for fd in pipes.values():
            os.close(fd)
        for spool in spools.values():
            spool.close()


async def writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)


async def turns() -> None:
    """Let the loop do all that is due: a pipe that is ready is seen in its next turn."""
    for _ in range(10):
        await asyncio.sleep(0)


def from_start() -> dict[str, int]:
    return dict.fromkeys(STREAMS, 0)


@given(st.lists(st.tuples(st.sampled_from(STREAMS), st.binary(min_size=1, max_size=3000)), max_size=12))
def test_every_follower_hears_all_in_order_whenever_it_comes(pieces: list[tuple[str, bytes]]) -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            first, second, late = Heard(), Heard(), Heard()
            following = [
                asyncio.create_task(command.output.follow(from_start(), heard.output)) for heard in (first, second)
            ]
            for stream, data in pieces:
                command.write(data, stream)
                await asyncio.sleep(0)
            command.close()
            await turns()
            assert all(stream.ended for stream in command.output.streams.values())
            command.output.end()
            await asyncio.gather(*following)
            await command.output.follow(from_start(), late.output)
            expected = {name: b"".join(data for stream, data in pieces if stream == name) for name in STREAMS}
            assert first.streams == second.streams == late.streams == expected
            assert command.output.sizes == {name: len(data) for name, data in expected.items()}
            assert command.output.dropped == 0

    asyncio.run(main())


@given(st.binary(max_size=500), st.integers(0, 500))
def test_a_follower_goes_on_from_any_offset(data: bytes, offset: int) -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            command.write(data, "stderr") if data else None
            await turns()
            command.output.end()
            heard = Heard()
            await command.output.follow({"stderr": offset}, heard.output)
            assert heard.streams == {"stdout": b"", "stderr": data[offset:]}

    asyncio.run(main())


def test_a_piece_is_never_larger_than_a_message() -> None:
    sizes = []

    async def deliver(stream: str, data: Data) -> None:
        sizes.append(len(data))

    async def main() -> None:
        with writing() as command:
            command.output.start()
            await command.wrote(bytes(3 * MAX_OUTPUT + 1))
            command.close()
            await turns()
            command.output.end()
            await command.output.follow(from_start(), deliver)
            assert sum(sizes) == 3 * MAX_OUTPUT + 1
            assert max(sizes) == MAX_OUTPUT

    asyncio.run(main())


def test_a_command_gets_a_window_ahead_of_what_is_confirmed_and_no_further() -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            writing_ = asyncio.create_task(command.wrote(bytes(2 * WINDOW + 500_000)))
            await writing_at_rest(command)
            assert command.output.sizes["stdout"] == WINDOW
            # The other stream has a window of its own.
            command.write(b"err", "stderr")
            await turns()
            assert command.output.sizes["stderr"] == 3
            command.output.confirm({"stdout": 1000, "stderr": 0})
            await writing_at_rest(command)
            assert command.output.sizes["stdout"] == WINDOW + 1000
            # What was confirmed before, what is not there yet and what nobody wrote change nothing.
            command.output.confirm({"stdout": 500, "stderr": 4})
            await writing_at_rest(command)
            assert command.output.sizes["stdout"] == WINDOW + 1000
            assert not writing_.done()
            while not writing_.done():
                command.output.confirm({"stdout": command.output.sizes["stdout"]})
                await writing_at_rest(command)
            command.close()
            await turns()
            assert command.output.sizes["stdout"] == 2 * WINDOW + 500_000

    asyncio.run(main())


async def writing_at_rest(command: Command) -> None:
    """Return when the command cannot write more, or has no more to write."""
    while True:
        before = command.output.sizes
        await turns()
        if command.output.sizes == before:
            return


def test_what_was_confirmed_cannot_be_heard_again() -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            command.write(b"0123456789")
            await turns()
            command.output.confirm({"stdout": 4, "stderr": 0})
            with pytest.raises(PeerdError) as caught:
                await command.output.follow({"stdout": 3}, Heard().output)
            assert (caught.value.code, caught.value.details) == (Code.OUTPUT_GONE, {"exec_id": EXEC_ID})
            command.output.end()
            heard = Heard()
            await command.output.follow({"stdout": 4}, heard.output)
            assert heard.streams["stdout"] == b"456789"

    asyncio.run(main())


def test_a_follower_that_fails_or_gives_up_is_forgotten() -> None:
    async def gone(stream: str, data: Data) -> None:
        raise ConnectionResetError

    async def main() -> None:
        with writing() as command:
            command.output.start()
            waiting = asyncio.create_task(command.output.follow(from_start(), Heard().output))
            failing = asyncio.create_task(command.output.follow(from_start(), gone))
            await turns()
            command.write(b"x")
            with pytest.raises(ConnectionResetError):
                await failing
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not command.output._readers
            command.output.stop()

    asyncio.run(main())


def test_what_is_discarded_is_neither_kept_nor_waited_with() -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            writing_ = asyncio.create_task(command.wrote(bytes(3 * WINDOW)))
            await writing_at_rest(command)
            command.output.discard()
            await writing_
            command.close()
            await turns()
            assert command.output.sizes["stdout"] == WINDOW
            assert command.output.dropped == 2 * WINDOW
            assert command.output.streams["stdout"].ended

    asyncio.run(main())


def test_over_a_quota_output_is_dropped_and_counted_and_the_command_never_waits() -> None:
    async def main() -> None:
        with writing(Capped(1000)) as command:
            command.output.start()
            await command.wrote(b"k" * 1000 + b"d" * 300_000)
            await command.wrote(b"fits", "stderr")
            command.close()
            await turns()
            await writing_at_rest(command)
            assert command.output.sizes == {"stdout": 1000, "stderr": 4}
            assert command.output.dropped == 300_000
            assert bytes(command.output.streams["stdout"].spool.extent(0, 2000)) == b"k" * 1000

    asyncio.run(main())


def test_a_quota_that_grows_takes_what_comes_from_then_on() -> None:
    async def main() -> None:
        room = Capped(2)
        with writing(room) as command:
            command.output.start()
            command.write(b"abc")
            await turns()
            room.limit = 10
            command.write(b"de")
            await turns()
            command.output.stop()
            assert bytes(command.output.streams["stdout"].spool.extent(0, 10)) == b"abde"
            assert command.output.dropped == 1

    asyncio.run(main())


def test_a_disk_that_is_full_drops_and_counts_what_does_not_fit() -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            command.write(b"kept")
            await turns()
            command.output.streams["stdout"].spool.end()
            command.write(b"dropped")
            await turns()
            command.write(b", too")
            command.close()
            await turns()
            assert command.output.sizes["stdout"] == 4
            assert command.output.dropped == len(b"dropped, too")
            assert command.output.streams["stdout"].ended

    asyncio.run(main())


@pytest.mark.parametrize("started", [False, True])
def test_the_rest_is_taken_at_the_end_whatever_room_there_is_and_no_more(started: bool) -> None:
    class None_:
        waits = True

        def left(self, stream: OutputStream) -> int:
            return 0

    async def main() -> None:
        with writing(None_()) as command:
            if started:
                command.output.start()
            command.write(b"last words")
            await turns()
            assert command.output.sizes["stdout"] == 0
            heard = Heard()
            following = asyncio.create_task(command.output.follow(from_start(), heard.output))
            command.output.finish()
            # The pipe is open still, in the hands of who escaped: nobody waits for it.
            command.write(b"not heard")
            await turns()
            command.output.end()
            await following
            assert heard.streams["stdout"] == b"last words"
            command.output.finish()
            command.output.start()
            await turns()
            assert command.output.sizes["stdout"] == 10

    asyncio.run(main())


def test_the_rest_counts_for_a_quota_too() -> None:
    async def main() -> None:
        with writing(Capped(4)) as command:
            command.write(b"lastwords")
            command.output.finish()
            assert command.output.sizes["stdout"] == 4
            assert command.output.dropped == 5

    asyncio.run(main())


def test_what_is_stopped_leaves_all_that_comes_to_another() -> None:
    async def main() -> None:
        with writing() as command:
            command.output.start()
            command.write(b"one ")
            await turns()
            command.output.stop()
            command.output.stop()
            command.write(b"two")
            await turns()
            assert command.output.sizes["stdout"] == 4
            command.output.start()
            command.output.start()
            await turns()
            command.output.stop()
            assert bytes(command.output.streams["stdout"].spool.extent(0, 100)) == b"one two"

    asyncio.run(main())


class Reading:
    """A command's standard input, and the sender's end of it."""

    def __init__(self, read: int, write: int) -> None:
        os.set_blocking(write, False)
        os.set_blocking(read, False)
        self.read_end = read
        self.closed = 0
        self.write_end = write
        self.spool = Spool.in_memory("stdin")
        self.input = Input(self.spool, write, self._close)

    def _close(self) -> None:
        self.closed += 1
        os.close(self.write_end)
        self.spool.close()


@contextmanager
def reading() -> Iterator[Reading]:
    with pipe() as (read, write):
        command = Reading(read, write)
        yield command
        command.input.close()


@given(st.lists(st.binary(min_size=1, max_size=100_000), max_size=6))
def test_a_command_reads_what_is_sent_whatever_the_pieces(pieces: list[bytes]) -> None:
    async def main() -> None:
        with reading() as command:
            got = asyncio.create_task(read_all(command.read_end))
            for piece in pieces:
                command.input.feed(piece)
                await asyncio.sleep(0)
            command.input.feed(b"")
            assert await got == b"".join(pieces)
            assert (command.closed, command.input.is_open()) == (1, False)

    asyncio.run(main())


def test_a_sender_is_granted_a_window_ahead_of_what_the_command_has_read() -> None:
    async def main() -> None:
        with reading() as command:
            assert (command.input.received, command.input.until) == (0, WINDOW)
            command.input.feed(bytes(WINDOW))
            telling = asyncio.create_task(command.input.taken(WINDOW))
            await turns()
            assert WINDOW < command.input.until < WINDOW + _WORTH_TELLING
            while not telling.done():
                await readable(command.read_end)
                os.read(command.read_end, 65536)
                await turns()
            assert telling.result() >= WINDOW + _WORTH_TELLING
            until = command.input.until
            command.input.feed(bytes(until - WINDOW))
            for data in (b"x", bytes(WINDOW)):
                with pytest.raises(PeerdError) as caught:
                    command.input.feed(data)
                assert caught.value.code is Code.BAD_MESSAGE
            assert command.input.received == until
            # More is granted only when the command reads.
            await turns()
            assert command.input.until == until
            os.read(command.read_end, 65536)
            await turns()
            assert command.input.until > until

    asyncio.run(main())


def test_nothing_comes_after_the_end_of_the_input() -> None:
    async def main() -> None:
        with reading() as command:
            command.input.feed(bytes(WINDOW // 2))
            command.input.feed(b"")
            command.input.feed(b"")
            with pytest.raises(PeerdError):
                command.input.feed(b"more")
            got = await read_all(command.read_end)
            assert len(got) == WINDOW // 2

    asyncio.run(main())


def test_input_that_the_command_does_not_read_any_more_is_dropped() -> None:
    async def main() -> None:
        with reading() as command:
            os.close(command.read_end)
            command.input.feed(b"x")
            await turns()
            assert (command.closed, command.input.is_open()) == (1, False)
            command.input.feed(b"y" * WINDOW)
            command.input.feed(b"")
            command.input.start()
            command.input.close()
            assert command.closed == 1
            # Who comes back learns where it was, and is granted no more.
            received, until = command.input.received, command.input.until
            assert received == 1
            more = asyncio.create_task(command.input.taken(until))
            await turns()
            assert not more.done()
            more.cancel()
            await asyncio.gather(more, return_exceptions=True)

    asyncio.run(main())


def test_input_that_is_stopped_goes_on_in_another_process_where_it_was() -> None:
    async def main() -> None:
        with reading() as command:
            command.input.feed(b"one ")
            await readable(command.read_end)
            assert os.read(command.read_end, 100) == b"one "
            command.input.stop()
            command.input.feed(b"two ")
            command.input.stop()
            spool, write = Spool(os.dup(command.spool.fd)), os.dup(command.write_end)
            command.input.close()

            def close() -> None:
                os.close(write)
                spool.close()

            again = Input(spool, write, close)
            assert (again.received, again.until) == (8, 4 + WINDOW)
            again.start()
            again.feed(b"three")
            again.feed(b"")
            assert await read_all(command.read_end) == b"two three"

    asyncio.run(main())


def test_a_command_that_has_ended_input_in_another_process_sees_its_end() -> None:
    async def main() -> None:
        with reading() as command:
            command.input.feed(b"all")
            command.input.feed(b"")
            command.input.stop()
            spool, write = Spool(os.dup(command.spool.fd)), os.dup(command.write_end)
            command.input.close()

            def close() -> None:
                os.close(write)
                spool.close()

            again = Input(spool, write, close)
            again.start()
            assert await read_all(command.read_end) == b"all"
            assert not again.is_open()

    asyncio.run(main())
