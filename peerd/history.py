"""What ran here and what was asked from here, in SQLite through peewee; also what makes a command run once.

It is a database of its own: it grows with every command, and losing it costs no peer its registration.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee

from peerd import validate
from peerd.database import Database
from peerd.errors import Code, Outcome, PeerdError
from peerd.job import Job
from peerd.journal import Event, log
from peerd.messages import MAX_TEXT

RAN = "ran"
ASKED = "asked"
SCHEMA_VERSION = 1
"""Kept in the database as PRAGMA user_version (sqlite.org/pragma.html)."""

_TRIM_EVERY = 1000
_TRIM_SHARE = 10
"""Of how many commands that are kept there may be one more until it is trimmed again."""
_DENIED_SHARE = 10
_MOST_UNWRITTEN = 200
"""Commands whose ends are held in memory while they cannot be stored."""
_PEER, _OUTCOME, _JOB = 2, 4, 6
"""Columns of a row."""
_PLACE = slice(3, 5)
"""Those of a row that is found which say where it is: when it started, and its rowid."""
_PORTION = 50
"""Commands that are read at once where there may be very many."""
_SOON = 0.01
"""Seconds until what may wait is stored: most commands, seen from their callers, are over by then."""
# Four of these are in the way of every command; building them from the model takes longer than doing what they say.
# What is in an index is not set again: it stays as it was, and to leave it alone is half of the work.
_PUT = """
    INSERT INTO command (exec_id, side, peer, started, outcome, detached, job) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (exec_id, side) DO UPDATE SET peer = excluded.peer, outcome = excluded.outcome, job = excluded.job
"""
# What is listed are detached ones, few among very many.
_INDEX = "CREATE INDEX IF NOT EXISTS command_detached ON command (started) WHERE detached"
_GET = "SELECT side, peer, job FROM command WHERE exec_id = ? AND side = ?"
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
        self._store = Database(path, SCHEMA_VERSION, lambda version: self._create(), self._probe, precious=False)
        self._database = self._store.peewee

        class Row(peewee.Model):  # type: ignore[misc]
            exec_id = peewee.TextField()
            side = peewee.TextField()
            peer = peewee.TextField()
            started = peewee.IntegerField(index=True)
            outcome = peewee.TextField(default="")
            detached = peewee.BooleanField()
            job = peewee.TextField()

            class Meta:
                database = self._database
                table_name = "command"
                primary_key = peewee.CompositeKey("exec_id", "side")

        self._rows: Any = Row
        self._rowid: Any = peewee.SQL("rowid")
        self._stored = 0
        self._waiting: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._unwritten: set[tuple[str, str]] = set()
        self._due: asyncio.TimerHandle | None = None
        self._store.open()
        # Without it all is found as well.
        with contextlib.suppress(PeerdError), self._store.writing():
            self._database.execute_sql(_INDEX)

    def _create(self) -> None:
        self._database.create_tables([self._rows])

    def _probe(self, database: sqlite3.Connection, version: int) -> None:
        # Not the rows, of which there are many: one that cannot be read is passed over.
        if version:
            database.execute(*self._rows.select().limit(0).sql())

    def put(self, side: str, peer: str, job: Job) -> None:
        """Store a command, or what is known of it now.

        :param peer: the other end
        """
        self._waiting[side, job.exec_id] = _row(side, peer, job)
        self.catch_up()

    def put_soon(self, side: str, peer: str, job: Job) -> None:
        """The same for what no restart depends on: stored in a moment, when who waits for the command has its answer.

        What is read has it at once, and what is known later of the same command takes its place.
        """
        self._waiting[side, job.exec_id] = _row(side, peer, job)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_SOON, self.catch_up)

    def catch_up(self) -> None:
        """Store what waits, now."""
        if self._due:
            self._due.cancel()
            self._due = None
        rows, self._waiting = self._waiting, {}
        try:
            with self._store.writing() if rows else contextlib.nullcontext():
                for row in rows.values():
                    self._database.execute_sql(_PUT, row)
        except PeerdError as error:
            why = error.details["reason"]
            for key in rows.keys() - self._unwritten:
                log(Event.STATE_UNWRITABLE, f"The history does not have {key[1]}: {why}", exec_id=key[1])
            # How a command ended nobody will say again.
            ended = [(key, row) for key, row in rows.items() if row[_OUTCOME]]
            self._waiting = dict(ended[-_MOST_UNWRITTEN:])
            self._unwritten = set(self._waiting)
        else:
            self._unwritten.clear()

    def has(self, side: str, exec_id: str) -> bool:
        """Whether there is a command with this id on one side."""
        if (side, exec_id) in self._waiting:
            return True
        try:
            return self._database.execute_sql(_HAS, (exec_id, side)).fetchone() is not None
        except peewee.DatabaseError:
            return False

    def drop(self, side: str, exec_id: str) -> None:
        """Forget a command that was stored and never run."""
        self.catch_up()
        with contextlib.suppress(PeerdError), self._store.writing():
            self._rows.delete().where(self._rows.exec_id == exec_id, self._rows.side == side).execute()

    def get(self, side: str, exec_id: str) -> Entry | None:
        """The command with this id on one side; None where there is none that can be read."""
        self.catch_up()
        if waits := self._waiting.get((side, exec_id)):
            return _entry(side, waits[_PEER], waits[_JOB])
        try:
            row = self._database.execute_sql(_GET, (exec_id, side)).fetchone()
        except (sqlite3.DatabaseError, peewee.DatabaseError):
            return None
        return _entry(*row) if row else None

    def find(
        self,
        side: str | None = None,
        peer: str | None = None,
        outcome: str | None = None,
        since_usec: int = 0,
        detached: bool | None = None,
        limit: int = 1000,
    ) -> list[Entry]:
        """Commands, the newest first, without those whose rows cannot be read.

        :param outcome: only those that ended so; "" for those whose end is not known
        :param since_usec: only those that started since, in microseconds since the epoch
        :raises PeerdError: INTERNAL when they cannot be read
        """
        query = self._query(side, peer, outcome, since_usec)
        if detached is not None:
            # As the index has it, which is of use only then.
            query = query.where(self._rows.detached if detached else ~self._rows.detached)
        return _entries(self._read(query.limit(limit)))

    def portions(
        self,
        side: str | None = None,
        peer: str | None = None,
        outcome: str | None = None,
        since_usec: int = 0,
        limit: int = 1000,
    ) -> Iterator[list[Entry]]:
        """What :meth:`find` finds in portions, each of them read when it is taken: all at once may take seconds."""
        every = query = self._query(side, peer, outcome, since_usec)
        while limit > 0:
            found = self._read(query.limit(min(limit, _PORTION)))
            yield _entries(found)
            if len(found) < _PORTION:
                return
            limit -= len(found)
            started, rowid = found[-1][_PLACE]
            rows = self._rows
            query = every.where(rows.started <= started, (rows.started < started) | (self._rowid < rowid))

    def _query(self, side: str | None, peer: str | None, outcome: str | None, since_usec: int) -> Any:
        rows = self._rows
        query = rows.select(rows.side, rows.peer, rows.job, rows.started, self._rowid).where(rows.started >= since_usec)
        wanted = {rows.side: side, rows.peer: peer, rows.outcome: outcome}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(column == value)
        return query.order_by(rows.started.desc(), self._rowid.desc())

    def _read(self, query: Any) -> list[tuple[Any, ...]]:
        self.catch_up()
        try:
            found: list[tuple[Any, ...]] = self._database.execute(query).fetchall()
        except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
            raise PeerdError(Code.INTERNAL, reason=f"cannot read the history: {error}") from None
        return found

    def trim(self, most: int) -> None:
        """Keep only the newest entries, and beside them a tenth as many that were denied; cheap when called after each.

        What runs here stays. What was asked of a peer goes, whether or not its end was ever heard of.

        :param most: how many
        """
        self._stored += 1
        if (self._stored - 1) % max(1, min(_TRIM_EVERY, most // _TRIM_SHARE)):
            return
        self.catch_up()
        rows = self._rows
        denied, over = rows.outcome == Outcome.DENIED.value, (rows.outcome != "") | (rows.side == ASKED)
        try:
            with self._store.writing():
                # Whoever is denied must not have the others' commands forgotten.
                for these, limit in ((~denied, most), (denied, most // _DENIED_SHARE)):
                    newest = rows.select(rows.started).where(these).order_by(rows.started.desc())
                    oldest = newest.limit(1).offset(limit).scalar()
                    if oldest is not None:
                        rows.delete().where(these, over, rows.started <= oldest).execute()
        except PeerdError as error:
            log(Event.STATE_UNWRITABLE, f"The history cannot be trimmed: {error.details['reason']}")

    def close(self) -> None:
        """Close the database."""
        self.catch_up()
        self._store.close()


def _row(side: str, peer: str, job: Job) -> tuple[Any, ...]:
    outcome = job.result.outcome.value if job.result else ""
    return job.exec_id, side, peer, job.started_usec, outcome, job.detached, json.dumps(job.shortened().to_wire())


def _entries(found: Iterable[tuple[Any, ...]]) -> list[Entry]:
    return [entry for side, peer, job, *_ in found if (entry := _entry(side, peer, job))]


def _entry(side: Any, peer: Any, job: Any) -> Entry | None:
    """What is in a row, whatever that is; None where it was no command."""
    try:
        return Entry(side, validate.string(peer, "peer", MAX_TEXT), Job.from_wire(json.loads(job)))
    except (TypeError, ValueError, RecursionError, PeerdError):
        return None
