"""Signals that ask a program to end: heeded at once, or at the end of a training step.

A scheduler sends SIGTERM or SIGUSR2 before it takes the machine away, a person SIGINT, and a
terminal that is closed SIGHUP.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType

_EVERY = (Signals.SIGTERM, Signals.SIGUSR2, Signals.SIGHUP, Signals.SIGINT)
_asked: Signals | None = None
"""What `raise_on_signal` has heard, while it lasts."""
SECONDS_TO_SAVE = 600.0
"""How long others wait for a process that was asked to stop, and may be writing its state."""
_SAME_REQUEST = 0.5
"""Seconds: ``timeout`` and some schedulers send a signal to the process and to its group at once,
which is one wish; a person who insists takes longer."""


class Interrupted(BaseException):
    """The program was asked to end by SIGTERM, SIGUSR2 or SIGHUP.

    Its message says what is saved, or nothing. No ``Exception``, as it is no failure.

    Attributes:
        signal: which one it was.
    """

    def __init__(self, signal: Signals, message: str = "") -> None:
        super().__init__(message)
        self.signal = signal


def error_of(number: int, message: str = "") -> BaseException:
    """What ends a program that was sent that signal: KeyboardInterrupt or `Interrupted`."""
    if number == Signals.SIGINT:
        return KeyboardInterrupt(*([message] if message else []))
    return Interrupted(Signals(number), message)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Let SIGTERM, SIGUSR2 and SIGHUP raise `Interrupted`, SIGINT KeyboardInterrupt, at once.

    The program may be in the middle of an import then, which fails in a way of its own: an
    ``Exception`` that follows is replaced by what the signal asked for. The handlers before are
    back afterwards. Outside of the main thread, nothing changes.
    """
    global _asked
    heard: float | None = None

    def end(number: int) -> None:
        global _asked
        nonlocal heard
        before, heard = heard, time.monotonic()
        # What is cleaned up meanwhile is not interrupted by the same wish.
        if before is None or heard - before > _SAME_REQUEST:
            _asked = Signals(number)
            raise error_of(number)

    outside, _asked = _asked, None
    try:
        with _handled(end, _EVERY):
            yield
    except Exception as error:
        if _asked is not None:
            raise error_of(_asked) from error
        raise
    finally:
        _asked = outside


@contextmanager
def defer_signals() -> Iterator[Callable[[], Signals | None]]:
    """Only note what asks to end; a second SIGINT raises KeyboardInterrupt at once.

    Whoever finds that one is noted saves what there is, and raises `error_of` it. If nobody does,
    it is raised at the end of the block, instead of an ``Exception`` too. The handlers before are
    back afterwards. Outside of the main thread, nothing changes and nothing is noted.

    Yields:
        A function that returns the first signal noted, or None.
    """
    # One that was heeded where nothing can be raised, as in a destructor, is not forgotten.
    noted: Signals | None = _asked
    since = 0.0

    def note(number: int) -> None:
        nonlocal noted, since
        now = time.monotonic()
        if noted is None:
            noted, since = Signals(number), now
        elif number == Signals.SIGINT and now - since > _SAME_REQUEST:
            raise KeyboardInterrupt

    try:
        with _handled(note, _EVERY):
            yield lambda: noted
    except Exception as error:
        if noted is not None:
            raise error_of(noted) from error
        raise
    if noted is not None:
        raise error_of(noted)


@contextmanager
def _handled(handle: Callable[[int], None], numbers: tuple[Signals, ...]) -> Iterator[None]:
    """Call the function on each of these signals, but those that are ignored: a script that has
    its commands ignore one means it. One that comes while the handlers before are put back goes to
    those."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = False
    late: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if ended:
            late.append(number)
        else:
            handle(number)

    # None is a handler that Python did not install and could not put back.
    known = {number: signal.getsignal(number) for number in numbers}
    before = {number: h for number, h in known.items() if h not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        ended = True
        for number, former in before.items():
            signal.signal(number, former)
        for each in dict.fromkeys(late):
            signal.raise_signal(each)
