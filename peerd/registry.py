"""What outlives a restart: this machine's role, its apps and, on the leader, the peers; in SQLite through peewee."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peewee

from peerd import validate
from peerd.app import MODES, App
from peerd.database import Database
from peerd.messages import take
from peerd.peers import Peer, State

SCHEMA_VERSION = 3
"""Kept in the database as PRAGMA user_version (sqlite.org/pragma.html)."""

_ROWS = "SELECT rowid, peer_id FROM peer_registry ORDER BY rowid"
_SEEN = "UPDATE peer_registry SET last_seen = ? WHERE rowid = ?"


@dataclass(frozen=True)
class Identity:
    """This machine's part: its role ("leader", "worker" or "" while none is set), its id, its leader's address."""

    role: str = ""
    peer_id: str = ""
    leader_address: str = ""


def _one_of(*words: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return value

    return check


_SETTINGS = {
    "role": _one_of("leader", "worker"),
    "peer_id": validate.peer_id,
    "leader_address": validate.address,
}
_APP = {"name": validate.app, "mode": _one_of(*MODES), "unit": validate.unit, "directory": validate.app_directory}


class Registry:
    """The database. One process uses it; every method is one transaction, or a part of :meth:`changing`.

    What is to be stored and cannot be raises NOT_STORED.

    :param path: the file, made with mode 0600 if it does not exist; ``:memory:`` for a test
    :raises PeerdError: INTERNAL when there is no database and none can be made
    """

    def __init__(self, path: str | Path) -> None:
        self._store = Database(path, SCHEMA_VERSION, self._migrate, self._probe, precious=True)
        self._database = self._store.peewee

        class Setting(peewee.Model):  # type: ignore[misc]
            name = peewee.TextField(primary_key=True)
            value = peewee.TextField()

            class Meta:
                database = self._database

        class PeerRow(peewee.Model):  # type: ignore[misc]
            peer_id = peewee.TextField(primary_key=True)
            ip_address = peewee.TextField(unique=True)
            mac_address = peewee.TextField(default="")
            hostname = peewee.TextField(default="")
            daemon_version = peewee.TextField(default="")
            public_key = peewee.TextField(default="")
            first_seen = peewee.DoubleField()
            last_seen = peewee.DoubleField()

            class Meta:
                database = self._database
                table_name = "peer_registry"

        class ClaimRow(peewee.Model):  # type: ignore[misc]
            ip_address = peewee.TextField(primary_key=True)
            peer_id = peewee.TextField()
            mac_address = peewee.TextField()
            hostname = peewee.TextField()
            daemon_version = peewee.TextField()
            public_key = peewee.TextField()
            first_seen = peewee.DoubleField()
            last_seen = peewee.DoubleField()
            state = peewee.TextField()

            class Meta:
                database = self._database
                table_name = "peer_claim"

        class AppRow(peewee.Model):  # type: ignore[misc]
            name = peewee.TextField()
            mode = peewee.TextField()
            unit = peewee.TextField()
            directory = peewee.TextField()

            class Meta:
                database = self._database
                table_name = "app"
                primary_key = peewee.CompositeKey("name", "mode")

        self._settings: Any = Setting
        self._peers: Any = PeerRow
        self._claims: Any = ClaimRow
        self._apps: Any = AppRow
        self._store.open()
        self._store.owner = self.identity().peer_id or self._store.owner

    def _migrate(self, version: int) -> None:
        if version < 1:
            self._database.create_tables([self._settings, self._peers])
        if version < 2:
            self._database.create_tables([self._claims])
        if version < 3:
            self._database.create_tables([self._apps])

    def _probe(self, database: sqlite3.Connection, version: int) -> None:
        """Read everything in a file of this schema version. What it has was valid when it was stored."""
        database.row_factory = sqlite3.Row

        def rows(model: Any, since: int) -> list[dict[str, object]]:
            return [dict(row) for row in database.execute(*model.select().sql())] if version >= since else []

        if stored := {str(row["name"]): row["value"] for row in rows(self._settings, 1)}:
            _examine(stored, _SETTINGS)
        for row in (*rows(self._peers, 1), *rows(self._claims, 2)):
            Peer.from_wire(row)
        for row in rows(self._apps, 3):
            _examine(row, _APP)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """What is stored and forgotten in this block is so as a whole, or not at all.

        :raises PeerdError: NOT_STORED
        """
        with self._store.writing():
            yield

    def identity(self) -> Identity:
        """The role, id and leader that were stored last."""
        stored = {row.name: row.value for row in self._settings.select()}
        return Identity(**{name: stored.get(name, "") for name in asdict(Identity())})

    def set_identity(self, identity: Identity) -> None:
        """Store role, id and leader together, and back them up."""
        with self._store.writing():
            for name, value in asdict(identity).items():
                self._settings.replace(name=name, value=value).execute()
        self._store.owner = identity.peer_id or self._store.owner
        self._store.back_up()

    def peers(self) -> list[Peer]:
        """All stored peers."""
        return [Peer(**row) for row in self._peers.select().dicts()]

    def store(self, peers: Iterable[Peer]) -> None:
        """Insert or replace these peers. Whether a peer is online is the link's to say and is not stored."""
        with self._store.writing():
            for peer in peers:
                row = asdict(peer)
                del row["is_online"], row["state"]
                self._peers.replace(**row).execute()

    def store_seen(self, peers: Iterable[Peer]) -> None:
        """Store when these peers were seen, of those that are stored."""
        seen = {peer.peer_id: peer.last_seen for peer in peers}
        with self._store.writing(matters=False):
            connection = self._database.connection()
            # In the order of the file, so that each of its pages is written once, however few of them are kept.
            rows = connection.execute(_ROWS).fetchall()
            connection.executemany(_SEEN, [(seen[peer_id], rowid) for rowid, peer_id in rows if peer_id in seen])

    def forget(self, peer_ids: Iterable[str]) -> None:
        """Delete these peers.

        :raises PeerdError: NOT_STORED
        """
        with self._store.writing():
            for peer_id in peer_ids:
                self._peers.delete().where(self._peers.peer_id == peer_id).execute()

    def claims(self) -> list[Peer]:
        """The stored registrations that made no peer."""
        rows = self._claims.select().dicts()
        return [Peer(**{**row, "state": State(row["state"])}) for row in rows]

    def store_claim(self, claim: Peer) -> None:
        """Insert or replace the one of its address."""
        row = asdict(claim)
        del row["is_online"]
        with self._store.writing():
            self._claims.replace(**row).execute()

    def forget_claim(self, address: str) -> None:
        """Delete the one of this address, if there is one."""
        with self._store.writing():
            self._claims.delete().where(self._claims.ip_address == address).execute()

    def back_up(self) -> None:
        """Make a backup, if there is something new or the last one is old."""
        self._store.back_up()

    def apps(self) -> list[App]:
        """The apps of this machine, in the order of their names and modes."""
        return [App(**row) for row in self._apps.select().order_by(self._apps.name, self._apps.mode).dicts()]

    def store_apps(self, apps: Iterable[App]) -> None:
        """Insert or replace these modes of apps."""
        with self._store.writing():
            for app in apps:
                self._apps.replace(**asdict(app)).execute()

    def forget_apps(self, apps: Iterable[App]) -> None:
        """Delete these modes of apps."""
        rows = self._apps
        with self._store.writing():
            for app in apps:
                rows.delete().where(rows.name == app.name, rows.mode == app.mode).execute()

    def close(self) -> None:
        """Close the database."""
        self._store.close()


def _examine(stored: Mapping[str, object], checks: Mapping[str, Callable[[object], object]]) -> None:
    """See that each of these values is there, and valid unless it is empty.

    :raises PeerdError: BAD_MESSAGE
    """
    for name, check in checks.items():
        if stored.get(name) != "":
            take(stored, name, check)
