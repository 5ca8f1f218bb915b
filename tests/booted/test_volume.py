"""1 GiB passes, both ways, whole and in order, and neither daemon keeps it in memory."""

from __future__ import annotations

import subprocess

import pytest
from lab import Machine

from .volume import digest, growth, keystream, reset_peak

# All of it on one suite, so that a run takes no longer than it must.
SIZES = {"bookworm": 1 << 30, "trixie": 128 << 20}
ALLOWED = 16 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def on_vps(command: str, *options: str) -> str:
    """The command line that runs a command on vps, for long enough."""
    call = ["d", "execOnPeer", "--peer", "vps", "--directory", "/", "--timeout", "300", *options]
    return subprocess.list2cmdline([*call, "--shellCmd", command])


def test_output(desktop: Machine, vps: Machine) -> None:
    size = SIZES[vps.suite]
    expected = digest(vps, size)
    reset_peak(desktop, vps)
    assert desktop.out(f"{on_vps(keystream(size))} | sha256sum", timeout=350).split()[0] == expected
    assert max(growth(desktop, vps)) < ALLOWED


def test_input(desktop: Machine, vps: Machine) -> None:
    size = SIZES[vps.suite]
    expected = digest(desktop, size)
    reset_peak(desktop, vps)
    received = desktop.out(f"{keystream(size)} | {on_vps('sha256sum', '--stdin')}", timeout=350)
    assert received.split()[0] == expected
    assert max(growth(desktop, vps)) < ALLOWED


def test_both_ways_at_once(desktop: Machine, vps: Machine) -> None:
    size = SIZES["trixie"]
    reset_peak(desktop, vps)
    back = desktop.out(f"{keystream(size)} | {on_vps('cat', '--stdin')} | sha256sum", timeout=350)
    assert back.split()[0] == digest(desktop, size)
    assert max(growth(desktop, vps)) < ALLOWED
