"""Peers held to the policy: where a directory really is, what is recorded, and what a caller is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerd import directories, guard
from peerd.app import AppCommand, AppRequest
from peerd.errors import Code, Outcome, PeerdError
from peerd.journal import Event
from peerd.messages import ExecRequest, ExecResult, RegistryAction
from peerd.policy import Policy, Question, Rule
from peerd.scopes import scope_name
from peerd.session import Caller
from unit.support import EXEC_ID, Journal, executing
from unit.support import run as run_command

PEER = Caller("laptop")
LOCAL = Caller("vps", "ann")
SECRET = "value-of-a-variable"


def run(rules: Policy, request: ExecRequest, caller: Caller = PEER, **changes: Any) -> ExecResult:
    """What becomes of a command here."""

    async def main() -> ExecResult:
        async with executing(policy=rules, **changes) as executor:
            return await run_command(executor, request, caller=caller)

    return asyncio.run(main())


def request(command: str = "true", directory: str = "/", **changes: object) -> ExecRequest:
    return replace(ExecRequest(EXEC_ID, directory, command), **changes)  # type: ignore[arg-type]


def rule(**criteria: object) -> Policy:
    return Policy(rules=(replace(Rule("only", ("laptop",)), **criteria),))  # type: ignore[arg-type]


def test_what_is_denied_does_not_run_and_its_caller_is_not_told_why(records: Journal, tmp_path: Path) -> None:
    rules = rule(shell_commands=("true",))
    result = run(rules, request(f"touch {tmp_path}/ran", env={"A": SECRET}))
    assert (result.outcome, result.exit_status) == (Outcome.DENIED, 255)
    assert str(result.error) == "Permission denied: vps does not allow this"
    assert not (tmp_path / "ran").exists()
    (record,) = records.of(Event.COMMAND_DENIED)
    assert record.text("reason") == "[allow only]: the command is not among shell-commands"
    assert (record.text("exec_id"), record.text("peer"), record.text("caller")) == (EXEC_ID, "laptop", "laptop")
    (ended,) = records.of(Event.COMMAND_ENDED)
    assert (ended.text("exec_id"), ended.text("outcome")) == (EXEC_ID, "denied")
    assert not records.of(Event.COMMAND_STARTED)
    assert SECRET not in str(records.records)


def test_what_is_allowed_runs_and_the_rule_is_named(records: Journal) -> None:
    assert run(rule(shell_commands=("exit 3",)), request("exit 3")).exit_status == 3
    (record,) = records.of(Event.COMMAND_ALLOWED)
    assert (record.text("rule"), record.text("reason")) == ("only", "allowed by [allow only]")
    assert record.fields["OBJECT_SYSTEMD_UNIT"] == scope_name(EXEC_ID).encode()


def test_a_local_caller_is_not_subject_to_it(records: Journal) -> None:
    assert run(Policy(accept=False), request("exit 3"), LOCAL).exit_status == 3
    assert not records.of(Event.COMMAND_ALLOWED)


@pytest.mark.parametrize(
    ("directory", "status"),
    [
        ("inside", 0),
        ("inside/deeper", 0),
        ("inside/./deeper/../deeper", 0),
        ("into", 0),
        ("outside", 255),
        ("inside/..", 255),
        ("inside/deeper/../../outside", 255),
        ("inside/out", 255),
        ("inside/out/../inside", 0),
        ("inside-too", 255),
        ("alias/deeper", 0),
    ],
)
def test_a_directory_is_where_it_really_is(tmp_path: Path, directory: str, status: int) -> None:
    for name in ("inside/deeper", "outside", "inside-too"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "inside/out").symlink_to(tmp_path / "outside")
    (tmp_path / "into").symlink_to("inside/deeper")
    (tmp_path / "alias").symlink_to("inside")
    for top in ("inside", "alias"):
        rules = rule(directories=(f"{tmp_path}/{top}",))
        assert run(rules, request("true", f"{tmp_path}/{directory}")).exit_status == status


@pytest.mark.parametrize("user", ["", "nobody"])
def test_a_directory_that_became_a_link_after_the_decision_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    locate = directories.locate
    tmp_path.chmod(0o755)

    def swap(path: str) -> str | None:
        place = locate(path)
        if path.endswith("inside"):
            (tmp_path / "inside").rename(tmp_path / "was")
            (tmp_path / "inside").symlink_to(tmp_path / "outside")
        return place

    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr(directories, "locate", swap)
    result = run(rule(directories=(str(tmp_path),)), request("touch ran", f"{tmp_path}/inside", user=user))
    assert result.error is not None
    assert result.error.code is Code.NO_ACCESS
    assert not (tmp_path / "outside/ran").exists()


def test_a_directory_that_cannot_be_resolved_denies_what_only_that_allows(
    records: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    below, anywhere = Rule("below", ("laptop",), directories=("/",)), Rule("anywhere", ("laptop",), max_timeout=60.0)
    asked = request(directory=f"{tmp_path}/loop")
    assert run(Policy(rules=(below,)), asked).outcome is Outcome.DENIED
    assert run(Policy(rules=(below, anywhere)), asked).outcome is Outcome.FAILED
    monkeypatch.setattr(directories, "_LIMIT", 0.0)
    assert run(Policy(rules=(below,)), request()).outcome is Outcome.DENIED
    assert run(Policy(rules=(below, anywhere)), request()).exit_status == 0
    looped, late = (record.text("reason") for record in records.of(Event.COMMAND_DENIED))
    assert looped == f"'{tmp_path}/loop' cannot be resolved"
    assert late == "the directories could not be resolved in time"


@pytest.mark.parametrize(
    "rules",
    [
        (Rule("r", ("vps",), directories=("/",)),),
        (Rule("r", ("laptop",), users=("ann",), directories=("/",)),),
        (Rule("r", ("laptop",), shell_commands=("false",), directories=("/",)),),
        (Rule("r", ("laptop",), directories=("/",)), Rule("s", ("laptop",))),
    ],
    ids=["peer", "user", "command", "allowed anyway"],
)
def test_no_directory_is_looked_up_where_nothing_hangs_on_it(
    monkeypatch: pytest.MonkeyPatch, rules: tuple[Rule, ...]
) -> None:
    monkeypatch.setattr(directories, "locate", pytest.fail)
    assert run(Policy(rules=rules), request()).outcome is (Outcome.EXITED if len(rules) > 1 else Outcome.DENIED)
    assert not asyncio.run(guard.judge(Policy(accept=False, rules=rules), Question("laptop")))[0].allowed


@pytest.mark.parametrize(("asked", "limit"), [(None, 0.2), (0.1, 0.1)])
def test_a_command_gets_no_more_time_than_its_rule_allows(asked: float | None, limit: float) -> None:
    async def main() -> None:
        admitted = await guard.admit(rule(max_timeout=0.2), request(timeout=asked or 30.0), asked, "laptop", "vps")
        assert admitted.timeout == limit
        with pytest.raises(PeerdError):
            await guard.admit(rule(max_timeout=0.2), request(timeout=0.3), 0.3, "laptop", "vps")

    asyncio.run(main())


def test_a_peer_that_may_not_run_it_does_not_hear_how_long_it_might() -> None:
    asked = request(timeout=61.0)
    denied = run(Policy(accept=False), asked, max_timeout=60.0)
    assert str(denied.error) == "Permission denied: vps does not allow this"
    assert "max-timeout" in str(run(Policy(), asked, max_timeout=60.0).error)


def test_a_peers_actions_are_held_to_the_policy_in_their_own_directories(tmp_path: Path) -> None:
    action = ExecRequest.from_wire({"execId": EXEC_ID, "action": "pull"})
    changes: dict[str, Any] = {"repository": str(tmp_path), "pull_command": "true"}
    assert run(rule(actions=("pull",), directories=(str(tmp_path),)), action, **changes).exit_status == 0
    assert run(rule(actions=("build",)), action, **changes).outcome is Outcome.DENIED
    assert run(rule(actions=("pull",), directories=("/srv",)), action, **changes).outcome is Outcome.DENIED


def test_the_leaders_consent_is_needed_to_change_its_registry(records: Journal) -> None:
    guard.consent(Policy(), RegistryAction.DELETE, "nas", "laptop")
    guard.consent(Policy(registry_admins=("laptop",)), RegistryAction.APPROVE, "nas", "laptop")
    with pytest.raises(PeerdError) as caught:
        guard.consent(Policy(registry_admins=()), RegistryAction.REJECT, "nas", "laptop")
    assert str(caught.value) == "Permission denied: the leader does not allow this (registry-admins)"
    (record,) = records.of(Event.REGISTRY_DENIED)
    assert [record.text(name) for name in ("peer", "caller")] == ["nas", "laptop"]


def test_apps_are_entrusted_to_who_may_run_everything(records: Journal) -> None:
    request_ = AppRequest(AppCommand.STOP, "cad", "prod")
    guard.entrust(Policy(), request_, "laptop", "vps")
    guard.entrust(rule(), request_, "laptop", "vps")
    with pytest.raises(PeerdError) as caught:
        guard.entrust(rule(users=("ann",)), request_, "laptop", "vps")
    assert str(caught.value) == "Permission denied: vps does not allow this"
    (record,) = records.of(Event.APP_DENIED)
    assert record.message == "stopApp cad denied to laptop: no rule allows laptop everything as root"
    assert [record.text(name) for name in ("app", "mode", "peer", "command")] == ["cad", "prod", "laptop", "stopApp"]
