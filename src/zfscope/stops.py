"""What ends a command from outside.

The one place where signals become a stop: at once, or when the step or the file that is under way has ended.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; a scheduler's, a service manager's
SECONDS_TO_STOP = 10.0  # what the processes of a loader give a run to end its step


class Stopped(BaseException):
    """A signal ends the command; no ``Exception``, which others would take for a fault."""

    def __init__(self, asked: signal.Signals) -> None:
        super().__init__(asked.name)
        self.signal = asked

    @property
    def exit_code(self) -> int:
        """As shells tell it: 128 and the number of the signal."""
        return 128 + self.signal


class MachineFault(OSError):
    """The machine ends the command, and nothing that was typed is wrong: once that is mended a run goes on."""


class _State:
    """What this process was asked, and how many of its parts must end first."""

    owner: int | None = None  # the process that listens; those that it forks do not
    listening = False
    follows = False  # another rank than the first: it ends with that one, or where all agree
    asked: signal.Signals | None = None
    told = False  # the stop was raised: what ends now is not stopped again
    held = 0
    signals: tuple[signal.Signals, ...] = SIGNALS


@contextmanager
def listening(*more: signal.Signals, follows: bool = False) -> Iterator[None]:
    """Turn ``SIGNALS`` and ``more`` into ``Stopped`` within the block; outside the main thread nothing is changed.

    A process that ``follows`` stops by ``ask`` alone: it is another rank of a run, and the first one ends it.

    The first signal stops. Another Ctrl-C leaves the process at once, also after the block: files are replaced whole or
    not at all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.owner, _State.listening = os.getpid(), True
    _State.asked, _State.told, _State.held, _State.follows = None, False, 0, follows
    _State.signals = (*SIGNALS, *more)
    earlier = {number: signal.signal(number, _hear) for number in _State.signals}
    if follows and hasattr(signal, "pthread_sigmask"):  # it was started with them blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _State.signals)
    try:
        yield
    finally:
        _State.listening = False
        for number, handler in earlier.items():
            if number != signal.SIGINT or not _State.told:
                signal.signal(number, handler)


def is_listening() -> bool:
    """Whether this process turns signals into stops now."""
    return _State.listening and _State.owner == os.getpid()


def listen_again() -> None:
    """Within ``listening``, where another handler took our place: Lightning's waits for other ranks, which hangs."""
    if is_listening() and threading.current_thread() is threading.main_thread():
        for number in _State.signals:
            signal.signal(number, _hear)


def asked() -> int:
    """The number of the signal that came, 0 where none did."""
    return _State.asked or 0


def ask(number: int) -> None:
    """As if the signal had come to this process: another rank of its run got it. The stop comes with a ``release``."""
    _State.follows = False
    _State.asked = _State.asked or signal.Signals(number)


def hold() -> None:
    """A stop waits from here until ``release``: a step that is half done must not be what is kept."""
    _State.held += 1


def release(*, stop: bool = True) -> None:
    """End a ``hold``; raises ``Stopped`` if a signal came meanwhile, unless ``stop`` is false: an error goes first."""
    _State.held = max(0, _State.held - 1)
    if stop:
        _stop()


@contextmanager
def held() -> Iterator[None]:
    """``hold`` and ``release`` around a block."""
    hold()
    try:
        yield
    except BaseException as error:
        release(stop=isinstance(error, StopIteration))  # the end of a loop is no error
        raise
    release()


@contextmanager
def starting_processes(*signals: signal.Signals) -> Iterator[None]:
    """Processes that are started in this block, and all their threads, do not get SIGTERM, or these ``signals``.

    They get them again by ``outlive``, or by ``listening`` where they follow. Libraries start threads of their own in a
    new process before any of our code runs there.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    blocked = signals or set(_State.signals) - {signal.SIGINT}
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def outlive(*_: Any) -> None:
    """In a process that reads images (``worker_init_fn``): a scheduler's SIGTERM to all processes ends it later.

    The step that is under way may still need its images. Its own parent's SIGTERM ends it at once, as torch means it.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            signal.sigtimedwait([signal.SIGTERM], SECONDS_TO_STOP)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _hear(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:  # a process that was forked, as those that read images
        if number != signal.SIGINT:  # Ctrl-C goes to all of them: who started this one decides
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    if _State.asked is not None:
        if number == signal.SIGINT:
            os._exit(128 + number)
        return
    _State.asked = signal.Signals(number)
    _stop()


def _stop() -> None:
    if _State.asked is not None and not (_State.told or _State.held or _State.follows):
        _State.told = True
        raise Stopped(_State.asked)
