"""The errors: each has its row, says all that it should, and can be shown whatever a peer puts into it."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import peerd
from peerd.errors import EXIT_FAILURE, KINDS, Code, Outcome, PeerdError
from peerd.protocol import encode
from unit.support import brief, frames

SOURCES = sorted(Path(peerd.__file__).parent.glob("*.py"))
# What may be left out: a reason, where the sentence reads well without it, and the command, which the service names.
MAY_LACK = {
    (Code.NOT_CONNECTED, "reason"),
    (Code.CONNECT_FAILED, "reason"),
    (Code.CUT_OFF, "reason"),
    (Code.USAGE, "command"),
}


def placeholders(code: Code) -> set[str]:
    """The names in the sentence and the hints of a code."""
    kind = KINDS[code]
    formatter = string.Formatter()
    return {name for text in (kind.sentence, *kind.hints) for _, name, _, _ in formatter.parse(text) if name}


def raisers() -> Iterator[tuple[str, ast.Call]]:
    """Every place that makes a PeerdError, with its file and line."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PeerdError":
                yield f"{source.name}:{node.lineno}", node


def code_of(call: ast.Call) -> Code | None:
    """The code that a call names, or None where it is a variable."""
    first = call.args[0]
    if isinstance(first, ast.Attribute) and isinstance(first.value, ast.Name) and first.value.id == "Code":
        return Code[first.attr]
    return None


NAMED = [
    pytest.param(code, {keyword.arg for keyword in call.keywords}, id=f"{place}-{code}")
    for place, call in raisers()
    if (code := code_of(call)) and all(keyword.arg for keyword in call.keywords)
]


def test_every_code_has_a_kind() -> None:
    assert set(KINDS) == set(Code)


def test_the_raisers_are_found() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("code", "given_"), NAMED)
def test_every_raiser_says_all_that_the_sentence_names(code: Code, given_: set[str]) -> None:
    lacking = {name for name in placeholders(code) - given_ if (code, name) not in MAY_LACK}
    assert not lacking


@pytest.mark.parametrize(("code", "given_"), NAMED)
def test_every_raiser_says_nothing_that_is_not_shown(code: Code, given_: set[str]) -> None:
    assert given_ <= placeholders(code)


def test_raisers_whose_code_is_a_variable_say_all_that_any_sentence_names() -> None:
    variable = {
        (place.split(":", maxsplit=1)[0], frozenset(keyword.arg or "**" for keyword in call.keywords))
        for place, call in raisers()
        if code_of(call) is None
    }
    # A run chooses among these, and what came from a target is passed on.
    assert variable == {("run.py", frozenset({"peer", "directory", "reason"})), ("remote.py", frozenset({"**"}))}
    for code in (Code.NO_SUCH_DIRECTORY, Code.NOT_A_DIRECTORY, Code.NO_ACCESS, Code.START_FAILED):
        assert placeholders(code) <= {"peer", "directory", "reason"}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_used(code: Code) -> None:
    uses = [
        source.name for source in SOURCES if source.name != "errors.py" and f"Code.{code.name}" in source.read_text()
    ]
    assert uses


@pytest.mark.parametrize("code", list(Code))
def test_every_detail_is_shown_and_survives_the_wire(code: Code) -> None:
    details = {name: f"<{name}>" for name in placeholders(code)}
    error = PeerdError(code, **details)
    assert all(value in error.text for value in details.values())
    assert "{" not in error.text
    again = PeerdError.from_wire(frames(encode("error", error.to_wire()))[0].fields)
    assert (again.code, again.text) == (code, error.text)


@pytest.mark.parametrize("code", list(Code))
def test_a_sentence_is_one_line_and_its_hints_follow_indented(code: Code) -> None:
    error = PeerdError(code, **dict.fromkeys(placeholders(code), "x"))
    lines = error.text.splitlines()
    assert lines[0] == error.sentence == str(error)
    assert lines[1:] == [f"  {hint}" for hint in error.hints]
    assert error.text.endswith("\n")


@pytest.mark.parametrize("code", list(Code))
def test_no_error_is_success(code: Code) -> None:
    kind = KINDS[code]
    assert 0 < kind.exit_status <= EXIT_FAILURE
    assert kind.outcome not in (Outcome.EXITED, Outcome.SIGNALED)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PeerdError(Code.PEER_NOT_FOUND, peer="laptop"), "Peer not found: laptop"),
        (PeerdError(Code.NOT_CONNECTED, address="10.0.0.1"), "Not connected to leader"),
        (
            PeerdError(Code.CONNECT_FAILED, peer="laptop", address="10.0.0.4"),
            "Failed to connect to peer: laptop (10.0.0.4)",
        ),
        (PeerdError(Code.TIMEOUT, peer="laptop", seconds="30"), "Timeout waiting for response from laptop (30 s)"),
    ],
)
def test_these_sentences_are_what_scripts_look_for(error: PeerdError, sentence: str) -> None:
    assert error.sentence == sentence


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (PeerdError(Code.PEER_NOT_FOUND, peer="laptop"), "d registerWorker"),
        (PeerdError(Code.NOT_CONNECTED, address="10.0.0.1"), "ping 10.0.0.1"),
        (PeerdError(Code.NOT_CONNECTED, address="10.0.0.1"), "wg show"),
        (PeerdError(Code.CONNECT_FAILED, peer="laptop", address="10.0.0.4"), "ping 10.0.0.4"),
        (PeerdError(Code.TIMEOUT, peer="laptop", seconds="30"), "30 second timeout"),
        (PeerdError(Code.DENIED, reason="laptop does not allow this"), "journalctl -t peerd"),
        (PeerdError(Code.DENIED, reason="laptop does not allow this"), "d checkPolicy --peer"),
        (PeerdError(Code.DUPLICATE, peer="laptop", exec_id="0" * 16), "d getJob --job 0000000000000000"),
        (PeerdError(Code.USAGE, reason="--env: so"), "d help COMMAND"),
        (PeerdError(Code.BAD_MESSAGE, reason="so"), "peerd-protocol(7)"),
    ],
)
def test_hints_say_what_to_do_next(error: PeerdError, hint: str) -> None:
    assert any(hint in line for line in error.hints)


def test_only_what_was_asked_for_needs_no_advice() -> None:
    assert {code for code in Code if not KINDS[code].hints} == {Code.CANCELLED}


@pytest.mark.parametrize(
    ("code", "outcome", "status"),
    [
        (Code.TIMEOUT, Outcome.TIMEOUT, 124),
        (Code.CANCELLED, Outcome.CANCELLED, 130),
        (Code.USAGE, Outcome.FAILED, 2),
        (Code.PEER_NOT_FOUND, Outcome.UNREACHABLE, 255),
        (Code.NOT_CONNECTED, Outcome.UNREACHABLE, 255),
        (Code.CONNECT_FAILED, Outcome.UNREACHABLE, 255),
        (Code.LOST, Outcome.LOST, 255),
        (Code.OUT_OF_MEMORY, Outcome.OOM, 255),
        (Code.NO_SUCH_DIRECTORY, Outcome.FAILED, 255),
        (Code.DENIED, Outcome.DENIED, 255),
        (Code.UNKNOWN_PEER, Outcome.DENIED, 255),
    ],
)
def test_an_error_has_the_outcome_and_exit_status_of_its_kind(code: Code, outcome: Outcome, status: int) -> None:
    kind = PeerdError(code).kind
    assert (kind.outcome, kind.exit_status) == (outcome, status)


@given(st.text(max_size=200))
def test_details_cannot_drive_a_terminal_or_forge_a_line(text: str) -> None:
    error = PeerdError(Code.PEER_NOT_FOUND, peer=text)
    assert error.sentence.isprintable()
    assert all(hint.isprintable() for hint in error.hints)


def test_terminal_escapes_in_details_are_escaped() -> None:
    error = PeerdError(Code.PEER_NOT_FOUND, peer="\x1b]0;owned\x07\nPeer registered\x9b2J")
    assert error.sentence == r"Peer not found: \x1b]0;owned\x07\nPeer registered\x9b2J"


def test_details_are_not_templates() -> None:
    assert PeerdError(Code.PEER_NOT_FOUND, peer="{address} {0} %s").sentence == "Peer not found: {address} {0} %s"


def test_a_detail_without_end_is_cut() -> None:
    assert len(PeerdError(Code.BAD_MESSAGE, reason="x" * 1_000_000).sentence) < 5000


def test_an_unknown_code_keeps_its_sentence_and_is_a_failure() -> None:
    error = PeerdError.from_wire({"code": "on-fire", "message": "It burns\x1b[0m", "details": {"peer": "a"}})
    assert error.code is Code.INTERNAL
    assert r"It burns\x1b[0m" in error.sentence
    assert error.kind.exit_status == EXIT_FAILURE


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"code": None},
        {"code": []},
        {"code": {}},
        {"code": 1, "message": 2, "details": 3},
        {"code": "timeout", "details": []},
        {"code": "timeout", "details": {"peer": [], "seconds": {}, "self": 1, "code": 2, "": 3}},
        {"code": "internal", "message": "x" * 100_000},
    ],
    ids=brief,
)
def test_any_fields_make_an_error_that_can_be_shown(fields: dict[str, object]) -> None:
    error = PeerdError.from_wire(fields)
    assert error.sentence.isprintable()
    assert error.sentence
    assert error.kind.exit_status


def test_what_a_program_wrote_follows_the_sentence_and_survives_the_wire() -> None:
    error = PeerdError(Code.UNIT_FAILED, [f"line {number}\x1b[0m\n" for number in range(30)], unit="x.service")
    assert error.hints[0] == r"| line 20\x1b[0m\n"
    assert len(error.hints) == 10 + len(error.kind.hints)
    assert PeerdError.from_wire(error.to_wire()).text == error.text
    assert len(PeerdError(Code.UNIT_FAILED, ["x" * 10_000]).hints[0]) < 600


@pytest.mark.parametrize("lines", ["x", {}, [1, None, []], [], None], ids=brief)
def test_lines_that_are_none_are_left_out(lines: object) -> None:
    assert PeerdError.from_wire({"code": "unit-failed", "lines": lines}).lines == []


@pytest.mark.parametrize("fields", [{"code": "x"}, {"code": "x", "message": None}, {"code": "x", "message": ""}])
def test_an_unknown_error_without_a_message_still_says_something(fields: dict[str, object]) -> None:
    assert PeerdError.from_wire(fields).sentence == "Internal error: unknown error"


@pytest.mark.parametrize("place", ["code", "message", "details"])
def test_an_error_nested_too_deeply_to_be_shown_is_an_error(place: str) -> None:
    nested: object = []
    for _ in range(100_000):
        nested = [nested]
    fields = {"code": "x", "message": "y"} | {place: {"peer": nested} if place == "details" else nested}
    if place == "details":
        fields["code"] = "timeout"
    assert PeerdError.from_wire(fields).sentence
