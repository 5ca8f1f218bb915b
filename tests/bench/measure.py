"""Boots two machines joined by WireGuard and measures peerd beside its competitors. Run it as tests/bench/run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from bench import growth, streams  # noqa: E402
from bench.chart import draw  # noqa: E402
from lab import Lab, LabError, Machine, Spec, check_host  # noqa: E402

COMPETITORS = "pdsh clustershell pssh ansible-core python3-asyncssh python3-paramiko strace".split()
BASELINE = "ssh, ControlMaster"
BURST = 200
AT_ONCE = 32
# A start of an interpreter is the least that a call costs; where it varies more than this, so does everything.
QUIET = 2.0
PARTS = ("latency", "burst", "streams", "memory", "profile", "fleet")

SSH_CONFIG = """
Host *
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
Host mux
    HostName 10.0.0.1
    ControlMaster auto
    ControlPath /root/.ssh/mux
    ControlPersist yes
Host vps
    HostName 10.0.0.1
"""


def build() -> Path:
    """Build the package; its path."""
    built = subprocess.run([ROOT / "packaging/build-deb"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return ROOT / built.stdout.splitlines()[-1]


def prepare(lab: Lab, package: Path) -> None:
    """Install peerd on both machines, and let desktop's root into vps by ssh."""
    vps, desktop = lab["vps"], lab["desktop"]
    for machine in lab:
        machine.put(package, f"/root/{package.name}")
        machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y ./{package.name}", timeout=300)
    vps.run("d setPeerConfig --role leader --id vps")
    desktop.run("d registerWorker")
    desktop.run("mkdir -p -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
    desktop.write("/root/.ssh/config", SSH_CONFIG)
    vps.write("/root/.ssh/authorized_keys", desktop.read("/root/.ssh/id_ed25519.pub"))
    # What ships would refuse some of a burst.
    vps.write("/etc/ssh/sshd_config.d/bench.conf", "MaxSessions 1000\nMaxStartups 1000\nUsePAM yes\n")
    desktop.write(
        "/root/.ansible.cfg", "[defaults]\nhost_key_checking = False\ninterpreter_python = /usr/bin/python3\n"
    )
    vps.run("systemctl start ssh")
    desktop.run("ssh mux true && ssh vps true")
    for machine, script in ((desktop, "contenders.py"), (vps, "scopes.py"), (desktop, growth.SCRIPT)):
        machine.put(Path(__file__).with_name(script), f"/root/{script}")


def latency(desktop: Machine, rounds: int) -> dict[str, list[float]]:
    """Seconds that each contender took for one `true`."""
    wanted = {"rounds": rounds, "slow_rounds": max(3, rounds // 10)}
    limit = 60 + rounds * 4
    measured = desktop.run(["python3", "/root/contenders.py"], input=json.dumps(wanted).encode(), timeout=limit)
    found: dict[str, list[float]] = json.loads(measured.stdout)
    return found


def print_latency(times: Mapping[str, Sequence[float]]) -> None:
    """The table of one `true`."""
    baseline = statistics.median(times[BASELINE])
    columns = "".join(f"{name:>9}" for name in ("median", "min", "p99", "max"))
    print(f"\n{'one `true` on vps, ms':32}{columns} {'x mux':>7} {'n':>4}")
    for name, values in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        ordered = sorted(values)
        figures = (statistics.median(values), ordered[0], ordered[len(ordered) * 99 // 100], ordered[-1])
        shown = "".join(f"{1000 * figure:9.1f}" for figure in figures)
        print(f"{name:32}{shown} {statistics.median(values) / baseline:7.2f} {len(values):4}")
    starts = sorted(times["python3 -I -S -c pass"])
    spread = starts[len(starts) * 9 // 10] / starts[0]
    if spread > QUIET:
        print(f"This machine is busy: one start of an interpreter in ten takes {spread:.1f} x the quickest one.")


def ceiling(vps: Machine) -> dict[str, list[float]]:
    """Print what a scope by itself costs on vps; the seconds of each, one at a time."""
    measured = json.loads(vps.out(["python3", "/root/scopes.py", str(BURST)], timeout=300))
    print(f"\n{'/bin/true on vps, in process':32} {'median':>8} {'/s':>8}")
    for name, rate in measured.pop("rates").items():
        print(f"{name:32} {1000 * statistics.median(measured[name]):8.1f} {rate:8.0f}")
    print(f"{'scope after a pause':32} {1000 * statistics.median(measured['scope after a pause']):8.1f}")
    return {f"{name}, in process": values for name, values in measured.items() if name.endswith("at 1")}


def burst(desktop: Machine, name: str, command: str) -> None:
    """Run many commands, some at once, and print how long they took and how many failed."""
    script = f"seq {BURST} | xargs -P {AT_ONCE} -I _ sh -c '{command} || echo failed'"
    began = time.perf_counter()
    failed = desktop.out(script, timeout=300).count("failed")
    took = time.perf_counter() - began
    print(f"{name:32} {took:8.2f} s {BURST / took:8.0f} /s {failed:6} failed")


def open_burst(desktop: Machine) -> None:
    """The same over connections to peerd that are open already."""
    wanted = json.dumps({"burst": BURST, "at_once": AT_ONCE}).encode()
    measured = desktop.run(["python3", "/root/contenders.py"], input=wanted, timeout=300)
    took = json.loads(measured.stdout)["seconds"]
    print(f"{'peerd, open connections':32} {took:8.2f} s {BURST / took:8.0f} /s {0:6} failed")


def memory(lab: Lab) -> None:
    """Print what the daemons have in memory before, with and after many connections, and what idling costs."""
    desktop = lab["desktop"]

    def resident(when: str) -> None:
        status = "/proc/$(systemctl show -P MainPID peerd)/status"
        shown = {machine.name: machine.out(f"awk '/^VmRSS/ {{ print $2 / 1024 }}' {status}") for machine in lab}
        print(f"{when:32}" + "".join(f"{name:>10} {float(mib):5.1f} MiB" for name, mib in shown.items()))

    for machine in lab:
        machine.run("systemctl restart peerd")
    desktop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 60)
    desktop.run("d execOnPeer --peer vps --directory / --shellCmd true")
    resident("after one command")
    sleepers = "for i in $(seq 100); do d execOnPeer --peer vps --directory / --shellCmd 'sleep 15' & done"
    with desktop.popen(f"{sleepers}; wait") as running:
        desktop.wait_until("test $(d listJobs --json | jq 'map(select(.outcome == null)) | length') -ge 100", 60)
        resident("with 100 connections")
        running.wait(60)
    for what, command in (("(a burst)", "true"), ("(a burst of output)", '"head -c 1000000 /dev/zero"')):
        burst(desktop, what, f"d execOnPeer --peer vps --directory / --shellCmd {command} >/dev/null")
    time.sleep(3)
    resident("after them and two bursts")
    usage = "systemctl show -P CPUUsageNSec peerd"
    before = {machine.name: int(machine.out(usage)) for machine in lab}
    began = time.monotonic()
    time.sleep(20)
    for machine in lab:
        share = (int(machine.out(usage)) - before[machine.name]) / 1e9 / (time.monotonic() - began)
        print(f"{machine.name + ', idle':32} {share:8.2%} of a CPU")


def profile(lab: Lab, count: int = 200) -> None:
    """Print where the daemons' time goes: system calls of each, then the functions of the target's."""
    loop = f"for i in $(seq {count}); do d execOnPeer --peer vps --directory / --shellCmd true; done"
    for machine in lab:
        trace = "strace -f -c -S time -o /root/strace -p $(systemctl show -P MainPID peerd)"
        machine.run(f"{trace} >/dev/null 2>&1 & echo $! >/root/strace.pid")
    lab["desktop"].run(loop, timeout=300)
    for machine in lab:
        machine.run("kill -INT $(cat /root/strace.pid); tail --pid=$(cat /root/strace.pid) -f /dev/null")
        print(f"\nsystem calls of peerd on {machine.name}, {count} commands (traced, so slower than they are)")
        print("\n".join(machine.read("/root/strace").splitlines()[:16]))
    vps = lab["vps"]
    vps.write(
        "/etc/systemd/system/peerd.service.d/profile.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/python3 -I -m cProfile -o /run/peerd.profile /usr/bin/peerd\n",
    )
    vps.run("systemctl daemon-reload; systemctl restart peerd")
    lab["desktop"].wait_until("d getPeerStatus | jq -e .connected_to_leader", 60)
    lab["desktop"].run(loop, timeout=300)
    vps.run("systemctl stop peerd.socket peerd-tcp.socket peerd")
    print(f"\nfunctions of peerd on vps, {count} commands (profiled, so slower than they are)")
    report = "import pstats; pstats.Stats('/run/peerd.profile').sort_stats('tottime').print_stats(22)"
    print("\n".join(vps.out(["python3", "-c", report]).splitlines()[4:]))


def main() -> int:
    """Measure all; 0 when every command of every contender did what it should."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="of one `true` (50); the slow contenders do a tenth")
    parser.add_argument("--svg", type=Path, help="draw the latencies into this file")
    parser.add_argument("--json", type=Path, help="write every single latency, in seconds, into this file")
    parser.add_argument("--deb", type=Path, help="install this package instead of building one")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; again for more (all)")
    options = parser.parse_args()
    if problems := check_host():
        print("\n".join(problems), file=sys.stderr)
        return 1
    package = options.deb or build()
    try:
        with Lab([Spec("vps", "10.0.0.1"), Spec("desktop", "10.0.0.2")], COMPETITORS) as lab:
            prepare(lab, package.resolve())
            print(f"load before the first round: {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
            for part in options.only or PARTS:
                run_part(part, lab, options)
    except (LabError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        return 1
    return 0


def run_part(part: str, lab: Lab, options: argparse.Namespace) -> None:
    """Measure one of :data:`PARTS`."""
    desktop = lab["desktop"]
    match part:
        case "latency":
            times = latency(desktop, options.rounds)
            print_latency(times)
            times |= ceiling(lab["vps"])
            if options.json:
                options.json.write_text(json.dumps(times))
            if options.svg:
                medians = {name: 1000 * statistics.median(of) for name, of in times.items()}
                options.svg.write_text(draw(medians, BASELINE))
        case "burst":
            print(f"\n{BURST} x `true`, {AT_ONCE} at once")
            open_burst(desktop)
            for name, command in (
                ("d execOnPeer", "d execOnPeer --peer vps --directory / --shellCmd true"),
                ("ssh, ControlMaster", "ssh mux true"),
                ("ssh, cold", "ssh vps true"),
            ):
                burst(desktop, name, command)
        case "streams":
            streams.measure(lab, 3)
        case "memory":
            print("\nmemory and idling")
            memory(lab)
        case "profile":
            profile(lab)
        case "fleet":
            growth.measure(lab)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
