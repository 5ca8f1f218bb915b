"""What an attacker has: programs that run on the machines, and the table of what came of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from lab import Machine

TABLE = Path(__file__).resolve().parents[1] / "attacks.md"
_HEAD = """# Attacks tried, and what happened

Written by tests/booted/test_attacks.py, which tries each of them on booted machines: a line is here because its test
passed, and that test fails when the line is not. The threat model is in peerd(8).

| attacker | attack | what happened |
|---|---|---|
"""

DIAL = """
import random, select, socket, sys

def dial(address, source="", ports=None, timeout=2, port=3600):
    for local in ports if ports is not None else random.sample(range(1, 1024), 200):
        connection = socket.socket()
        connection.settimeout(timeout)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind((source, local))
            connection.connect((address, port))
            return connection
        except OSError as error:
            connection.close()
            if error.errno not in (98, 99):  # The port was used a moment ago.
                raise
    raise SystemExit("no port is free")

def say(connection, data):
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # It was ended before all was said.

def drain(connection):
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found
"""

# Sends standard input, prints what comes back until the connection is ended.
TALK = (
    DIAL
    + """
try:
    connection = dial(sys.argv[1], *sys.argv[2:])
    connection.settimeout(20)
    say(connection, sys.stdin.buffer.read())
    sys.stdout.buffer.write(drain(connection))
except ConnectionResetError:
    pass
except OSError as error:
    print(type(error).__name__)
"""
)

# Sends each of the conversations on standard input, a length before each, over a connection of its own.
STORM = (
    DIAL
    + """
def piece(size):
    return sys.stdin.buffer.read(size)

sent = 0
while head := piece(4):
    data = piece(int.from_bytes(head, "big"))
    connection = dial(sys.argv[1])
    connection.settimeout(20)
    say(connection, data)
    drain(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    connection.close()
    sent += 1
print(sent)
"""
)

# Opens so many connections, says something on each, and holds them until standard input ends.
FLOOD = (
    DIAL
    + """
message = bytes.fromhex(sys.argv[2])
held = []
for port in range(1, 1024):
    if len(held) == int(sys.argv[3]):
        break
    try:
        connection = dial(sys.argv[1], ports=[port])
        connection.sendall(message.replace(b"EXECID", b"%016x" % random.getrandbits(64)))
        held.append(connection)
    except (OSError, SystemExit):
        pass
print(len(held), flush=True)
sys.stdin.read()
"""
)

# A peer's daemon that lies: greets, and answers every request with what is on standard input.
LIAR = """
import json, socket, sys

answer = sys.stdin.buffer.read()
server = socket.create_server(("0.0.0.0", 3600))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    lines = connection.makefile("rb")
    lines.readline()
    connection.sendall(b'{"type":"hello","protocol":1,"version":"liar"}\\n')
    lines.readline()
    connection.sendall(answer)
"""

# Somebody who has a peer's address: prints what is said to it, and answers nothing.
IMPOSTOR = """
import socket

server = socket.create_server(("0.0.0.0", 3600))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    with connection, connection.makefile() as lines:
        for line in lines:
            print(line, end="", flush=True)
"""

HELLO = b'{"type":"hello","protocol":1,"version":"test"}\n'


def frame(type_: str, **fields: object) -> bytes:
    """A frame as an attacker writes it."""
    return json.dumps({"type": type_, **fields}).encode() + b"\n"


def run_request(path: str) -> bytes:
    """A greeting and a command that leaves a file, with an id of its own."""
    exec_id = f"{random.getrandbits(64):016x}"
    return HELLO + frame("execRequest", execId=exec_id, directory="/", shellCmd=f"touch {path}")


def talk(machine: Machine, address: str, data: bytes, source: str = "") -> bytes:
    """What comes back for these bytes until the other end ends the connection; the name of an error that is no end."""
    arguments = ["python3", "-c", TALK, address, *([source] if source else [])]
    return machine.run(arguments, input=data, check=False).stdout


class Table:
    """The attacks that were tried, in the order of the tests, with what the tests saw."""

    def __init__(self) -> None:
        self._rows: dict[str, None] = {}

    def add(self, attacker: str, attack: str, happened: str) -> None:
        """Enter one, after its test has seen it so; the same on every Debian."""
        self._rows[f"| {attacker} | {attack} | {happened} |\n"] = None

    def differences(self, complete: bool) -> Iterator[str]:
        """What the committed table lacks or has too much, which is written anew where all attacks were tried."""
        there = TABLE.read_text() if TABLE.exists() else ""
        known = [line for line in there.splitlines(keepends=True) if line.startswith("|")][2:]
        yield from (f"not in {TABLE.name}: {row}" for row in self._rows if row not in known)
        if complete:
            yield from (f"only in {TABLE.name}: {row}" for row in known if row not in self._rows)
            if (text := _HEAD + "".join(self._rows)) != there:
                TABLE.write_text(text)
