"""What the kernel tells of a scope."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerd import scopes
from unit.support import scarce


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The control group of any scope."""
    monkeypatch.setattr(scopes, "_cgroup", lambda name: str(tmp_path / "group"))
    return tmp_path / "group"


def test_the_processes_of_a_scope_are_those_of_its_groups(group: Path) -> None:
    (group / "below").mkdir(parents=True)
    (group / "cgroup.procs").write_text("1\n2\n")
    (group / "below" / "cgroup.procs").write_text("3\n")
    assert scopes.processes("x") == [1, 2, 3]


def test_a_scope_that_is_gone_has_no_processes(group: Path) -> None:
    assert scopes.processes("x") == []


def test_a_scope_that_cannot_be_read_is_not_empty(group: Path) -> None:
    group.mkdir()
    (group / "cgroup.procs").write_text("1\n2\n")
    with scarce(0), pytest.raises(OSError, match="Too many open files"):
        scopes.processes("x")
