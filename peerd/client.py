"""The thin client behind ``d``: hands its arguments to the daemon, and prints what comes back.

The interpreter's start is most of what a call costs, so this imports as little as it can before the request is on
its way. The daemon parses the arguments; where there is none to ask, they are parsed here, so that help always works.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

SOCKET = "/run/peerd/peerd.sock"
PROTOCOL = 1
EXIT_CANCELLED = 130
EXIT_FAILURE = 255
_CHUNK = 256 * 1024
_STREAMS = {"stdout": 1, "stderr": 2}
_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Gone(Exception):
    """The daemon ended the connection before it had said all."""


def main() -> int:
    """Run ``d`` with the arguments of this process; returns its exit status."""
    arguments = sys.argv[1:]
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(os.environ.get("PEERD_SOCKET", SOCKET))
    except OSError as error:
        return _without_daemon(arguments, error)
    try:
        return _converse(connection, arguments)
    except _Gone:
        _complain("peerd ended the connection before the command's result", "What happened: journalctl -u peerd -n 50")
        return EXIT_FAILURE


def _converse(connection: socket, arguments: list[str]) -> int:
    cancelled = 0

    def cancel(_number: int, _frame: object) -> None:
        nonlocal cancelled
        cancelled += 1
        if cancelled > 1:
            os._exit(EXIT_CANCELLED)
        connection.sendall(b'{"type":"cancel"}\n')

    terminal = os.isatty(1)
    width = os.get_terminal_size(1).columns if terminal else 80
    invoke = {"type": "invoke", "argv": arguments, "terminal": terminal, "width": max(20, min(width, 1000))}
    connection.sendall(f'{{"type":"hello","protocol":{PROTOCOL},"version":"d"}}\n{json.dumps(invoke)}\n'.encode())
    for number in _CANCELLING:
        signal.signal(number, cancel)
    buffer = bytearray()
    while True:
        frame = json.loads(_line(connection, buffer))
        kind = frame["type"]
        if kind == "output":
            if not _write(_STREAMS[frame["stream"]], _exactly(connection, buffer, frame["size"])):
                # Whoever read our output has gone: the daemon sees us go and stops the command.
                return 128 + signal.SIGPIPE
        elif kind == "exit":
            return int(frame["status"])
        elif kind == "error":
            _complain(frame["message"])
            return EXIT_FAILURE


def _fill(connection: socket, buffer: bytearray) -> None:
    data = connection.recv(_CHUNK)
    if not data:
        raise _Gone
    buffer += data


def _line(connection: socket, buffer: bytearray) -> bytes:
    while (end := buffer.find(b"\n")) < 0:
        _fill(connection, buffer)
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


def _exactly(connection: socket, buffer: bytearray, size: int) -> bytes:
    while len(buffer) < size:
        _fill(connection, buffer)
    data = bytes(buffer[:size])
    del buffer[:size]
    return data


def _write(fd: int, data: bytes) -> bool:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            return False
        except BlockingIOError:
            import select

            select.select([], [fd], [])
    return True


def _complain(*lines: str) -> None:
    os.write(2, ("\n  ".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _without_daemon(arguments: list[str], error: OSError) -> int:
    """Help and wrong usage need no daemon; for everything else say why there is none."""
    from peerd import cli

    parsed = cli.parse(arguments)
    if isinstance(parsed, cli.Reply):
        sys.stdout.write(parsed.stdout)
        sys.stderr.write(parsed.stderr)
        return parsed.status
    if error.errno == errno.EACCES:
        _complain(
            "Permission denied: only root and members of the group peerd may use d",
            "To join the group: adduser USER peerd (as root), then log in again",
        )
    else:
        _complain(
            f"Cannot reach peerd on this machine: {error.strerror} ({SOCKET})",
            "Is it running? systemctl status peerd.socket peerd.service",
            "To start it: systemctl start peerd.socket",
        )
    return EXIT_FAILURE
