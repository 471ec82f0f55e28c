"""Signals and kills at any moment: nothing is lost that changes a result."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from signal import Signals

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import interruption
from ssl_bench.interruption import Stopped, deferred, heeded

ALL = (Signals.SIGTERM, Signals.SIGUSR2, Signals.SIGINT)
SCHEDULER = (Signals.SIGTERM, Signals.SIGUSR2)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers of somebody else, which must be there again after every test."""
    before = {number: signal.getsignal(number) for number in ALL}
    theirs = {number: lambda *_: None for number in SCHEDULER}
    for number, handler in theirs.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    now = {number: signal.getsignal(number) for number in ALL}
    for number, former in before.items():
        signal.signal(number, former)
    assert now == {**theirs, Signals.SIGINT: signal.default_int_handler}


@pytest.mark.parametrize("number", SCHEDULER)
def test_heeded_signal_stops_wherever_the_program_is(number: Signals) -> None:
    with pytest.raises(Stopped) as stopped, heeded():
        signal.raise_signal(number)
        pytest.fail("went on")
    assert stopped.value.signal == number
    signal.raise_signal(number)  # theirs again: nothing happens


def test_the_same_wish_does_not_interrupt_what_it_causes() -> None:
    cleaned = False
    with pytest.raises(Stopped), heeded():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned


def test_a_later_wish_counts_where_the_first_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_REQUEST", 0.0)
    with pytest.raises(Stopped), heeded():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)


@given(noted=st.lists(st.sampled_from(SCHEDULER)))
def test_deferred_signals_are_noted_and_raised_in_the_end(noted: list[Signals]) -> None:
    reached = False
    try:
        with heeded(), deferred() as wanted:
            assert wanted() is None
            for number in noted:
                signal.raise_signal(number)
                assert wanted() == noted[0]
            reached = True
    except Stopped as stopped:
        assert stopped.signal == noted[0]
    else:
        assert not noted
    assert reached


def test_deferred_interrupt_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), deferred() as wanted:
        signal.raise_signal(signal.SIGINT)
        assert wanted() == signal.SIGINT


def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same wish
        reached.append("twice at once")
        monkeypatch.setattr(interruption, "_SAME_REQUEST", 0.0)
        signal.raise_signal(signal.SIGINT)
        reached.append("thrice")
    assert reached == ["twice at once"]


def test_an_interrupt_after_a_stop_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_REQUEST", 0.0)
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_what_was_raised_for_a_noted_signal_is_kept() -> None:
    with pytest.raises(Stopped, match="step 3"), deferred() as wanted:
        signal.raise_signal(signal.SIGTERM)
        number = wanted()
        assert number
        raise interruption.error_of(number, "step 3 is saved")


def test_a_failure_does_not_hide_a_noted_signal() -> None:
    """Whoever goes on after failures must not go on after a stop."""
    with pytest.raises(Stopped) as stopped, deferred():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("no number")
    assert isinstance(stopped.value.__cause__, ValueError)


def test_what_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with heeded(), deferred() as wanted:
            signal.raise_signal(signal.SIGTERM)
            assert wanted() is None
    finally:
        signal.signal(signal.SIGTERM, former)


def test_other_threads_change_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        with heeded(), deferred() as wanted:
            found.extend([*map(signal.getsignal, ALL), wanted()])

    before = [*map(signal.getsignal, ALL), None]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before
