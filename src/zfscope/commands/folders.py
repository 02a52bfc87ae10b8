"""What a command may write into a folder that is there: nothing is lost, and a sweep's job may be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zfscope.runs import RECORD, kind_of_run, read_overrides

JOB = "sweep_job.yaml"  # in the record of a sweep's job: its overrides in the sweep, also after it went on with others


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    folder: Path
    overrides: Sequence[str]
    kind: str  # training, or the name of an analysis


def check_content(folder: Path, kind: str, resuming: bool = False, key: str = "hydra.run.dir") -> None:
    """Refuse a run folder whose content would be lost; an analysis may replace its own earlier result.

    ``kind`` is what will run there: ``training``, or the name of an analysis; ``key`` says in messages where else.
    """
    earlier = kind_of_run(folder)
    if earlier is None or (earlier == kind and (resuming or kind != "training")):
        return
    if earlier == kind:
        raise ValueError(f"{folder} holds a run; go on with resume={folder}, or choose another {key}")
    what = "a training" if earlier == "training" else f"the result of analysis={earlier}"
    raise ValueError(f"{folder} holds {what}, which would be lost; choose another {key}")


def check_job(job: Job) -> None:
    """Refuse the folder of a sweep's job that holds another run than this job.

    Raises:
        ValueError: With the overrides that differ.
    """
    check_content(job.folder, job.kind, resuming=True, key="hydra.sweep.dir")
    recorded = (job.folder / RECORD / "overrides.yaml").is_file()
    if (recorded or kind_of_run(job.folder) is not None) and not is_same(job):
        old, new = _overrides_of(job.folder), job.overrides
        before = " ".join(text for text in old if text not in new) or "none that this one has not"
        now = " ".join(text for text in new if text not in old) or "none that it had not"
        raise ValueError(
            f"{job.folder} holds a job that was started with other values ({before}; now {now}); repeat the sweep with "
            "its own, or choose another hydra.sweep.dir"
        )


def is_same(job: Job) -> bool:
    """Whether the folder of a sweep's job holds a run that was started as this job, with the same overrides."""
    recorded = (job.folder / RECORD / "overrides.yaml").is_file()
    return recorded and sorted(_overrides_of(job.folder)) == sorted(job.overrides)


def goes_on(job: Job) -> bool:
    """Whether a sweep's job is a training that was begun before: it goes on from its last checkpoint."""
    return job.kind == "training" and is_same(job) and (job.folder / "checkpoints" / "last.ckpt").is_file()


def _overrides_of(folder: Path) -> list[str]:
    return read_overrides(folder, JOB) or read_overrides(folder)
