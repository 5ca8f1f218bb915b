"""The configuration: one table of settings, files that override one another, and errors that name their place."""

from __future__ import annotations

from dataclasses import fields

import pytest

from peerd.config import SETTINGS, Config, ConfigError, Mode, Setting, parse
from unit.support import settings

NAMES = {setting.name for setting in SETTINGS}
BAD = {
    "vpn-interface": ["", "wg/0", "a" * 16, "wg 0", "w\x1bg"],
    "leader-address": ["", "vps", "0.0.0.0", "10.0.0.0/24", "::1"],
    "registration": ["", "yes", "OPEN", "open closed"],
    "port": ["", "0", "65536", "-1", "x", "3600.0"],
    "repository": ["", "opt", "/a\0b"],
    "pull-command": ["", "a\0b"],
    "build-directory": [""],
    "build-command": [""],
    "default-timeout": ["", "0", "-1", "x", "nan", "inf", "30s"],
    "build-timeout": ["0"],
    "max-timeout": ["0", "99999999999"],
    "stop-grace": ["0"],
    "connect-timeout": ["0"],
    "heartbeat-interval": ["0"],
    "max-commands": ["0", "x", "1.5", "100001"],
    "max-connections": ["0", ""],
}
GOOD = {
    "vpn-interface": ("wg-home", "wg-home"),
    "leader-address": ("10.1.2.3", "10.1.2.3"),
    "registration": ("approval", Mode.APPROVAL),
    "port": ("65535", 65535),
    "repository": ("/srv/x y", "/srv/x y"),
    "pull-command": ("git pull --ff-only # now", "git pull --ff-only # now"),
    "build-directory": ("/srv/build", "/srv/build"),
    "build-command": ("make ; echo 100% = %s", "make ; echo 100% = %s"),
    "default-timeout": ("0.5", 0.5),
    "build-timeout": ("60", 60.0),
    "max-timeout": ("90000", 90000.0),
    "stop-grace": ("2", 2.0),
    "connect-timeout": ("1.5", 1.5),
    "heartbeat-interval": ("3", 3.0),
    "max-commands": ("1", 1),
    "max-connections": ("100000", 100000),
}


def attribute(name: str) -> str:
    return name.replace("-", "_")


def test_the_configuration_has_an_attribute_for_each_setting_and_no_other() -> None:
    assert [field.name for field in fields(Config)] == [attribute(setting.name) for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_default_is_a_value_and_its_attribute_has_the_type_of_it(setting: Setting) -> None:
    value = setting.parse(setting.default)
    assert getattr(parse([])[0], attribute(setting.name)) == value
    declared = next(field.type for field in fields(Config) if field.name == attribute(setting.name))
    assert type(value).__name__ == declared


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_says_what_it_is_for(setting: Setting) -> None:
    assert setting.help.endswith(".")


def test_every_setting_has_examples_here() -> None:
    assert BAD.keys() == NAMES
    assert GOOD.keys() == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_sets_a_setting_and_leaves_the_others_at_their_defaults(name: str) -> None:
    text, value = GOOD[name]
    assert parse([("a.conf", f"[peerd]\n{name} = {text}\n")]) == (settings(**{attribute(name): value}), [])


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in sorted(BAD.items()) for text in texts])
def test_a_bad_value_is_refused_by_the_name_of_its_file_and_setting(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([("good.conf", "[peerd]\n"), ("bad.conf", f"[peerd]\n{name} = {text}\n")])
    assert str(caught.value).startswith(f"bad.conf: {name}: ")
    assert str(caught.value).isprintable()


def test_no_file_is_the_defaults() -> None:
    assert parse([]) == parse([("empty", "")]) == parse([("section", "[peerd]\n")])


def test_a_later_file_wins_setting_by_setting() -> None:
    first = "[peerd]\nport = 1\nvpn-interface = first\n"
    second = "[peerd]\nport = 2\n"
    assert parse([("1", first), ("2", second)]) == (settings(port=2, vpn_interface="first"), [])
    assert parse([("2", second), ("1", first)])[0].port == 1


@pytest.mark.parametrize("comment", ["# port = 1", "; port = 1", "  # port = 1"])
def test_comments_are_no_settings(comment: str) -> None:
    assert parse([("x", f"[peerd]\n{comment}\n")]) == parse([])


def test_a_value_goes_on_in_indented_lines() -> None:
    text = "[peerd]\nbuild-command = cd daemon\n  make\n"
    assert parse([("x", text)])[0].build_command == "cd daemon\nmake"


def test_a_value_keeps_its_equals_signs_colons_and_percents() -> None:
    text = "[peerd]\npull-command = A=1 git -c a:b=%(c)s pull\n"
    assert parse([("x", text)])[0].pull_command == "A=1 git -c a:b=%(c)s pull"


def test_an_unknown_setting_is_ignored_with_a_warning() -> None:
    found, warnings = parse([("x.conf", "[peerd]\nprot = 1\nport = 2\n")])
    assert found.port == 2
    assert warnings == ["x.conf: unknown setting 'prot', ignored"]


def test_an_unknown_section_is_ignored_with_a_warning() -> None:
    found, warnings = parse([("x.conf", "[daemon]\nport = 1\n[peerd]\nport = 2\n")])
    assert found.port == 2
    assert warnings == ["x.conf: unknown section [daemon], ignored"]


def test_a_default_section_is_a_section_like_any_other() -> None:
    found, warnings = parse([("x.conf", "[DEFAULT]\nport = 1\n")])
    assert found == settings()
    assert warnings == ["x.conf: unknown section [DEFAULT], ignored"]
    found, warnings = parse([("x.conf", "[DEFAULT]\nport = 1\n[peerd]\nmax-commands = 2\n")])
    assert found == settings(max_commands=2)
    assert warnings == ["x.conf: unknown section [DEFAULT], ignored"]


@pytest.mark.parametrize(
    "text",
    [
        "port = 1\n",
        "[peerd\nport = 1\n",
        "[peerd]\nport\n",
        "[peerd]\nport = 1\nport = 2\n",
        "[peerd]\n[peerd]\n",
        "\0",
    ],
)
def test_what_is_no_configuration_is_refused_by_the_name_of_its_file(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([("x.conf", text)])
    assert str(caught.value).startswith("x.conf: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["default-timeout", "build-timeout"])
def test_a_default_over_the_maximum_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must not be more than max-timeout"):
        parse(
            [
                (
                    "x",
                    f"[peerd]\n{name} = 11\nmax-timeout = 10\ndefault-timeout = 1\nbuild-timeout = 1\n".replace(
                        f"{name} = 1\n", ""
                    ),
                )
            ]
        )


def test_a_default_at_the_maximum_is_taken() -> None:
    text = "[peerd]\ndefault-timeout = 10\nbuild-timeout = 10\nmax-timeout = 10\n"
    assert parse([("x", text)])[0].default_timeout == 10


@pytest.mark.parametrize(
    ("repository", "build", "path"),
    [
        ("/opt/automateLinux", "daemon", "/opt/automateLinux/daemon"),
        ("/opt/automateLinux/", "daemon", "/opt/automateLinux/daemon"),
        ("/opt/automateLinux", "/srv/build", "/srv/build"),
        ("/", "daemon", "/daemon"),
    ],
)
def test_the_build_directory_is_relative_to_the_repository(repository: str, build: str, path: str) -> None:
    assert settings(repository=repository, build_directory=build).build_path == path
