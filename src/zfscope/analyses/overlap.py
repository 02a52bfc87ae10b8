"""Which images of a data set also stand in another, and the list that ``data.exclude=`` takes.

Source: Zeiler & Fergus (2014), Sec. 5.2: 44 images of Caltech-101 and 243 of Caltech-256 stand in ImageNet's training
set, from which they were removed.
"""

import os
import warnings
from collections.abc import Sequence

import numpy as np

from zfscope.analyses.question import Question, Result
from zfscope.data.datamodule import open_data, workers_for
from zfscope.data.exclusions import exclusion_list
from zfscope.data.imageset import ImageSet, JoinedImages
from zfscope.data.quarantine import MANIFEST, counts, manifest
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.figures import Pair, overlap_sheet
from zfscope.files import table_text
from zfscope.protocols.overlap import Overlap, find_overlap
from zfscope.schema import check, printable

PAPER = {"caltech101": 44, "caltech256": 243}  # images of these that stand in ImageNet's training set


def analyse(question: Question) -> Result:
    """How many images stand in both sets, and which.

    ``exclude.txt`` names the images of the first set to leave out of its training (`zfscope.data.exclusions`).
    ``pairs.csv`` has a line for each pair that counts. ``arrays.npz`` holds all pairs that were kept, the most alike
    first: ``pairs (P, 2)`` positions in the joined parts of each set, ``correlation (P,)``, ``nearer (P,)``,
    ``same (P,)`` bool.
    """
    options, data = question.options, question.data
    named = {name: value for name, value in options.other.items() if value is not None}
    shared = {"cache": data.config.cache, "num_workers": data.config.num_workers, "batch_size": 1}
    other = check(DataConfig, {**shared, **named}, "analysis.other")
    parts = list(dict.fromkeys(options.parts))
    first, name = joined(data.splits, parts), f"{_called(data.config)}/{'+'.join(parts)}"
    splits = data.splits
    if _place(other) == _place(data.config):  # within one set: what of some parts stands in the others
        rest = [part for part in splits.parts if part not in parts]
        if not rest:
            raise ValueError(
                f"analysis.other is the data set itself, and analysis.parts=[{','.join(parts)}] leaves none of it to "
                "compare with; name fewer parts, or another data set"
            )
        second, other_name = joined(splits, rest), f"{_called(other)}/{'+'.join(rest)}"
    else:
        splits = open_data(other, "analysis.other")
        second, other_name = joined(splits, list(splits.parts)), _called(other)
    overlap = find_overlap(
        first,
        second,
        threshold=options.threshold,
        margin=options.margin,
        mirrored=options.mirrored,
        memory_gb=options.memory_gb,
        num_workers=max(workers_for(data.splits.train, data.config), workers_for(splits.train, other)),
        device=question.device,
        scratch=question.folder,
    )
    own = counts(data.splits)
    unread = sum(own[part] for part in parts)
    others = sum(counts(splits).values()) - (unread if splits is data.splits else 0)
    for count, called in zip((overlap.blank[0] - unread, overlap.blank[1] - others), (name, other_name), strict=True):
        if count:  # what cannot be read correlates with nothing either
            warnings.warn(f"{count} images of {called} are of one grey: they correlate with nothing", stacklevel=2)

    rule = f"correlation {options.threshold:g} or more, {options.margin:g} times nearer than other images"
    rule += ", mirror images too" if options.mirrored else ""
    doubles = np.unique(overlap.pairs[overlap.same, 0])
    keys = exclusions(data.splits, parts, first, doubles)
    files = {
        "exclude.txt": exclusion_list(keys, f"images of {name} that also stand in {other_name}: {rule}"),
        "pairs.csv": pairs_table(first, second, overlap),
    }
    if others and splits is not data.splits:
        files[f"other_{MANIFEST}"] = manifest(splits)
    title = f"Overlap of {name} ({len(first):,} images) and {other_name} ({len(second):,})"
    sheet = overlap_sheet(*shown_pairs(first, second, overlap, options.shown), title, f"copies: {rule}")
    is_papers = data.config.name == "imagenet" and parts == ["train"] and other.name in PAPER
    paper = {"paper": PAPER[other.name]} if is_papers else {}
    least, most = overlap.correlation[overlap.same], overlap.correlation[~overlap.same]
    metrics = {
        "overlap/images": {"value": len(first), "unit": "images"},
        "overlap/other_images": {"value": len(second), "unit": "images"},
        "overlap/pairs": {"value": int(overlap.same.sum()), "unit": "pairs"},
        "overlap/duplicates": {"value": len(doubles), "unit": "images"},
        "overlap/other_duplicates": {"value": len(np.unique(overlap.pairs[overlap.same, 1])), "unit": "images"} | paper,
        "overlap/excluded": {"value": len(keys), "unit": "images"},
        "overlap/lowest_counted": {"value": float(least.min()) if len(least) else None, "unit": "correlation"},
        "overlap/highest_not_counted": {"value": float(most.max()) if len(most) else None, "unit": "correlation"},
    }
    arrays = {name: getattr(overlap, name) for name in ("pairs", "correlation", "nearer", "same")}
    return Result(metrics, arrays, {"overlap": sheet}, files)


def joined(splits: Splits, parts: Sequence[str]) -> ImageSet:
    """Some parts of a data set, one behind the other."""
    missing = [name for name in parts if name not in splits.parts]
    if missing or not parts:
        raise ValueError(
            f"analysis.parts=[{','.join(parts)}]: this data set has the parts {', '.join(splits.parts)}; name some"
        )
    return splits.parts[parts[0]] if len(parts) == 1 else JoinedImages([splits.parts[name] for name in parts])


def exclusions(splits: Splits, parts: Sequence[str], images: ImageSet, positions: np.ndarray) -> list[str]:
    """Keys of the images to leave out of training, in order; ``images`` are these parts joined, N of them.

    Where every part has a folder of its own, val/cat/1.jpg and train/cat/1.jpg have one key: only training images are
    listed under it. Where the parts were carved out of one whole, images of all of them are: another seed carves anew.
    """
    in_train = np.concatenate([np.full(len(splits.parts[name]), name == "train") for name in parts])
    listed = {images.key(int(index)): bool(in_train[index]) for index in positions[np.argsort(in_train[positions])]}
    if not all(listed.values()):
        taken = {splits.train.key(index) for index in range(len(splits.train))}
        listed = {key: trains for key, trains in listed.items() if trains or key not in taken}
    return sorted(listed)


def pairs_table(first: ImageSet, second: ImageSet, overlap: Overlap) -> str:
    """The pairs that count, as CSV: both names, their correlation, and how many times nearer than others they are."""
    rows = []
    for position in np.flatnonzero(overlap.same):
        i, j = map(int, overlap.pairs[position])
        numbers = f"{overlap.correlation[position]:.4f}", f"{overlap.nearer[position]:.2f}"
        rows.append((first.name(i), second.name(j), *numbers))
    return table_text(("first", "second", "correlation", "nearer"), rows)


def shown_pairs(first: ImageSet, second: ImageSet, overlap: Overlap, shown: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to look at: of those that count from the most to the least alike, of the others the most alike."""
    same, others = np.flatnonzero(overlap.same), np.flatnonzero(~overlap.same)
    if len(same) > shown:
        same = same[np.linspace(0, len(same) - 1, shown).round().astype(int)]

    def pair(position: int) -> Pair:
        i, j = map(int, overlap.pairs[position])
        images = first.read(i, short_side=256), second.read(j, short_side=256)
        numbers = float(overlap.correlation[position]), float(overlap.nearer[position])
        return Pair(images, (first.name(i), second.name(j)), *numbers)

    return [pair(position) for position in same], [pair(position) for position in others[:shown]]


def _place(config: DataConfig) -> tuple[str, str | None]:
    """What makes a data set another one: its name and folder."""
    return config.name, None if config.root is None else os.path.realpath(os.path.expanduser(config.root))


def _called(config: DataConfig) -> str:
    """What to call a data set; ``folder`` says nothing, its folder's name does."""
    if config.name != "folder" or config.root is None:
        return config.name
    return printable(os.path.basename(os.path.realpath(config.root)))
