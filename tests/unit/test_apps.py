"""The commands about apps: what they do with units, what they say, and what is recorded; here and on a peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from peerd import network, unitlog
from peerd.answer import Answer
from peerd.app import MAX_APPS, App
from peerd.apphost import AppHost
from peerd.apps import Apps
from peerd.commands import snake_case
from peerd.errors import Code, PeerdError
from peerd.journal import Event
from peerd.node import Node
from peerd.peers import Peer
from peerd.registry import Identity, Registry
from peerd.session import Caller, Delivery, Session
from peerd.stdin import Stdin
from peerd.units import Units
from unit.fake_systemd import FakeSystemd, FakeUnit
from unit.support import FakePeers, Heard, Journal, settings

CAD = [App("cad", "dev", "cad-dev.service"), App("cad", "prod", "cad-prod.service", "/opt/cad")]
FAILED = {"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 3}


@pytest.fixture(autouse=True)
def _edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units say something, and loopback's addresses are other machines'."""

    async def tail(unit: str, since: float) -> list[str]:
        assert since > 0
        return [f"{unit}: no such file\x1b[0m"]

    monkeypatch.setattr(unitlog, "tail", tail)
    monkeypatch.setattr(network, "is_own_address", lambda address: False)


class Here:
    """This machine."""

    def __init__(self, apps: Apps, registry: Registry, peers: FakePeers) -> None:
        self.apps = apps
        self.registry = registry
        self.peers = peers
        self.said: list[str] = []
        self.cancel = asyncio.Event()

    def call(self, name: str, **params: Any) -> Coroutine[Any, Any, Answer]:
        """Do a command."""
        nothing = Stdin(lambda start, until, taken: None)
        gone = asyncio.Event()
        session = Session(Caller("vps", "ann"), Heard(), self.cancel, gone, self.said.append, nothing, Delivery())
        work: Coroutine[Any, Any, Answer] = getattr(self.apps, f"do_{snake_case(name)}")(session, **params)
        return work


@asynccontextmanager
async def machine(systemd: FakeSystemd, *apps: App) -> AsyncIterator[Here]:
    """A machine with these apps, that knows the peer laptop."""
    registry = Registry(":memory:")
    registry.set_identity(Identity("leader", "vps", ""))
    registry.store([Peer("laptop", "127.0.0.4")])
    registry.store_apps(apps)
    async with FakePeers().serving() as peers:
        config = settings(vpn_interface="lo", port=peers.port)
        node = Node(registry, lambda: config, lambda: None)
        node.start()
        try:
            host = AppHost(registry, Units(systemd), lambda: node.peer_id)
            yield Here(Apps(node, host, lambda: config), registry, peers)
        finally:
            await node.close()
            registry.close()


def do(systemd: FakeSystemd, name: str, apps: Sequence[App] = CAD, **params: Any) -> tuple[Answer, list[str]]:
    """What a command answers here, and what is said beside it."""

    async def main() -> tuple[Answer, list[str]]:
        async with machine(systemd, *apps) as here:
            return await here.call(name, **params), here.said

    return asyncio.run(main())


def refusal(systemd: FakeSystemd, name: str, apps: Sequence[App] = CAD, **params: Any) -> PeerdError:
    with pytest.raises(PeerdError) as caught:
        do(systemd, name, apps, **params)
    return caught.value


def both(**changes: Any) -> FakeSystemd:
    return FakeSystemd(cad_dev=FakeUnit(), cad_prod=FakeUnit(**changes))


@pytest.mark.parametrize(
    ("name", "method", "done"),
    [
        ("startApp", "StartUnit", "Started"),
        ("stopApp", "StopUnit", "Stopped"),
        ("restartApp", "RestartUnit", "Restarted"),
        ("enableApp", "EnableUnitFiles", "Enabled"),
        ("disableApp", "DisableUnitFiles", "Disabled"),
    ],
)
def test_a_command_acts_on_the_unit_of_the_mode(records: Journal, name: str, method: str, done: str) -> None:
    systemd = both()
    answer, said = do(systemd, name, app="cad", mode="prod")
    assert (answer.text, answer.status, said) == (f"{done} cad-prod.service on vps", 0, [])
    assert [call for call in systemd.calls if call[0] != "Reload"] == [(method, "cad-prod.service")]
    (asked,), (changed,) = records.of(Event.APP_ASKED), records.of(Event.APP_CHANGED)
    assert [asked.text(field) for field in ("app", "mode", "peer", "caller", "command")] == (
        ["cad", "prod", "vps", "ann@vps", name]
    )
    assert changed.fields["OBJECT_SYSTEMD_UNIT"] == b"cad-prod.service"


def test_all_acts_on_every_mode_that_there_is() -> None:
    systemd = both()
    answer, said = do(systemd, "startApp", app="cad", mode="all")
    assert answer.text == "Started cad-dev.service on vps\nStarted cad-prod.service on vps"
    assert said == []
    systemd = FakeSystemd(cad_prod=FakeUnit())
    answer, said = do(systemd, "startApp", app="cad", mode="all")
    assert answer.text == "Started cad-prod.service on vps"
    assert said == ["cad-dev.service does not exist, skipped"]
    assert systemd.calls == [("StartUnit", "cad-prod.service")]


def test_what_is_not_there_is_said() -> None:
    missing = refusal(FakeSystemd(cad_prod=FakeUnit()), "startApp", app="cad", mode="dev")
    assert (missing.code, missing.sentence) == (Code.NO_SUCH_UNIT, "No such unit on vps: cad-dev.service")
    assert refusal(FakeSystemd(), "startApp", app="cad", mode="all").code is Code.NO_SUCH_UNIT
    assert refusal(both(), "startApp", app="nas", mode="prod").sentence == "No such app on vps: nas"
    assert (
        refusal(both(), "stopApp", CAD[:1], app="cad", mode="prod").sentence == "No such app on vps: cad in mode prod"
    )


def test_a_unit_that_fails_is_named_with_its_end_and_its_last_lines(records: Journal) -> None:
    answer, _ = do(both(job="failed", after=FAILED), "startApp", app="cad", mode="prod")
    assert answer.status == 255
    assert answer.error is not None
    assert answer.error.text.splitlines()[:2] == [
        "Failed to start cad-prod.service on vps: exit status 3, result exit-code, job failed",
        "  | cad-prod.service: no such file\\x1b[0m",
    ]
    assert "journalctl -u cad-prod.service" in answer.error.hints[-1]
    (record,) = records.of(Event.APP_FAILED)
    assert record.text("reason") == "exit status 3, result exit-code, job failed"
    assert not records.of(Event.APP_CHANGED)


def test_one_that_fails_does_not_keep_the_other_from_being_started() -> None:
    systemd = FakeSystemd(cad_dev=FakeUnit("failed", FAILED), cad_prod=FakeUnit())
    answer, _ = do(systemd, "startApp", app="cad", mode="all")
    assert answer.text == "Started cad-prod.service on vps"
    assert (answer.status, answer.error and answer.error.code) == (255, Code.UNIT_FAILED)
    systemd = FakeSystemd(cad_dev=FakeUnit("failed", FAILED), cad_prod=FakeUnit("timeout"))
    answer, said = do(systemd, "startApp", app="cad", mode="all")
    assert answer.text == ""
    assert said == ["Failed to start cad-prod.service on vps: job timeout"]


def test_a_systemd_that_does_not_answer_is_said() -> None:
    error = refusal(FakeSystemd(), "appStatus", [App("x", "prod", "silent.service")])
    assert error.sentence == "Failed to look at silent.service on vps: Get: no answer"


def test_the_status_of_units() -> None:
    systemd = both()
    systemd.units["cad-prod.service"].properties |= {
        **FAILED,
        "ActiveState": "failed",
        "SubState": "failed",
        "UnitFileState": "enabled",
        "StateChangeTimestamp": 1_700_000_000_000_000,
        "NRestarts": 2,
    }
    systemd.units["cad-dev.service"].properties |= {"ActiveState": "active", "SubState": "running", "MainPID": 77}
    answer, _ = do(systemd, "appStatus")
    dev, prod = answer.data
    assert (dev["active"], dev["sub"], dev["main_pid"], dev["since"], dev["exit_status"], dev["enabled"]) == (
        ("active", "running", 77, None, None, None)
    )
    assert prod == {
        "app": "cad",
        "mode": "prod",
        "unit": "cad-prod.service",
        "directory": "/opt/cad",
        "load": "loaded",
        "active": "failed",
        "sub": "failed",
        "enabled": "enabled",
        "main_pid": None,
        "since": "2023-11-14T22:13:20Z",
        "restarts": 2,
        "result": "exit-code",
        "exit_status": 3,
    }
    assert [row["mode"] for row in do(systemd, "appStatus", app="cad", mode="prod")[0].data] == ["prod"]
    assert do(FakeSystemd(), "appStatus", app="cad")[0].data[0]["load"] == "not-found"
    assert do(FakeSystemd(), "appStatus", [])[0].data == []
    assert refusal(FakeSystemd(), "appStatus", app="nas").code is Code.NO_SUCH_APP


def test_apps_are_added_changed_listed_and_removed(records: Journal) -> None:
    async def main() -> None:
        async with machine(FakeSystemd(cad_prod=FakeUnit())) as here:
            answer = await here.call("addApp", app="cad", directory="/srv/{mode}")
            assert answer.text == "Added cad on vps: cad-dev.service, cad-prod.service"
            assert here.said == ["cad-dev.service does not exist yet"]
            await here.call("addApp", app="cad", mode="dev", unit="cad-test.service")
            listed = await here.call("listApps")
            assert listed.data == [
                {"app": "cad", "mode": "dev", "unit": "cad-test.service", "directory": None},
                {"app": "cad", "mode": "prod", "unit": "cad-prod.service", "directory": "/srv/prod"},
            ]
            gone = await here.call("removeApp", app="cad", mode="dev")
            assert gone.text == "Removed cad on vps; left as they are: cad-test.service"
            assert [app.mode for app in here.registry.apps()] == ["prod"]
            await here.call("removeApp", app="cad")
            assert here.registry.apps() == []
            with pytest.raises(PeerdError, match="No such app on vps: cad"):
                await here.call("removeApp", app="cad")
        assert len(records.of(Event.APP_CHANGED)) == 5

    asyncio.run(main())


def test_there_is_an_end_to_apps() -> None:
    many = [App(f"app{number}", "prod", f"app{number}.service") for number in range(MAX_APPS)]
    error = refusal(FakeSystemd(), "addApp", many, app="cad", mode="prod")
    assert (error.code, str(MAX_APPS) in error.sentence) == (Code.USAGE, True)
    do(FakeSystemd(), "addApp", many, app="app0", mode="prod")


def test_who_waits_no_more_is_told_that_it_goes_on(records: Journal) -> None:
    async def main() -> None:
        systemd = both()
        systemd.hold = True
        async with machine(systemd, *CAD) as here:
            waiting = asyncio.create_task(here.call("startApp", app="cad", mode="prod"))
            await systemd.begun.wait()
            here.cancel.set()
            with pytest.raises(PeerdError, match="Stopped waiting for cad on vps") as caught:
                await waiting
            assert caught.value.kind.exit_status == 130
            (record,) = records.of(Event.APP_FAILED)
            assert record.text("reason") == "it goes on, and nobody waits for it"

    asyncio.run(main())


# --- on a peer


def test_a_peer_is_asked_and_its_answer_passed_on(records: Journal) -> None:
    async def main() -> None:
        systemd = both()
        async with machine(systemd, *CAD) as here:
            asking = asyncio.create_task(here.call("startApp", app="cad", mode="all", peer="laptop"))
            wire = await here.peers.links.get()
            request = await wire.link.expect("appRequest")
            assert request.fields == {"command": "startApp", "app": "cad", "mode": "all"}
            wire.link.post("reply", {"data": None, "text": "Started it on laptop", "notes": ["\x1bskipped"]})
            answer = await asking
            assert (answer.text, answer.status, here.said) == ("Started it on laptop", 0, ["\\x1bskipped"])
            assert systemd.calls == []
        (asked,) = records.of(Event.APP_ASKED)
        assert (asked.text("peer"), asked.text("caller")) == ("laptop", "ann@vps")
        assert not records.of(Event.APP_CHANGED)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["startApp", "appStatus"])
def test_what_a_peer_refuses_is_its_error(name: str) -> None:
    async def main() -> None:
        async with machine(FakeSystemd()) as here:
            asking = asyncio.create_task(here.call(name, app="cad", mode="prod", peer="laptop"))
            wire = await here.peers.links.get()
            await wire.link.expect("appRequest")
            wire.link.post("error", PeerdError(Code.DENIED, reason="laptop does not allow this").to_wire())
            with pytest.raises(PeerdError, match="Permission denied: laptop does not allow this"):
                await asking

    asyncio.run(main())


@pytest.mark.parametrize(("name", "code"), [("restartApp", Code.APP_LOST), ("appStatus", Code.CONNECT_FAILED)])
def test_a_connection_that_breaks_leaves_open_what_became_of_a_change(name: str, code: Code) -> None:
    async def main() -> None:
        async with machine(FakeSystemd()) as here:
            asking = asyncio.create_task(here.call(name, app="cad", mode="prod", peer="laptop"))
            wire = await here.peers.links.get()
            await wire.link.expect("appRequest")
            wire.reset()
            with pytest.raises(PeerdError) as caught:
                await asking
            assert caught.value.code is code
            assert here.peers.accepted == 1

    asyncio.run(main())


def test_a_peer_that_is_not_known_is_said_so() -> None:
    assert refusal(FakeSystemd(), "listApps", peer="nas").code is Code.PEER_NOT_FOUND
