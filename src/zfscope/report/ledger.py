"""The ledger: every number of the paper's tables, ours beside it, with the condition under which ours was measured.

What runs left in their ``results.json`` is read, put to the cell that it fills, and averaged over seeds where all else
is the same. A number measured on other data or by another network than the paper's is a *stand-in*: it shows that the
experiment runs and which way it points, and is not comparable to the paper's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from zfscope.report.architectures import PUBLIC
from zfscope.report.conditions import Sample, differences, member_counts, other_scratch, sample_of, spread_of
from zfscope.report.paper import TABLES
from zfscope.report.readings import TRAINING, Run, is_number, t_interval

PAPERS_DATA = {2: "imagenet", 3: "imagenet", 4: "caltech101", 5: "caltech256", 6: "voc2012"}  # Table 7: two columns

# Results of older versions name their row by their experiment.
EXPERIMENTS = {f"ensemble_{number}": "zfnet" for number in range(1, 6)} | {"ensemble_6": "zfnet_wide"}

# Number of the table, row, column.
Place = tuple[int, str, str]


@dataclass(frozen=True)
class Line:
    """The mean of samples under one condition."""

    value: float  # mean over seeds; runs of one seed count together as one
    spread: float | None  # standard deviation (n - 1) over seeds; of a single one its own
    over: str  # what the spread is over
    interval: tuple[float, float] | None  # 95 %, Student's t over seeds; of a single one its own
    how: str  # how the interval was computed
    n: int  # number of seeds
    seeds: tuple[int | str | None, ...]  # which
    condition: str  # as text
    part: str  # which images, and how
    stand_in: bool  # whether data or network are not the paper's
    runs: tuple[str, ...]  # folders


@dataclass(frozen=True)
class Cell:
    """A place in a table: the paper's number and ours."""

    table: int  # number of the table
    row: str  # key of the row
    column: str  # key of the column
    paper: float | None  # the paper's number; None where only we have one (parameters)
    paper_spread: float | None  # its ``+-``
    own: bool  # whether it is the paper's own result; others are references, which are not run
    ours: tuple[Line, ...]  # A line for each condition, those on the paper's own data first


def fill(runs: Sequence[Run]) -> list[Cell]:
    """Every number of Tables 1 to 7, row by row, with what runs measured; of Table 3 the parameters too."""
    samples: dict[Place, list[Sample]] = {}
    for run in runs:
        if run.usable and run.kind in _FILLS:
            for place, sample in _FILLS[run.kind](run):
                samples.setdefault(place, []).append(sample)
    cells = []
    for table in TABLES:
        for row, column in table.cells():
            own = table.own(row, column)
            ours = lines(samples.get((table.number, row, column), ())) if own else ()
            paper = table.value(row, column), table.spread(row, column)
            cells.append(Cell(table.number, row, column, *paper, own, ours))
    parameters = [(row, lines(samples.get((3, row, "parameters"), ()))) for row in TABLES[2].rows]
    return cells + [Cell(3, row, "parameters", None, None, True, ours) for row, ours in parameters if ours]


def lines(samples: Iterable[Sample]) -> tuple[Line, ...]:
    """The mean of all samples of one key, for each key; the paper's own first, then those of more seeds.

    Where the conditions of several keys would read the same, they say what tells them apart.
    """
    groups: dict[tuple[bool, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.stand_in, sample.key), []).append(sample)
    alike: dict[tuple[str, str], list[list[Sample]]] = {}
    for group in groups.values():
        alike.setdefault((group[0].condition, group[0].part), []).append(group)
    averaged = []
    for several in alike.values():
        for group, difference in zip(several, differences([group[0].facts for group in several]), strict=True):
            line = _line(group)
            averaged.append(replace(line, condition="; ".join(filter(None, [line.condition, difference]))))
    return tuple(sorted(averaged, key=lambda line: (line.stand_in, -line.n, line.condition, line.runs)))


def count_numbers(cells: Iterable[Cell]) -> dict[str, int]:
    """How many of the paper's own numbers there are, and how many have ours beside them: on its data, by stand-ins."""
    own = [cell for cell in cells if cell.own and cell.paper is not None]
    best = [min(line.stand_in for line in cell.ours) for cell in own if cell.ours]
    counts = {"papers_data": best.count(False), "stand_in": best.count(True)}
    return {"all": len(own), **counts, "blank": len(own) - len(best)}


def _training(run: Run) -> Iterator[tuple[Place, Sample]]:
    row = _row(run)
    if row not in TABLES[2].rows:
        return
    orders = ("val/{}_ten_crops", "test/{}_ten_crops", "test/{}", "val/{}")
    held_out = {f"val_top{k}": [order.format(f"top{k}_error") for order in orders] for k in (1, 5)}
    places = {(table, column): names for table in (2, 3) for column, names in held_out.items()}
    places[3, "train_top1"] = ["train/top1_error"]
    places[2, "test_top5"] = ["test/top5_error_ten_crops", "test/top5_error"]
    for (table, column), names in places.items():
        name = run.first(*names)
        if name is not None and row in TABLES[table - 1].rows:
            more = {"data": PAPERS_DATA[table], "rows": [row], "part": _part(name)}
            yield (table, row, column), sample_of(run, run.value(name), **more)
    if is_number(run.conditions.get("parameters")):
        yield (3, row, "parameters"), sample_of(run, run.conditions["parameters"], data=PAPERS_DATA[3], rows=[row])


def _row(run: Run) -> str | None:
    """The row of Tables 2 and 3 that a training is for: as its config says, in older results its experiment."""
    typed = dict(str(override).lstrip("+").partition("=")[::2] for override in run.conditions.get("overrides") or ())
    row = run.conditions.get("paper") or typed.get("paper")
    if isinstance(row, str):
        return row
    experiment = typed.get("experiment", "")
    return EXPERIMENTS.get(experiment, experiment.removeprefix("table3_") if "table3_" in experiment else None)


def _evaluate(run: Run) -> Iterator[tuple[Place, Sample]]:
    """Public weights alone: a run of ours has its errors from its training."""
    own = (run.conditions.get("files") or {}).get("weights_file")
    row = None if own else PUBLIC.get(str(run.conditions.get("checkpoint")))
    for k in (1, 5) if row else ():
        name = run.first(f"val/top{k}_error_ten_crops", f"val/top{k}_error")
        for table in (2, 3) if name else ():
            sample = sample_of(run, run.value(name), data="imagenet", rows=[row], part=_part(name))
            yield (table, row, f"val_top{k}"), sample


def _ensemble(run: Run) -> Iterator[tuple[Place, Sample]]:
    """(a): several networks of Fig. 3 alone; (a) + (b): those and one wide network, if there are no others."""
    counts = member_counts(run)
    fig_3 = [name for name in counts if re.fullmatch(r"zfnet(_mini)?", name)]
    wide = [name for name in counts if re.match(r"zfnet\w*wide|zfnetb", name)]
    parts = {name.partition("/")[0] for name in run.metrics} & {"train", "val", "test"}
    if not fig_3 or counts[fig_3[0]] < 2 or len(parts) != 1:
        return
    (part,), count = parts, counts[fig_3[0]]
    rows = {"zfnets": (f"group/{fig_3[0]}/{count}_nets/", f"{count} nets")}
    if wide and len(counts) == 2 and counts[wide[0]] == 1:
        rows["six"] = f"{part}/", f"{count} + 1 nets"
    for row, (prefix, nets) in rows.items():
        for k in (1, 5):
            name = run.first(f"{prefix}top{k}_error_ten_crops", f"{prefix}top{k}_error")
            if name is None:
                continue
            part_of = f"{nets}, {_part(f'{part}/{name}')}"
            more = {"data": PAPERS_DATA[2], "rows": ("zfnet", "zfnet_wide"), "part": part_of}
            for column in (f"val_top{k}", *(["test_top5"] if k == 5 and part == "test" else [])):
                yield (2, row, column), sample_of(run, run.value(name), **more)


def _correspondence(run: Run) -> Iterator[tuple[Place, Sample]]:
    for row in TABLES[0].rows:
        for column in TABLES[0].columns:
            if metric := run.metric(f"{row}/{column}"):
                more = spread_of(metric, "masks" if row == "random" else "pairs of images")
                if "spread" in more:
                    more["spread"] /= 100
                # The five photographs of dogs were not published.
                yield (1, row, column), sample_of(run, metric["value"] / 100, data=None, **more)


def _transfer(run: Run) -> Iterator[tuple[Place, Sample]]:
    data = run.conditions.get("data")
    if data == PAPERS_DATA[6]:
        for row in TABLES[5].rows:
            name = "pretrained/" + ("mean_average_precision" if row == "mean" else f"average_precision/{row}")
            if run.metric(name):
                yield (6, row, "pretrained"), sample_of(run, run.value(name), data=data)
        return
    for table in (4, 5):
        if data == PAPERS_DATA[9 - table]:  # of the other table
            continue
        for way in ("scratch", "pretrained"):
            for size in TABLES[table - 1].columns:
                if metric := run.metric(f"{way}/{size}/accuracy"):
                    sample = sample_of(run, metric["value"], data=PAPERS_DATA[table], **spread_of(metric))
                    other = way == "scratch" and bool(other_scratch(run))
                    yield (table, way, size), replace(sample, stand_in=sample.stand_in or other)


def _probes(run: Run) -> Iterator[tuple[Place, Sample]]:
    data, size = run.conditions.get("data"), run.question.get("images_per_class")
    wide = isinstance(size, int) and size >= 60
    column = data if data in TABLES[6].columns else "caltech256" if wide else "caltech101"
    for row in TABLES[6].rows:
        if metric := run.metric(f"{row}/accuracy"):
            yield (7, row, column), sample_of(run, metric["value"], data=column, **spread_of(metric))


_FILLS = {
    TRAINING: _training,
    "evaluate": _evaluate,
    "ensemble": _ensemble,
    "correspondence": _correspondence,
    "transfer": _transfer,
    "probes": _probes,
}


def _part(name: str) -> str:
    """``test/top1_error_ten_crops`` in words."""
    part = name.partition("/")[0]
    if part == "train":
        return "while training"
    return f"{part}, {'ten crops' if name.endswith('_ten_crops') else 'one crop'}"


def _line(samples: Sequence[Sample]) -> Line:
    by_seed: dict[Any, list[Sample]] = {}
    for sample in samples:
        by_seed.setdefault(sample.seed, []).append(sample)
    values = [fmean(sample.value for sample in group) for group in by_seed.values()]
    first, seeds = samples[0], tuple(sorted(by_seed, key=lambda seed: (isinstance(seed, str), str(seed).zfill(12))))
    spread, over, interval, how = first.spread, first.over, first.interval, first.how
    if len(values) > 1:
        over = f"{len(values)} {'seeds' if all(isinstance(seed, int) for seed in seeds) else 'repetitions'}"
        spread, interval, how = stdev(values), t_interval(values), f"t over {over}"
    runs = tuple(dict.fromkeys(sample.folder for sample in samples))
    shared = (first.condition, first.part, first.stand_in, runs)
    return Line(fmean(values), spread, over, interval, how, len(values), seeds, *shared)
