"""Effects in runs: a number for each run, or pair of networks, above 0 where the paper is right; with its condition."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

from zfscope.report.conditions import Sample, other_scratch, papers_own, sample_of, twin_key
from zfscope.report.readings import Run, folds_of, is_number, t_interval
from zfscope.report.transfer import over_best, scores

PARTS = ("right_eye", "left_eye", "nose")  # those of Table 1

# An effect with what spread and interval it brings along; None where a run has not what it takes.
Effect = tuple[float, dict[str, Any]] | None
Samples = Callable[[Sequence[Run]], Iterator[Sample]]


def in_each_run(kind: str, effect: Callable[[Run], Effect]) -> Samples:
    """The effect in every run of one analysis that has it."""

    def samples(runs: Sequence[Run]) -> Iterator[Sample]:
        for run in runs:
            result = effect(run) if run.kind == kind else None
            if result is not None:
                value, more = result
                yield _sample(run, value, **more)

    return samples


def between_twins(
    varied: str, sides: Callable[[Mapping[str, Any]], str | None], value: Callable[[Run], float | None]
) -> Samples:
    """A difference between two networks that were trained alike, seed included, but for some facts.

    ``varied`` is a pattern of the facts in which they differ; ``sides`` says ``minuend`` or ``subtrahend`` by the facts
    of a network's training, None for any other network; ``value`` is what is subtracted.
    """

    def samples(runs: Sequence[Run]) -> Iterator[Sample]:
        twins: dict[str, dict[str, dict[str, list[Run]]]] = {}  # by what they share, side, what they are
        for run in runs:
            side = sides(run.networks[0].facts) if run.kind == "diagnostics" and run.identified else None
            if side is not None and value(run) is not None:
                alike = twins.setdefault(twin_key(run, varied), {"minuend": {}, "subtrahend": {}})
                alike[side].setdefault(str(run.networks[0].digest), []).append(run)
        for alike in twins.values():
            for (digest, minuend), subtrahend in product(alike["minuend"].items(), alike["subtrahend"].values()):
                sample = _sample(subtrahend[0], fmean(map(value, minuend)) - fmean(map(value, subtrahend)))
                facts = {f"other {name}": fact for name, fact in minuend[0].networks[0].facts.items()}
                for run in (*minuend, *subtrahend):  # a sample by each run, so that all are named
                    key = f"{sample.key} {digest}"
                    yield replace(sample, key=key, facts={**sample.facts, **facts}, folder=run.folder)

    return samples


def _sample(run: Run, value: float, **more: Any) -> Sample:
    """With the paper's data set for the analysis; None where it cannot be had."""
    data, rows = papers_own(run)
    sample = sample_of(run, value, data=data, rows=rows, **more)
    return replace(sample, stand_in=sample.stand_in or bool(other_scratch(run)))


def difference(kind: str, first: str, second: str) -> Samples:
    """One metric minus another in each run of an analysis; over folds, where both have them."""

    def effect(run: Run) -> Effect:
        one, other = run.metric(first), run.metric(second)
        if not one or not other:
            return None
        folds = folds_of(one), folds_of(other)
        paired = len(folds[0]) == len(folds[1]) > 1
        more = _over_folds([a - b for a, b in zip(*folds, strict=True)]) if paired else {}
        return one["value"] - other["value"], more

    return in_each_run(kind, effect)


def above_half(run: Run) -> Effect:
    """By how much the drop is larger on the object than beside it in more images than by a coin."""
    value = run.value("drop_larger_on_object")
    return None if value is None else (value - 50, {})


def part_consistency(layer: str, control: str) -> Samples:
    """By how much hiding a part changes features more alike than hiding a control: mean over the parts of Table 1."""

    def effect(run: Run) -> Effect:
        above, parts = run.value(f"{control}/{layer}"), [run.value(f"{part}/{layer}") for part in PARTS]
        return None if above is None or None in parts else (above - fmean(parts), {})

    return in_each_run("correspondence", effect)


def pretraining_gain(sizes: slice) -> Samples:
    """Accuracy by pretraining, mean over some of the numbers of training images per class, ascending."""

    def effect(run: Run) -> Effect:
        names = [re.fullmatch(r"gain/(\d+)/accuracy", name) for name in run.metrics]
        by_size = {int(match[1]): run.metric(match[0]) for match in names if match and run.metric(match[0])}
        gains = [by_size[size] for size in sorted(by_size)][sizes]
        if not gains:
            return None
        folds = [folds_of(gain) for gain in gains]
        alike = len({len(values) for values in folds}) == 1 and len(folds[0]) > 1
        more = _over_folds([fmean(values) for values in zip(*folds, strict=True)]) if alike else {}
        return fmean(gain["value"] for gain in gains), more

    return in_each_run("transfer", effect)


def gain_over_best_scratch(runs: Sequence[Run]) -> Iterator[Sample]:
    """Accuracy by pretraining over the best of all that learned from scratch from the same images.

    Mean over the numbers of training images per class for which there is one, in any of the runs; over the folds.
    """
    known = [score for score in scores(runs) if score.way in ("pretrained", "scratch")]
    by_run: dict[str, list[list[float]]] = {}
    for score in known:
        found = over_best(score, known) if score.way == "pretrained" else None
        if found is not None:
            by_run.setdefault(score.run.folder, []).append(found[0])
    for run in runs:
        if gains := by_run.get(run.folder):
            alike = len({len(values) for values in gains}) == 1 and len(gains[0]) > 1
            more = _over_folds([fmean(values) for values in zip(*gains, strict=True)]) if alike else {}
            yield _sample(run, fmean(map(fmean, gains)), **more)


def ensemble_gain(run: Run) -> Effect:
    """What the whole is better than its best member, with ten crops if they were made."""
    metric = run.metric("gain/top1_error_ten_crops") or run.metric("gain/top1_error")
    if not metric:
        return None
    interval = metric.get("interval")
    if not isinstance(interval, list) or len(interval) != 2 or not all(map(is_number, interval)):
        return metric["value"], {}
    return metric["value"], {"interval": tuple(interval), "how": "bootstrap over the images of one ensemble"}


def _over_folds(values: Sequence[float]) -> dict[str, Any]:
    return {"interval": t_interval(values), "how": f"t over {len(values)} folds of one network"}


def between_stems(value: Callable[[Run], float | None]) -> Samples:
    """Krizhevsky's first layer, 11x11 at stride 4, minus that of Fig. 3, 7x7 at stride 2."""
    sides = {(11, 4): "minuend", (7, 2): "subtrahend"}
    return between_twins(
        r"model\.conv[12]\.(kernel_size|stride|padding)",  # conv2 keeps the total stride, see conf/model/stem
        lambda facts: sides.get((facts.get("model.conv1.kernel_size"), facts.get("model.conv1.stride"))),
        value,
    )


def dead_share(layers: str) -> Callable[[Run], float | None]:
    """Percent of the maps of some layers that are dead."""

    def value(run: Run) -> float | None:
        metrics = [run.metric(name) for name in run.metrics if re.fullmatch(rf"{layers}/dead_maps", name)]
        counts = [(metric["value"], re.fullmatch(r"of (\d+)", str(metric.get("unit")))) for metric in metrics if metric]
        total = sum(int(match[1]) for _, match in counts if match)
        return 100 * sum(dead for dead, match in counts if match) / total if total else None

    return value


def share_of_noise(run: Run) -> float | None:
    """Energy beyond the first layer's stride in percent of what white noise has there, 1 - 1 / stride ** 2."""
    beyond, stride = run.value("conv1/energy_beyond_stride"), run.networks[0].facts.get("model.conv1.stride", 1)
    return None if beyond is None or stride == 1 else beyond / (1 - 1 / stride**2)


def minus_middle_energy(run: Run) -> float | None:
    """Energy of middle frequencies, negative: of it more is better."""
    value = run.value("conv1/middle_frequency_energy")
    return None if value is None else -value
