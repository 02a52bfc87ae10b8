"""Softmax averaged over several networks: the error of each, of every subset and of all.

Source: Zeiler & Fergus (2014), Table 2: five networks of Fig. 3 and one with wider layers 3, 4, 5. Subsets, spreads and
intervals are ours.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from zfscope.analyses.evaluate import check_classes, part_of
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import ImageData
from zfscope.evaluation import (
    Canvases,
    Predictions,
    average,
    error_metrics,
    error_table,
    gain_interval,
    label_ranks,
    predict_members,
    subset_errors,
    subsets,
)
from zfscope.figures import ensemble_figure
from zfscope.networks.checkpoints import find_checkpoint, load_network, network_from_checkpoint, read_checkpoint
from zfscope.networks.network import Network
from zfscope.networks.public import is_zoo_name, zoo_config
from zfscope.networks.spec import ModelConfig
from zfscope.protocols.features import fingerprint
from zfscope.report.paper import TABLES
from zfscope.runs import write_arrays
from zfscope.schema import check, listed, plain

SUFFIXES = {"centre": "", "ten_crops": "_ten_crops"}
RANKS = {"top1_error": 1, "top5_error": 5}
# Rows of Table 2 by model and number of networks; validation errors by metric.
ROWS = {"zfnet": ("zfnet", 1), "zfnets": ("zfnet", 5), "zfnet_wide": ("zfnet_wide", 1)}
PAPER = {
    f"top{k}_error_ten_crops": {key: TABLES[1].value(row, f"val_top{k}") for row, key in ROWS.items()} for k in (1, 5)
}
PAPER_ALL = {f"top{k}_error_ten_crops": TABLES[1].value("six", f"val_top{k}") for k in (1, 5)}
ALIKE = "members of an ensemble share their classes and the order of these"


@dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
        path: Where it came from, as ``load_network`` takes it.
        name: What sets its path apart from those of the others.
        network: In eval mode, with its own preprocessing.
        config: Its run's config; holds at least ``model``.
        digest: Hash of layers, weights and preprocessing.
    """

    path: str
    name: str
    network: Network
    config: Mapping[str, Any]
    digest: str


def open_members(given: str | Sequence[str], partial: bool = False) -> list[Member]:
    """The networks that ``checkpoint=`` names: what ``load_network`` takes, patterns (``outputs/six/*``) or a list.

    Args:
        given: One or several. A pattern passes over files that are no checkpoints, such as a sweep's multirun.yaml.
        partial: Go on without those that cannot be read.

    Raises:
        FileNotFoundError: If a pattern matches nothing.
        ValueError: Naming those that have no checkpoint or a damaged one, two that are the same network, or one whose
            classes or their order are not those of the first.
    """
    sources = _sources(given)
    members, errors = [], {}
    for source, name in zip(sources, _names(sources), strict=True):
        try:
            member = _open(source, name)
        except (FileNotFoundError, ValueError) as error:
            errors[source] = error
            continue
        for other in members:
            if other.digest == member.digest:
                raise ValueError(
                    f"{other.path} and {source} are the same network; a member counts once, leave one of them out"
                )
        if members:
            _check_alike(members[0], member)
        members.append(member)
    if errors and not (partial and members):
        way_out = "; analysis.partial=true goes on without" if members else ""
        cause = next(iter(errors.values()))
        raise ValueError(
            f"{len(errors)} of {len(sources)} members cannot be read: {listed(errors, 12)} ({cause}){way_out}"
        )
    return members


def ensemble(
    members: Sequence[Member], data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``arrays.npz`` and ``figures/ensemble.png``; give the errors of all, of each, of subsets, by architecture.

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

    Raises:
        ValueError: If ``analysis.members`` is another number, the data set has no such part, or its classes are not
            those of the members.
    """
    asked = config.analysis
    sources, names = _sources(config.checkpoint), [member.name for member in members]
    if asked.members not in (None, len(members)):
        raise ValueError(
            f"analysis.members={asked.members}, but checkpoint={_text(config.checkpoint)} gives {len(members)}: "
            f"{listed(names, 12)}; train the others or leave analysis.members out"
        )
    part = asked.part or ("test" if data.splits.test is not None else "val")
    images = part_of(data, part)
    for member in members:
        try:
            check_classes(member.network, images.classes)
        except ValueError as error:
            raise ValueError(f"{member.path}: {error}") from None
    networks = [member.network for member in members]
    batches = DataLoader(
        Canvases(images, [network.preprocessing.resize for network in networks]),
        asked.batch_size,
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    each = predict_members(networks, batches, crops=asked.ten_crops, device=device, total=len(batches))

    chosen = [subset for size in range(1, len(members) + 1) for subset in subsets(len(members), size)]
    groups = _groups(members)
    rows = chosen + [group for group in groups.values() if group not in chosen]  # a sample may lack them
    errors = {
        f"{name}{SUFFIXES[kind]}": values
        for kind in each[0].probabilities
        for name, values in subset_errors([one.probabilities[kind] for one in each], each[0].labels, rows).items()
    }
    absent = [source for source in sources if source not in {member.path for member in members}]
    found = {"members": {"value": len(members), "unit": f"of {len(sources)}", "absent": absent}}
    found |= _metrics(dict(zip(names, each, strict=True)), groups, rows, len(chosen), errors, part, data.config.name)

    kind = "ten_crops" if asked.ten_crops else "centre"
    sheet = ensemble_figure(
        chosen,
        {name: v[: len(chosen)] for name, v in errors.items() if name.endswith("_ten_crops") == asked.ten_crops},
        names,
        title=f"{_text(config.checkpoint)}: {len(images):,} {part} images, {kind.replace('_', ' ')}",
    )
    probabilities = np.stack([one.probabilities[kind].numpy() for one in each])
    arrays = {"probabilities": probabilities, "labels": each[0].labels.numpy(), "members": np.array(names)}
    write_arrays(folder / "arrays.npz", arrays)
    (folder / "figures").mkdir(exist_ok=True)
    sheet.save(folder / "figures" / "ensemble.png")
    return found


def architectures(members: Sequence[Member]) -> list[str]:
    """What to call each member's architecture: its model's name; with what differs, where two of one name do.

    Two members are of one architecture if all of their ``model`` and the size of their input are the same.
    """
    configs = [
        check(ModelConfig, member.config["model"]).model_dump(mode="json") | {"image_size": member.network.image_size}
        for member in members
    ]
    called = []
    for config in configs:
        differing = _differences([other for other in configs if other["name"] == config["name"]])
        values = (f"{key}={json.dumps(_value(config, key))}" for key in differing)
        called.append(" ".join([config["name"], *values]))
    return called


def _sources(given: str | Sequence[str]) -> list[str]:
    sources = []
    for text in (given,) if isinstance(given, str) else given:
        parts = Path(text).parts
        magic = [number for number, part in enumerate(parts) if re.search(r"[*?[]", part)]
        if not magic or Path(text).exists():
            sources.append(text)
            continue
        # What follows the last wildcard is asked of every folder that matches: outputs/six/*/last
        end = magic[-1] + 1
        entries = sorted(map(Path, glob.glob(str(Path(*parts[:end])))), key=_natural)
        if end < len(parts):
            found = [entry.joinpath(*parts[end:]) for entry in entries if not entry.is_file()]
        else:
            found = [entry for entry in entries if not entry.is_file() or entry.suffix == ".ckpt"]
        if not found:
            raise FileNotFoundError(
                f"checkpoint={text} matches no run folder and no .ckpt file; give a pattern of them, as outputs/six/*"
            )
        sources += map(str, found)
    return sources


def _natural(path: Path) -> list[str | int]:
    """Sort key: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _names(sources: Sequence[str]) -> list[str]:
    """The paths without the folders that all of them share."""
    parts = [Path(source).parts for source in sources]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]


def _open(source: str, name: str) -> Member:
    if is_zoo_name(source):
        network, config = load_network(source), {"model": zoo_config(source)}
    else:
        path = find_checkpoint(source)
        content = read_checkpoint(path)
        network = network_from_checkpoint(content, path).eval()
        state = content["zfscope"]
        config = {**(state.get("config") or {}), "model": state["model"]}
    if network.preprocessing is None:
        raise ValueError(f"{source} does not tell how its images are prepared; use a checkpoint of a run")
    return Member(source, name, network, plain(config), fingerprint(network))


def _check_alike(first: Member, member: Member) -> None:
    """Refuse a member whose classes or their order are not those of the first."""
    counts = first.network.num_classes, member.network.num_classes
    if counts[0] != counts[1]:
        raise ValueError(f"{member.path} tells {counts[1]} classes apart, {first.path} tells {counts[0]}; {ALIKE}")
    theirs, own = first.network.classes, member.network.classes
    if theirs is None or own is None or theirs == own:
        return
    if set(theirs) == set(own):
        number = next(number for number, (one, other) in enumerate(zip(theirs, own, strict=True)) if one != other)
        raise ValueError(
            f"{member.path} has the classes of {first.path} in another order: number {number} is {own[number]!r}, "
            f"not {theirs[number]!r}; {ALIKE}"
        )
    raise ValueError(
        f"{member.path} has other classes than {first.path}: it lacks {listed(sorted(set(theirs) - set(own)))}, "
        f"it adds {listed(sorted(set(own) - set(theirs)))}; {ALIKE}"
    )


def _groups(members: Sequence[Member]) -> dict[str, tuple[int, ...]]:
    """Positions of the members by architecture, in the order in which these come."""
    groups: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(architectures(members)):
        groups[name] = (*groups.get(name, ()), number)
    return groups


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys, such as ``conv3.maps``, at which the configs are not all the same."""
    found = []
    for key, first in configs[0].items():
        values = [config[key] for config in configs]
        if all(isinstance(value, Mapping) for value in values):
            found += [f"{key}.{inner}" for inner in _differences(values)]
        elif any(value != first for value in values):
            found.append(key)
    return found


def _value(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _metrics(
    each: Mapping[str, Predictions],
    groups: Mapping[str, tuple[int, ...]],
    rows: Sequence[tuple[int, ...]],
    drawn: int,
    errors: Mapping[str, np.ndarray],
    part: str,
    data: str,
) -> dict[str, dict[str, Any]]:
    whole = average(list(each.values()))
    known = PAPER if data == "imagenet" and part == "val" else {}
    all_six = known and {name: len(group) for name, group in groups.items()} == {"zfnet": 5, "zfnet_wide": 1}
    found = {name: _percent(value) for name, value in error_metrics(whole, part).items()}
    for member, predictions in each.items():
        found |= {name: _percent(value) for name, value in error_metrics(predictions, f"member/{member}").items()}
    sizes = np.array([len(subset) for subset in rows[:drawn]])  # what comes behind was not drawn for its size
    for name, values in errors.items():
        if all_six and name in PAPER_ALL:
            found[f"{part}/{name}"]["paper"] = PAPER_ALL[name]
        for size in range(1, len(each) + 1):
            own = values[:drawn][sizes == size]
            found[f"size_{size}/{name}"] = _percent(own.mean(), spread=float(own.std()), subsets=len(own))
    by_subset = {name: dict(zip(rows, values.tolist(), strict=True)) for name, values in errors.items()}
    for architecture, group in groups.items():
        for name, of in by_subset.items():
            paper = {count: value for (model, count), value in known.get(name, {}).items() if model == architecture}
            singles = np.array([of[number,] for number in group])
            spread = float(singles.std(ddof=1)) if len(group) > 1 else None
            found[f"group/{architecture}/one_net/{name}"] = _percent(singles.mean(), paper.get(1), spread=spread)
            if len(group) > 1:
                row = f"group/{architecture}/{len(group)}_nets/{name}"
                found[row] = _percent(of[group], paper.get(len(group)))
    return found | {f"gain/{name}": _gain(each, whole, name, values[: len(each)]) for name, values in errors.items()}


def _gain(each: Mapping[str, Predictions], whole: Predictions, name: str, singles: np.ndarray) -> dict[str, Any]:
    """The best member's error minus the ensemble's, and of a score the other way round: above 0 where it is better."""
    score, kind = name.removesuffix("_ten_crops"), "ten_crops" if name.endswith("_ten_crops") else "centre"
    together = error_table(whole.probabilities[kind], whole.labels)[score]
    if score not in RANKS:
        return _percent(together - singles.max(), best=list(each)[singles.argmax()])
    best = list(each)[singles.argmin()]
    wrong = (label_ranks(one.probabilities[kind], one.labels) >= RANKS[score] for one in (each[best], whole))
    return _percent(singles.min() - together, best=best, interval=list(gain_interval(*wrong)))


def _percent(value: float, paper: float | None = None, **more: Any) -> dict[str, Any]:
    # None too: a member's run may know the paper's number for itself under the name that is the ensemble's here.
    return {"value": float(value), "unit": "%", "paper": paper, **more}


def _text(given: str | Sequence[str] | None) -> str:
    return given if isinstance(given, str) else ", ".join(given or ())
