"""Signals that ask a program to end: handled at once, or at the end of a training step.

Schedulers send SIGTERM or SIGUSR2 before they take the machine away, people SIGINT (Ctrl-C), and a
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

ENDING = (Signals.SIGTERM, Signals.SIGUSR2, Signals.SIGHUP, Signals.SIGINT)
_asked: Signals | None = None
"""The signal that the current `raise_on_signal` has received."""
SECONDS_TO_SAVE = 600.0
"""How long to wait for a process that was asked to stop and may still be saving its state."""
_SAME_REQUEST = 0.5
"""Seconds: ``timeout`` and some schedulers send a signal twice at once, to the process and to its
group, which counts as one; a person who presses Ctrl-C again takes longer."""


class Interrupted(BaseException):
    """The program was asked to end by SIGTERM, SIGUSR2 or SIGHUP.

    Its message says what was saved, or is empty. Not an ``Exception``, as it is not a failure.
    """

    def __init__(self, signal: Signals, message: str = "") -> None:
        super().__init__(message)
        self.signal = signal


def error_of(number: int, message: str = "") -> BaseException:
    """The exception for a signal: KeyboardInterrupt or `Interrupted`."""
    if number == Signals.SIGINT:
        return KeyboardInterrupt(*([message] if message else []))
    return Interrupted(Signals(number), message)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Let SIGTERM, SIGUSR2 and SIGHUP raise `Interrupted`, SIGINT KeyboardInterrupt, at once.

    Code that they interrupt, such as an import, may fail with an ``Exception`` of its own; this is
    replaced by the one for the signal. Earlier handlers are restored afterwards. Does nothing
    outside the main thread.
    """
    global _asked
    received: float | None = None

    def end(number: int) -> None:
        global _asked
        nonlocal received
        before, received = received, time.monotonic()
        # Do not let the second half of one request interrupt the clean-up.
        if before is None or received - before > _SAME_REQUEST:
            _asked = Signals(number)
            raise error_of(number)

    outside, _asked = _asked, None
    try:
        with handled(end, ENDING):
            yield
    except Exception as error:
        if _asked is not None:
            raise error_of(_asked) from error
        raise
    finally:
        _asked = outside


@contextmanager
def defer_signals() -> Iterator[Callable[[], Signals | None]]:
    """Only note signals that ask to end; a second SIGINT raises KeyboardInterrupt at once.

    The block checks for a noted signal, saves its state, and raises `error_of` it. Otherwise that
    is raised at the end of the block, also in place of an ``Exception``. Earlier handlers are
    restored afterwards. Does nothing outside the main thread.

    Yields:
        A function that returns the first signal noted, or None.
    """
    # Includes a signal whose exception was lost, as in a destructor.
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
        with handled(note, ENDING):
            yield lambda: noted
    except Exception as error:
        if noted is not None:
            raise error_of(noted) from error
        raise
    if noted is not None:
        raise error_of(noted)


@contextmanager
def handled(handle: Callable[[int], None], numbers: tuple[Signals, ...]) -> Iterator[None]:
    """Handle these signals with a function, except those that the parent process has ignored.

    Signals that arrive while earlier handlers are being restored are passed on to those. Does
    nothing outside the main thread.
    """
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

    # None is a handler that Python did not install and could not restore.
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
