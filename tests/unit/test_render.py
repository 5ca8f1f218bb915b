"""Data as text: JSON that scripts can read, tables that cannot drive a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.commands import BY_NAME
from peerd.render import in_portions, render

LIST = BY_NAME["listPeers"]
STATUS = BY_NAME["getPeerStatus"]
COMMANDS = BY_NAME["listCommands"]
PEER: dict[str, Any] = {
    "peer_id": "laptop",
    "ip_address": "10.0.0.4",
    "mac_address": "",
    "hostname": "laptop-host",
    "last_seen": "2026-01-02T03:04:05Z",
    "is_online": True,
    "daemon_version": "0.1.0",
    "public_key": "secret-of-no-one",
    "state": "registered",
}


def test_json_is_the_data_and_ends_with_a_newline() -> None:
    text = render(LIST, [PEER], True)
    assert json.loads(text) == [PEER]
    assert list(json.loads(text)[0]) == list(PEER)
    assert text.endswith("]\n")


@pytest.mark.parametrize("data", [[], {"role": None, "x": True}, [{"a": "\x1b[31m\n"}]])
def test_json_of_anything_is_plain_ascii(data: Any) -> None:
    text = render(STATUS, data, True)
    assert json.loads(text) == data
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_a_table_has_the_columns_of_the_command_under_their_names() -> None:
    rows = [PEER, {**PEER, "peer_id": "a-much-longer-id", "is_online": False, "daemon_version": ""}]
    assert render(LIST, rows, False).splitlines() == [
        "PEER ID           IP ADDRESS  HOSTNAME     STATE       IS ONLINE  LAST SEEN             DAEMON VERSION",
        "laptop            10.0.0.4    laptop-host  registered  yes        2026-01-02T03:04:05Z  0.1.0",
        "a-much-longer-id  10.0.0.4    laptop-host  registered  no         2026-01-02T03:04:05Z  -",
    ]


def test_a_table_without_columns_of_its_own_shows_all_keys() -> None:
    assert render(COMMANDS, [{"command": "ping", "summary": "Ping."}], False) == "COMMAND  SUMMARY\nping     Ping.\n"


def test_a_table_without_rows_says_so() -> None:
    assert render(LIST, [], False) == "(none)\n"


def test_one_object_is_a_line_for_each_of_its_values() -> None:
    data: dict[str, object] = {
        "role": "worker",
        "leader_address": None,
        "is_leader": False,
        "connected_workers": 3,
        "actions": [],
    }
    assert render(STATUS, data, False) == (
        "             role: worker\n"
        "   leader_address: -\n"
        "        is_leader: no\n"
        "connected_workers: 3\n"
        "          actions: -\n"
    )


def test_a_value_within_a_value_is_json() -> None:
    assert render(STATUS, {"actions": [{"peer_ids": ["a"]}]}, False) == 'actions: [{"peer_ids": ["a"]}]\n'


def test_zero_is_not_nothing() -> None:
    assert render(STATUS, {"connected_workers": 0}, False) == "connected_workers: 0\n"


@given(st.text())
def test_a_table_cannot_drive_a_terminal(text: str) -> None:
    table = render(LIST, [{**PEER, "hostname": text}], False)
    lines = table.split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_cell_has_a_bound() -> None:
    assert max(map(len, render(LIST, [{**PEER, "hostname": "x" * 10_000}], False).splitlines())) < 300


def test_colour_tells_good_from_bad_and_leaves_the_columns_alone() -> None:
    rows = [{**PEER, "is_online": True}, {**PEER, "is_online": False}]
    plain, painted = (render(LIST, rows, False, color).splitlines() for color in (False, True))
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in painted] == plain
    assert painted[0].startswith("\x1b[1m")
    assert re.search(r"\x1b\[32myes *\x1b\[0m", painted[1])
    assert re.search(r"\x1b\[31mno *\x1b\[0m", painted[2])
    assert "\x1b[32myes\x1b[0m" in render(STATUS, {"connected_to_leader": True}, False, True)
    assert render(LIST, rows, True, True) == render(LIST, rows, True)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 250])
def test_rows_that_come_some_at_a_time_are_printed_as_if_they_came_at_once(count: int, as_json: bool) -> None:
    rows = [{**PEER, "peer_id": "p" * (number % 7 + 1), "is_online": number % 2 == 0} for number in range(count)]
    for size in (1, 2, 100):
        printer = in_portions(LIST, as_json, True)
        begun = [printer.add(rows[start : start + size]) for start in range(0, count, size)]
        assert "".join([*begun, printer.add([]), *printer.rest()]) == render(LIST, rows, as_json, True)
