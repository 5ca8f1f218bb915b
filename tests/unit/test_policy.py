"""The policy: every criterion, every kind of command, and that the answer always has a reason."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.journal import Event
from peerd.policy import (
    TELLING,
    Policy,
    Question,
    Rule,
    decide,
    decide_apps,
    decide_job,
    decide_registry,
    decisive_directories,
)

GROUPS = {"servers": ("vps", "nas")}
ASKED = Question("laptop", "root", "/srv/app", "git pull", timeout=30.0)
ARGV = replace(ASKED, shell_cmd="", argv=("git", "pull"))
PULL = replace(ASKED, shell_cmd="", action="pull")
KINDS = {"shell": ASKED, "program": ARGV, "action": PULL}


def policy(*rules: Rule) -> Policy:
    return Policy(rules=rules, groups=GROUPS)


def allowed(question: Question, **criteria: object) -> bool:
    """Whether one rule for everybody with these criteria allows something."""
    return decide(policy(replace(Rule("r", ("*",)), **criteria)), question).allowed  # type: ignore[arg-type]


@pytest.mark.parametrize("question", KINDS.values(), ids=KINDS)
def test_without_a_rule_peers_may_do_everything(question: Question) -> None:
    assert decide(Policy(), question).allowed


@pytest.mark.parametrize("rules", [(), (Rule("r", ("*",)),)], ids=["no rule", "a rule"])
@pytest.mark.parametrize("question", KINDS.values(), ids=KINDS)
def test_without_accept_exec_they_may_do_nothing(question: Question, rules: tuple[Rule, ...]) -> None:
    decision = decide(Policy(accept=False, rules=rules), question)
    assert (decision.allowed, decision.reason) == (False, "accept-exec is no")
    assert not decide_job(Policy(accept=False, rules=rules), "laptop", "laptop").allowed


@pytest.mark.parametrize(
    ("peers", "who"),
    [
        (("*",), {"vps", "nas", "laptop"}),
        (("laptop",), {"laptop"}),
        (("@servers",), {"vps", "nas"}),
        (("@servers", "laptop"), {"vps", "nas", "laptop"}),
        (("servers",), set()),
    ],
)
def test_a_rule_is_for_its_peers(peers: tuple[str, ...], who: set[str]) -> None:
    asking = {"vps", "nas", "laptop"}
    assert {peer for peer in asking if decide(policy(Rule("r", peers)), replace(ASKED, peer=peer)).allowed} == who
    assert {
        peer for peer in asking if decide_registry(Policy(registry_admins=peers, groups=GROUPS), peer).allowed
    } == who


@pytest.mark.parametrize(
    ("users", "user", "allows"),
    [(None, "ann", True), (("root",), "root", True), (("root",), "ann", False)],
)
def test_a_rule_is_for_its_users(users: tuple[str, ...] | None, user: str, allows: bool) -> None:
    assert allowed(replace(ASKED, user=user), users=users) is allows


@pytest.mark.parametrize(
    ("directory", "allows"),
    [
        ("/srv", True),
        ("/srv/app/deep/er", True),
        ("/srvx", False),
        ("/", False),
        ("/opt", False),
        ("/opt/a b/c", True),
        ("/opt/a", False),
    ],
)
def test_a_rule_is_for_what_is_below_its_directories(directory: str, allows: bool) -> None:
    question = replace(ASKED, directory=directory)
    assert allowed(question, directories=("/srv", "/opt/a b")) is allows
    assert allowed(question, directories=("/",))
    assert allowed(question)


COMMANDS: dict[str, object] = {"shell_commands": ("git pull",), "programs": (("git", "pull"),), "actions": ("pull",)}


@pytest.mark.parametrize("names", list(product(COMMANDS, repeat=2)), ids=str)
def test_only_the_kinds_of_command_that_a_rule_names_are_allowed_by_it(names: tuple[str, str]) -> None:
    criteria = {name: COMMANDS[name] for name in names}
    for kind, name in (("shell", "shell_commands"), ("program", "programs"), ("action", "actions")):
        assert allowed(KINDS[kind], **criteria) is (name in names)


@pytest.mark.parametrize(
    ("pattern", "command", "allows"),
    [
        ("git pull", "git pull", True),
        ("git pull", "git pull ", False),
        ("git pull", "GIT PULL", False),
        ("git pull", "git pull; rm -rf /", False),
        ("git pull", "git  pull", False),
        # What a pattern on a shell command is worth.
        ("git pull*", "git pull; rm -rf /", True),
        ("git *", "git pull\nrm -rf /", True),
        ("echo [ab]", "echo b", True),
    ],
)
def test_a_shell_command_is_matched_as_a_whole(pattern: str, command: str, allows: bool) -> None:
    assert allowed(replace(ASKED, shell_cmd=command), shell_commands=(pattern,)) is allows
    assert allowed(replace(ASKED, shell_cmd=command), shell_commands=("no", pattern)) is allows


@pytest.mark.parametrize(
    ("pattern", "argv", "allows"),
    [
        (("git", "pull"), ("git", "pull"), True),
        (("git", "pull"), ("git",), False),
        (("git", "pull"), ("git", "pull", "x"), False),
        (("git", "pull"), ("/tmp/git", "pull"), False),
        (("git", "pu*"), ("git", "push"), True),
        (("git", "*"), ("git", "pull; rm -rf /"), True),
        (("git", "*"), ("git", "a", "b"), False),
        (("git", "pull", "..."), ("git", "pull"), True),
        (("git", "pull", "..."), ("git", "pull", "a", "b"), True),
        (("git", "pull", "..."), ("git", "push", "a"), False),
        (("git", "pull", "..."), ("git",), False),
    ],
)
def test_a_program_is_matched_word_by_word(pattern: tuple[str, ...], argv: tuple[str, ...], allows: bool) -> None:
    assert allowed(replace(ARGV, argv=argv), programs=(("no",), pattern)) is allows


@pytest.mark.parametrize(
    ("criteria", "names", "allows"),
    [
        ({}, ("LD_PRELOAD",), True),
        ({"shell_commands": ("git pull",)}, (), True),
        ({"shell_commands": ("git pull",)}, ("LD_PRELOAD",), False),
        ({"shell_commands": ("git pull",), "variables": ("LC_*", "A")}, ("LC_ALL", "A"), True),
        ({"shell_commands": ("git pull",), "variables": ("LC_*", "A")}, ("LC_ALL", "PATH"), False),
        ({"variables": ()}, ("A",), False),
        ({"variables": ("A",)}, ("a",), False),
    ],
)
def test_a_rule_for_certain_commands_lets_no_variable_change_their_meaning(
    criteria: dict[str, object], names: tuple[str, ...], allows: bool
) -> None:
    assert allowed(replace(ASKED, variables=names), **criteria) is allows


@pytest.mark.parametrize(
    ("limit", "asked", "allows"),
    [(None, 9e9, True), (30.0, 30.0, True), (30.0, 30.5, False), (30.0, None, True)],
)
def test_a_rule_limits_the_timeout_that_is_asked_for(limit: float | None, asked: float | None, allows: bool) -> None:
    decision = decide(policy(Rule("r", ("*",), max_timeout=limit)), replace(ASKED, timeout=asked))
    assert decision.allowed is allows
    assert not allows or decision.max_timeout == limit


@pytest.mark.parametrize(
    ("limits", "asked", "limit"),
    [((2.0, None), None, None), ((None, 2.0), 30.0, None), ((2.0, 60.0, 5.0), None, 60.0), ((2.0, 60.0), 1.0, 60.0)],
)
def test_of_the_rules_that_allow_a_command_the_most_time_counts(
    limits: tuple[float | None, ...], asked: float | None, limit: float | None
) -> None:
    rules = [Rule(f"r{limit}", ("*",), max_timeout=limit) for limit in limits]
    decision = decide(policy(*rules), replace(ASKED, timeout=asked))
    assert (decision.rule, decision.max_timeout) == (f"r{limit}", limit)


def test_one_rule_that_allows_it_is_enough_and_is_named() -> None:
    rules = Rule("a", ("vps",)), Rule("b", ("laptop",), users=("ann",)), Rule("c", ("laptop",), max_timeout=60.0)
    decision = decide(policy(*rules), ASKED)
    assert (decision.allowed, decision.rule, decision.max_timeout) == (True, "c", 60.0)


def test_what_no_rule_allows_is_denied_with_what_each_of_them_objects_to() -> None:
    rules = (
        Rule("a", ("vps",)),
        Rule("b", ("*",), users=("ann",)),
        Rule("c", ("*",), directories=("/opt",)),
        Rule("d", ("*",), shell_commands=("make",)),
        Rule("e", ("*",), max_timeout=1.0),
        Rule("f", ("*",), variables=()),
    )
    decision = decide(policy(*rules), replace(ASKED, variables=("A",)))
    assert (decision.allowed, decision.rule) == (False, "")
    assert decision.reason.split("; ") == [
        "[allow a]: laptop is not among peers",
        "[allow b]: root is not among users",
        "[allow c]: '/srv/app' is not below directories",
        "[allow d]: the command is not among shell-commands",
        "[allow e]: 30 s is more than max-timeout",
        "[allow f]: A is not among variables",
    ]


@pytest.mark.parametrize(
    ("rules", "owner", "allows"),
    [
        ((), "vps", True),
        ((Rule("r", ("vps",)),), "laptop", True),
        ((Rule("r", ("*",)),), "vps", True),
        ((Rule("r", ("*",), users=("root",)),), "vps", False),
        ((Rule("r", ("vps",)),), "vps", False),
    ],
    ids=["no rule", "its own", "may do everything", "may do something", "may do nothing"],
)
def test_a_peer_may_look_after_its_own_commands_and_after_all_where_it_may_do_everything(
    rules: tuple[Rule, ...], owner: str, allows: bool
) -> None:
    decision = decide_job(policy(*rules), "laptop", owner)
    assert decision.allowed is allows
    assert decision.reason


@pytest.mark.parametrize(
    ("rules", "allows"),
    [
        ((), True),
        ((Rule("r", ("laptop",)),), True),
        ((Rule("r", ("*",), users=("root",)),), True),
        ((Rule("r", ("*",), users=("ann", "root"), max_timeout=60.0),), True),
        ((Rule("r", ("vps",)), Rule("s", ("laptop",))), True),
        ((Rule("r", ("vps",)),), False),
        ((Rule("r", ("*",), users=("ann",)),), False),
        ((Rule("r", ("*",), directories=("/",)),), False),
        ((Rule("r", ("*",), shell_commands=("*",)),), False),
        ((Rule("r", ("*",), actions=("pull",)),), False),
        ((Rule("r", ("*",), variables=()),), False),
    ],
)
def test_apps_are_for_who_may_run_anything_as_root(rules: tuple[Rule, ...], allows: bool) -> None:
    decision = decide_apps(policy(*rules), "laptop")
    assert decision.allowed is allows
    assert decision.reason
    assert not decide_apps(replace(policy(*rules), accept=False), "laptop").allowed


def test_directories_can_be_resolved_before_they_are_compared() -> None:
    rules = policy(Rule("r", ("*",), directories=("/link", "/gone")), Rule("s", ("vps",)))
    assert decide(rules.with_directories({"/link": "/srv"}), ASKED).allowed
    assert not decide(rules.with_directories({}), ASKED).allowed
    assert not decide(rules, ASKED).allowed


def test_a_directory_matters_where_nothing_else_settles_it() -> None:
    below = Rule("r", ("laptop",), directories=("/srv", "/opt"))
    assert decisive_directories(policy(below), ASKED) == ("/srv", "/opt")
    assert decisive_directories(policy(below, Rule("s", ("laptop",), max_timeout=60.0)), ASKED) == ("/srv", "/opt")
    assert not decisive_directories(policy(below, Rule("s", ("laptop",))), ASKED)
    assert not decisive_directories(policy(below), replace(ASKED, peer="vps"))
    assert not decisive_directories(replace(policy(below), accept=False), ASKED)
    assert not decisive_directories(policy(), ASKED)


WORDS = st.sampled_from(["laptop", "vps", "*", "@servers"])
RULES = st.builds(
    Rule,
    st.just("r"),
    st.lists(WORDS, min_size=1, max_size=2).map(tuple),
    users=st.sampled_from([None, ("root",), ("ann",)]),
    directories=st.sampled_from([None, ("/srv",), ("/opt", "/")]),
    shell_commands=st.sampled_from([None, ("git pull",), ("*",)]),
    programs=st.sampled_from([None, (("git", "pull"),), (("*", "..."),)]),
    actions=st.sampled_from([None, ("pull",), ("build",)]),
    variables=st.sampled_from([None, (), ("A*",)]),
    max_timeout=st.sampled_from([None, 1.0, 60.0]),
)
QUESTIONS = st.builds(
    replace,
    st.sampled_from(list(KINDS.values())),
    peer=st.sampled_from(["laptop", "vps", "nas"]),
    user=st.sampled_from(["root", "ann"]),
    directory=st.sampled_from(["/srv", "/opt/x", "/"]),
    variables=st.sampled_from([(), ("A",), ("PATH",)]),
    timeout=st.sampled_from([None, 0.5, 30.0, 90.0]),
)


@given(st.lists(RULES, min_size=1, max_size=4), QUESTIONS)
def test_more_rules_allow_more_and_an_answer_has_a_reason(rules: list[Rule], question: Question) -> None:
    alone = [decide(policy(rule), question).allowed for rule in rules]
    decision = decide(policy(*rules), question)
    assert decision.allowed is any(alone)
    assert decision.reason
    assert (decision.rule != "") is decision.allowed


@given(st.lists(RULES, min_size=1, max_size=4), QUESTIONS)
def test_a_directory_that_does_not_matter_changes_nothing(rules: list[Rule], question: Question) -> None:
    if not decisive_directories(policy(*rules), question):
        decisions = {decide(policy(*rules), replace(question, directory=place)).rule for place in ("/srv", "/etc")}
        assert len(decisions) == 1


@given(RULES, QUESTIONS)
def test_a_criterion_never_allows_more(rule: Rule, question: Question) -> None:
    if decide(policy(rule), question).allowed:
        assert decide(policy(Rule("r", rule.peers)), question).allowed
        assert decide(policy(replace(rule, max_timeout=None)), question).allowed


def test_the_events_that_tell_of_the_rules_are_those_with_a_decision() -> None:
    assert set(TELLING) == {
        event.name.lower().replace("_", "-") for event in Event if event.name.endswith(("_DENIED", "_ALLOWED"))
    }
