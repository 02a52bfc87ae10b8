"""The conditions under which a number was measured: as text, as a key for averaging, and whether they are the paper's.

A number is averaged only with its like: networks of one training identity that differ by seed, the same question, the
same images. A run that does not say how its networks were trained is like no other.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zfscope.report.architectures import NETWORKS, row_of
from zfscope.report.readings import TRAINING, Run, folds_of, is_number, t_interval
from zfscope.schema import flatten, printable

# Overrides that a training's text leaves out: where things are, what is drawn and logged; what it says anyway.
IRRELEVANT_OVERRIDES = re.compile(
    r"(experiment|seed|name|group|tags|device|resume|trust|data|(data\.)?(name|root|cache|num_workers|download|check)"
    r"|optim\.epochs|(hydra|logger|callbacks|paper|checkpoints)(\..*)?|trainer(\.(accelerator|devices))?)$"
)

# How Sec. 5 learns from features; what it does not say (folds, optimiser, C) is free.
PROTOCOL = {"test_images": (50,), "layer": (None, "fc7"), "shuffle_labels": (False,)}
# From scratch the paper trains the network that it froze.
OF_SCRATCH = ("scratch_model", "scratch_image_size")

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
    """One number of one run."""

    value: float  # the number
    condition: str  # under which it was measured, without the seed; as text
    key: str  # numbers with one key are averaged
    facts: Mapping[str, Any]  # what the key stands for, by dotted key
    seed: int | str | None  # of the network's training; of an ensemble those of its members
    folder: str  # of the run; several where the number is a difference of runs
    stand_in: bool  # whether data, network or protocol are not, or not known to be, the paper's
    part: str = ""  # which images, and how, where a run has several: ``test, ten crops``
    spread: float | None = None  # standard deviation of what the run itself averaged over
    over: str = ""  # what that was: ``5 folds``
    interval: tuple[float, float] | None = None  # 95 % interval of the run itself, if it has one
    how: str = ""  # how the interval was computed: ``t over 5 folds``


def sample_of(
    run: Run, value: float, *, data: str | None, rows: Collection[str] = ("zfnet",), part: str = "", **more: Any
) -> Sample:
    """A number of a run, with the run's condition.

    ``data`` is the paper's data set, None if it cannot be had; ``rows`` of Table 3 are those whose networks the paper
    has this number of; ``part`` says which images, and how, where the run has several: ``test, ten crops``.
    """
    text = _training_text(run) if run.kind == TRAINING else _analysis_text(run)
    if not run.identified:
        text += "; training identity not recorded"
    key, facts, seed, own = f"{_key(run)} {part}", facts_of(run), _seed(run), is_papers(run, data, rows)
    return Sample(float(value), printable(text), key, facts, seed, run.folder, not own, part, **more)


def is_papers(run: Run, data: str | None, rows: Collection[str]) -> bool:
    """Whether a run's network, data and protocol are known to be the paper's; the arguments are ``sample_of``'s."""
    if data is None or run.conditions.get("data") != data or _narrowed(run.conditions) or _unfinished(run):
        return False
    if run.kind == "overlap":  # of two data sets; no network looks at them
        return not _narrowed(run.question.get("other") or {})
    own = {row_of(network.facts) for network in run.networks} <= set(rows)
    return own and run.identified and not _other_protocol(run)


def papers_own(run: Run, row: str | None = None) -> tuple[str | None, Collection[str]]:
    """The paper's data set for such a run, None if it cannot be had, and the rows of Table 3 that its networks are.

    ``row`` is the one that the config of the network's training names (``paper=``): its errors are those of this row.
    """
    if run.kind == "correspondence":  # the five photographs of dogs were not published
        return None, ("zfnet",)
    if run.kind in ("transfer", "probes"):
        own = run.conditions.get("data")
        return own if own in ("caltech101", "caltech256", "voc2012") else "caltech101", ("zfnet",)
    if run.kind in (TRAINING, "evaluate"):
        return "imagenet", [row] if isinstance(row, str) else []
    return "imagenet", ("zfnet", "zfnet_wide") if run.kind == "ensemble" else ("zfnet",)


def stand_in(run: Run, row: str | None = None) -> str | None:
    """By what a run was measured whose numbers are not comparable to the paper's: ``zfnet_mini, 6 epochs, on phantom``.

    None where network, data and protocol are the paper's; ``row`` as in ``papers_own``.
    """
    data, rows = papers_own(run, row)
    if is_papers(run, data, rows) and not other_scratch(run):
        return None
    if run.kind == TRAINING:
        facts, conditions = run.networks[0].facts, run.conditions
        name = facts.get("model.name", "a network")
        parts = [f"{name} on {_data_text(None, conditions | {'classes': facts.get('data.classes')})}"]
    else:
        network = "" if run.kind == "overlap" else f"{network_text(run)}, "
        known = run.conditions.get("data") is not None
        parts = [f"{network}on {_data_text(None, run.conditions) if known else 'images of your own'}"]
    if run.kind in (TRAINING, "evaluate") and run.identified and run.conditions.get("data") == data:
        parts += [f"not the network of paper={row}" if rows else "for no row of Table 3"]
    parts += _other_protocol(run) + other_scratch(run)
    parts += [] if run.identified or run.kind == "overlap" else ["training identity not recorded"]
    return printable(", ".join(parts))


def facts_of(run: Run) -> dict[str, Any]:
    """All that decides with which numbers a run's may be averaged, but for the seed, by dotted key.

    Where the members of an ensemble differ in a fact, it lists their values.
    """
    facts: dict[str, Any] = {}
    for name in sorted({name for network in run.networks for name in network.facts}):
        values = [network.facts.get(name) for network in run.networks]
        facts[name] = values[0] if all(value == values[0] for value in values) else values
    facts["checkpoint"] = ", ".join(sorted({network.checkpoint for network in run.networks}))
    facts["images looked at"] = run.conditions.get("data_fingerprint")
    if _unfinished(run):
        facts["epochs so far"] = [network.epochs_so_far for network in run.networks]
    return facts | flatten(_asked(run))


def twin_key(run: Run, varied: str) -> str:
    """Equal for two runs that are alike, seed included, but for facts whose names match a pattern."""
    facts = {name: value for name, value in facts_of(run).items() if not re.fullmatch(varied, name)}
    return json.dumps([run.kind, run.conditions.get("data"), facts, _seed(run)], sort_keys=True, default=str)


def spread_of(metric: Mapping[str, Any], over: str = "") -> dict[str, Any]:
    """The spread and interval that a metric brings along, as ``Sample`` takes them: over its folds, if it has any."""
    folds = folds_of(metric)
    more: dict[str, Any] = {}
    if is_number(metric.get("spread")):
        more = {"spread": float(metric["spread"]), "over": f"{len(folds)} folds" if folds else over}
    if len(folds) > 1:
        more |= {"interval": t_interval(folds), "how": f"t over {len(folds)} folds of one network"}
    return more


def member_counts(run: Run) -> dict[str, int]:
    """Of an ensemble: members by architecture."""
    counts: dict[str, int] = {}
    for name in run.metrics:
        if match := re.fullmatch(r"group/(.+)/(?:one_net|(\d+)_nets)/top1_error(?:_ten_crops)?", name):
            counts[match[1]] = max(counts.get(match[1], 1), int(match[2] or 1))
    return counts


def differences(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several sets of facts what tells it from the others, such as ``optim.lr=0.1``: as few as will do."""
    names = sorted({name for facts in several for name in facts}, key=lambda name: ("images" in name, name))
    told: list[tuple[str, ...]] = [()] * len(several)
    for name in names:
        longer = [(*texts, _told(facts, name)) for texts, facts in zip(told, several, strict=True)]
        if len(set(longer)) > len(set(told)):
            told = longer
    return [", ".join(filter(None, texts)) for texts in told]


def _other_protocol(run: Run) -> list[str]:
    """The options by which a run learns from features otherwise than the paper."""
    asked = run.question if run.kind in ("transfer", "probes") else {}
    return [f"{name}={asked[name]}" for name, usual in PROTOCOL.items() if asked.get(name, usual[0]) not in usual]


def other_scratch(run: Run) -> list[str]:
    """The options by which another network than the frozen one is trained from scratch."""
    asked = run.question if run.kind == "transfer" else {}
    return [f"{name}={asked[name]}" for name in OF_SCRATCH if asked.get(name) is not None]


def data_text(run: Run) -> str:
    """A run's data set with what makes it smaller than its name says; or the user's own image."""
    if run.conditions.get("data") is None:
        image = run.conditions.get("image")
        return str(image) if image else "images of your own"
    return _data_text(None, run.conditions)


def _told(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return ""
    text = json.dumps(facts[name], ensure_ascii=False, default=str).strip('"')
    return f"{name}=" + re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1…", text)  # of a digest the first characters


def _key(run: Run) -> str:
    """Numbers with one key are averaged: a run without identity has one for itself."""
    if not run.identified:
        return f"run {run.folder}"
    networks = sorted(
        [str(network.digest), network.checkpoint, *([so_far] if (so_far := network.epochs_so_far) is not None else [])]
        for network in run.networks
    )
    data = [run.conditions.get("data"), run.conditions.get("data_fingerprint"), _narrowed(run.conditions)]
    return json.dumps([run.kind, networks, data, _asked(run)], sort_keys=True, default=str)


def _asked(run: Run) -> dict[str, Any]:
    """The question of an analysis, and the contents of the files that it names: where they lie does not matter."""
    question, files = ({} if run.kind == TRAINING else run.conditions.get(name) for name in ("question", "files"))
    files = files if isinstance(files, Mapping) else {}
    question = question if isinstance(question, Mapping) else {}
    return {"question": {name: value for name, value in question.items() if name not in files}, "files": dict(files)}


def _seed(run: Run) -> int | str | None:
    """What tells repetitions apart: the seed of the training, of an ensemble the seeds of its members."""
    networks = sorted(run.networks, key=lambda network: (str(network.digest), network.checkpoint, str(network.seed)))
    if run.kind == "ensemble":
        return ", ".join(str(network.seed) for network in networks)
    seed = networks[0].seed
    return seed if seed is None or isinstance(seed, int) else str(seed)


def _training_text(run: Run) -> str:
    """Data, what the command line changed, epochs."""
    conditions = run.conditions
    overrides = [
        str(override)
        for override in conditions.get("overrides") or ()
        if not IRRELEVANT_OVERRIDES.match(str(override).lstrip("+~").partition("=")[0])
    ]
    overrides.sort(key=lambda override: (not override.startswith("model="), not override.startswith("model"), override))
    counts = conditions.get("images")
    images = counts.get("train") if isinstance(counts, Mapping) else None
    parts = [
        _data_text(conditions.get("data"), {}) + (f", {images:,} training images" if isinstance(images, int) else ""),
        ", ".join(override.removeprefix("model=") for override in overrides),
        _epochs_text(conditions.get("epochs")),
        "" if run.networks[0].checkpoint == "best" else f"{run.networks[0].checkpoint} checkpoint",
    ]
    return "; ".join(filter(None, parts))


def _analysis_text(run: Run) -> str:
    """Data, network, checkpoint, options."""
    conditions = run.conditions
    checkpoints = sorted({network.checkpoint for network in run.networks} - {"best"})
    options = dict(run.question)
    if run.kind == "probes" and options.get("images_per_class") is None:
        options["images_per_class"] = 60 if conditions.get("data") == "caltech256" else 30  # analyses/probes.py
    if run.kind == "transfer":
        options.pop("images_per_class", None)  # the column says it
    if conditions.get("image"):
        options.pop("part", None)
    told = {name: options[name] for name in conditions.get("unusual") or () if name in options and name not in PHRASES}
    parts = [
        data_text(run),
        network_text(run),
        " and ".join(f"{name} checkpoint" for name in checkpoints),
        *(PHRASES[name].format(value) for name, value in options.items() if name in PHRASES and value is not None),
        *(f"{name}={_typed(value)}" for name, value in flatten(told).items() if value is not None),
    ]
    first, rest = "; ".join(filter(None, parts[:3])), ", ".join(parts[3:])
    return "; ".join(filter(None, [first, rest]))


def _typed(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def network_text(run: Run) -> str:
    """The network that a run looked at, by what tells it from others: ``zfnet_mini trained on phantom, 16 epochs``."""
    trained, facts = run.trained, run.networks[0].facts
    name = str(trained.get("model") or facts.get("model.name") or run.conditions.get("checkpoint"))
    details = []
    if trained.get("model"):
        on = _data_text(trained.get("data"), trained)
        if run.kind in ("transfer", "probes") or on != _data_text(None, run.conditions):
            name += f" trained on {on}"
        details += [_trained_text(run)]
        if trained.get("stem") not in (None, "7x7/2") and not name.startswith("alexnet"):
            details += [f"conv1 {trained['stem']}"]
        if trained.get("filter_rms", 0) is None:
            details += ["filters without a radius"]
    if run.kind == "ensemble":
        name = " and ".join(member_counts(run)) or name
        members = run.metric("members")
        details += [f"{members['value']} {members['unit']} members"] if members.get("absent") else []
    elif reference := NETWORKS.get(str(facts.get("model.name"))):
        usual = flatten({"model": reference})
        changed = [key for key in facts if key.startswith("model.") and usual.get(key, usual) != facts[key]]
        details += [_told(facts, key) for key in changed if key != "model.name"][:3]
    return ", ".join(filter(None, [name, *details]))


def _data_text(name: Any, conditions: Mapping[str, Any]) -> str:
    """A data set with what makes it smaller than its name says."""
    name = str(name if name is not None else conditions.get("data"))
    return name + "".join(f" ({value})" for value in _narrowed(conditions))


def _narrowed(conditions: Mapping[str, Any]) -> list[str]:
    """What makes a data set another one than its name says: which of torchvision's, classes, cells, background."""
    own = [str(conditions[key]) for key in ("dataset", "target") if conditions.get(key)]
    classes, cells = conditions.get("classes"), conditions.get("cells")
    listed = ", ".join(map(str, classes)) if isinstance(classes, list | tuple) else str(classes)
    background = ["with background"] * bool(conditions.get("clutter"))
    return own + [listed] * bool(classes) + [str(cells)] * bool(cells) + background


def _unfinished(run: Run) -> bool:
    """Whether it looked at a network whose training had not come to its end."""
    return any(network.epochs_so_far is not None for network in run.networks)


def _trained_text(run: Run) -> str:
    """How long its network was trained; of a training that had not finished the epochs so far."""
    planned = run.networks[0].facts.get("trainer.max_epochs", run.trained.get("epochs"))
    so_far = [network.epochs_so_far for network in run.networks if network.epochs_so_far is not None]
    if not so_far:
        return _epochs_text(run.trained["epochs"] if "epoch" in run.trained else planned)
    among = f" in {len(so_far)} of {len(run.networks)} networks" if len(run.networks) > 1 else ""
    return f"unfinished: {' or '.join(map(str, sorted(set(so_far))))} of {_epochs_text(planned)}{among}"


def _epochs_text(count: Any) -> str:
    return "" if count is None else f"{count} epoch" + "s" * (count != 1)
