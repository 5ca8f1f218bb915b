"""The command that puts a new peerd on a peer, and sees that it works there."""

from __future__ import annotations

import time
from dataclasses import replace

from peerd import remote
from peerd.answer import Answer
from peerd.errors import Code
from peerd.execution import Execution, answer_of, new_exec_id
from peerd.job import Job
from peerd.jobs import Jobs
from peerd.messages import Action, ExecRequest
from peerd.node import Node
from peerd.session import Session

_PATIENCE = 240.0
"""Seconds for a peer to come back, with the new peerd or with the former one; systemd gives a start 90 s."""


class Deploy:
    """A part of the service: a method for its one command."""

    def __init__(self, node: Node, execution: Execution, jobs: Jobs) -> None:
        self._node = node
        self._execution = execution
        self._jobs = jobs

    async def do_remote_deploy_daemon(
        self, session: Session, peer: str, timeout: float | None = None, no_rollback: bool = False
    ) -> Answer:
        """Pull, then build and see that peerd works; stop at the first failure and say at which step."""
        if not session.resumed(2):
            if session.resume is None:
                session.say(f"pull on {peer} (step 1 of 2)")
            began = time.monotonic()
            answer = await self._execution.act(session, peer, Action.PULL, timeout)
            if answer.status:
                status = f"pull ended with exit status {answer.status}"
                session.say(f"Deploy on {peer} failed: {status}, build not started")
                return answer
            session.say(f"pull on {peer} done after {time.monotonic() - began:.1f} s")
            session.say(f"build on {peer} (step 2 of 2)")
        began = time.monotonic()
        answer = await self._build(session, peer, timeout, not no_rollback)
        if answer.error and answer.error.code is Code.CUT_OFF:
            session.say(f"A deploy that was cut off by a stop of peerd goes on: journalctl -t peerd, on {peer}")
        elif answer.status:
            session.say(f"Deploy on {peer} failed: build ended with exit status {answer.status}")
        if answer.status:
            return answer
        session.say(f"build on {peer} done after {time.monotonic() - began:.1f} s")
        session.say(f"Deployed on {peer}")
        return answer

    async def _build(self, session: Session, peer: str, timeout: float | None, rollback: bool) -> Answer:
        """Build where peerd may be replaced and fail: as a job, which needs neither that peerd nor this caller."""
        resume = session.resumed(2)
        # Who was cut off may be so from the peer as well, for a while.
        if not resume and not await self._knows_jobs(peer):
            return await self._execution.act(session, peer, Action.BUILD, timeout, 2)
        exec_id = resume.exec_id if resume else new_exec_id()
        request = ExecRequest(exec_id, action=Action.DEPLOY, timeout=timeout, detach=True, rollback=rollback)
        if resume:
            job = Job.of(request, peer, str(session.caller), 0)
            session.running(exec_id, 2)
        else:
            job = await self._execution.execute(peer, request, session, 2)
        if job.result is None:
            offsets = session.delivery.offsets
            result = await self._jobs.hear(peer, exec_id, session, offsets, True, _PATIENCE)
            if result is None:
                result = (await self._jobs.request("cancelJob", exec_id, peer)).result
                self._jobs.learn(peer, exec_id, result)
            job = replace(job, result=result)
        return answer_of(job)

    async def _knows_jobs(self, peer: str) -> bool:
        if peer == self._node.peer_id:
            return True
        target = await self._node.resolve(peer)
        async with remote.borrow(self._node.pool, target) as link:
            return link.resumable
