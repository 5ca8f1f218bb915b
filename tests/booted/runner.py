#!/usr/bin/python3
"""Runs in a machine: a list of commands, either by d on a peer or by itself, so that the results can be compared.

    runner.py PEER JOBS     by d on that peer, so many at once
    runner.py - JOBS        here, as a child of this process

Standard input is a JSON list of cases, standard output the list of their results, in the same order. Bytes are base64.
A case has ``argv`` or ``shell``, and maybe ``env`` (name to value), ``input`` and ``form``: "raw" (what d writes as it
comes), "json" or "stream". A result has stdout, stderr and exit_status; outcome and signal too where the form has them.
"""

import base64
import json
import os
import pwd
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DIRECTORY = "/var/empty-for-tests"
ROOT = pwd.getpwuid(0)
# As d.1 has it, without what names the command.
LOGIN = {
    "HOME": ROOT.pw_dir,
    "USER": ROOT.pw_name,
    "LOGNAME": ROOT.pw_name,
    "SHELL": ROOT.pw_shell,
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
# What a login has, whatever started this process was started with.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)


def unpack(text: str) -> bytes:
    """Bytes from their base64."""
    return base64.b64decode(text)


def pack(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def command(case: dict[str, Any]) -> list[bytes]:
    """The program of a case and its arguments."""
    if "shell" in case:
        return [b"/bin/sh", b"-c", unpack(case["shell"])]
    return [unpack(word) for word in case["argv"]]


def run_here(case: dict[str, Any]) -> dict[str, object]:
    """Run a case as a child of this process."""
    environment = {name.encode(): value.encode() for name, value in LOGIN.items()}
    environment |= {name.encode(): unpack(value) for name, value in case.get("env", {}).items()}
    done = subprocess.run(
        command(case),
        cwd=DIRECTORY,
        env=environment,
        input=unpack(case.get("input", "")),
        capture_output=True,
        check=False,
    )
    status, signal = (128 - done.returncode, -done.returncode) if done.returncode < 0 else (done.returncode, None)
    outcome = "exited" if signal is None else "signaled"
    output = {"stdout": pack(done.stdout), "stderr": pack(done.stderr)}
    return {**output, "exit_status": status, "outcome": outcome, "signal": signal}


def run_by_d(peer: str, case: dict[str, Any]) -> dict[str, object]:
    """Run a case on a peer; d's own exit status must be the one that its record has."""
    form = case.get("form", "raw")
    arguments: list[bytes | str] = ["d", "execOnPeer", "--peer", peer, "--directory", DIRECTORY, "--timeout", "100"]
    arguments += {"raw": [], "json": ["--json"], "stream": ["--json", "--stream"]}[form]
    for name, value in case.get("env", {}).items():
        arguments += ["--env", name.encode() + b"=" + unpack(value)]
    if "input" in case:
        arguments.append("--stdin")
    arguments += ["--shellCmd", unpack(case["shell"])] if "shell" in case else ["--", *command(case)]
    # What the caller's own locale is must not matter.
    environment = {"PATH": os.environ["PATH"], "LC_ALL": case.get("locale", "C.UTF-8")}
    data = unpack(case["input"]) if "input" in case else None
    done = subprocess.run(arguments, env=environment, input=data, capture_output=True, check=False)
    if form == "raw":
        return {"stdout": pack(done.stdout), "stderr": pack(done.stderr), "exit_status": done.returncode}
    if done.stderr:
        raise SystemExit(f"d wrote to stderr: {done.stderr!r}")
    if form == "json":
        record = json.loads(done.stdout)
        output = {name: text(record[name], record[f"{name}_encoding"]) for name in ("stdout", "stderr")}
    else:
        *events, record = map(json.loads, done.stdout.splitlines())
        output = {"stdout": b"", "stderr": b""}
        for event in events:
            if event["event"] == "output":
                output[event["stream"]] += text(event["data"], event["encoding"])
    if record["exit_status"] != done.returncode:
        raise SystemExit(f"d ended with {done.returncode}, its record says {record['exit_status']}")
    packed = {name: pack(data) for name, data in output.items()}
    return {**packed, **{name: record[name] for name in ("exit_status", "outcome", "signal")}}


def text(data: str, encoding: str) -> bytes:
    """The bytes that a record has as text or as base64."""
    return unpack(data) if encoding == "base64" else data.encode()


def main() -> None:
    """Run the cases of standard input."""
    peer, jobs = sys.argv[1], int(sys.argv[2])
    os.makedirs(DIRECTORY, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        run = run_here if peer == "-" else lambda case: run_by_d(peer, case)
        print(json.dumps(list(pool.map(run, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
