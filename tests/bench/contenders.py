#!/usr/bin/python3
"""Runs on desktop: times each way to run `true` on vps, in rounds that give all of them the same conditions.

Standard input is ``{"rounds": N, "slow_rounds": N}``, standard output ``{name: [seconds, ...]}``. With ``{"burst": N,
"at_once": N}`` it runs so many over open connections to peerd, and says in how many seconds: ``{"seconds": T}``.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

VPS = "10.0.0.1"
# Name of the contender -> its command line. `mux` goes over a ControlMaster's connection.
PROCESSES = {
    "d execOnPeer": "d execOnPeer --peer vps --directory / --shellCmd true",
    "ssh, ControlMaster": "ssh mux true",
    "ssh, cold": "ssh vps true",
    "python3 -I -S -c pass": "python3 -I -S -c pass",
    "d --complete, a peer's name": "d --complete remotePull --peer v",
}
SLOW_PROCESSES = {
    "pdsh": "pdsh -R ssh -w vps true",
    "clush": "clush -w vps true",
    "parallel-ssh": "parallel-ssh -H vps true",
    "ansible -m shell": "ansible all -i vps, -m shell -a true",
}


class OpenConnection:
    """A program that keeps its connection to peerd open, as one that runs many commands does."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("/run/peerd/peerd.sock")
        self._answers: IO[bytes] = self._socket.makefile("rb")
        self._send({"type": "hello", "protocol": 1, "newest": 2, "version": "bench"})

    def _send(self, message: dict[str, object]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def run(self) -> None:
        """Run `true` on vps to its end."""
        params = {"peer": "vps", "directory": "/", "shell_cmd": "true"}
        self._send({"type": "call", "command": "execOnPeer", "params": params})
        while (frame := json.loads(self._answers.readline()))["type"] != "reply":
            if frame["type"] == "error":
                raise SystemExit(f"peerd: {frame}")
        if frame["status"]:
            raise SystemExit(f"peerd: {frame}")


def burst(count: int, at_once: int) -> float:
    """The seconds that many commands take, over connections that are open already."""
    numbers = iter(range(count))

    def work(connection: OpenConnection) -> None:
        connection.run()
        ready.wait()
        for _ in numbers:
            connection.run()

    ready = threading.Barrier(at_once + 1)
    threads = [threading.Thread(target=work, args=(OpenConnection(),)) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def paramiko_client() -> Callable[[], None]:
    """A call that runs `true` over an open connection of paramiko."""
    import paramiko

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(VPS, username="root")

    def run() -> None:
        _, stdout, _ = client.exec_command("true")
        if stdout.channel.recv_exit_status():
            raise SystemExit("paramiko failed")

    return run


def asyncssh_client() -> Callable[[], None]:
    """A call that runs `true` over an open connection of asyncssh."""
    import asyncssh

    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncssh.connect(VPS, username="root", known_hosts=None))

    def run() -> None:
        if loop.run_until_complete(connection.run("true")).exit_status:
            raise SystemExit("asyncssh failed")

    return run


def process(line: str) -> Callable[[], None]:
    """A call that runs a command line, without a shell."""
    argv = line.split()

    def run() -> None:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{line}: exit status {done.returncode}: {done.stderr.decode(errors='replace')}")

    return run


def main() -> None:
    """Measure."""
    wanted = json.load(sys.stdin)
    if "burst" in wanted:
        print(json.dumps({"seconds": burst(wanted["burst"], wanted["at_once"])}))
        return
    fast = {name: process(line) for name, line in PROCESSES.items()}
    fast["peerd, open connection"] = OpenConnection().run
    fast["paramiko, open connection"] = paramiko_client()
    fast["asyncssh, open connection"] = asyncssh_client()
    slow = {name: process(line) for name, line in SLOW_PROCESSES.items()}
    times: dict[str, list[float]] = {name: [] for name in (*fast, *slow)}
    for number in range(wanted["rounds"] + 1):
        contenders = list((fast | slow if number <= wanted["slow_rounds"] else fast).items())
        random.shuffle(contenders)
        for name, run in contenders:
            began = time.perf_counter()
            run()
            took = time.perf_counter() - began
            # The first round fills caches.
            if number:
                times[name].append(took)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
