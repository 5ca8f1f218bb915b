"""The output of detached commands, on disk: two files a command, within a quota each and one for all of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from peerd.config import Config
from peerd.journal import Event, log
from peerd.messages import STREAMS
from peerd.spool import Spool
from peerd.streams import OutputStream

_MOST = 10_000
"""Commands whose output is kept, however little it is."""
_STEP = 1024 * 1024
"""Bytes for which room is made at once."""


class Storage:
    """The files of a directory, which is made with mode 0700 if it does not exist.

    Where it cannot be made or read that is recorded. It is made with the next command; what could not be read is left
    alone until peerd starts anew.

    :param config: gives the settings in force
    """

    def __init__(self, directory: Path, config: Callable[[], Config]) -> None:
        self._directory = directory
        self._config = config
        self._live: dict[str, Mapping[str, Spool]] = {}
        self._ended: dict[str, int] = {}
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            # The oldest first, which go first.
            for file in sorted(directory.iterdir(), key=lambda file: file.stat().st_mtime):
                self._ended[file.stem] = self._ended.get(file.stem, 0) + file.stat().st_size
        except OSError as error:
            log(Event.STATE_UNWRITABLE, f"The directory {directory} cannot be used: {error}")

    @property
    def used(self) -> int:
        """Bytes of all of it."""
        live = sum(spool.size for spools in self._live.values() for spool in spools.values())
        return live + sum(self._ended.values())

    def create(self, exec_id: str) -> Mapping[str, Spool]:
        """The files for a new command.

        :raises OSError: when they cannot be made
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            spools = {}
            for stream in STREAMS:
                spools[stream] = Spool.on_disk(self._file(exec_id, stream), create=True)
                stack.callback(spools[stream].close)
                stack.callback(self._file(exec_id, stream).unlink)
            stack.pop_all()
        self._live[exec_id] = spools
        return spools

    def open(self, exec_id: str, live: bool = False) -> Mapping[str, Spool] | None:
        """The files of a command, the caller's to close; None where they are gone.

        :param live: whether the command still writes
        """
        spools: dict[str, Spool] = {}
        try:
            for stream in STREAMS:
                spools[stream] = Spool.on_disk(self._file(exec_id, stream))
        except OSError:
            for spool in spools.values():
                spool.close()
            return None
        if live:
            self._live[exec_id] = spools
            self._ended.pop(exec_id, None)
        return spools

    def has(self, exec_id: str) -> bool:
        """Whether there are files of a command."""
        return exec_id in self._live or exec_id in self._ended

    def settle(self, exec_id: str) -> None:
        """The command has ended: its files stay until :meth:`expire` or lack of room takes them."""
        spools = self._live.pop(exec_id, None)
        if spools is not None:
            for stream in STREAMS:
                # The last that it wrote may be long ago.
                with contextlib.suppress(OSError):
                    os.utime(self._file(exec_id, stream))
            self._ended[exec_id] = sum(spool.size for spool in spools.values())
            if len(self._ended) > _MOST:
                self.remove(next(iter(self._ended)))

    def remove(self, exec_id: str) -> None:
        """Delete the files of a command."""
        self._live.pop(exec_id, None)
        self._ended.pop(exec_id, None)
        for stream in STREAMS:
            with contextlib.suppress(OSError):
                self._file(exec_id, stream).unlink()

    def expire(self, running: Collection[str]) -> None:
        """Delete the files of commands that ended longer ago than job-retention, and those that are nobody's."""
        limit = time.time() - self._config().job_retention
        for exec_id in list(self._ended):
            if exec_id in running:
                continue
            try:
                old = self._file(exec_id, STREAMS[0]).stat().st_mtime < limit
            except OSError:
                old = True
            if not old:
                # Those behind it ended later.
                break
            self.remove(exec_id)

    def room(self, wanted: int) -> int:
        """How many of these bytes there is room for; the output of commands that ended gives way, the oldest first."""
        limit = self._config().total_output_limit
        while (left := limit - self.used) < wanted and self._ended:
            self.remove(next(iter(self._ended)))
        return min(left, wanted)

    def _file(self, exec_id: str, stream: str) -> Path:
        return self._directory / f"{exec_id}.{stream}"


class Quota:
    """Room for a detached command: what it writes beyond its quota is dropped, and it never waits."""

    waits = False

    def __init__(self, storage: Storage, spools: Mapping[str, Spool], limit: int) -> None:
        self._storage = storage
        self._spools = spools
        self._limit = limit

    def left(self, stream: OutputStream) -> int:
        """As :class:`peerd.streams.Room` has it."""
        left = self._limit - sum(spool.size for spool in self._spools.values())
        return self._storage.room(min(left, _STEP)) if left > 0 else left
