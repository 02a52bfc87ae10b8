"""The paper's claims as measured statements: an effect with its interval, and whether it bears the claim out.

Every effect is signed so that it is above 0 where the paper is right. A claim *holds* if the whole 95 % interval of its
first measure lies above 0, *does not hold* if it lies below 0, and is *undecided* otherwise, or where there is none.
The intervals are Student's t over networks of differing seed; with a single network, over its folds or images.

Source: Zeiler & Fergus (2014); which section, each claim says. Effects, intervals and verdicts are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from zfscope.report.conditions import Sample, key_without, sample_of
from zfscope.report.ledger import Line, lines, t_interval
from zfscope.report.readings import Run, folds_of, is_number

HOLDS, DOES_NOT, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"

PARTS = ("right_eye", "left_eye", "nose")  # those of Table 1

FIG_3, KRIZHEVSKY = "7x7/2", "11x11/4"

# An effect with what spread and interval it brings along.
Effect = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    """One way to measure a claim.

    Attributes:
        name: What is subtracted from what.
        unit: Of the effect.
        samples: Finds the effect in runs.
    """

    name: str
    unit: str
    samples: Callable[[Sequence[Run]], Iterator[Sample]]


@dataclass(frozen=True)
class Claim:
    """What the paper claims.

    Attributes:
        statement: The claim.
        paper: Its evidence there.
        measured: What exactly we measured.
        caveat: What else could bring the effect about, and what we know of it.
        measures: The first decides.
    """

    statement: str
    paper: str
    measured: str
    caveat: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Finding:
    """A claim with what was found.

    Attributes:
        claim: The claim.
        verdict: ``holds``, ``does not hold``, ``undecided`` or ``not run``.
        found: For each measure, a line for each condition.
    """

    claim: Claim
    verdict: str
    found: tuple[tuple[Measure, tuple[Line, ...]], ...]


def measure(runs: Sequence[Run]) -> list[Finding]:
    """Every claim with its verdict, from what runs found."""
    usable = [run for run in runs if run.usable]
    findings = []
    for claim in CLAIMS:
        found = tuple((each, lines(each.samples(usable))) for each in claim.measures)
        findings.append(Finding(claim, overall(found[0][1]), found))
    return findings


def verdict(line: Line) -> str:
    """Of one effect: by the side of 0 on which its interval lies."""
    if line.interval is None:
        return UNDECIDED
    low, high = line.interval
    return HOLDS if low > 0 else DOES_NOT if high < 0 else UNDECIDED


def overall(found: Sequence[Line]) -> str:
    """Of a claim: what all conditions agree on that have an interval; those of the paper's own, if there are any."""
    if not found:
        return NOT_RUN
    own = [line for line in found if not line.stand_in] or found
    verdicts = {verdict(line) for line in own if line.interval is not None}
    return verdicts.pop() if len(verdicts) == 1 else UNDECIDED


def _in(kind: str, effect: Callable[[Run], Effect | None]) -> Callable[[Sequence[Run]], Iterator[Sample]]:
    """The effect in every run of one analysis that has it."""

    def samples(runs: Sequence[Run]) -> Iterator[Sample]:
        for run in runs:
            found = effect(run) if run.kind == kind else None
            if found is not None:
                value, more = found
                yield sample_of(run, value, data=_papers_data(run), **more)

    return samples


def _between(
    fact: str, large: Callable[[Any], bool], small: Callable[[Any], bool], value: Callable[[Run], float | None]
) -> Callable[[Sequence[Run]], Iterator[Sample]]:
    """A difference between two networks that were trained alike, seed included, but for one fact: large minus small."""

    def samples(runs: Sequence[Run]) -> Iterator[Sample]:
        pairs: dict[str, tuple[list[Run], list[Run]]] = {}
        for run in runs:
            if run.kind != "diagnostics" or fact not in run.trained:
                continue
            sides = [fits(run.trained[fact]) for fits in (large, small)]
            if any(sides) and value(run) is not None:
                pairs.setdefault(key_without(run, fact), ([], []))[sides.index(True)].append(run)
        for larger, smaller in pairs.values():
            if larger and smaller:
                difference = fmean(map(value, larger)) - fmean(map(value, smaller))
                for run in (*larger, *smaller):
                    yield _as(smaller[0], run, difference)

    def _as(shown: Run, run: Run, difference: float) -> Sample:
        """The pair's effect under the condition of its second network; said by both runs, so that both are named."""
        sample = sample_of(shown, difference, data=_papers_data(shown))
        return Sample(**{**vars(sample), "folder": run.folder})

    return samples


def _papers_data(run: Run) -> str | None:
    """The paper's data set for an analysis; None where it cannot be had."""
    if run.kind == "correspondence":
        return None
    if run.kind in ("transfer", "probes"):
        own = run.conditions.get("data")
        return own if own in ("caltech101", "caltech256", "voc2012") else "caltech101"
    return "imagenet"


def _difference(first: str, second: str) -> Callable[[Run], Effect | None]:
    """One metric minus another; over folds, where both have them."""

    def effect(run: Run) -> Effect | None:
        one, other = run.metric(first), run.metric(second)
        if not one or not other:
            return None
        folds = folds_of(one), folds_of(other)
        paired = len(folds[0]) == len(folds[1]) > 1
        return one["value"] - other["value"], _over_folds(
            [a - b for a, b in zip(*folds, strict=True)]
        ) if paired else {}

    return effect


def _alone(name: str, null: float = 0.0) -> Callable[[Run], Effect | None]:
    """One metric above what would say nothing."""
    return lambda run: (run.value(name) - null, {}) if run.metric(name) else None


def _negative(name: str) -> Callable[[Run], float | None]:
    """A metric of which more is better, so that the difference is above 0 where the paper is right."""
    return lambda run: -run.value(name) if run.metric(name) else None


def _consistency(layer: str, control: str) -> Callable[[Run], Effect | None]:
    """By how much hiding a part changes features more alike than hiding a control: mean over the parts of Table 1."""

    def effect(run: Run) -> Effect | None:
        above, parts = run.value(f"{control}/{layer}"), [run.value(f"{part}/{layer}") for part in PARTS]
        return None if above is None or None in parts else (above - fmean(parts), {})

    return effect


def _gain(choose: Callable[[Sequence[int]], Sequence[int]]) -> Callable[[Run], Effect | None]:
    """Accuracy by pretraining, mean over some of the numbers of training images per class."""

    def effect(run: Run) -> Effect | None:
        names = [re.fullmatch(r"gain/(\d+)/accuracy", name) for name in run.metrics]
        gains = {int(match[1]): run.metric(match[0]) for match in names if match and run.metric(match[0])}
        if not gains:
            return None
        chosen = [gains[size] for size in choose(sorted(gains))]
        folds = [folds_of(each) for each in chosen]
        alike = len({len(each) for each in folds}) == 1 and len(folds[0]) > 1
        more = _over_folds([fmean(values) for values in zip(*folds, strict=True)]) if alike else {}
        return fmean(each["value"] for each in chosen), more

    return effect


def _ensemble(run: Run) -> Effect | None:
    """What the whole is better than its best member, with ten crops if they were made."""
    metric = run.metric("gain/top1_error_ten_crops") or run.metric("gain/top1_error")
    if not metric:
        return None
    interval = metric.get("interval")
    if not isinstance(interval, list) or len(interval) != 2 or not all(map(is_number, interval)):
        return metric["value"], {}
    return metric["value"], {"interval": tuple(interval), "how": "bootstrap over the images of one ensemble"}


def _dead_share(layers: str) -> Callable[[Run], float | None]:
    """Percent of the maps of some layers that are dead."""

    def value(run: Run) -> float | None:
        found = [run.metric(name) for name in run.metrics if re.fullmatch(rf"{layers}/dead_maps", name)]
        counts = [(each["value"], re.fullmatch(r"of (\d+)", str(each.get("unit")))) for each in found if each]
        total = sum(int(match[1]) for _, match in counts if match)
        return 100 * sum(dead for dead, match in counts if match) / total if total else None

    return value


def _of_noise(run: Run) -> float | None:
    """Energy beyond the first layer's stride in percent of what white noise has there, 1 - 1 / stride ** 2."""
    beyond, stride = run.value("conv1/energy_beyond_stride"), int(run.trained["stem"].rpartition("/")[2])
    return None if beyond is None or stride == 1 else beyond / (1 - 1 / stride**2)


def _over_folds(values: Sequence[float]) -> dict[str, Any]:
    return {"interval": t_interval(values), "how": f"t over {len(values)} folds of one network"}


POINTS, DISTANCE = "% points", "of the distance to another image"

STEMS = ("stem", lambda stem: stem == KRIZHEVSKY, lambda stem: stem == FIG_3)

RADIUS = ("filter_rms", lambda radius: radius is None, lambda radius: radius is not None)

CLAIMS = (
    Claim(
        statement="Lower layers converge first.",
        paper="Sec. 4.1, Fig. 4: lower layers within a few epochs, upper ones after 40 to 50.",
        measured="The epoch from which a layer's feature maps agree (correlation, same images and places) by 0.9 or "
        "more with those of the last epoch kept: conv5's minus conv1's.",
        caveat="A layer that hardly learns is settled from the start, and by construction all are at the end: in a "
        "short training this compares layers, it does not say that any has converged.",
        measures=(
            Measure(
                "epoch at which conv5 settles, minus conv1's",
                "epochs",
                _in("evolution", _difference("conv5/settled", "conv1/settled")),
            ),
            Measure(
                "lack of agreement, mean over training, conv5 minus conv1",
                POINTS,
                _in("evolution", _difference("conv5/unsettled", "conv1/unsettled")),
            ),
        ),
    ),
    Claim(
        statement="Invariance grows with depth.",
        paper="Sec. 4.1, Fig. 5: large changes at layer 1, small and nearly linear ones at layer 7 for translation and"
        " scale.",
        measured="How far features move when images are shifted, enlarged or turned, mean over amounts and images: "
        "conv1's minus fc7's, in distances to another image at the same layer.",
        caveat="A network that was never trained nearly passes too; what training adds is that the distance goes on "
        "falling above conv4. True of the mean: every fourth image that is enlarged or turned far ends farther "
        "off at fc7 (docs/invariance.md).",
        measures=tuple(
            Measure(
                f"{kind}, conv1 minus fc7", DISTANCE, _in("invariance", _difference(f"{kind}/conv1", f"{kind}/fc7"))
            )
            for kind in ("translation", "scale", "rotation")
        ),
    ),
    Claim(
        statement="Covering the object matters.",
        paper="Sec. 4.2, Fig. 7: the class's probability falls where the object is covered, so the network does find "
        "it.",
        measured="Of the images classified rightly, the share whose largest drop in probability has the square's "
        "centre on the object, minus the share of all positions that lie there.",
        caveat="Needs data that know where the object is (the phantom). A grey square is itself something to see "
        "(docs/occlusion.md).",
        measures=(
            Measure(
                "largest drop on the object, minus chance",
                POINTS,
                _in("occlusion", _difference("largest_drop_in_mask", "largest_drop_in_mask_by_chance")),
            ),
            Measure(
                "images whose drop is larger on the object than beside it, minus 50",
                POINTS,
                _in("occlusion", _alone("drop_larger_on_object", 50)),
            ),
        ),
    ),
    Claim(
        statement="Parts correspond.",
        paper="Sec. 4.3, Table 1: hiding an eye or the nose changes features more alike in all images than random "
        "masks do, at layer 5.",
        measured="Mean feature sign change of random masks minus that of right eye, left eye and nose (mean of the "
        "three), at conv5.",
        caveat="At conv5 much of it is place: against masks at one place in all images no part was lower with twenty "
        "faces; at fc7 eyes and nose stay below that control too (docs/correspondence.md).",
        measures=(
            Measure("random masks minus parts, conv5", POINTS, _in("correspondence", _consistency("conv5", "random"))),
            Measure("random masks minus parts, fc7", POINTS, _in("correspondence", _consistency("fc7", "random"))),
            Measure(
                "masks at one place minus parts, conv5",
                POINTS,
                _in("correspondence", _consistency("conv5", "same_place")),
            ),
            Measure(
                "masks at one place minus parts, fc7", POINTS, _in("correspondence", _consistency("fc7", "same_place"))
            ),
        ),
    ),
    Claim(
        statement="Probes improve with depth.",
        paper="Sec. 5.3, Table 7: SVM accuracy from 44.8 % on layer 1 to 86.2 and 85.5 % on layers 5 and 7 "
        "(Caltech-101).",
        measured="Accuracy of a linear SVM on features that another data set trained: fc7's minus conv1's.",
        caveat="The two ends, not every step: in the paper too the last one, from layer 5 to 7, is down on Caltech-101"
        " and up on Caltech-256.",
        measures=(
            Measure(
                "SVM, fc7 minus conv1", POINTS, _in("probes", _difference("svm/fc7/accuracy", "svm/conv1/accuracy"))
            ),
            Measure(
                "SVM, conv5 minus conv1", POINTS, _in("probes", _difference("svm/conv5/accuracy", "svm/conv1/accuracy"))
            ),
            Measure(
                "SVM, fc7 minus conv5", POINTS, _in("probes", _difference("svm/fc7/accuracy", "svm/conv5/accuracy"))
            ),
        ),
    ),
    Claim(
        statement="Smaller filters and stride leave fewer dead features.",
        paper="Sec. 4.1, Fig. 6 (b, c): Krizhevsky's first layer, 11x11 at stride 4, against 7x7 at stride 2.",
        measured="Share of the conv layers' feature maps without an activation above 0 in any image: 11x11/4 minus "
        "7x7/2, pairs of one seed.",
        caveat="The stem alone is changed. Longer trainings here had rather more dead maps with the smaller stem "
        "(docs/diagnostics.md).",
        measures=(
            Measure(
                "dead maps of all conv layers, 11x11/4 minus 7x7/2", POINTS, _between(*STEMS, _dead_share(r"conv\d"))
            ),
            Measure("dead maps of conv1, 11x11/4 minus 7x7/2", POINTS, _between(*STEMS, _dead_share("conv1"))),
        ),
    ),
    Claim(
        statement="Smaller filters and stride leave fewer aliased features.",
        paper="Sec. 4.1, Fig. 6 (d, e): aliasing from stride 4; filters of very high and low frequencies with little "
        "between.",
        measured="Energy of conv1's filters beyond what their stride carries, which the subsampling folds back, as a "
        "share of what white noise has there: 11x11/4 minus 7x7/2, median over filters, pairs of one seed.",
        caveat="Of white noise 94 % lies beyond stride 4 and 75 % beyond stride 2: filters that have learned nothing "
        "differ by 19 points, so the energy itself, the second measure, says little after a short training "
        "(docs/diagnostics.md).",
        measures=(
            Measure(
                "energy beyond the stride, of white noise's, 11x11/4 minus 7x7/2", POINTS, _between(*STEMS, _of_noise)
            ),
            Measure(
                "energy beyond the stride, 11x11/4 minus 7x7/2",
                POINTS,
                _between(*STEMS, lambda run: run.value("conv1/energy_beyond_stride")),
            ),
            Measure(
                "energy of middle frequencies, 7x7/2 minus 11x11/4",
                POINTS,
                _between(*STEMS, _negative("conv1/middle_frequency_energy")),
            ),
        ),
    ),
    Claim(
        statement="Renormalisation keeps filters from dominating.",
        paper="Sec. 3, Fig. 6 (a): without it a few first-layer filters dominate.",
        measured="Largest RMS of conv1's filters over their median: trained without the radius minus with it, pairs of"
        " one seed.",
        caveat="Where no filter reaches the radius the two are one network and the effect is exactly 0. The radius of "
        "the small networks (0.125 at inputs of unit variance) is ours; the paper's is 0.1 at inputs of about +-128.",
        measures=(
            Measure(
                "largest over median filter RMS, without minus with",
                "times the median",
                _between(*RADIUS, lambda run: run.value("conv1/filter_dominance")),
            ),
        ),
    ),
    Claim(
        statement="Pretrained beats scratch.",
        paper="Sec. 5.2, Tables 4 and 5, Fig. 9: 83.8 against 22.8 % on Caltech-101 with 15 images per class.",
        measured="Mean accuracy per class with frozen pretrained layers and a new softmax minus that of the same "
        "network trained from scratch on the same images; mean over the numbers of training images per class.",
        caveat="What pretraining saw and what is learned then may be alike (a stand-in holds out classes of one data "
        "set). Training from scratch has its own recipe: the pretraining run's.",
        measures=(
            Measure("pretrained minus scratch, mean over sizes", POINTS, _in("transfer", _gain(lambda sizes: sizes))),
            Measure("the same, fewest images per class", POINTS, _in("transfer", _gain(lambda sizes: sizes[:1]))),
            Measure("the same, most images per class", POINTS, _in("transfer", _gain(lambda sizes: sizes[-1:]))),
            Measure(
                "PASCAL VOC, mean average precision",
                POINTS,
                _in("transfer", _difference("pretrained/mean_average_precision", "scratch/mean_average_precision")),
            ),
        ),
    ),
    Claim(
        statement="The ensemble beats its best member.",
        paper="Table 2: six nets 36.0 %, the best of them alone 37.5 %.",
        measured="Top-1 error of the best member minus that of all averaged, on the same images.",
        caveat="The best member was picked on the same images, in its favour. The interval is over images: other seeds"
        " are not in it.",
        measures=(Measure("best member minus ensemble", POINTS, _in("ensemble", _ensemble)),),
    ),
)
