"""One machine of a lab: really booted systemd in a systemd-nspawn container, and how to work with it from the host."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .host import (
    NETNS,
    RUN,
    LabError,
    cgroups_of,
    forget_nspawn,
    host,
    init_of,
    kill_cgroup,
    make_cgroups,
    populated,
    power_off,
    remove_cgroups,
    wait_until,
)
from .network import UNDERLAY

# What a login of root gives, and nothing of the host's.
ENVIRONMENT = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "xterm",
}

# IPAddressDeny= and IPAccounting= need BPF, wireguard-go the tun device. The limit is the one that Debian boots with.
NSPAWN = (
    "--register=no --keep-unit --quiet --boot --console=read-only --link-journal=no --resolv-conf=off --timezone=off "
    "--rlimit=NOFILE=1024:524288 --bind=/dev/net/tun --capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON "
    "--system-call-filter=bpf"
).split()

# $0 is a list of cgroup directories to move into before "$@" is run.
_IN_CGROUPS = 'for group in $0; do echo $$ >"$group/cgroup.procs" || exit 125; done; exec "$@"'


class CommandFailed(subprocess.CalledProcessError):
    """A command in a machine ended with another exit status than 0; its text has the output too."""

    def __str__(self) -> str:
        output = [text.decode(errors="replace").rstrip() for text in (self.stdout, self.stderr) if text]
        return "\n".join([super().__str__(), *output])


@dataclass(frozen=True)
class Spec:
    """What a machine is to be: its name, its address in the VPN (None: not in it), its Debian suite."""

    name: str
    address: str | None
    suite: str = "bookworm"


class Process(subprocess.Popen[bytes]):
    """A program in a machine. Signals go to the program, not to the nsenter that waits for it on the host."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        if self.poll() is None:
            wait_until(lambda: self.poll() is not None or self._inner(), 10, "the program to start")
            for pid in self._inner():
                with suppress(ProcessLookupError):
                    os.kill(pid, sig)

    def _inner(self) -> list[int]:
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []


class Machine:
    """One machine of a lab: run commands in it, copy files in and out, cut its cables, pull its plug."""

    def __init__(self, prefix: str, spec: Spec, underlay: str) -> None:
        """Describe a machine; nothing is made yet. `underlay` is its address on eth0."""
        self.name = spec.name
        self.address = spec.address
        self.suite = spec.suite
        self.underlay = underlay
        self.full_name = f"{prefix}-{spec.name}"
        self.disk = RUN / prefix / "roots" / spec.name
        self.log = RUN / prefix / f"{spec.name}.log"
        self._bridge = f"{prefix}-{UNDERLAY}"
        self._init: int | None = None

    # --- commands

    @property
    def pid(self) -> int:
        """The host's number of this machine's PID 1; LabError when it is off."""
        if self._init is None or not Path(f"/proc/{self._init}").exists():
            self._init = init_of(self.full_name)
        if self._init is None:
            raise LabError(f"{self.name} is not running")
        return self._init

    @property
    def running(self) -> bool:
        """Whether the machine is on."""
        with suppress(LabError):
            return bool(self.pid)
        return False

    def argv(self, command: str | Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """The host's command line that runs a command (a string: in bash) in the machine, as root in /root."""
        inner = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        clean = [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        groups = " ".join(str(path) for path in cgroups_of(self.pid))
        enter = ["nsenter", "-t", str(self.pid), "-a", "env", "-i", "-C", "/root", *clean]
        return ["/bin/sh", "-c", _IN_CGROUPS, groups, *enter, *inner]

    def popen(self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None, **pipes: Any) -> Process:
        """Start a command in the background; `pipes` are Popen's stdin (else /dev/null), stdout, stderr…"""
        pipes.setdefault("stdin", subprocess.DEVNULL)
        return Process(self.argv(command, env), **pipes)

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        input: bytes | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and return its status, stdout and stderr. A string is a bash command line.

        CommandFailed when it fails and check is on; subprocess.TimeoutExpired, with the program killed, when late.
        """
        data = input if isinstance(input, bytes) else None
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE if isinstance(input, bytes) else input
        text = command if isinstance(command, str) else shlex.join(command)
        with self.popen(command, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(data, timeout)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    error.cmd = f"{self.name}: {text}"
                raise
        if check and process.returncode:
            raise CommandFailed(process.returncode, f"{self.name}: {text}", stdout, stderr)
        return subprocess.CompletedProcess(text, process.returncode, stdout, stderr)

    def out(self, command: str | Sequence[str], **options: Any) -> str:
        """Run a command as run() does and return its stdout as text, without the newline at its end."""
        return self.run(command, **options).stdout.decode().rstrip("\n")

    def ok(self, command: str | Sequence[str], **options: Any) -> bool:
        """Run a command and say whether it succeeded."""
        return self.run(command, check=False, **options).returncode == 0

    def wait_until(self, condition: str | Callable[[], object], timeout: float = 10) -> None:
        """Wait until a function returns true or a command line in the machine succeeds; TimeoutError when late."""
        if callable(condition):
            wait_until(condition, timeout, f"{condition!r} on {self.name}")
        else:
            wait_until(lambda: self.ok(condition), timeout, f"`{condition}` on {self.name}")

    # --- files

    @property
    def root(self) -> Path:
        """The machine's root as the host sees it. Absolute symlinks in there lead to the host's files."""
        return Path(f"/proc/{self.pid}/root") if self.running else self.disk

    def put(self, source: Path | str, destination: str) -> None:
        """Copy a file of the host to a path in the machine; its directory is made, its mode kept."""
        with Path(source).open("rb") as content:
            mode = os.fstat(content.fileno()).st_mode & 0o7777
            self._receive(destination, content)
        self.run(["chmod", f"{mode:o}", destination])

    def write(self, path: str, text: str | bytes) -> None:
        """Make a file in the machine, with its directory."""
        self._receive(path, text.encode() if isinstance(text, str) else text)

    def _receive(self, path: str, content: bytes | IO[bytes]) -> None:
        self.run('mkdir -p "$(dirname "$DEST")" && cat >"$DEST"', input=content, env={"DEST": path})

    def read(self, path: str) -> str:
        """The text of a file in the machine."""
        return self.run(["cat", "--", path]).stdout.decode()

    # --- power

    def boot(self) -> None:
        """Switch the machine on without waiting for it."""
        remove_cgroups(self.full_name)
        forget_nspawn(self.full_name)
        groups = " ".join(str(path) for path in make_cgroups(self.full_name))
        command = ["systemd-nspawn", *NSPAWN, "-D", str(self.disk), "-M", self.full_name, f"--hostname={self.name}"]
        command += [f"--network-namespace-path={NETNS / self.full_name}"]
        # setsid --fork: a machine is nobody's child, so it outlives its maker when the lab is kept.
        argv = ["/bin/sh", "-c", _IN_CGROUPS, groups, "setsid", "--fork", *command]
        env = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
        self._init = None
        with self.log.open("ab") as log:
            subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def wait_running(self, timeout: float = 60) -> None:
        """Wait until systemd says "running"; LabError with the failed units and the journal when it does not."""
        try:
            wait_until(lambda: self._accepts_commands() and self._settled(timeout), timeout, "systemd")
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{self.name} did not boot within {timeout:g} s:\n{self._console()}") from error
        state = self.out("systemctl is-system-running", check=False)
        if state != "running":
            failed = self.out("systemctl --failed --no-legend --plain; journalctl -b --no-pager -n 60", check=False)
            raise LabError(f"{self.name} is {state}:\n{failed}")

    def _accepts_commands(self) -> bool:
        """Whether its systemd listens; LabError once the container has ended."""
        if not populated(self.full_name):
            raise LabError(f"{self.name} did not boot:\n{self._console()}")
        return self.running and (self.root / "run/systemd/private").exists()

    def _settled(self, timeout: float) -> bool:
        state = self.out("systemctl is-system-running --wait", check=False, timeout=timeout)
        return state in ("running", "degraded", "maintenance", "stopping")

    def _console(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def start(self, timeout: float = 60) -> None:
        """Switch the machine on again, with the disk as it was, and wait until it runs."""
        if not self.running:
            self.boot()
            self.wait_running(timeout)

    def stop(self) -> None:
        """Shut the machine down in an orderly way; its disk stays."""
        power_off({self.full_name}, 30)
        self._init = None

    def kill(self) -> None:
        """Pull the plug: nothing in the machine gets to do anything any more; its disk stays."""
        kill_cgroup(self.full_name)
        remove_cgroups(self.full_name)
        self._init = None
        # The kernel's own WireGuard belongs to the namespace, which is ours and stays; a real plug takes it too.
        with suppress(LabError):
            host("ip", "-n", self.full_name, "link", "del", "wg0")

    # --- cables

    def link_up(self) -> None:
        """Plug eth0's cable in."""
        host("ip", "-n", self._bridge, "link", "set", self.name, "up")

    def link_down(self) -> None:
        """Pull eth0's cable."""
        host("ip", "-n", self._bridge, "link", "set", self.name, "down")

    def wireguard_up(self) -> None:
        """Start wg0 as its owner would."""
        self.run("systemctl start wg-quick@wg0")

    def wireguard_down(self) -> None:
        """Stop wg0 as its owner would; the interface goes away."""
        self.run("systemctl stop wg-quick@wg0")

    def wireguard_renew(self) -> None:
        """Make wg0 shake hands anew, as it would by itself some time after the other end was restarted."""
        forget = "wg show wg0 peers | while read -r peer; do wg set wg0 peer $peer remove; done"
        self.run(f"{forget}; wg syncconf wg0 <(wg-quick strip wg0)")
