"""Transfer to another data set, row by row: every network and way of learning, beside the best that was trained there.

What a run calls ``gain`` is against the network that it trained from scratch itself. Here a pretrained network is set
against the best of all that learned from scratch from the same images: fold by fold, the same training and test images.
The best is picked by these very folds, in its favour.

Source: Zeiler & Fergus (2014), Sec. 5.2 has one network from scratch, its own; the comparison with the best is ours.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from zfscope.report.conditions import Sample, data_text, network_text, other_scratch, papers_own, sample_of, spread_of
from zfscope.report.ledger import Line, lines
from zfscope.report.readings import Run, folds_of, t_interval

WAYS = {
    "pretrained": "pretrained and frozen",
    "scratch": "from scratch",
    "random_weights": "random weights, frozen",
}
ABOUT = ("parameters", "image_size", "optimiser", "lr", "batch_size", "steps")  # of a way, in its columns


@dataclass(frozen=True)
class Score:
    """What one run says of one way of learning with one number of training images per class."""

    run: Run
    way: str  # ``pretrained``, ``scratch`` or ``random_weights``
    size: int  # training images per class
    about: Mapping[str, Any]  # how it learned, as the run's conditions have it
    folds: tuple[tuple[str, float], ...]  # digest and accuracy of each, percent; with one digest they share all images
    target: str  # what is learned, and by how many folds: scores of one target stand in one table
    row: str  # equal for scores of one network that learns in one way

    @property
    def seed(self) -> int | str:
        """What tells repetitions apart: the seed of the folds, of a pretrained network that of its training too."""
        folds, trained = self.run.conditions.get("seed"), self.run.networks[0].seed
        if self.way != "pretrained" or trained is None or trained == folds:
            return folds if isinstance(folds, int) else str(folds)
        return f"{trained}, folds of {folds}"

    @property
    def sample(self) -> Sample:
        """The number as the ledger averages it: over seeds of one row."""
        data, rows = papers_own(self.run)
        metric = self.run.metric(f"{self.way}/{self.size}/accuracy")
        sample = sample_of(self.run, metric["value"], data=data, rows=rows, **spread_of(metric))
        other = self.way == "random_weights" or (self.way == "scratch" and bool(other_scratch(self.run)))
        return replace(sample, key=self.row, seed=self.seed, stand_in=sample.stand_in or other)


@dataclass(frozen=True)
class Row:
    """A network and a way of learning."""

    network: str  # with what it was trained on, where it was
    architecture: str
    way: str  # key of ``WAYS``
    stand_in: bool  # whether data, network or protocol are not the paper's
    about: Mapping[str, Any]  # by key of ``ABOUT``; steps by training images per class
    cells: Mapping[int, Line]  # accuracy, percent, by training images per class
    ahead: Mapping[int, Line]  # of pretrained ones: how far they lie above the best from scratch, percentage points
    best: frozenset[int]  # of those from scratch: where it is the best


@dataclass(frozen=True)
class Target:
    """One table: a data set that is learned."""

    data: str
    protocol: str  # folds and test images
    sizes: tuple[int, ...]  # training images per class
    chance: float | None  # accuracy of guessing, percent
    rows: tuple[Row, ...]  # pretrained, from scratch, random weights; each from the best to the worst


def targets(runs: Iterable[Run]) -> list[Target]:
    """A table for each data set that networks were transferred to, by name."""
    by_target: dict[str, list[Score]] = {}
    for score in scores(runs):
        by_target.setdefault(score.target, []).append(score)
    tables = [_table(several) for several in by_target.values()]
    return sorted(tables, key=lambda table: (table.data, table.protocol))


def scores(runs: Iterable[Run]) -> list[Score]:
    """What runs measured that say how each way learned; of repetitions of one seed that with most folds."""
    best: dict[tuple[Any, ...], Score] = {}
    for run in runs:
        for score in _scores_of(run) if run.usable and run.kind == "transfer" else ():
            place = score.target, score.row, score.size, score.seed
            if place not in best or len(score.folds) > len(best[place].folds):
                best[place] = score
    return list(best.values())


def over_best(score: Score, others: Iterable[Score]) -> tuple[list[float], Score] | None:
    """How far a score lies above the best from scratch on the same folds: a difference for each, and which that is.

    None where none of ``others`` learned from scratch from these images.
    """
    found = []
    for other in others:
        if other.way == "scratch" and other.size == score.size and other.target == score.target:
            both = zip(score.folds, other.folds, strict=False)
            pairs = [(own, theirs) for (one, own), (two, theirs) in both if one == two]
            if pairs:
                found.append((fmean(theirs for _, theirs in pairs), [own - theirs for own, theirs in pairs], other))
    if not found:
        return None
    _, differences, best = max(found, key=lambda each: each[0])
    return differences, best


def over_folds(values: Sequence[float]) -> dict[str, Any]:
    """The interval of a mean of differences, as ``Sample`` takes it; none of a single one."""
    interval = t_interval(values) if len(values) > 1 else None
    how = f"t over {len(values)} folds of one network" if interval else ""
    return {"spread": None, "over": "", "interval": interval, "how": how}


def _scores_of(run: Run) -> Iterator[Score]:
    ways, folds = run.conditions.get("ways"), run.conditions.get("same_folds")
    if not isinstance(ways, Mapping) or not isinstance(folds, Mapping):
        return  # of an older version, or of images with several labels
    asked = run.question
    target = json.dumps(
        [data_text(run), run.conditions.get("target_images"), asked.get("test_images"), asked.get("folds")], default=str
    )
    for way, about in ways.items():
        if way not in WAYS or not isinstance(about, Mapping):
            continue
        row = _row_key(run, way, about)
        for size, digests in folds.items():
            metric = run.metric(f"{way}/{size}/accuracy")
            if metric and re.fullmatch(r"[1-9]\d{0,8}", str(size)) and isinstance(digests, list):
                pairs = tuple(zip(map(str, digests), folds_of(metric), strict=False))  # from scratch there may be fewer
                yield Score(run, way, int(size), about, pairs, target, row)


def _row_key(run: Run, way: str, about: Mapping[str, Any]) -> str:
    """Equal for runs whose numbers are of one network and way, seeds aside."""
    own: list[Any] = [way, {name: value for name, value in about.items() if name != "steps"}]
    if way == "pretrained":
        network = run.networks[0]
        identity = network.digest or run.folder  # one that is not known is like no other
        own += [identity, network.checkpoint, network.epochs_so_far, run.conditions.get("files")]
    elif way == "scratch":
        own += [run.question.get(name) for name in ("scratch_steps", "augment")]
    return json.dumps([*own, bool(other_scratch(run)) and way == "scratch"], sort_keys=True, default=str)


def _table(several: Sequence[Score]) -> Target:
    rows: dict[str, list[Score]] = {}
    for score in several:
        rows.setdefault(score.row, []).append(score)
    sizes = tuple(sorted({score.size for score in several}))
    made = [_row(own, several) for own in rows.values()]
    scratch = [row for row in made if row.way == "scratch"]
    highest = {
        size: max((row.cells[size].value for row in scratch if size in row.cells), default=None) for size in sizes
    }
    made = [
        replace(row, best=frozenset(size for size, line in row.cells.items() if line.value == highest[size]))
        if row.way == "scratch"
        else row
        for row in made
    ]
    run = several[0].run
    question = run.question
    most = question.get("test_images")
    tested = "all test images" if most is None else f"at most {most} test images per class"
    protocol = f"{question.get('folds')} folds, {tested}"
    order = list(WAYS)
    made.sort(key=lambda row: (order.index(row.way), -max(line.value for line in row.cells.values()), row.network))
    return Target(data_text(run), protocol, sizes, run.value("chance"), tuple(made))


def _row(own: Sequence[Score], several: Sequence[Score]) -> Row:
    """One row from its scores; ``several`` are all of its table."""
    first = own[0]
    by_size: dict[int, list[Score]] = {}
    for score in own:
        by_size.setdefault(score.size, []).append(score)
    cells = {size: _line([score.sample for score in by_size[size]]) for size in sorted(by_size)}
    ahead = {}
    for size in cells if first.way == "pretrained" else ():
        against = [(score, over_best(score, several)) for score in by_size[size]]
        samples = [
            replace(score.sample, value=fmean(found[0]), **over_folds(found[0])) for score, found in against if found
        ]
        if samples:
            ahead[size] = _line(samples)
    about = {name: first.about.get(name) for name in ABOUT}
    about["steps"] = {
        score.size: steps[str(score.size)]
        for score in own
        if isinstance(steps := score.about.get("steps"), Mapping) and str(score.size) in steps
    }
    architecture = str(first.about.get("network"))
    name = network_text(first.run) if first.way == "pretrained" else architecture
    stand_in = any(line.stand_in for line in cells.values())
    return Row(name, architecture, first.way, stand_in, about, cells, ahead, frozenset())


def _line(samples: Sequence[Sample]) -> Line:
    """All of one row; a stand-in if one of them is."""
    stand_in = any(sample.stand_in for sample in samples)
    (line,) = lines(replace(sample, stand_in=stand_in) for sample in samples)
    return line
