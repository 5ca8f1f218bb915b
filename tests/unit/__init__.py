"""Unit tests: no root, no systemd, no network beyond loopback."""

import importlib
import warnings

# dbus_next loads PyGObject where it is installed, whose own loader is too old for Python's taste.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)
    importlib.import_module("dbus_next")
