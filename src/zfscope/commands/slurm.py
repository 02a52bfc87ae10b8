"""Slurm: a training whose job comes back from the queue goes on where it stood.

``#SBATCH --signal=SIGUSR1@90`` announces the end of a job's time. Lightning then saves within whatever is under way and
puts the job back into the queue; here the step ends first, as with any other signal. A job that was preempted comes
back without that.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zfscope.commands.overrides import parse, quoted
from zfscope.runs import RECORD, read_overrides

JOB = "slurm_job"  # in the record of a run: the job that began it


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
    return (signal.SIGUSR1,) if job_id() is not None else ()


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
