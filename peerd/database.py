"""A SQLite file that keeps peerd neither from starting nor from working, whatever happened to it; through peewee.

One that is damaged, be it in what is stored in it, or that a newer peerd wrote, is set aside under another name and its
backup takes its place. One that only cannot be written, because a disk is full for example, is left alone: what is in
it is served from memory, changes are refused, and it is tried again later. Nothing is ever deleted but older backups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import peewee

from peerd.errors import Code, PeerdError
from peerd.journal import Event, log

_OF_PYTHON = 0
"""Errors of the module sqlite3 itself have no result code: text that is no UTF-8, for one."""
_DAMAGE = {_OF_PYTHON, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_OF_THE_DISK = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
"""sqlite.org/rescode.html: what says nothing against the file itself."""
_NO_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_IN_MEMORY = "/dev/shm"
_CACHE = 256
"""KiB of pages that SQLite keeps, an eighth of its default: most of what is read is what was written last."""
_WAL = "-wal"
_OLDER = 3
"""Backups that are kept besides the newest."""
_APART = 3600.0
"""Seconds that are at least between two of them."""
_RETRY = 10.0


class _Unfit(Exception):
    """The file is no database that this peerd can use; the text says why."""


class Database:
    """One file.

    :ivar peewee: what models are bound to
    :ivar owner: the id of this machine, for error sentences

    :param path: made with mode 0600 if it does not exist; ``:memory:`` for a test
    :param version: the newest schema that is understood, as PRAGMA user_version (sqlite.org/pragma.html)
    :param migrate: makes that schema out of an older one, or out of nothing
    :param probe: reads in a file of some schema version what must be readable, and raises :class:`ValueError` or
        :class:`PeerdError` where a value cannot be what was stored
    :param precious: whether every commit waits for the disk, and backups are made
    """

    def __init__(
        self,
        path: str | Path,
        version: int,
        migrate: Callable[[int], None],
        probe: Callable[[sqlite3.Connection, int], None],
        precious: bool,
    ) -> None:
        self.peewee = peewee.SqliteDatabase(None)
        self.owner = "this machine"
        self._path = Path(path) if str(path) != ":memory:" else None
        self._version = version
        self._migrate = migrate
        self._probe = probe
        self._precious = precious
        self._changed = False
        self._trouble = ""
        self._served_from_memory = False
        self._file: os.stat_result | None = None
        self._tried = 0.0
        self._backed_up = 0.0

    def open(self) -> None:
        """Open the file, or what there is in its place.

        :raises PeerdError: INTERNAL when there is nothing to open
        """
        try:
            if self._path is None:
                self._connect(":memory:")
                return
            self._tried = time.monotonic()
            try:
                self._mend(self._path)
                self._connect(str(self._path))
            except (OSError, sqlite3.Error, peewee.DatabaseError) as error:
                if not _no_fault_of_the_file(error):
                    raise
                self._close()
                self._serve_from_memory(self._path)
                self._fail(error)
            else:
                self._served_from_memory = False
                self._file = self._path.stat()
                self._changed = self._precious and not self._backups[0].exists()
        except (OSError, sqlite3.Error, peewee.DatabaseError) as error:
            self._close()
            raise PeerdError(Code.INTERNAL, reason=f"cannot use the database {self._path}: {error}") from None

    @contextlib.contextmanager
    def writing(self, matters: bool = True) -> Iterator[None]:
        """A transaction: all of it is stored, or nothing.

        :param matters: whether it is worth a backup
        :raises PeerdError: NOT_STORED
        """
        outermost = self.peewee.transaction_depth() == 0
        if outermost and self._served_from_memory and time.monotonic() - self._tried >= _RETRY:
            self._try_again()
        if outermost and (lost := self._lost()):
            raise self._fail(lost)
        try:
            with self.peewee.atomic():
                yield
        except (sqlite3.Error, peewee.DatabaseError) as error:
            raise self._fail(error) from None
        if outermost and self._trouble and not self._served_from_memory:
            log(Event.STATE_WRITABLE, f"{self._path} can be written again")
            self._trouble = ""
        self._changed = self._changed or (matters and self._precious)

    def back_up(self) -> None:
        """Make a backup where there is something new: beside the file, and so that there is always a whole one."""
        old = time.monotonic() - self._backed_up >= _APART
        if self._path is None or self._served_from_memory or not (self._changed or (self._precious and old)):
            return
        if lost := self._lost():
            self._fail(lost)
            return
        new = _beside(self._path, ".backup-new")
        try:
            new.unlink(missing_ok=True)
            _secure(new)
            self.peewee.execute_sql("VACUUM INTO ?", (str(new),))
            _sync(new)
            self._rotate()
            new.replace(self._backups[0])
            _sync(new.parent)
        except (OSError, peewee.DatabaseError) as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            self._fail(error)
        else:
            self._changed, self._backed_up = False, time.monotonic()

    def close(self) -> None:
        """Back up and close; SQLite then folds its write-ahead log into the file."""
        if self._changed:
            self.back_up()
        self._close()

    # --- opening

    def _connect(self, path: str) -> None:
        synchronous = "full" if self._precious else "normal"
        pragmas = {
            "journal_mode": "wal",
            "synchronous": synchronous,
            "foreign_keys": 1,
            "busy_timeout": 5000,
            "cache_size": -_CACHE,
        }
        self.peewee.init(path, pragmas=pragmas)
        self.peewee.connect()
        # What has been damaged since the file was looked through spoils the rows that it is in, and no others.
        self.peewee.connection().text_factory = partial(str, encoding="utf-8", errors="replace")
        version = self.peewee.pragma("user_version")
        if version < self._version:
            if version and self._precious and self._path and path == str(self._path):
                self._keep_schema(self._path, version)
            with self.peewee.atomic():
                self._migrate(version)
                self.peewee.pragma("user_version", self._version)

    def _mend(self, path: Path) -> None:
        """Make sure that there is a file that can be used, which may be an empty one."""
        _secure(path)
        try:
            if path.stat().st_size:
                self._check(path)
                return
            # A log without its file is of no use to SQLite, and would spoil what takes the file's place.
            if _beside(path, _WAL).exists():
                raise _Unfit("it is empty, and its write-ahead log is not")
        except _Unfit as error:
            self._set_aside(path, str(error))
        if backup := self._usable_backup():
            new = _beside(path, ".new")
            _secure(new)
            shutil.copyfile(backup, new)
            _sync(new)
            new.replace(path)
            _sync(path.parent)
            log(Event.STATE_RESTORED, f"{path} was restored from {backup}")
        _secure(path)

    def _check(self, path: Path) -> int:
        """Look through a whole file.

        :returns: its schema version, 0 where there is nothing in it
        :raises _Unfit: when it is damaged or newer
        :raises sqlite3.Error: when it cannot be read for a reason that says nothing against it
        """
        try:
            with closing(sqlite3.connect(path)) as database:
                (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if found != "ok":
                    raise _Unfit(" ".join(found.split()))
                if version > self._version:
                    raise _Unfit(f"its schema version {version} is newer than this peerd's {self._version}")
                self._probe(database, version)
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGE:
                raise _Unfit(str(error)) from None
            raise
        except (ValueError, PeerdError) as error:
            raise _Unfit(str(error)) from None
        return int(version)

    def _try_again(self) -> None:
        """Go back from memory to the file, if it can be written again."""
        assert self._path
        self._tried = time.monotonic()
        try:
            self._mend(self._path)
        except (OSError, sqlite3.Error):
            return
        self._close()
        self.open()

    def _set_aside(self, path: Path, reason: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        names = (_beside(path, f".aside-{stamp}{f'-{number}' if number else ''}") for number in range(1000))
        aside = next(name for name in names if not name.exists())
        # SQLite finds the write-ahead log by the name of the file, for whoever wants to look into it.
        with contextlib.suppress(FileNotFoundError):
            _beside(path, _WAL).rename(_beside(aside, _WAL))
        _beside(path, "-shm").unlink(missing_ok=True)
        path.rename(aside)
        then = "its backup takes its place" if self._usable_backup() else "begun anew"
        log(Event.STATE_SET_ASIDE, f"{path} cannot be used ({reason}); set aside as {aside}, {then}")

    def _serve_from_memory(self, path: Path) -> None:
        self._connect(":memory:")
        with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as directory:
            for number, source in enumerate((path, *self._candidates())):
                copy = Path(directory) / str(number)
                try:
                    for suffix in ("", _WAL):
                        with contextlib.suppress(FileNotFoundError):
                            shutil.copyfile(_beside(source, suffix), _beside(copy, suffix))
                    if not copy.exists() or not self._check(copy):
                        continue
                except _Unfit:
                    continue
                with closing(sqlite3.connect(copy)) as database:
                    database.backup(self.peewee.connection())
                with self.peewee.atomic():
                    self._migrate(self.peewee.pragma("user_version"))
                break
        self.peewee.pragma("query_only", 1)
        self._served_from_memory = True

    def _lost(self) -> OSError | None:
        """Why what would be written would be gone with the next restart: SQLite goes on with a file that has no name.

        Only what must not be lost is worth a look at each change.
        """
        if self._path is None or self._file is None or self._served_from_memory or not self._precious:
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(self._file, self._path.stat()):
                return None
        return OSError("it was removed or replaced while in use; restart peerd")

    def _fail(self, error: Exception) -> PeerdError:
        """The error for whoever wanted to store something; recorded when it is another than the last time."""
        reason = self._trouble if self._served_from_memory and self._trouble else _why(error)
        if reason != self._trouble:
            log(Event.STATE_UNWRITABLE, f"{self._path} cannot be written: {reason}")
            self._trouble = reason
        return PeerdError(Code.NOT_STORED, peer=self.owner, reason=reason)

    def _close(self) -> None:
        if not self.peewee.is_closed():
            self.peewee.close()

    # --- backups

    @property
    def _backups(self) -> list[Path]:
        """The newest first."""
        assert self._path
        return [_beside(self._path, f".backup{f'-{number}' if number else ''}") for number in range(_OLDER + 1)]

    def _candidates(self) -> list[Path]:
        """What the file can be restored from, the best first."""
        if not self._precious:
            return []
        assert self._path
        older = (_beside(self._path, f".schema-{version}") for version in range(self._version, 0, -1))
        return [file for file in (*self._backups, *older) if file.exists()]

    def _usable_backup(self) -> Path | None:
        for backup in self._candidates():
            with contextlib.suppress(_Unfit):
                if self._check(backup):
                    return backup
        return None

    def _rotate(self) -> None:
        newest, *older = self._backups
        with contextlib.suppress(FileNotFoundError):
            # Whichever way the clock was set since.
            if older[0].exists() and abs(newest.stat().st_mtime - older[0].stat().st_mtime) < _APART:
                return
            for source, target in zip(reversed(self._backups[:-1]), reversed(older), strict=True):
                if source.exists():
                    source.replace(target)

    def _keep_schema(self, path: Path, version: int) -> None:
        """Keep the file as an older peerd can use it, for when that is installed again."""
        kept = _beside(path, f".schema-{version}")
        kept.unlink(missing_ok=True)
        _secure(kept)
        self.peewee.execute_sql("VACUUM INTO ?", (str(kept),))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _secure(path: Path) -> None:
    """Make the file if there is none, for its owner alone. A symbolic link in its place is refused."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _code(error: Exception) -> int:
    """The primary result code of SQLite behind an error; 0 where there is none."""
    code: int = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)
    return code & 0xFF


def _why(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def _no_fault_of_the_file(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_WRITE
    return _code(error) in _OF_THE_DISK
