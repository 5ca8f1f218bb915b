"""Units: what counts as started, and what is said of one that does not run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from peerd import units
from peerd.systemd1 import SystemdError
from peerd.units import State, Units
from unit.fake_systemd import FakeSystemd, FakeUnit

UNIT = "cad.service"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_STEP", 0.001)
    monkeypatch.setattr(units, "_WATCH", 0.0025)


def started(unit: FakeUnit) -> FakeSystemd:
    systemd = FakeSystemd(cad=unit)
    asyncio.run(Units(systemd).start(UNIT))
    return systemd


def refusal(unit: FakeUnit) -> str:
    with pytest.raises(SystemdError) as caught:
        started(unit)
    return str(caught.value)


def test_what_runs_is_started() -> None:
    assert started(FakeUnit()).calls == [("StartUnit", UNIT)]


def test_one_that_ended_well_was_started_and_is_forgotten_only_then() -> None:
    systemd = started(FakeUnit(after={"Type": "oneshot", "ActiveState": "inactive"}))
    assert (systemd.calls, systemd.kept) == ([("StartUnit", UNIT)], [])


@pytest.mark.parametrize(
    ("job", "after", "reason"),
    [
        (
            "failed",
            {"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3},
            "exit status 3, result exit-code, job failed",
        ),
        (
            "failed",
            {"Result": "core-dump", "ExecMainCode": 3, "ExecMainStatus": 11},
            "signal SIGSEGV, result core-dump, job failed",
        ),
        (
            "failed",
            {"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 99},
            "signal 99, result signal, job failed",
        ),
        ("timeout", {"Result": "timeout"}, "result timeout, job timeout"),
        ("dependency", {}, "job dependency"),
    ],
)
def test_a_job_that_failed_says_how_the_unit_ended(job: str, after: dict[str, Any], reason: str) -> None:
    assert refusal(FakeUnit(job, after)) == reason


def test_a_condition_that_is_not_met_is_a_failure() -> None:
    after = {"ActiveState": "inactive", "ConditionResult": False}
    assert refusal(FakeUnit(after=after)) == "one of its conditions is not met"


FAILED = {"ActiveState": "failed", "Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 1}
AGAIN = {**FAILED, "ActiveState": "activating", "SubState": "auto-restart"}


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ([FAILED], "exit status 1, result exit-code"),
        ([{}, FAILED], "exit status 1, result exit-code"),
        ([{}, AGAIN], "exit status 1, result exit-code"),
        ([{}, {"NRestarts": 1}], "it ended at once, and systemd started it again"),
    ],
)
def test_a_simple_service_that_ends_at_once_did_not_start(later: list[dict[str, Any]], reason: str) -> None:
    assert refusal(FakeUnit(after={"Type": "simple"}, later=later)) == reason


def test_a_service_that_says_when_it_runs_is_not_watched() -> None:
    unit = FakeUnit(after={"Type": "notify"}, later=[{}, {"NRestarts": 1}])
    started(unit)
    assert unit.later == [{"NRestarts": 1}]


def test_one_that_was_restarted_before_is_not_taken_for_one_that_fails() -> None:
    started(FakeUnit(after={"Type": "simple", "NRestarts": 4}, later=[{}, {}]))


def test_enabling_and_disabling_reload_systemd_only_where_something_changed() -> None:
    async def main() -> None:
        systemd = FakeSystemd(cad=FakeUnit())
        for act in (Units.enable, Units.enable, Units.disable, Units.disable):
            await act(Units(systemd), UNIT)
        assert [method for method, _ in systemd.calls] == (
            ["EnableUnitFiles", "Reload", "EnableUnitFiles", "DisableUnitFiles", "Reload", "DisableUnitFiles"]
        )

    asyncio.run(main())


def test_what_cannot_be_enabled_is_said() -> None:
    with pytest.raises(SystemdError, match=r"no \[Install\] section"):
        asyncio.run(Units(FakeSystemd(cad=FakeUnit(installs=False))).enable(UNIT))


def test_a_stop_that_fails_is_said() -> None:
    with pytest.raises(SystemdError, match="job timeout"):
        asyncio.run(Units(FakeSystemd(cad=FakeUnit("timeout"))).stop(UNIT))


@pytest.mark.parametrize(("code", "status", "exit_status"), [(0, 0, None), (1, 3, 3), (2, 9, 137), (3, 11, 139)])
def test_a_main_process_ends_as_a_shell_reports_it(code: int, status: int, exit_status: int | None) -> None:
    assert State("", "", "", "", 0, True, code=code, status=status).exit_status == exit_status


def test_a_unit_that_is_no_service_has_no_main_process() -> None:
    async def main() -> None:
        systemd = FakeSystemd()
        systemd.units["cad.target"] = FakeUnit()
        state = await Units(systemd).state("cad.target")
        assert (state.exists, state.pid, state.type, state.end) == (True, 0, "", "")
        assert not (await Units(systemd).state("none.service")).exists

    asyncio.run(main())
