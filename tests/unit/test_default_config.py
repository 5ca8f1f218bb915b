"""The configuration file that the package installs."""

from pathlib import Path

from peerd import config

DEFAULT = Path(__file__).parents[2] / "packaging" / "peerd.conf"


def test_it_shows_every_setting_with_its_default() -> None:
    shown = [line[1:] for line in DEFAULT.read_text().splitlines() if line.startswith("#") and " = " in line]
    assert shown == [f"{setting.name} = {setting.default}" for setting in config.SETTINGS]


def test_it_says_what_each_setting_is_for() -> None:
    words = " ".join(DEFAULT.read_text().replace("#", " ").split())
    for setting in config.SETTINGS:
        assert f"{setting.help} {setting.name} =" in words


def test_it_changes_nothing_and_warns_of_nothing() -> None:
    text = DEFAULT.read_text()
    assert config.parse([("peerd.conf", text)]) == config.parse([])
    uncommented = text.replace("\n#", "\n# ")
    for setting in config.SETTINGS:
        uncommented = uncommented.replace(f"\n# {setting.name} =", f"\n{setting.name} =")
    assert config.parse([("peerd.conf", uncommented)]) == config.parse([])
