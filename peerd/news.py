"""What a leader tells its workers of the registry: all of it to who comes, and to everybody what has changed.

What one worker costs must not grow with how many there are. So changes are gathered where there are many workers, are
encoded once for all of them, and who comes back with the right copy is told only who is online.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from peerd import protocol
from peerd.connection import Connection
from peerd.errors import PeerdError
from peerd.peers import Peer, PeerBook

T = TypeVar("T")
PER_FRAME = 100
"""Peers in one frame."""
_IDS_PER_FRAME = 5000
"""Ids in one presence: with the longest, a frame's header has room for three times as many."""
_MAX_BACKLOG = 4 * 1024 * 1024
"""Bytes that wait to be taken by a worker, beyond which its connection is ended."""
_PER_WORKER = 0.0002
"""Seconds between two news, for each worker that is told: with few, all are told at once."""


@dataclass(frozen=True)
class _Whole:
    """All peers, encoded for everybody who comes before the next news.

    :ivar changes: how many changes there had been
    :ivar count: how many peers these are
    """

    changes: int
    count: int
    frames: bytes


class News:
    """The links of the workers, and what is to be said on them.

    :param book: gives all peers
    """

    def __init__(self, book: Callable[[], PeerBook]) -> None:
        self._book = book
        self._links: dict[str, Connection] = {}
        self._with_copy: set[str] = set()
        self._new: dict[str, int] = {}
        self._changes = 0
        self._changed: set[str] = set()
        self._came_or_went: set[str] = set()
        self._whole: _Whole | None = None
        self._told = 0.0
        self._due: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._links)

    def link(self, peer_id: str) -> Connection | None:
        """The link of a worker that is connected."""
        return self._links.get(peer_id)

    def join(self, peer_id: str, link: Connection, digest: str | None) -> None:
        """A worker has registered: tell it all, and from now on what changes.

        :param digest: that of the copy which it has; None for an older worker, which keeps none
        """
        link.post("registered", {"peer_id": peer_id})
        if digest is not None:
            self._with_copy.add(peer_id)
        if digest == self._book().digest:
            self._new[peer_id] = self._changes
            link.post("reply", {**self._beginning(len(self._book())), "same": True})
        else:
            if self._whole is None:
                book = self._book()
                self._whole = _Whole(self._changes, len(book), _peers(book.all()))
            link.post("reply", self._beginning(self._whole.count))
            link.post_encoded(self._whole.frames)
            self._new[peer_id] = self._whole.changes
        self._links[peer_id] = link
        self._tell_soon()

    def leave(self, peer_id: str) -> Connection | None:
        """Tell a worker no more; its link, if it has one."""
        self._with_copy.discard(peer_id)
        return self._links.pop(peer_id, None)

    def tell_all(self, link: Connection) -> None:
        """Send every peer over a link as it is now: how many there are, then their entries."""
        link.post("reply", self._beginning(len(self._book())))
        link.post_encoded(_peers(self._book().all()))

    def changed(self, peer_id: str) -> None:
        """A peer is new, or another than it was."""
        self._changed.add(peer_id)
        self._changes += 1
        self._tell_soon()

    def came_or_went(self, peer_id: str) -> None:
        """A peer is online now, or is not any more."""
        self._came_or_went.add(peer_id)
        self._changes += 1
        self._tell_soon()

    def removed(self, peer_id: str) -> None:
        """A peer is gone."""
        self._whole = None
        frame = protocol.encode("peerRemoved", {"peer_id": peer_id})
        for link in list(self._links.values()):
            self._post(link, frame)

    def close(self, peer_id: str, error: PeerdError) -> None:
        """End the link of a worker, if it has one, and tell it why."""
        if link := self.leave(peer_id):
            link.post("error", error.to_wire())
            link.close()

    def close_all(self) -> None:
        """End all links."""
        if self._due:
            self._due.cancel()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _beginning(self, count: int) -> dict[str, object]:
        return {"count": count, "claims": [claim.to_wire() for claim in self._book().claims]}

    def _tell_soon(self) -> None:
        if self._due is None and self._links:
            loop = asyncio.get_running_loop()
            pause = self._told + len(self._links) * _PER_WORKER - loop.time()
            self._due = loop.call_later(max(0.0, pause), self._tell)

    def _tell(self) -> None:
        self._due, self._told = None, asyncio.get_running_loop().time()
        self._whole = None
        new, self._new = self._new, {}
        changed, self._changed = self._known(self._changed), set()
        moved, self._came_or_went = self._known(self._came_or_went - {peer.peer_id for peer in changed}), set()
        everybody = _presence(self._book(), True) if new else b""
        entries = _peers(changed)
        for_copies, for_others = entries + _presence(moved, False), entries + _peers(moved)
        for peer_id, link in list(self._links.items()):
            has_copy = peer_id in self._with_copy
            # Who came after the last change has heard of it already.
            frames = b"" if new.get(peer_id) == self._changes else for_copies if has_copy else for_others
            self._post(link, frames + everybody if has_copy and peer_id in new else frames)

    def _known(self, peer_ids: Iterable[str]) -> list[Peer]:
        book = self._book()
        return [peer for peer_id in sorted(peer_ids) if (peer := book.by_id(peer_id))]

    @staticmethod
    def _post(link: Connection, frames: bytes) -> None:
        # Who does not read is dropped: when it comes back it gets what it has missed.
        if link.backlog > _MAX_BACKLOG:
            link.abort()
        elif frames:
            link.post_encoded(frames)


def _peers(peers: Sequence[Peer]) -> bytes:
    return b"".join(
        protocol.encode("peers", {"peers": [peer.to_wire() for peer in chunk]}) for chunk in _chunks(peers, PER_FRAME)
    )


def _presence(peers: Iterable[Peer], everybody: bool) -> bytes:
    """Who is online and who is not.

    :param everybody: whether these are all, so that whoever is not named as online is not
    """
    listed = list(peers)
    online = [peer.peer_id for peer in listed if peer.is_online]
    offline = [peer.peer_id for peer in listed if not peer.is_online]
    told: list[dict[str, object]] = [{"online": chunk} for chunk in _chunks(online, _IDS_PER_FRAME)]
    if everybody:
        first, *later = told or [{}]
        told = [{"all": True, **first}, *later]
    else:
        told += [{"offline": chunk} for chunk in _chunks(offline, _IDS_PER_FRAME)]
    return b"".join(protocol.encode("presence", fields) for fields in told)


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
