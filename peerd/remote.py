"""Commands on other peers: asks a target to run one and passes on what comes back.

A connection that breaks meanwhile, for example because peerd restarts there, is made anew, and the command goes on
being heard where it was left.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from peerd import connection, protocol, validate
from peerd.backoff import Backoff
from peerd.connection import Connection
from peerd.errors import Code, Outcome, PeerdError
from peerd.journal import Event, log
from peerd.messages import STREAMS, ExecRequest, ExecResult, Offsets, take, take_optional
from peerd.peers import Peer
from peerd.pool import Pool
from peerd.protocol import Frame
from peerd.relay import Relay
from peerd.session import Hearing, Session

_CANCEL_LIMIT = 60.0
"""Seconds to wait for a target's word that a cancelled command is gone."""
_LONGEST_PAUSE = 2.0


class Remote:
    """One command on another peer, as its caller's side sees it.

    :param exec_id: its id
    :param patience: seconds to try to get back to it after the connection broke
    """

    def __init__(self, pool: Pool, target: Peer, exec_id: str, session: Session, patience: float) -> None:
        self._pool = pool
        self._target = target
        self._exec_id = exec_id
        self._session = session
        self._patience = patience
        self._offsets = dict.fromkeys(STREAMS, 0)
        self._relay = Relay(session)
        self._started = False
        self._sent: int | None = None
        self._heard = 0
        self._boot = ""
        self._order = b""
        self._asking: Callable[[], None] = lambda: None

    async def execute(self, request: ExecRequest, asking: Callable[[], None] = lambda: None) -> ExecResult:
        """Have the peer run a command, and pass on what it says until it has ended; of a detached one, has started.

        :param asking: called at the last moment at which it certainly was not started
        :raises PeerdError: USAGE, CONNECT_FAILED, LOST, CANCELLED before it was asked, or why the peer refuses before
            it may have started it
        """
        self._asking = asking
        try:
            self._order = protocol.encode("execRequest", request.to_wire())
        except PeerdError:
            raise PeerdError(Code.USAGE, reason="The command and its variables are too long together") from None
        return await self._hear(request, False)

    async def attach(self, offsets: Offsets, begun: bool) -> ExecResult:
        """Hear of a command that the peer runs or ran, from these offsets of its output on.

        :param begun: whether the caller heard of it before, and so is patient from the beginning
        :raises PeerdError: LOST, OUTPUT_GONE; where the caller never heard of it also CONNECT_FAILED, NO_SUCH_JOB
        """
        self._offsets = dict(offsets)
        return await self._hear(None, begun)

    async def _hear(self, request: ExecRequest | None, begun: bool) -> ExecResult:
        try:
            return await self._persist(request, begun)
        except PeerdError:
            # What came before the error is told before it.
            await self._relay.finish()
            raise
        finally:
            await self._relay.close()

    async def _persist(self, request: ExecRequest | None, begun: bool) -> ExecResult:
        asking, asked, back, again, late = request is not None, 0, begun, False, False
        since: float | None = None
        told = False
        backoff = Backoff(_LONGEST_PAUSE)
        detach = request is not None and request.detach
        while True:
            heard, boot, resumable = self._heard, "", True
            try:
                async with Hearing() as held:
                    link = await held.enter_async_context(self._pool.borrow(self._target.ip_address))
                    boot, resumable = link.hello.boot, link.resumable
                    if not resumable and (request is None or detach):
                        raise PeerdError(Code.TOO_OLD, peer=self._target.peer_id)
                    begun = True
                    if asking and request:
                        if not asked:
                            # What was asked for before, by who comes back, may run.
                            if self._session.cancel.is_set() and not self._resumed:
                                raise PeerdError(Code.CANCELLED, peer=self._target.peer_id)
                            self._asking()
                        self._boot, asked = boot, asked + 1
                        link.post_encoded(self._order)
                        await link.drain()
                    else:
                        await link.send("attachJob", {"execId": self._exec_id, **self._offsets})
                    result = await self._converse(link, detach)
                    if detach and not asking:
                        # The other end goes on with it here.
                        link.abort()
                    if asked < 2 or result.error is None or result.error.code is not Code.DUPLICATE:
                        if resumable and not detach:
                            self._hold(held, link)
                        return result
                # The first request was only late.
                asking, late = False, True
                continue
            except PeerdError as error:
                if error.code is Code.BAD_MESSAGE and begun:
                    text = f"From {self._target.peer_id}: {error.sentence}"
                    log(Event.PROTOCOL_ERROR, text, peer=self._target.peer_id)
                    raise self._lost from None
                if not (back or self._heard):
                    raise
                if error.code is not Code.BUSY:
                    if error.code is not Code.NO_SUCH_JOB or request is None:
                        raise in_doubt(error, self._target.peer_id, self._exec_id) from None
                    if asking or self._heard or boot != self._boot:
                        raise self._lost from None
                    if not late:
                        # The request never got there, and should it still do so, the target runs its id once.
                        asking = True
                        continue
                    # It did get there, and its command is about to be started, or gone without a record.
            except OSError as error:
                if not begun:
                    # Nothing was started yet, and packets may be lost on the way to a peer that is there.
                    if again or not (self._target.is_online and isinstance(error, TimeoutError)):
                        raise connect_failed(self._target, error) from None
                    again = True
                    continue
            if not resumable:
                raise self._lost
            asking, back = False, True
            if self._heard != heard:
                since = None
            if since is None:
                since, told = time.monotonic(), False
                backoff.reset()
            given_up = self._session.cancel.is_set() or self._session.gone.is_set()
            if given_up or time.monotonic() - since > self._patience:
                raise self._lost
            # A restart at the other end is over sooner, and nothing to hear of.
            if not told and time.monotonic() - since > self._patience / 2:
                told = True
                self._session.say(f"Connection to {self._target.peer_id} lost, trying to get back to the command")
            await asyncio.sleep(backoff.take())

    def _hold(self, held: Hearing, link: Connection) -> None:
        """Keep the connection, and with it the output at its other end, until the caller has all."""
        held.then(partial(link.post_with_next, "done"))
        if self._session.hearing:
            self._session.hearing.push_async_exit(held.pop_all())

    @property
    def _resumed(self) -> bool:
        resume = self._session.resume
        return resume is not None and resume.exec_id == self._exec_id

    @property
    def _lost(self) -> PeerdError:
        return PeerdError(Code.LOST, peer=self._target.peer_id, exec_id=self._exec_id)

    async def _converse(self, link: Connection, detach: bool) -> ExecResult:
        """Pass on what the target sends until the result, and what the caller says meanwhile."""
        session = self._session
        if link.resumable:
            session.delivery.listen(lambda offsets: link.post("ack", offsets) if any(offsets.values()) else None)
        tasks = [asyncio.create_task(self._forward_cancel(link))]
        until = 0
        try:
            while True:
                frame = await link.receive_or_end()
                if frame is None:
                    raise ConnectionError("closed before the result")
                if frame.type == "error":
                    raise self._named(PeerdError.from_wire(frame.fields))
                # That a request was a second one is a result, too, and says nothing of the command.
                self._heard += frame.type != "result"
                if frame.type == "output":
                    stream = take(frame.fields, "stream", _stream)
                    self._offsets[stream] += len(frame.payload)
                    await self._relay.put(stream, frame.payload)
                elif frame.type in ("stdinWindow", "stdinCredit"):
                    start, until = self._window(link, frame, until)
                    taken = until - link.window
                    if start is None or len(tasks) > 1:
                        session.stdin.grant(until, taken)
                    else:
                        session.stdin.open(start, until, taken)
                        tasks.append(asyncio.create_task(self._forward_stdin(link, start)))
                elif frame.type == "started":
                    # Once, whatever it says: this does not wait for whoever reads it.
                    if not self._started:
                        self._started = True
                        await session.sink.started()
                    if detach:
                        return ExecResult(Outcome.EXITED, 0)
                elif frame.type == "result":
                    await self._relay.finish()
                    return self._result(frame)
        finally:
            session.delivery.listen(None)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _window(self, link: Connection, frame: Frame, until: int) -> tuple[int | None, int]:
        """From which offset on, if that is said, and up to which standard input may be sent.

        :param until: up to which it might before; a peer of version 1 says by how much that grows
        :raises PeerdError: BAD_MESSAGE where that is more than it can have a use for, and is ours to hold
        """
        start = take_optional(frame.fields, "from", _offset)
        if frame.type == "stdinCredit":
            start, until = 0, until + take(frame.fields, "bytes", _offset)
        else:
            until = take(frame.fields, "until", _offset)
        if self._sent is None:
            self._sent = start or 0
        if until > self._sent + link.window:
            raise PeerdError(Code.BAD_MESSAGE, reason=f"stdin granted up to {until}, sent: {self._sent}")
        return start, until

    def _result(self, frame: Frame) -> ExecResult:
        result = ExecResult.from_wire(frame.fields)
        if result.error and result.error.code is Code.ABANDONED:
            # By us, who came too late; it was not our caller that took the command back.
            return replace(ExecResult.failure(self._lost), sizes=result.sizes)
        return replace(result, error=self._named(result.error)) if result.error else result

    def _named(self, error: PeerdError) -> PeerdError:
        """The error with this peer's name in it: which one it is we know better than the message."""
        return PeerdError(error.code, error.lines, **{**error.details, "peer": self._target.peer_id})

    async def _forward_stdin(self, link: Connection, offset: int) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._session.stdin.read(offset):
                offset += len(data)
                # Before it is sent: what has arrived may be taken before this task has its turn again.
                self._sent = max(self._sent or 0, offset)
                await link.send("stdin", None, data)
            await link.send("stdin")

    async def _forward_cancel(self, link: Connection) -> None:
        await self._session.cancel.wait()
        try:
            await link.send("cancel")
            await asyncio.sleep(_CANCEL_LIMIT)
        except OSError:
            pass
        link.abort()


def in_doubt(error: PeerdError, peer_id: str, exec_id: str) -> PeerdError:
    """The error for a command that may run or have run, of which an error says that it did not: LOST, and why."""
    if error.kind.outcome in (Outcome.DENIED, Outcome.UNREACHABLE, Outcome.FAILED):
        return PeerdError(Code.LOST, [error.sentence], peer=peer_id, exec_id=exec_id)
    return error


@contextlib.asynccontextmanager
async def borrow(pool: Pool, target: Peer, timeout: float | None = None) -> AsyncIterator[Connection]:
    """A connection to a peer, for one request that may be made again.

    :param timeout: seconds for all of it; None for no bound beyond those of connecting
    :raises PeerdError: CONNECT_FAILED, or why the peer refuses to talk
    """
    try:
        async with pool.borrow(target.ip_address) as link, asyncio.timeout(timeout):
            yield link
    except OSError as error:
        raise connect_failed(target, error) from None


def connect_failed(target: Peer, error: OSError) -> PeerdError:
    """The error for a peer that could not be reached."""
    reason = f" ({connection.why(error)})"
    return PeerdError(Code.CONNECT_FAILED, peer=target.peer_id, address=target.ip_address, reason=reason)


def _offset(value: object) -> int:
    return validate.integer(value, 0, 2**62)


def _stream(value: object) -> str:
    if value not in STREAMS:
        raise ValueError("must be stdout or stderr")
    return str(value)
