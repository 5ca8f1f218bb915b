"""Where directories really are. To find out may take for ever, so it has threads of its own, and each peer a share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection
from queue import SimpleQueue
from weakref import WeakValueDictionary

_LIMIT = 5.0
"""Seconds to find directories; one on a dead file system may take for ever."""
_MOST = 256
_SHARE = 8
"""Threads at once, and those for one peer. One that waits for a dead file system stays until that answers."""


class Directories:
    """Finds directories for peers."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_MOST)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = 0

    async def find(self, peer: str, paths: Collection[str]) -> dict[str, str]:
        """Where these directories are; those of which that cannot be said are not in it.

        :raises TimeoutError: when it takes too long, or this peer has asked for too many that do
        """
        loop = asyncio.get_running_loop()
        share = self._shares.setdefault(peer, asyncio.Semaphore(_SHARE))
        found: asyncio.Future[dict[str, str]] = loop.create_future()

        def work() -> None:
            places = {path: place for path in paths if (place := locate(path)) is not None}
            # The daemon may have stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(found.set_result, places)

        def release(_: object) -> None:
            self._idle += 1
            share.release()
            self._room.release()

        async with asyncio.timeout(_LIMIT):
            async with contextlib.AsyncExitStack() as held:
                for bound in (share, self._room):
                    await held.enter_async_context(bound)
                self._have_a_thread()
                self._work.put(work)
                found.add_done_callback(release)
                held.pop_all()
            return await asyncio.shield(found)

    def _have_a_thread(self) -> None:
        if self._idle:
            self._idle -= 1
        else:
            # Unlike those of asyncio.to_thread it does not keep a daemon from stopping.
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._work.get()()


def locate(path: str) -> str | None:
    """Where a directory is, its symbolic links followed by the kernel, which has a bound for them; None if not known.

    What is not there or cannot be looked at is what it is called, in the directory where it should be.
    """
    if place := _place(path):
        return place
    names = path.split("/")
    # To try one after another would have the kernel follow the same links again for each.
    known = bisect_left(range(1, len(names)), True, key=lambda n: _place("/".join(names[:n]) or "/") is None)
    place = _place("/".join(names[:known]) or "/")
    if place is None or os.path.islink(f"{place}/{names[known]}"):
        return None
    return os.path.normpath("/".join([place.rstrip("/"), *names[known:]]))


def _place(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None


directories = Directories()
"""Those of this process."""
