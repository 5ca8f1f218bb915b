"""Much data whose every byte has its place, and what passing it costs a daemon."""

from __future__ import annotations

from lab import Machine

# Zeros encrypted by a counter: no two blocks of it are the same, so that what is lost, doubled or swapped shows.
KEYSTREAM = "openssl enc -aes-128-ctr -nosalt -K 70656572642070656572642070656572 -iv 00000000000000000000000000000000"
_STATUS = "/proc/$(systemctl show -P MainPID peerd)"


def keystream(size: int) -> str:
    """The command that writes so many bytes."""
    return f"head -c {size} /dev/zero | {KEYSTREAM}"


def digest(machine: Machine, size: int) -> str:
    """Their SHA-256, made in a machine."""
    return machine.out(f"{keystream(size)} | sha256sum", timeout=100).split()[0]


def reset_peak(*machines: Machine) -> None:
    """Let the daemons' peaks of memory begin at what they use now (clear_refs of proc(5))."""
    for machine in machines:
        machine.run(f"echo 5 >{_STATUS}/clear_refs")
        machine.run(f"grep VmRSS {_STATUS}/status >/run/peerd-rss")


def growth(*machines: Machine) -> list[int]:
    """By how many bytes each daemon has at most grown since then."""
    found = []
    for machine in machines:
        before, peak = (
            int(machine.out(f"grep {name} {place}").split()[1]) * 1024
            for name, place in (("VmRSS", "/run/peerd-rss"), ("VmHWM", f"{_STATUS}/status"))
        )
        found.append(peak - before)
    return found
