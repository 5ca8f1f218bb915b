"""Commands on other peers: asks a target to run one and passes on what comes back."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from peerd import connection, validate
from peerd.connection import Connection
from peerd.errors import Code, PeerdError
from peerd.journal import Event, log
from peerd.links import Pool
from peerd.messages import MAX_OUTPUT, ExecRequest, ExecResult, take
from peerd.peers import Peer
from peerd.session import Session
from peerd.stdin import WINDOW, Stdin

_CANCEL_LIMIT = 60.0
"""Seconds to wait for a target's word that a cancelled command is gone."""


async def execute(pool: Pool, target: Peer, request: ExecRequest, session: Session) -> ExecResult:
    """Have a peer run a command, and pass on what it says until it has ended.

    :raises PeerdError: CONNECT_FAILED, LOST, or why the peer refuses
    """
    lost = PeerdError(Code.LOST, peer=target.peer_id, exec_id=request.exec_id)
    asked = False
    try:
        async with pool.borrow(target.ip_address) as link:
            asked = True
            await link.send("execRequest", request.to_wire())
            forwarders = [
                asyncio.create_task(_forward_cancel(session.cancel, link)),
                asyncio.create_task(_forward_stdin(session.stdin, link)),
            ]
            try:
                return await _follow(target, link, session)
            finally:
                for forwarder in forwarders:
                    forwarder.cancel()
                await asyncio.wait(forwarders)
    except OSError as error:
        raise lost if asked else connect_failed(target, error) from None
    except PeerdError as error:
        if error.code is Code.BAD_MESSAGE and asked:
            log(Event.PROTOCOL_ERROR, f"From {target.peer_id}: {error.sentence}", peer=target.peer_id)
            raise lost from None
        raise


async def _follow(target: Peer, link: Connection, session: Session) -> ExecResult:
    """Pass on what the target sends until the result."""
    while True:
        frame = await link.receive()
        if frame is None:
            raise ConnectionError("closed before the result")
        if frame.type == "output":
            stream = take(frame.fields, "stream", _stream)
            if not session.cancel.is_set():
                try:
                    await session.sink.output(stream, frame.payload)
                except ConnectionError:
                    session.cancel.set()
        elif frame.type == "stdinCredit":
            session.stdin.grant(take(frame.fields, "bytes", _credit))
        elif frame.type == "started":
            await session.sink.started()
        elif frame.type == "result":
            result = ExecResult.from_wire(frame.fields)
            if result.error:
                # Errors name the peer; which one it is we know better than the message.
                details = {**result.error.details, "peer": target.peer_id}
                result = replace(result, error=PeerdError(result.error.code, **details))
            return result
        elif frame.type == "error":
            return ExecResult.failure(PeerdError.from_wire(frame.fields))


def connect_failed(target: Peer, error: OSError) -> PeerdError:
    """The error for a peer that could not be reached."""
    reason = f" ({connection.why(error)})"
    return PeerdError(Code.CONNECT_FAILED, peer=target.peer_id, address=target.ip_address, reason=reason)


async def _forward_stdin(stdin: Stdin, link: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await stdin.read():
            for start in range(0, len(data), MAX_OUTPUT):
                await link.send("stdin", None, data[start : start + MAX_OUTPUT])
        await link.send("stdin")


async def _forward_cancel(cancel: asyncio.Event, link: Connection) -> None:
    await cancel.wait()
    try:
        await link.send("cancel")
        await asyncio.sleep(_CANCEL_LIMIT)
    except OSError:
        pass
    link.abort()


def _credit(value: object) -> int:
    return validate.integer(value, 1, WINDOW)


def _stream(value: object) -> str:
    if value not in ("stdout", "stderr"):
        raise ValueError("must be stdout or stderr")
    return str(value)
