"""The real spawner process: what a command starts with, and what is reported of its end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from peerd import spawning
from peerd.spawner import STARTED
from peerd.spawning import Gate, Spawner
from unit.support import descriptors, read_all, readable, scarce

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "NAME": "value é \udcff"}
TERMINATING = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGKILL, signal.SIGTERM]


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    spawner = Spawner()
    yield spawner
    spawner.close()


class Made:
    """One gate and our ends of its descriptors."""

    def __init__(self, stack: ExitStack, gate: Gate) -> None:
        self.control, self.pid = gate.control, gate.pid
        stack.enter_context(self.control)
        null = os.open(os.devnull, os.O_RDONLY)
        self.read, writes = {}, []
        for stream in ("stdout", "stderr"):
            self.read[stream], write = os.pipe()
            stack.callback(os.close, self.read[stream])
            writes.append(write)
        self.given = [null, *writes]

    def let_go(self) -> None:
        """Close what the gate holds its own copies of."""
        for fd in self.given:
            os.close(fd)

    async def report(self) -> dict[str, object] | None:
        """What the gate says at its end but for the time, None for nothing. It then waits until it is let go."""
        data = b""
        while chunk := await asyncio.get_running_loop().sock_recv(self.control, 4096):
            data += chunk
            if data.endswith(b"}\n"):
                self.control.shutdown(socket.SHUT_WR)
        if not data.removeprefix(STARTED):
            return None
        report: dict[str, object] = json.loads(data)
        # A command that ran says when it ended, one that did not was not said to have started.
        assert data.startswith(STARTED) == ("status" in report) == ("at" in report)
        report.pop("at", None)
        return report

    def signal(self, number: signal.Signals) -> None:
        """Signal the gate and what it started, as the stop of a scope does."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        for pid in (self.pid, *map(int, children.split())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def output(self, stream: str = "stdout") -> bytes:
        """All that comes out until the pipe closes."""
        return await read_all(self.read[stream])


async def gate(
    spawner: Spawner,
    stack: ExitStack,
    argv: Sequence[str],
    directory: str = "/",
    environment: Mapping[str, str] = ENVIRONMENT,
    user: Mapping[str, object] | None = None,
) -> Made:
    """A gate that waits to be released."""
    taken = await spawner.take()
    made = Made(stack, taken)
    try:
        await taken.prepare(argv, directory, environment, made.given, user)
    finally:
        made.let_go()
    return made


async def stocked(spawner: Spawner) -> Gate:
    """The gate that is at hand for the next command."""
    gate = await spawner.take()
    spawner._ready.put_nowait(gate)
    return gate


async def finished(
    spawner: Spawner,
    argv: Sequence[str],
    directory: str = "/",
    environment: Mapping[str, str] = ENVIRONMENT,
    user: Mapping[str, object] | None = None,
) -> tuple[dict[str, object], bytes, bytes]:
    """Run a command: the report, its stdout and its stderr."""
    with ExitStack() as stack:
        made = await gate(spawner, stack, argv, directory, environment, user)
        made.control.send(b"\n")
        out, err = await made.output(), await made.output("stderr")
        report = await made.report()
        assert report is not None
        return report, out, err


def shell(spawner: Spawner, command: str, directory: str = "/") -> tuple[dict[str, object], bytes, bytes]:
    return asyncio.run(finished(spawner, ["/bin/sh", "-c", command], directory))


def said(spawner: Spawner, command: str, directory: str = "/") -> str:
    report, out, err = shell(spawner, command, directory)
    assert (report, err) == ({"status": 0}, b"")
    return out.decode()


@pytest.mark.parametrize("status", [0, 1, 2, 124, 126, 127, 128, 254, 255])
def test_an_exit_status_is_reported_as_waitpid_has_it(spawner: Spawner, status: int) -> None:
    report, _, _ = shell(spawner, f"exit {status}")
    assert os.waitstatus_to_exitcode(int(str(report["status"]))) == status


def test_every_exit_status_is_reported(spawner: Spawner) -> None:
    async def main() -> list[int]:
        statuses = []
        for status in range(256):
            with ExitStack() as stack:
                made = await gate(spawner, stack, ["/bin/sh", "-c", f"exit {status}"])
                made.control.send(b"\n")
                report = await made.report()
                assert report is not None
                statuses.append(os.waitstatus_to_exitcode(int(str(report["status"]))))
        return statuses

    assert asyncio.run(main()) == list(range(256))


@pytest.mark.parametrize("number", TERMINATING, ids=lambda number: number.name)
def test_a_signal_that_ends_a_command_is_reported(spawner: Spawner, number: signal.Signals) -> None:
    report, _, _ = shell(spawner, f"kill -{number} $$")
    status = int(str(report["status"]))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


@pytest.mark.parametrize("number", sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
def test_a_command_may_signal_its_process_group_and_the_gate_lives(spawner: Spawner, number: int) -> None:
    report, out, _ = shell(spawner, f"trap 'echo caught' {number}; kill -{number} -$$; exit 5")
    assert (report, out) == ({"status": 5 << 8}, b"caught\n")


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGABRT, signal.SIGRTMIN, signal.SIGUSR1])
def test_a_gate_outlives_signals_to_all_of_a_scope(spawner: Spawner, number: signal.Signals) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "echo up; exec sleep 1000"])
            made.control.send(b"\n")
            await readable(made.read["stdout"])
            made.signal(number)
            report = await made.report()
            assert report is not None
            assert os.WTERMSIG(int(str(report["status"]))) == number

    asyncio.run(main())


def test_output_goes_where_it_belongs_byte_for_byte(spawner: Spawner) -> None:
    report, out, err = shell(spawner, "printf 'a\\0b\\377\\n'; printf 'c\\r\\n' >&2")
    assert report == {"status": 0}
    assert (out, err) == (b"a\0b\xff\n", b"c\r\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run a command as somebody else")
def test_another_user_may_open_the_standard_streams_by_their_names(spawner: Spawner) -> None:
    argv = ["/bin/sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin; id -u"]
    nobody = {"uid": 65534, "gid": 65534, "groups": [65534]}
    report, out, err = asyncio.run(finished(spawner, argv, user=nobody))
    assert (report, out, err) == ({"status": 0}, b"out\n65534\n", b"err\n")
    assert os.stat(os.devnull).st_uid == 0


def test_an_empty_element_of_path_is_the_current_directory(spawner: Spawner, tmp_path: Path) -> None:
    program = tmp_path / "found-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    report, out, _ = asyncio.run(finished(spawner, ["found-here"], str(tmp_path), {"PATH": ":/usr/bin:/bin"}))
    assert (report, out) == ({"status": 0}, b"found\n")


def test_standard_input_is_at_its_end(spawner: Spawner) -> None:
    assert said(spawner, "cat; readlink /proc/self/fd/0") == "/dev/null\n"


def test_the_arguments_are_those_that_were_given(spawner: Spawner) -> None:
    argv = ["/usr/bin/printf", "<%s>", "", " ", "'\"$X`\\", "é\udcff", "-"]
    report, out, _ = asyncio.run(finished(spawner, argv))
    assert report == {"status": 0}
    assert out == b"<>< ><'\"$X`\\><\xc3\xa9\xff><->"


def test_a_command_of_the_largest_size_runs(spawner: Spawner) -> None:
    command = "exit 3 #" + "x" * (128 * 1024 - 1 - 8)
    assert shell(spawner, command)[0] == {"status": 3 << 8}


def test_the_environment_is_exactly_the_one_that_was_given(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    report, out, _ = asyncio.run(finished(spawner, ["/usr/bin/env", "-0"]))
    assert report == {"status": 0}
    assert sorted(out.split(b"\0")) == sorted([b"", *(os.fsencode(f"{k}={v}") for k, v in ENVIRONMENT.items())])


def test_a_command_holds_no_descriptor_but_its_three(spawner: Spawner) -> None:
    with ExitStack() as stack:
        # What the daemon holds, inheritable at that, is not the command's.
        for _ in range(20):
            read, write = os.pipe()
            os.set_inheritable(write, True)
            stack.callback(os.close, read)
            stack.callback(os.close, write)
        shown = said(spawner, "ls /proc/self/fd; readlink /proc/$$/fd/3; echo none")
        assert shown.split() == ["0", "1", "2", "3", "none"]


def test_the_umask_is_that_of_a_login(spawner: Spawner) -> None:
    before = os.umask(0o077)
    try:
        assert said(spawner, "umask") == "0022\n"
    finally:
        os.umask(before)


def test_signals_are_as_after_a_login(spawner: Spawner) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        status = said(spawner, "grep -E 'Sig(Blk|Ign)' /proc/self/status")
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    _, blocked, _, ignored = status.split()
    # posix_spawn(3) of the GNU C library has 32 and 33, which it keeps to itself, ignored.
    assert (int(blocked, 16), int(ignored, 16) & ~(3 << 31)) == (0, 0)


def test_a_command_has_a_session_of_its_own_and_no_terminal(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "cut -d' ' -f5-7 /proc/self/stat"])
            made.control.send(b"\n")
            group, session, terminal = (await made.output()).split()
            assert int(group) == int(session) != os.getsid(0)
            # What it sends to its process group is not for the gate.
            assert int(group) != made.pid
            assert int(terminal) == 0
            await made.report()

    asyncio.run(main())


def test_a_command_starts_in_its_directory(spawner: Spawner, tmp_path: Path) -> None:
    directory = tmp_path / "a b é"
    directory.mkdir()
    assert said(spawner, "pwd -P", str(directory)) == f"{directory}\n"


def test_a_directory_whose_name_is_no_unicode_can_be_entered(spawner: Spawner, tmp_path: Path) -> None:
    directory = f"{tmp_path}/\udcff"
    os.mkdir(directory)
    report, out, _ = shell(spawner, "pwd -P", directory)
    assert (report, out) == ({"status": 0}, os.fsencode(f"{directory}\n"))


def test_a_directory_that_cannot_be_entered_is_reported_with_its_errno(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    run = ["/bin/sh", "-c", f"touch {tmp_path}/ran; echo ran"]

    async def main() -> None:
        for name, number in [
            ("missing", errno.ENOENT),
            ("file", errno.ENOTDIR),
            ("file/below", errno.ENOTDIR),
            ("loop", errno.ELOOP),
            ("x" * 300, errno.ENAMETOOLONG),
        ]:
            report, out, _ = await finished(spawner, run, str(tmp_path / name))
            assert report == {"errno": number}
            assert out == b""

    asyncio.run(main())
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every directory")
def test_a_directory_that_may_not_be_entered_is_reported(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    report, _, _ = shell(spawner, "true", str(tmp_path / "closed"))
    assert report == {"errno": errno.EACCES}


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("/no/such/program", 127, b"No such file or directory"),
        ("no-such-program", 127, b"No such file or directory"),
        ("/etc/passwd", 126, b"Permission denied"),
        ("/etc", 126, b"Permission denied"),
    ],
)
def test_a_program_that_cannot_be_executed_ends_as_in_a_shell(
    spawner: Spawner, program: str, status: int, words: bytes
) -> None:
    report, out, err = asyncio.run(finished(spawner, [program]))
    assert report == {"status": status << 8}
    assert (out, err.count(words)) == (b"", 1)


def test_nothing_runs_before_the_release(spawner: Spawner, tmp_path: Path) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "touch ran"], str(tmp_path))
            # The spawner has served another command to its end in the meantime.
            await finished(spawner, ["/bin/true"])
            assert not (tmp_path / "ran").exists()
            made.control.send(b"\n")
            assert await made.report() == {"status": 0}
            assert (tmp_path / "ran").exists()

    asyncio.run(main())


def test_a_gate_that_is_never_released_starts_nothing_and_goes(spawner: Spawner, tmp_path: Path) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "touch ran"], str(tmp_path))
            made.control.shutdown(socket.SHUT_WR)
            assert await made.report() is None
            assert await made.output() == b""
            assert not (tmp_path / "ran").exists()

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_gate_outlives_the_signals_that_stop_its_command(spawner: Spawner, number: signal.Signals) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            script = "sleep 1000 & trap 'kill $!; echo caught; exit 9' TERM INT HUP QUIT; echo ready; wait"
            made = await gate(spawner, stack, ["/bin/bash", "-c", script])
            made.control.send(b"\n")
            await readable(made.read["stdout"])
            assert os.read(made.read["stdout"], 6) == b"ready\n"
            made.signal(number)
            assert await made.report() == {"status": 9 << 8}
            assert await made.output() == b"caught\n"

    asyncio.run(main())


def test_a_gate_that_is_killed_reports_nothing(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "exec >&- 2>&-; exec sleep 1000"])
            made.control.send(b"\n")
            assert await made.output() == b""
            made.signal(signal.SIGKILL)
            assert await made.report() is None

    asyncio.run(main())


def test_the_pipes_close_when_the_command_closes_them(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "echo last; exec >&- 2>&-; exec sleep 1000"])
            made.control.send(b"\n")
            assert await made.output() == b"last\n"
            assert await made.output("stderr") == b""
            made.signal(signal.SIGTERM)
            assert await made.report() == {"status": signal.SIGTERM}

    asyncio.run(main())


def test_that_a_command_runs_is_said_before_it_ends(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "echo up; exec sleep 1000"])
            made.control.send(b"\n")
            assert await asyncio.get_running_loop().sock_recv(made.control, 4096) == STARTED
            await readable(made.read["stdout"])
            made.signal(signal.SIGTERM)
            assert json.loads(await asyncio.get_running_loop().sock_recv(made.control, 4096))["status"] == 15
            made.control.shutdown(socket.SHUT_WR)
            assert await made.report() is None

    asyncio.run(main())


def test_a_stop_that_comes_as_the_command_starts_is_not_lost(spawner: Spawner) -> None:
    async def main() -> None:
        for _ in range(20):
            with ExitStack() as stack:
                made = await gate(spawner, stack, ["/bin/sleep", "1000"])
                made.control.send(b"\n")
                assert await asyncio.get_running_loop().sock_recv(made.control, 4096) == STARTED
                made.signal(signal.SIGTERM)
                report = json.loads(await asyncio.get_running_loop().sock_recv(made.control, 4096))
                assert report["status"] == signal.SIGTERM

    asyncio.run(main())


def test_the_time_of_the_end_is_the_commands_and_not_that_of_who_asks(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/true"])
            before = time.monotonic()
            made.control.send(b"\n")
            assert await asyncio.get_running_loop().sock_recv(made.control, len(STARTED)) == STARTED
            await readable(made.control.fileno())
            after = time.monotonic()
            await finished(spawner, ["/bin/true"])
            report = json.loads(made.control.recv(4096))
            assert before < report["at"] < after
            made.control.shutdown(socket.SHUT_WR)
            assert await made.report() is None

    asyncio.run(main())


def test_a_gate_stays_until_the_control_socket_is_shut_down(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/true"])
            held = os.pidfd_open(made.pid)
            stack.callback(os.close, held)
            made.control.send(b"\n")
            assert await made.output() == b""
            # What is sent after the release changes nothing, and neither does another command in the meantime.
            made.control.send(b"\n")
            await finished(spawner, ["/bin/true"])
            assert not select.select([held], [], [], 0)[0]
            assert await made.report() == {"status": 0}
            await readable(held)

    asyncio.run(main())


def test_commands_run_side_by_side(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            gates = [await gate(spawner, stack, ["/bin/sh", "-c", f"exit {number}"]) for number in range(20)]
            for made in reversed(gates):
                made.control.send(b"\n")
            reports = await asyncio.gather(*(made.report() for made in gates))
            assert reports == [{"status": number << 8} for number in range(20)]

    asyncio.run(main())


def test_requests_at_once_are_served_one_after_another(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            gates = await asyncio.gather(*(gate(spawner, stack, ["/bin/true"]) for _ in range(10)))
            assert len({made.pid for made in gates}) == 10
            for made in gates:
                made.control.send(b"\n")
                assert await made.report() == {"status": 0}

    asyncio.run(main())


def test_a_spawner_that_died_is_started_anew(spawner: Spawner) -> None:
    async def main() -> None:
        await finished(spawner, ["/bin/true"])
        assert spawner._process is not None
        first = spawner._process.pid
        spawner._process.kill()
        spawner._process.wait()
        for _ in range(2):
            assert await finished(spawner, ["/bin/echo", "on"]) == ({"status": 0}, b"on\n", b"")
        assert spawner._process.pid != first

    asyncio.run(main())


def test_a_command_outlives_the_spawner_and_still_reports(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            made = await gate(spawner, stack, ["/bin/sh", "-c", "exit 5"])
            spawner.close()
            made.control.send(b"\n")
            assert await made.report() == {"status": 5 << 8}

    asyncio.run(main())


def test_a_request_that_is_given_up_leaves_the_spawner_in_order(spawner: Spawner) -> None:
    async def main() -> None:
        spawner.start()
        with ExitStack() as stack:
            asking = asyncio.create_task(gate(spawner, stack, ["/bin/true"]))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            report, out, _ = await finished(spawner, ["/bin/echo", "in order"])
            assert (report, out) == ({"status": 0}, b"in order\n")

    asyncio.run(main())


def test_closing_twice_is_no_error(spawner: Spawner) -> None:
    async def main() -> None:
        spawner.start()
        spawner.start()
        spawner.close()
        spawner.close()

    asyncio.run(main())


def test_a_gate_is_at_hand_before_it_is_asked_for(spawner: Spawner) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            first = await gate(spawner, stack, ["/bin/true"])
            await stocked(spawner)
            taking = asyncio.create_task(gate(spawner, stack, ["/bin/true"]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert taking.done()
            for made in (first, taking.result()):
                made.control.send(b"\n")
                assert await made.report() == {"status": 0}

    asyncio.run(main())


def test_a_gate_that_was_killed_while_it_waited_is_passed_over(spawner: Spawner) -> None:
    async def main() -> None:
        killed = (await stocked(spawner)).pid
        with ExitStack() as stack:
            held = os.pidfd_open(killed)
            stack.callback(os.close, held)
            os.kill(killed, signal.SIGKILL)
            await readable(held)
        report, out, _ = await finished(spawner, ["/bin/echo", "runs"])
        assert (report, out) == ({"status": 0}, b"runs\n")

    asyncio.run(main())


def test_gates_that_are_not_needed_go_with_the_daemon(spawner: Spawner) -> None:
    async def main() -> None:
        spare = await stocked(spawner)
        held = os.pidfd_open(spare.pid)
        spawner.close()
        await readable(held)
        os.close(held)

    asyncio.run(main())


def test_where_no_gate_can_be_made_the_reason_is_told(spawner: Spawner) -> None:
    async def main() -> None:
        spawner.start()
        assert spawner._process is not None
        (await spawner.take()).control.close()
        resource.prlimit(spawner._process.pid, resource.RLIMIT_NOFILE, (6, 6))
        taken = await asyncio.gather(*(spawner.take() for _ in range(4)), return_exceptions=True)
        # One or two may have been ready.
        for gate in taken:
            if isinstance(gate, Gate):
                gate.control.close()
        assert str(taken[-1]) == f"[Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}"
        # Nobody needs another, so none is asked for until somebody does.
        for _ in range(50):
            if spawner._ordered and spawner._channel:
                await readable(spawner._channel.fileno())
                spawner._receive(spawner._channel)
        assert not spawner._ordered

    asyncio.run(main())


def test_a_gate_for_which_there_is_no_descriptor_is_an_error(spawner: Spawner) -> None:
    async def main() -> None:
        spawner.start()
        with scarce(0), pytest.raises(OSError, match="Too many open files"):
            await spawner.take()
        # With room again there are gates again.
        (await spawner.take()).control.close()

    asyncio.run(main())


def test_a_spawner_that_makes_no_gate_is_an_error_that_says_so(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(spawning, "_LIMIT", 0.01)
        monkeypatch.setattr(spawner, "_order", lambda: None)
        with pytest.raises(TimeoutError, match=r"no process for it was made within 0\.01 s"):
            await spawner.take()

    asyncio.run(main())


def test_a_spawner_that_cannot_be_started_leaves_nothing_open() -> None:
    async def main() -> None:
        spawner = Spawner()
        for count in range(4):
            before = descriptors()
            with scarce(count), pytest.raises(OSError, match="Too many open files"):
                spawner.start()
            assert descriptors() == before
        spawner.close()

    asyncio.run(main())
