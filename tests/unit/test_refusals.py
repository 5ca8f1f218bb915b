"""Refusals on record: so many of each party, then the number of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from peerd import guard, refusals
from peerd.app import AppCommand, AppRequest
from peerd.errors import PeerdError
from peerd.job import Job
from peerd.journal import Event, log
from peerd.messages import ExecRequest, RegistryAction
from peerd.policy import Policy
from peerd.refusals import Refusals
from unit.support import EXEC_ID, Journal

CLOSED = Policy(accept=False, registry_admins=())


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_MOST", 2)


def left_out(records: Journal) -> list[str]:
    return [record.message for record in records.of(Event.REFUSALS_LEFT_OUT)]


def test_each_party_has_its_share() -> None:
    async def main() -> None:
        tally = Refusals("requests")
        assert [tally.refused("mallory") for _ in range(4)] == [True, True, False, False]
        assert tally.refused("laptop")

    asyncio.run(main())


def test_what_was_left_out_is_told_though_nothing_more_is_refused(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_INTERVAL", 0.01)
    told = asyncio.Event()

    def tell(event: Event, message: str, **fields: object) -> None:
        log(event, message, **fields)
        told.set()

    monkeypatch.setattr(refusals, "log", tell)

    async def main() -> None:
        tally = Refusals("requests")
        for _ in range(5):
            tally.refused("mallory")
        await told.wait()
        assert left_out(records) == ["3 more requests of mallory were refused"]
        assert tally.refused("mallory")

    asyncio.run(main())


def test_however_many_parties_there_are_the_table_of_them_has_a_bound(
    records: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MOST_PARTIES", 3)

    async def main() -> None:
        tally = Refusals("connections")
        assert sum(tally.refused(f"10.0.0.{number}") for number in range(100)) == 3 + 2
        assert [tally.refused("10.0.0.1"), tally.refused("10.0.0.1")] == [True, False]
        assert len(tally._counts) == 4
        tally._until = 0.0
        assert tally.refused("10.0.0.99")
        assert left_out(records) == [
            "1 more connections of 10.0.0.1 were refused",
            "95 more connections of (others) were refused",
        ]

    asyncio.run(main())


REFUSED: list[Callable[[], None]] = [
    lambda: guard.consent(CLOSED, RegistryAction.DELETE, "nas", "laptop"),
    lambda: guard.attend(CLOSED, Job.of(ExecRequest(EXEC_ID, "/", "true"), "vps", "desktop", 1), "laptop", "vps"),
    lambda: guard.entrust(CLOSED, AppRequest(AppCommand.LIST), "laptop", "vps"),
]


@pytest.mark.parametrize(
    "asked",
    [[refused] * 5 for refused in REFUSED] + [REFUSED * 2],
    ids=["registry", "command", "apps", "all of them"],
)
def test_no_peer_fills_the_journal_with_what_it_is_denied(records: Journal, asked: list[Callable[[], None]]) -> None:
    async def main() -> None:
        for ask in asked:
            with pytest.raises(PeerdError):
                ask()
        assert len(records.records) == 2

    asyncio.run(main())
