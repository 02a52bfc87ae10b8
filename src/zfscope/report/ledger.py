"""The ledger: every number of the paper's tables, ours beside it, with the condition under which ours was found.

What runs left in their ``results.json`` is read, put to the cell that it fills, and averaged over seeds where all else
is the same. A number found on other data or by another network than the paper's is a *stand-in*: it shows that the
experiment runs and which way it points, and is not comparable to the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from zfscope.report.conditions import Sample, _groups, sample_of, spread_of
from zfscope.report.paper import TABLES
from zfscope.report.readings import TRAINING, Run, is_number, t_interval

PAPERS_DATA = {2: "imagenet", 3: "imagenet", 4: "caltech101", 5: "caltech256", 6: "voc2012"}  # Table 7: two columns

EXPERIMENTS = {f"ensemble_{number}": "zfnet" for number in range(1, 6)} | {"ensemble_6": "zfnet_wide"}


@dataclass(frozen=True)
class Line:
    """The mean of samples under one condition.

    Attributes:
        value: Mean over seeds; runs of one seed count together as one.
        spread: Standard deviation (n - 1) over seeds; of a single one its own.
        over: What the spread is over.
        interval: 95 %, Student's t over seeds; of a single one its own.
        how: How the interval was found.
        n: Number of seeds.
        seeds: Which.
        condition: As text.
        part: Which images, and how.
        stand_in: Whether data or network are not the paper's.
        runs: Folders.
    """

    value: float
    spread: float | None
    over: str
    interval: tuple[float, float] | None
    how: str
    n: int
    seeds: tuple[int | str | None, ...]
    condition: str
    part: str
    stand_in: bool
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A place in a table: the paper's number and ours.

    Attributes:
        table: Number of the table.
        row: Key of the row.
        column: Key of the column.
        paper: The paper's number; None where only we have one (parameters).
        paper_spread: Its ``+-``.
        own: Whether it is the paper's own result; others are references, which are not run.
        ours: A line for each condition, those on the paper's own data first.
    """

    table: int
    row: str
    column: str
    paper: float | None
    paper_spread: float | None
    own: bool
    ours: tuple[Line, ...]


def fill(runs: Sequence[Run]) -> list[Cell]:
    """Every number of Tables 1 to 7, row by row, with what runs found; of Table 3 the parameters too."""
    samples: dict[tuple[int, str, str], list[Sample]] = {}
    for run in runs:
        for place, sample in _placed(run):
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
    """The mean of all samples of one condition, for each condition; the paper's own first, then those of more seeds."""
    groups: dict[tuple[bool, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.stand_in, sample.key), []).append(sample)
    found = [_line(group) for group in groups.values()]
    return tuple(sorted(found, key=lambda line: (line.stand_in, -line.n, line.condition, line.runs)))


def count_numbers(cells: Iterable[Cell]) -> dict[str, int]:
    """How many of the paper's own numbers there are, and how many have ours beside them: on its data, by stand-ins."""
    own = [cell for cell in cells if cell.own and cell.paper is not None]
    best = [min(line.stand_in for line in cell.ours) for cell in own if cell.ours]
    counts = {"papers_data": best.count(False), "stand_in": best.count(True)}
    return {"all": len(own), **counts, "blank": len(own) - len(best)}


def _placed(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    """What a run fills: number of the table, row, column, and its number."""
    if run.usable and run.kind in _FILLS:
        yield from _FILLS[run.kind](run)


def _training(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    row = _row(run)
    if row not in TABLES[2].rows:
        return
    orders = ("val/{}_ten_crops", "test/{}_ten_crops", "test/{}", "val/{}")
    held_out = {f"val_top{k}": [order.format(f"top{k}_error") for order in orders] for k in (1, 5)}
    places = {(table, column): names for table in (2, 3) for column, names in held_out.items()}
    places[3, "train_top1"] = ["train/top1_error"]
    places[2, "test_top5"] = ["test/top5_error_ten_crops", "test/top5_error"]
    for (table, column), names in places.items():
        name = next((name for name in names if run.value(name) is not None), None)
        if name is not None and row in TABLES[table - 1].rows:
            part = _part(name)
            yield (table, row, column), sample_of(run, run.value(name), data=PAPERS_DATA[table], part=part)
    if is_number(run.conditions.get("parameters")):
        yield (3, row, "parameters"), sample_of(run, run.conditions["parameters"], data=PAPERS_DATA[3])


def _row(run: Run) -> str | None:
    """The row of Tables 2 and 3 that a training is for, by its experiment."""
    for override in run.conditions["overrides"]:
        key, _, value = str(override).lstrip("+").partition("=")
        if key == "experiment":
            return EXPERIMENTS.get(value, value.removeprefix("table3_") if value.startswith("table3_") else None)
    return None


def _evaluate(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    """Public weights alone: a run of ours has its errors from its training."""
    row = {"zoo/zfnet": "zfnet", "zoo/zfnetb": "zfnet_wide"}.get(str(run.conditions.get("checkpoint")))
    for k in (1, 5) if row else ():
        names = (f"val/top{k}_error_ten_crops", f"val/top{k}_error")
        name = next((name for name in names if run.value(name) is not None), None)
        for table in (2, 3) if name else ():
            yield (table, row, f"val_top{k}"), sample_of(run, run.value(name), data="imagenet", part=_part(name))


def _ensemble(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    """(a): several networks of Fig. 3 alone; (a) + (b): those and one wide network, if there are no others."""
    groups = _groups(run)
    fig_3 = [name for name in groups if re.fullmatch(r"zfnet(_mini)?", name)]
    wide = [name for name in groups if re.match(r"zfnet\w*wide|zfnetb", name)]
    parts = {name.partition("/")[0] for name in run.metrics} & {"train", "val", "test"}
    rows = {}
    if fig_3 and groups[fig_3[0]] > 1:
        count = groups[fig_3[0]]
        rows["zfnets"] = f"group/{fig_3[0]}/{count}_nets/", f"{count} nets"
        if wide and len(groups) == 2 and groups[wide[0]] == 1 and len(parts) == 1:
            rows["six"] = f"{min(parts)}/", f"{count} + 1 nets"
    for row, (prefix, nets) in rows.items():
        for k in (1, 5):
            names = (f"{prefix}top{k}_error_ten_crops", f"{prefix}top{k}_error")
            name = next((name for name in names if run.value(name) is not None), None)
            if name is None or len(parts) != 1:
                continue
            part = f"{nets}, {_part(f'{min(parts)}/{name}')}"
            for column in (f"val_top{k}", *(["test_top5"] if k == 5 and parts == {"test"} else [])):
                yield (2, row, column), sample_of(run, run.value(name), data=PAPERS_DATA[2], part=part)


def _correspondence(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    for row in TABLES[0].rows:
        for column in TABLES[0].columns:
            metric = run.metric(f"{row}/{column}")
            if metric:
                more = spread_of(metric, "masks" if row == "random" else "pairs of images")
                if "spread" in more:
                    more["spread"] /= 100
                # The five photographs of dogs were not published.
                yield (1, row, column), sample_of(run, metric["value"] / 100, data=None, **more)


def _transfer(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    data = run.conditions.get("data")
    if data == PAPERS_DATA[6]:
        for row in TABLES[5].rows:
            name = "mean_average_precision" if row == "mean" else f"average_precision/{row}"
            if run.value(f"pretrained/{name}") is not None:
                yield (6, row, "pretrained"), sample_of(run, run.value(f"pretrained/{name}"), data=data)
        return
    for table in (4, 5):
        if data == PAPERS_DATA[9 - table]:  # of the other table
            continue
        for way in ("scratch", "pretrained"):
            for size in TABLES[table - 1].columns:
                metric = run.metric(f"{way}/{size}/accuracy")
                if metric:
                    more = spread_of(metric)
                    yield (table, way, size), sample_of(run, metric["value"], data=PAPERS_DATA[table], **more)


def _probes(run: Run) -> Iterator[tuple[tuple[int, str, str], Sample]]:
    data, size = run.conditions.get("data"), run.conditions.get("images_per_class")
    wide = isinstance(size, int) and size >= 60
    column = data if data in TABLES[6].columns else "caltech256" if wide else "caltech101"
    for row in TABLES[6].rows:
        metric = run.metric(f"{row}/accuracy")
        if metric:
            sample = sample_of(run, metric["value"], data=column, **spread_of(metric))
            yield (7, row, column), sample


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
