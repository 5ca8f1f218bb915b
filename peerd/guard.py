"""Holds other peers to the policy of this machine, and records what comes of that."""

from __future__ import annotations

from dataclasses import replace

from peerd import policy, refusals, scopes, turns, validate
from peerd.app import AppRequest
from peerd.directories import directories
from peerd.errors import Code, PeerdError
from peerd.job import Job
from peerd.journal import Event, log
from peerd.messages import Action, ExecRequest, RegistryAction
from peerd.policy import Decision, Policy, Question


async def judge(rules: Policy, question: Question) -> tuple[Decision, Question]:
    """Decide about a command, by where its directory really is if that matters.

    :returns: the decision, and the question with its directory resolved where it was decided by that
    """
    tops = policy.decisive_directories(rules, question)
    if not tops:
        return policy.decide(rules, question), question
    unresolved = f"{validate.shown(question.directory)} cannot be resolved"
    try:
        places = await directories.find(question.peer, {question.directory, *tops})
    except TimeoutError:
        places, unresolved = {}, "the directories could not be resolved in time"
    if question.directory in places:
        question = replace(question, directory=places[question.directory])
        return policy.decide(rules.with_directories(places), question), question
    decision = policy.decide(rules.with_directories({}), question)
    return decision if decision.allowed else replace(decision, reason=unresolved), question


def question_of(request: ExecRequest, asked: float | None, peer: str) -> Question:
    """What a policy is asked for a command; the parameters are those of :func:`admit`."""
    return Question(
        peer,
        request.user or "root",
        request.directory,
        request.shell_cmd,
        request.argv,
        _permission(request.action),
        tuple(request.env),
        asked,
    )


async def admit(
    rules: Policy, request: ExecRequest, asked: float | None, peer: str, name: str, loud: bool = True
) -> ExecRequest:
    """The command of a peer as it may run here.

    :param request: with nothing left open
    :param asked: the timeout that the peer asked for, or None where it is this machine's
    :param name: the id of this machine
    :param loud: whether it is recorded that it may not run
    :raises PeerdError: DENIED, without the reason, which is in the journal
    """
    decision, question = await judge(rules, question_of(request, asked, peer))
    verb = "may" if decision.allowed else "must not"

    def record() -> None:
        log(
            Event.COMMAND_ALLOWED if decision.allowed else Event.COMMAND_DENIED,
            f"{peer} {verb} run {request.exec_id} here: {decision.reason}",
            exec_id=request.exec_id,
            peer=peer,
            caller=peer,
            directory=question.directory,
            command=request.command,
            user=request.user,
            rule=decision.rule,
            reason=decision.reason,
            unit=scopes.scope_name(request.exec_id) if decision.allowed else None,
        )

    if not decision.allowed:
        if loud:
            record()
        raise PeerdError(Code.DENIED, reason=f"{name} does not allow this")
    # While systemd makes the scope, which it has to before anything can run.
    turns.do_after(turns.SCOPE, record)
    limits = (limit for limit in (request.timeout, decision.max_timeout) if limit is not None)
    return replace(request, directory=question.directory, timeout=min(limits, default=None), resolved=decision.resolved)


def _permission(action: Action | None) -> str:
    """The word of a rule for an action; a deploy is a build that is looked after."""
    return "" if action is None else Action.BUILD.value if action is Action.DEPLOY else action.value


def consent(rules: Policy, action: RegistryAction, peer_id: str, peer: str) -> None:
    """Whether a peer may change the registry of this leader.

    :raises PeerdError: DENIED
    """
    decision = policy.decide_registry(rules, peer)
    if not decision.allowed:
        if refusals.requests.refused(peer):
            log(
                Event.REGISTRY_DENIED,
                f"{action} {peer_id} denied to {peer}: {decision.reason}",
                peer=peer_id,
                caller=peer,
                reason=decision.reason,
            )
        raise PeerdError(Code.DENIED, reason="the leader does not allow this (registry-admins)")


def attend(rules: Policy, job: Job, peer: str, name: str) -> None:
    """Whether a peer may see, stop or listen to a command of this machine.

    :param name: the id of this machine
    :raises PeerdError: DENIED, without the reason, which is in the journal
    """
    decision = policy.decide_job(rules, peer, job.caller)
    if not decision.allowed:
        if refusals.requests.refused(peer):
            log(
                Event.COMMAND_DENIED,
                f"{peer} must not deal with {job.exec_id} here: {decision.reason}",
                exec_id=job.exec_id,
                peer=peer,
                caller=peer,
                reason=decision.reason,
            )
        raise PeerdError(Code.DENIED, reason=f"{name} does not allow this")


def note_access(command: str, exec_id: str, owner: str, caller: str, peer: str) -> None:
    """Record that somebody attaches to a command or stops it, unless it is that caller's own.

    :param command: attachJob or cancelJob
    :param owner: who asked for what is attached to or stopped, or "" where that is not known here
    :param peer: the other end
    """
    if owner != caller:
        whose = f", which {owner} asked for" if owner else ""
        log(
            Event.COMMAND_ACCESSED,
            f"{command} by {caller} on {exec_id}{whose}",
            exec_id=exec_id,
            peer=peer,
            caller=caller,
            command=command,
        )


def entrust(rules: Policy, request: AppRequest, peer: str, name: str) -> None:
    """Whether a peer may look after the apps of this machine.

    :param name: the id of this machine
    :raises PeerdError: DENIED, without the reason, which is in the journal
    """
    decision = policy.decide_apps(rules, peer)
    if not decision.allowed:
        if refusals.requests.refused(peer):
            log(
                Event.APP_DENIED,
                f"{request.command} {request.app or 'of all apps'} denied to {peer}: {decision.reason}",
                app=request.app,
                mode=request.mode,
                peer=peer,
                caller=peer,
                command=request.command.value,
                reason=decision.reason,
            )
        raise PeerdError(Code.DENIED, reason=f"{name} does not allow this")
