"""Apps: which units they have, and what is asked and answered of them on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from peerd import app
from peerd.answer import Answer
from peerd.app import ALL, SHOWN, App, AppCommand, AppRequest, answer_from_wire, answer_to_wire
from peerd.commands import BY_NAME
from peerd.errors import Code, PeerdError
from peerd.protocol import MAX_HEADER, encode
from unit.support import brief, frames


def added(**changes: Any) -> list[App]:
    return AppRequest(AppCommand.ADD, **{"app": "cad", **changes}).expand()


def test_the_commands_are_those_of_d() -> None:
    assert set(AppCommand) <= set(BY_NAME)
    assert {command for command in AppCommand if not command.changes} == {"appStatus", "listApps"}


def test_an_app_has_a_unit_and_a_directory_for_each_mode() -> None:
    assert added() == [App("cad", "dev", "cad-dev.service"), App("cad", "prod", "cad-prod.service")]
    assert added(unit="{app}@{mode}.service", directory="/srv/{app}/{mode}") == [
        App("cad", "dev", "cad@dev.service", "/srv/cad/dev"),
        App("cad", "prod", "cad@prod.service", "/srv/cad/prod"),
    ]
    assert added(mode="prod", unit="cad.service") == [App("cad", "prod", "cad.service")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit": "cad.service"}, "{mode}"),
        ({"unit": "{app}" * 60 + "{mode}.service", "app": "a" * 9}, "a unit"),
        ({"directory": "/{app}" * 5, "app": "a" * 63}, "directory"),
    ],
)
def test_two_modes_of_one_unit_and_names_that_no_unit_has_are_wrong_usage(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerdError, match=reason) as caught:
        added(**changes)
    assert caught.value.code is Code.USAGE


@pytest.mark.parametrize(
    "request_",
    [
        AppRequest(AppCommand.LIST),
        AppRequest(AppCommand.STATUS),
        AppRequest(AppCommand.START, "cad", "prod"),
        AppRequest(AppCommand.ADD, "cad", "dev", "x.service", "/srv/cad"),
    ],
    ids=lambda request: request.command,
)
def test_a_request_survives_the_wire(request_: AppRequest) -> None:
    assert AppRequest.from_wire(frames(encode("appRequest", request_.to_wire()))[0].fields) == request_


ROW: dict[str, object] = {**dict.fromkeys(SHOWN), "app": "cad", "unit": "cad.service", "main_pid": 7}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (AppCommand.STATUS, Answer([ROW, ROW])),
        (AppCommand.START, Answer(text="Started a\nStarted b")),
        (AppCommand.START, Answer(error=PeerdError(Code.UNIT_FAILED, ["it said"], unit="x", name="start"), status=255)),
    ],
)
def test_an_answer_survives_the_wire(command: AppCommand, answer: Answer) -> None:
    fields = frames(encode("reply", answer_to_wire(answer, ["note"])))[0].fields
    again, notes = answer_from_wire(fields, AppRequest(command))
    assert (again.data, again.text, again.status, notes) == (answer.data, answer.text, answer.status, ["note"])
    assert (again.error and again.error.text) == (answer.error and answer.error.text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": {}},
        {"data": [1]},
        {"data": [ROW] * (app.MAX_APPS + 1)},
        {"data": [{"app": []}]},
        {"data": [{"app": True}]},
        {"data": [{"main_pid": -1}]},
        {"data": [{"app": "x" * 256}]},
        {"data": [], "text": 1},
        {"data": [], "text": "x" * 5000},
        {"data": [], "notes": "x"},
        {"data": [], "notes": ["x"] * 11},
        {"data": [], "notes": [1]},
    ],
    ids=brief,
)
def test_an_answer_that_is_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(PeerdError) as caught:
        answer_from_wire(fields, AppRequest(AppCommand.STATUS))
    assert caught.value.code is Code.BAD_MESSAGE


def test_what_another_machine_says_cannot_drive_a_terminal() -> None:
    answer, notes = answer_from_wire({"text": "a\x1b[2J\nb", "notes": ["\x1bc"]}, AppRequest(AppCommand.START))
    assert (answer.text, notes) == ("a\\x1b[2J\nb", ["\\x1bc"])


@pytest.mark.parametrize(("mode", "text"), [(ALL, "a\nb\\nc\\u2028d"), ("prod", "a\\nb\\nc\\u2028d")])
def test_what_another_machine_says_stays_on_its_line(mode: str, text: str) -> None:
    fields: dict[str, object] = {"text": "a\nb\nc\u2028d", "notes": ["a\nPermission denied"]}
    answer, notes = answer_from_wire(fields, AppRequest(AppCommand.START, "cad", mode))
    assert (answer.text, notes) == (text, ["a\\nPermission denied"])


def test_unknown_fields_of_a_row_are_left_out() -> None:
    answer, _ = answer_from_wire({"data": [{**ROW, "more": 1}]}, AppRequest(AppCommand.STATUS))
    assert answer.data == [ROW]


def test_as_many_rows_as_there_can_be_fit_into_one_frame() -> None:
    widest = {**dict.fromkeys(SHOWN, "x" * 64), "unit": "x" * 255, "directory": "/" + "\u00fc" * 127, "app": "a" * 63}
    assert len(encode("reply", answer_to_wire(Answer([widest] * app.MAX_APPS), []))) < MAX_HEADER


def test_all_stands_for_no_mode() -> None:
    assert ALL not in app.MODES
