"""How fast output and input pass, beside ssh and raw TCP: through the tunnel, and over a plain link."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

from lab import Lab, LabError, Machine
from lab.host import cgroup_roots

VOLUME = 128 * 1024 * 1024
# Of the link below the VPN, which the lab's first machines have in this order.
PLAIN = {"vps": "192.168.77.1", "desktop": "192.168.77.2"}
_PLAIN_CONFIG = "[peerd]\nvpn-interface = eth0\n"
_PLAIN_SOCKET = "[Socket]\nIPAddressAllow=192.168.77.0/24\n"


def cpu_seconds(machines: Sequence[Machine]) -> float:
    """CPU time that all of some machines has used."""
    texts = [(cgroup_roots()[0] / machine.full_name / "cpu.stat").read_text() for machine in machines]
    return sum(int(text.split()[1]) for text in texts) / 1e6


def ways(address: str, ciphers: dict[str, str]) -> dict[str, str]:
    """What to measure: names and command lines of desktop.

    :param address: of vps
    :param ciphers: names of connections of ssh, and the options that make them
    """
    execute = "d execOnPeer --peer vps --directory / --timeout 300"
    produce, count = f"head -c {VOLUME} /dev/zero", "wc -c"
    found = {
        "output, d": f'{execute} --shellCmd "{produce}" | {count}',
        "output, raw TCP": f"nc -d {address} 7000 | {count}",
        "input, d": f"{produce} | {execute} --stdin --shellCmd '{count}'",
    }
    for name, options in ciphers.items():
        found[f"output, ssh {name}"] = f'ssh {options} "{produce}" | {count}'
        found[f"input, ssh {name}"] = f"{produce} | ssh {options} {count}"
    return dict(sorted(found.items(), reverse=True))


def compare(lab: Lab, title: str, address: str, ciphers: dict[str, str], rounds: int) -> None:
    """Print the table of one link."""
    listen = f"nc -l -N {address} 7000 </dev/shm/volume & until ss -tlnH 'sport = 7000' | grep -q .; do :; done"
    lines = ways(address, ciphers)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    lab["vps"].run(f"head -c {VOLUME} /dev/zero >/dev/shm/volume")
    for _ in range(rounds):
        for name, command in lines.items():
            if "raw" in name:
                lab["vps"].run(f"setsid bash -c {json.dumps(listen)} >/dev/null 2>&1")
            before, began = cpu_seconds(list(lab)), time.perf_counter()
            passed = int(lab["desktop"].out(command, timeout=300))
            took = time.perf_counter() - began
            if passed != VOLUME:
                raise LabError(f"{name}: {passed} bytes of {VOLUME}")
            rates[name].append((VOLUME / took / 1e6, cpu_seconds(list(lab)) - before))
    print(f"\n{title:32} {'MB/s':>8} {'min':>8} {'max':>8} {'CPU s':>7}")
    for name, values in rates.items():
        speeds = [speed for speed, _ in values]
        cpu = statistics.median(cpu for _, cpu in values)
        print(f"{name:32} {statistics.median(speeds):8.1f} {min(speeds):8.1f} {max(speeds):8.1f} {cpu:7.2f}")


def measure(lab: Lab, rounds: int) -> None:
    """Measure both links. The machines are in the VPN again afterwards."""
    compare(lab, "through the tunnel", "10.0.0.1", {"ControlMaster": "mux"}, rounds)
    ciphers = {
        name: f"-o ControlPath=/root/.ssh/{name} -o HostName={PLAIN['vps']} -o Ciphers={name} mux"
        for name in ("chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com")
    }
    for name in ("vps", "desktop"):
        move(lab[name], PLAIN["vps"], plain=True)
    for options in ciphers.values():
        lab["desktop"].run(f"ssh {options} true")
    short = {name.partition("@")[0]: options for name, options in ciphers.items()}
    compare(lab, "over a plain link", PLAIN["vps"], short, rounds)
    for name in ("vps", "desktop"):
        move(lab[name], "10.0.0.1", plain=False)


def move(machine: Machine, leader: str, plain: bool) -> None:
    """Have a machine's peerd use the link below the VPN, or the VPN again."""
    config, drop_in = "/etc/peerd/peerd.conf.d/plain.conf", "/etc/systemd/system/peerd-tcp.socket.d"
    machine.run(f"systemctl stop peerd.service peerd.socket peerd-tcp.socket; rm -rf {drop_in} {config}")
    if plain:
        machine.run(f"mkdir -p {drop_in}")
        machine.write(f"{drop_in}/plain.conf", _PLAIN_SOCKET)
        machine.write(config, _PLAIN_CONFIG)
    machine.run(
        "rm -f /var/lib/peerd/peerd.db*; systemctl daemon-reload; systemctl start peerd.socket peerd-tcp.socket"
    )
    vps = machine.name == "vps"
    machine.run("d setPeerConfig --role leader --id vps" if vps else f"d registerWorker --leader {leader}")
