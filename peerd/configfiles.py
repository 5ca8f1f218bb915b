"""The files of peerd.conf(5): read together, and looked at alone for whoever is about to put them in force."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from peerd.config import Config, ConfigError, parse

CONFIG_FILE = Path("/etc/peerd/peerd.conf")
CONFIG_DIRECTORY = Path("/etc/peerd/peerd.conf.d")
EX_CONFIG = 78
"""sysexits.h: the configuration is wrong."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read() -> tuple[Config, list[str]]:
    """The configuration, and a warning for each thing about its files that should be mended.

    :raises ConfigError: when it cannot be used
    """
    try:
        # A link to nowhere is no missing file: what it leads to may have been a policy.
        files = [CONFIG_FILE] if os.path.lexists(CONFIG_FILE) else []
        if os.path.lexists(CONFIG_DIRECTORY):
            files += sorted(file for file in CONFIG_DIRECTORY.iterdir() if file.name.endswith(".conf"))
        read = [(str(file), *_read(file)) for file in files]
    except OSError as error:
        raise ConfigError(str(error)) from None
    settings, warnings = parse((name, text) for name, text, _ in read)
    # Who may write a policy has what it could allow.
    exposed = [name for name, _, mode in read if mode & _OTHERS_WRITE]
    return settings, [*warnings, *(f"{name}: others than its owner may write it" for name in exposed)]


def _read(file: Path) -> tuple[str, int]:
    """What is in a file, and its mode."""
    with file.open(encoding="utf-8") as opened:
        try:
            return opened.read(), os.fstat(opened.fileno()).st_mode
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: {error}") from None


def check() -> int:
    """Say on standard error what is wrong with the configuration; the exit status is 78 where it cannot be used."""
    try:
        _, warnings = read()
    except ConfigError as error:
        sys.stderr.write(f"peerd: {error}\n")
        return EX_CONFIG
    sys.stderr.writelines(f"peerd: {warning}\n" for warning in warnings)
    return 0
