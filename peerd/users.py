"""Who a local caller is."""

from __future__ import annotations

import pwd


def name(uid: int) -> str:
    """The name of a user, for the journal; one without a name is "uid 1000"."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
