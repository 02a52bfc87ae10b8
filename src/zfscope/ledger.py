"""The ledger: every number of the paper's tables, ours beside it, with the condition under which ours was found.

What runs left in their ``results.json`` is read, put to the cell that it fills, and averaged over seeds where all else
is the same. A number found on other data or by another network than the paper's is a *stand-in*: it shows that the
experiment runs and which way it points, and is not comparable to the paper's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from scipy.special import stdtrit

from zfscope.config import Analysis, nearest, plain
from zfscope.data.imageset import printable
from zfscope.paper import TABLES
from zfscope.runs import RESULTS, read_results

TRAINING = "training"
SCHEMAS = {schema.model_fields["name"].default: schema for schema in get_args(get_args(Analysis)[0])}
PAPERS_DATA = {2: "imagenet", 3: "imagenet", 4: "caltech101", 5: "caltech256", 6: "voc2012"}  # Table 7: two columns
EXPERIMENTS = {f"ensemble_{number}": "zfnet" for number in range(1, 6)} | {"ensemble_6": "zfnet_wide"}

# Overrides that change no number: where things are, what is drawn and logged; those that conditions name anyway.
QUIET = re.compile(
    r"(experiment|seed|name|group|tags|device|resume|trust|data|(data\.)?(name|root|cache|num_workers|download)"
    r"|optim\.epochs|(hydra|logger|callbacks|paper|checkpoints)(\..*)?|trainer(\.(accelerator|devices))?)$"
)
# Overrides after which a network is not the paper's, or its images are not.
OTHER = re.compile(r"(model|scale|debug|weights|data\.(classes|resize|crop)|trainer\.limit_\w+)(\W|$)")
# Options of an analysis that change how it runs or what it draws, not what it finds.
UNIMPORTANT = ("name", "batch_size", "memory_gb", "shown", "top", "maps", "members", "partial", "seed")
SPOKEN = {
    "part": "{} images",
    "images": "{} images looked at",
    "images_per_class": "{} training images per class",
    "test_images": "at most {} test images per class",
    "folds": "{} folds",
    "scratch_folds": "from scratch {} folds",
    "masks": "{} random masks",
    "boxes": "parts from {}",
}


@dataclass(frozen=True)
class Run:
    """What one run left.

    Attributes:
        folder: Where, in one line of text.
        kind: ``training``, or the name of the analysis.
        metrics: As in ``results.json``.
        conditions: As in ``results.json``.
    """

    folder: str
    kind: str
    metrics: Mapping[str, Any]
    conditions: Mapping[str, Any]

    def metric(self, name: str) -> Mapping[str, Any]:
        """A metric whose value is a finite number; empty if there is none."""
        metric = self.metrics.get(name)
        return metric if isinstance(metric, Mapping) and is_number(metric.get("value")) else {}

    def value(self, name: str) -> float | None:
        """The value of a metric; None if there is none."""
        return self.metric(name).get("value")

    @property
    def trained(self) -> Mapping[str, Any]:
        """Of an analysis: what is known of the run that trained the network; empty of public weights."""
        return self.conditions.get("run") or {}

    @property
    def network(self) -> str | None:
        """Of an analysis: the model's name, or that of public weights."""
        source = self.conditions.get("checkpoint")
        return self.trained.get("model") or (source if isinstance(source, str) else None)

    @property
    def usable(self) -> bool:
        """Whether it is no control with shuffled labels."""
        return not self.conditions.get("shuffle_labels")


@dataclass(frozen=True)
class Sample:
    """One number of one run.

    Attributes:
        value: The number.
        condition: Under which it was found, without the seed; as text.
        key: The same to the last detail: numbers with one key are averaged.
        seed: Of the network's training, or what else tells repetitions apart.
        folder: Of the run; several where the number is a difference of runs.
        stand_in: Whether data or network are not the paper's.
        part: Which images, and how, where a run has several: ``test, ten crops``.
        spread: Standard deviation of what the run itself averaged over.
        over: What that was: ``5 folds``.
        interval: 95 % interval of the run itself, if it has one.
        how: How the interval was found: ``t over 5 folds``.
    """

    value: float
    condition: str
    key: str
    seed: int | str | None
    folder: str
    stand_in: bool
    part: str = ""
    spread: float | None = None
    over: str = ""
    interval: tuple[float, float] | None = None
    how: str = ""


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


def read_runs(folders: Iterable[str]) -> tuple[list[Run], dict[str, str]]:
    """Read every ``results.json`` below some folders.

    Args:
        folders: Run folders, or folders of them.

    Returns:
        The runs in the order of their folders, and by folder the cause where there is no result to use: a run that
        failed or was stopped, a file that is broken or tells nothing.

    Raises:
        FileNotFoundError: If a folder is not there, or there is no ``results.json`` in any of them.
    """
    folders = list(folders)
    found: dict[str, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"analysis.runs: there is no folder {printable(folder)}; {_candidates(folder)}")
        for below, inner, files in os.walk(folder):
            inner.sort()
            if RESULTS in files:
                found.setdefault(os.path.realpath(below), Path(below))
    if not found:
        raise FileNotFoundError(
            f"analysis.runs: no {RESULTS} below {', '.join(map(printable, folders))}; "
            "train something first, or name the folders that runs were written to"
        )
    runs, causes = [], {}
    for path in sorted(found.values(), key=lambda each: _natural(str(each))):
        name = printable(path)
        try:
            run = _run(name, read_results(path))
        except (ValueError, OSError) as error:
            causes[name] = printable(str(error))
            continue
        if run.kind != "ledger":
            runs.append(run)
    return runs, causes


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


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean by Student's t; two values or more."""
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def sample_of(run: Run, value: float, *, data: str | None, part: str = "", **more: Any) -> Sample:
    """A number of a run, with the run's condition.

    Args:
        run: Where it stands.
        value: The number.
        data: The paper's data set; None if it cannot be had.
        part: Which images it was found on, and how, where the run has several: ``test, ten crops``.
        more: Spread and interval, see ``Sample``.
    """
    if run.kind == TRAINING:
        text, key, stand_in = _training_condition(run)
    else:
        text, key, stand_in = _analysis_condition(run)
    seed = run.conditions.get("seed") if run.kind == TRAINING else run.trained.get("seed")
    if run.kind == "ensemble":
        seed = str(run.conditions.get("checkpoint"))
    stand_in |= data is None or run.conditions.get("data") != data
    return Sample(float(value), printable(text), key + part, seed, run.folder, stand_in, part, **more)


def key_without(run: Run, *names: str) -> str:
    """All conditions of an analysis, seed included, but for its checkpoint and some facts of its training."""
    trained = {name: value for name, value in run.trained.items() if name not in names}
    return json.dumps([_options(run), trained], sort_keys=True, default=str)


def folds_of(metric: Mapping[str, Any]) -> list[float]:
    """A metric's value in each fold; empty if it has none, or one of them is no number."""
    values = metric.get("values")
    return [float(each) for each in values] if isinstance(values, list) and all(map(is_number, values)) else []


def is_number(value: Any) -> bool:
    """Whether it is a finite number, as JSON has them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spread_of(metric: Mapping[str, Any], over: str = "") -> dict[str, Any]:
    """The spread and interval that a metric brings along, as ``Sample`` takes them: over its folds, if it has some."""
    folds = folds_of(metric)
    found: dict[str, Any] = {}
    if is_number(metric.get("spread")):
        found = {"spread": float(metric["spread"]), "over": f"{len(folds)} folds" if folds else over}
    if len(folds) > 1:
        found |= {"interval": t_interval(folds), "how": f"t over {len(folds)} folds of one network"}
    return found


def _run(folder: str, content: Any) -> Run:
    """Raises ValueError where there is nothing to use."""
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(key), Mapping) for key in ("metrics", "conditions")
    ):
        raise ValueError(f"{RESULTS} holds no metrics and conditions; remove it and run again")
    conditions = content["conditions"]
    if content.get("state", "finished") != "finished":
        cause = content.get("cause")
        raise ValueError(f"{content['state']}{f': {cause}' if cause else ''}")
    kind = conditions.get("name", TRAINING if "overrides" in conditions else None)
    if kind != TRAINING and kind not in SCHEMAS:
        raise ValueError(f"{RESULTS} comes neither from train.py nor from an analysis that is known")
    if not isinstance(conditions.get("run") or {}, Mapping) or not isinstance(conditions.get("overrides") or [], list):
        raise ValueError(f"{RESULTS} has conditions of another form; run again")
    return Run(folder, kind, content["metrics"], conditions)


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


def _groups(run: Run) -> dict[str, int]:
    """Of an ensemble: members by architecture."""
    groups: dict[str, int] = {}
    for name in run.metrics:
        if match := re.fullmatch(r"group/(.+)/(?:one_net|(\d+)_nets)/top1_error(?:_ten_crops)?", name):
            groups[match[1]] = max(groups.get(match[1], 1), int(match[2] or 1))
    return groups


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


def _training_condition(run: Run) -> tuple[str, str, bool]:
    """Of a training: text, key, and whether its network or images are not the paper's."""
    conditions = run.conditions
    told = [str(each) for each in conditions["overrides"] if not QUIET.match(str(each).lstrip("+~").partition("=")[0])]
    told = sorted(told, key=lambda each: (not each.startswith("model="), not each.startswith("model"), each))
    counts, epochs = conditions.get("images"), conditions.get("epochs")
    images = counts.get("train") if isinstance(counts, Mapping) else None
    data = str(conditions.get("data"))
    parts = [
        data + (f", {images:,} training images" if isinstance(images, int) else ""),
        ", ".join(each.removeprefix("model=") for each in told),
        _epochs(epochs),
    ]
    key = json.dumps([data, images, epochs, told], default=str)
    return "; ".join(filter(None, parts)), key, any(OTHER.match(each.lstrip("+~")) for each in told)


def _analysis_condition(run: Run) -> tuple[str, str, bool]:
    """Of an analysis: text, key, and whether its network is not the paper's."""
    trained, conditions = dict(run.trained), run.conditions
    trained.pop("seed", None)
    source = str(conditions.get("checkpoint"))
    which = "last checkpoint" if re.search(r"/last(\.ckpt)?$", source) else ""
    network = str(run.network)
    if trained:
        on = _data(trained.get("data"), trained)
        network += f" trained on {on}" if run.kind in ("transfer", "probes") or on != _data(None, conditions) else ""
        network += f", {_epochs(trained.get('epochs'))}" if trained.get("epochs") else ""
        if trained.get("stem") not in (None, "7x7/2") and not network.startswith("alexnet"):
            network += f", conv1 {trained['stem']}"
        if "filter_rms" in trained and trained["filter_rms"] is None:
            network += ", filters without a radius"
    if run.kind == "ensemble":
        network, _, rest = network.partition(",")
        network = " and ".join(_groups(run) or [network]) + "," * bool(rest) + rest
        members = run.metric("members")
        network += f", {members['value']} {members['unit']} members" if members.get("absent") else ""
    options = _options(run)
    schema = SCHEMAS[run.kind].model_fields
    spoken = []
    for name, value in options.items():
        if name in SPOKEN and value is not None and not (run.kind == "transfer" and name == "images_per_class"):
            spoken.append(SPOKEN[name].format(value))
        elif name in schema and name not in SPOKEN and value != plain(schema[name].get_default()):
            spoken.append(f"{name}={value}")
    text = "; ".join(filter(None, [_data(conditions.get("data"), conditions), network, which, ", ".join(spoken)]))
    of_imagenet = trained.get("data") == "imagenet" and not trained.get("classes")
    models = set(_groups(run)) if run.kind == "ensemble" else {trained.get("model")}
    of_paper = source.startswith("zoo/zfnet") or (of_imagenet and models <= {"zfnet", "zfnet_wide"})
    key = json.dumps([options, trained, run.network if not trained else None, which], sort_keys=True, default=str)
    return text, key, not of_paper


def _options(run: Run) -> dict[str, Any]:
    """What an analysis was asked: all conditions but the network and what does not matter."""
    options = {name: value for name, value in run.conditions.items() if name not in ("checkpoint", "run", *UNIMPORTANT)}
    if run.kind == "probes" and options.get("images_per_class") is None:
        options["images_per_class"] = 60 if options.get("data") == "caltech256" else 30  # as analyses/probes.py has it
    return options


def _data(name: str | None, conditions: Mapping[str, Any]) -> str:
    """A data set with what makes it smaller than its name says."""
    name = str(name if name is not None else conditions.get("data"))
    if conditions.get("classes"):
        name += f" ({', '.join(map(str, conditions['classes']))})"
    if conditions.get("cells"):
        name += f" ({conditions['cells']})"
    return name


def _epochs(count: Any) -> str:
    return "" if count is None else f"{count} epoch" + "s" * (count != 1)


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


def _candidates(folder: str) -> str:
    """What to name instead of a folder that is not there."""
    above = Path(folder).parent
    while not above.is_dir():
        above = above.parent
    names = sorted(entry.name for entry in above.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return f"in {printable(above)}: {nearest(Path(folder).name, [printable(name) for name in names[:20]])}"


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Sort key: members/2 before members/10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", text)]
