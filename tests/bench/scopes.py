#!/usr/bin/python3
"""Runs on vps: what a transient scope costs by itself, which no command of peerd can cost less than.

A process is forked, moved into a scope by the same call with the same properties, over one open connection to the
bus, and runs /bin/true. Prints ``{name: [seconds of each, ...]}`` and under ``"rates"`` how many a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

from peerd.scopes import ScopeManager
from peerd.systemd1 import Systemd

PAUSES = 20
PAUSE = 0.1


async def one(scopes: ScopeManager | None, number: int) -> float:
    """Run one /bin/true; the seconds that it took."""
    began = time.perf_counter()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os.execv("/bin/true", ["true"])
    os.close(read)
    if scopes:
        await scopes.start(f"peerd-bench-{os.getpid()}-{number}.scope", [pid], "bench", 30, 5)
    ended = os.pidfd_open(pid)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(ended, over.set)
    os.close(write)
    await over.wait()
    asyncio.get_running_loop().remove_reader(ended)
    os.close(ended)
    return time.perf_counter() - began


async def many(scopes: ScopeManager | None, numbers: Iterator[int]) -> list[float]:
    """Run one after another; the seconds of each."""
    return [await one(scopes, number) for number in numbers]


async def main(count: int) -> None:
    """Measure at 1, 8 and 32 at once."""
    systemd = Systemd()
    times, rates = {}, {}
    for name, scopes in (("scope", ScopeManager(systemd)), ("no scope", None)):
        for at_once in (1, 8, 32):
            numbers = iter(range(at_once * count, (at_once + 1) * count))
            began = time.perf_counter()
            taken = await asyncio.gather(*(many(scopes, numbers) for _ in range(at_once)))
            rates[f"{name} at {at_once}"] = count / (time.perf_counter() - began)
            times[f"{name} at {at_once}"] = [seconds for each in taken for seconds in each]
    # Moving a process is slower where none was moved of late (favordynmods of cgroups).
    paused = times["scope after a pause"] = []
    for number in range(PAUSES):
        await asyncio.sleep(PAUSE)
        paused.append(await one(ScopeManager(systemd), number))
    systemd.close()
    print(json.dumps({**times, "rates": rates}))


if __name__ == "__main__":
    # Nobody wants the exit status of /bin/true.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asyncio.run(main(int(sys.argv[1])))
