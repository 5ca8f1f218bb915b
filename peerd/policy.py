"""Who may do what here: the policy of peerd.conf(5), and the functions that decide by it. Pure code.

A policy is a list of rules, each of which allows something; what no rule allows is denied. Without a rule registered
peers may do everything.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from peerd import validate

ANYBODY = "*"
GROUP_MARK = "@"
FURTHER_ARGUMENTS = "..."
"""The last word of a program's pattern: any further arguments, or none."""

_NO_PATTERN = re.compile(r"\\[*?[]|\[\^|\[!?\]?[^]]*\[[:.=]")
"""What means something in other patterns, and another thing in those of fnmatch, which would allow more."""

TELLING = ("app-denied", "command-allowed", "command-denied", "registry-denied")
"""The events of the journal whose records have a rule or a reason in them."""


@dataclass(frozen=True)
class Question:
    """What a peer wants to run here.

    :ivar directory: with all symbolic links resolved where the decision depends on it
    :ivar action: "pull" or "build" where it is this machine's own command that is asked for, else ""
    :ivar variables: the names of the variables that the caller sets
    :ivar timeout: the seconds that the caller asks for, or None where it names none
    """

    peer: str
    user: str = "root"
    directory: str = "/"
    shell_cmd: str = ""
    argv: tuple[str, ...] = ()
    action: str = ""
    variables: tuple[str, ...] = ()
    timeout: float | None = None


@dataclass(frozen=True)
class Decision:
    """The answer.

    :ivar rule: the rule that allows it, or ""
    :ivar reason: a sentence for the administrator of this machine, and for nobody else
    :ivar max_timeout: the most seconds that it may run by the rules, or None
    :ivar resolved: whether it was allowed for its directory, which then must be entered under that very path
    """

    allowed: bool
    reason: str
    rule: str = ""
    max_timeout: float | None = None
    resolved: bool = False


@dataclass(frozen=True)
class Rule:
    """One ``[allow NAME]`` section; a criterion that is None is met by everything."""

    name: str
    peers: tuple[str, ...]
    users: tuple[str, ...] | None = None
    directories: tuple[str, ...] | None = None
    shell_commands: tuple[str, ...] | None = None
    programs: tuple[tuple[str, ...], ...] | None = None
    actions: tuple[str, ...] | None = None
    variables: tuple[str, ...] | None = None
    max_timeout: float | None = None

    @property
    def names_commands(self) -> bool:
        """Whether it allows certain commands only."""
        return not (self.shell_commands is None and self.programs is None and self.actions is None)

    @property
    def unlimited(self) -> bool:
        """Whether it allows its peers everything."""
        return self == Rule(self.name, self.peers)


@dataclass(frozen=True)
class Policy:
    """All that was configured.

    :ivar accept: whether peers may run anything here at all
    :ivar registry_admins: who may change this leader's registry from another machine
    """

    accept: bool = True
    registry_admins: tuple[str, ...] = (ANYBODY,)
    rules: tuple[Rule, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_directories(self, places: Mapping[str, str]) -> Policy:
        """The same with every directory where it really is; one that is nowhere has nothing below it."""
        return replace(
            self,
            rules=tuple(
                rule
                if rule.directories is None
                else replace(rule, directories=tuple(places[top] for top in rule.directories if top in places))
                for rule in self.rules
            ),
        )

    def includes(self, peers: Iterable[str], peer: str) -> bool:
        """Whether a list of ids, groups and ``*`` has this peer in it."""
        return any(
            word in (ANYBODY, peer) or (word.startswith(GROUP_MARK) and peer in self.groups[word[1:]]) for word in peers
        )


def decide(policy: Policy, question: Question) -> Decision:
    """Whether a peer may run a command here, and why."""
    if decision := _by_no_rule(policy):
        return decision
    objections = [_objection(policy, rule, question) or _misplaced(rule, question) for rule in policy.rules]
    if rule := _widest(rule for rule, objection in zip(policy.rules, objections, strict=True) if not objection):
        reason = f"allowed by [allow {rule.name}]"
        return Decision(True, reason, rule.name, rule.max_timeout, rule.directories is not None)
    named = zip(policy.rules, objections, strict=True)
    return Decision(False, "; ".join(f"[allow {rule.name}]: {objection}" for rule, objection in named))


def _by_no_rule(policy: Policy) -> Decision | None:
    """The decision where none of the rules matters."""
    if not policy.accept:
        return Decision(False, "accept-exec is no")
    return None if policy.rules else Decision(True, "no rule limits registered peers")


def decisive_directories(policy: Policy, question: Question) -> tuple[str, ...]:
    """The directories of the rules to which a question's directory is all that matters; none where nothing hangs on it.

    So nobody has directories looked up for a command that is denied anyway.
    """
    rules = [rule for rule in policy.rules if policy.accept and not _objection(policy, rule, question)]
    widest = _widest(rules)
    if widest is None or widest.directories is None:
        return ()
    return tuple(top for rule in rules for top in rule.directories or ())


def _widest(rules: Iterable[Rule]) -> Rule | None:
    """Of rules that allow a command the one with the most time for it, and then rather one without directories."""
    return max(rules, key=lambda rule: (rule.max_timeout or math.inf, rule.directories is None), default=None)


def decide_job(policy: Policy, peer: str, owner: str) -> Decision:
    """Whether a peer may see, stop or listen to a command that runs or ran here.

    :param owner: the id of the peer that asked for it
    """
    if decision := _by_no_rule(policy):
        return decision
    if peer == owner:
        return Decision(True, "it is its own command")
    for rule in policy.rules:
        if rule.unlimited and policy.includes(rule.peers, peer):
            return Decision(True, f"[allow {rule.name}] allows it everything", rule.name)
    return Decision(False, f"it is the command of {owner}, and no rule allows {peer} everything")


def decide_record(policy: Policy, peer: str, event: str, caller: str) -> Decision:
    """Whether a peer may read a record of this machine: of its own commands only what tells nothing of the rules.

    :param caller: who asked for what it is about, or ""
    """
    return decide_job(policy, peer, "" if event in TELLING else caller)


def decide_apps(policy: Policy, peer: str) -> Decision:
    """Whether a peer may look after the apps of this machine: where it may run anything as root."""
    if decision := _by_no_rule(policy):
        return decision
    for rule in policy.rules:
        as_root = rule.users is None or "root" in rule.users
        if as_root and replace(rule, users=None, max_timeout=None).unlimited and policy.includes(rule.peers, peer):
            return Decision(True, f"[allow {rule.name}] allows it everything as root", rule.name)
    return Decision(False, f"no rule allows {peer} everything as root")


def decide_registry(policy: Policy, peer: str) -> Decision:
    """Whether a peer may delete, approve or reject peers in this leader's registry."""
    if policy.includes(policy.registry_admins, peer):
        return Decision(True, "it is among registry-admins")
    return Decision(False, f"{peer} is not among registry-admins")


def _objection(policy: Policy, rule: Rule, question: Question) -> str:
    """Which criterion of a rule but its directories a question does not meet, or ""."""
    if not policy.includes(rule.peers, question.peer):
        return f"{question.peer} is not among peers"
    if rule.users is not None and question.user not in rule.users:
        return f"{question.user} is not among users"
    if rule.names_commands and (objection := _command_objection(rule, question)):
        return objection
    allowed = () if rule.variables is None and rule.names_commands else rule.variables
    if allowed is not None:
        for name in question.variables:
            if not any(fnmatchcase(name, pattern) for pattern in allowed):
                return f"{name} is not among variables"
    timeout = question.timeout or 0.0
    if rule.max_timeout is not None and timeout > rule.max_timeout:
        return f"{validate.duration(timeout)} s is more than max-timeout"
    return ""


def _misplaced(rule: Rule, question: Question) -> str:
    if rule.directories is None or any(_below(question.directory, top) for top in rule.directories):
        return ""
    return f"{validate.shown(question.directory)} is not below directories"


def _below(directory: str, top: str) -> bool:
    return directory == top or directory.startswith(f"{top.rstrip('/')}/")


def _command_objection(rule: Rule, question: Question) -> str:
    if question.action:
        return "" if question.action in (rule.actions or ()) else f"{question.action} is not among actions"
    if question.argv:
        found = any(_same_words(question.argv, pattern) for pattern in rule.programs or ())
        return "" if found else "the program and its arguments are not among programs"
    found = any(fnmatchcase(question.shell_cmd, pattern) for pattern in rule.shell_commands or ())
    return "" if found else "the command is not among shell-commands"


def _same_words(argv: Sequence[str], pattern: Sequence[str]) -> bool:
    if pattern[-1] == FURTHER_ARGUMENTS:
        pattern = pattern[:-1]
        argv = argv[: len(pattern)]
    return len(argv) == len(pattern) and all(map(fnmatchcase, argv, pattern))


# --- how it is written in peerd.conf(5)


def peers(text: str) -> tuple[str, ...]:
    """A list of peer ids, of groups with an @ before their name, and of ``*`` for every registered peer."""
    for word in text.split():
        if word != ANYBODY:
            validate.peer_id(word.removeprefix(GROUP_MARK))
    return tuple(text.split())


def _some(parse: Callable[[str], tuple[Any, ...]]) -> Callable[[str], tuple[Any, ...]]:
    def parse_some(text: str) -> tuple[Any, ...]:
        if not (values := parse(text)):
            raise ValueError("must not be empty")
        return values

    return parse_some


def _members(text: str) -> tuple[str, ...]:
    return tuple(validate.peer_id(word) for word in text.split())


def _users(text: str) -> tuple[str, ...]:
    return tuple(word if word == ANYBODY else validate.user(word) for word in text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(stripped for line in text.splitlines() if (stripped := line.strip()))


def _pattern(text: str) -> str:
    if _NO_PATTERN.search(text):
        meant = "[*] is a *, and [!a] all but a; there is no \\*, [^a] or [[:alpha:]]"
        raise ValueError(f"not a pattern: {validate.shown(text)} ({meant})")
    return text


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(map(_pattern, _lines(text)))


def _directories(text: str) -> tuple[str, ...]:
    return tuple(validate.directory(line) for line in _lines(text))


def _programs(text: str) -> tuple[tuple[str, ...], ...]:
    found = tuple(tuple(map(_pattern, shlex.split(line))) for line in _lines(text))
    for words in found:
        if words[0] in ("", FURTHER_ARGUMENTS) or FURTHER_ARGUMENTS in words[:-1]:
            raise ValueError(f"not a program and its arguments: {validate.shown(shlex.join(words))}")
    return found


def _actions(text: str) -> tuple[str, ...]:
    for word in text.split():
        if word not in ("pull", "build"):
            raise ValueError(f"neither pull nor build: {validate.shown(word)}")
    return tuple(text.split())


def _variables(text: str) -> tuple[str, ...]:
    return tuple(map(_pattern, text.split()))


@dataclass(frozen=True)
class Criterion:
    """One setting of an ``[allow NAME]`` section."""

    name: str
    parse: Callable[[str], Any]


CRITERIA: tuple[Criterion, ...] = (
    Criterion("peers", _some(peers)),
    Criterion("users", _some(_users)),
    Criterion("directories", _some(_directories)),
    Criterion("shell-commands", _some(_patterns)),
    Criterion("programs", _some(_programs)),
    Criterion("actions", _some(_actions)),
    Criterion("variables", _variables),
    Criterion("max-timeout", validate.seconds),
)
KINDS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "allow": {criterion.name: criterion.parse for criterion in CRITERIA},
    "group": {"peers": _some(_members)},
}
"""The sections of a policy by the first word of their names, with their settings."""


def build(sections: Mapping[str, Mapping[str, Any]], accept: bool, registry_admins: tuple[str, ...]) -> Policy:
    """The policy of these sections, whose names and values were checked by :data:`KINDS`.

    :raises ValueError: for a section without peers, and for a group that does not exist
    """
    for section, values in sections.items():
        if "peers" not in values:
            raise ValueError(f"[{section}]: peers is missing")
    groups = {name.split()[1]: values["peers"] for name, values in sections.items() if name.startswith("group ")}
    rules = tuple(_rule(name.split()[1], values) for name, values in sections.items() if name.startswith("allow "))
    for words in (registry_admins, *(rule.peers for rule in rules)):
        for word in words:
            if word.startswith(GROUP_MARK) and word[1:] not in groups:
                raise ValueError(f"there is no [group {word[1:]}]")
    return Policy(accept, registry_admins, rules, groups)


def _rule(name: str, values: Mapping[str, Any]) -> Rule:
    """A rule, without the criteria that are met by everything although they are there."""
    rule = Rule(name, **{key.replace("-", "_"): value for key, value in values.items()})
    if ANYBODY in (rule.users or ()):
        rule = replace(rule, users=None)
    if "/" in (rule.directories or ()):
        rule = replace(rule, directories=None)
    if "*" in (rule.variables or ()) and not rule.names_commands:
        rule = replace(rule, variables=None)
    return rule
