"""Who gets in, and what bytes that are no frames do to a daemon."""

from __future__ import annotations

import json
import subprocess

import pytest
from lab import Machine

CONNECT = """
import random, socket, sys

def connect(address, ports):
    for port in ports:
        connection = socket.socket()
        connection.settimeout(3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind(("", port))
            connection.connect((address, 3600))
            return connection
        except OSError as error:
            connection.close()
            if error.errno not in (98, 99):  # The port was used a moment ago.
                raise
"""

TALK = (
    CONNECT
    + """
ports = [0] if "any-port" in sys.argv else random.sample(range(600, 1024), 100)
connection = connect(sys.argv[1], ports)
connection.settimeout(5)
try:
    connection.sendall(sys.stdin.buffer.read())
    if "open" not in sys.argv:
        connection.shutdown(socket.SHUT_WR)
except OSError as error:
    print(type(error).__name__)
try:
    while data := connection.recv(65536):
        sys.stdout.buffer.write(data)
        if b'"type":"result"' in data:
            break
except (ConnectionResetError, TimeoutError) as error:
    print(type(error).__name__)
"""
)
HELLO = b'{"type":"hello","protocol":1,"version":"test"}\n'
EXEC = b'{"type":"execRequest","execId":"%s","directory":"/","shellCmd":"touch /root/broken-in"}\n'


def talk(machine: Machine, address: str, data: bytes, *options: str) -> bytes:
    """What comes back for these bytes; what the connection failed with, where it did."""
    result = machine.run(["python3", "-c", TALK, address, *options], input=data, check=False)
    return result.stdout + result.stderr


def test_nothing_answers_on_the_underlay(outsider: Machine, vps: Machine, desktop: Machine) -> None:
    for target in (vps, desktop):
        assert b"TimeoutError" in talk(outsider, target.underlay, HELLO + EXEC % (b"0" * 16))
        assert not target.ok("test -e /root/broken-in")


def test_a_machine_of_the_vpn_that_is_no_peer_runs_nothing(stranger: Machine, vps: Machine, desktop: Machine) -> None:
    # The leader may be asked to register, and says so much as that it is there; a worker does not.
    for target, address, greeting in ((vps, "10.0.0.1", b'{"type":"hello",'), (desktop, "10.0.0.2", b"")):
        for request in (
            EXEC % (b"1" * 16),
            b'{"type":"listPeers"}\n',
            b'{"type":"deletePeer","peer":"laptop"}\n',
            b'{"type":"approvePeer","peer":"stranger"}\n',
            b'{"type":"heartbeat"}\n',
            b'{"type":"ping"}\n',
        ):
            answer = talk(stranger, address, HELLO + request)
            assert answer.startswith(greeting)
            assert b"{" not in answer[1:]
            assert b"ConnectionResetError" in answer
        assert not target.ok("test -e /root/broken-in")


def test_a_local_connection_to_the_peers_port_is_nobodys(desktop: Machine) -> None:
    for address in ("10.0.0.2", "127.0.0.1"):
        answer = talk(desktop, address, HELLO + EXEC % (b"2" * 16))
        assert b"hello" not in answer
        assert not desktop.ok("test -e /root/broken-in")


def test_a_user_of_a_peer_who_is_not_root_does_not_speak_for_it(desktop: Machine, vps: Machine) -> None:
    request = HELLO + EXEC % (b"3" * 16)
    assert b"hello" not in talk(desktop, "10.0.0.1", request, "any-port")
    as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups", "python3", "-c", TALK, "10.0.0.1"]
    assert b"PermissionError" in desktop.run(as_nobody, input=request, check=False).stderr
    assert not vps.ok("test -e /root/broken-in")


def test_a_request_runs_once(desktop: Machine, vps: Machine) -> None:
    request = b'{"type":"execRequest","execId":"aaaabbbbccccdddd","directory":"/","shellCmd":"echo >> /root/once"}\n'
    first = talk(desktop, "10.0.0.1", HELLO + request, "open")
    assert b'"outcome":"exited"' in first
    again = talk(desktop, "10.0.0.1", HELLO + request, "open")
    assert b'"code":"duplicate"' in again
    assert vps.out("wc -l < /root/once") == "1"


MALFORMED = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", b"bad-message"),
    "no object": (b'"hello"\n', b"bad-message"),
    "another version": (b'{"type":"hello","protocol":99}\n', b"version"),
    "no version": (b'{"type":"hello"}\n', b"bad-message"),
    "deep JSON": (b"[" * 100_000 + b"\n", b"bad-message"),
    "an endless line": (b"x" * 600_000, b"bad-message"),
    "a huge payload": (HELLO + b'{"type":"output","size":99999999999}\n', b"bad-message"),
    "no fields": (HELLO + b'{"type":"execRequest"}\n', b"bad-message"),
    "an unknown message": (HELLO + b'{"type":"noSuchMessage"}\n', b"unknown-message"),
    "a command of the wrong type": (
        HELLO + b'{"type":"execRequest","execId":"4444444444444444","directory":"/","shellCmd":7}\n',
        b"bad-message",
    ),
    "another's id": (HELLO + b'{"type":"registerPeer","peer_id":"laptop"}\n', b"id-taken"),
    "an id with an escape": (HELLO + b'{"type":"registerPeer","peer_id":"x\\u001b[31m"}\n', b"bad-message"),
}


@pytest.mark.parametrize(("data", "code"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_input_is_answered_and_the_daemon_goes_on(
    desktop: Machine, vps: Machine, data: bytes, code: bytes
) -> None:
    pid = vps.out("systemctl show -P MainPID peerd")
    answer = talk(desktop, "10.0.0.1", data)
    refused = b"ConnectionResetError", b"BrokenPipeError"
    assert b'"code":"%s"' % code in answer or any(error in answer for error in refused)
    assert vps.out("systemctl show -P MainPID peerd") == pid
    assert desktop.out("d execOnPeer --peer vps --directory / --shellCmd 'echo on'") == "on"


def test_silent_connections_and_half_frames_hold_nobody_up(desktop: Machine, vps: Machine) -> None:
    hold = (
        CONNECT
        + """
ports = iter(range(600, 1024))
held = [connect("10.0.0.1", ports) for _ in range(200)]
for connection in held[:100]:
    connection.sendall(b'{"type":"hel')
print("held", flush=True)
sys.stdin.read()
"""
    )
    rss = "awk '/VmRSS/ {print $2}' /proc/$(systemctl show -P MainPID peerd)/status"
    before = int(vps.out(rss))
    with desktop.popen(["python3", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"held\n"
        assert desktop.out("d execOnPeer --peer vps --directory / --shellCmd 'echo on'") == "on"
        assert int(vps.out(rss)) - before < 16 * 1024
        process.stdin.close()


def test_text_of_others_stays_on_its_line(desktop: Machine, vps: Machine) -> None:
    command = "true '\n\x1b[2Jforged record'"
    desktop.run(["d", "execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", command])
    find = "journalctl -q -t peerd -o json PEERD_PEER=desktop"
    vps.wait_until(f"{find} | grep -q 'forged'")
    records = [json.loads(line) for line in vps.out(f"{find} | grep forged").splitlines()]
    assert records
    assert all(isinstance(record["MESSAGE"], str) and record["MESSAGE"].isprintable() for record in records)
