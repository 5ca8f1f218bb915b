"""What workers hear of the registry, and how often it is encoded for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd import news as news_module
from peerd import protocol
from peerd.bookreader import receive_book
from peerd.connection import Connection
from peerd.news import News
from peerd.peers import Peer, PeerBook, State
from peerd.protocol import Frame
from unit.support import linked

PEERS = [Peer(f"p{number}", f"10.0.0.{number}", first_seen=0.1 + number) for number in range(1, 6)]
peers = st.builds(
    Peer,
    peer_id=st.sampled_from(["a", "b", "c", "d"]),
    ip_address=st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    hostname=st.text(max_size=3),
    first_seen=st.floats(0, 2**39),
    last_seen=st.floats(0, 2**39),
    is_online=st.booleans(),
    state=st.sampled_from(State),
)


@given(st.lists(st.tuples(st.booleans(), peers)))
def test_the_digest_is_that_of_what_is_in_the_book_and_not_of_how_it_came_there(
    changes: list[tuple[bool, Peer]],
) -> None:
    book = PeerBook()
    for put, peer in changes:
        if put:
            book.put(peer)
        else:
            book.remove(peer.peer_id)
        book.see(peer.peer_id, 1.0, online=not peer.is_online)
    over_the_wire = [Peer.from_wire(peer.to_wire()) for peer in reversed(book.all())]
    assert PeerBook(over_the_wire).digest == book.digest
    for peer in over_the_wire:
        assert PeerBook([*over_the_wire, replace(peer, hostname="another")]).digest != book.digest


@asynccontextmanager
async def told(book: PeerBook, digest: str | None, count: int = 1) -> AsyncIterator[tuple[News, list[Connection]]]:
    """News for workers that have joined and read what they were told then."""
    async with AsyncExitStack() as stack:
        news, workers = News(lambda: book), []
        for number in range(1, count + 1):
            worker, leader = await stack.enter_async_context(linked())
            news.join(f"p{number}", leader, digest)
            await worker.expect("registered")
            workers.append(worker)
        try:
            yield news, workers
        finally:
            news.close_all()


async def next_of(worker: Connection) -> Frame:
    frame = await worker.receive()
    assert frame is not None
    return frame


def test_who_has_the_right_copy_is_told_only_who_is_online() -> None:
    async def main() -> None:
        book = PeerBook([*PEERS[:2], replace(PEERS[2], is_online=True)])
        async with told(book, book.digest) as (_, [worker]):
            copy = PeerBook(replace(peer, last_seen=9.0, is_online=True) for peer in PEERS[:3])
            assert await receive_book(worker, copy) is copy
            assert (await next_of(worker)).fields == {"all": True, "online": ["p3"]}

    asyncio.run(main())


@pytest.mark.parametrize("digest", ["", "0" * 16])
def test_who_has_another_copy_is_told_all(digest: str) -> None:
    async def main() -> None:
        book = PeerBook([PEERS[0], replace(PEERS[1], is_online=True)])
        async with told(book, digest) as (_, [worker]):
            received = await receive_book(worker, PeerBook(PEERS))
            assert [peer.peer_id for peer in received] == ["p1", "p2"]
            assert received.digest == book.digest
            assert (await next_of(worker)).fields == {"all": True, "online": ["p2"]}

    asyncio.run(main())


def test_an_older_worker_is_told_of_whole_peers() -> None:
    async def main() -> None:
        book = PeerBook(PEERS[:2])
        async with told(book, None) as (news, [worker]):
            assert (await receive_book(worker)).all() == book.all()
            book.see("p2", 5.0)
            news.came_or_went("p2")
            frame = await worker.expect("peers")
            assert frame.fields == {"peers": [replace(PEERS[1], is_online=True, last_seen=5.0).to_wire()]}

    asyncio.run(main())


def test_many_changes_at_once_are_told_in_one_frame() -> None:
    async def main() -> None:
        book = PeerBook(PEERS)
        async with told(book, book.digest) as (news, [worker]):
            await receive_book(worker, book)
            await worker.expect("presence")
            for peer in PEERS[:4]:
                book.see(peer.peer_id)
                news.came_or_went(peer.peer_id)
            book.put(replace(PEERS[4], hostname="new", is_online=True))
            news.changed("p5")
            book.see("p1", online=False)
            news.came_or_went("p1")
            changed = await worker.expect("peers")
            assert changed.fields == {"peers": [replace(PEERS[4], hostname="new", is_online=True).to_wire()]}
            assert (await next_of(worker)).fields == {"online": ["p2", "p3", "p4"]}
            assert (await next_of(worker)).fields == {"offline": ["p1"]}

    asyncio.run(main())


def test_a_peer_that_goes_before_it_was_told_of_is_not() -> None:
    async def main() -> None:
        book = PeerBook(PEERS[:1])
        async with told(book, book.digest) as (news, [worker]):
            await receive_book(worker, book)
            await worker.expect("presence")
            book.put(PEERS[1])
            news.changed("p2")
            book.remove("p2")
            news.removed("p2")
            assert (await next_of(worker)).type == "peerRemoved"
            news.changed("p1")
            assert (await next_of(worker)).fields == {"peers": [PEERS[0].to_wire()]}

    asyncio.run(main())


def test_what_is_told_to_many_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = protocol.encode

    def counted(type_: str, fields: dict[str, object]) -> bytes:
        encoded.append(type_)
        return encode(type_, fields)

    async def main() -> None:
        book = PeerBook(PEERS)
        async with told(book, "", 5) as (news, workers):
            for worker in workers:
                await receive_book(worker, PeerBook())
                await worker.expect("presence")
            monkeypatch.setattr(protocol, "encode", counted)
            book.put(replace(PEERS[0], hostname="new"))
            news.changed("p1")
            for worker in workers:
                await worker.expect("peers")
            assert encoded == ["peers"]

    asyncio.run(main())


def test_with_many_workers_changes_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "_PER_WORKER", 60.0)

    async def main() -> None:
        book = PeerBook(PEERS)
        async with told(book, book.digest) as (news, [worker]):
            await receive_book(worker, book)
            await worker.expect("presence")
            news.changed("p1")
            news.changed("p2")
            await asyncio.sleep(0.05)
            news.removed("p5")
            # That is told at once; the rest would come in a minute.
            assert (await next_of(worker)).type == "peerRemoved"

    asyncio.run(main())


def test_more_than_fit_one_frame_are_told_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "_IDS_PER_FRAME", 2)

    async def main() -> None:
        book = PeerBook(replace(peer, is_online=True) for peer in PEERS)
        async with told(book, book.digest) as (_, [worker]):
            await receive_book(worker, book)
            assert [(await next_of(worker)).fields for _ in range(3)] == [
                {"all": True, "online": ["p1", "p2"]},
                {"online": ["p3", "p4"]},
                {"online": ["p5"]},
            ]

    asyncio.run(main())
