"""A command on a peer does what it does at home: the same output, the same status, whatever it is made of."""

from __future__ import annotations

import base64
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Machine

from .runner import pack

RUNNER = Path(__file__).with_name("runner.py")
JOBS = 6
FORMS = ("raw", "json", "stream")

# Generated anew in the same way each time: a failure here is a failure everywhere. The message has the case in it,
# and to look for a smaller one in booted machines would take its time.
PROPERTY = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=12,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

Case = dict[str, Any]


def results(machine: Machine, peer: str, cases: list[Case]) -> list[dict[str, object]]:
    """What the runner in a machine says of these cases."""
    if not machine.ok("test -x /root/runner.py"):
        machine.put(RUNNER, "/root/runner.py")
        machine.run("chmod +x /root/runner.py")
    found: list[dict[str, object]] = json.loads(
        machine.run(["/root/runner.py", peer, str(JOBS)], input=json.dumps(cases).encode(), timeout=110).stdout
    )
    return found


def compare(caller: Machine, target: Machine, cases: list[Case]) -> None:
    """Run cases on the target by d and as its own processes: all that both tell of a case must be the same."""
    expected = results(target, "-", cases)
    for case, here, there in zip(cases, expected, results(caller, target.name, cases), strict=True):
        known = {name: here[name] for name in there}
        assert there == known, f"{readable(case)}: {readable(there)}, at home {readable(known)}"


def readable(packed: dict[str, Any]) -> dict[str, Any]:
    """A case or a result with its bytes unpacked."""

    def show(name: str, value: Any) -> Any:
        if name in ("shell", "input", "stdout", "stderr"):
            return base64.b64decode(value)
        if name == "argv":
            return [base64.b64decode(word) for word in value]
        return {key: base64.b64decode(text) for key, text in value.items()} if name == "env" else value

    return {name: show(name, value) for name, value in packed.items()}


def shell(command: str | bytes, **more: object) -> Case:
    """A case for /bin/sh."""
    return {"shell": pack(command.encode() if isinstance(command, str) else command), **more}


def program(*argv: bytes, **more: object) -> Case:
    """A case without a shell."""
    return {"argv": [pack(word) for word in argv], **more}


def test_every_exit_status_has_its_outcome(desktop: Machine, vps: Machine) -> None:
    compare(desktop, vps, [shell(f"exit {status}", form=FORMS[status % 3]) for status in range(256)])


def test_every_signal_that_can_end_a_process_has_its_outcome(desktop: Machine, vps: Machine) -> None:
    harmless = "SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGWINCH".split()
    # The GNU C library keeps 32 and 33 to itself. What its posix_spawn(3) starts ignores them: a command of peerd, and
    # on Debian 13, whose systemd starts services by it, everything else.
    reserved = {32, 33}
    numbers = set(range(1, signal.NSIG)) - {signal.Signals[name].value for name in harmless} - reserved
    assert len(numbers) == 54
    cases = [shell(f"kill -{number} $$; echo alive", form=form) for number in numbers for form in ("raw", "json")]
    compare(desktop, vps, cases)


def test_every_kind_of_output_arrives_as_it_was_written(desktop: Machine, vps: Machine) -> None:
    contents = [
        b"", b"\n", b"\n\n\n", b"no newline", b"\0", b"\0" * 70_000, bytes(range(256)), bytes(range(256)) * 1024,
        b"\xff", b"\xc3", b"\xc3(", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbfBOM", "ünï ☃ 𝄞\n".encode(),
        b"x" * 65_535 + "☃".encode(), b"\r\n\x1b[31m\x07\x7f\x80", b'{"type":"exit","status":0}\n',
    ]  # fmt: skip
    cases = []
    for index, content in enumerate(contents):
        vps.write(f"/root/contents/{index}", content)
        other = (index + 1) % len(contents)
        cases += [
            shell(f"cat /root/contents/{index}; cat /root/contents/{other} >&2; exit {index}", form=form)
            for form in FORMS
        ]
    compare(desktop, vps, cases)


def test_the_longest_command_and_arguments_run(desktop: Machine, vps: Machine) -> None:
    # 131,071 bytes are the most that execve(2) takes in one argument.
    script = b'printf %s "$#" "$1" | sha256sum; exit 7; #'
    cases = [shell(script + byte * (131_071 - len(script)), form="json") for byte in (b"x", b"\xff", b"\x01")]
    cases += [program(b"/usr/bin/printf", b"%s|", *[b"\xfe"] * 4000), program(b"printf", b"%s", b"\xfd" * 131_000)]
    compare(desktop, vps, cases)


# --- generated -----------------------------------------------------------------------------------------------------

BYTES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"-", b"--", b"-n", b"--help", b"$HOME", b"`id`", b"\\", b"\n", b"'", b'"', b"*", b"~", b"%s"]
    ),
).map(lambda data: data.replace(b"\0", b"\x01"))
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(
    # What changes how the programs that are run behave, and what is peerd's.
    lambda name: (
        not name.startswith(("PEERD_", "LC_", "LD_")) and name not in ("PATH", "LANG", "LANGUAGE", "PWD", "IFS")
    )
)
VARIABLES = st.dictionaries(NAMES, BYTES.map(pack), max_size=3)
MORE = {
    "env": VARIABLES,
    "form": st.sampled_from(FORMS),
    "locale": st.sampled_from(["C", "C.UTF-8", "POSIX", "en_US.ISO-8859-1"]),
}


def quoted(data: bytes) -> bytes:
    """A word of the shell that stands for these bytes."""
    return b"'" + data.replace(b"'", b"'\\''") + b"'"


WORDS = BYTES.map(quoted)
# A double-quoted one, in which something is expanded.
EXPANDING = st.sampled_from([b'"$HOME"', b'"${1:-none}"', b'"$((6 * 7))"', b'"`printf x`"', b'"\\$HOME"', b"~", b"*"])
PRINTS = st.lists(st.one_of(WORDS, EXPANDING), max_size=4).map(lambda words: b"printf '<%s>' " + b" ".join(words))
STATEMENTS = st.one_of(
    PRINTS,
    PRINTS.map(lambda text: text + b" >&2"),
    PRINTS.map(lambda text: text + b" | od -c"),
    PRINTS.map(lambda text: b"( " + text + b"; exit 3 )"),
    PRINTS.map(lambda text: b"for i in 1 2 3; do " + text + b"; done"),
    BYTES.map(lambda data: b"cat <<'EnD'\n" + data + b"\nEnD\n"),
    NAMES.map(lambda name: b'printf %s "$' + name.encode() + b'"'),
    st.just(b"cat"),
    st.sampled_from([b"true", b"false", b"no-such-program", b"/etc/passwd", b"cd /no/such", b"set -e", b"set -u"]),
)
# A line that nobody meant to be a command. No output into files, and nothing that runs beside something else: what
# comes of that is never the same twice. Nor "$", which could be the number of a process.
# Without w, the one program with a name of one letter, which tells the time.
JUNK = st.text("".join(chr(code) for code in range(1, 127) if chr(code) not in "|&>$w"), max_size=20).map(str.encode)
ENDS = st.one_of(
    st.just(b""),
    st.integers(0, 255).map(lambda status: b"exit %d" % status),
    st.sampled_from([1, 2, 3, 6, 9, 11, 13, 15]).map(lambda number: b"kill -%d $$" % number),
)
SEPARATORS = st.sampled_from([b"\n", b"; ", b"\n\n# a comment\n", b" || ", b" && "])
SCRIPTS = st.builds(
    lambda separator, statements, end: separator.join(statements) + b"\n" + end,
    SEPARATORS,
    st.lists(STATEMENTS, min_size=1, max_size=4),
    ENDS,
)
COMMANDS = st.one_of(SCRIPTS, SCRIPTS, JUNK).filter(lambda text: bool(text.decode("utf-8", "surrogateescape").strip()))
SHELL_CASES = st.fixed_dictionaries(
    {"shell": COMMANDS.map(pack), **MORE}, optional={"input": st.binary(max_size=99).map(pack)}
)
# A program that prints its arguments, so that none can be lost, split or joined, and one that prints its variables.
ARGUMENTS = st.lists(BYTES, max_size=8).map(lambda words: [b"/usr/bin/printf", b"%s\\0", *words])
LOOK_UPS = st.just([b"sh", b"-c", b"env -0 -u PEERD_EXEC_ID -u PEERD_CALLER | sort -z"])
PROGRAM_CASES = st.fixed_dictionaries(
    {"argv": st.one_of(ARGUMENTS, ARGUMENTS, LOOK_UPS).map(lambda words: [pack(word) for word in words]), **MORE}
)


@pytest.mark.slow
@PROPERTY
@given(st.lists(SHELL_CASES, min_size=20, max_size=30))
def test_any_shell_command_does_what_it_does_at_home(desktop: Machine, vps: Machine, cases: list[Case]) -> None:
    compare(desktop, vps, cases)


@pytest.mark.slow
@PROPERTY
@given(st.lists(PROGRAM_CASES, min_size=20, max_size=30))
def test_any_program_gets_its_arguments_and_variables(desktop: Machine, vps: Machine, cases: list[Case]) -> None:
    compare(desktop, vps, cases)
