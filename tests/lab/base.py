"""The root directories that machines boot from: one per Debian suite, built once and kept."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .host import LabError, host, locked
from .signals import interruptible

LOG = logging.getLogger(__name__)

FALLBACK_MIRROR = "http://deb.debian.org/debian"
SUITES = ("bookworm", "trixie")

# All that peerd depends on is in here, so that its .deb installs in a machine that has no way out.
PACKAGES = (
    # libpam-systemd goes before polkitd, which else wants a session manager that is not there yet.
    "systemd systemd-sysv dbus libpam-systemd polkitd adduser "
    "python3 python3-systemd python3-peewee python3-click python3-sdnotify python3-dbus-next "
    "iproute2 iputils-ping wireguard-tools wireguard-go netcat-openbsd openssh-server "
    "sudo procps git ca-certificates bash-completion jq less xz-utils "
    # For tests alone: other shells, another D-Bus library, virtual environments, a compiler.
    "zsh fish python3-gi python3-venv gcc libc6-dev"
).split()

# Nothing may happen in a machine that a test did not ask for.
_TIMERS = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer"

HOOKS = (
    'chroot "$1" systemctl disable ssh.service',
    f'chroot "$1" systemctl mask console-getty.service {_TIMERS}',
    'mkdir -p "$1/var/log/journal"',
    # The host's way to a mirror means nothing in there.
    'rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
    ': >"$1/etc/resolv.conf"',
)


def cache_dir() -> Path:
    """Where the bases are kept: $PEERD_LAB_CACHE, or a place below /var/cache."""
    return Path(os.environ.get("PEERD_LAB_CACHE") or "/var/cache/peerd-lab")


def mirror() -> str:
    """The Debian mirror that the host's own apt uses."""
    wanted = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    for line in host("apt-get", "indextargets", "--format", wanted, "Created-By: Packages").decode().splitlines():
        origin, label, component, uri = line.split("|", 3)
        if (origin, label, component) == ("Debian", "Debian", "main") and uri.startswith(("http:", "https:", "file:")):
            return uri.rstrip("/")
    return FALLBACK_MIRROR


def network_settings() -> str:
    """The lines of the host's apt configuration that say how to reach a mirror, and how old its index may be."""
    wanted = re.compile(r"Acquire::(?:https?::|Check-|Retries|ForceIPv)")
    lines = host("apt-config", "dump").decode().splitlines()
    return "".join(f"{line}\n" for line in lines if wanted.match(line))


def ensure_base(suite: str, extra: Sequence[str] = (), hooks: Sequence[str] = ()) -> Path:
    """Return the base root directory of a Debian suite, after building it if there is none; LabError when that fails.

    A base has its recipe's hash in its name and gets that name when it is complete. Machines never write to it.

    :param extra: packages that it has beside :data:`PACKAGES`
    :param hooks: command lines after those of :data:`HOOKS`; $1 is the root directory
    """
    if suite not in SUITES:
        raise LabError(f"No such suite: {suite} (there are {', '.join(SUITES)})")
    packages, steps = [*PACKAGES, *extra], (*HOOKS, *hooks)
    recipe = hashlib.sha256(repr((suite, packages, steps)).encode()).hexdigest()[:12]
    base = cache_dir() / f"{suite}-{recipe}"
    if base.is_dir():
        return base
    with interruptible(), locked(cache_dir() / f"{suite}.lock") as lock:
        if not base.is_dir():
            unfinished = base.with_suffix(".new")
            _remove(unfinished)
            try:
                _build(suite, packages, steps, unfinished, lock)
                unfinished.rename(base)
            finally:
                _remove(unfinished)
    return base


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _build(suite: str, packages: Sequence[str], hooks: Sequence[str], target: Path, lock: int) -> None:
    """Make a root directory with mmdebstrap; it holds the lock too, so that it has it even where we are killed."""
    source = mirror()
    LOG.info("building a %s base from %s (once, about half a minute)", suite, source)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as options, tempfile.TemporaryFile() as log:
        options.write(network_settings())
        options.flush()
        # A mount namespace of its own: /proc and /sys are mounted in there, and go with it, however it ends.
        argv = ["unshare", "--mount", "mmdebstrap", "--mode=root", "--format=directory", "--variant=apt"]
        argv += [f"--include={','.join(packages)}", f"--aptopt={options.name}"]
        argv += [f"--customize-hook={hook}" for hook in hooks]
        argv += [suite, str(target), source]
        # A group of their own: mmdebstrap, apt and dpkg have to end together, and to end orderly on a Ctrl-C.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True
        )
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
        if status:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-30:]
            raise LabError("\n".join([f"mmdebstrap could not build {suite} from {source}:", *tail]))
