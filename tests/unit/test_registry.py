"""The database: what was stored is there after a restart, and a file that cannot be used is said to be so."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peerd.app import App
from peerd.errors import Code, PeerdError
from peerd.peers import Peer, State
from peerd.registry import SCHEMA_VERSION, Identity, Registry

LAPTOP = Peer("laptop", "10.0.0.4", "02:00:00:00:00:04", "laptop-host", "0.1.0", "key", 100.25, 200.5)
CAD = App("cad", "prod", "cad-prod.service", "/opt/cad")
CLAIM = Peer("nas", "10.0.0.9", "", "nas-host", "0.1.0", "key-9", 1.0, 2.0, state=State.PENDING)
DESKTOP = Peer("desktop", "10.0.0.2", first_seen=1.0, last_seen=2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peerd.db"


@contextmanager
def opened(path: str | Path) -> Iterator[Registry]:
    registry = Registry(path)
    try:
        yield registry
    finally:
        registry.close()


def by_id(registry: Registry) -> dict[str, Peer]:
    return {peer.peer_id: peer for peer in registry.peers()}


def written() -> int:
    """Bytes that this process has written so far (wchar of proc_pid_io(5))."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def refusal(path: Path) -> str:
    with pytest.raises(PeerdError) as caught:
        Registry(path)
    assert caught.value.code is Code.INTERNAL
    assert str(path) in caught.value.sentence
    return caught.value.sentence


def test_a_new_database_has_no_role_and_no_peers(path: Path) -> None:
    with opened(path) as registry:
        assert registry.identity() == Identity("", "", "")
        assert registry.peers() == []


def test_a_database_in_memory_is_one_like_any_other() -> None:
    with opened(":memory:") as registry:
        registry.store([LAPTOP])
        assert registry.peers() == [LAPTOP]


def test_what_was_stored_is_there_after_a_restart(path: Path) -> None:
    with opened(path) as registry:
        registry.set_identity(Identity("leader", "vps", ""))
        registry.store([LAPTOP, DESKTOP])
    with opened(path) as registry:
        assert registry.identity() == Identity("leader", "vps", "")
        assert by_id(registry) == {"laptop": LAPTOP, "desktop": DESKTOP}


def test_the_last_identity_is_the_one_that_counts(path: Path) -> None:
    with opened(path) as registry:
        registry.set_identity(Identity("worker", "laptop", "10.0.0.1"))
        registry.set_identity(Identity("leader", "vps", ""))
    with opened(path) as registry:
        assert registry.identity() == Identity("leader", "vps", "")


def test_only_the_owner_may_read_the_files(path: Path) -> None:
    with opened(path) as registry:
        registry.store([LAPTOP])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert "peerd.db" in modes
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    path.touch()
    path.chmod(0o666)
    with opened(path) as registry:
        registry.store([LAPTOP])
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_symbolic_link_is_not_followed(path: Path) -> None:
    target = path.parent / "elsewhere"
    path.symlink_to(target)
    assert "symbolic links" in refusal(path)
    assert not target.exists()


def test_storing_a_peer_again_replaces_it(path: Path) -> None:
    with opened(path) as registry:
        registry.store([LAPTOP])
        registry.store([replace(LAPTOP, hostname="new", last_seen=300.0)])
        assert registry.peers() == [replace(LAPTOP, hostname="new", last_seen=300.0)]


def test_storing_a_peer_replaces_who_had_its_address(path: Path) -> None:
    with opened(path) as registry:
        registry.store([LAPTOP, DESKTOP])
        moved = replace(DESKTOP, ip_address=LAPTOP.ip_address)
        registry.store([moved])
        assert registry.peers() == [moved]


def test_whether_a_peer_is_online_is_not_stored(path: Path) -> None:
    with opened(path) as registry:
        registry.store([replace(LAPTOP, is_online=True)])
        assert registry.peers() == [LAPTOP]


def test_storing_nothing_stores_nothing(path: Path) -> None:
    with opened(path) as registry:
        registry.store([])
        assert registry.peers() == []


def test_who_is_forgotten_is_gone_and_nobody_else(path: Path) -> None:
    with opened(path) as registry:
        registry.store([LAPTOP, DESKTOP])
        registry.forget(["laptop", "phone"])
        registry.forget([])
        assert registry.peers() == [DESKTOP]
    with opened(path) as registry:
        assert registry.peers() == [DESKTOP]


def test_text_is_stored_as_it_is(path: Path) -> None:
    odd = replace(LAPTOP, hostname="'; drop table peer_registry; --", daemon_version="é\n\x1b")
    with opened(path) as registry:
        registry.store([odd])
        assert registry.peers() == [odd]


def test_a_new_database_has_the_present_schema(path: Path) -> None:
    Registry(path).close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"setting", "peer_registry", "peer_claim", "app"}


VERSION_1 = """
CREATE TABLE "setting" ("name" TEXT NOT NULL PRIMARY KEY, "value" TEXT NOT NULL);
CREATE TABLE "peer_registry" ("peer_id" TEXT NOT NULL PRIMARY KEY, "ip_address" TEXT NOT NULL,
    "mac_address" TEXT NOT NULL, "hostname" TEXT NOT NULL, "daemon_version" TEXT NOT NULL, "public_key" TEXT NOT NULL,
    "first_seen" REAL NOT NULL, "last_seen" REAL NOT NULL);
CREATE UNIQUE INDEX "peer_registry_ip_address" ON "peer_registry" ("ip_address");
INSERT INTO "setting" VALUES ('role', 'leader'), ('peer_id', 'vps'), ('leader_address', '');
INSERT INTO "peer_registry" VALUES
    ('laptop', '10.0.0.4', '02:00:00:00:00:04', 'laptop-host', '0.1.0', 'key', 100.25, 200.5);
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_schema_is_migrated_with_all_that_is_in_it(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_1)
    for _ in range(2):
        with opened(path) as registry:
            assert registry.identity() == Identity("leader", "vps", "")
            assert registry.peers() == [LAPTOP]
            assert registry.claims() == []
            assert registry.apps() == []
    with opened(path) as registry:
        registry.store_claim(CLAIM)
        registry.store_apps([CAD])
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


VERSION_2 = """
CREATE TABLE "setting" ("name" TEXT NOT NULL PRIMARY KEY, "value" TEXT NOT NULL);
CREATE TABLE "peer_registry" ("peer_id" TEXT NOT NULL PRIMARY KEY, "ip_address" TEXT NOT NULL,
    "mac_address" TEXT NOT NULL, "hostname" TEXT NOT NULL, "daemon_version" TEXT NOT NULL, "public_key" TEXT NOT NULL,
    "first_seen" REAL NOT NULL, "last_seen" REAL NOT NULL);
CREATE UNIQUE INDEX "peer_registry_ip_address" ON "peer_registry" ("ip_address");
CREATE TABLE "peer_claim" ("ip_address" TEXT NOT NULL PRIMARY KEY, "peer_id" TEXT NOT NULL,
    "mac_address" TEXT NOT NULL, "hostname" TEXT NOT NULL, "daemon_version" TEXT NOT NULL, "public_key" TEXT NOT NULL,
    "first_seen" REAL NOT NULL, "last_seen" REAL NOT NULL, "state" TEXT NOT NULL);
INSERT INTO "setting" VALUES ('role', 'worker'), ('peer_id', 'laptop'), ('leader_address', '10.0.0.1');
INSERT INTO "peer_claim" VALUES
    ('10.0.0.9', 'nas', '', 'nas-host', '0.1.0', 'key-9', 1.0, 2.0, 'pending');
PRAGMA user_version = 2;
"""


def test_a_database_of_the_second_schema_gets_room_for_apps(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_2)
    with opened(path) as registry:
        assert registry.identity() == Identity("worker", "laptop", "10.0.0.1")
        assert registry.claims() == [CLAIM]
        registry.store_apps([CAD])
    with opened(path) as registry:
        assert registry.apps() == [CAD]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


def test_apps_are_kept_one_for_a_name_and_a_mode(path: Path) -> None:
    dev, other = replace(CAD, mode="dev", unit="cad-dev.service"), App("abc", "prod", "abc.service")
    with opened(path) as registry:
        registry.store_apps([CAD, dev, other])
        registry.store_apps([replace(CAD, unit="new.service")])
    with opened(path) as registry:
        assert registry.apps() == [other, dev, replace(CAD, unit="new.service")]
        registry.forget_apps([dev, App("none", "dev", "")])
        assert registry.apps() == [other, replace(CAD, unit="new.service")]


def test_claims_are_kept_one_for_an_address(path: Path) -> None:
    with opened(path) as registry:
        registry.store_claim(CLAIM)
        registry.store_claim(replace(CLAIM, peer_id="other", state=State.REJECTED))
        registry.store_claim(replace(CLAIM, ip_address="10.0.0.10"))
        registry.forget_claim("10.0.0.10")
        registry.forget_claim("10.0.0.11")
    with opened(path) as registry:
        assert registry.claims() == [replace(CLAIM, peer_id="other", state=State.REJECTED)]
        assert registry.peers() == []


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    with opened(path) as registry:
        registry.store([LAPTOP])
        assert registry.peers() == [LAPTOP]


def test_a_directory_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing" / "peerd.db")


def test_a_path_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path)


def test_what_a_large_fleet_was_seen_at_is_written_once_for_each_page(path: Path) -> None:
    fleet = [
        replace(LAPTOP, peer_id=f"w{number}", ip_address=f"10.1.{number // 250}.{number % 250}")
        for number in range(4000)
    ]
    with opened(path) as registry:
        registry.store(fleet)
    size = path.stat().st_size
    seen = [replace(peer, last_seen=peer.last_seen + number) for number, peer in enumerate(fleet)]
    random.Random(1).shuffle(seen)
    with opened(path) as registry:
        before = written()
        registry.store_seen(seen)
        assert written() - before < size
        assert by_id(registry) == {peer.peer_id: peer for peer in seen}
