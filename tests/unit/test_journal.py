"""Records, where the journal takes them and where it does not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys

import pytest

from peerd import journal, scopes
from peerd.errors import Outcome
from peerd.journal import Event
from peerd.messages import ExecRequest
from unit.support import EXEC_ID, FakeScopes, executing, run


@pytest.fixture
def _down(records: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no journald."""

    class Down:
        @staticmethod
        def sendv(*fields: bytes) -> None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    monkeypatch.setattr(journal, "journal", Down)


@pytest.mark.usefixtures("_down")
def test_what_the_journal_does_not_take_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    journal.log(Event.STARTED, "peerd\nstarted")
    assert capsys.readouterr().err == "Connection refused: peerd\\nstarted\n"


@pytest.mark.usefixtures("_down")
def test_where_nobody_takes_it_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    broken = open(writer, "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", broken)
    journal.log(Event.STARTED, "peerd started")
    with contextlib.suppress(BrokenPipeError):
        broken.close()


@pytest.mark.usefixtures("_down")
def test_a_command_runs_and_has_its_result_without_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "processes", FakeScopes.members)

    async def main() -> None:
        async with executing() as executor:
            result = await run(executor, ExecRequest(EXEC_ID, "/", "exit 3"))
            assert (result.outcome, result.exit_status) == (Outcome.EXITED, 3)
            assert executor.job(EXEC_ID).result == result

    asyncio.run(main())
