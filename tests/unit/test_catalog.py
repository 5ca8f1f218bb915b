"""The message catalog: an entry for every event, which names only what every record of that event has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from peerd.errors import Outcome
from peerd.journal import Event

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "units/catalog/peerd.catalog").read_text()
ENTRIES = dict(re.findall(r"^-- ([0-9a-f]{32})\n(.*?)(?=^-- |\Z)", TEXT, re.MULTILINE | re.DOTALL))
DESCRIBED = {"exec_id", "peer", "caller"}
"""Fields of peerd.run.describe that are never empty."""


def recorded() -> dict[str, set[str]]:
    """For each event the fields that all of its records have."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "peerd").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "log":
                continue
            names = {word.arg for word in node.keywords if word.arg}
            names |= DESCRIBED if any(word.arg is None for word in node.keywords) else set()
            # Which event it is may be decided there; a name for it stands for those of the leader's connection.
            for event in re.findall(r"Event\.(\w+)", ast.unparse(node.args[0])) or ["LEADER_CONNECTED", "LEADER_LOST"]:
                found[event] = found.get(event, names) & names
    return found


def test_entries_stand_in_the_order_of_the_table() -> None:
    assert list(ENTRIES) == [event.value.message_id for event in Event]


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_an_entry_says_what_happened_and_where_to_read_on(event: Event) -> None:
    head, body = ENTRIES[event.value.message_id].split("\n\n", 1)
    subject, defined_by, documentation = head.splitlines()
    assert re.fullmatch(r"Subject: \S.{8,70}", subject)
    assert defined_by == "Defined-By: peerd"
    for page in documentation.removeprefix("Documentation: ").split():
        assert (ROOT / "man" / re.sub(r"man:(\S+)\((\d)\)", r"\1.\2", page)).exists()
    assert body.endswith(".\n\n") or re.search(r"\b(journalctl|systemctl|ping|d \w+|wg)\b", body)
    assert max(map(len, body.splitlines())) <= 80


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_an_entry_names_only_fields_that_are_always_there(event: Event) -> None:
    there = {f"PEERD_{name.upper()}" for name in recorded()[event.name]}
    assert set(re.findall(r"@(\w+)@", ENTRIES[event.value.message_id])) <= there


def _entry(event: Event) -> str:
    return " ".join(ENTRIES[event.value.message_id].split())


_REFUSE = ("_refusal", "_stranger", "_unwelcome")


def test_every_reason_for_refusing_a_connection_has_its_advice() -> None:
    functions = [
        node
        for node in ast.walk(ast.parse((ROOT / "peerd/tcpfront.py").read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in _REFUSE
    ]
    returned = [node.value for function in functions for node in ast.walk(function) if isinstance(node, ast.Return)]
    reasons = {
        node.value for value in returned if value for node in ast.walk(value) if isinstance(node, ast.Constant)
    } - {""}
    assert len(reasons) == 6
    assert set(re.findall('"(.+?)"', _entry(Event.CONNECTION_REFUSED))) == reasons


def test_a_warning_about_the_configuration_may_be_about_who_can_write_it() -> None:
    assert "others than its owner may write" in _entry(Event.CONFIG_WARNING)


def test_the_policy_is_asked_with_all_that_it_must_know() -> None:
    flags = set(re.findall(r"--\w+", _entry(Event.COMMAND_DENIED)))
    assert {"--peer", "--directory", "--shellCmd"} <= flags


def test_a_deleted_entry_may_be_that_of_a_worker() -> None:
    assert "d dbSanityCheck" in _entry(Event.PEER_DELETED)


def test_outcomes_are_those_that_there_are() -> None:
    assert set(re.findall(r'"([a-z]+)"', TEXT)) <= set(Outcome)
