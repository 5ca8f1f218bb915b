"""The environment of a command: that of a login, and nothing of the daemon's."""

from __future__ import annotations

import os
import pwd

import pytest

from peerd.environment import PATH, login_environment

ROOT = pwd.getpwnam("root")
NAMES = {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "PEERD_EXEC_ID", "PEERD_CALLER"}


def test_it_is_that_of_a_login_of_root() -> None:
    environment = login_environment("0" * 16, "laptop", ROOT)
    assert environment["HOME"] == ROOT.pw_dir
    assert environment["USER"] == environment["LOGNAME"] == "root"
    assert environment["SHELL"] == (ROOT.pw_shell or "/bin/sh")
    assert environment["PATH"] == PATH
    assert environment["LANG"] == "C.UTF-8"


def test_it_says_which_command_it_is_and_who_asked() -> None:
    environment = login_environment("0123456789abcdef", "ann@laptop", ROOT)
    assert environment["PEERD_EXEC_ID"] == "0123456789abcdef"
    assert environment["PEERD_CALLER"] == "ann@laptop"


def test_it_has_nothing_of_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID", "SECRET", "LD_PRELOAD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PATH", "/tmp")
    monkeypatch.setenv("HOME", "/tmp")
    environment = login_environment("0" * 16, "laptop", ROOT)
    assert environment.keys() == NAMES
    assert "/tmp" not in environment.values()


def test_every_directory_of_the_path_is_absolute() -> None:
    assert all(os.path.isabs(directory) for directory in PATH.split(":"))


def test_it_is_that_of_the_user_who_runs_the_command() -> None:
    nobody = pwd.getpwnam("nobody")
    environment = login_environment("0" * 16, "laptop", nobody)
    assert environment["HOME"] == nobody.pw_dir
    assert environment["USER"] == environment["LOGNAME"] == "nobody"
    assert environment["SHELL"] == nobody.pw_shell
