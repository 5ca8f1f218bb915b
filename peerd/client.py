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
SIGNAL_BASE = 128
_CHUNK = 256 * 1024
_GREETING_LIMIT = 20.0
"""Seconds for the daemon to start and to answer."""
_STREAMS = {"stdout": 1, "stderr": 2}
_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Gone(Exception):
    """The daemon ended the connection before it had said all."""


class _Unwritable(Exception):
    """Standard output or standard error takes no more; the cause says why."""


def main() -> int:
    """Run ``d`` with the arguments of this process; returns its exit status."""
    arguments = sys.argv[1:]
    # A standard stream that is closed would lend its number to the connection.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= max(_STREAMS.values()):
        pass
    os.close(spare)
    path = os.environ.get("PEERD_SOCKET", SOCKET)
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        return _without_daemon(arguments, path, error)
    try:
        return _converse(connection, arguments)
    except TimeoutError:
        _complain("peerd does not answer", "What is wrong with it: systemctl status peerd, journalctl -u peerd -n 50")
        return EXIT_FAILURE
    except _Unwritable as error:
        # Who reads our output has gone, or its disk is full. The daemon sees us go and stops the command.
        if isinstance(error.__cause__, BrokenPipeError):
            return SIGNAL_BASE + signal.SIGPIPE
        _complain(f"Cannot write output: {error.__cause__}", "The command was stopped.")
        return EXIT_FAILURE
    except (_Gone, ConnectionError):
        _complain("peerd ended the connection before the command's result", "What happened: journalctl -u peerd -n 50")
        return EXIT_FAILURE


def _converse(connection: socket, arguments: list[str]) -> int:
    cancellable = False

    def cancel(_number: int, _frame: object) -> None:
        nonlocal cancellable
        if not cancellable:
            os._exit(EXIT_CANCELLED)
        cancellable = False
        connection.sendall(b'{"type":"cancel"}\n')

    terminal = os.isatty(1)
    width = os.get_terminal_size(1).columns if terminal else 80
    invoke = {"type": "invoke", "argv": arguments, "terminal": terminal, "width": max(20, min(width, 1000))}
    # https://no-color.org
    invoke["color"] = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    connection.sendall(f'{{"type":"hello","protocol":{PROTOCOL},"version":"d"}}\n{json.dumps(invoke)}\n'.encode())
    for number in _CANCELLING:
        signal.signal(number, cancel)
    buffer = bytearray()
    collected: dict[int, bytearray] | None = None
    credit, reading = 0, True
    # The socket is systemd's and takes connections for a daemon that cannot start, too.
    connection.settimeout(_GREETING_LIMIT)
    while True:
        while reading and credit and not buffer:
            sent = _send_stdin(connection, credit)
            if sent is None:
                break
            credit -= sent
            reading = sent > 0
        frame = json.loads(_line(connection, buffer))
        kind = frame["type"]
        if kind == "hello":
            connection.settimeout(None)
            cancellable = True
        elif kind == "output":
            fd, data = _STREAMS[frame["stream"]], _exactly(connection, buffer, frame.get("size", 0))
            if collected is None or "by" in frame:
                _write(fd, data)
            else:
                collected[fd] += data
        elif kind == "stdinCredit":
            credit += frame["bytes"]
        elif kind == "collect":
            collected = {fd: bytearray() for fd in _STREAMS.values()}
        elif kind == "exit":
            if collected is not None:
                from peerd.render import complete_record

                _write(1, complete_record(frame["record"], *(bytes(data) for data in collected.values())).encode())
            return int(frame["status"])
        elif kind == "error":
            _complain(frame["message"])
            return EXIT_FAILURE


def _send_stdin(connection: socket, credit: int) -> int | None:
    """Send what stdin has, if that comes first: how many bytes, 0 at its end. None when the daemon has something."""
    import select

    if connection.fileno() in select.select([connection.fileno(), 0], [], [])[0]:
        return None
    data = os.read(0, min(credit, _CHUNK))
    size = f',"size":{len(data)}' if data else ""
    # A signal here would put its cancel into the middle of the frame.
    signal.pthread_sigmask(signal.SIG_BLOCK, _CANCELLING)
    connection.sendall(f'{{"type":"stdin"{size}}}\n'.encode() + data)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CANCELLING)
    return len(data)


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


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [])
        except OSError as error:
            raise _Unwritable from error


def _complain(*lines: str) -> None:
    os.write(2, ("\n  ".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _without_daemon(arguments: list[str], path: str, error: OSError) -> int:
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
            f"Cannot reach peerd on this machine: {error.strerror} ({path})",
            "Is it running? systemctl status peerd.socket peerd.service",
            "To start it: systemctl start peerd.socket",
        )
    return EXIT_FAILURE
