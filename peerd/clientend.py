"""How `d` ends where the daemon does not say it, loaded only then."""

import posix

from peerd import quickjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence

    from peerd.jsonrecord import Printer

_CHUNK = 512 * 1024


def complain(*lines: str) -> None:
    """Say a sentence, and hints, on standard error."""
    try:
        posix.write(2, ("\n  ".join(lines) + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # The exit status still says it.


def fate(arguments: "Sequence[str]", exec_id: str) -> tuple[str, ...]:
    """What becomes of a command whose caller goes before it has heard the end, as a hint, where one was asked for.

    :param exec_id: its id, "" where that was not told
    """
    from peerd import cli

    asked = cli.meant(arguments)
    if asked.params.get("detach"):
        if not exec_id:
            return ("Whether its job was started: d listJobs",)
        return (f"Its job runs on, if it was started. To stop it: d cancelJob --job {exec_id}",)
    # Of a job its caller only hears.
    return ("The command is stopped, if it has not ended.",) if exec_id and "job" not in asked.params else ()


def record(
    arguments: "Sequence[str]", printer: "Printer | None", code: str, lines: "Sequence[str]", exec_id: str, status: int
) -> bytes:
    """What is printed of a command of whose end there is nobody to tell, where a record was asked for.

    :param printer: what prints it, or None where the daemon has not said yet whether one was asked for
    :param code: the error
    :param lines: what people are told: a sentence, and hints
    :param status: the exit status of ``d``
    """
    if printer is None and "--json" in arguments:
        from peerd import cli

        printer = cli.printer(cli.meant(arguments))
    if printer is None:
        return b""
    from peerd.render import no_result

    return printer.result({**no_result(code, lines, exec_id), "exit_status": status}).encode()


def last_words(connection: "socket", buffer: bytearray, unread: int) -> bool:
    """Take all that a daemon said before it went; whether that was to its end.

    :param buffer: what has come and was not looked at, to which the rest is added
    :param unread: bytes at its beginning that belong to a message before
    """
    try:
        while data := connection.recv(_CHUNK):
            buffer += data
    except ConnectionError:
        pass  # It has not heard our last words.
    while (end := buffer.find(b"\n", unread)) >= 0:
        frame = quickjson.loads(buffer[unread:end].decode())
        if frame["type"] in ("exit", "error"):
            return True
        unread = end + 1 + frame.get("size", 0)
    return False
