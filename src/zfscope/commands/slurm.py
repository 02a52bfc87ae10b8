"""Slurm: a training whose job comes back from the queue goes on where it stood; a sweep as an array of jobs.

``#SBATCH --signal=SIGUSR1@90`` announces the end of a job's time, submitit's scripts do so with SIGUSR2. Lightning and
submitit would each save within whatever is under way and put the job back into the queue, submitit without a
checkpoint. Here one alone does that, this module: the step ends first, as with any other signal, the run is saved, and
the job goes back once. Lightning leaves a signal alone that has a handler, and ours takes the place of submitit's. A
job that was preempted comes back without that.
"""

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher

from zfscope.commands.overrides import parse, quoted
from zfscope.console import console
from zfscope.files import write_text
from zfscope.runs import RECORD, read_overrides

JOB = "slurm_job"  # in the record of a run: the job that began it
SUBMITTED = ".submitit"  # in the folder of a sweep: what submitit writes
LONGEST_WAIT = 30.0  # s between two looks at the queue


def job_id() -> str | None:
    """The id of the batch job that this process belongs to, as ``scontrol`` takes it; None where there is none."""
    name = os.environ.get("SLURM_JOB_NAME")
    if "SLURM_JOB_ID" not in os.environ or name in (None, "bash", "interactive"):  # as Lightning tells them apart
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def signals() -> tuple[signal.Signals, ...]:
    """The signals that announce the end of a job's time."""
    return (signal.SIGUSR1, signal.SIGUSR2) if job_id() is not None else ()


def requeue() -> str:
    """Put this job back into the queue; returns what came of it, as part of a line."""
    job = job_id()
    try:
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8", timeout=60)
        cause = "" if answer.returncode == 0 else " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        cause = str(error)
    return f"job {job} could not be put back into the queue ({cause})" if cause else f"job {job} is back in the queue"


def with_resumption(overrides: Sequence[str]) -> list[str]:
    """What was typed; in a job that came back with ``resume=RUN``, where that job began the same training before.

    That run is found in the folder that was typed, or among ``outputs/*``.
    """
    parsed, job = parse(overrides), job_id()
    came_back = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    if job is None or not came_back or any(override.key_or_group == "resume" for override in parsed):
        return list(overrides)
    typed = [override.input_line for override in parsed if not override.is_hydra_override()]
    named = [str(override.value()) for override in parsed if override.key_or_group == "hydra.run.dir"]
    for place in [*map(Path, named), *sorted(Path("outputs").glob("*"))]:
        record = place / RECORD / JOB
        begun = record.is_file() and record.read_text(encoding="utf-8").strip() == job
        if begun and read_overrides(place) == typed and (place / "checkpoints" / "last.ckpt").is_file():
            return [f"resume={quoted(place)}"]
    return list(overrides)


def is_submitted() -> bool:
    """Whether submitit started this process as a job."""
    return "SUBMITIT_EXECUTOR" in os.environ


def check_launcher(target: str | None) -> None:
    """Refuse submitit's launcher for Slurm, by its class, where there is no Slurm.

    Raises:
        ValueError: With another launcher.
    """
    if str(target).endswith(".SlurmLauncher") and not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
        raise ValueError(
            "hydra/launcher: sbatch, srun and squeue of Slurm are not found; hydra/launcher=joblib needs none"
        )


def is_launcher(launcher: Launcher | None) -> bool:
    """Whether a launcher of Hydra's is submitit's for Slurm."""
    return getattr(launcher, "_EXECUTOR", None) == "slurm"


def launch(launcher: Any, sweep: Path, overrides: Sequence[Sequence[str]], first: int, numbers: Sequence[int]) -> None:
    """Submit jobs of a sweep by submitit's launcher, as one array, and wait until Slurm has none of them any more.

    Submitit's own waiting raises at the first job that did not end well, and never ends where Slurm keeps no accounts
    and a job was killed. The array's comment names the sweep's folder and a file there with the numbers of its jobs.
    """
    from submitit import SlurmJob

    name = f"numbers_{secrets.token_hex(4)}.json"
    (sweep / SUBMITTED).mkdir(exist_ok=True)
    write_text(sweep / SUBMITTED / name, json.dumps(numbers))
    launcher.params["comment"] = f"{os.path.realpath(sweep)} {name}"
    SlurmJob.results = lambda job: [None]  # in place of its parent's
    try:
        with redirect_stderr(io.StringIO()):  # what sbatch says is in the error too
            launcher.launch(overrides, first)
    finally:
        del SlurmJob.results
    jobs = f"{len(numbers)} job{'s' * (len(numbers) > 1)}"
    console.print(f"{jobs} submitted to Slurm; logs in {sweep / SUBMITTED}", markup=False, soft_wrap=True)
    seconds = 1.0
    while _has_any(sweep, numbers):
        time.sleep(seconds)
        seconds = min(LONGEST_WAIT, 1.5 * seconds)


def queue(sweep: Path) -> dict[int, str]:
    """The jobs of a sweep that Slurm has, by their numbers: ``running`` or ``waiting``.

    Raises:
        OSError: If Slurm does not answer.
    """
    if not (sweep / SUBMITTED).is_dir() or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%K|%T|%k"]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError("squeue does not answer; which jobs of the sweep run or wait is not known") from None
    if answer.returncode != 0:
        told = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise OSError(f"which jobs of the sweep run or wait is not known: squeue: {told}")
    found = {}
    for line in answer.stdout.splitlines():
        task, state, comment = line.split("|", 2)
        folder, _, name = comment.rpartition(" ")
        if folder == os.path.realpath(sweep):
            numbers = json.loads((sweep / SUBMITTED / name).read_text(encoding="utf-8"))
            number = numbers[int(task) if task.isdecimal() else 0]  # a single job is no array
            found[number] = "waiting" if state == "PENDING" else "running"
    return found


def _has_any(sweep: Path, numbers: Sequence[int]) -> bool:
    try:
        return not queue(sweep).keys().isdisjoint(numbers)
    except OSError:  # Slurm's controller may be restarted
        return True
