"""Where directories are: as the kernel sees it, without end for nobody, and each peer with threads of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path

import pytest

from peerd import directories
from peerd.directories import Directories, locate


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("here", "here"),
        ("here/", "here"),
        ("./here/../here/./deep", "here/deep"),
        ("to-here/deep", "here/deep"),
        ("to-here/../other", "other"),
        ("missing", "missing"),
        ("to-here/missing/deeper", "here/missing/deeper"),
        ("to-here/missing/../../other", "other"),
        ("here/file", "here/file"),
        ("here/file/deeper", "here/file/deeper"),
        ("loop", None),
        ("loop/deeper", None),
        ("to-missing", None),
        ("to-missing/deeper", None),
        ("chain0", None),
        ("chain30", "here"),
    ],
)
def test_a_directory_is_where_the_kernel_says(tmp_path: Path, path: str, place: str | None) -> None:
    (tmp_path / "here/deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "here/file").touch()
    (tmp_path / "to-here").symlink_to("here")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-missing").symlink_to("missing")
    for number in range(60):
        (tmp_path / f"chain{number}").symlink_to(f"chain{number + 1}" if number < 59 else "here")
    assert locate(f"{tmp_path}/{path}") == (place and f"{tmp_path}/{place}")


@pytest.mark.parametrize(("path", "place"), [("/", "/"), ("//", "/"), ("/..", "/"), ("/no-such/a", "/no-such/a")])
def test_the_root_is_a_directory_too(path: str, place: str) -> None:
    assert locate(path) == place


def test_links_cost_no_more_than_the_kernel_allows(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"l{number}").symlink_to("p/../" * 800 + f"l{number + 1}")
    (tmp_path / "p").mkdir()
    began = time.monotonic()
    assert locate(f"{tmp_path}/l0" + "/../l0" * 600) is None
    assert time.monotonic() - began < 5


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What directories below /dead wait for."""
    answers = threading.Event()

    def wait(path: str) -> str:
        if path.startswith("/dead"):
            answers.wait(30)
        return path

    monkeypatch.setattr(directories, "locate", wait)
    monkeypatch.setattr(directories, "_LIMIT", 0.05)
    return answers


def test_who_asks_for_directories_that_do_not_answer_keeps_nobody_else_waiting(
    dead: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Directories()

    async def main() -> None:
        before = threading.active_count()
        asked = (found.find("laptop", ["/dead"]) for _ in range(50))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {TimeoutError}
        assert threading.active_count() - before == directories._SHARE
        assert await found.find("vps", ["/srv", "/opt"]) == {"/srv": "/srv", "/opt": "/opt"}
        with pytest.raises(TimeoutError):
            await found.find("laptop", ["/srv"])
        dead.set()
        monkeypatch.setattr(directories, "_LIMIT", 30)
        assert await found.find("laptop", ["/srv"]) == {"/srv": "/srv"}
        assert threading.active_count() - before == directories._SHARE + 1

    asyncio.run(main())
    gc.collect()
    assert not found._shares


def test_a_directory_that_does_not_answer_does_not_keep_the_daemon_from_stopping(dead: threading.Event) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Directories().find("laptop", ["/dead"])

    asyncio.run(main())
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    dead.set()


def test_many_at_once_take_turns() -> None:
    async def main() -> None:
        found = Directories()
        places = await asyncio.gather(*(found.find("laptop", ["/"]) for _ in range(100)))
        assert places == [{"/": "/"}] * 100

    asyncio.run(main())
