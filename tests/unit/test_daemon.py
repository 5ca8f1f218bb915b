"""The daemon's configuration files, and how it ends when it cannot start."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sdnotify

from peerd import __main__, configfiles, daemon
from peerd.config import ConfigError
from peerd.journal import Event
from peerd.registry import Identity
from unit.support import Journal, settings


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is."""
    monkeypatch.setattr(configfiles, "CONFIG_FILE", tmp_path / "peerd.conf")
    monkeypatch.setattr(configfiles, "CONFIG_DIRECTORY", tmp_path / "peerd.conf.d")
    (tmp_path / "peerd.conf.d").mkdir()
    return tmp_path


def test_without_files_the_defaults_are_in_force(etc: Path) -> None:
    (etc / "peerd.conf.d").rmdir()
    assert configfiles.read() == (settings(), [])


def test_drop_ins_win_over_the_file_in_the_order_of_their_names(etc: Path) -> None:
    (etc / "peerd.conf").write_text("[peerd]\nport = 1\nmax-commands = 1\nrepository = /one\n")
    (etc / "peerd.conf.d/20-b.conf").write_text("[peerd]\nport = 3\n")
    (etc / "peerd.conf.d/10-a.conf").write_text("[peerd]\nport = 2\nmax-commands = 2\n")
    (etc / "peerd.conf.d/30-c.conf.dpkg-old").write_text("[peerd]\nport = 4\n")
    assert configfiles.read() == (settings(port=3, max_commands=2, repository="/one"), [])


@pytest.mark.parametrize(
    "content", [b"[peerd]\nport = x\n", b"\xff", b"port = 1\n"], ids=["value", "coding", "section"]
)
def test_a_file_that_cannot_be_used_is_refused(etc: Path, content: bytes) -> None:
    (etc / "peerd.conf").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        configfiles.read()
    assert str(etc / "peerd.conf") in str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_warned_of(etc: Path, mode: int) -> None:
    (etc / "peerd.conf").write_text("[peerd]\nport = 1\n")
    (etc / "peerd.conf").chmod(mode)
    assert configfiles.read() == (settings(port=1), [f"{etc}/peerd.conf: others than its owner may write it"])


def test_a_file_that_cannot_be_read_is_refused(etc: Path) -> None:
    (etc / "peerd.conf").mkdir()
    with pytest.raises(ConfigError, match=r"peerd\.conf"):
        configfiles.read()


@pytest.mark.parametrize("name", ["peerd.conf", "peerd.conf.d/policy.conf", "peerd.conf.d"])
def test_a_link_to_nowhere_is_no_missing_file(etc: Path, name: str) -> None:
    (etc / "peerd.conf.d").rmdir()
    if name == "peerd.conf.d/policy.conf":
        (etc / "peerd.conf.d").mkdir()
    (etc / name).symlink_to(etc / "gone")
    with pytest.raises(ConfigError) as caught:
        configfiles.read()
    assert str(etc / name) in str(caught.value)


def test_a_file_that_is_gone_meanwhile_is_refused(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (etc / "peerd.conf").write_text("[peerd]\n")
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([path / "gone.conf"]))
    with pytest.raises(ConfigError, match=r"gone\.conf"):
        configfiles.read()


def test_a_daemon_with_a_bad_configuration_ends_with_78_and_says_why(
    etc: Path, records: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (etc / "peerd.conf").write_text("[peerd]\nport = x\n")
    monkeypatch.setattr(sys, "argv", ["peerd"])
    assert daemon.main() == 78
    assert "port" in capsys.readouterr().err
    assert [record.event for record in records.records] == [Event.CONFIG_INVALID]
    assert "port" in records.records[0].message


def test_a_daemon_whose_state_cannot_be_used_ends_with_1_and_says_why(
    etc: Path, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.expect(Event.INTERNAL_ERROR)
    monkeypatch.setattr(sdnotify, "SystemdNotifier", object)
    (etc / "peerd.conf").write_text("[peerd]\nprot = 1\n")
    monkeypatch.setattr(sys, "argv", ["peerd"])
    monkeypatch.setenv("STATE_DIRECTORY", str(etc / "missing"))
    assert daemon.main() == 1
    assert [record.event for record in records.records] == [Event.CONFIG_WARNING, Event.INTERNAL_ERROR]
    assert str(etc / "missing") in records.records[1].message


@pytest.mark.parametrize(
    ("directories", "used"),
    [
        ("/var/lib/alpha:/var/lib/peerd:/var/lib/peerd2", "/var/lib/peerd"),
        ("/var/lib/alpha:/var/lib/beta", "/var/lib/alpha"),
        ("/var/lib/alpha", "/var/lib/alpha"),
    ],
)
def test_a_drop_in_that_names_a_further_state_directory_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, directories: str, used: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", directories)
    assert daemon._state() == Path(used)


def test_a_listener_is_told_by_what_it_is_and_not_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        one,
        other,
        (tmp_path / "memo").open("w") as memo,
    ):
        unix.bind(str(tmp_path / "sock"))
        unix.listen()
        given = {
            tcp.detach(): "mine",
            unix.detach(): "peerd2.socket",
            one.fileno(): "a.scope",
            memo.fileno(): "a.scope",
        }
        monkeypatch.setattr("peerd.daemon.systemd.listen_fds_with_names", lambda unset_environment: given)
        listeners, kept = daemon._given()
        try:
            assert {name: [found.fileno() for found in of] for name, of in listeners.items()} == {
                "unix": [fd for fd, name in given.items() if name == "peerd2.socket"],
                "tcp": [fd for fd, name in given.items() if name == "mine"],
            }
            assert kept == {"a.scope": [one.fileno(), memo.fileno()]}
        finally:
            for listener in (*listeners["unix"], *listeners["tcp"]):
                listener.close()


def test_a_status_that_has_not_changed_wakes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sdnotify, "SystemdNotifier", lambda: SimpleNamespace(notify=told.append))
    monkeypatch.setattr(daemon, "_STATUS_DELAY", 0.0)

    async def main() -> None:
        one = daemon.Daemon(settings(), {}, {}, tmp_path)
        for peer_id in ("laptop", "laptop", "desktop", "laptop"):
            one._node.identity = Identity("", peer_id, "")
            one._changed()
            await asyncio.sleep(0.01)
        one._history.close()
        one._registry.close()

    asyncio.run(main())
    assert [line.partition(" ")[0] for line in told] == ["STATUS=laptop", "STATUS=desktop", "STATUS=laptop"]


@pytest.mark.parametrize("arguments", [["--help"], ["--check", "x"], ["x", "--check"]])
def test_other_arguments_end_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peerd", *arguments])
    assert __main__.main() == 2
    assert "systemctl start peerd" in capsys.readouterr().err


def test_the_daemon_is_run_without_arguments(etc: Path, records: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    (etc / "peerd.conf").write_text("[peerd]\nport = x\n")
    monkeypatch.setattr(sys, "argv", ["peerd"])
    assert __main__.main() == 78
    assert records.of(Event.CONFIG_INVALID)


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("[peerd]\nport = 1\n", 0, ""),
        ("[peerd]\nprot = 1\n", 0, "peerd: {}: unknown setting 'prot', ignored\n"),
        ("[peerd]\naccept-exec = No\n", 78, "peerd: {}: accept-exec: must be yes or no\n"),
    ],
)
def test_the_configuration_can_be_looked_at_alone(
    etc: Path,
    records: Journal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    status: int,
    said: str,
) -> None:
    (etc / "peerd.conf").write_text(text)
    monkeypatch.setattr(sys, "argv", ["peerd", "--check"])
    monkeypatch.setattr(daemon, "main", pytest.fail)
    assert __main__.main() == status
    assert capsys.readouterr().err == said.format(etc / "peerd.conf")
    assert not records.records


def test_the_status_says_that_a_configuration_is_not_in_force(
    etc: Path, records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    notifier = SimpleNamespace(notify=lambda state: told.append(state.splitlines()[-1]))
    monkeypatch.setattr(sdnotify, "SystemdNotifier", lambda: notifier)

    async def main() -> None:
        one = daemon.Daemon(settings(), {}, {}, etc)
        (etc / "peerd.conf").write_text("[peerd]\naccept-exec = No\n")
        one._reload()
        one._show_status()
        (etc / "peerd.conf").write_text("[peerd]\naccept-exec = no\n")
        one._reload()
        one._history.close()
        one._registry.close()

    asyncio.run(main())
    usual = f"STATUS={socket.gethostname()} works alone, no role set, 0 commands running"
    bad = f"{usual}; configuration not reloaded: {etc}/peerd.conf: accept-exec: must be yes or no"
    assert [state for state in told if state.startswith("STATUS")] == [bad, bad, usual]
    assert len(records.of(Event.CONFIG_INVALID)) == 1


def test_where_no_descriptor_is_left_that_is_said_once_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: said.append(context["message"]))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)
        server = await daemon._serve(listener, asyncio.Protocol)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as caller:
            spare = os.dup(caller.fileno())
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
            os.close(spare)
            try:
                caller.connect(str(tmp_path / "socket"))
                await asyncio.sleep(0.1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    assert said == ["socket.accept() out of system resource"]
