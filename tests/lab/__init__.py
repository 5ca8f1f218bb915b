"""A lab of really booted machines: systemd as PID 1, joined by WireGuard, on one host and cut off from its network.

    from lab import Lab

    with Lab() as lab:
        lab["desktop"].run("ping -c1 10.0.0.4")

Put tests/ on sys.path to import it.
"""

from .base import ensure_base
from .host import LabError, check_host, wait_until
from .machine import CommandFailed, Machine, Process, Spec
from .machines import Lab, kept_labs, seed_machines
from .signals import Interrupted

__all__ = [
    "CommandFailed",
    "Interrupted",
    "Lab",
    "LabError",
    "Machine",
    "Process",
    "Spec",
    "check_host",
    "ensure_base",
    "kept_labs",
    "seed_machines",
    "wait_until",
]
