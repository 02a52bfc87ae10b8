"""What runs left in their ``results.json``, read back."""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from scipy.special import stdtrit

from zfscope.runs import RESULTS, natural, read_results
from zfscope.schema import nearest, printable, shown

TRAINING = "training"


@dataclass(frozen=True)
class TrainedNetwork:
    """One network that a run trained or looked at."""

    digest: str | None  # identity of its training; None where it was not recorded
    facts: Mapping[str, Any]  # what the digest is of, by dotted key
    seed: Any  # of its training
    checkpoint: str  # ``best``, ``last`` or ``epoch_010``
    epochs_so_far: int | None = None  # of a training that had not finished: whole epochs of this network

    @classmethod
    def read(cls, identity: Any, seed: Any, checkpoint: Any, progress: Mapping[str, Any] | None = None) -> Self:
        """From what a result holds of it, which may be nothing; ``progress`` as in ``checkpoints.run_progress``."""
        known = isinstance(identity, Mapping) and isinstance(identity.get("digest"), str)
        facts = identity.get("facts") if known else None
        name = Path(str(checkpoint)).name.removesuffix(".ckpt")
        which = name if name == "last" or re.fullmatch(r"epoch_\d+", name) else "best"
        digest = identity["digest"] if known and identity["digest"] else None
        so_far = progress.get("epoch") if progress and progress.get("finished") is False else None
        return cls(digest, facts if isinstance(facts, Mapping) else {}, seed, which, so_far)


@dataclass(frozen=True)
class Run:
    """What one run left."""

    folder: str  # where, in one line of text
    kind: str  # ``training``, or the name of the analysis
    metrics: Mapping[str, Any]  # as in ``results.json``
    conditions: Mapping[str, Any]  # as in ``results.json``

    def metric(self, name: str) -> Mapping[str, Any]:
        """A metric whose value is a finite number; empty if there is none."""
        metric = self.metrics.get(name)
        return metric if isinstance(metric, Mapping) and is_number(metric.get("value")) else {}

    def value(self, name: str) -> float | None:
        """The value of a metric; None if there is none."""
        return self.metric(name).get("value")

    def first(self, *names: str) -> str | None:
        """The first of several metrics that has a value."""
        return next((name for name in names if self.metric(name)), None)

    @property
    def trained(self) -> Mapping[str, Any]:
        """Of an analysis: what is known of the run that trained the network; empty of public weights."""
        return self.conditions.get("run") or {}

    @property
    def networks(self) -> tuple[TrainedNetwork, ...]:
        """The network that it trained or looked at; of an ensemble its members."""
        conditions = self.conditions
        if self.kind == TRAINING:
            typed = "evaluate.checkpoint=last" in (conditions.get("overrides") or ())
            evaluated = conditions.get("evaluated", "last" if typed else "best")
            return (TrainedNetwork.read(conditions.get("identity"), conditions.get("seed"), evaluated),)
        members = conditions.get("members")
        if isinstance(members, list) and members and all(isinstance(member, Mapping) for member in members):
            read = TrainedNetwork.read
            return tuple(
                read(member.get("identity"), member.get("seed"), member.get("checkpoint"), member) for member in members
            )
        source, identity = conditions.get("checkpoint"), self.trained.get("identity")
        if identity is None and isinstance(source, str) and source.startswith(("zoo/", "torchvision/", "timm/")):
            identity = {"digest": source, "facts": {"weights": source}}
        return (TrainedNetwork.read(identity, self.trained.get("seed"), source, self.trained),)

    @property
    def question(self) -> Mapping[str, Any]:
        """Of an analysis: its options that matter; in older results they stand among the conditions."""
        question = self.conditions.get("question")
        return question if isinstance(question, Mapping) else self.conditions

    @property
    def identified(self) -> bool:
        """Whether it says how all its networks were trained, and what an analysis was asked."""
        told = self.kind == TRAINING or isinstance(self.conditions.get("question"), Mapping)
        return told and all(network.digest for network in self.networks)

    @property
    def usable(self) -> bool:
        """Whether it is no control with shuffled labels."""
        return not (self.question.get("shuffle_labels") or self.conditions.get("shuffle_labels"))


def read_runs(folders: Iterable[str]) -> tuple[list[Run], dict[str, str]]:
    """Read every ``results.json`` below run folders, or folders of them.

    The runs come in the order of their folders; beside them, by folder, the cause where there is no result to use: a
    run that failed or was stopped, a file that is broken or tells nothing.
    """
    folders = list(folders)
    paths: dict[str, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"analysis.runs: there is no folder {printable(folder)}; {_candidates(folder)}")
        for below, inner, files in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if RESULTS in files:
                paths.setdefault(os.path.realpath(below), Path(below))
    if not paths:
        raise FileNotFoundError(
            f"analysis.runs: no {RESULTS} below {', '.join(map(printable, folders))}; "
            "train something first, or name the folders that runs were written to"
        )
    runs, causes = [], {}
    for path in sorted(paths.values(), key=natural):
        name = printable(path)
        try:
            run = _run(name, read_results(path))
        except (ValueError, OSError) as error:
            causes[name] = shown(str(error))
            continue
        if run.kind not in ("ledger", "cache"):
            runs.append(run)
    return runs, causes


def folds_of(metric: Mapping[str, Any]) -> list[float]:
    """A metric's value in each fold; empty if it has none, or one of them is no number."""
    values = metric.get("values")
    return [float(value) for value in values] if isinstance(values, list) and all(map(is_number, values)) else []


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean by Student's t; two values or more."""
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def is_number(value: Any) -> bool:
    """Whether it is a finite number, as JSON has them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _run(folder: str, content: Mapping[str, Any]) -> Run:
    """Raises ValueError where there is nothing to use."""
    conditions = content["conditions"]
    if content.get("state", "finished") != "finished":
        cause = content.get("cause")
        raise ValueError(f"{content['state']}{f': {cause}' if cause else ''}")
    kind = conditions.get("name", TRAINING if "overrides" in conditions else None)
    if not isinstance(kind, str):
        raise ValueError(f"{RESULTS} comes neither from train.py nor from an analysis")
    trained = conditions.get("run") or {}
    if not isinstance(trained, Mapping) or not isinstance(conditions.get("overrides") or [], list):
        raise ValueError(f"{RESULTS} has conditions of another form; run again")
    # By these results are told apart.
    for name, value in {"data": conditions.get("data"), "run.data": trained.get("data")}.items():
        if not isinstance(value, str | None):
            raise ValueError(f"{RESULTS}: its {name} is a {type(value).__name__}, not a text; run again")
    return Run(folder, printable(kind), content["metrics"], conditions)


def _candidates(folder: str) -> str:
    """What to name instead of a folder that is not there."""
    above = Path(folder).parent
    while not above.is_dir():
        above = above.parent
    names = sorted(entry.name for entry in above.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return f"in {printable(above)}: {nearest(Path(folder).name, [printable(name) for name in names[:20]])}"
