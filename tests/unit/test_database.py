"""Whatever happened to the files of the state: peerd starts, nothing is thrown away, and nothing good is set aside."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peerd import database, history
from peerd.app import App
from peerd.errors import Code, PeerdError
from peerd.history import History
from peerd.job import Job
from peerd.journal import Event
from peerd.messages import ExecRequest
from peerd.peers import Peer, State
from peerd.registry import SCHEMA_VERSION, Identity, Registry
from unit.support import Journal, full

LAPTOP = Peer("laptop", "10.0.0.4", first_seen=1.0, last_seen=2.0)
DESKTOP = Peer("desktop", "10.0.0.2", first_seen=1.0, last_seen=2.0)
NAS = Peer("nas", "10.0.0.9", first_seen=1.0, last_seen=2.0, state=State.PENDING)
CAD = App("cad", "prod", "cad-prod.service", "/opt/cad")
LEADER = Identity("leader", "vps", "")
WORKER = Identity("worker", "laptop", "10.0.0.1")


class Clock:
    """Takes the place of the module time."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def monotonic(self) -> float:
        return self.now

    @staticmethod
    def gmtime() -> int:
        return 0

    @staticmethod
    def strftime(form: str, moment: int) -> str:
        assert form.endswith("Z")
        return "then"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until it is told to move."""
    clock = Clock()
    monkeypatch.setattr(database, "time", clock)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a leader, a peer, a claim and an app in it, and its backup."""
    with opened(tmp_path / "peerd.db") as registry:
        registry.set_identity(LEADER)
        registry.store([LAPTOP])
        registry.store_claim(NAS)
        registry.store_apps([CAD])
    return tmp_path / "peerd.db"


@contextmanager
def opened(path: Path) -> Iterator[Registry]:
    registry = Registry(path)
    try:
        yield registry
    finally:
        registry.close()


def beside(path: Path) -> set[str]:
    return {file.name.removeprefix(path.name) for file in path.parent.iterdir()}


def lines(records: Journal, event: Event) -> list[str]:
    return [record.message for record in records.of(event)]


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one " * 100)


def torn(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8192))


def short(path: Path) -> None:
    os.truncate(path, 5000)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        other.execute("CREATE TABLE future (x)")
        other.commit()


def edited(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Damage that leaves a database whose pages are in order."""

    def harm(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        assert len(old) == len(new)
        path.write_bytes(content.replace(old, new))

    return harm


EDITS = {
    "no schema": edited(b"CREATE TABLE", b"CREATE TABL\xff"),
    "no column": edited(b'"ip_address"', b'"ip_addresz"'),
    "no setting": edited(b"leader_address", b"leader_addresz"),
    "no role": edited(b"roleleader", b"roleloader"),
    "no own id": edited(b"peer_idvps", b"peer_idv/s"),
    "no text": edited(b"10.0.0.4", b"10.0.\xff.4"),
    "no address": edited(b"10.0.0.4", b"10.0.0.x"),
    "no state": edited(b"pending", b"pensive"),
    "no unit": edited(b"prod.service", b"prod.servant"),
}


@pytest.mark.parametrize(
    "harm", [garbage, torn, short, newer, *EDITS.values()], ids=["garbage", "torn", "short", "newer", *EDITS]
)
def test_one_that_cannot_be_used_is_set_aside_and_restored(
    path: Path, harm: Callable[[Path], None], records: Journal
) -> None:
    harm(path)
    before = path.read_bytes()
    with opened(path) as registry:
        assert registry.identity() == LEADER
        assert (registry.peers(), registry.claims(), registry.apps()) == ([LAPTOP], [NAS], [CAD])
        registry.store([DESKTOP])
    assert path.with_name("peerd.db.aside-then").read_bytes() == before
    (aside,) = lines(records, Event.STATE_SET_ASIDE)
    assert aside.startswith(f"{path} cannot be used (")
    assert aside.endswith("aside-then, its backup takes its place")
    assert ("newer" in aside) == (harm is newer)
    assert lines(records, Event.STATE_RESTORED) == [f"{path} was restored from {path}.backup"]
    with opened(path) as registry:
        assert registry.peers() == [LAPTOP, DESKTOP]
    assert len(records.of(Event.STATE_SET_ASIDE)) == 1


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["missing", "empty"])
def test_one_that_is_gone_is_restored(path: Path, harm: Callable[[Path], None], records: Journal) -> None:
    harm(path)
    with opened(path) as registry:
        assert (registry.identity(), registry.peers()) == (LEADER, [LAPTOP])
    assert len(records.of(Event.STATE_RESTORED)) == 1
    assert not records.of(Event.STATE_SET_ASIDE)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["missing", "empty"])
def test_a_log_that_was_left_alone_does_not_spoil_what_is_restored(path: Path, harm: Callable[[Path], None]) -> None:
    wal = path.with_name("peerd.db-wal")
    with opened(path) as registry:
        registry.store([DESKTOP])
        left = wal.read_bytes()
    harm(path)
    wal.write_bytes(left)
    with opened(path) as registry:
        assert registry.peers() == [LAPTOP, DESKTOP]
    assert path.with_name("peerd.db.aside-then-wal").read_bytes() == left
    with closing(sqlite3.connect(path)) as restored:
        assert restored.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_none_of_those_set_aside_is_overwritten(path: Path) -> None:
    for _ in range(3):
        garbage(path)
        with opened(path):
            pass
    assert {".aside-then", ".aside-then-1", ".aside-then-2"} <= beside(path)


@pytest.mark.parametrize(
    "spoil",
    [garbage, newer, EDITS["no text"], lambda backup: os.truncate(backup, 0)],
    ids=["bad", "newer", "no text", "empty"],
)
def test_a_backup_that_cannot_be_used_is_passed_over(path: Path, spoil: Callable[[Path], None]) -> None:
    backup = path.with_name("peerd.db.backup")
    os.utime(backup, (1, 1))
    with opened(path) as registry:
        registry.store([DESKTOP])
    assert {".backup", ".backup-1"} <= beside(path)
    garbage(path)
    spoil(backup)
    with opened(path) as registry:
        assert (registry.identity(), registry.peers()) == (LEADER, [LAPTOP])


def test_without_a_backup_it_begins_anew(path: Path, records: Journal) -> None:
    for backup in path.parent.glob("*.backup*"):
        backup.unlink()
    garbage(path)
    with opened(path) as registry:
        assert registry.identity() == Identity("", "", "")
    assert lines(records, Event.STATE_SET_ASIDE)[0].endswith(", begun anew")


def test_backups_are_few_and_apart(path: Path, clock: Clock) -> None:
    for number in range(20):
        with opened(path) as registry:
            registry.store([replace(LAPTOP, hostname=f"host-{number}")])
        if number % 2:
            os.utime(path.with_name("peerd.db.backup"), (number * 10_000, number * 10_000))
    names = beside(path)
    assert names == {"", ".backup", ".backup-1", ".backup-2", ".backup-3"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_only_what_matters_is_backed_up_at_once(path: Path, clock: Clock) -> None:
    backup = path.with_name("peerd.db.backup")
    with opened(path) as registry:
        registry.store_seen([replace(LAPTOP, last_seen=3.0)])
        clock.now += 4000.0
        registry.back_up()
        before = backup.stat().st_ino
        registry.store_seen([replace(LAPTOP, last_seen=4.0)])
        registry.back_up()
        assert backup.stat().st_ino == before
        registry.store([DESKTOP])
        registry.back_up()
        assert backup.stat().st_ino != before


def test_a_role_is_in_the_backup_as_soon_as_it_is_set(path: Path) -> None:
    with opened(path) as registry:
        registry.set_identity(WORKER)
        with closing(sqlite3.connect(path.with_name("peerd.db.backup"))) as backup:
            stored = dict(backup.execute("SELECT name, value FROM setting"))
    assert Identity(**stored) == WORKER


def test_what_an_older_peerd_can_use_is_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "peerd.db"
    with opened(path) as registry:
        registry.set_identity(WORKER)
    with closing(sqlite3.connect(path)) as older:
        older.execute("DROP TABLE peer_claim")
        older.execute("PRAGMA user_version = 1")
    for backup in tmp_path.glob("*.backup*"):
        backup.unlink()
    with opened(path) as registry:
        assert registry.identity() == WORKER
    monkeypatch.setattr("peerd.registry.SCHEMA_VERSION", 1)
    with opened(path) as registry:
        assert registry.identity() == WORKER
    assert {".schema-1", ".aside-then"} <= beside(path)


def refusal(change: Callable[[], object]) -> str:
    """The sentence with which a change is refused."""
    with pytest.raises(PeerdError) as caught:
        change()
    assert caught.value.code is Code.NOT_STORED
    return caught.value.sentence


def test_what_cannot_be_stored_is_refused_and_changes_nothing(path: Path, records: Journal) -> None:
    with opened(path) as registry:
        with full():
            for _ in range(3):
                assert refusal(lambda: registry.store([DESKTOP])).startswith("The state of vps cannot be stored: ")
            assert refusal(lambda: registry.set_identity(WORKER))
            assert refusal(lambda: registry.store_seen([replace(LAPTOP, last_seen=9.0)]))
            registry.back_up()
        assert (registry.identity(), registry.peers()) == (LEADER, [LAPTOP])
        assert len(records.of(Event.STATE_UNWRITABLE)) == 1
        registry.store([DESKTOP])
        assert registry.peers() == [LAPTOP, DESKTOP]
        assert lines(records, Event.STATE_WRITABLE) == [f"{path} can be written again"]
    assert not any("aside" in name for name in beside(path))


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_what_would_go_to_a_file_without_a_name_is_refused(
    path: Path, tmp_path: Path, records: Journal, replaced: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    with opened(path) as registry:
        registry.set_identity(WORKER)
        path.rename(elsewhere)
        if replaced:
            path.write_bytes(elsewhere.read_bytes())
        assert "removed or replaced" in refusal(lambda: registry.set_identity(LEADER))
        assert registry.identity() == WORKER
        registry.back_up()
        assert len(lines(records, Event.STATE_UNWRITABLE)) == 1
        elsewhere.rename(path)
        registry.set_identity(LEADER)
        assert len(lines(records, Event.STATE_WRITABLE)) == 1
    with opened(path) as registry:
        assert registry.identity() == LEADER


def test_a_change_of_many_parts_is_whole_or_not_there(path: Path) -> None:
    with opened(path) as registry:

        def change() -> None:
            with registry.changing():
                registry.forget(["laptop"])
                registry.store([DESKTOP])

        with full():
            refusal(change)
        assert registry.peers() == [LAPTOP]


def unwritable(monkeypatch: pytest.MonkeyPatch, number: int) -> list[bool]:
    """Let no database file be opened for writing while the list has a True in it."""
    state, secure = [True], database._secure

    def refused(path: Path) -> None:
        if state[0]:
            raise OSError(number, os.strerror(number), str(path))
        secure(path)

    monkeypatch.setattr(database, "_secure", refused)
    return state


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EPERM], ids=os.strerror)
def test_where_nothing_can_be_written_it_starts_with_what_there_is(
    path: Path, number: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, records: Journal
) -> None:
    before = path.read_bytes()
    state = unwritable(monkeypatch, number)
    with opened(path) as registry:
        assert (registry.identity(), registry.peers()) == (LEADER, [LAPTOP])
        for _ in range(3):
            clock.now += 60.0
            said = refusal(lambda: registry.store([DESKTOP]))
            assert said == f"The state of vps cannot be stored: {os.strerror(number)}"
            assert refusal(lambda: registry.store_seen([replace(LAPTOP, last_seen=9.0)])) == said
        assert registry.peers() == [LAPTOP]
        assert len(records.of(Event.STATE_UNWRITABLE)) == 1
        assert path.read_bytes() == before
        state[0] = False
        refusal(lambda: registry.store([DESKTOP]))
        clock.now += 60.0
        registry.store([DESKTOP])
        assert len(records.of(Event.STATE_WRITABLE)) == 1
    with opened(path) as registry:
        assert registry.peers() == [LAPTOP, DESKTOP]
    assert not any("aside" in name for name in beside(path))


def test_what_was_only_in_the_log_is_served_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as registry:
        registry.store([DESKTOP])
        unwritable(monkeypatch, errno.EROFS)
        with opened(path) as other:
            assert other.peers() == [LAPTOP, DESKTOP]


@pytest.mark.parametrize("harm", [garbage, EDITS["no address"], Path.unlink], ids=["garbage", "no address", "missing"])
def test_where_nothing_can_be_written_a_backup_is_served(
    path: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(path)
    unwritable(monkeypatch, errno.EROFS)
    with opened(path) as registry:
        assert (registry.identity(), registry.peers()) == (LEADER, [LAPTOP])


def test_a_new_machine_whose_disk_is_full_starts_without_a_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable(monkeypatch, errno.ENOSPC)
    with opened(tmp_path / "peerd.db") as registry:
        assert (registry.identity(), registry.peers()) == (Identity(), [])
        refusal(lambda: registry.set_identity(WORKER))


def job(number: int) -> Job:
    return Job.of(ExecRequest(f"{number:016x}", "/", "true"), "vps", "root@vps", number)


@pytest.mark.parametrize("harm", [garbage, newer])
def test_a_history_that_cannot_be_used_is_set_aside_and_begun_anew(
    tmp_path: Path, harm: Callable[[Path], None], records: Journal
) -> None:
    path = tmp_path / "jobs.db"
    harm(path)
    past = History(path)
    past.put(history.RAN, "vps", job(1))
    past.close()
    past = History(path)
    assert [entry.job.exec_id for entry in past.find()] == [job(1).exec_id]
    past.close()
    assert beside(path) == {"", ".aside-then"}
    assert lines(records, Event.STATE_SET_ASIDE)[0].endswith(", begun anew")


def test_a_history_without_one_of_its_columns_is_set_aside(tmp_path: Path, records: Journal) -> None:
    path = tmp_path / "jobs.db"
    History(path).close()
    edited(b'"outcome"', b'"outcomz"')(path)
    past = History(path)
    assert past.find() == []
    past.close()
    assert len(records.of(Event.STATE_SET_ASIDE)) == 1


def test_a_history_that_cannot_be_written_has_what_it_had(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, records: Journal
) -> None:
    path = tmp_path / "jobs.db"
    past = History(path)
    past.put(history.RAN, "vps", job(1))
    past.close()
    state = unwritable(monkeypatch, errno.ENOSPC)
    past = History(path)
    past.put(history.RAN, "vps", job(2))
    past.trim(1)
    assert [entry.job.exec_id for entry in past.find()] == [job(1).exec_id]
    assert any(job(2).exec_id in line for line in lines(records, Event.STATE_UNWRITABLE))
    state[0] = False
    clock.now += 60.0
    past.put(history.RAN, "vps", job(3))
    past.close()
    past = History(path)
    assert [entry.job.exec_id for entry in past.find()] == [job(3).exec_id, job(1).exec_id]
    past.close()
