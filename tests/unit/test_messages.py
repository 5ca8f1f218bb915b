"""The messages: they come back from their wire form as they were, and nothing out of bounds comes back at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd import validate
from peerd.errors import Code, Outcome, PeerdError
from peerd.messages import MAX_TEXT, Action, ExecRequest, ExecResult, Hello, Registration, check_hello, hello
from peerd.protocol import MAX_HEADER, PROTOCOL_VERSION, encode
from unit.support import EXEC_ID, brief, frames, registration

PLAIN = {"execId": EXEC_ID, "directory": "/", "shellCmd": "true"}
RESULT = {"outcome": "exited", "exitStatus": 0}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50).filter(str.strip)


def over_the_wire(fields: Mapping[str, object]) -> Mapping[str, object]:
    return frames(encode("x", fields))[0].fields


def refusal(error: pytest.ExceptionInfo[PeerdError]) -> str:
    assert error.value.code is Code.BAD_MESSAGE
    return error.value.sentence


@given(
    st.from_regex(r"[0-9a-f]{16,32}", fullmatch=True),
    TEXT.map(lambda text: f"/{text}"),
    TEXT,
    st.none() | st.floats(min_value=0.001, max_value=365 * 86400),
)
def test_a_request_comes_back_as_it_was(exec_id: str, directory: str, command: str, timeout: float | None) -> None:
    request = ExecRequest(exec_id, directory, command, timeout=timeout)
    assert ExecRequest.from_wire(over_the_wire(request.to_wire())) == request


@pytest.mark.parametrize("action", list(Action))
def test_a_request_for_an_action_names_no_command(action: Action) -> None:
    request = ExecRequest(EXEC_ID, action=action, timeout=60.0)
    assert request.to_wire().keys() == {"execId", "timeout", "action"}
    assert ExecRequest.from_wire(over_the_wire(request.to_wire())) == request


def test_a_command_that_is_no_unicode_survives() -> None:
    command = b"printf '\xff\xfe\x80'".decode("utf-8", "surrogateescape")
    request = ExecRequest(EXEC_ID, "/\udcc3", command)
    assert ExecRequest.from_wire(over_the_wire(request.to_wire())) == request


@pytest.mark.parametrize("character", ["a", '"', "\n", "\x01", "\x7f", "é", "漢", "\U0001f600", "\udcff"])
def test_every_command_that_can_be_run_can_be_sent(character: str) -> None:
    size = len(character.encode("utf-8", "surrogateescape"))
    command = character * (validate.MAX_COMMAND // size)
    request = ExecRequest(EXEC_ID, "/" + character * ((validate.MAX_PATH - 1) // size), f"{command[:-1]}a")
    assert ExecRequest.from_wire(over_the_wire(request.to_wire())) == request


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execId", None),
        ("execId", "x"),
        ("execId", 1),
        ("execId", ["0" * 16]),
        ("directory", None),
        ("directory", "opt"),
        ("directory", "/a\0"),
        ("directory", 1),
        ("directory", "/" * 5000),
        ("shellCmd", None),
        ("shellCmd", ""),
        ("shellCmd", " \n"),
        ("shellCmd", "a\0b"),
        ("shellCmd", ["sh"]),
        ("shellCmd", "a" * (validate.MAX_COMMAND + 1)),
        ("shellCmd", "\ud800"),
        ("argv", ["true"]),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", True),
        ("timeout", "soon"),
        ("timeout", float("inf")),
        ("timeout", 10**400),
        ("timeout", []),
        ("action", "rm"),
        ("action", ""),
        ("action", True),
        ("action", []),
        ("action", {"a": 1}),
    ],
    ids=brief,
)
def test_a_request_out_of_bounds_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(PeerdError) as caught:
        ExecRequest.from_wire({**PLAIN, name: value})
    assert name in refusal(caught)


def test_unknown_fields_are_left_alone() -> None:
    assert ExecRequest.from_wire({**PLAIN, "new": {"a": 1}}) == ExecRequest(EXEC_ID, "/", "true")
    assert ExecResult.from_wire({**RESULT, "new": 1}) == ExecResult.from_wire(RESULT)


RESULTS = [
    ExecResult(Outcome.EXITED, 0, None, 123, 2),
    ExecResult(Outcome.EXITED, 255),
    ExecResult(Outcome.SIGNALED, 137, 9, 2**63 - 1),
    ExecResult(Outcome.SIGNALED, 128 + 64, 64, stopped=True),
]


@pytest.mark.parametrize("result", RESULTS, ids=str)
def test_a_result_comes_back_as_it_was(result: ExecResult) -> None:
    assert ExecResult.from_wire(over_the_wire(result.to_wire())) == result


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.USAGE])
def test_a_failure_comes_back_as_it_was(code: Code) -> None:
    sent = ExecResult.failure(PeerdError(code, peer="laptop", seconds="30", reason="why", address="10.0.0.4"), 5)
    got = ExecResult.from_wire(over_the_wire(sent.to_wire()))
    assert (got.outcome, got.exit_status, got.duration_usec) == (sent.outcome, sent.exit_status, sent.duration_usec)
    assert sent.error is not None
    assert got.error is not None
    assert got.error.code is code
    assert got.error.text == sent.error.text


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.EXITED])
@pytest.mark.parametrize("claimed", [0, 1, 255])
@pytest.mark.parametrize("signal", [None, 1, 127])
def test_only_a_command_that_exited_can_have_succeeded(outcome: Outcome, claimed: int, signal: int | None) -> None:
    result = ExecResult.from_wire({"outcome": outcome.value, "exitStatus": claimed, "signal": signal})
    assert result.exit_status != 0


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.TIMEOUT, 124),
        (Outcome.CANCELLED, 130),
        (Outcome.OOM, 255),
        (Outcome.FAILED, 255),
        (Outcome.DENIED, 255),
        (Outcome.UNREACHABLE, 255),
        (Outcome.LOST, 255),
    ],
)
def test_the_exit_status_follows_from_the_outcome(outcome: Outcome, status: int) -> None:
    assert ExecResult.from_wire({"outcome": outcome.value, "exitStatus": 0}).exit_status == status


@pytest.mark.parametrize("status", [0, 1, 2, 124, 255])
def test_the_exit_status_of_a_command_that_exited_is_its_own(status: int) -> None:
    assert ExecResult.from_wire({"outcome": "exited", "exitStatus": status}).exit_status == status


@pytest.mark.parametrize("signal", [1, 9, 15, 64])
def test_the_exit_status_of_a_command_that_a_signal_ended_is_128_and_the_signal(signal: int) -> None:
    fields = {"outcome": "signaled", "exitStatus": 0, "signal": signal}
    assert ExecResult.from_wire(fields).exit_status == 128 + signal


def test_what_is_not_known_of_a_command_that_was_lost_is_null() -> None:
    sent = ExecResult.failure(PeerdError(Code.LOST), 5)
    fields = over_the_wire(sent.to_wire())
    assert [fields[name] for name in ("durationUsec", "leftBehind", "dropped")] == [None, None, None]
    got = ExecResult.from_wire(fields)
    assert (got.duration_usec, got.left_behind, got.dropped) == (None, None, None)
    assert ExecResult.failure(PeerdError(Code.BUSY), 5).duration_usec == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outcome", None),
        ("outcome", "fine"),
        ("outcome", 1),
        ("outcome", []),
        ("exitStatus", None),
        ("exitStatus", -1),
        ("exitStatus", 256),
        ("exitStatus", "0"),
        ("exitStatus", False),
        ("exitStatus", 0.0),
        ("signal", 0),
        ("signal", 128),
        ("signal", -9),
        ("signal", "9"),
        ("signal", True),
        ("durationUsec", -1),
        ("durationUsec", 2**63),
        ("durationUsec", 1.5),
        ("leftBehind", -1),
        ("leftBehind", "1"),
    ],
)
def test_a_result_out_of_bounds_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(PeerdError) as caught:
        ExecResult.from_wire({**RESULT, name: value})
    assert name in refusal(caught)


@pytest.mark.parametrize("error", ["x", [], 1, True])
def test_an_error_that_is_none_is_not_shown(error: object) -> None:
    assert ExecResult.from_wire({**RESULT, "error": error}).error is None


def test_a_registration_comes_back_as_it_was() -> None:
    assert Registration.from_wire(over_the_wire(registration().to_wire())) == registration()


def test_a_registration_needs_no_more_than_an_id() -> None:
    assert Registration.from_wire({"peer_id": "a"}) == Registration("a", "", "", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peer_id", None),
        ("peer_id", ""),
        ("peer_id", "a b"),
        ("peer_id", 1),
        ("hostname", 1),
        ("hostname", "a" * (MAX_TEXT + 1)),
        ("hostname", "a\0"),
        ("hostname", "\udcff"),
        ("mac_address", "x"),
        ("mac_address", 1),
        ("daemon_version", []),
        ("daemon_version", "é" * MAX_TEXT),
        ("daemon_version", "1\udc80"),
    ],
    ids=brief,
)
def test_a_registration_out_of_bounds_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(PeerdError) as caught:
        Registration.from_wire({**registration().to_wire(), name: value})
    assert name in refusal(caught)


def test_a_registration_cannot_claim_an_address() -> None:
    claimed = {**registration().to_wire(), "ip_address": "10.0.0.1", "public_key": "k"}
    assert Registration.from_wire(claimed) == registration()


def test_a_hello_of_our_version_is_taken() -> None:
    assert check_hello(over_the_wire(hello("0.1.0"))) == Hello(PROTOCOL_VERSION, "")


def test_a_hello_says_which_boot_it_comes_from() -> None:
    assert check_hello(over_the_wire(hello("0.1.0", "3b7a"))).boot == "3b7a"
    assert check_hello({"protocol": PROTOCOL_VERSION}).boot == ""


@pytest.mark.parametrize(
    ("theirs", "spoken"),
    [
        ({"protocol": 1}, 1),
        ({"protocol": 1, "newest": PROTOCOL_VERSION}, PROTOCOL_VERSION),
        ({"protocol": 1, "newest": PROTOCOL_VERSION + 7}, PROTOCOL_VERSION),
        ({"protocol": PROTOCOL_VERSION, "newest": PROTOCOL_VERSION + 1}, PROTOCOL_VERSION),
    ],
)
def test_the_newest_version_that_both_speak_is_spoken(theirs: dict[str, object], spoken: int) -> None:
    assert check_hello(theirs).protocol == spoken


@pytest.mark.parametrize("theirs", [0, PROTOCOL_VERSION + 1, 1_000_000])
def test_a_hello_of_another_version_is_refused_with_both_versions(theirs: int) -> None:
    with pytest.raises(PeerdError) as caught:
        check_hello({"protocol": theirs, "version": "9"})
    assert caught.value.sentence == f"No common protocol version: theirs is {theirs}, ours is {PROTOCOL_VERSION}"


@pytest.mark.parametrize("fields", [{}, {"protocol": "1"}, {"protocol": True}, {"protocol": -1}, {"protocol": 10**9}])
def test_a_hello_without_a_version_is_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(PeerdError) as caught:
        check_hello(fields)
    assert "protocol" in refusal(caught)


@pytest.mark.parametrize("boot", ["1" * (MAX_TEXT + 1), 1, ["x"], "a\0b"], ids=brief)
def test_a_hello_with_a_boot_id_that_cannot_be_one_is_malformed(boot: object) -> None:
    with pytest.raises(PeerdError) as caught:
        check_hello({"protocol": PROTOCOL_VERSION, "boot": boot})
    assert "boot" in refusal(caught)


def test_no_message_in_bounds_is_larger_than_a_header() -> None:
    assert len(encode("registerPeer", registration(hostname="\x01" * MAX_TEXT).to_wire())) < MAX_HEADER
