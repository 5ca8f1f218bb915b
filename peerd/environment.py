"""The environment of a command: small, like that of a login, and never the daemon's."""

from __future__ import annotations

import pwd

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What login(1) gives root on Debian (ENV_SUPATH of login.defs(5))."""
LANG = "C.UTF-8"


def login_environment(exec_id: str, caller: str, entry: pwd.struct_passwd) -> dict[str, str]:
    """The variables that a command starts with.

    :param exec_id: its id, as PEERD_EXEC_ID
    :param caller: who asked, as PEERD_CALLER
    :param entry: the user that it runs as
    """
    return {
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
        "PATH": PATH,
        "LANG": LANG,
        "PEERD_EXEC_ID": exec_id,
        "PEERD_CALLER": caller,
    }
