"""The unit of the service: commands must not share what is the service's."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "units" / "peerd.service").read_text()
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", TEXT, re.MULTILINE))


def test_commands_of_different_users_share_no_session_keyring() -> None:
    assert SETTINGS["KeyringMode"] == "inherit"
