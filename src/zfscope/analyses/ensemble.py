"""Softmax averaged over several networks: the error of each, of every subset and of all.

Source: Zeiler & Fergus (2014), Table 2: five networks of Fig. 3 and one with wider layers 3, 4, 5. Subsets, spreads and
intervals are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from zfscope.analyses.members import Member, architectures, member_sources
from zfscope.analyses.question import Metric, Question, Result, percent
from zfscope.data.loader import Loader
from zfscope.evaluation import (
    Canvases,
    Predictions,
    average,
    check_classes,
    error_metrics,
    error_table,
    gain_interval,
    label_ranks,
    predict_members,
    subset_errors,
    subsets,
)
from zfscope.figures import ensemble_figure
from zfscope.networks.ranks import own_batches
from zfscope.report.paper import TABLES
from zfscope.schema import listed

SUFFIXES = {"centre": "", "ten_crops": "_ten_crops"}
RANKS = {"top1_error": 1, "top5_error": 5}
# Rows of Table 2 by model and number of networks; validation errors by metric.
ROWS = {"zfnet": ("zfnet", 1), "zfnets": ("zfnet", 5), "zfnet_wide": ("zfnet_wide", 1)}
PAPER = {
    f"top{k}_error_ten_crops": {key: TABLES[1].value(row, f"val_top{k}") for row, key in ROWS.items()} for k in (1, 5)
}
PAPER_ALL = {f"top{k}_error_ten_crops": TABLES[1].value("six", f"val_top{k}") for k in (1, 5)}


def analyse(question: Question) -> Result:
    """The errors of all, of each, of subsets, and by architecture.

    All in percent, with the centre crop and, as ``…_ten_crops``, with ten; where an image may have several labels, mean
    average precision stands for the errors. ``<part>/top1_error`` … is the whole ensemble's, ``member/<name>/…`` each
    member's, ``size_<k>/…`` the mean over all subsets of k members, its spread their standard deviation.
    ``group/<architecture>/one_net/…`` is the mean over the members of one architecture, its spread their standard
    deviation (n - 1), and ``group/<architecture>/<n>_nets/…`` the error of these alone as an ensemble: Table 2's rows.
    ``gain/…`` is by how much the ensemble is better than its best member, with a 95 % interval by bootstrap over images
    (none for several labels). Which member is best was found on the same images, in that member's favour: the gain is
    rather larger. The interval says nothing about other seeds. ``members`` is how many took part, of how many.

    ``arrays.npz`` holds ``probabilities (members, N, classes)`` of ten crops, or of the centre crop where they were not
    asked for, ``labels`` and the members' names.
    """
    options, members = question.options, question.members
    sources, names = member_sources(question.checkpoint), [member.name for member in members]
    if options.members not in (None, len(members)):
        raise ValueError(
            f"analysis.members={options.members}, but checkpoint={_text(question.checkpoint)} gives {len(members)}: "
            f"{listed(names, 12)}; train the others or leave analysis.members out"
        )
    part, images = question.part, question.images
    for member in members:
        try:
            check_classes(member.network, images.classes)
        except ValueError as error:
            raise ValueError(f"{member.path}: {error}") from None
    networks = [member.network for member in members]
    batches = Loader(
        Canvases(images, [network.preprocessing.canvas_kind for network in networks]),
        **own_batches(len(images), options.batch_size),
        num_workers=question.data.num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    predictions = predict_members(networks, batches, crops=options.ten_crops, device=question.device)

    drawn = [subset for size in range(1, len(members) + 1) for subset in subsets(len(members), size)]
    groups = _groups(members)
    rows = drawn + [group for group in groups.values() if group not in drawn]  # a sample may lack them
    errors: dict[str, np.ndarray] = {}
    for kind in predictions[0].probabilities:
        table = subset_errors([member.probabilities[kind] for member in predictions], predictions[0].labels, rows)
        errors |= {f"{name}{SUFFIXES[kind]}": values for name, values in table.items()}
    absent = [source for source in sources if source not in {member.path for member in members}]
    metrics = {"members": {"value": len(members), "unit": f"of {len(sources)}", "absent": absent}}
    by_name = dict(zip(names, predictions, strict=True))
    metrics |= _metrics(by_name, groups, rows, len(drawn), errors, part, question.data.config.name)

    kind = "ten_crops" if options.ten_crops else "centre"
    shown = {
        name: values[: len(drawn)] for name, values in errors.items() if ("ten_crops" in name) == options.ten_crops
    }
    title = f"{_text(question.checkpoint)}: {len(images):,} {part} images, {kind.replace('_', ' ')}"
    sheet = ensemble_figure(drawn, shown, names, title=title)
    probabilities = np.stack([member.probabilities[kind].numpy() for member in predictions])
    arrays = {"probabilities": probabilities, "labels": predictions[0].labels.numpy(), "members": np.array(names)}
    return Result(metrics, arrays, {"ensemble": sheet})


def _groups(members: Sequence[Member]) -> dict[str, tuple[int, ...]]:
    """Positions of the members by architecture, in the order in which these come."""
    groups: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(architectures(members)):
        groups[name] = (*groups.get(name, ()), number)
    return groups


def _metrics(
    predictions: Mapping[str, Predictions],
    groups: Mapping[str, tuple[int, ...]],
    rows: Sequence[tuple[int, ...]],
    drawn: int,
    errors: Mapping[str, np.ndarray],
    part: str,
    data: str,
) -> dict[str, Metric]:
    whole = average(list(predictions.values()))
    known = PAPER if data == "imagenet" and part == "val" else {}
    all_six = known and {name: len(group) for name, group in groups.items()} == {"zfnet": 5, "zfnet_wide": 1}
    metrics = {name: _percent(value) for name, value in error_metrics(whole, part).items()}
    for member, own in predictions.items():
        metrics |= {name: _percent(value) for name, value in error_metrics(own, f"member/{member}").items()}
    sizes = np.array([len(subset) for subset in rows[:drawn]])  # what comes behind was not drawn for its size
    for name, values in errors.items():
        if all_six and name in PAPER_ALL:
            metrics[f"{part}/{name}"]["paper"] = PAPER_ALL[name]
        for size in range(1, len(predictions) + 1):
            own = values[:drawn][sizes == size]
            metrics[f"size_{size}/{name}"] = _percent(own.mean(), spread=float(own.std()), subsets=len(own))
    by_subset = {name: dict(zip(rows, values.tolist(), strict=True)) for name, values in errors.items()}
    for architecture, group in groups.items():
        for name, error_of in by_subset.items():
            paper = {count: value for (model, count), value in known.get(name, {}).items() if model == architecture}
            singles = np.array([error_of[number,] for number in group])
            spread = float(singles.std(ddof=1)) if len(group) > 1 else None
            metrics[f"group/{architecture}/one_net/{name}"] = _percent(singles.mean(), paper.get(1), spread=spread)
            if len(group) > 1:
                row = f"group/{architecture}/{len(group)}_nets/{name}"
                metrics[row] = _percent(error_of[group], paper.get(len(group)))
    gains = {name: _gain(predictions, whole, name, values[: len(predictions)]) for name, values in errors.items()}
    return metrics | {f"gain/{name}": gain for name, gain in gains.items()}


def _gain(predictions: Mapping[str, Predictions], whole: Predictions, name: str, singles: np.ndarray) -> dict[str, Any]:
    """The best member's error minus the ensemble's, and of a score the other way round: above 0 where it is better."""
    score, kind = name.removesuffix("_ten_crops"), "ten_crops" if name.endswith("_ten_crops") else "centre"
    together = error_table(whole.probabilities[kind], whole.labels)[score]
    if score not in RANKS:
        return _percent(together - singles.max(), best=list(predictions)[singles.argmax()])
    best = list(predictions)[singles.argmin()]
    wrong = (label_ranks(who.probabilities[kind], who.labels) >= RANKS[score] for who in (predictions[best], whole))
    return _percent(singles.min() - together, best=best, interval=list(gain_interval(*wrong)))


def _percent(value: float, paper: float | None = None, **more: Any) -> Metric:
    # None too: a member's run may know the paper's number for itself under the name that is the ensemble's here.
    return percent(value, paper=paper, **more)


def _text(checkpoint: str | Sequence[str]) -> str:
    return checkpoint if isinstance(checkpoint, str) else ", ".join(checkpoint)
