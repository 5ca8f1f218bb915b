"""What ran here and what was asked from here, in SQLite through peewee; also what makes a command run once.

It is a database of its own: it grows with every command, and losing it costs no peer its registration.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee

from peerd.database import Database
from peerd.errors import Code, PeerdError
from peerd.job import Job
from peerd.journal import Event, log

RAN = "ran"
ASKED = "asked"
SIDES = (RAN, ASKED)
SCHEMA_VERSION = 1
"""Kept in the database as PRAGMA user_version (sqlite.org/pragma.html)."""

_TRIM_EVERY = 1000
# Four of these are in the way of every command; building them from the model takes longer than doing what they say.
# What is in an index is not set again: it stays as it was, and to leave it alone is half of the work.
_PUT = """
    INSERT INTO command (exec_id, side, peer, started, outcome, detached, job) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (exec_id, side) DO UPDATE SET peer = excluded.peer, outcome = excluded.outcome, job = excluded.job
"""
_HAS = "SELECT 1 FROM command WHERE exec_id = ? AND side = ?"


@dataclass(frozen=True)
class Entry:
    """One command: "ran" here, or "asked" of the other end."""

    side: str
    peer: str
    job: Job


class History:
    """The database.

    A disk that is full keeps no command from running: what cannot be stored is recorded as such and left out.

    :param path: the file, made with mode 0600 if it does not exist; ``:memory:`` for a test
    :raises PeerdError: INTERNAL when there is no database and none can be made
    """

    def __init__(self, path: str | Path) -> None:
        self._store = Database(path, SCHEMA_VERSION, lambda version: self._create(), precious=False)
        self._database = self._store.peewee

        class Row(peewee.Model):  # type: ignore[misc]
            exec_id = peewee.TextField()
            side = peewee.TextField()
            peer = peewee.TextField()
            started = peewee.IntegerField(index=True)
            outcome = peewee.TextField(default="")
            detached = peewee.BooleanField()
            job = peewee.TextField()
            Meta = type(
                "Meta",
                (),
                {
                    "database": self._database,
                    "table_name": "command",
                    "primary_key": peewee.CompositeKey("exec_id", "side"),
                },
            )

        self._rows: Any = Row
        self._stored = 0
        self._store.open()

    def _create(self) -> None:
        self._database.create_tables([self._rows])

    def put(self, side: str, peer: str, job: Job) -> None:
        """Store a command, or what is known of it now.

        :param peer: the other end
        """
        outcome = job.result.outcome.value if job.result else ""
        row = (job.exec_id, side, peer, job.started_usec, outcome, job.detached, json.dumps(job.shortened().to_wire()))
        try:
            with self._store.writing():
                self._database.execute_sql(_PUT, row)
        except PeerdError as error:
            why = error.details["reason"]
            log(Event.STATE_UNWRITABLE, f"The history does not have {job.exec_id}: {why}", exec_id=job.exec_id)

    def has(self, side: str, exec_id: str) -> bool:
        """Whether there is a command with this id on one side."""
        try:
            return self._database.execute_sql(_HAS, (exec_id, side)).fetchone() is not None
        except peewee.DatabaseError:
            return False

    def drop(self, side: str, exec_id: str) -> None:
        """Forget a command that was stored and never run."""
        with contextlib.suppress(PeerdError), self._store.writing():
            self._rows.delete().where(self._rows.exec_id == exec_id, self._rows.side == side).execute()

    def get(self, side: str, exec_id: str) -> Entry | None:
        """The command with this id on one side, or None."""
        try:
            row = self._rows.get_or_none(exec_id=exec_id, side=side)
        except peewee.DatabaseError:
            return None
        return _entry(row) if row else None

    def find(
        self,
        side: str | None = None,
        peer: str | None = None,
        outcome: str | None = None,
        since_usec: int = 0,
        detached: bool | None = None,
        limit: int = 1000,
    ) -> list[Entry]:
        """Commands, the newest first.

        :param outcome: only those that ended so; "" for those whose end is not known
        :param since_usec: only those that started since, in microseconds since the epoch
        :raises PeerdError: INTERNAL when they cannot be read
        """
        rows = self._rows
        query = rows.select().where(rows.started >= since_usec)
        wanted = {rows.side: side, rows.peer: peer, rows.outcome: outcome, rows.detached: detached}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(column == value)
        try:
            return [_entry(row) for row in query.order_by(rows.started.desc()).limit(limit)]
        except peewee.DatabaseError as error:
            raise PeerdError(Code.INTERNAL, reason=f"cannot read the history: {error}") from None

    def trim(self, most: int) -> None:
        """Keep only the newest entries; cheap when called after each."""
        self._stored += 1
        if self._stored % _TRIM_EVERY != 1:
            return
        kept = self._rows.select(self._rows.started).order_by(self._rows.started.desc()).limit(1).offset(most)
        try:
            with self._store.writing():
                oldest = kept.scalar()
                if oldest is not None:
                    self._rows.delete().where(self._rows.started <= oldest, self._rows.outcome != "").execute()
        except PeerdError as error:
            log(Event.STATE_UNWRITABLE, f"The history cannot be trimmed: {error.details['reason']}")

    def close(self) -> None:
        """Close the database."""
        self._store.close()


def _entry(row: Any) -> Entry:
    return Entry(row.side, row.peer, Job.from_wire(json.loads(row.job)))
