"""The thin client behind ``d``: hands its arguments to the daemon, and prints what comes back.

The interpreter's start is most of what a call costs, so this imports as little as it can before the request is on
its way: of ``os``, ``socket`` and ``signal`` the parts in C that those wrap. The daemon parses the arguments; where
there is none to ask, they are parsed here, so that help always works.
"""

import posix
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

from peerd import quickjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from peerd.cli import Reply
    from peerd.clientpipes import Output
    from peerd.clientstdin import Stdin
    from peerd.jsonrecord import Printer
else:
    import _signal as signal

SOCKET = "/run/peerd/peerd.sock"
PROTOCOL = 3
OLDEST_PROTOCOL = 1
EXIT_CANCELLED = 130
EXIT_FAILURE = 255
SIGNAL_BASE = 128
_ATTEMPTS = 5
"""Connections that are tried one after another; each of them waits until the daemon runs."""
_CHUNK = 512 * 1024
_LINE = 4096
_LONGEST = 1024 * 1024 - 4096
"""Bytes of a request: what a header may have (MAX_HEADER), less room for what else the request to the peer has."""
_COMPLETION_LIMIT, _GREETING_LIMIT, _RETURN_LIMIT = 2.0, 20.0, 240.0
"""Seconds for the daemon to start and to answer; the same where a command goes on, which may be a deploy of it."""
_STREAMS = {"stdout": 1, "stderr": 2}
_CANCELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Gone(Exception):
    """The daemon ended the connection before it had said all."""


class _Left(Exception):
    """The user does not wait for the daemon's word any more."""


class _Unusable(Exception):
    """A standard stream takes or gives no more; the cause says why."""


def main() -> int:
    """Run ``d`` with the arguments of this process; returns its exit status."""
    arguments = sys.argv[1:]
    # A standard stream that is closed would lend its number to the connection.
    while (spare := posix.open("/dev/null", posix.O_RDWR)) <= max(_STREAMS.values()):
        pass
    posix.close(spare)
    path = posix.environ.get(b"PEERD_SOCKET") or SOCKET.encode()
    call = _Call(arguments)
    try:
        while True:
            call.connection = socket(AF_UNIX, SOCK_STREAM)
            try:
                call.connection.connect(path)
            except OSError as error:
                if call.broken:
                    raise _Gone from None
                return call.without_daemon(path, error)
            try:
                return call.converse()
            except (_Gone, ConnectionError):
                # A peerd that was restarted takes up the commands of the one before.
                if not call.may_go_on():
                    raise
    except TimeoutError as error:
        if call.completes:
            return call.without_daemon(path, error)
        return call.fail(
            "peerd does not answer", "What is wrong with it: systemctl status peerd, journalctl -u peerd -n 50"
        )
    except _Unusable as error:
        # Who reads our output has gone, or its disk is full. The daemon sees us go and stops the command.
        if isinstance(error.__cause__, BrokenPipeError):
            return SIGNAL_BASE + signal.SIGPIPE
        return call.fail(str(error), fated=True)
    except _Left:
        return call.leave()
    except (_Gone, ConnectionError):
        return call.fail(
            "peerd ended the connection before the command's result", "What happened: journalctl -u peerd -n 50"
        )


class _Call:
    """One command line, over one connection after another.

    :ivar connection: the present one
    :ivar broken: how many broke since the daemon last said something
    :ivar completes: whether a shell waits for it, as it does at every Tab
    """

    connection: socket

    def __init__(self, arguments: list[str]) -> None:
        self.broken = 0
        self._arguments = arguments
        self.completes = arguments[:1] == ["--complete"]
        self._buffer = bytearray()
        # Whether this connection has the whole request; how often the user took it back.
        self._asked, self._cancelled = False, 0
        self._accepted = False
        # How far a log is followed. The command that runs: its id, which of ours it is, how much of its output is here.
        self._cursor = self._exec_id = ""
        self._step = 1
        self._offsets = dict.fromkeys(_STREAMS, 0)
        self._confirmed = self._version = 0
        self._outputs: dict[str, Output] = {}
        self._watched: list[int] = []
        self._printer: Printer | None = None
        self._stdin: Stdin | None = None
        self._all_said = False

    def may_go_on(self) -> bool:
        """Whether it is safe and of use to try again on a new connection.

        :raises _Left: when there is nothing to go on with for who took it back
        """
        self.broken += 1
        self._asked = False
        self._buffer.clear()
        if self._stdin:
            self._stdin.withdraw()
        safe = bool(self._cursor) or not self._accepted
        if safe and self._cancelled and not self._exec_id:
            raise _Left
        return self.broken <= _ATTEMPTS and (safe or bool(self._exec_id))

    def leave(self) -> int:
        """End without the word that the user, or a reader that pauses, is not waited for any more; the exit status."""
        signal.signal(signal.SIGALRM, self._cancel)
        signal.alarm(1)
        sentence = f"Stopped waiting for {self._exec_id or 'peerd'}"
        return self.fail(sentence, code="not-waited", status=EXIT_CANCELLED, fated=True)

    def fail(self, *lines: str, code: str = "lost", status: int = EXIT_FAILURE, fated: bool = False) -> int:
        """Say why there is no result, also in the record where one was to be printed; the exit status.

        :param fated: whether to say as well what becomes of the command
        """
        ended, self._all_said = self._all_said, True
        from peerd import clientend

        if fated and not ended:
            lines += clientend.fate(self._arguments, self._exec_id)
        clientend.complain(*lines)
        try:
            self._flush()
            if not ended and (self._printer or "stdout" not in self._outputs):
                record = clientend.record(self._arguments, self._printer, code, lines, self._exec_id, status)
                self._write("stdout", record)
        except _Unusable:
            pass  # The exit status still says it.
        return status

    def without_daemon(self, path: bytes, error: OSError) -> int:
        """Do what can be done where the daemon is not to be had; the exit status."""
        from peerd import cli

        return self._reply(cli.without_daemon(self._arguments, path.decode("utf-8", "replace"), error))

    def _reply(self, reply: "Reply") -> int:
        self._all_said = True
        for stream, text in (("stdout", reply.stdout), ("stderr", reply.stderr)):
            self._write(stream, text.encode("utf-8", "backslashreplace"))
        return reply.status

    def converse(self) -> int:
        """Ask, and do what the daemon says until it says the exit status."""
        connection = self.connection
        terminal = posix.isatty(1)
        # A terminal that does not know its width says 0.
        width = (posix.get_terminal_size(1).columns or 80) if terminal else 80
        invoke = {
            "type": "invoke",
            "argv": self._arguments,
            "terminal": terminal,
            "width": max(20, min(width, 1000)),
            "after": self._cursor or None,
            # https://no-color.org
            "color": terminal and not posix.environ.get(b"NO_COLOR") and posix.environ.get(b"TERM") != b"dumb",
        }
        if self._exec_id:
            invoke["resume"] = {"execId": self._exec_id, "step": self._step, **self._offsets}
        for number in _CANCELLING:
            # What is ignored stays so: nohup(1).
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._cancel)
        # The socket is systemd's and takes connections for a daemon that cannot start, too.
        limit = _COMPLETION_LIMIT if self.completes else _GREETING_LIMIT
        connection.settimeout(_RETURN_LIMIT if self._exec_id or self._cursor else limit)
        hello = {"type": "hello", "protocol": OLDEST_PROTOCOL, "newest": PROTOCOL, "version": "d"}
        request = f"{quickjson.dumps(hello)}\n{quickjson.dumps(invoke)}\n".encode("utf-8", "backslashreplace")
        if len(request) > _LONGEST and not self._exec_id:
            from peerd import cli

            return self._reply(cli.too_long(self._arguments, len(request), _LONGEST))
        try:
            connection.sendall(request)
        except BrokenPipeError:
            pass  # A daemon that is too busy hangs up before it has read anything, and has said so.
        self._asked = True
        if self._cancelled:
            self._take_back()
        while True:
            while not self._buffer and self._send_stdin():
                pass
            frame = quickjson.loads(self._line().decode())
            size = frame.get("size", 0)
            if frame["type"] == "output" and "by" not in frame and self._printer is None:
                self._pass_on(frame["stream"], size)
                continue
            status = self._take(frame, self._exactly(size))
            if status is not None:
                return status

    def _take(self, frame: "dict[str, Any]", data: bytes) -> int | None:
        kind = frame["type"]
        if kind == "hello":
            self.connection.settimeout(None)
            self._version = min(frame.get("newest", 0), PROTOCOL)
        elif kind == "running":
            self._accepted, self.broken = True, 0
            if frame.get("execId", "") != self._exec_id:
                self._exec_id, self._step = frame["execId"], frame["step"]
                self._offsets, self._confirmed = dict.fromkeys(_STREAMS, 0), 0
            self._flush()
        elif kind == "output":
            if "by" in frame:
                self._cursor = frame.get("cursor", self._cursor)
                self._write(frame["stream"], data)
            elif self._printer:
                # Once it is counted it does not come again: what is not written yet is kept.
                self._offsets[frame["stream"]] += len(data)
                self._write("stdout", self._printer.output(frame["stream"], data).encode())
                self._confirm()
        elif kind == "started" and self._printer:
            self._write("stdout", self._printer.started().encode())
        elif kind == "stdinWindow":
            if self._stdin is None:
                from peerd.clientstdin import Stdin

                self._stdin = Stdin(_CHUNK)
            self._stdin.grant(frame, self._version)
        elif kind == "collect" and self._printer is None:
            from peerd.jsonrecord import Printer

            self._printer = Printer(frame["events"])
        elif kind == "exit":
            self._all_said = True
            self._flush()
            if self._printer:
                self._write("stdout", self._printer.result(frame["record"]).encode())
            return int(frame["status"])
        elif kind == "error":
            self._all_said = False
            return self.fail(frame["message"], code=frame["code"])
        return None

    def _pass_on(self, stream: str, size: int) -> None:
        """Write output of the command as it arrives."""
        while size:
            most = min(size, len(self._buffer) or _CHUNK)
            data = self._exactly(most) if self._buffer else self._receive(most)
            size -= len(data)
            view = memoryview(data)
            while view:
                written = self._write_some(self._output(stream), view, size)
                self._offsets[stream] += written
                view = view[written:]
        self._confirm()

    def _write(self, stream: str, data: bytes) -> None:
        """Write what does not come again: where the daemon goes meanwhile, the rest is kept."""
        if data:
            output = self._output(stream)
            output.kept = memoryview(bytes(output.kept) + data)
            self._flush()

    def _flush(self) -> None:
        for output in self._outputs.values():
            while output.kept:
                output.kept = output.kept[self._write_some(output, output.kept) :]

    def _output(self, stream: str) -> "Output":
        if stream not in self._outputs:
            from peerd.clientpipes import Output

            output = self._outputs[stream] = Output(_STREAMS[stream])
            if output.watched:
                self._watched.append(output.fd)
        return self._outputs[stream]

    def _write_some(self, output: "Output", data: memoryview, unread: int = 0) -> int:
        """Write what there is room for.

        Who sat in write(2) while its reader pauses would not notice that peerd is restarted, and come back too late.

        :param unread: bytes of the same message that are still to come
        :raises _Gone: when the daemon goes meanwhile, and its last words are not all that it had to say
        """
        try:
            written = output.write(data, None if self._all_said else self.connection)
        except OSError as error:
            raise _Unusable(f"Cannot write output: {error}") from error
        if not written:
            from peerd.clientend import last_words

            self._all_said = last_words(self.connection, self._buffer, unread)
            if not self._all_said:
                raise _Gone
        return written

    def _confirm(self) -> None:
        """Say from time to time what has been written or kept."""
        if sum(self._offsets.values()) - self._confirmed >= _CHUNK and not self._all_said:
            self._confirmed = sum(self._offsets.values())
            from peerd.clientpipes import send

            send(self.connection, {"type": "ack", "execId": self._exec_id, **self._offsets}, b"", _CANCELLING)

    def _cancel(self, _number: int, _frame: object) -> None:
        self._cancelled += 1
        if self._cancelled > 1 and self._all_said:
            posix._exit(EXIT_CANCELLED)
        if self._cancelled == 2:
            raise _Left
        # Else it follows the request, of which half may be under way.
        if self._cancelled == 1 and self._asked:
            self._take_back()

    def _take_back(self) -> None:
        try:
            self.connection.sendall(b'{"type":"cancel"}\n')
        except OSError:
            pass  # Why, is found out by who waits for the answer.

    def _send_stdin(self) -> bool:
        """Send some of standard input, if there is any to send and the daemon has nothing to say first."""
        if self._stdin is None or not self._stdin.room:
            return False
        if self._stdin.lacking and self.connection.fileno() in self._wait_for(0):
            return False
        try:
            data = self._stdin.take()
        except OSError as error:
            raise _Unusable(f"Cannot read standard input: {error}") from error
        from peerd.clientpipes import send

        send(self.connection, {"type": "stdin", "size": len(data)} if data else {"type": "stdin"}, data, _CANCELLING)
        return True

    def _wait_for(self, *more: int) -> list[int]:
        """Wait for the daemon to say something, or for one of more descriptors to be readable; which of them are.

        :raises _Unusable: when who read our output goes meanwhile; the command may write no more, so as to notice
        :raises TimeoutError: as socket.settimeout has it
        """
        from peerd.clientpipes import wait

        ready = wait((self.connection.fileno(), *more), self._watched, self.connection.gettimeout())
        if not ready:
            raise _Unusable from BrokenPipeError()
        return ready

    def _receive(self, most: int) -> bytes:
        if self._watched:
            self._wait_for()
        if data := self.connection.recv(most):
            return data
        raise _Gone

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            # Not much more than the line: what follows is better received where it is wanted.
            self._buffer += self._receive(_LINE)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += self._receive(min(size - len(self._buffer), _CHUNK))
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data
