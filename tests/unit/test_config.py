"""The configuration: one table of settings, files that override one another, and errors that name their place."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from peerd.config import SETTINGS, Config, ConfigError, Mode, Setting, parse
from peerd.policy import Policy, Question, Rule, decide, decide_apps, decide_job
from unit.support import settings

NAMES = {setting.name for setting in SETTINGS}
BAD = {
    "vpn-interface": ["", "wg/0", "a" * 16, "wg 0", "w\x1bg"],
    "leader-address": ["", "vps", "0.0.0.0", "10.0.0.0/24", "::1"],
    "registration": ["", "yes", "OPEN", "open closed"],
    "registry-admins": ["a b!", "@", "@a/b"],
    "accept-exec": ["", "true", "No", "1"],
    "port": ["", "0", "65536", "-1", "x", "3600.0"],
    "repository": ["", "opt", "/a\0b"],
    "pull-command": ["", "a\0b"],
    "build-directory": [""],
    "build-command": [""],
    "default-timeout": ["", "0", "-1", "x", "nan", "inf", "30s"],
    "build-timeout": ["0"],
    "max-timeout": ["0", "99999999999"],
    "detached-timeout": ["0", "x"],
    "reattach-timeout": ["0", "-1"],
    "stop-grace": ["0"],
    "connect-timeout": ["0"],
    "heartbeat-interval": ["0"],
    "job-output-limit": ["0", "x", "-1M", ""],
    "total-output-limit": ["0", "1.5G"],
    "job-retention": ["0", "week"],
    "history-limit": ["0", "1K", "100001"],
    "max-commands": ["0", "x", "1.5", "100001"],
    "max-connections": ["0", ""],
}
GOOD = {
    "vpn-interface": ("wg-home", "wg-home"),
    "leader-address": ("10.1.2.3", "10.1.2.3"),
    "registration": ("approval", Mode.APPROVAL),
    "registry-admins": ("vps laptop", ("vps", "laptop")),
    "accept-exec": ("no", False),
    "port": ("65535", 65535),
    "repository": ("/srv/x y", "/srv/x y"),
    "pull-command": ("git pull --ff-only # now", "git pull --ff-only # now"),
    "build-directory": ("/srv/build", "/srv/build"),
    "build-command": ("make ; echo 100% = %s", "make ; echo 100% = %s"),
    "default-timeout": ("0.5", 0.5),
    "build-timeout": ("60", 60.0),
    "max-timeout": ("90000", 90000.0),
    "detached-timeout": ("3600", 3600.0),
    "reattach-timeout": ("0.5", 0.5),
    "stop-grace": ("2", 2.0),
    "connect-timeout": ("1.5", 1.5),
    "heartbeat-interval": ("3", 3.0),
    "job-output-limit": ("1K", 1024),
    "total-output-limit": ("2G", 2 * 1024**3),
    "job-retention": ("60", 60.0),
    "history-limit": ("100000", 100000),
    "max-commands": ("1", 1),
    "max-connections": ("100000", 100000),
}
OF_POLICY = {"accept-exec": "accept", "registry-admins": "registry_admins"}


def attribute(name: str) -> str:
    return name.replace("-", "_")


def test_the_configuration_or_its_policy_has_an_attribute_for_each_setting_and_no_other() -> None:
    names = [attribute(setting.name) for setting in SETTINGS if setting.name not in OF_POLICY]
    assert [field.name for field in fields(Config)] == [*names, "policy"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_default_is_a_value_and_its_attribute_has_the_type_of_it(setting: Setting) -> None:
    value = setting.parse(setting.default)
    config = parse([])[0]
    owner, name = (
        (config.policy, OF_POLICY[setting.name]) if setting.name in OF_POLICY else (config, attribute(setting.name))
    )
    assert getattr(owner, name) == value
    declared = str(next(field.type for field in fields(owner) if field.name == name))
    assert type(value).__name__ == declared.split("[", maxsplit=1)[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_says_what_it_is_for(setting: Setting) -> None:
    assert setting.help.endswith(".")


def test_every_setting_has_examples_here() -> None:
    assert BAD.keys() == NAMES
    assert GOOD.keys() == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_sets_a_setting_and_leaves_the_others_at_their_defaults(name: str) -> None:
    text, value = GOOD[name]
    found, warnings = parse([("a.conf", f"[peerd]\n{name} = {text}\n")])
    if name in OF_POLICY:
        assert found == settings(policy=replace(Policy(), **{OF_POLICY[name]: value}))  # type: ignore[arg-type]
    else:
        assert found == settings(**{attribute(name): value})
    assert warnings == []


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


@pytest.mark.parametrize("section", ["daemon", "DEFAULT", "alow x", "deny x", "Allow x", "peerd ", "", "peer"])
def test_an_unknown_section_is_refused_because_it_may_be_meant_as_a_policy(section: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([("x.conf", f"[{section}]\npeers = *\n")])
    assert str(caught.value).startswith("x.conf: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[allow]\npeers = *\n", "x.conf: [allow]: a name is needed"),
        ("[allow a b]\npeers = *\n", "x.conf: [allow a b]: a name is needed"),
        ("[allow a]\n", "[allow a]: peers is missing"),
        ("[allow a]\npeers =\n", "x.conf: peers: must not be empty"),
        ("[allow a]\npeers = @b\n", "there is no [group b]"),
        ("[peerd]\nregistry-admins = @b\n", "there is no [group b]"),
        ("[allow a]\npeers = *\ndirektories = /\n", "x.conf: [allow a]: unknown setting 'direktories'"),
        ("[allow a]\npeers = *\ndirectories = srv\n", "x.conf: directories: directory must be an absolute path"),
        ("[allow a]\npeers = *\nusers =\n", "x.conf: users: must not be empty"),
        ("[allow a]\npeers = *\nusers = a:b\n", "x.conf: users: not a user name"),
        ("[allow a]\npeers = *\nprograms = git 'pull\n", "x.conf: programs: No closing quotation"),
        ("[allow a]\npeers = *\nprograms = ... git\n", "x.conf: programs: not a program"),
        ("[allow a]\npeers = *\nprograms = git ... pull\n", "x.conf: programs: not a program"),
        ("[allow a]\npeers = *\nshell-commands =\n", "x.conf: shell-commands: must not be empty"),
        (
            "[allow a]\npeers = *\nshell-commands = ls \\*\n",
            "x.conf: shell-commands: not a pattern: 'ls \\\\*' ([*] is a *",
        ),
        ("[allow a]\npeers = *\nshell-commands = true\n  ls \\?\n", "x.conf: shell-commands: not a pattern"),
        ("[allow a]\npeers = *\nshell-commands = ls [^a]\n", "x.conf: shell-commands: not a pattern"),
        ("[allow a]\npeers = *\nprograms = ls '\\['\n", "x.conf: programs: not a pattern"),
        ("[allow a]\npeers = *\nprograms = ls [[:digit:]]\n", "x.conf: programs: not a pattern"),
        ("[allow a]\npeers = *\nprograms = ls [!]a[.-.]]\n", "x.conf: programs: not a pattern"),
        ("[allow a]\npeers = *\nvariables = A B[a[=b=]]\n", "x.conf: variables: not a pattern"),
        ("[allow a]\npeers = *\nactions = deploy\n", "x.conf: actions: neither pull nor build"),
        ("[allow a]\npeers = *\nmax-timeout = 0\n", "x.conf: max-timeout: not a number of seconds"),
        ("[group a]\npeers = *\n", "x.conf: peers: not a valid peer id"),
        ("[group a]\npeers = @b\n", "x.conf: peers: not a valid peer id"),
        ("[group a]\npeers = b\nusers = c\n", "x.conf: [group a]: unknown setting 'users'"),
    ],
)
def test_a_policy_that_is_not_understood_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([("x.conf", text)])
    assert str(caught.value).startswith(reason)
    assert str(caught.value).isprintable()


def test_a_policy_is_read_from_all_files_setting_by_setting() -> None:
    first = """
[peerd]
registry-admins = @servers
[group servers]
peers = vps nas
[allow deploy]
peers = @servers desktop
users = root www-data
directories = /opt/automateLinux
  /srv/x y
shell-commands =
  git pull
  systemctl status *
programs = git -C '/srv/x y' pull
  ls ...
actions = pull
variables = LANG LC_*
max-timeout = 60
"""
    found = parse([("1", first), ("2", "[allow deploy]\nmax-timeout = 90\n[allow all]\npeers = vps\n")])[0].policy
    assert found == Policy(
        True,
        ("@servers",),
        (
            Rule(
                "deploy",
                ("@servers", "desktop"),
                ("root", "www-data"),
                ("/opt/automateLinux", "/srv/x y"),
                ("git pull", "systemctl status *"),
                (("git", "-C", "/srv/x y", "pull"), ("ls", "...")),
                ("pull",),
                ("LANG", "LC_*"),
                90.0,
            ),
            Rule("all", ("vps",)),
        ),
        {"servers": ("vps", "nas")},
    )


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        (r"printf 'a\n' | sed 's/\./,/'", r"printf 'a\n' | sed 's/\./,/'"),
        ("ls [*] [?] [[] [!a] []] [.] [:]", "ls * ? [ b ] . :"),
        ("[ -e /srv", "[ -e /srv"),
        ("ls [a-c] [:]", "ls b :"),
    ],
)
def test_what_is_clear_is_a_pattern(pattern: str, command: str) -> None:
    found = parse([("x", f"[allow a]\npeers = *\nshell-commands = {pattern}\n")])[0].policy
    assert decide(found, Question("laptop", shell_cmd=command)).allowed


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("users = *", Rule("a", ("*",))),
        ("users = ann *", Rule("a", ("*",))),
        ("directories = /", Rule("a", ("*",))),
        ("directories = /\nvariables = A *\nusers = *", Rule("a", ("*",))),
        ("variables = *\nactions = pull", Rule("a", ("*",), actions=("pull",), variables=("*",))),
        ("variables = **\nusers = root", Rule("a", ("*",), users=("root",), variables=("**",))),
    ],
)
def test_a_criterion_that_everything_meets_is_none(text: str, rule: Rule) -> None:
    found = parse([("x", f"[allow a]\npeers = *\n{text}\n")])[0].policy
    assert found.rules == (rule,)
    assert decide_job(found, "laptop", "vps").allowed is rule.unlimited
    assert decide_apps(found, "laptop").allowed is rule.unlimited
    assert decide(found, Question("laptop", "ann", "/srv", "true")).allowed is rule.unlimited


def test_nobody_and_everybody_can_be_the_registrys_admins() -> None:
    assert parse([("x", "[peerd]\nregistry-admins =\n")])[0].policy.registry_admins == ()
    assert parse([])[0].policy == Policy()


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


def test_more_commands_than_can_be_kept_are_no_error_in_a_file_that_has_them() -> None:
    assert [
        parse([("x", f"[peerd]\nmax-commands = {count}\n")])[0].max_commands for count in (2048, 2049, 100_000)
    ] == [*(2048, 2048, 2048)]


DEFAULTS = ("default-timeout", "build-timeout", "detached-timeout")


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_over_the_maximum_is_refused(name: str) -> None:
    values = {"max-timeout": 10, **dict.fromkeys(DEFAULTS, 1), name: 11}
    with pytest.raises(ConfigError, match=r"must not be more than max-timeout"):
        parse([("x", "[peerd]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))])


def test_a_default_at_the_maximum_is_taken() -> None:
    text = "[peerd]\nmax-timeout = 10\n" + "".join(f"{name} = 10\n" for name in DEFAULTS)
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
