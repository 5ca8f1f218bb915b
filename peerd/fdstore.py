"""Descriptors that systemd keeps for this service while it restarts (FileDescriptorStoreMax= of systemd.service(5))."""

from __future__ import annotations

from collections.abc import Sequence

from systemd import daemon


def keep(name: str, descriptors: Sequence[int]) -> None:
    """Have systemd keep copies of descriptors under a name; the same name may be used again for more.

    FDPOLL=0 (sd_notify(3)): without it systemd lets go of a pipe when its writer does, with what is in it unread.
    """
    daemon.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds=list(descriptors))


def forget(name: str) -> None:
    """Have systemd close its copies of all descriptors that it keeps under a name."""
    daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
