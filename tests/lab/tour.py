"""The demo: a transcript of peerd's commands on three machines, with every result checked. Run it as tests/lab/demo."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from lab import CommandFailed, Lab, LabError, Machine, check_host, seed_machines  # noqa: E402

REPOSITORY = "/opt/automateLinux"
ORIGIN = "/srv/automateLinux.git"
_PATIENCE = 60
_SHOWN_LINES = 40


class Wrong(Exception):
    """A result was not what it should be."""


def build() -> Path:
    """Build the package; its path."""
    print("Building the package: packaging/build-deb")
    built = subprocess.run([ROOT / "packaging/build-deb"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return ROOT / built.stdout.splitlines()[-1]


class Tour:
    """Runs commands on the machines, shows what a user would see, and checks it."""

    def __init__(self, lab: Lab) -> None:
        self.vps, self.desktop, self.laptop = lab["vps"], lab["desktop"], lab["laptop"]
        self.checks = 0

    def title(self, text: str) -> None:
        """Begin a chapter."""
        print(f"\n--- {text}\n")

    def show(
        self,
        machine: Machine,
        command: str,
        *,
        status: int = 0,
        out: str | Sequence[str] = (),
        err: str | Sequence[str] = (),
    ) -> str:
        """Run a command and print it with all it says.

        :param status: the exit status it must have
        :param out: regular expressions, each of which must be found in its standard output
        :param err: the same for standard error; without any, standard error must be empty where the status is 0
        :returns: its standard output
        """
        print(f"{machine.name}# {command}")
        result = machine.run(command, check=False, timeout=_PATIENCE)
        stdout, stderr = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
        for text, mark in ((stdout, ""), (stderr, "stderr: ")):
            lines = text.splitlines()
            for line in lines[:_SHOWN_LINES]:
                print(f"{mark}{line}")
            if len(lines) > _SHOWN_LINES:
                print(f"{mark}… {len(lines) - _SHOWN_LINES} more lines")
        if status:
            print(f"[exit status {result.returncode}]")
        self.check(result.returncode == status, f"exit status {result.returncode}, not {status}")
        for stream, text, patterns in (("stdout", stdout, out), ("stderr", stderr, err)):
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                self.check(re.search(pattern, text, re.MULTILINE), f"{pattern!r} is not in {stream}:\n{text}")
        if not status and not err:
            self.check(not stderr, f"unexpected words on stderr: {stderr}")
        return stdout

    def check(self, holds: object, otherwise: str) -> None:
        """Count a check, and end the demo when it does not hold."""
        self.checks += 1
        if not holds:
            raise Wrong(otherwise)

    def until(self, machine: Machine, condition: str | Callable[[], object]) -> None:
        """Wait, in bounds, for what takes a moment."""
        machine.wait_until(condition, _PATIENCE)

    def install(self, package: Path) -> None:
        """apt-get install on each machine: listening sockets and a running daemon are there at once."""
        self.title("Install the package on each machine")
        for machine in (self.vps, self.desktop, self.laptop):
            machine.put(package, f"/root/{package.name}")
            # The machines have no network but each other: what the package depends on is in their image.
            print(f"{machine.name}# apt-get install ./{package.name}")
            machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y ./{package.name}", timeout=300)
            units = "peerd.socket peerd-tcp.socket peerd.service"
            self.show(machine, f"systemctl is-active {units}", out=r"\A(active\n){3}\Z")

    def join(self) -> None:
        """A leader and two workers, seen from everywhere."""
        self.title("One leader, two workers")
        self.show(self.vps, "d setPeerConfig --role leader --id vps", out="Peer config saved. Role: leader, ID: vps")
        self.show(
            self.desktop, "d registerWorker", out="Registered as worker 'desktop', connected to leader at 10.0.0.1"
        )
        self.show(
            self.laptop, "d setPeerConfig --role worker --id laptop --leader 10.0.0.1", out="worker 'laptop', connected"
        )
        self.title("The same registry from every machine")
        for machine, role in ((self.vps, "leader"), (self.desktop, "worker"), (self.laptop, "worker")):
            ready = """d listPeers | jq -e 'map(select(.is_online)) | length == 3' >/dev/null"""
            self.until(machine, ready)
            connected = '"connected_workers": 2' if role == "leader" else '"connected_to_leader": true'
            self.show(machine, "d getPeerStatus", out=[f'"role": "{role}"', f'"peer_id": "{machine.name}"', connected])
            self.show(machine, "d listPeers | jq -c '.[] | [.peer_id, .ip_address, .is_online]'", out=_PEERS)
            self.show(machine, "d getPeerInfo --peer laptop", out=['"peer_id": "laptop"', '"ip_address": "10.0.0.4"'])

    def repository(self) -> None:
        """A clone on vps whose origin, a bare repository there, gets a new commit."""
        self.vps.run(
            f"""set -e
            export GIT_AUTHOR_NAME=d GIT_AUTHOR_EMAIL=d@vps GIT_COMMITTER_NAME=d GIT_COMMITTER_EMAIL=d@vps
            git init -q --bare -b main {ORIGIN}
            git clone -q {ORIGIN} /root/work 2>/dev/null; cd /root/work; git checkout -q -b main
            mkdir daemon; echo 'echo "building $(git log -1 --format=%s)"; sleep 3; echo built' > daemon/build.sh
            git add .; git commit -qm 'first'; git push -q origin main
            git clone -q {ORIGIN} {REPOSITORY}"""
        )

    def push(self, message: str) -> None:
        """Add a commit to the origin."""
        env = {"MESSAGE": message}
        self.vps.run(
            """cd /root/work && echo "$MESSAGE" >> news && git add news &&
            git -c user.name=d -c user.email=d@vps commit -qm "$MESSAGE" && git push -q origin main""",
            env=env,
        )

    def execute(self) -> None:
        """Commands on other peers, in the right directory."""
        self.title("A command on a peer, in a directory")
        self.repository()
        self.push("second")
        pull = f'd execOnPeer --peer vps --directory {REPOSITORY} --shellCmd "git pull 2>&1"'
        self.show(self.desktop, pull, out=["Fast-forward", "news"])
        self.show(
            self.desktop, f'd execOnPeer --peer vps --directory {REPOSITORY} --shellCmd "git pull"', out="up to date"
        )
        log = f'd execOnPeer --peer vps --directory {REPOSITORY} --shellCmd "git log -1 --format=%s"'
        self.show(self.laptop, log, out=r"\Asecond\n\Z")
        self.title("Worker to worker through the hub, and a peer on itself")
        self.show(
            self.desktop,
            "d execOnPeer --peer laptop --directory /tmp --shellCmd 'hostname; pwd'",
            out=r"\Alaptop\n/tmp\n\Z",
        )
        self.show(self.laptop, "d execOnPeer --peer laptop --directory /tmp --shellCmd hostname", out=r"\Alaptop\n\Z")

    def deploy(self) -> None:
        """Pull and build by the target's settings."""
        self.title("Pull and build; a build has a longer timeout of its own")
        print("vps: default-timeout = 2 in /etc/peerd/peerd.conf.d/demo.conf; build.sh takes 3 s")
        self.vps.write("/etc/peerd/peerd.conf.d/demo.conf", "[peerd]\ndefault-timeout = 2\n")
        self.show(self.vps, "systemctl reload peerd")
        self.push("third")
        self.show(self.desktop, "d remotePull --peer vps", out="Fast-forward", err="From /srv")
        self.show(self.desktop, "d remoteBd --peer vps", out=[r"^building third$", r"^built$"])
        self.push("fourth")
        steps = [r"pull on vps \(step 1 of 2\)", r"build on vps \(step 2 of 2\)", "Deployed on vps"]
        self.show(self.laptop, "d remoteDeployDaemon --peer vps", out=["Fast-forward", "^building fourth$"], err=steps)
        self.vps.run(f"cd {REPOSITORY} && git remote set-url origin /nowhere")
        failed = "Deploy on vps failed: pull ended with exit status 1, build not started"
        self.show(self.laptop, "d remoteDeployDaemon --peer vps", status=1, err=failed)
        self.vps.run(f"cd {REPOSITORY} && git remote set-url origin {ORIGIN}; rm /etc/peerd/peerd.conf.d/demo.conf")
        self.show(self.vps, "systemctl reload peerd")

    def failures(self) -> None:
        """Every way to fail says which it was."""
        self.title("A command's own failure: its exit status, and its stderr apart from its stdout")
        both = "d execOnPeer --peer vps --directory / --shellCmd 'echo to stdout; echo to stderr >&2; exit 7'"
        self.show(self.desktop, both, status=7, out=r"\Ato stdout\n\Z", err=r"\Ato stderr\n\Z")
        killed = "d execOnPeer --peer vps --directory / --shellCmd 'kill -KILL $$'"
        self.show(self.desktop, killed, status=137)
        self.title("A directory that does not exist, and one that is a file")
        for directory, sentence in (("/nowhere", "No such directory"), ("/etc/passwd", "Not a directory")):
            command = f"d execOnPeer --peer vps --directory {directory} --shellCmd true"
            self.show(self.desktop, command, status=255, err=f"^{sentence} on vps: {directory}$")
        self.timeout()
        self.title("An unknown peer")
        self.show(
            self.desktop,
            "d execOnPeer --peer nas --directory / --shellCmd true",
            status=255,
            err="^Peer not found: nas$",
        )
        self.title("Wrong usage")
        self.show(self.desktop, "d execOnPeer --peer vps --directory / --command true", status=2, err="--shellCmd")
        self.show(self.desktop, "d setPeerConfig --role king", status=2, err="'leader', 'worker'")
        self.show(self.desktop, "d getPeerStatus", out='"role": "worker"')
        someone = "setpriv --reuid=nobody --clear-groups d listPeers"
        self.show(self.desktop, someone, status=255, err="only root and members of the group peerd")

    def timeout(self) -> None:
        """A command over its time, with descendants that try to escape."""
        self.title("Over its timeout: the whole tree goes, in its own session or deaf to SIGTERM")
        tree = "setsid sleep 1001 & (trap '' TERM; sleep 1002; sleep 1003) & echo started; sleep 1004"
        command = f'd execOnPeer --peer laptop --directory / --timeout 3 --shellCmd "{tree}"'
        print(f"desktop# {command} &")
        with self.desktop.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
            self.until(self.laptop, "pgrep -f 'sleep 100[24]' >/dev/null")
            scopes = "systemctl list-units --no-legend --plain 'peerd-exec-*.scope'"
            self.show(self.laptop, scopes, out=r"^peerd-exec-\w+\.scope +loaded +active +running")
            self.show(
                self.laptop,
                "systemd-cgls --no-pager -u peerd-exec.slice",
                out=["sleep 1001", "sleep 1002", "sleep 1004"],
            )
            stdout, stderr = waiting.communicate(timeout=_PATIENCE)
        print(f"desktop: {stdout.decode()}{stderr.decode()}[exit status {waiting.returncode}]")
        self.check(waiting.returncode == 124, f"exit status {waiting.returncode}, not 124")
        self.check(stdout == b"started\n", f"output before the timeout: {stdout!r}")
        self.check(b"Timeout waiting for response from laptop (3 s)\n" in stderr, stderr.decode())
        self.show(self.laptop, "pgrep -f 'sleep 100[1-4]'", status=1)
        self.show(self.laptop, f"{scopes} | wc -l", out=r"\A0\n\Z")

    def apps(self) -> None:
        """Units of systemd by the names of apps, here and on a peer."""
        self.title("An app: started, shown and stopped, here and on a peer, or from within a command there")
        unit = "[Service]\nWorkingDirectory=/opt\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
        self.desktop.write("/etc/systemd/system/cad-prod.service", unit)
        self.desktop.run("systemctl daemon-reload")
        self.show(self.desktop, "d addApp --app cad --mode prod --directory /opt", out="cad-prod.service")
        self.show(self.desktop, "d enableApp --app cad --mode prod", out="^Enabled cad-prod.service on desktop$")
        start = "d startApp --app cad --mode prod"
        self.show(self.laptop, f"{start} --peer desktop", out="^Started cad-prod.service on desktop$")
        shown = ['"active": "active"', '"enabled": "enabled"', '"directory": "/opt"']
        self.show(self.laptop, "d appStatus --app cad --peer desktop", out=shown)
        self.show(self.vps, "d listApps --peer desktop | jq -c '.[] | [.app, .mode]'", out=r'^\["cad","prod"\]$')
        self.show(self.laptop, "d stopApp --app cad --mode all --peer desktop", out="^Stopped cad-prod.service")
        inside = f'd execOnPeer --peer desktop --directory / --shellCmd "{start}"'
        self.show(self.vps, inside, out="^Started cad-prod.service on desktop$")
        self.show(self.desktop, "systemctl is-active cad-prod.service", out="^active$")

    def nesting(self) -> None:
        """d in a remote command, back to the machine that asked."""
        self.title("A d command inside a remote command, to the machine that asked")
        inner = "d execOnPeer --peer desktop --directory / --shellCmd hostname"
        self.show(self.desktop, f'd execOnPeer --peer vps --directory / --shellCmd "{inner}"', out=r"\Adesktop\n\Z")

    def journal(self) -> None:
        """One id finds the command in the journal of both ends."""
        self.title("One record at both ends")
        command = "d execOnPeer --peer laptop --directory /tmp --shellCmd 'echo $PEERD_EXEC_ID'"
        exec_id = self.show(self.desktop, command, out=r"\A[0-9a-f]{16}\n\Z").strip()
        for machine, other in ((self.desktop, "asked of laptop"), (self.laptop, "for desktop")):
            query = f"journalctl -t peerd --no-hostname --no-pager PEERD_EXEC_ID={exec_id}"
            # journald stores a record a moment after it was sent.
            self.until(machine, f"journalctl -q -t peerd PEERD_EXEC_ID={exec_id} PEERD_OUTCOME=exited | grep -q .")
            self.show(machine, query, out=[f"{exec_id} {other}", "exited, exit status 0"])

    def absences(self) -> None:
        """A peer down, the leader down, and all of it coming back by itself."""
        units = "peerd.socket peerd-tcp.socket peerd.service"
        self.title("A peer that is down")
        self.show(self.laptop, f"systemctl stop {units}")
        refused = "d execOnPeer --peer laptop --directory / --shellCmd true"
        self.show(self.desktop, refused, status=255, err=r"^Failed to connect to peer: laptop \(10\.0\.0\.4\)$")
        self.show(self.laptop, "systemctl start peerd.socket peerd-tcp.socket peerd.service")
        self.title("The leader down: known peers are still reached, unknown ones cannot be looked up")
        self.until(self.laptop, "d getPeerStatus | jq -e .connected_to_leader >/dev/null")
        self.until(self.desktop, "d getPeerInfo --peer laptop | jq -e .is_online >/dev/null")
        self.show(self.vps, f"systemctl stop {units}")
        self.until(self.desktop, "d getPeerStatus | jq -e '.connected_to_leader | not' >/dev/null")
        self.show(self.desktop, "d execOnPeer --peer laptop --directory / --shellCmd hostname", out=r"\Alaptop\n\Z")
        unknown = "d execOnPeer --peer nas --directory / --shellCmd true"
        self.show(self.desktop, unknown, status=255, err="^Not connected to leader$")
        self.show(self.vps, "systemctl start peerd.socket peerd-tcp.socket peerd.service")
        self.title("It comes back, and the workers join it by themselves")
        for machine in (self.desktop, self.laptop):
            self.until(machine, "d getPeerStatus | jq -e .connected_to_leader >/dev/null")
        self.until(self.desktop, "d listPeers | jq -e 'map(select(.is_online)) | length == 3' >/dev/null")
        self.show(self.desktop, "d listPeers | jq -c '.[] | [.peer_id, .ip_address, .is_online]'", out=_PEERS)

    def clean_journal(self) -> None:
        """No surprise in any journal: everything at warning or above must be one of the demo's own provocations."""
        self.title("Nothing unexpected in the journals")
        for machine in (self.vps, self.desktop, self.laptop):
            records = machine.out("journalctl -q -t peerd -p warning -o cat --no-pager").splitlines()
            surprises = [line for line in records if not re.match(r"Lost leader 10\.0\.0\.1: ", line)]
            self.check(not surprises, f"in {machine.name}'s journal: {surprises}")
            print(f"{machine.name}: {len(records)} warnings, all of them the leader's absence")

    def run(self, package: Path) -> None:
        """The whole of it."""
        self.install(package)
        self.join()
        self.execute()
        self.deploy()
        self.failures()
        self.apps()
        self.nesting()
        self.journal()
        self.absences()
        self.clean_journal()


_PEERS = [
    rf'^\["{name}","{address}",true\]$'
    for name, address in (("vps", "10.0.0.1"), ("desktop", "10.0.0.2"), ("laptop", "10.0.0.4"))
]


def main() -> int:
    """Run the demo; 0 when every result was right."""
    parser = argparse.ArgumentParser(prog="tests/lab/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the machines up; tests/lab/shell desktop opens one")
    parser.add_argument(
        "--suite", choices=("bookworm", "trixie"), default="bookworm", help="the Debian of the machines"
    )
    parser.add_argument("--deb", type=Path, help="install this package instead of building one")
    options = parser.parse_args()
    began = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if problems := check_host():
        print("\n".join(["This machine cannot boot the machines of the demo:", *problems]), file=sys.stderr)
        return 1
    try:
        package = options.deb or build()
        print(
            "Booting vps (10.0.0.1), desktop (10.0.0.2) and laptop (10.0.0.4); the first time, their image is made too"
        )
        with Lab(seed_machines(options.suite)) as lab:
            if options.keep:
                lab.keep()
            tour = Tour(lab)
            tour.run(package.resolve())
    except (Wrong, CommandFailed, LabError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the machines are gone.", file=sys.stderr)
        return 130
    print(f"\nAll {tour.checks} checks hold, in {time.monotonic() - began:.0f} s.")
    if options.keep:
        print("The machines stay up. A shell: tests/lab/shell desktop. To end them: tests/lab/down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
