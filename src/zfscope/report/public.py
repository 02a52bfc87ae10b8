"""What public networks see, beside our own: one line for each network and condition, averaged with none.

They have no training of ours, so none of the paper's numbers is theirs; but each layer by layer, and beside the same
architecture with random weights where an analysis has that control, they show what ImageNet taught.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zfscope.report.conditions import papers_own, sample_of, spread_of
from zfscope.report.ledger import Line, lines
from zfscope.report.readings import Run

# What is measured, where (a layer, or which of several), the metric.
Entry = tuple[str, str, str]
SHARES = {"svm": "linear SVM", "softmax": "softmax"}
PARTS = {"right_eye": "right eye", "left_eye": "left eye", "nose": "nose"}
LAYERS = "by layer, the lowest first"
MASKS = {"random": "random masks", "same_place": "masks at one place"}
RANDOM = "_random_weights"  # the end of the names of the control's numbers
WAYS = {"": "", RANDOM: ", random weights"}


@dataclass(frozen=True)
class PublicRow:
    """One measure of one network under one condition."""

    network: str
    measure: str
    cells: tuple[tuple[str, Line], ...]  # by layer, the lowest first, or by what else is told apart


@dataclass(frozen=True)
class PublicTable:
    """One analysis."""

    title: str
    about: str
    places: str  # what the cells of a row stand for
    rows: tuple[PublicRow, ...]


def public_tables(runs: Iterable[Run]) -> list[PublicTable]:
    """A table for each analysis that looked at a public network."""
    tables = []
    runs = [run for run in runs if run.usable and is_public(run)]
    for kind, (title, about, entries) in _KINDS.items():
        rows = list(_rows([run for run in runs if run.kind == kind], entries))
        if rows:
            tables.append(PublicTable(title, about, "" if kind == "occlusion" else LAYERS, tuple(rows)))
    return tables


def is_public(run: Run) -> bool:
    """Whether it looked at one network, which others trained."""
    facts = run.networks[0].facts
    return len(run.networks) == 1 and "weights" in facts and set(facts) <= {"weights", "weights_file"}


def _rows(runs: Sequence[Run], entries: Callable[[Run], Iterator[Entry]]) -> Iterator[PublicRow]:
    by_condition: dict[tuple[str, str], dict[str, dict[str, list]]] = {}
    for run in runs:
        data, rows = papers_own(run)
        for measure, place, name in entries(run):
            if metric := run.metric(name):
                sample = sample_of(run, metric["value"], data=data, rows=rows, **spread_of(metric))
                network = str(run.conditions.get("checkpoint"))
                cells = by_condition.setdefault((network, sample.key), {}).setdefault(measure, {})
                cells.setdefault(place, []).append(sample)
    # Of one network in the order of their folders.
    for (network, _), measures in sorted(by_condition.items(), key=lambda each: each[0][0]):
        for measure, cells in measures.items():
            yield PublicRow(
                network, measure, tuple((place, line) for place, samples in cells.items() for line in lines(samples))
            )


def _invariance(run: Run) -> Iterator[Entry]:
    for kind in ("translation", "scale", "rotation"):
        for way, words in WAYS.items():
            for layer, name in _by_layer(run, kind, way):
                if layer not in ("curve_below", "images_below", "probability"):
                    yield kind + words, layer, name


def _occlusion(run: Run) -> Iterator[Entry]:
    for way, words in WAYS.items():
        yield "drop of the class's probability, % points" + words, "mean", f"mean_drop{way}"
        yield "drop of the class's probability, % points" + words, "largest", f"largest_drop{way}"
        yield "another class is the most probable, % of positions" + words, "", f"other_class{way}"


def _correspondence(run: Run) -> Iterator[Entry]:
    for part, text in (PARTS | MASKS).items():
        for way, words in WAYS.items():
            for layer, name in _by_layer(run, part, way):
                if not name.endswith(("_above", "/changed")):
                    yield text + words, layer, name


def _by_layer(run: Run, prefix: str, way: str) -> Iterator[tuple[str, str]]:
    """Layer and metric of those named ``prefix/<layer>`` of one way: of the network, or of the control."""
    for name in run.metrics:
        match = re.fullmatch(rf"{prefix}/(.+?)({RANDOM})?", name)
        if match and (match[2] or "") == way:
            yield match[1], name


def _probes(run: Run) -> Iterator[Entry]:
    for way, words in WAYS.items():
        for classifier, text in SHARES.items():
            for name in run.metrics:
                if match := re.fullmatch(rf"{classifier}/(.+)/accuracy{way}", name):
                    yield text + words, match[1], name


def _embedding(run: Run) -> Iterator[Entry]:
    yield "pixels", "", "pixels/same_class"
    for way, text in {"": "trained", RANDOM: "random weights"}.items():
        for name in run.metrics:
            match = re.fullmatch(rf"(.+)/same_class{way}", name)
            if match and match[1] != "pixels":
                yield text, match[1], name


_KINDS: dict[str, tuple[str, str, Callable[[Run], Iterator[Entry]]]] = {
    "invariance": (
        "Invariance",
        "How far features move when images do, as a share of the distance to another image at that layer.",
        _invariance,
    ),
    "occlusion": ("Occlusion", "What happens to the image's class while a grey square covers parts of it.", _occlusion),
    "correspondence": (
        "Correspondence",
        "How unlike features change in two images where a part is hidden, in % of their signs: lower is more alike.",
        _correspondence,
    ),
    "probes": (
        "Probes by depth",
        "Accuracy of a linear classifier on each layer's features, in %, and on those of random weights.",
        _probes,
    ),
    "embedding": (
        "Neighbours by depth",
        "Share, in %, of an image's nearest neighbours that are of its class, by each layer's features.",
        _embedding,
    ),
}
