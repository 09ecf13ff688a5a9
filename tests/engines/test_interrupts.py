"""The first SIGINT or SIGTERM is recorded, the second is handled as before, and the old handlers are restored."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from fastmlp.engines.interrupts import Signals, deferred_signals


def handlers() -> tuple[object, object]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_nothing_else_happens(number: signal.Signals) -> None:
    with Signals() as signals:
        assert signals.received == 0
        signal.raise_signal(number)
        assert signals.received == number


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_interrupts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    before = handlers()
    with Signals() as signals:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert signals.received == first
    assert handlers() == before


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_second_signal_calls_the_handler_that_was_installed_before(depth: int) -> None:
    """In nested contexts, it calls the handler that was installed before the outermost context."""
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        with contextlib.ExitStack() as stack:
            contexts = [stack.enter_context(Signals()) for _ in range(depth)]
            signal.raise_signal(signal.SIGINT)
            assert called == []
            signal.raise_signal(signal.SIGTERM)
            assert called == [signal.SIGTERM]
        assert [signals.received for signals in contexts] == [0] * (depth - 1) + [signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_deferred_signal_is_raised_again_after_the_context() -> None:
    reached = []
    with Signals() as outer:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert outer.received == 0
        assert outer.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end of the context")
    assert reached


def test_a_signal_from_outside_is_noted_while_python_sleeps() -> None:
    with Signals() as signals:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        for _ in range(6000):
            if signals.received:
                break
            time.sleep(0.01)
        timer.join()
        assert signals.received == signal.SIGINT


def test_a_handler_that_is_not_pythons_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler installed by C code stays in place, since `signal.getsignal` returns None for it and cannot restore it."""
    before, ask = handlers(), signal.getsignal
    with monkeypatch.context() as embedded:
        embedded.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else ask(number))
        signals = Signals().__enter__()
    assert handlers() == (signals._note, before[1])
    signals.__exit__(None, None, None)
    assert handlers() == before


def test_handlers_are_put_back() -> None:
    def own(number: int, frame: object) -> None:
        pass

    before = handlers()
    signal.signal(signal.SIGTERM, own)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGTERM) is not own
        assert handlers() == (before[0], own)
    finally:
        signal.signal(signal.SIGTERM, before[1])  # type: ignore[arg-type]


def test_handlers_are_put_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), Signals():
        raise ZeroDivisionError
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ignored_signals_stay_ignored_afterwards() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received in (0, signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_nested_context_notes_for_itself() -> None:
    before = handlers()
    with Signals() as outer:
        with Signals() as inner:
            signal.raise_signal(signal.SIGINT)
        assert (outer.received, inner.received) == (0, signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert outer.received == signal.SIGTERM
    assert handlers() == before


def test_other_threads_leave_the_handlers_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with Signals() as signals:
            seen.append((handlers(), signals.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
