"""The client as a program of its own, against a daemon that does what the test says."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peerd import client, clientpipes, deploy, network, protocol
from peerd.client import _ATTEMPTS
from peerd.clientstdin import Stdin
from peerd.connection import Connection
from peerd.messages import MAX_OUTPUT, NARROW_WINDOW, WINDOW
from peerd.protocol import Frame
from unit.support import EXEC_ID, Wire, pipe, readable, unix_server

MAIN = "from peerd.client import main; raise SystemExit(main())"
ROOT = Path(__file__).parents[2]
ATTACHED = ("execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true")
STOPPED = b"  The command is stopped, if it has not ended.\n"
RUNS_ON = f"  Its job runs on, if it was started. To stop it: d cancelJob --job {EXEC_ID}\n".encode()


class Running:
    """A running `d`, whose output is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.spoke = asyncio.Event()
        self._out = asyncio.create_task(self._read(process.stdout))
        self._err = asyncio.create_task(self._read(process.stderr))

    async def _read(self, stream: asyncio.StreamReader | None) -> bytes:
        data = b""
        while stream and (chunk := await stream.read(65536)):
            data += chunk
            self.spoke.set()
        return data

    async def ended(self) -> tuple[int, bytes, bytes]:
        """Its exit status, stdout and stderr."""
        return await self.process.wait(), await self._out, await self._err

    async def gone(self) -> None:
        """End it, if it runs still."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()


@dataclass
class Client:
    """A running `d`, and the daemon's end of its connection."""

    running: Running
    wire: Wire
    wires: asyncio.Queue[Wire]
    newest: int = protocol.PROTOCOL_VERSION
    invoke: Frame = field(init=False)

    async def asked(self) -> None:
        """Take what it asks for."""
        assert (await self.wire.link.expect("hello")).fields["protocol"] == 1
        self.invoke = await self.wire.link.expect("invoke")

    def greet(self) -> None:
        """Say hello."""
        self.wire.link.post("hello", {"protocol": 1, "newest": self.newest, "version": "test"})

    async def greeted(self) -> None:
        """Both."""
        await self.asked()
        self.greet()

    async def again(self) -> Frame:
        """Take its next connection, after this one broke; what it asks for now."""
        self.wire.link.close()
        await self.wire.link.finish()
        self.wire = await self.wires.get()
        await self.greeted()
        return self.invoke

    async def ended(self) -> tuple[int, bytes, bytes]:
        """Its exit status, stdout and stderr."""
        return await self.running.ended()


async def program(
    path: Path | str,
    *argv: str,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int = asyncio.subprocess.PIPE,
    through: Sequence[str] = (),
) -> Running:
    return Running(
        await asyncio.create_subprocess_exec(
            *(*through, sys.executable, "-c", MAIN, *argv),
            env={"PATH": "/usr/bin:/bin", "PEERD_SOCKET": str(path), "PYTHONPATH": str(ROOT)},
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
        )
    )


@asynccontextmanager
async def called(
    directory: Path,
    *argv: str,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int = asyncio.subprocess.PIPE,
    through: Sequence[str] = (),
    newest: int = protocol.PROTOCOL_VERSION,
    greeted: bool = True,
) -> AsyncIterator[Client]:
    """`d`, at the point where it is being greeted, or waits for that; its command has arrived."""
    wires: asyncio.Queue[Wire] = asyncio.Queue()

    async def accept(link: Connection) -> None:
        wires.put_nowait(Wire(link))

    async with unix_server(accept, directory / "socket") as path:
        running = await program(path, *argv, stdin=stdin, stdout=stdout, through=through)
        client = Client(running, await wires.get(), wires, newest)
        try:
            await client.asked()
            assert "resume" not in client.invoke.fields
            if greeted:
                client.greet()
            yield client
        finally:
            await running.gone()
            client.wire.link.abort()
            await client.wire.link.finish()
            assert wires.empty()


async def without_daemon(path: Path, *argv: str) -> tuple[int, bytes, bytes]:
    return await (await program(path, *argv)).ended()


def test_the_arguments_go_to_the_daemon_as_they_are(tmp_path: Path) -> None:
    async def main() -> None:
        argv = ["execOnPeer", "--shellCmd", "echo 'ü' \"$X\"\n", "", os.fsdecode(b"\xff")]
        async with called(tmp_path, *argv) as client:
            assert client.invoke.fields["argv"] == argv
            assert client.invoke.fields["terminal"] is False
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, b"", b"")

    asyncio.run(main())


def test_arguments_take_no_more_room_than_they_need(tmp_path: Path) -> None:
    async def main() -> None:
        argv = ["execOnPeer", *["é" * 60_000 + os.fsdecode(b"\xff")] * 7]
        async with called(tmp_path, *argv) as client:
            assert client.invoke.fields["argv"] == argv
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, b"", b"")

    asyncio.run(main())


@pytest.mark.parametrize("more", [(), ("--json",), ("--json", "--stream")], ids=len)
def test_arguments_that_are_too_long_together_are_said_to_be(tmp_path: Path, more: Sequence[str]) -> None:
    variables = [f"--env=V{number}={'x' * 75_000}" for number in range(20)]

    async def accept(link: Connection) -> None:
        assert await link.receive() is None
        link.close()

    async def main() -> None:
        async with unix_server(accept, tmp_path / "socket") as path:
            argv = ["execOnPeer", "--peer=vps", "--directory=/", "--shellCmd=true", *variables, *more]
            status, out, err = await without_daemon(path, *argv)
            sentence = err.decode().splitlines()[0]
            assert status == 2
            assert re.fullmatch(r"Arguments and variables are too long: 15\d{5} bytes, at most 1044480", sentence)
            if more:
                record = json.loads(out)
                assert (record["outcome"], record["error"]["code"]) == ("failed", "usage")
                assert record["error"]["message"] == sentence
            else:
                assert out == b""

    asyncio.run(main())


@pytest.mark.parametrize("status", [0, 1, 2, 124, 130, 255])
def test_the_exit_status_is_the_one_that_the_daemon_says(tmp_path: Path, status: int) -> None:
    async def main() -> None:
        async with called(tmp_path, "version") as client:
            client.wire.link.post("exit", {"status": status})
            assert await client.ended() == (status, b"", b"")

    asyncio.run(main())


def test_streams_go_where_they_belong_byte_for_byte(tmp_path: Path) -> None:
    every = bytes(range(256))

    async def main() -> None:
        async with called(tmp_path, "version") as client:
            link = client.wire.link
            link.post("started")
            for _ in range(50):
                await link.send("output", {"stream": "stdout"}, every * 256)
                await link.send("output", {"stream": "stderr"}, every[::-1])
            link.post("output", {"stream": "stdout"})
            link.post("exit", {"status": 7})
            assert await client.ended() == (7, every * 256 * 50, every[::-1] * 50)

    asyncio.run(main())


def test_frames_may_come_in_any_pieces(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "version") as client:
            for byte in b'{"type":"output","stream":"stdout","size":3}\n{}\n{"type":"exit","status":4}\n':
                client.wire.link.post_encoded(bytes([byte]))
                await client.wire.link.drain()
            assert await client.ended() == (4, b"{}\n", b"")

    asyncio.run(main())


def test_an_error_is_shown_and_ends_with_255(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "version") as client:
            client.wire.link.post("error", {"code": "busy", "message": "Too busy: é \udcff"})
            assert await client.ended() == (255, b"", "Too busy: é \\udcff\n".encode())

    asyncio.run(main())


def test_an_error_is_shown_also_where_the_daemon_hung_up_before_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = """
import select
from peerd import client

class Late(client.socket):
    def connect(self, path):
        super().connect(path)
        poll = select.poll()
        poll.register(self, 0)
        assert poll.poll()

client.socket = Late
"""
    monkeypatch.setattr("unit.test_client.MAIN", late + MAIN)

    async def accept(link: Connection) -> None:
        link.post("error", {"code": "busy", "message": "Too busy"})
        link.close()

    async def main() -> None:
        async with unix_server(accept, tmp_path / "socket") as path:
            assert await without_daemon(path, "version") == (255, b"", b"Too busy\n")

    asyncio.run(main())


PARTS = [b"", b'{"type":"out', b'{"type":"output","stream":"stdout","by":"peerd","size":9}\nhalf']


@pytest.mark.parametrize("part", PARTS)
def test_a_daemon_that_goes_once_it_took_the_command_is_not_asked_again(tmp_path: Path, part: bytes) -> None:
    async def main() -> None:
        async with called(tmp_path, "deletePeer") as client:
            client.wire.link.post("running", {"execId": "", "step": 1})
            client.wire.link.post_encoded(part)
            client.wire.link.close()
            status, out, err = await client.ended()
            assert (status, out) == (255, b"")
            assert err.startswith(b"peerd ended the connection before the command's result\n")
            assert b"journalctl" in err

    asyncio.run(main())


@pytest.mark.parametrize("part", PARTS)
def test_a_daemon_that_goes_before_it_took_the_command_is_asked_again(tmp_path: Path, part: bytes) -> None:
    async def main() -> None:
        async with called(tmp_path, "listPeers") as client:
            client.wire.link.post_encoded(part)
            fields = client.invoke.fields
            assert (await client.again()).fields == fields
            client.wire.link.post("running", {"execId": "", "step": 1})
            client.wire.link.post("exit", {"status": 3})
            assert await client.ended() == (3, b"", b"")

    asyncio.run(main())


def test_a_daemon_that_goes_again_and_again_is_told_of_with_255(tmp_path: Path) -> None:
    async def main() -> None:
        accepted = 0

        async def accept(link: Connection) -> None:
            nonlocal accepted
            accepted += 1
            # Unread bytes at the close are a reset for the other end.
            link.abort()

        async with unix_server(accept, tmp_path / "socket") as path:
            status, out, err = await without_daemon(path, "version", "x" * 100_000)
            assert (status, out) == (255, b"")
            assert b"Traceback" not in err
            assert b"peerd" in err
            assert accepted == 1 + _ATTEMPTS

    asyncio.run(main())


def begin(client: Client, step: int = 1, exec_id: str = EXEC_ID) -> None:
    """Say that a command runs."""
    client.wire.link.post("running", {"execId": exec_id, "step": step})
    client.wire.link.post("started")


async def shown(client: Client, data: bytes, stream: str = "stdout") -> None:
    """Send output and wait until some was shown."""
    client.running.spoke.clear()
    await client.wire.link.send("output", {"stream": stream}, data)
    await client.running.spoke.wait()


def test_a_connection_that_breaks_is_made_anew_and_goes_on_where_the_output_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", "--x") as client:
            begin(client)
            await shown(client, b"one ")
            await shown(client, b"err", "stderr")
            # What peerd itself says is not the command's. What has come of a frame has been written.
            await client.wire.link.send("output", {"stream": "stderr", "by": "peerd"}, b"!")
            client.wire.link.post_encoded(b'{"type":"output","stream":"stdout","size":4}\nha')
            again = (await client.again()).fields
            assert again["argv"] == ["execOnPeer", "--x"]
            assert again["resume"] == {"execId": EXEC_ID, "step": 1, "stdout": 6, "stderr": 3}
            begin(client)
            await shown(client, b"lf")
            again = (await client.again()).fields
            assert again["resume"] == {"execId": EXEC_ID, "step": 1, "stdout": 8, "stderr": 3}
            begin(client)
            client.wire.link.post("exit", {"status": 5})
            assert await client.ended() == (5, b"one half", b"err!")

    asyncio.run(main())


def test_a_later_step_is_resumed_by_its_own_id_and_offsets(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "remoteDeployDaemon") as client:
            begin(client)
            await shown(client, b"pulled\n")
            begin(client, 2, "f" * 16)
            await shown(client, b"b")
            resume = (await client.again()).fields["resume"]
            assert resume == {"execId": "f" * 16, "step": 2, "stdout": 1, "stderr": 0}
            # The step before is over: nothing of it is asked for again.
            begin(client, 2, "f" * 16)
            client.wire.link.post("output", {"stream": "stdout"}, b"uilt\n")
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, b"pulled\nbuilt\n", b"")

    asyncio.run(main())


def test_a_log_that_is_followed_goes_on_after_the_last_record(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "log", "--follow") as client:
            assert client.invoke.fields["after"] is None
            client.wire.link.post("running", {"execId": "", "step": 1})
            from_peerd = {"stream": "stdout", "by": "peerd"}
            await client.wire.link.send("output", {**from_peerd, "cursor": "s=1f;i=1"}, b"one\n")
            # Half of what belongs together: it comes again.
            client.wire.link.post_encoded(b'{"type":"output","stream":"stdout","by":"peerd","cursor":"x","size":4}\nt')
            again = (await client.again()).fields
            assert again["after"] == "s=1f;i=1"
            assert "resume" not in again
            client.wire.link.post("running", {"execId": "", "step": 1})
            await client.wire.link.send("output", {**from_peerd, "cursor": "s=1f;i=2"}, b"two\n")
            assert (await client.again()).fields["after"] == "s=1f;i=2"
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, b"one\ntwo\n", b"")

    asyncio.run(main())


def test_who_cancelled_comes_back_for_the_word_that_the_command_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            begin(client)
            await shown(client, b".")
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            resume = (await client.again()).fields["resume"]
            assert resume == {"execId": EXEC_ID, "step": 1, "stdout": 1, "stderr": 0}
            # Whether the daemon before heard of it is not known.
            await client.wire.link.expect("cancel")
            begin(client)
            client.wire.link.post("exit", {"status": 130})
            assert await client.ended() == (130, b".", b"")

    asyncio.run(main())


def test_a_signal_is_remembered_while_there_is_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            begin(client)
            await shown(client, b".")
            client.running.process.send_signal(signal.SIGSTOP)
            client.wire.link.close()
            await client.wire.link.finish()
            client.running.process.send_signal(signal.SIGINT)
            client.running.process.send_signal(signal.SIGCONT)
            client.wire = await client.wires.get()
            await client.greeted()
            assert "resume" in client.invoke.fields
            await client.wire.link.expect("cancel")
            begin(client)
            client.wire.link.post("exit", {"status": 130})
            assert await client.ended() == (130, b".", b"")

    asyncio.run(main())


def test_what_was_taken_back_before_it_began_is_not_asked_for_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.wire.link.close()
            assert await client.ended() == (130, b"", b"Stopped waiting for peerd\n")

    asyncio.run(main())


def test_a_change_that_was_taken_back_and_of_which_nobody_tells_is_not_said_to_be(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "deletePeer") as client:
            client.wire.link.post("running", {"execId": "", "step": 1})
            await until_it_listens(client)
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.wire.link.close()
            status, _, err = await client.ended()
            assert status == 255
            assert err.startswith(b"peerd ended the connection before the command's result\n")

    asyncio.run(main())


def test_output_is_confirmed_by_its_id_and_what_peerd_says_is_not_counted(tmp_path: Path) -> None:
    chunk = bytes(64 * 1024)

    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            begin(client)
            for _ in range(8):
                await client.wire.link.send("output", {"stream": "stderr", "by": "peerd"}, b"said")
                await client.wire.link.send("output", {"stream": "stdout"}, chunk)
            ack = await client.wire.link.expect("ack")
            assert ack.fields == {"execId": EXEC_ID, "stdout": 8 * len(chunk), "stderr": 0}
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, chunk * 8, b"said" * 8)
            await client.wire.end()

    asyncio.run(main())


def test_input_is_sent_again_from_where_the_reader_is(tmp_path: Path) -> None:
    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", stdin=read) as client:
                begin(client)
                client.wire.link.post("stdinWindow", {"from": 0, "until": 6})
                os.write(write, b"0123456789")
                assert (await client.wire.link.expect("stdin")).payload == b"012345"
                await client.again()
                begin(client)
                client.wire.link.post("stdinWindow", {"from": 2, "until": 8})
                assert (await client.wire.link.expect("stdin")).payload == b"2345"
                assert (await client.wire.link.expect("stdin")).payload == b"67"
                client.wire.link.post("stdinWindow", {"until": 100})
                assert (await client.wire.link.expect("stdin")).payload == b"89"
                os.close(write)
                assert (await client.wire.link.expect("stdin")).payload == b""
                # The end is sent again, too.
                await client.again()
                begin(client)
                client.wire.link.post("stdinWindow", {"from": 10, "until": 100})
                assert (await client.wire.link.expect("stdin")).payload == b""
                client.wire.link.post("exit", {"status": 0})
                assert await client.ended() == (0, b"", b"")

    asyncio.run(main())


@pytest.mark.parametrize(("newest", "window"), [(1, NARROW_WINDOW), (2, NARROW_WINDOW), (3, WINDOW), (4, WINDOW)])
def test_input_that_was_not_taken_for_good_is_kept(tmp_path: Path, newest: int, window: int) -> None:
    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", stdin=read, newest=newest) as client:
                begin(client)
                client.wire.link.post("stdinWindow", {"from": 0, "until": window})
                os.write(write, b"0123456789")
                assert (await client.wire.link.expect("stdin")).payload == b"0123456789"
                client.wire.link.post("stdinWindow", {"until": window + 7})
                await client.again()
                begin(client)
                client.wire.link.post("stdinWindow", {"from": 7, "until": window + 7})
                assert (await client.wire.link.expect("stdin")).payload == b"789"
                client.wire.link.post("exit", {"status": 0})
                assert await client.ended() == (0, b"", b"")

    asyncio.run(main())


def impatient(monkeypatch: pytest.MonkeyPatch, limit: str, seconds: float = 0.1) -> None:
    """Have the program wait no longer than for a moment."""
    monkeypatch.setattr("unit.test_client.MAIN", f"from peerd import client; client.{limit} = {seconds}; {MAIN}")


async def hang(link: Connection) -> None:
    """Say nothing."""
    while await link.receive():
        pass
    link.close()


def test_a_daemon_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, "_GREETING_LIMIT")

    async def main() -> None:
        async with unix_server(hang, tmp_path / "socket") as path:
            status, _, err = await (await program(path, "version")).ended()
            assert (status, err.splitlines()[0]) == (255, b"peerd does not answer")

    asyncio.run(main())


def test_a_shell_completes_also_where_the_daemon_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, "_COMPLETION_LIMIT")

    async def main() -> None:
        async with unix_server(hang, tmp_path / "socket") as path:
            assert await (await program(path, "--complete", "remotePu")).ended() == (0, b"remotePull\n", b"")

    asyncio.run(main())


@pytest.mark.parametrize("output", [b"", b"so far"])
def test_a_daemon_that_does_not_answer_who_comes_back_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bytes
) -> None:
    impatient(monkeypatch, "_RETURN_LIMIT")

    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            begin(client)
            if output:
                await shown(client, output)
            client.wire.link.close()
            await client.wire.link.finish()
            client.wire = await client.wires.get()
            status, out, err = await client.ended()
            assert (status, out, err.splitlines()[0]) == (255, output, b"peerd does not answer")

    asyncio.run(main())


def test_who_comes_back_waits_as_long_as_a_deploy_takes() -> None:
    assert client._RETURN_LIMIT >= deploy._PATIENCE


RECORD = {"outcome": "exited", "exit_status": 3}


def test_a_record_has_all_output_also_when_the_connection_broke_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", "--json") as client:
            client.wire.link.post("collect", {"events": False})
            begin(client)
            client.wire.link.post("output", {"stream": "stdout"}, b"one ")
            client.wire.link.post("output", {"stream": "stderr", "by": "peerd"}, b"said\n")
            await client.running.spoke.wait()
            resume = (await client.again()).fields["resume"]
            assert resume == {"execId": EXEC_ID, "step": 1, "stdout": 4, "stderr": 0}
            client.wire.link.post("collect", {"events": False})
            begin(client)
            client.wire.link.post("output", {"stream": "stdout"}, b"two")
            client.wire.link.post("output", {"stream": "stderr"}, b"\xff")
            client.wire.link.post("exit", {"status": 3, "record": RECORD})
            status, out, err = await client.ended()
            assert (status, err) == (3, b"said\n")
            assert json.loads(out) == {
                **RECORD,
                "stdout": "one two",
                "stdout_encoding": "utf-8",
                "stdout_bytes": 7,
                "stderr": "/w==",
                "stderr_encoding": "base64",
                "stderr_bytes": 1,
            }

    asyncio.run(main())


def test_each_event_comes_once_also_when_the_connection_broke_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", "--json", "--stream") as client:
            client.wire.link.post("collect", {"events": True})
            begin(client)
            await shown(client, b"one")
            resume = (await client.again()).fields["resume"]
            assert resume == {"execId": EXEC_ID, "step": 1, "stdout": 3, "stderr": 0}
            client.wire.link.post("collect", {"events": True})
            begin(client)
            client.wire.link.post("output", {"stream": "stderr"}, b"two")
            client.wire.link.post("exit", {"status": 3, "record": RECORD})
            status, out, _ = await client.ended()
            assert status == 3
            assert [json.loads(line) for line in out.splitlines()] == [
                {"event": "started"},
                {"event": "output", "stream": "stdout", "data": "one", "encoding": "utf-8"},
                {"event": "output", "stream": "stderr", "data": "two", "encoding": "utf-8"},
                {"event": "result", **RECORD},
            ]

    asyncio.run(main())


def test_characters_are_not_divided_between_events_nor_by_a_connection_that_breaks(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", "--json", "--stream") as client:
            client.wire.link.post("collect", {"events": True})
            begin(client)
            await shown(client, b"a\xc3")
            assert (await client.again()).fields["resume"] == {"execId": EXEC_ID, "step": 1, "stdout": 2, "stderr": 0}
            begin(client)
            client.wire.link.post("output", {"stream": "stderr"}, b"\xf0\x9f\x98")
            client.wire.link.post("output", {"stream": "stdout"}, b"\xa4\xe2\x82")
            client.wire.link.post("output", {"stream": "stderr"}, b"\x80")
            client.wire.link.post("output", {"stream": "stdout"}, b"\xff\xc3")
            client.wire.link.post("output", {"stream": "stdout"}, b"\xb6")
            client.wire.link.post("output", {"stream": "stdout"}, b"\xe2\x82")
            client.wire.link.post("exit", {"status": 0, "record": RECORD})
            _, out, _ = await client.ended()
            events = [json.loads(line) for line in out.splitlines()[1:-1]]
            assert [(event["stream"], event["data"], event["encoding"]) for event in events] == [
                ("stdout", "a", "utf-8"),
                ("stdout", "ä", "utf-8"),
                ("stderr", "\U0001f600", "utf-8"),
                ("stdout", "4oL/", "base64"),
                ("stdout", "ö", "utf-8"),
                ("stdout", "4oI=", "base64"),
            ]

    asyncio.run(main())


def test_a_reader_that_goes_ends_it_as_sigpipe_would(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)

    async def main() -> None:
        async with called(tmp_path, "version", stdout=write) as client:
            await client.wire.link.send("output", {"stream": "stdout"}, b"x")
            status, _, err = await client.ended()
            assert (status, err) == (128 + signal.SIGPIPE, b"")
            # That it has gone is what stops the command.
            await client.wire.end()

    asyncio.run(main())
    os.close(write)


@pytest.mark.parametrize("all_said", [False, True])
def test_whose_reader_pauses_comes_back_to_a_daemon_that_was_restarted(tmp_path: Path, all_said: bool) -> None:
    # More than a pipe holds.
    output = os.urandom(MAX_OUTPUT)

    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", stdout=write) as client:
                os.close(write)
                network.make_room(client.wire.link.socket, 2 * MAX_OUTPUT)
                begin(client)
                for start in range(0, len(output), 1000):
                    client.wire.link.post("output", {"stream": "stdout"}, output[start : start + 1000])
                if all_said:
                    client.wire.link.post("exit", {"status": 3})
                    client.wire.link.close()
                    await client.wire.link.finish()
                else:
                    resume = (await client.again()).fields["resume"]
                    assert isinstance(resume, dict)
                    begin(client)
                    client.wire.link.post("output", {"stream": "stdout"}, output[resume["stdout"] :])
                    client.wire.link.post("exit", {"status": 3})
                with os.fdopen(os.dup(read), "rb") as reader:
                    assert await asyncio.to_thread(reader.read) == output
                assert (await client.ended())[0] == 3

    asyncio.run(main())


@pytest.mark.parametrize("all_said", [False, True])
def test_events_are_whole_also_where_peerd_was_restarted_while_their_reader_paused(
    tmp_path: Path, all_said: bool
) -> None:
    # More than a pipe holds, and no more than the socket.
    output = os.urandom(MAX_OUTPUT // 4).hex().encode()

    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", "--json", "--stream", stdout=write) as client:
                os.close(write)
                network.make_room(client.wire.link.socket, 2 * MAX_OUTPUT)
                client.wire.link.post("collect", {"events": True})
                begin(client)
                for start in range(0, len(output), 50_000):
                    client.wire.link.post("output", {"stream": "stdout"}, output[start : start + 50_000])
                if all_said:
                    client.wire.link.post("exit", {"status": 3, "record": RECORD})
                    client.wire.link.close()
                    await client.wire.link.finish()
                else:
                    resume = (await client.again()).fields["resume"]
                    assert isinstance(resume, dict)
                    client.wire.link.post("collect", {"events": True})
                    begin(client)
                    client.wire.link.post("output", {"stream": "stdout"}, output[resume["stdout"] :])
                    client.wire.link.post("exit", {"status": 3, "record": RECORD})
                with os.fdopen(os.dup(read), "rb") as reader:
                    lines = (await asyncio.to_thread(reader.read)).splitlines()
                first, *events, last = map(json.loads, lines)
                assert (first["event"], last) == ("started", {"event": "result", **RECORD})
                assert "".join(event["data"] for event in events).encode() == output
                assert (await client.ended())[0] == 3

    asyncio.run(main())


def test_what_is_kept_of_an_event_is_written_once_a_daemon_is_back(tmp_path: Path) -> None:
    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", "--json", "--stream", stdout=write) as client:
                os.close(write)
                client.wire.link.post("collect", {"events": True})
                begin(client)
                await client.wire.link.send("output", {"stream": "stdout"}, b"x" * 100_000)
                resume = (await client.again()).fields["resume"]
                assert resume == {"execId": EXEC_ID, "step": 1, "stdout": 100_000, "stderr": 0}
                begin(client)
                with os.fdopen(os.dup(read), "rb") as reader:
                    # No other event has to come first.
                    _, event = [await asyncio.to_thread(reader.readline) for _ in range(2)]
                    assert json.loads(event)["data"] == "x" * 100_000
                client.wire.link.post("exit", {"status": 3, "record": RECORD})
                assert (await client.ended())[0] == 3

    asyncio.run(main())


def test_a_disk_that_is_full_is_said_to_be(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)

    async def main() -> None:
        async with called(tmp_path, "version", stdout=full) as client:
            await client.wire.link.send("output", {"stream": "stdout"}, b"x")
            client.wire.link.post("exit", {"status": 0})
            status, _, err = await client.ended()
            assert status == 255
            assert b"No space left on device" in err
            assert b"Traceback" not in err

    asyncio.run(main())
    os.close(full)


@pytest.mark.parametrize(
    ("argv", "exec_id", "by", "hint"),
    [
        (ATTACHED, EXEC_ID, {}, STOPPED),
        (("remoteDeployDaemon", "--peer", "vps"), EXEC_ID, {}, STOPPED),
        ((*ATTACHED, "--detach"), EXEC_ID, {"by": "peerd"}, RUNS_ON),
        ((*ATTACHED, "--detach"), "", {"by": "peerd"}, b"  Whether its job was started: d listJobs\n"),
        (("attachJob", "--job", EXEC_ID), EXEC_ID, {}, b""),
        (("listPeers",), "", {"by": "peerd"}, b""),
        (("help",), "", {"by": "peerd"}, b""),
        ((), "", {"by": "peerd"}, b""),
    ],
    ids=str,
)
def test_what_becomes_of_a_command_whose_output_cannot_be_written_is_said(
    tmp_path: Path, argv: Sequence[str], exec_id: str, by: dict[str, str], hint: bytes
) -> None:
    async def main() -> None:
        async with called(tmp_path, *argv, through=through_shell("exec >/dev/full")) as client:
            client.wire.link.post("running", {"execId": exec_id, "step": 1})
            client.wire.link.post("output", {"stream": "stdout", **by}, b"x")
            status, _, err = await client.ended()
            assert (status, err) == (255, b"Cannot write output: [Errno 28] No space left on device\n" + hint)

    asyncio.run(main())


def test_a_command_that_has_ended_is_not_said_to_be_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, *ATTACHED, "--json", through=through_shell("exec >/dev/full")) as client:
            client.wire.link.post("collect", {"events": False})
            begin(client)
            client.wire.link.post("exit", {"status": 3, "record": RECORD})
            status, _, err = await client.ended()
            assert (status, len(err.splitlines())) == (255, 1)

    asyncio.run(main())


def test_output_that_is_closed_does_not_reach_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        closed = ("/bin/sh", "-c", 'exec "$@" >&-', "sh")
        async with called(tmp_path, "version", through=closed) as client:
            client.wire.link.post("output", {"stream": "stdout"}, b"not for the daemon\n")
            client.wire.link.post("exit", {"status": 0})
            _, _, err = await client.ended()
            assert b"Traceback" not in err
            await client.wire.end()

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_daemon_to_cancel_and_waits_for_its_word(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            await until_it_listens(client)
            client.running.process.send_signal(number)
            await client.wire.link.expect("cancel")
            client.wire.link.post("output", {"stream": "stderr"}, b"Cancelled\n")
            client.wire.link.post("exit", {"status": 130})
            status, _, err = await client.ended()
            assert (status, err) == (130, b"Cancelled\n")

    asyncio.run(main())


async def until_it_listens(client: Client) -> None:
    """Return when the client has shown something: it is past its greeting then."""
    await client.wire.link.send("output", {"stream": "stdout"}, b".")
    await client.running.spoke.wait()


def test_the_second_signal_ends_it_at_once_with_130(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            await until_it_listens(client)
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.running.process.send_signal(signal.SIGINT)
            assert await client.ended() == (130, b".", b"Stopped waiting for peerd\n")
            await client.wire.end()

    asyncio.run(main())


def test_signals_that_come_together_end_it_as_two_would(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer") as client:
            await until_it_listens(client)
            process = client.running.process
            process.send_signal(signal.SIGSTOP)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            status, _, words = await client.ended()
            assert (status, words) == (130, b"Stopped waiting for peerd\n")

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_greeting_asks_to_cancel_as_well(tmp_path: Path, number: signal.Signals) -> None:
    async def main() -> None:
        async with called(tmp_path, *ATTACHED, greeted=False) as client:
            client.running.process.send_signal(number)
            await client.wire.link.expect("cancel")
            client.greet()
            begin(client)
            client.wire.link.post("exit", {"status": 130})
            assert await client.ended() == (130, b"", b"")

    asyncio.run(main())


def test_a_daemon_that_does_not_answer_who_cancelled_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, "_GREETING_LIMIT", 1.0)

    async def main() -> None:
        async with called(tmp_path, *ATTACHED, greeted=False) as client:
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            status, _, err = await client.ended()
            assert (status, err.splitlines()[0]) == (255, b"peerd does not answer")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("argv", "exec_id", "hint"),
    [(ATTACHED, EXEC_ID, STOPPED), ((*ATTACHED, "--detach"), EXEC_ID, RUNS_ON), (("listPeers",), "", b"")],
    ids=str,
)
def test_who_does_not_wait_for_the_word_is_told_what_becomes_of_the_command(
    tmp_path: Path, argv: Sequence[str], exec_id: str, hint: bytes
) -> None:
    async def main() -> None:
        async with called(tmp_path, *argv) as client:
            client.wire.link.post("running", {"execId": exec_id, "step": 1})
            await until_it_listens(client)
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.running.process.send_signal(signal.SIGINT)
            status, _, err = await client.ended()
            assert (status, err) == (130, f"Stopped waiting for {exec_id or 'peerd'}\n".encode() + hint)

    asyncio.run(main())


def test_who_does_not_wait_for_the_word_waits_for_no_reader_either(tmp_path: Path) -> None:
    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, *ATTACHED, "--json", "--stream", stdout=write) as client:
                os.close(write)
                client.wire.link.post("collect", {"events": True})
                begin(client)
                client.wire.link.post("output", {"stream": "stdout"}, b"x" * 200_000)
                await readable(read)
                client.running.process.send_signal(signal.SIGINT)
                await client.wire.link.expect("cancel")
                client.running.process.send_signal(signal.SIGINT)
                assert (await client.ended())[0] == 130

    asyncio.run(main())


def test_signals_are_heard_also_after_a_frame_that_could_not_be_sent() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    connection, other = socket.socketpair()
    other.close()
    try:
        with connection, pytest.raises(ConnectionError):
            clientpipes.send(connection, {"type": "ack"}, b"", client._CANCELLING)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_terminal_is_told_of_with_its_width(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 132))

    async def main() -> None:
        async with called(tmp_path, "listPeers", stdout=theirs) as client:
            assert (client.invoke.fields["terminal"], client.invoke.fields["width"]) == (True, 132)
            client.wire.link.post("output", {"stream": "stdout"}, b"shown\n")
            client.wire.link.post("exit", {"status": 0})
            assert (await client.ended())[0] == 0
            await readable(ours)
            assert os.read(ours, 100) == b"shown\r\n"

    asyncio.run(main())
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_does_not_know_its_width_has_80_columns(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    async def main() -> None:
        async with called(tmp_path, "help", stdout=theirs) as client:
            assert (client.invoke.fields["terminal"], client.invoke.fields["width"]) == (True, 80)
            client.wire.link.post("exit", {"status": 0})
            assert (await client.ended())[0] == 0

    asyncio.run(main())
    os.close(ours)
    os.close(theirs)


def through_shell(script: str) -> Sequence[str]:
    """A shell that does something before it becomes the program."""
    return "sh", "-c", f'{script}; exec "$@"', "sh"


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM"])
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", through=through_shell(f"trap '' {name}")) as client:
            begin(client)
            client.running.process.send_signal(getattr(signal, f"SIG{name}"))
            await shown(client, b"on")
            client.wire.link.post("exit", {"status": 0})
            assert await client.ended() == (0, b"on", b"")
            assert await client.wire.link.receive() is None

    asyncio.run(main())


@asynccontextmanager
async def unread(directory: Path, output: bytes) -> AsyncIterator[Client]:
    """`d`, whose reader has gone once it had this output."""
    with pipe() as (read, write):
        async with called(directory, "execOnPeer", stdout=write) as client:
            os.close(write)
            begin(client)
            if output:
                client.wire.link.post("output", {"stream": "stdout"}, output)
                await readable(read)
            os.close(read)
            yield client


def test_a_reader_that_has_gone_is_noticed_also_where_nothing_more_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with unread(tmp_path, b"one\n") as client:
            assert (await client.ended())[0] == 128 + signal.SIGPIPE
            assert await client.wire.link.receive() is None

    asyncio.run(main())


@pytest.mark.parametrize("output", [b"", b"one\n"])
def test_a_reader_that_wanted_no_more_than_it_got_is_no_matter(tmp_path: Path, output: bytes) -> None:
    async def main() -> None:
        async with unread(tmp_path, output) as client:
            client.wire.link.post("output", {"stream": "stderr"}, b"done")
            await client.running.spoke.wait()
            client.wire.link.post("exit", {"status": 3})
            assert await client.ended() == (3, b"", b"done")

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["event", "stderr", "by peerd", "socket"])
def test_a_reader_that_has_gone_is_noticed_whatever_was_written(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        read, write = (end.detach() for end in socket.socketpair()) if kind == "socket" else os.pipe()
        through = through_shell("exec 2>&1") if kind == "stderr" else ()
        async with called(tmp_path, "execOnPeer", stdout=write, through=through) as client:
            os.close(write)
            begin(client)
            if kind == "event":
                client.wire.link.post("collect", {"events": True})
            stream, by = "stderr" if kind == "stderr" else "stdout", {"by": "peerd"} if kind == "by peerd" else {}
            client.wire.link.post("output", {"stream": stream, **by}, b"one\n")
            await readable(read)
            os.close(read)
            assert (await client.ended())[0] == 128 + signal.SIGPIPE
            assert await client.wire.link.receive() is None

    asyncio.run(main())


def test_a_socket_whose_reader_pauses_does_not_keep_it_from_its_daemon(tmp_path: Path) -> None:
    # More than the one socket holds, and no more than the other.
    output = os.urandom(MAX_OUTPUT // 4)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with ours:
            async with called(tmp_path, "execOnPeer", stdout=theirs.fileno()) as client:
                theirs.close()
                network.make_room(client.wire.link.socket, 2 * MAX_OUTPUT)
                begin(client)
                client.wire.link.post("output", {"stream": "stdout"}, output)
                await readable(ours.fileno())
                resume = (await client.again()).fields["resume"]
                assert isinstance(resume, dict)
                begin(client)
                client.wire.link.post("output", {"stream": "stdout"}, output[resume["stdout"] :])
                client.wire.link.post("exit", {"status": 3})
                with ours.makefile("rb") as reader:
                    assert await asyncio.to_thread(reader.read) == output
                assert (await client.ended())[0] == 3

    asyncio.run(main())


def test_input_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        closed = os.open("/dev/null", os.O_WRONLY)
        async with called(tmp_path, "execOnPeer", stdin=closed) as client:
            os.close(closed)
            begin(client)
            client.wire.link.post("stdinWindow", {"from": 0, "until": 6})
            status, out, err = await client.ended()
            assert (status, out) == (255, b"")
            assert err.startswith(b"Cannot read standard input: ")

    asyncio.run(main())


def test_an_error_that_cannot_be_written_has_its_exit_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", through=through_shell("exec 2>/dev/full")) as client:
            client.wire.link.post("error", {"code": "busy", "message": "Too busy\n"})
            assert await client.ended() == (255, b"", b"")

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_record_is_printed_also_where_the_daemon_went(tmp_path: Path, stream: bool) -> None:
    async def main() -> None:
        async with called(tmp_path, "execOnPeer", "--json") as client:
            client.wire.link.post("collect", {"events": stream})
            client.wire.link.post("running", {"execId": "", "step": 1})
            client.wire.link.post("output", {"stream": "stdout"}, b"half")
            client.wire.link.close()
            status, out, err = await client.ended()
            assert status == 255
            record = json.loads(out.splitlines()[-1] if stream else out)
            assert (record["outcome"], record["exit_status"], record["error"]["code"]) == ("lost", 255, "lost")
            assert record["error"]["message"] == err.decode().splitlines()[0]
            assert record.get("stdout") == (None if stream else "half")

    asyncio.run(main())


async def heard_all(client: Client) -> None:
    """Return when the client has done all that it was told: it sends the end of its input then."""
    client.wire.link.post("stdinWindow", {"from": 0, "until": 1})
    assert (await client.wire.link.expect("stdin")).payload == b""


def only_record(out: bytes, stream: bool) -> dict[str, Any]:
    """The record that is all of the output, or of its one event."""
    record: dict[str, Any] = json.loads(out)
    assert record.pop("event", "") == ("result" if stream else "")
    assert ("stdout" in record) != stream
    return record


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("exec_id", ["", EXEC_ID])
def test_a_record_is_printed_also_where_the_daemon_is_not_waited_for(
    tmp_path: Path, stream: bool, detach: bool, exec_id: str
) -> None:
    async def main() -> None:
        more = ["--json", *["--stream"] * stream, *["--detach"] * detach]
        async with called(tmp_path, *ATTACHED, *more, greeted=False) as client:
            if exec_id:
                client.greet()
                client.wire.link.post("running", {"execId": exec_id, "step": 1})
                await heard_all(client)
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.running.process.send_signal(signal.SIGINT)
            status, out, err = await client.ended()
            record = only_record(out, stream)
            assert (status, record["outcome"], record["exit_status"]) == (130, "cancelled", 130)
            assert record["exec_id"] == (exec_id or None)
            sentence, *hints = map(str.strip, err.decode().splitlines())
            assert record["error"] == {"code": "not-waited", "message": sentence, "hints": hints}
            assert len(hints) == bool(detach or exec_id)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "outcome"), [("busy", "denied"), ("internal", "failed"), ("from-the-future", "failed")]
)
def test_a_record_is_printed_of_an_error_that_is_all_that_the_daemon_says(
    tmp_path: Path, stream: bool, code: str, outcome: str
) -> None:
    async def main() -> None:
        async with called(tmp_path, *ATTACHED, "--json", *["--stream"] * stream) as client:
            client.wire.link.post("error", {"code": code, "message": "Oh"})
            status, out, err = await client.ended()
            record = only_record(out, stream)
            assert (status, err) == (255, b"Oh\n")
            assert (record["outcome"], record["exit_status"]) == (outcome, 255)
            assert record["error"] == {"code": code, "message": "Oh", "hints": []}

    asyncio.run(main())


def test_a_record_is_printed_also_where_the_daemon_says_nothing(tmp_path: Path) -> None:
    async def accept(link: Connection) -> None:
        link.close()

    async def main() -> None:
        async with unix_server(accept, tmp_path / "socket") as path:
            status, out, err = await without_daemon(path, *ATTACHED, "--json")
            record = only_record(out, False)
            assert (status, record["outcome"], record["exit_status"]) == (255, "lost", 255)
            assert record["error"]["message"] == err.decode().splitlines()[0]

    asyncio.run(main())


@pytest.mark.parametrize("argv", [("listPeers", "--json"), ("execOnPeer", "--", "x", "--json"), ()])
def test_no_record_is_printed_where_none_was_asked_for(tmp_path: Path, argv: Sequence[str]) -> None:
    async def main() -> None:
        async with called(tmp_path, *argv) as client:
            client.wire.link.post("error", {"code": "busy", "message": "Oh"})
            assert await client.ended() == (255, b"", b"Oh\n")

    asyncio.run(main())


def test_no_second_record_is_printed(tmp_path: Path) -> None:
    async def main() -> None:
        async with called(tmp_path, *ATTACHED, "--detach", "--json") as client:
            client.wire.link.post("running", {"execId": EXEC_ID, "step": 1})
            await client.wire.link.send("output", {"stream": "stdout", "by": "peerd"}, b"{}\n")
            await heard_all(client)
            client.running.process.send_signal(signal.SIGINT)
            await client.wire.link.expect("cancel")
            client.running.process.send_signal(signal.SIGINT)
            assert (await client.ended())[:2] == (130, b"{}\n")

    asyncio.run(main())


@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_a_record_is_printed_also_where_there_is_no_daemon(tmp_path: Path, more: Sequence[str]) -> None:
    asked = ("execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", "true", "--json", *more)
    status, out, err = asyncio.run(without_daemon(tmp_path / "none", *asked))
    record = json.loads(out)
    assert (status, record["outcome"], record["exit_status"]) == (255, "unreachable", 255)
    assert record["error"]["message"] == err.decode().splitlines()[0]


def test_a_reader_that_has_gone_as_well_as_the_daemon_makes_no_traceback(tmp_path: Path) -> None:
    async def main() -> None:
        with pipe() as (read, write):
            async with called(tmp_path, "execOnPeer", "--json", stdout=write) as client:
                os.close(write)
                os.close(read)
                client.wire.link.post("collect", {"events": False})
                client.wire.link.post("running", {"execId": "", "step": 1})
                client.wire.link.close()
                status, _, err = await client.ended()
                assert (status, len(err.splitlines())) == (255, 2)

    asyncio.run(main())


def test_help_needs_no_daemon(tmp_path: Path) -> None:
    status, out, err = asyncio.run(without_daemon(tmp_path / "none", "help"))
    assert (status, err) == (0, b"")
    assert out.startswith(b"Usage: d ")


def test_wrong_usage_needs_no_daemon(tmp_path: Path) -> None:
    status, out, err = asyncio.run(without_daemon(tmp_path / "none", "xyzzy"))
    assert (status, out) == (2, b"")
    assert b"No such command: 'xyzzy'" in err


def test_a_socket_that_is_set_to_nothing_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "usual"
    monkeypatch.setattr("unit.test_client.MAIN", f"from peerd import client; client.SOCKET = {str(usual)!r}; {MAIN}")

    async def main() -> None:
        process = await program("", "listPeers")
        _, _, err = await process.ended()
        assert err.startswith(b"Cannot reach peerd on this machine: No such file or directory (" + os.fsencode(usual))

    asyncio.run(main())


def nobody(path: Path) -> None:
    """Nothing is there."""


def stale(path: Path) -> None:
    """A socket that nobody listens to."""
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"), [(nobody, b"No such file or directory"), (stale, b"Connection refused")], ids=["none", "stale"]
)
def test_without_a_daemon_it_says_so_and_what_to_do(tmp_path: Path, make: Callable[[Path], None], words: bytes) -> None:
    path = tmp_path / "socket"
    make(path)
    status, out, err = asyncio.run(without_daemon(path, "listPeers"))
    assert (status, out) == (255, b"")
    first, *hints = err.splitlines()
    assert first.startswith(b"Cannot reach peerd on this machine: " + words)
    assert os.fsencode(path) in first
    # To start a socket that listens does nothing, though its file be gone.
    assert any(b"systemctl restart peerd.socket" in hint for hint in hints)


@pytest.mark.parametrize("given", [1, 3, WINDOW], ids=["an older protocol", "this one", "bytes"])
def test_input_is_held_by_the_version_or_as_a_d_from_before_an_upgrade_says(given: int) -> None:
    stdin = Stdin(MAX_OUTPUT)
    window = NARROW_WINDOW if given == 1 else WINDOW
    stdin.grant({"until": window, "from": 0}, given)
    assert stdin.room == MAX_OUTPUT
    stdin._held, stdin._end = [b"x" * 10, b"y"], 11
    stdin.grant({"until": window + 9}, given)
    assert stdin._held == [b"x" * 10, b"y"]
    stdin.grant({"until": window + 10}, given)
    assert stdin._held == [b"y"]
