"""What the leader costs as the fleet grows: workers that are simulated on desktop, over the link below the VPN."""

from __future__ import annotations

import json
import subprocess
import time

from lab import Lab, Machine

SCRIPT = "fleet.py"
SIZES = (10, 100, 1000, 5000)
_IDLE = 65.0
"""Seconds of nothing but heartbeats: longer than what is written once a minute."""
_CONFIG = "[peerd]\nvpn-interface = eth0\nmax-connections = 20000\nconnect-timeout = 20\n"
# Title and format of each figure of a row; "each" is for each worker.
COLUMNS = (
    ("workers", "d"),
    ("first, s", ".2f"),
    ("ms each", ".2f"),
    ("restart, s", ".2f"),
    ("ms each", ".2f"),
    ("beats, ms each/min", ".2f"),
    ("written, B each/min", ".0f"),
    ("change, s", ".2f"),
    ("us each", ".0f"),
    ("lookup, ms", ".1f"),
    ("list, us each", ".0f"),
    ("MiB", ".0f"),
)
_SOCKET = "[Socket]\nIPAddressAllow=10.1.0.0/16\nBacklog=4096\n"


class Leader:
    """peerd on vps."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def _process(self, file: str) -> str:
        return self.machine.out(f"cat /proc/$(systemctl show -P MainPID peerd)/{file}")

    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        fields = self._process("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def rss(self) -> float:
        """MiB that are resident."""
        lines = self._process("status").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def written(self) -> int:
        """Bytes that it wrote to files."""
        lines = self._process("io").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))

    def milliseconds(self, command: str) -> float:
        """What a command of d takes, the quickest of five."""
        took = []
        for _ in range(5):
            began = time.perf_counter()
            self.machine.run(f"{command} >/dev/null")
            took.append(1000 * (time.perf_counter() - began))
        return min(took)


def measure(lab: Lab) -> None:
    """Print a row for each size of the fleet."""
    vps, desktop = lab["vps"], lab["desktop"]
    desktop.run("systemctl stop peerd.service peerd.socket peerd-tcp.socket")
    desktop.run("ip route replace local 10.1.0.0/16 dev lo")
    vps.run("ip route replace 10.1.0.0/16 via 192.168.77.2; mkdir -p /etc/systemd/system/peerd-tcp.socket.d")
    vps.write("/etc/systemd/system/peerd-tcp.socket.d/fleet.conf", _SOCKET)
    vps.write("/etc/peerd/peerd.conf.d/fleet.conf", _CONFIG)
    print("\nthe leader's CPU time, and how long it takes\n" + "  ".join(title for title, _ in COLUMNS))
    for count in SIZES:
        vps.run("systemctl stop peerd.service peerd.socket peerd-tcp.socket; rm -f /var/lib/peerd/peerd.db*")
        vps.run("systemctl daemon-reload; systemctl start peerd.socket peerd-tcp.socket")
        vps.run("d setPeerConfig --role leader --id vps")
        figures = row(Leader(vps), desktop, count)
        print(
            "  ".join(f"{figure:>{len(title)}{form}}" for (title, form), figure in zip(COLUMNS, figures, strict=True))
        )


def row(leader: Leader, desktop: Machine, count: int) -> list[float]:
    """Measure one size."""
    command = ["python3", f"/root/{SCRIPT}", "192.168.77.1", str(count)]
    with desktop.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as fleet:

        def ask(what: str) -> float:
            assert fleet.stdin
            assert fleet.stdout
            fleet.stdin.write(f"{what}\n".encode())
            fleet.stdin.flush()
            seconds: float = json.loads(fleet.stdout.readline())["seconds"]
            return seconds

        before = leader.cpu()
        first = ask("wait")
        first_cpu = leader.cpu() - before
        time.sleep(2)
        before, written, began = leader.cpu(), leader.written(), time.monotonic()
        time.sleep(_IDLE)
        minutes = (time.monotonic() - began) / 60
        beats, written = leader.cpu() - before, leader.written() - written
        before = leader.cpu()
        changed = ask("change")
        time.sleep(2)
        change_cpu = leader.cpu() - before
        lookup = leader.milliseconds("d getPeerInfo --peer w1")
        listing = leader.milliseconds("d listPeers") - lookup
        leader.machine.run("systemctl restart peerd.service")
        restarted = ask("wait")
        time.sleep(2)
        # All that the new process has used, its start as well.
        restart_cpu, rss = leader.cpu(), leader.rss()
        assert fleet.stdin
        fleet.stdin.close()
        fleet.wait(60)
    return [
        *(count, first, 1e3 * first_cpu / count, restarted, 1e3 * restart_cpu / count),
        *(1e3 * beats / count / minutes, written / count / minutes, changed, 1e6 * change_cpu / count),
        *(lookup, 1e3 * listing / count, rss),
    ]
