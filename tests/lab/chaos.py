"""Commands among a lab's machines while faults happen to them, each command checked for what is promised of it.

Everything random comes from one seed: what is run, from where, where, and which faults. What a fault does to a command
depends on the moment, so a check never asks for a certain outcome, but for one that is true: a command whose exit
status arrives ran exactly once and all of its output is there; any other ran at most once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .machine import Machine
from .machines import Lab

LOG = logging.getLogger(__name__)
PID = "systemctl show -P MainPID peerd"
# Not kill(1): where peerd is about to be started again its pid is 0, which is the process group of the caller.
_SIGNAL = "systemctl kill --kill-whom=main --signal={} peerd.service"
LEDGER = "/var/tmp/chaos"
# Endings that leave open whether the command ran.
OPEN = ("unreachable", "lost", "denied", "cancelled")


@dataclass(frozen=True)
class Fault:
    """Something that happens to a machine, and what ends it, if it does not end by itself."""

    name: str
    begin: Callable[[Machine], object]
    end: Callable[[Machine], object] | None = None


def _shell(command: str) -> Callable[[Machine], object]:
    return lambda machine: machine.run(command, check=False, timeout=120)


FAULTS = (
    Fault("restart", _shell("systemctl restart peerd")),
    Fault("kill -9", _shell(_SIGNAL.format("KILL"))),
    Fault("abort", _shell(_SIGNAL.format("ABRT"))),
    Fault("freeze", _shell(_SIGNAL.format("STOP")), _shell(_SIGNAL.format("CONT"))),
    Fault("WireGuard down", Machine.wireguard_down, Machine.wireguard_up),
    Fault("cable out", Machine.link_down, Machine.link_up),
)


@dataclass(frozen=True)
class Command:
    """One command: what it is to print and how it is to end is known beforehand.

    :ivar lines: how many lines of output, each of 64 characters
    :ivar pause: seconds that it takes
    :ivar status: its exit status
    :ivar stdin: whether it gets its lines from its caller, and passes them on
    """

    number: int
    caller: str
    target: str
    lines: int
    pause: float
    status: int
    stdin: bool

    @property
    def output(self) -> bytes:
        """What it prints."""
        return b"".join(b"%063d\n" % (self.number * 1_000_003 + line) for line in range(self.lines))

    @property
    def line(self) -> str:
        """The line for the shell. Each run of it leaves one line in the ledger."""
        first = self.number * 1_000_003
        write = "cat" if self.stdin else f"seq -f %063.0f {first} {first + self.lines - 1}" if self.lines else "true"
        return f"echo ran >>{LEDGER}/{self.number}; {write}; sleep {self.pause:.2f}; exit {self.status}"


@dataclass
class Report:
    """What happened.

    :ivar outcomes: how many commands ended how
    :ivar faults: how many faults of which kind there were
    :ivar wrong: a sentence for each promise that was not kept
    """

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = (f"{count} {name}" for name, count in sorted(self.faults.items()))
        ends = (f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        return (
            f"seed {self.seed}: {sum(self.outcomes.values())} commands ({', '.join(ends)}), faults: {', '.join(kinds)}"
        )


class Chaos:
    """Runs commands on the machines of a lab, which have peerd and are joined, with faults in between."""

    def __init__(self, lab: Lab, names: Sequence[str], seed: int, at_once: int = 6) -> None:
        self._lab = lab
        self._names = list(names)
        self._random = random.Random(seed)
        self._at_once = at_once
        self._stop = threading.Event()
        self.report = Report(seed)

    def run(self, commands: int, seconds: float) -> Report:
        """Run so many commands, or as many as start in so many seconds; then check what is left over."""
        for name in self._names:
            self._lab[name].run(
                f"rm -rf {LEDGER} {LEDGER}.jobs; mkdir {LEDGER}; ls -A /var/lib/peerd/jobs >{LEDGER}.jobs"
            )
        faults = threading.Thread(target=self._disturb, args=(random.Random(self._random.random()),))
        faults.start()
        deadline = time.monotonic() + seconds
        try:
            with ThreadPoolExecutor(self._at_once) as pool:
                planned = [self._plan(number) for number in range(commands)]
                for result in pool.map(lambda command: self._one(command, deadline), planned):
                    self.report.wrong += result
        finally:
            self._stop.set()
            faults.join()
        self._check_leftovers()
        return self.report

    def _plan(self, number: int) -> Command:
        pick = self._random
        caller, target = pick.choice(self._names), pick.choice(self._names)
        stdin = pick.random() < 0.2
        # Of input more than what may be under way, so that some of it is when something breaks.
        lines = pick.choice((0, 1, 100, 5_000, 200_000 if stdin else 40_000))
        return Command(
            number,
            caller,
            target,
            lines,
            pick.choice((0, 0, 0.5, 2)),
            pick.choice((0, 0, 1, 3, 77)),
            stdin,
        )

    def _one(self, command: Command, deadline: float) -> list[str]:
        if time.monotonic() > deadline:
            return []
        argv = ["d", "execOnPeer", "--json", "--peer", command.target, "--directory", "/"]
        argv += ["--timeout", "120", "--shellCmd", command.line]
        if command.stdin:
            argv.append("--stdin")
        done = self._lab[command.caller].run(
            argv, check=False, input=command.output if command.stdin else None, timeout=300
        )
        try:
            record = json.loads(done.stdout)
        except ValueError:
            # d says so where its own peerd is away for good; nothing is known then, but for what the ledger says.
            record = {"outcome": "lost", "exit_status": done.returncode, "stdout": None, "error": None}
        self.report.outcomes[record["outcome"]] += 1
        ran = self._lab[command.target].out(f"cat {LEDGER}/{command.number}", check=False).count("ran")
        output = None if record["stdout"] is None else str(record["stdout"]).encode()
        said = f"{record['error']} {done.stderr[-500:]!r}"
        return [f"{command}: {fault}: {said}" for fault in _faults_of(command, record, ran, output)]

    def _disturb(self, pick: random.Random) -> None:
        while not self._stop.wait(pick.uniform(0.5, 3)):
            machine, fault = self._lab[pick.choice(self._names)], pick.choice(FAULTS)
            LOG.info("%s: %s", machine.name, fault.name)
            self.report.faults[fault.name] += 1
            fault.begin(machine)
            if fault.end:
                self._stop.wait(pick.uniform(0.3, 4))
                fault.end(machine)

    def _check_leftovers(self) -> None:
        for name in self._names:
            machine = self._lab[name]
            for what, condition in {
                "its peers": f"d listPeers | jq -e 'map(select(.is_online)) | length == {len(self._names)}'",
                "a scope": "! systemctl list-units --plain --no-legend 'peerd-exec-*.scope' | grep .",
                "a kept descriptor": "[ $(systemctl show -P NFileDescriptorStore peerd) = 0 ]",
                "a file of a job": f"ls -A /var/lib/peerd/jobs | diff - {LEDGER}.jobs",
                "a descriptor": f"[ $(ls /proc/$({PID})/fd | wc -l) -lt 60 ]",
            }.items():
                try:
                    machine.wait_until(condition, 60)
                except TimeoutError:
                    self.report.wrong.append(f"{name}: {what}: {condition}")


def _faults_of(command: Command, record: dict[str, object], ran: int, output: bytes | None) -> list[str]:
    """What is wrong about the end of a command."""
    outcome = record["outcome"]
    if ran > 1:
        return [f"it ran {ran} times"]
    if outcome in OPEN:
        if output is not None and not command.output.startswith(output):
            return [f"{outcome}, with output that it never wrote"]
        return ["it was denied, and ran"] if outcome == "denied" and ran else []
    if outcome != "exited":
        return [f"it ended as {outcome}"]
    wrong = []
    if record["exit_status"] != command.status:
        wrong.append(f"its exit status is {record['exit_status']}")
    if ran != 1:
        wrong.append("it ended and never ran")
    if output != command.output:
        digest = hashlib.sha256(output or b"").hexdigest()[:12]
        wrong.append(f"its output has {len(output or b'')} bytes of {len(command.output)} ({digest})")
    return wrong
