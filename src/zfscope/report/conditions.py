"""The conditions under which a number was found: as text, as a key for averaging, and whether they are the paper's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zfscope.report.readings import SCHEMAS, TRAINING, Run, folds_of, is_number, t_interval
from zfscope.schema import plain, printable

# Overrides that change no number: where things are, what is drawn and logged; those that conditions name anyway.
IRRELEVANT_OVERRIDES = re.compile(
    r"(experiment|seed|name|group|tags|device|resume|trust|data|(data\.)?(name|root|cache|num_workers|download)"
    r"|optim\.epochs|(hydra|logger|callbacks|paper|checkpoints)(\..*)?|trainer(\.(accelerator|devices))?)$"
)

# Overrides after which a network is not the paper's, or its images are not.
NOT_THE_PAPERS = re.compile(r"(model|scale|debug|weights|data\.(classes|resize|crop)|trainer\.limit_\w+)(\W|$)")

# Options of an analysis that change how it runs or what it draws, not what it finds.
UNIMPORTANT = ("name", "batch_size", "memory_gb", "shown", "top", "maps", "members", "partial", "seed")

PHRASES = {
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


def spread_of(metric: Mapping[str, Any], over: str = "") -> dict[str, Any]:
    """The spread and interval that a metric brings along, as ``Sample`` takes them: over its folds, if it has some."""
    folds = folds_of(metric)
    found: dict[str, Any] = {}
    if is_number(metric.get("spread")):
        found = {"spread": float(metric["spread"]), "over": f"{len(folds)} folds" if folds else over}
    if len(folds) > 1:
        found |= {"interval": t_interval(folds), "how": f"t over {len(folds)} folds of one network"}
    return found


def _groups(run: Run) -> dict[str, int]:
    """Of an ensemble: members by architecture."""
    groups: dict[str, int] = {}
    for name in run.metrics:
        if match := re.fullmatch(r"group/(.+)/(?:one_net|(\d+)_nets)/top1_error(?:_ten_crops)?", name):
            groups[match[1]] = max(groups.get(match[1], 1), int(match[2] or 1))
    return groups


def _training_condition(run: Run) -> tuple[str, str, bool]:
    """Of a training: text, key, and whether its network or images are not the paper's."""
    conditions = run.conditions
    told = [
        str(each)
        for each in conditions["overrides"]
        if not IRRELEVANT_OVERRIDES.match(str(each).lstrip("+~").partition("=")[0])
    ]
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
    return "; ".join(filter(None, parts)), key, any(NOT_THE_PAPERS.match(each.lstrip("+~")) for each in told)


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
        if name in PHRASES and value is not None and not (run.kind == "transfer" and name == "images_per_class"):
            spoken.append(PHRASES[name].format(value))
        elif name in schema and name not in PHRASES and value != plain(schema[name].get_default()):
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
