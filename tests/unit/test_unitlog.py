"""What units wrote, as a journalctl of the test's own tells it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from peerd import unitlog


def tail(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> list[str]:
    if script:
        program = directory / "journalctl"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin" if script else str(directory))
    return asyncio.run(unitlog.tail("cad.service", 1234.5))


def test_the_journal_is_written_before_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = f'case "$*" in *--sync*) touch {tmp_path}/synced;; *) test -e {tmp_path}/synced && echo "$@";; esac'
    (arguments,) = tail(monkeypatch, tmp_path, script)
    assert arguments == "--quiet --no-pager --output=cat --lines=10 --since=@1234.500000 _SYSTEMD_UNIT=cad.service"


def test_only_the_last_lines_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = tail(monkeypatch, tmp_path, r"seq 1 20; printf 'a\377b\033'")
    assert lines == [*map(str, range(12, 21)), "a\ufffdb\x1b"]


@pytest.mark.parametrize("script", ["", "exec sleep 60"], ids=["none", "one that hangs"])
def test_a_journal_that_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    monkeypatch.setattr(unitlog, "_TIMEOUT", 0.1)
    assert tail(monkeypatch, tmp_path, script) == []
