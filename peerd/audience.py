"""Connects a command that runs here with one who listens: output one way, standard input and cancel the other."""

from __future__ import annotations

import asyncio

from peerd.messages import WINDOW, ExecResult, Offsets
from peerd.run import Run
from peerd.session import PacedSink, Session
from peerd.streams import Input


class Audience:
    """One who listens to a command."""

    def __init__(self, one: Run, session: Session) -> None:
        self._run = one
        self._session = session
        self._detached = one.request.detach

    async def listen(self, offsets: Offsets) -> ExecResult | None:
        """Pass on output from these offsets, as it comes, until the result.

        :returns: the result; None where the caller of a detached command has heard enough
        :raises ConnectionError: when the caller is gone
        """
        session, one = self._session, self._run
        coroutines = [self._tell(offsets), session.cancel.wait(), session.gone.wait()]
        if one.input and one.input.is_open() and not self._detached:
            coroutines.append(self._feed(one.input))
        telling, cancelled, gone, *_ = tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        if not self._detached:
            session.delivery.listen(one.output.confirm)
        try:
            await asyncio.wait((telling, cancelled, gone), return_when=asyncio.FIRST_COMPLETED)
            if cancelled.done() and not telling.done():
                if self._detached:
                    return None
                telling.cancel()
                one.cancel()
                ended = asyncio.create_task(one.ended.wait())
                tasks.append(ended)
                await asyncio.wait((ended, gone), return_when=asyncio.FIRST_COMPLETED)
            elif telling.done():
                telling.result()
            if gone.done() or one.result is None:
                raise ConnectionError("the caller is gone")
            return one.result
        finally:
            session.delivery.listen(None)
            for task in tasks:
                task.cancel()

    async def _tell(self, offsets: Offsets) -> None:
        await self._run.started.wait()
        if self._run.began:
            await self._session.sink.started()
        paced = PacedSink(self._session.sink, self._session.delivery, offsets)
        await self._run.output.follow(offsets, paced.output)

    async def _feed(self, reader: Input) -> None:
        """Pass on what the caller sends to the command's standard input, at the pace at which it reads."""
        # The connection before this one may not have been read to its end; what is left comes again.
        if reader.feeder:
            reader.feeder.cancel()
        reader.feeder = asyncio.current_task()
        stdin = self._session.stdin
        stdin.open(reader.received, reader.until, reader.until - WINDOW)
        granting = asyncio.create_task(self._grant(reader))
        try:
            while reader.is_open() and (data := await stdin.read(reader.received)):
                reader.feed(data)
            reader.feed(b"")
            await granting
        finally:
            granting.cancel()

    async def _grant(self, reader: Input) -> None:
        until = reader.until
        while True:
            until = await reader.taken(until)
            self._session.stdin.grant(until, until - WINDOW)
