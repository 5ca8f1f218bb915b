"""The host's side of a lab: its cgroups, network namespaces, mounts, and how all of it is taken away again.

Everything a lab makes carries the lab's prefix in its name, so that what is left of a lab whose owner was killed
can be found without any record of it:

    /run/peerd-lab/<prefix>/          state, logs, and the mounted disks
    /run/netns/<prefix>-<machine>     network namespaces, and <prefix>-underlay, which holds the bridge
    /sys/fs/cgroup/**/<prefix>-<machine>
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RUN = Path("/run/peerd-lab")
NETNS = Path("/run/netns")
CGROUP = Path("/sys/fs/cgroup")
NSPAWN_RUN = Path("/run/systemd/nspawn")
PREFIX = "lab"

# What systemd.pid(1) calls "start poweroff.target".
POWER_OFF = signal.SIGRTMIN + 4

# Program that must be on the host -> Debian package that has it. tests/lab/setup installs the same packages.
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "wg": "wireguard-tools",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
    "umount": "mount",
    "sysctl": "procps",
    "apt-get": "apt",
}


class LabError(Exception):
    """The lab cannot do what it was asked to; the text says why."""


def host(*argv: str, input: bytes | None = None, timeout: float = 60) -> bytes:
    """Run a program on the host and return its stdout; LabError with its stderr when it fails.

    It gets a session of its own: a Ctrl-C at the terminal must not end an `ip netns del` halfway through a clean-up.
    """
    stdin = subprocess.DEVNULL if input is None else None
    try:
        done = subprocess.run(
            argv, input=input, stdin=stdin, capture_output=True, timeout=timeout, start_new_session=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {reason}")
    return done.stdout


def wait_until(condition: Callable[[], object], timeout: float = 10, what: str = "the condition") -> None:
    """Return once condition() is true; TimeoutError that names `what` after timeout seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"gave up after {timeout:g} s waiting for {what}")
        time.sleep(0.02)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file, made if missing, and give its descriptor.

    Without `wait`: BlockingIOError when somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield fd
    finally:
        os.close(fd)


# --- cgroups -------------------------------------------------------------------------------------------------------


def cgroup_roots() -> list[Path]:
    """Where a machine needs a cgroup: in the v2 hierarchy (first), and on a hybrid host in systemd's v1 one."""
    if (CGROUP / "cgroup.controllers").exists():
        return [CGROUP]
    return [path for path in (CGROUP / "unified", CGROUP / "systemd") if path.is_dir()]


def cgroups_of(pid: int) -> list[Path]:
    """The directories of the cgroups, in cgroup_roots()' hierarchies, that a process is in."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    paths = {controllers: path.lstrip("/") for _, controllers, path in lines}
    # In the order of cgroup_roots().
    return [root / paths[controllers] for root, controllers in zip(cgroup_roots(), ("", "name=systemd"), strict=False)]


def make_cgroups(name: str) -> list[Path]:
    """Make the cgroups of a machine and return their directories."""
    paths = [root / name for root in cgroup_roots()]
    for path in paths:
        path.mkdir(exist_ok=True)
    return paths


def _tree(path: Path) -> list[Path]:
    """The directories of a cgroup's tree, children first."""
    return [Path(directory) for directory, _, _ in os.walk(path, topdown=False)]


def cgroup_pids(name: str) -> set[int]:
    """The processes in a machine's cgroups, and those below."""
    pids: set[int] = set()
    for root in cgroup_roots():
        for directory in _tree(root / name):
            # A cgroup may go away while it is read.
            with suppress(OSError):
                pids.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
    return pids


def populated(name: str) -> bool:
    """Whether any process of a machine is alive."""
    with suppress(OSError):
        return "populated 1" in (cgroup_roots()[0] / name / "cgroup.events").read_text()
    return False


def kill_cgroup(name: str) -> None:
    """End every process of a machine at once."""
    # All in one stroke: killed one after the other, the machine's systemd would see some of them die.
    with suppress(OSError):
        (cgroup_roots()[0] / name / "cgroup.kill").write_text("1")
    for pid in cgroup_pids(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_cgroups(name: str) -> None:
    """Kill what still runs in a machine's cgroups and remove them."""

    def gone() -> bool:
        kill_cgroup(name)
        for root in cgroup_roots():
            for directory in _tree(root / name):
                # Busy until the kernel has seen the last process off.
                with suppress(OSError):
                    directory.rmdir()
        return not any((root / name).exists() for root in cgroup_roots())

    wait_until(gone, 10, f"the cgroups of {name} to empty")


def init_of(name: str) -> int | None:
    """The host's number of a machine's PID 1, or None while there is none."""

    def inner_pids(pid: int | str) -> list[str]:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("NSpid:"):
                    return line.split()[1:]
        return []

    depth = len(inner_pids("self")) + 1
    for pid in cgroup_pids(name):
        inner = inner_pids(pid)
        if len(inner) == depth and inner[-1] == "1":
            return pid
    return None


# --- taking a lab away ---------------------------------------------------------------------------------------------


def names_of(prefix: str) -> set[str]:
    """The full names (<prefix>-<machine>) of a lab's machines and its underlay, from what there is on the host."""
    places = [NETNS, *cgroup_roots()]
    return {path.name for place in places for path in place.glob(f"{prefix}-*")}


def mounts_of(prefix: str) -> list[str]:
    """What is mounted for a lab, the last mounted first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{RUN}/{prefix}/")]


def forget_nspawn(pattern: str) -> None:
    """Remove what a killed nspawn leaves of machines in its own directory: it would refuse to start them again."""
    for place in NSPAWN_RUN.glob(f"*/{pattern}"):
        if place.is_mount():
            host("umount", "--lazy", str(place))
        place.rmdir()


def power_off(names: set[str], timeout: float) -> None:
    """Ask the PID 1 of machines to shut down and kill what is not off after timeout seconds; 0: kill without asking."""
    for name in names:
        if timeout and (pid := init_of(name)):
            with suppress(ProcessLookupError):
                os.kill(pid, POWER_OFF)
        else:
            kill_cgroup(name)
    with suppress(TimeoutError):
        wait_until(lambda: not any(populated(name) for name in names), timeout, "machines to power off")
    for name in names:
        remove_cgroups(name)


def destroy(prefix: str, patience: float = 0) -> None:
    """Take away everything of a lab, whatever state it is in; nothing happens when there is nothing.

    Its machines get `patience` seconds to shut down in an orderly way; one that was hardly booted does not listen yet.
    What cannot be taken away stops nothing else from being, and is reported at the end by a LabError.
    """
    names = names_of(prefix)
    power_off(names, patience)
    problems = []
    # Lazily: somebody's shell may still stand in a machine's root.
    removals = [["umount", "--lazy", point] for point in mounts_of(prefix)]
    removals += [["ip", "netns", "del", name] for name in names if (NETNS / name).exists()]
    for argv in removals:
        try:
            host(*argv)
        except LabError as error:
            problems.append(str(error))
    if problems:
        raise LabError("\n".join(problems))
    forget_nspawn(f"{prefix}-*")
    if (RUN / prefix).exists():
        shutil.rmtree(RUN / prefix)


def leftovers(prefix: str) -> list[str]:
    """What there still is of a lab on this host; empty after its end."""
    found = [f"network namespace or cgroup {name}" for name in sorted(names_of(prefix))]
    found += [f"mount {point}" for point in mounts_of(prefix)]
    found += [f"directory {place}" for place in [*NSPAWN_RUN.glob(f"*/{prefix}-*"), RUN / prefix] if place.exists()]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{prefix}-" in command:
                found.append(f"process {process.name}: {command}")
    return found


def check_host() -> list[str]:
    """Say what keeps a lab from running here, a sentence each with what to do about it; empty when nothing does."""
    if os.geteuid() != 0:
        return ["The lab boots machines and needs root: run it as root, or with sudo."]
    # user_namespaces(7): the machine's own namespace maps every id to itself.
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return ["Root here is root of a user namespace only: run the lab on a host or in a privileged container."]
    problems = []
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        problems.append(f"Packages are missing ({', '.join(missing)}): run tests/lab/setup.")
    if not Path("/dev/net/tun").exists():
        problems.append("/dev/net/tun does not exist: run `modprobe tun`, or give this container that device.")
    if not any((root / "cgroup.procs").exists() for root in cgroup_roots()[:1]):
        problems.append("No cgroup v2 hierarchy is mounted: boot without systemd.unified_cgroup_hierarchy=0.")
    elif not os.access(cgroup_roots()[0], os.W_OK):
        problems.append(f"{cgroup_roots()[0]} is read-only: run the lab on a host or in a privileged container.")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        problems.append("The kernel does not know overlayfs: run `modprobe overlay`.")
    if not problems:
        try:
            host("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "true")
        except LabError as error:
            problems.append(f"Namespaces are refused ({error}): run the lab on a host or in a privileged container.")
    return problems
