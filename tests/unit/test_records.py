"""Records of the journal: as journalctl gives them, on the wire, and what reads them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerd import logs, records, validate
from peerd.answer import Batch, Record
from peerd.backoff import Backoff
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event
from peerd.logs import Reader
from peerd.peers import Peer
from peerd.pool import Connect, Pool
from peerd.records import Query
from unit.support import FakePeers, Journal

ENTRY: dict[str, Any] = {
    "__REALTIME_TIMESTAMP": "1790000000123456",
    "__CURSOR": "s=1f;i=2a",
    "PRIORITY": "4",
    "MESSAGE": "it ended",
    "PEERD_EVENT": "command-ended",
    "PEERD_EXIT_STATUS": "3",
    "PEERD_COMMAND": [101, 10, 255],
    "PEERD_PEER": ["laptop", "twice"],
    "_PID": "1",
}
RECORD = {
    "time": "2026-09-21T14:13:20Z",
    "priority": 4,
    "message": "it ended",
    "command": "e\n\\xff",
    "event": "command-ended",
    "exit_status": 3,
    "peer": "laptop",
}


def line(**changes: object) -> bytes:
    return json.dumps({name: value for name, value in {**ENTRY, **changes}.items() if value != ""}).encode()


def test_a_record_has_its_own_fields_by_their_short_names() -> None:
    batch = records.from_journal([line(), line(PEERD_EVENT="", __CURSOR="s=1f;i=2b")])
    (record,) = batch.records
    assert record == RECORD
    assert batch.cursor == "s=1f;i=2b"
    assert list(record)[:3] == ["time", "priority", "message"]


def test_a_field_that_the_journal_will_not_show_is_empty() -> None:
    (record,) = records.from_journal([line(PEERD_COMMAND=None)]).records
    assert record["command"] == ""


@pytest.mark.parametrize(
    "query", [Query(), Query(1.5e9, 5, True, "s=1f;i=2a"), Query(lines=0)], ids=["none", "all", "zero"]
)
def test_a_query_goes_over_the_wire(query: Query) -> None:
    assert Query.from_wire(query.to_wire()) == query


def test_how_many_are_meant() -> None:
    counts = [query.count for query in (Query(), Query(1.0), Query(1.0, 7), Query(lines=7, after="s=1f"))]
    assert counts == [records.DEFAULT_LINES, validate.MAX_LINES, 7, validate.MAX_LINES]


@pytest.mark.parametrize(
    "fields",
    [
        {"since": "-1h"},
        {"since": -1},
        {"since": True},
        {"lines": -1},
        {"lines": 10_001},
        {"follow": 1},
        {"after": "-x y"},
    ],
    ids=lambda fields: str(fields)[:20],
)
def test_a_query_out_of_bounds_is_malformed(fields: dict[str, object]) -> None:
    with pytest.raises(PeerdError) as caught:
        Query.from_wire(fields)
    assert caught.value.code is Code.BAD_MESSAGE


def test_records_from_another_machine_are_checked() -> None:
    assert records.from_wire({"records": [RECORD], "cursor": "s=1f"}) == Batch([RECORD], "s=1f")
    with pytest.raises(PeerdError, match="cursor"):
        records.from_wire({"records": [RECORD], "cursor": "--vacuum-size=1 "})
    wrong: tuple[object, ...] = (None, [1], [{}], [{**RECORD, "time": 1}], [{**RECORD, "x": []}])
    large = ({"x": "x" * 70_000}, {"x" * 65: ""}, {f"x{number}": "" for number in range(64)})
    for bad in (*wrong, *([{**RECORD, **more}] for more in large)):
        with pytest.raises(PeerdError):
            records.from_wire({"records": bad})


@pytest.fixture
def journalctl(tmp_path: Path) -> Path:
    """A program in journalctl's place: writes a record, then does what its arguments say it should."""
    program = tmp_path / "journalctl"
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys, signal\n"
        f"print({line().decode()!r}, flush=True)\n"
        "if '--follow' in sys.argv: signal.pause()\n"
        "if '--since=@7.200000' in sys.argv: sys.exit('Failed to open files')\n"
        "if '--lines=2' in sys.argv: sys.stdout.write('x' * 1000000)\n"
    )
    program.chmod(0o755)
    return program


async def collect(reader: Reader, query: Query) -> list[Record]:
    async with contextlib.aclosing(reader.read(query, ())) as batches:
        return [record async for batch in batches for record in batch.records]


def test_the_reader_reads_to_the_end(journalctl: Path) -> None:
    assert asyncio.run(collect(Reader(str(journalctl)), Query())) == [RECORD]


@pytest.mark.parametrize(
    ("query", "reason"),
    [(Query(7.2), "journalctl: Failed to open files"), (Query(lines=2), "too long")],
    ids=["failure", "endless line"],
)
def test_the_reader_says_what_went_wrong(journalctl: Path, query: Query, reason: str) -> None:
    with pytest.raises(PeerdError, match=reason) as caught:
        asyncio.run(collect(Reader(str(journalctl)), query))
    assert caught.value.code is Code.INTERNAL


def test_a_reader_that_cannot_be_started_is_an_error_and_no_lost_connection(tmp_path: Path, records: Journal) -> None:
    records.expect(Event.INTERNAL_ERROR)
    reader = Reader(str(tmp_path / "missing"))
    queries = [Query(), Query(1.0, follow=True)] * logs._MAX_READERS
    for query in queries:
        with pytest.raises(PeerdError, match="Internal error: journalctl: No such file or directory"):
            asyncio.run(collect(reader, query))
    assert len(records.of(Event.INTERNAL_ERROR)) == len(queries)


def test_the_reader_follows_until_it_is_cancelled(journalctl: Path) -> None:
    async def main() -> None:
        cancel = asyncio.Event()
        async with contextlib.aclosing(
            Reader(str(journalctl)).read(Query(follow=True), (asyncio.Event(), cancel))
        ) as batches:
            assert await anext(batches) == Batch([RECORD], "s=1f;i=2a")
            asyncio.get_running_loop().call_soon(cancel.set)
            assert [batch async for batch in batches] == []

    asyncio.run(main())


OF_A_FILE = """
import json, signal, sys
given = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:] if argument.startswith("--"))
begins = [name for name in ("since", "cursor", "after-cursor") if name in given]
if len(begins) > 1:
    sys.exit("Please specify only one of --since=, --cursor=, --cursor-file=, and --after-cursor=.")
entries = [json.loads(line) for line in open(sys.argv[0] + ".journal")]
most = None if given["lines"] == "all" else int(given["lines"])
if "since" in given:
    since = float(given["since"][1:])
    entries = [entry for entry in entries if int(entry["__REALTIME_TIMESTAMP"]) / 1e6 >= since]
elif begins:
    cursors = [entry["__CURSOR"] for entry in entries]
    entries = entries[cursors.index(given[begins[0]]) + (begins[0] == "after-cursor") :]
if "reverse" in given:
    entries.reverse()
elif most is not None and not begins:
    entries = entries[max(len(entries) - most, 0) :]
for entry in entries[:most]:
    print(json.dumps(entry), flush=True)
if "follow" in given:
    signal.pause()
"""
"""Takes a file for the journal, as the journalctl of systemd 252 would: with --since, --lines is the first so many."""


class Written:
    """A journal whose records are numbers, each as many seconds after the epoch, and a program that shows it."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "journalctl"
        self.program.write_text(f"#!{sys.executable} -IS\n{OF_A_FILE}")
        self.program.chmod(0o755)
        self.write(1, 2, 3, 4)

    def write(self, *numbers: int) -> None:
        """Append these records."""
        with open(f"{self.program}.journal", "ab") as journal:
            for number in numbers:
                changes = {"__REALTIME_TIMESTAMP": f"{number}000000", "__CURSOR": f"i={number}", "MESSAGE": f"{number}"}
                journal.write(line(**changes) + b"\n")

    def read(self, query: Query, cursor: str) -> list[int]:
        """What comes up to this cursor; all of it where nothing is followed."""

        async def read() -> list[int]:
            found: list[Record] = []
            async with contextlib.aclosing(Reader(str(self.program)).read(query, ())) as batches:
                async for batch in batches:
                    found += batch.records
                    if query.follow and batch.cursor == cursor:
                        break
            return [int(str(record["message"])) for record in found]

        return asyncio.run(asyncio.wait_for(read(), 20))


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A journal with the records 1 to 4."""
    return Written(tmp_path)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (Query(), [1, 2, 3, 4]),
        (Query(lines=2), [3, 4]),
        (Query(lines=0), []),
        (Query(2.0), [2, 3, 4]),
        (Query(2.0, 2), [3, 4]),
        (Query(2.0, 0), []),
        (Query(5.0), []),
        (Query(after="i=2"), [3, 4]),
        (Query(3.5, 1, after="i=2"), [3, 4]),
    ],
    ids=str,
)
def test_the_last_so_many_are_shown_and_then_each_that_comes_once(
    written: Written, query: Query, shown: list[int], follow: bool
) -> None:
    query = replace(query, follow=follow)
    assert written.read(query, "i=4") == shown
    if follow:
        # Now it was cut off, and the cursor is where it goes on.
        written.write(5, 6)
        assert written.read(replace(query, after="i=4"), "i=6") == [5, 6]


def test_readers_are_few_and_end_with_their_callers(journalctl: Path) -> None:
    async def main() -> None:
        reader = Reader(str(journalctl))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(logs._MAX_READERS):
                batches = reader.read(Query(follow=True), ())
                await stack.enter_async_context(contextlib.aclosing(batches))
                await anext(batches)
            with pytest.raises(PeerdError) as caught:
                await collect(reader, Query())
            assert caught.value.code is Code.BUSY
        assert await collect(reader, Query()) == [RECORD]

    asyncio.run(main())


def test_one_peer_leaves_readers_to_the_others(journalctl: Path) -> None:
    async def main() -> None:
        reader = Reader(str(journalctl))

        async def follow(stack: contextlib.AsyncExitStack, peer: str) -> None:
            batches = reader.read(Query(follow=True), (), peer)
            await stack.enter_async_context(contextlib.aclosing(batches))
            await anext(batches)

        for _ in range(2):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(logs._OF_A_PEER):
                    await follow(stack, "laptop")
                with pytest.raises(PeerdError, match="for laptop already") as caught:
                    await follow(stack, "laptop")
                assert caught.value.code is Code.BUSY
                await follow(stack, "desktop")

    asyncio.run(main())


@pytest.mark.parametrize(("room", "kept"), [(10_000, [1, 2, 3]), (3_000, [2, 3]), (10, [])])
def test_of_more_than_may_be_held_the_last_is_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, room: int, kept: list[int]
) -> None:
    monkeypatch.setattr(logs, "_MAX_HELD", room)

    class Read:
        async def read(self, query: Query, stops: object) -> AsyncIterator[Batch]:
            for number in (1, 2, 3):
                yield Batch([{"priority": number, "message": "x" * 1000}])

    async def main() -> None:
        said: list[str] = []
        part = logs.Logs(SimpleNamespace(peer_id="here"))  # type: ignore[arg-type]
        part._reader = Read()  # type: ignore[assignment]
        session: Any = SimpleNamespace(cancel=asyncio.Event(), gone=asyncio.Event(), say=said.append, after="")
        answer = await part.do_log(session)
        assert [record["priority"] for record in answer.data] == kept
        assert bool(said) is (len(kept) < 3)

    asyncio.run(main())


class FakeNode:
    """A node that knows laptop, as far as the records of peers need one.

    :ivar errors: what is raised in place of the next answers
    """

    def __init__(self, connect: Connect) -> None:
        self.pool = Pool(connect, lambda: 5.0)
        self.errors: list[PeerdError] = []
        self.refusal: PeerdError | None = None

    async def resolve(self, peer_id: str) -> Peer:
        """As :class:`peerd.node.Node` has it."""
        if self.errors:
            raise self.errors.pop(0)
        return Peer(peer_id, "127.0.0.4")

    async def departure(self, peer: Peer) -> None:
        """As :class:`peerd.node.Node` has it."""
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("query", "batches", "taken"),
    [({}, 100, 100), ({}, 101, None), ({"lines": 3}, 4, None), ({"lines": 0}, 1, None), ({"follow": True}, 150, 150)],
    ids=str,
)
def test_a_peer_does_not_tell_of_more_records_than_it_was_asked_for(
    query: dict[str, Any], batches: int, taken: int | None
) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            node: Any = FakeNode(peers.connect)
            told: list[Record] = []

            async def hear() -> None:
                async for batch in logs.Logs(node)._of_peer("laptop", Query(**query), (), print):
                    told.extend(batch.records)

            hearing = asyncio.create_task(hear())
            wire = await peers.links.get()
            await wire.expect("getLog")
            for _ in range(batches):
                wire.link.post("records", {"records": [RECORD]})
            wire.link.post("reply")
            if taken is None:
                with pytest.raises(PeerdError, match="Malformed message: more than"):
                    await hearing
            else:
                await hearing
                assert len(told) == taken
            node.pool.drop()

    asyncio.run(main())


def test_who_follows_a_peers_records_goes_on_where_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "SHORTEST", 0.0)

    async def main() -> None:
        async with FakePeers().serving() as peers:
            node: Any = FakeNode(peers.connect)
            said: asyncio.Queue[str] = asyncio.Queue()
            stop = asyncio.Event()
            query = Query(lines=3, follow=True)
            batches = logs.Logs(node)._of_peer("laptop", query, (stop,), said.put_nowait)
            asked = query.to_wire()
            for number in range(3):
                batch = asyncio.create_task(anext(batches))
                wire = await peers.links.get()
                assert (await wire.expect("getLog")).fields == asked
                cursor = f"s=1f;i={number}"
                wire.link.post("records", {"records": [RECORD], "cursor": cursor})
                assert await batch == Batch([RECORD], cursor)
                asked = {**asked, "after": cursor}
                if number == 1:
                    # One that was killed ends inside a frame.
                    wire.link.post_encoded(b'{"type":"records","rec')
                    wire.link.close()
                else:
                    wire.reset()
            assert said.empty()
            # Now it stays away, and its caller has enough at last.
            node.pool = Pool(refuse, lambda: 5.0)
            batch = asyncio.create_task(anext(batches))
            assert await said.get() == "Connection to laptop lost, waiting for it"
            stop.set()
            with pytest.raises(StopAsyncIteration):
                await batch

    asyncio.run(main())


@pytest.mark.parametrize("code", [Code.NOT_CONNECTED, Code.BUSY, Code.PEER_NOT_FOUND])
@pytest.mark.parametrize("begun", [True, False])
def test_who_was_cut_off_waits_for_what_comes_back_and_for_nobody_else(
    code: Code, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "SHORTEST", 0.0)

    async def main() -> None:
        async with FakePeers().serving() as peers:
            node: Any = FakeNode(peers.connect)
            node.errors += [PeerdError(code, peer="laptop", reason="")] * 2
            query = Query(follow=True, after="s=1f" if begun else "")
            batches = logs.Logs(node)._of_peer("laptop", query, (), print)
            batch = asyncio.create_task(anext(batches))
            if not begun or code is Code.PEER_NOT_FOUND:
                with pytest.raises(PeerdError) as caught:
                    await batch
                assert (caught.value.code, len(node.errors)) == (code, 1)
                return
            for answer in ({"code": "busy", "message": "of one's own"}, None):
                wire = await peers.links.get()
                await wire.expect("getLog")
                wire.link.post("error" if answer else "records", answer or {"records": [], "cursor": "s=2"})
            assert await batch == Batch([], "s=2")
            await batches.aclose()

    asyncio.run(main())


async def refuse(address: str) -> Connection:
    raise ConnectionRefusedError


@pytest.mark.parametrize("told", [{}, {"records": [RECORD]}], ids=["nothing", "an old peer"])
def test_records_without_a_place_to_go_on_from_end_with_their_peer(told: dict[str, Any]) -> None:
    async def main() -> None:
        async with FakePeers().serving() as peers:
            node: Any = FakeNode(peers.connect)
            batches = logs.Logs(node)._of_peer("laptop", Query(follow=True), (), print)
            batch = asyncio.create_task(anext(batches))
            wire = await peers.links.get()
            if told:
                wire.link.post("records", told)
                await batch
                batch = asyncio.create_task(anext(batches))
            wire.reset()
            with pytest.raises(PeerdError) as caught:
                await batch
            assert caught.value.code is Code.CONNECT_FAILED

    asyncio.run(main())


def test_who_was_put_out_waits_for_nobody() -> None:
    async def main() -> None:
        node: Any = FakeNode(refuse)
        node.refusal = PeerdError(Code.REJECTED, peer="here", address="10.0.0.4")
        with pytest.raises(PeerdError) as caught:
            await anext(logs.Logs(node)._of_peer("laptop", Query(follow=True, after="s=1f"), (), print))
        assert caught.value is node.refusal

    asyncio.run(main())
