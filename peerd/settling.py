"""What a request means on this machine: its actions and defaults filled in from the configuration. Pure code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peerd.config import Config
from peerd.errors import Code, PeerdError
from peerd.messages import Action, ExecRequest
from peerd.validate import duration

_DEPLOY = Path(__file__).with_name("deploy.sh")
_DEPLOY_TIME = 300.0
"""Seconds for a deploy beside its build: to see that peerd works, to roll back, and to see it again."""


def resolve(request: ExecRequest, config: Config) -> ExecRequest:
    """The request with nothing left open."""
    default = config.detached_timeout if request.detach else config.default_timeout
    if request.action:
        default = config.build_timeout
        pull = request.action is Action.PULL
        directory = config.repository if pull else config.build_path
        command = config.pull_command if pull else config.build_command
        request = replace(request, directory=directory, shell_cmd=command)
    return replace(request, timeout=request.timeout or default)


def settle(request: ExecRequest, config: Config, name: str) -> ExecRequest:
    """The request of an action as that of a command, which any process of peerd can take up.

    :param name: the id of this machine
    :raises PeerdError: DENIED where it asks for more time than anything may take here, which is for those to know who
        may run it
    """
    timeout = request.timeout or 0.0
    if timeout > config.max_timeout:
        asked, most = duration(timeout), duration(config.max_timeout)
        limit = f"a timeout of {asked} s is more than max-timeout of {name}, {most} s"
        raise PeerdError(Code.DENIED, reason=limit)
    if request.action is Action.DEPLOY:
        argv = ("/bin/sh", str(_DEPLOY), "yes" if request.rollback else "no", duration(timeout), request.shell_cmd)
        request = replace(request, argv=argv, shell_cmd="", timeout=timeout + _DEPLOY_TIME)
    return replace(request, action=None)
