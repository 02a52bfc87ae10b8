"""The ranks of a training: where one ends before its time all end, and the first one says why.

Lightning starts the others of this machine as processes of the first. Left to itself it kills that one without a word,
and a rank whose first one was killed may wait for it for ever.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import DistError
from torch.multiprocessing import ProcessExitedException

from zfscope.console import as_typed
from zfscope.networks.ranks import MEANWHILE
from zfscope.stops import SIGNALS, MachineFault, starting_processes

POLL = 0.5  # seconds between two looks at the others
GRACE = 4.0  # seconds in which a rank whose others are gone should notice by itself
LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)


class RankEnded(MachineFault):
    """A rank of a training was killed, or cannot be reached."""


@contextmanager
def ranks_together(trainer: lightning.Trainer) -> Iterator[None]:
    """Where a rank does not come to its end within this block, the others end too.

    Raises:
        RankEnded: In the first one, if another was killed or ended by itself.
    """
    launcher, others, over = trainer.strategy.launcher, [], Event()
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = MEANWHILE
    if hasattr(launcher, "_call_children_scripts"):
        start = launcher._call_children_scripts

        def start_others() -> None:
            # A signal to all processes would end them before they listen.
            starting_processes(*SIGNALS)(start)()
            others.extend(launcher.procs)
            launcher.procs.clear()  # those that Lightning watches
            Thread(target=_watch, args=(others, over, Path(trainer.default_root_dir)), daemon=True).start()

        launcher._call_children_scripts = start_others
    if not trainer.is_global_zero:
        Thread(target=_follow, args=(os.getppid(), over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        lost = isinstance(error, DistError) or (isinstance(error, RuntimeError) and LOST.search(str(error)) is not None)
        if lost and not trainer.is_global_zero:
            time.sleep(2 * GRACE)  # the first one ends this one and says why
        spawned = getattr(launcher, "procs", [])
        others += spawned
        spawned.clear()  # first: Lightning kills this process for the end of another that it knows of
        told = _first_ended(others, GRACE if lost else 0.0)
        _kill(others)
        if isinstance(error, ProcessExitedException):
            told = f"rank {error.error_index} {_way(error.exit_code)}"
        if isinstance(error, Exception) and (told or lost) and trainer.is_global_zero:
            raise RankEnded(told or f"a rank cannot be reached: {error}") from error
        raise
    finally:
        over.set()


def _watch(others: Sequence[Popen], over: Event, folder: Path) -> None:
    """In the first rank: end all when one has ended, also where the main thread waits for that one."""
    while not over.wait(POLL):
        if (told := _first_ended(others)) and not over.wait(GRACE):
            last = (folder / "checkpoints" / "last.ckpt").is_file()
            way_on = f"; what was saved is whole: go on with python train.py resume={folder}" if last else ""
            print(as_typed(f"train.py: {told}{way_on}"), file=sys.stderr, flush=True)
            _kill(others)
            os._exit(2)


def _follow(parent: int, over: Event) -> None:
    """In another rank: end when what started it has ended."""
    while not over.wait(POLL):
        if os.getppid() != parent:
            os._exit(1)


def _first_ended(others: Sequence[Any], seconds: float = 0.0) -> str:
    """Which rank of these, of rank 1 and on, ended by itself, waiting a while for it."""
    until = time.monotonic() + seconds
    while True:
        for rank, other in enumerate(others, 1):
            code = other.poll() if isinstance(other, Popen) else other.exitcode
            if code:
                return f"rank {rank} {_way(code)}"
        if time.monotonic() >= until:
            return ""
        time.sleep(POLL / 10)


def _way(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _kill(others: Sequence[Any]) -> None:
    for other in others:
        other.kill()
    for other in others:
        (other.wait if isinstance(other, Popen) else other.join)()
