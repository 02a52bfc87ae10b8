"""The paper's claims as measured statements: an effect with its interval, and whether it bears the claim out.

Every effect is signed so that it is above 0 where the paper is right. A claim *holds* if the whole 95 % interval of its
first measure lies above 0, *does not hold* if it lies below 0, and is *undecided* otherwise, or where there is none.
The intervals are Student's t over networks of differing seed; with a single network, over its folds or images.

Source: Zeiler & Fergus (2014); which section, each claim says. Effects, intervals and verdicts are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from zfscope.report.effects import (
    Samples,
    above_half,
    between_stems,
    between_twins,
    dead_share,
    difference,
    ensemble_gain,
    in_each_run,
    minus_middle_energy,
    part_consistency,
    pretraining_gain,
    share_of_noise,
)
from zfscope.report.ledger import Line, lines
from zfscope.report.readings import Run

HOLDS, DOES_NOT, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"


@dataclass(frozen=True)
class Measure:
    """One way to measure a claim."""

    name: str  # what is subtracted from what
    samples: Samples  # yields the effect in runs
    unit: str = "% points"  # of the effect


@dataclass(frozen=True)
class Claim:
    """What the paper claims."""

    statement: str  # the claim
    paper: str  # its evidence there
    measured: str  # what exactly we measured
    caveat: str  # what else could bring the effect about, and what we know of it
    measures: tuple[Measure, ...]  # the first decides


@dataclass(frozen=True)
class Finding:
    """A claim as measured."""

    claim: Claim  # the claim
    verdict: str  # ``holds``, ``does not hold``, ``undecided`` or ``not run``
    results: tuple[tuple[Measure, tuple[Line, ...]], ...]  # for each measure, a line for each condition


def measure(runs: Sequence[Run]) -> list[Finding]:
    """Every claim with its verdict, from what runs measured."""
    usable = [run for run in runs if run.usable]
    findings = []
    for claim in CLAIMS:
        results = tuple((measure, lines(measure.samples(usable))) for measure in claim.measures)
        findings.append(Finding(claim, overall(results[0][1]), results))
    return findings


def verdict(line: Line) -> str:
    """Of one effect: by the side of 0 on which its interval lies."""
    if line.interval is None:
        return UNDECIDED
    low, high = line.interval
    return HOLDS if low > 0 else DOES_NOT if high < 0 else UNDECIDED


def overall(effects: Sequence[Line]) -> str:
    """Of a claim: what all conditions agree on that have an interval; those of the paper's own, if there are any."""
    if not effects:
        return NOT_RUN
    own = [line for line in effects if not line.stand_in] or effects
    verdicts = {verdict(line) for line in own if line.interval is not None}
    return verdicts.pop() if len(verdicts) == 1 else UNDECIDED


DISTANCE = "of the distance to another image"

MEASURES = {
    "convergence": (
        Measure(
            "epoch at which conv5 settles, minus conv1's",
            difference("evolution", "conv5/settled", "conv1/settled"),
            "epochs",
        ),
        Measure(
            "lack of agreement, mean over training, conv5 minus conv1",
            difference("evolution", "conv5/unsettled", "conv1/unsettled"),
        ),
    ),
    "invariance": tuple(
        Measure(f"{kind}, conv1 minus fc7", difference("invariance", f"{kind}/conv1", f"{kind}/fc7"), DISTANCE)
        for kind in ("translation", "scale", "rotation")
    ),
    "occlusion": (
        Measure(
            "largest drop on the object, minus chance",
            difference("occlusion", "largest_drop_in_mask", "largest_drop_in_mask_by_chance"),
        ),
        Measure(
            "images whose drop is larger on the object than beside it, minus 50", in_each_run("occlusion", above_half)
        ),
    ),
    "correspondence": (
        Measure("random masks minus parts, conv5", part_consistency("conv5", "random")),
        Measure("random masks minus parts, fc7", part_consistency("fc7", "random")),
        Measure("masks at one place minus parts, conv5", part_consistency("conv5", "same_place")),
        Measure("masks at one place minus parts, fc7", part_consistency("fc7", "same_place")),
    ),
    "probes": (
        Measure("SVM, fc7 minus conv1", difference("probes", "svm/fc7/accuracy", "svm/conv1/accuracy")),
        Measure("SVM, conv5 minus conv1", difference("probes", "svm/conv5/accuracy", "svm/conv1/accuracy")),
        Measure("SVM, fc7 minus conv5", difference("probes", "svm/fc7/accuracy", "svm/conv5/accuracy")),
    ),
    "dead_features": (
        Measure("dead maps of all conv layers, 11x11/4 minus 7x7/2", between_stems(dead_share(r"conv\d"))),
        Measure("dead maps of conv1, 11x11/4 minus 7x7/2", between_stems(dead_share("conv1"))),
    ),
    "aliasing": (
        Measure("energy beyond the stride, of white noise's, 11x11/4 minus 7x7/2", between_stems(share_of_noise)),
        Measure(
            "energy beyond the stride, 11x11/4 minus 7x7/2",
            between_stems(lambda run: run.value("conv1/energy_beyond_stride")),
        ),
        Measure("energy of middle frequencies, 7x7/2 minus 11x11/4", between_stems(minus_middle_energy)),
    ),
    "renormalisation": (
        Measure(
            "largest over median filter RMS, without minus with",
            between_twins(
                r"model\.filter_rms",
                lambda facts: "minuend" if facts.get("model.filter_rms") is None else "subtrahend",
                lambda run: run.value("conv1/filter_dominance"),
            ),
            "times the median",
        ),
    ),
    "pretraining": (
        Measure("pretrained minus scratch, mean over sizes", pretraining_gain(slice(None))),
        Measure("the same, fewest images per class", pretraining_gain(slice(1))),
        Measure("the same, most images per class", pretraining_gain(slice(-1, None))),
        Measure(
            "PASCAL VOC, mean average precision",
            difference("transfer", "pretrained/mean_average_precision", "scratch/mean_average_precision"),
        ),
    ),
    "ensemble": (Measure("best member minus ensemble", in_each_run("ensemble", ensemble_gain)),),
}

TEXTS = yaml.safe_load(Path(__file__).with_name("templates").joinpath("claims.yaml").read_text("utf-8"))
CLAIMS = tuple(Claim(**TEXTS[name], measures=measures) for name, measures in MEASURES.items())
