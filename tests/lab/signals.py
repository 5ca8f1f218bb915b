"""The signals that end a run, turned into an orderly way out of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. Taken as a Ctrl-C is, so that every clean-up on the way out is run."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the block when SIGTERM or SIGHUP comes; for the main thread, others see no difference."""
    caught: list[signal.Signals] = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # A handler that somebody has set, or nohup's, is there for a reason.
            if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL:
                caught.append(number)
                signal.signal(number, _interrupt)
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep the signals that end a run waiting until the block is done; for the main thread as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    before = [(number, signal.signal(number, hold)) for number in ENDING]
    try:
        yield
    finally:
        for ending, handler in before:
            signal.signal(ending, handler)
        for sent in held[:1]:
            os.kill(os.getpid(), sent)
