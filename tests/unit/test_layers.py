"""Imports point one way, and each library is at one edge."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import peerd

SOURCES = {path.stem: path for path in Path(peerd.__file__).parent.glob("*.py") if path.stem != "__init__"}
DOCSTRINGS = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in SOURCES.items()}
PURE = sorted(name for name, docstring in DOCSTRINGS.items() if "pure code" in docstring.lower())
IO = {"asyncio", "dbus_next", "peewee", "playhouse", "sdnotify", "selectors", "socket", "subprocess", "systemd"}
EDGES = {
    "dbus_next": {"systemd1", "scopes", "sleep", "bus", "buslink", "busobjects", "busreader", "busvalues", "polkit"},
    "peewee": {"database", "registry", "history"},
    "systemd": {"journal", "daemon", "fdstore"},
    "sdnotify": {"daemon"},
    "click": {"cli"},
}
FRONT = {"__main__", "bus", "daemon", "fronts", "tcpfront", "unixfront"}


def imports(name: str, everywhere: bool = True) -> set[str]:
    """What a module imports: "asyncio", or "peerd.x" for another module of peerd."""
    tree = ast.parse(SOURCES[name].read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "peerd":
                found |= {f"peerd.{alias.name}" if alias.name in SOURCES else "peerd" for alias in node.names}
            else:
                found.add(str(node.module))
    return found


def outside(name: str) -> set[str]:
    return {module.split(".", maxsplit=1)[0] for module in imports(name)}


def inside(name: str) -> set[str]:
    return {module.removeprefix("peerd.") for module in imports(name) if module.startswith("peerd.")}


def test_the_modules_are_found() -> None:
    assert {"config", "errors", "messages", "policy", "protocol", "settling", "validate"} <= set(PURE)


@pytest.mark.parametrize("name", PURE)
def test_pure_code_moves_no_bytes(name: str) -> None:
    assert not outside(name) & IO
    assert inside(name) <= set(PURE)


@pytest.mark.parametrize(("library", "modules"), EDGES.items(), ids=EDGES)
def test_a_library_has_one_edge(library: str, modules: set[str]) -> None:
    users = {name for name in SOURCES if library in outside(name)}
    assert users
    assert users <= modules


def test_the_client_loads_nothing_of_peerd_before_it_must() -> None:
    at_once = imports("client", everywhere=False)
    assert {module for module in at_once if module.startswith("peerd")} == {"peerd.quickjson"}
    assert not {module.split(".", maxsplit=1)[0] for module in at_once} & IO
    assert inside("client") <= {"cli", "clientend", "clientpipes", "clientstdin", "jsonrecord", "quickjson"}


def test_to_look_at_the_configuration_loads_nothing_but_that() -> None:
    assert imports("__main__", everywhere=False) == {"__future__", "sys", "peerd.configfiles"}
    assert inside("configfiles") == {"config"}


def test_the_spawner_knows_nothing_of_peerd() -> None:
    assert not inside("spawner")
    assert "peerd" not in outside("spawner")


def test_imports_make_no_cycle() -> None:
    order = list(TopologicalSorter({name: inside(name) for name in SOURCES}).static_order())
    assert set(order) == SOURCES.keys()


def test_the_service_knows_no_front() -> None:
    for name in SOURCES.keys() - FRONT:
        assert not inside(name) & FRONT


def test_only_what_puts_the_parts_together_knows_more_than_what_fronts_have_in_common() -> None:
    for name in (FRONT & SOURCES.keys()) - {"__main__", "daemon"}:
        assert inside(name) & FRONT <= {"fronts"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_module_does_one_thing(name: str) -> None:
    assert len(SOURCES[name].read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_module_says_what_it_is(name: str) -> None:
    assert DOCSTRINGS[name]
