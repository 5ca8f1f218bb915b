"""What the kernel tells of a scope."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from peerd import scopes
from peerd.scopes import ScopeManager, Stopper
from peerd.systemd1 import NoSuchUnit, Systemd, SystemdError
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


class Asked(Systemd):
    """A systemd that has these properties; a value of None is a unit that is gone."""

    def __init__(self, **properties: str | None) -> None:
        super().__init__()
        self.properties = properties

    async def call(self, member: str, signature: str = "", body: Sequence[object] = ()) -> list[Any]:
        assert (member, *body) == ("GetUnit", "x.scope")
        if self.properties["ActiveState"] is None:
            raise NoSuchUnit("x.scope is not loaded")
        return ["/x"]

    async def get(self, path: str, interface: str, name: str) -> str | None:
        assert (path == "/x", interface) == ((True, "Unit") if name == "ActiveState" else (False, "Manager"))
        if not self.properties[name]:
            raise SystemdError("no answer")
        return self.properties[name]


@pytest.mark.parametrize(
    ("state", "system", "stopper"),
    [
        ("active", "stopping", None),
        ("active", "running", None),
        ("deactivating", "running", Stopper.SOMEBODY),
        ("deactivating", "degraded", Stopper.SOMEBODY),
        ("deactivating", "stopping", Stopper.SHUTDOWN),
        (None, "stopping", Stopper.SHUTDOWN),
        (None, "running", None),
        ("", "running", None),
        ("deactivating", "", None),
    ],
)
def test_why_systemd_stops_a_scope(state: str | None, system: str, stopper: Stopper | None) -> None:
    asked = ScopeManager(Asked(ActiveState=state, SystemState=system)).stopper("x.scope")
    assert asyncio.run(asked) is stopper
