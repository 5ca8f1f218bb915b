"""The unit of the service: commands must not share what is the service's, and disabled it stays down."""

import re
from pathlib import Path

UNITS = Path(__file__).parents[2] / "units"
TEXT = (UNITS / "peerd.service").read_text()
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", TEXT, re.MULTILINE))


def test_commands_of_different_users_share_no_session_keyring() -> None:
    assert SETTINGS["KeyringMode"] == "inherit"


def test_a_call_on_d_bus_starts_it_by_the_name_that_it_has_only_while_it_is_enabled() -> None:
    called = (UNITS / "dbus-1/org.automatelinux.peerd1.service").read_text()
    assert f"\nSystemdService={SETTINGS['Alias']}\n" in called
    assert SETTINGS["Alias"] == "dbus-org.automatelinux.peerd1.service"
