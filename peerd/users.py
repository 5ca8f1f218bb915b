"""Who a local caller is."""

from __future__ import annotations

import array
import contextlib
import os
import pwd
import socket
import struct

_UCRED = struct.Struct("3i")
"""unix(7): pid, uid and gid."""
_SO_PEERGROUPS = 59
_MOST_BYTES = 1024
"""What socket.getsockopt of Python takes at most."""


def name(uid: int) -> str:
    """The name of a user, for the journal; one without a name is "uid 1000"."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def credentials(connection: socket.socket) -> tuple[int, int]:
    """The user id and group id of who connected to a unix socket (SO_PEERCRED of unix(7))."""
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid, gid


def is_member(connection: socket.socket) -> bool:
    """Whether who connected to a unix socket is root, or its file's owner or in its file's group (unix(7)).

    The kernel asks the same of whoever connects, as long as nobody has changed the mode of the file.
    """
    uid, gid = credentials(connection)
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES))
    except OSError:
        # More groups than Python has room for; those of the user database have to do.
        with contextlib.suppress(KeyError):
            groups.extend(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    try:
        file = os.stat(connection.getsockname())
    except (OSError, ValueError):
        return uid == 0
    return uid in (0, file.st_uid) or file.st_gid in (gid, *groups)
