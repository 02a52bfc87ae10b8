"""Sweeps by their folders: what each job came to, which are left, and how Hydra's launchers start those alone.

What a launcher returns is not looked at: it raises at the first job that did not end well, whatever the others did.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from zfscope.commands import slurm
from zfscope.commands.folders import Job
from zfscope.commands.lines import one_line
from zfscope.console import console
from zfscope.runs import RECORD, is_locked, read_results

NOT_RUN = "not run"


def outcomes(
    sweep: Path, jobs: Sequence[Job], causes: Mapping[Path, str], is_running: bool = False
) -> list[Mapping[str, Any]]:
    """What each job came to: its ``results.json``, or its overrides with a state.

    The states are ``finished``, ``failed``, ``running``, ``waiting``, ``stopped`` (it began and has no results: it was
    stopped or killed) and ``not run``. ``causes`` are those of jobs that could not write why they failed;
    ``is_running`` says that another process runs the sweep.
    """
    queue = slurm.queue(sweep)
    found: list[Mapping[str, Any]] = []
    for number, job in enumerate(jobs):
        own = {"conditions": {"overrides": list(job.overrides)}}
        cause = causes.get(job.folder.absolute())
        try:
            results = read_results(job.folder)
        except ValueError as error:
            results, cause = None, cause or one_line(error)
        if results and results.get("state", "finished") == "finished":
            found.append(results)
        elif number in queue or is_locked(job.folder):
            found.append({"state": queue.get(number, "running"), **own})
        elif cause:
            found.append({"state": "failed", "cause": cause, **own})
        elif results:
            found.append(results)
        elif (job.folder / RECORD).is_dir():
            found.append({"state": "stopped", **own})
        else:
            found.append({"state": "waiting" if is_running else NOT_RUN, **own})
    return found


def is_left(outcome: Mapping[str, Any]) -> bool:
    """Whether a job with this outcome is missing or failed: the repetition of its sweep runs it."""
    return outcome.get("state", "finished") not in ("finished", "running", "waiting")


def run_left(sweep: Path, jobs: Sequence[Job], main: Callable[[], Any]) -> None:
    """Run the jobs of a sweep that are missing or failed; ``main`` is what ``hydra.main`` decorates.

    Where a launcher ends before its jobs, as joblib's does when one of its processes is killed, those that had not
    begun are launched again.

    Raises:
        ValueError: If no job could be launched, with what the launcher raised.
    """
    numbers = [number for number, outcome in enumerate(outcomes(sweep, jobs, {})) if is_left(outcome)]
    if not numbers:
        console.print("no job of this sweep is left to run")
    while numbers:
        selected = _SelectedJobs(sweep, numbers)
        with selected.installed():
            main()
        states = [outcome.get("state") for outcome in outcomes(sweep, jobs, {})]
        missing = [number for number in numbers if states[number] == NOT_RUN]
        if selected.error is not None and missing == numbers:
            raise ValueError(f"no job of the sweep could be launched: {one_line(selected.error)}") from selected.error
        if selected.error is not None:
            console.print(f"the launcher ended early: {one_line(selected.error)}", style="red", markup=False)
        numbers = missing if selected.error is not None else []


class _Numbers(int):
    """The first of some numbers of jobs. Launchers count ``first + index``; here that gives the number at the index."""

    def __new__(cls, numbers: Sequence[int]) -> "_Numbers":
        first = super().__new__(cls, numbers[0])
        first.numbers = numbers
        return first

    def __add__(self, index: int) -> int:
        return self.numbers[index]


class _SelectedJobs:
    """Launches some of a sweep's jobs alone, by the launcher that was chosen, and keeps what it raised."""

    def __init__(self, sweep: Path, numbers: Sequence[int]) -> None:
        self.sweep, self.numbers = sweep, numbers
        self.launcher: Launcher | None = None
        self.error: Exception | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block Hydra's sweeper, which knows all jobs, gets this launcher."""
        instantiate = Plugins.instantiate_launcher

        def instantiate_this(*arguments: Any, **keywords: Any) -> "_SelectedJobs":
            self.launcher = instantiate(*arguments, **keywords)
            return self

        Plugins.instantiate_launcher = instantiate_this
        try:
            yield
        finally:
            Plugins.instantiate_launcher = instantiate

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list:
        """Launch those jobs of a batch that are left; Hydra's sweeper looks at what is returned, so that is nothing."""
        batch = range(initial_job_idx, initial_job_idx + len(job_overrides))
        numbers = [number for number in self.numbers if number in batch]
        if not numbers:
            return []
        overrides = [job_overrides[number - initial_job_idx] for number in numbers]
        _divide_cores(self.launcher, len(numbers))
        try:
            if slurm.is_launcher(self.launcher):
                slurm.launch(self.launcher, self.sweep, overrides, _Numbers(numbers), numbers)
            else:
                self.launcher.launch(overrides, _Numbers(numbers))
        except Exception as error:
            self.error = error
        return []


def _divide_cores(launcher: Launcher | None, jobs: int) -> None:
    """Let joblib's launcher have no more processes than jobs: joblib divides the cores among its processes.

    One job at a time goes to a process: joblib would put short ones together, and a job that is refused is short.
    """
    options = getattr(launcher, "joblib", None)
    if options is not None:
        from joblib import effective_n_jobs

        options.update(n_jobs=min(effective_n_jobs(options.get("n_jobs")), jobs), batch_size=1)
