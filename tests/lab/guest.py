"""A virtual machine with a kernel of its own, for what a container here has not: the memory and tasks controllers,
udev, and the kernel's WireGuard. It is alone: no network leads into it.

It boots the same Debian as the lab's machines, under QEMU; without hardware virtualization that takes some half a
minute. Its disk is an image that is built once and never written to; a running guest's writes go with it.
"""

from __future__ import annotations

import base64
import json
import shlex
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from .base import cache_dir, ensure_base
from .host import LabError, host, locked, wait_until
from .machine import ENVIRONMENT, CommandFailed
from .signals import interruptible

_AGENT = Path(__file__).with_name("agent.py")
_DISK_SIZE = "3G"
_MEMORY_MIB = 1024
_KERNEL_LINE = "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=no mitigations=off"

# The payload's device is a tar archive; the agent is in it.
_UNIT = r"""[Unit]
Description=The way into this guest
Requires=dev-vdb.device dev-ttyS1.device
After=dev-vdb.device dev-ttyS1.device

[Service]
RuntimeDirectory=guest
ExecStart=/bin/sh -c 'tar x -C /run/guest -f /dev/vdb && exec python3 /run/guest/agent.py /dev/ttyS1'
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
"""
_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools", "udev", "kmod")
_HOOKS = (
    f'printf %s {shlex.quote(_UNIT)} >"$1/etc/systemd/system/guest.service"',
    'chroot "$1" systemctl enable guest.service',
    'chroot "$1" systemctl mask systemd-networkd-wait-online.service',
    'echo guest >"$1/etc/hostname"; echo "127.0.0.1 localhost guest" >"$1/etc/hosts"',
    'rm -f "$1/var/cache/apt/"*.bin',
)


def ensure_image(suite: str) -> tuple[Path, Path, Path]:
    """The disk image, kernel and initial RAM disk of guests of a Debian suite, built if there are none."""
    root = ensure_base(suite, _PACKAGES, _HOOKS)
    image = root.with_suffix(".ext4")
    with interruptible(), locked(cache_dir() / f"{suite}.lock"):
        if not image.exists():
            unfinished = image.with_suffix(".new")
            unfinished.unlink(missing_ok=True)
            host("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(unfinished), _DISK_SIZE)
            unfinished.rename(image)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    return image, kernel, initrd


class Guest:
    """A virtual machine, up for as long as the `with` block; run() works as that of a lab's machine does.

    :param files: files of the host that are at /run/guest/NAME in there
    """

    name = "guest"

    def __init__(self, suite: str, files: Mapping[str, Path] | None = None) -> None:
        """Describe a guest; nothing is made yet."""
        self.suite = suite
        self._files = {"agent.py": _AGENT, **(files or {})}
        self._stack = ExitStack()
        self._answers = b""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guest:
        image, kernel, initrd = ensure_image(self.suite)
        try:
            self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="peerd-guest-")))
            payload = self._directory / "payload.tar"
            with tarfile.open(payload, "w") as archive:
                for name, path in self._files.items():
                    archive.add(path, name)
            ours, theirs = socket.socketpair()
            self._line = self._stack.enter_context(ours)
            with theirs:
                self._start(image, kernel, initrd, payload, theirs)
            self._receive(400)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self, image: Path, kernel: Path, initrd: Path, payload: Path, line: socket.socket) -> None:
        # It ends with us, however we end.
        argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg"]
        argv += ["-m", str(_MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot", "-cpu", "max"]
        argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", _KERNEL_LINE]
        argv += ["-drive", f"file={image},format=raw,if=virtio,snapshot=on"]
        argv += ["-drive", f"file={payload},format=raw,if=virtio,readonly=on"]
        argv += ["-device", "virtio-rng-pci", "-serial", f"file:{self._directory / 'console'}"]
        argv += ["-chardev", f"socket,id=agent,fd={line.fileno()}", "-serial", "chardev:agent"]
        log = self._stack.enter_context((self._directory / "qemu").open("wb"))
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[line.fileno()], start_new_session=True
        )

    def _receive(self, timeout: float) -> dict[str, Any]:
        """The agent's next line; LabError with the console's last words when none comes in time."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._answers:
            self._line.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                chunk = self._line.recv(1 << 20)
            except TimeoutError:
                raise LabError(f"no answer from the guest within {timeout:g} s:\n{self._last_words()}") from None
            if not chunk:
                raise LabError(f"the guest has ended:\n{self._last_words()}")
            self._answers += chunk
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        files = [self._directory / name for name in ("qemu", "console")]
        text = "".join(path.read_text(errors="replace") for path in files if path.exists())
        return "\n".join(text.splitlines()[-40:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        # Nothing that it wrote is kept, so it need not be told.
        try:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
        finally:
            self._stack.close()

    # --- commands

    def run(
        self, command: str | Sequence[str], *, check: bool = True, timeout: float = 60, input: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, as root in /root, and return its status, stdout and stderr.

        CommandFailed when it fails and check is on; subprocess.TimeoutExpired, with the program killed, when late.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        clean = " ".join(f"{key}={shlex.quote(value)}" for key, value in ENVIRONMENT.items())
        wrapped = f"exec env -i {clean} /bin/bash -c {shlex.quote(text)}"
        request = {"command": wrapped, "timeout": timeout, "input": base64.b64encode(input).decode()}
        self._line.settimeout(timeout)
        self._line.sendall(json.dumps(request).encode() + b"\n")
        answer = self._receive(timeout + 30)
        stdout, stderr = (base64.b64decode(answer[name] or "") for name in ("stdout", "stderr"))
        status = answer["status"]
        if status is None:
            raise subprocess.TimeoutExpired(f"{self.name}: {text}", timeout, stdout, stderr)
        if check and status:
            raise CommandFailed(int(status), f"{self.name}: {text}", stdout, stderr)
        return subprocess.CompletedProcess(text, int(status), stdout, stderr)

    def out(self, command: str | Sequence[str], *, check: bool = True, timeout: float = 60) -> str:
        """Run a command as run() does and return its stdout as text, without the newline at its end."""
        return self.run(command, check=check, timeout=timeout).stdout.decode().rstrip("\n")

    def wait_until(self, condition: str, timeout: float = 60) -> None:
        """Wait until a command line succeeds; TimeoutError when late."""
        wait_until(lambda: not self.run(condition, check=False).returncode, timeout, f"`{condition}` in the guest")
