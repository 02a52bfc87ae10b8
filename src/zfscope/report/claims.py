"""The paper's claims as measured statements: an effect with its interval, and whether it bears the claim out.

Every effect is signed so that it is above 0 where the paper is right. There is *no effect above the margin* where the
whole 95 % interval of a claim's first measure lies within the margin on both sides of 0; else the claim *holds* if it
lies above 0, *does not hold* if it lies below 0, and is *undecided* otherwise, or where there is none. What is measured
on the paper's own data decides; of stand-ins the runs that the claim's design names, if there are any.
The intervals are Student's t over networks of differing seed; with a single network, over its folds or images.

Source: Zeiler & Fergus (2014); which section, each claim says. Effects, intervals and verdicts are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from zfscope.report.conditions import Sample
from zfscope.report.designs import NOT_RUN, UNDECIDED, Design, verdict
from zfscope.report.effects import (
    Samples,
    above_half,
    between_stems,
    between_twins,
    dead_share,
    difference,
    ensemble_gain,
    gain_over_best_scratch,
    in_each_run,
    minus_middle_energy,
    part_consistency,
    pretraining_gain,
    share_of_noise,
)
from zfscope.report.ledger import Line, lines
from zfscope.report.readings import Run


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
    design: Design  # what was fixed before the runs that decide
    measures: tuple[Measure, ...]  # the first decides


@dataclass(frozen=True)
class Finding:
    """A claim as measured."""

    claim: Claim  # the claim
    results: tuple[tuple[Measure, tuple[Line, ...]], ...]  # for each measure, a line for each condition
    deciding: tuple[Line, ...]  # those of the first measure that decide
    missing: tuple[int, ...] = ()  # seeds of the design that were not run, where others were

    @property
    def verdict(self) -> str:
        """What all conditions that decide agree on, of those with an interval, once all seeds of a design are run."""
        if not self.results[0][1]:
            return NOT_RUN
        if self.missing:
            return UNDECIDED
        verdicts = {self.verdict_of(line) for line in self.deciding if line.interval is not None}
        return verdicts.pop() if len(verdicts) == 1 else UNDECIDED

    @property
    def told(self) -> tuple[Line, ...]:
        """What a summary must show: the lines that decide, and every other that says something else."""
        others = [line for line in self.results[0][1] if line.interval is not None and line not in self.deciding]
        return (*self.deciding, *(line for line in others if self.verdict_of(line) != self.verdict))

    def verdict_of(self, line: Line, measure: Measure | None = None) -> str:
        """Of one line; only the first measure has a margin."""
        first = measure is None or measure is self.claim.measures[0]
        return verdict(line.interval, self.claim.design.margin if first else 0.0)


def measure(runs: Sequence[Run]) -> list[Finding]:
    """Every claim with its verdict, from what runs measured."""
    usable = [run for run in runs if run.usable]
    return [_finding(claim, usable) for claim in CLAIMS]


def _finding(claim: Claim, runs: Sequence[Run]) -> Finding:
    design = claim.design
    samples = [list(_by_design(design, measure.samples(runs))) for measure in claim.measures]
    results = tuple((measure, lines(found)) for measure, found in zip(claim.measures, samples, strict=True))
    everything = results[0][1]
    own = tuple(line for line in everything if not line.stand_in)
    designed = lines(sample for sample in samples[0] if sample.stand_in and design.decides(sample))
    missing = design.missing(samples[0]) if designed and not own else ()
    return Finding(claim, results, own or designed or everything, missing)


def _by_design(design: Design, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Stand-ins under the condition of a design whose seeds are not of it, such as those that chose it, stand apart."""
    for sample in samples:
        apart = sample.stand_in and design.fits(sample) and not design.decides(sample)
        more = {"key": f"{sample.key} apart", "condition": f"{sample.condition}; seeds that do not decide"}
        yield replace(sample, **more) if apart else sample


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
        Measure("pretrained minus the best of all from scratch, mean over sizes", gain_over_best_scratch),
        Measure(
            "PASCAL VOC, mean average precision",
            difference("transfer", "pretrained/mean_average_precision", "scratch/mean_average_precision"),
        ),
    ),
    "ensemble": (Measure("best member minus ensemble", in_each_run("ensemble", ensemble_gain)),),
}

TEXTS = yaml.safe_load(Path(__file__).with_name("templates").joinpath("claims.yaml").read_text("utf-8"))
DESIGNS = yaml.safe_load(Path(__file__).with_name("designs.yaml").read_text("utf-8"))
CLAIMS = tuple(
    Claim(**TEXTS[name], design=Design.of(DESIGNS[name]), measures=measures) for name, measures in MEASURES.items()
)
