"""The validators: what they take comes out in its proper type, everything else is refused with a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd import settling, validate
from peerd.errors import PeerdError
from peerd.messages import ExecRequest
from unit.support import brief, settings

ODD_VALUES = [None, True, False, 0, -1, 1.5, math.nan, math.inf, b"x", [], ["x"], {}, object()]
ODD_IDS = [repr(value).split(" at ", maxsplit=1)[0] for value in ODD_VALUES]


@pytest.mark.parametrize("text", ["a", "0", "Laptop", "vps-1.example_org", "a" * 63, "0--", "A."])
def test_a_peer_id_is_letters_digits_dots_dashes_and_underscores(text: str) -> None:
    assert validate.peer_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "-a", ".a", "_a", "a b", "a\n", "a/b", "a" * 64, "é", "\u0661", "a\0", "..", "a\x1b", "*", "a:b"]
)
def test_anything_else_is_no_peer_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid peer id") as caught:
        validate.peer_id(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["root", "_apt", "Bob.Big", "a" * 32, "ann@example.org", "machine$", "0day"])
def test_a_user_name_is_what_a_user_database_may_have(text: str) -> None:
    assert validate.user(text) == text


@pytest.mark.parametrize("text", ["", "-x", "+x", ".", "a b", "a:b", "a/b", "a\n", "a\0", "a" * 257, "a$b", "*"])
def test_anything_else_is_no_user_name(text: str) -> None:
    with pytest.raises(ValueError, match="not a user name"):
        validate.user(text)


@pytest.mark.parametrize("text", ["0" * 16, "f" * 32, "0123456789abcdef"])
def test_an_exec_id_is_16_to_32_hexadecimal_digits(text: str) -> None:
    assert validate.exec_id(text) == text


@pytest.mark.parametrize("text", ["", "0" * 15, "0" * 33, "F" * 16, "0" * 15 + "g", "0" * 16 + "\n", "../" * 6])
def test_anything_else_is_no_exec_id(text: str) -> None:
    with pytest.raises(ValueError, match="exec id"):
        validate.exec_id(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "127.0.0.1", "192.168.255.255", "1.2.3.4"])
def test_an_address_is_that_of_an_ipv4_machine(text: str) -> None:
    assert validate.address(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.2.3", "10.0.0", "10.0.0.256", "10.0.0.01"),
        *("10.0.0.1/24", "::1", "vps", " 10.0.0.1", "10.0.0.1\n", "010.0.0.1", "1", "\u0661.0.0.1"),
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        validate.address(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("", ""), ("02:00:00:00:00:01", "02:00:00:00:00:01"), ("AA:bb:CC:dd:EE:ff", "aa:bb:cc:dd:ee:ff")],
)
def test_a_mac_address_is_lower_case_or_empty(text: str, canonical: str) -> None:
    assert validate.mac_address(text) == canonical


@pytest.mark.parametrize("text", ["02:00:00:00:00", "02-00-00-00-00-01", "02:00:00:00:00:01:02", "x", "?", " "])
def test_anything_else_is_no_mac_address(text: str) -> None:
    with pytest.raises(ValueError, match="MAC"):
        validate.mac_address(text)


@pytest.mark.parametrize("text", ["a", "cad", "CAD-2.x_y", "0", "a" * 63])
def test_an_app_has_a_name_that_may_be_part_of_a_units(text: str) -> None:
    assert validate.app(text) == text
    assert validate.unit(f"{text}-prod.service")


@pytest.mark.parametrize(
    "text", ["", "-a", ".a", "a/b", "../a", "a b", "a@b", "a:b", "a\n", "{app}", "é", "a" * 64, "*", "a\\x2d"]
)
def test_anything_else_is_no_name_of_an_app(text: str) -> None:
    with pytest.raises(ValueError, match="name of an app"):
        validate.app(text)


UNITS = [
    "cad.service",
    "a-b_c.d:e.socket",
    "cad@prod.service",
    "a.target",
    "a.timer",
    "a.path",
    r"my\x2dapp@a\x2db.service",
    "a" * 247 + ".service",
]


@pytest.mark.parametrize("text", UNITS)
def test_a_unit_is_one_that_can_be_started(text: str) -> None:
    assert validate.unit(text) == text
    assert validate.unit_pattern(text) == text


NO_UNITS = ["", "cad", ".service", "cad.scope", "cad.mount", "a@.service", "@a.service", "a@b@c.service", "/a.service"]
NO_UNITS += [
    "../a.service",
    "a/b.service",
    "-a.service",
    "a b.service",
    "a.service\n",
    "a" * 248 + ".service",
    "\u00e9.service",
]


@pytest.mark.parametrize("text", [*NO_UNITS, "{app}.service"], ids=brief)
def test_anything_else_is_no_unit(text: str) -> None:
    with pytest.raises(ValueError, match="not the name of a unit"):
        validate.unit(text)


@pytest.mark.parametrize("text", ["{app}-{mode}.service", "{app}@{mode}.timer", "{mode}.service", "x{app}{app}.target"])
def test_in_a_pattern_app_and_mode_stand_for_the_two(text: str) -> None:
    assert validate.unit_pattern(text) == text


@pytest.mark.parametrize("text", [*NO_UNITS, "{app}", "{other}.service", "{0}.service", "{{app}}.service"], ids=brief)
def test_anything_else_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit"):
        validate.unit_pattern(text)


@pytest.mark.parametrize("text", ["/", "/opt/cad", "/srv/{app}/{mode}", "/a b/ü"])
def test_the_directory_of_an_app_is_in_its_shortest_spelling(text: str) -> None:
    assert validate.app_directory(text) == text


@pytest.mark.parametrize("text", ["", "opt", "/opt/", "/opt/../etc", "/./a", "//opt", "/a//b", "/a\n", "/" + "a" * 255])
def test_other_spellings_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="directory"):
        validate.app_directory(text)


@pytest.mark.parametrize("text", ["/", "/opt/automateLinux", "/a b/ü", "/" + "a" * (validate.MAX_PATH - 1), "/\udcff"])
def test_a_directory_is_an_absolute_path(text: str) -> None:
    assert validate.directory(text) == text


@pytest.mark.parametrize("text", ["", ".", "opt", "~/x", "/a\0b", "/" + "a" * validate.MAX_PATH, "/\ud800"])
def test_anything_else_is_no_directory(text: str) -> None:
    with pytest.raises(ValueError, match="directory"):
        validate.directory(text)


@pytest.mark.parametrize("text", ["true", " a\n", "a" * validate.MAX_COMMAND, "echo \udcff", "echo é", "a\x01\x1b[31m"])
def test_a_shell_command_is_any_text(text: str) -> None:
    assert validate.shell_command(text) == text


@pytest.mark.parametrize("text", ["", " ", "\n\t", "a\0", "a" * (validate.MAX_COMMAND + 1), "\ud800"])
def test_a_shell_command_is_not_empty_and_fits_into_an_argument(text: str) -> None:
    with pytest.raises(ValueError, match="shellCmd"):
        validate.shell_command(text)


def test_the_bound_of_a_string_counts_bytes() -> None:
    assert validate.string("é\udcff", "x", 3) == "é\udcff"
    with pytest.raises(ValueError, match="x is too long: 3 bytes, at most 2"):
        validate.string("é\udcff", "x", 2)


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (0.5, 0.5), ("30", 30.0), ("0.25", 0.25), ("1e2", 100.0), (365 * 86400, 31536000.0), (1e-9, 0.001)],
)
def test_seconds_are_a_positive_number(value: object, number: float) -> None:
    assert validate.seconds(value) == number


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        0.0,
        "0",
        "-5",
        "",
        "x",
        "nan",
        "inf",
        "-inf",
        "1e999",
        10**400,
        "1 m",
        "30s",
        "5_0",
        "\u0665",
        365 * 86400 + 1,
    ],
    ids=brief,
)
def test_nothing_else_is_seconds(value: object) -> None:
    with pytest.raises(ValueError, match="not a number of seconds"):
        validate.seconds(value)


@pytest.mark.parametrize(
    ("number", "text"),
    [(30.0, "30"), (0.5, "0.5"), (0.001, "0.001"), (1_500_000.0, "1500000"), (86_400.25, "86400.25"), (100.0, "100")],
)
def test_seconds_are_shown_as_people_write_them(number: float, text: str) -> None:
    assert validate.duration(number) == text


def test_a_timeout_that_is_too_long_is_named_with_all_its_digits() -> None:
    with pytest.raises(PeerdError, match=r"1500000 s is more than max-timeout of vps, 86400 s"):
        settling.settle(ExecRequest("0" * 16, "/", "true", timeout=1_500_000.0), settings(), "vps")


def test_how_many_seconds_there_may_be_is_said() -> None:
    with pytest.raises(ValueError, match="at most a year"):
        validate.seconds("99999999")


@given(st.floats(min_value=0, exclude_min=True, max_value=365 * 86400))
def test_every_second_of_a_year_is_taken_and_none_is_zero(value: float) -> None:
    assert validate.seconds(value) == max(value, 0.001)


@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_one_of_json(value: bool) -> None:
    assert validate.boolean(value) is value


@pytest.mark.parametrize("value", [0, 1, "true", "", None, [], 1.0])
def test_nothing_else_is_a_boolean(value: object) -> None:
    with pytest.raises(ValueError, match="true or false"):
        validate.boolean(value)


@pytest.mark.parametrize("value", [3, 4, 5])
def test_an_integer_lies_within_its_bounds(value: int) -> None:
    assert validate.integer(value, 3, 5) == value


@pytest.mark.parametrize("value", [2, 6, -4, 10**400, 4.0, "4", True, None, [4], math.nan])
def test_nothing_else_is_an_integer(value: object) -> None:
    with pytest.raises(ValueError, match="whole number from 0 to 1" if value is True else "whole number from 3 to 5"):
        validate.integer(value, *((0, 1) if value is True else (3, 5)))


@pytest.mark.parametrize(
    "check",
    [
        *(validate.peer_id, validate.exec_id, validate.address, validate.mac_address, validate.directory),
        *(validate.app, validate.unit, validate.unit_pattern, validate.app_directory),
        *(validate.shell_command, lambda value: validate.string(value, "text", 10)),
    ],
    ids=[
        *("peer_id", "exec_id", "address", "mac_address", "directory", "app", "unit", "unit_pattern"),
        *("app_directory", "shell_command", "string"),
    ],
)
@pytest.mark.parametrize("value", ODD_VALUES, ids=ODD_IDS)
def test_a_value_of_another_kind_is_refused(check: Callable[[object], str], value: object) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        check(value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value", [None, True, False, b"1", [], [1], {}, object()], ids=lambda value: type(value).__name__ + str(value)[:5]
)
def test_seconds_of_another_kind_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a number of seconds"):
        validate.seconds(value)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "check", [validate.peer_id, validate.address, validate.seconds], ids=lambda check: str(check.__name__)
)
def test_a_value_nested_too_deeply_to_be_shown_is_refused_like_any_other(check: Callable[[object], object]) -> None:
    value = nested(100_000)
    with pytest.raises(ValueError, match="not"):
        check(value)


@given(st.text())
def test_printable_text_has_no_character_that_drives_a_terminal(text: str) -> None:
    shown = validate.printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp", r"\u202egnp"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("é 漢", "é 漢"),
        ("\0", r"\x00"),
    ],
)
def test_printable_escapes_what_is_not_printable(text: str, shown: str) -> None:
    assert validate.printable(text) == shown


def test_printable_cuts_with_an_ellipsis() -> None:
    assert len(validate.printable("\0" * 90, 80)) == 80
    assert validate.printable("abcdef", 6) == "abcdef"
    assert validate.printable("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize("text", ["999999999d", "1900-01-01", "1969-12-31T00:00:00Z", "0002-01-01"])
def test_a_time_before_there_was_any_is_the_first(text: str) -> None:
    assert validate.since(text) == 1.0


def test_no_more_variables_than_a_request_may_have() -> None:
    many = [(f"A{number}", "x") for number in range(validate.MAX_VARIABLES)]
    assert len(validate.variables([*many, ("A0", "last")])) == validate.MAX_VARIABLES
    assert validate.variables([("A", "1"), ("A", "2")]) == {"A": "2"}
    with pytest.raises(ValueError, match="at most 256 variables"):
        validate.variables([*many, ("B", "")])
