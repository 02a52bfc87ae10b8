"""The identity of a training: what determines its weights, as readable facts with their digest.

Two trainings of one identity differ at most by seed, so their numbers may be averaged. A fact is left out only where
it is known to change no weight: paths, caches, workers, the device, names, logging, pictures, the seed. A keyword or
a callback that is not known here counts, so that numbers are rather kept apart than mixed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zfscope.networks.checkpoints import find_checkpoint, run_identity
from zfscope.networks.public import is_zoo_name
from zfscope.schema import flatten, leaves, plain
from zfscope.secrets import is_from_environment, with_texts

IRRELEVANT_DATA_KEYS = frozenset({"root", "cache", "num_workers", "download", "check", "cache_images"})

# Keywords of the Trainer that change neither steps nor precision, nor which epoch is the best one.
IRRELEVANT_TRAINER_KEYS = re.compile(
    "accelerator|barebones|benchmark|callbacks|default_root_dir|detect_anomaly|deterministic|enable_.*|inference_mode"
    "|limit_(predict|test)_batches|log_every_n_steps|logger|model_registry|num_sanity_val_steps|plugins|profiler"
    "|accumulate_grad_batches|devices|num_nodes|sync_batchnorm"  # data.batch_size is the whole batch of a step
)

# What the Trainer takes a keyword for that is left out or null: said or unsaid, it is one training.
TRAINER_DEFAULTS = {
    "max_steps": -1,
    "check_val_every_n_epoch": 1,
    "val_check_interval": 1.0,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "overfit_batches": 0.0,
    "gradient_clip_algorithm": "norm",
    "precision": "32-true",
    "strategy": "auto",
    "reload_dataloaders_every_n_epochs": 0,
    "fast_dev_run": False,
}

PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # short names of Lightning's

# Callbacks that only look. All others (EarlyStopping, GradientAccumulationScheduler, foreign ones) count.
OBSERVERS = frozenset(
    f"zfscope.callbacks.{name}"
    for name in ("Diagnostics", "FeatureEvolution", "FilterImages", "OcclusionMaps", "Projections")
) | frozenset(
    f"lightning.pytorch.callbacks.{name}"
    for name in (
        *("DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint"),
        *("RichModelSummary", "RichProgressBar", "ThroughputMonitor", "TQDMProgressBar"),
    )
)


def training_identity(
    config: Mapping[str, Any],
    image_fingerprint: str,
    *,
    legs: Sequence[Mapping[str, Any]] = (),
    val_fingerprint: str | None = None,
    texts: Mapping[tuple, str] | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """What determines the weights of a training: ``digest``, a SHA-256 in hex, of ``facts`` by dotted key.

    ``config`` is that of the whole run, as ``train.py`` checks it; ``legs`` say what each resumed leg changed. By the
    validation images, ``val_fingerprint``, the rate is lowered and the best epoch is chosen. By ``texts`` values that
    come from the environment are told by their interpolations; the digest is of the values, which cannot be read in it.
    ``start`` is the fact ``weights`` of a run that goes on, by default read from what ``config`` names.
    """
    config = plain(config)
    data = {key: value for key, value in config["data"].items() if key not in IRRELEVANT_DATA_KEYS}
    # Keys that earlier trainings did not have, optim.revive too: where they say nothing, the identity is as it was.
    unsaid = {"dataset": None, "target": None, "resizer": "pil"}
    data = {key: value for key, value in data.items() if key not in unsaid or value != unsaid[key]}
    data |= {"images": image_fingerprint, "exclude": _content_of(data.get("exclude"))}
    optim = {key: value for key, value in config["optim"].items() if key != "revive" or value}
    if val_fingerprint is not None:
        data["val_images"] = val_fingerprint
    values = {
        "model": config["model"],
        "data": data,
        "optim": optim,
        "trainer": _trainer_facts(config.get("trainer") or {}) | _batch_norm_facts(config),
        "callbacks": callback_facts(config.get("callbacks") or {}),
        "weights": start or _weights_of(config.get("weights"), config.get("weights_file")),
        "legs": {str(number): plain(leg) for number, leg in enumerate(legs, 1)},
    }
    # The contents of files stand in facts, not their paths.
    shown = {
        place: text
        for place, text in (texts or {}).items()
        if place not in (("weights",), ("weights_file",), ("data", "exclude"))
    }
    options = {place: text for place, text in shown.items() if place[0] == "callbacks" and place[2:] != ("_target_",)}
    told = with_texts(values, {place: text for place, text in shown.items() if place[0] != "callbacks"})
    told["callbacks"] = callback_facts(with_texts({"callbacks": config.get("callbacks") or {}}, options)["callbacks"])
    return {"digest": digest_of(flatten(values)), "facts": flatten(told)}


def digest_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts by dotted key, in hex."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_environment(earlier: Mapping[str, Any], now: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse to go on where a variable has another value than the run had, which facts do not tell: the digest does.

    ``earlier`` is the run's identity, ``now`` are its facts today, ``values`` these with the variables' values.
    """
    facts = earlier["facts"]
    hidden = [
        key
        for key, value in facts.items()
        if not key.startswith("legs.") and any(is_from_environment(text) for _, text in leaves(value))
    ]
    if not hidden or any(now.get(key) != facts[key] for key in hidden):
        return
    if digest_of({**facts, **{key: values[key] for key in hidden}}) != earlier["digest"]:
        raise ValueError(
            f"{', '.join(hidden)}: the environment gives another value than this run had; set it as it was, or type "
            "the value"
        )


def _trainer_facts(trainer: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in trainer.items() if not IRRELEVANT_TRAINER_KEYS.fullmatch(key)}
    if values.get("precision") is not None:
        values["precision"] = PRECISIONS.get(str(values["precision"]), str(values["precision"]))
    if str(values.get("strategy")).startswith("ddp"):  # what "auto" takes where there are several ranks
        del values["strategy"]
    if values.get("gradient_clip_val") is None:
        values.pop("gradient_clip_algorithm", None)
    # By their text: limit_train_batches=1 is one batch, 1.0 all of them.
    unsaid = {key for key, value in values.items() if value is None or str(value) == str(TRAINER_DEFAULTS.get(key))}
    facts = {key: value for key, value in sorted(values.items()) if key not in unsaid}
    counted = (facts.get(key) for key in ("limit_train_batches", "overfit_batches", "val_check_interval"))
    if (accumulated := trainer.get("accumulate_grad_batches") or 1) > 1 and any(isinstance(it, int) for it in counted):
        facts["batches_of_a_step"] = accumulated
    # How many times data.batch_size a step takes: it was once for each rank, see `check_batches`.
    return facts | {"ranks": 1}


def _batch_norm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """How many images batch norm sees together, where these are not all of a step; our own networks have none."""
    trainer = config.get("trainer") or {}
    accumulated, ranks = trainer.get("accumulate_grad_batches") or 1, _rank_count(trainer)
    apart = accumulated * (1 if has_synchronised_batch_norm(config) else ranks)
    if apart == 1 or config["model"].get("source", "convnet") == "convnet":
        return {}
    return {"images_normalised_together": config["data"]["batch_size"] // apart}


def has_synchronised_batch_norm(config: Mapping[str, Any]) -> bool:
    """Whether batch norm sees the images of all ranks, in a training by this config: torch does that on GPUs alone."""
    trainer = config.get("trainer") or {}
    kind = trainer.get("accelerator") or str(config.get("device", "auto")).partition(":")[0]
    on_gpu = kind not in ("cpu", "auto") or (kind == "auto" and torch.cuda.is_available())
    return on_gpu and trainer.get("sync_batchnorm") is not False


def check_batches(checkpoint: Mapping[str, Any], path: Path | None) -> None:
    """Refuse to go on with a run for which ``data.batch_size`` was the batch of each rank and accumulated batch."""
    state = checkpoint["zfscope"]
    trainer = state["config"].get("trainer") or {}
    facts = (state.get("identity") or {}).get("facts")
    if facts is None:
        times = _rank_count(trainer) * (trainer.get("accumulate_grad_batches") or 1)
    else:
        times = facts.get("trainer.ranks", 1) * facts.get("trainer.accumulate_grad_batches", 1)
    if times != 1:
        raise ValueError(
            f"this run took {times} times data.batch_size images for a step, which now is the whole batch; start a new "
            f"run with weights={path}"
        )


def _rank_count(trainer: Mapping[str, Any]) -> int:
    return _device_count(trainer.get("devices"), trainer.get("accelerator")) * int(trainer.get("num_nodes") or 1)


def _device_count(devices: Any, accelerator: Any) -> int:
    """How many devices of a machine ``trainer.devices`` means."""
    if devices is None:
        return 1
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if accelerator != "cpu" else 1
    if isinstance(devices, str):
        return len(devices.strip(", ").split(",")) if "," in devices else int(devices)
    return len(devices) if isinstance(devices, Sequence) else int(devices)


def callback_facts(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the callbacks that may change a training, by class; their names in the config say nothing."""
    facts: dict[str, Any] = {}
    for callback in callbacks.values():
        if callback is not None and callback["_target_"] not in OBSERVERS:
            options = {key: value for key, value in callback.items() if key != "_target_"}
            name = callback["_target_"]
            while name in facts:
                name += " and another"
            facts[name] = options or "as it comes"
    return facts


def _weights_of(source: str | None, weights_file: str | None = None) -> str | None:
    """What stands behind ``weights=``: a run's identity and which of its checkpoints, a zoo's name, a file's content.

    With ``weights_file`` a zoo's name and that file's content.

    A run's own seed is in none of it: five networks that go on from five alike are five repetitions.
    """
    if source is None:
        return None
    try:
        identity = run_identity(source, weights_file)
        if identity is None:
            return _content_of(find_checkpoint(source))
    except FileNotFoundError:  # of a run that is resumed after its start was removed
        return f"{weights_file or source}, which is not there any more"
    if is_zoo_name(source):
        return identity["digest"]
    name = find_checkpoint(source).stem
    return identity["digest"] + (f", {name}" if name == "last" or name.startswith("epoch_") else "")


def _content_of(path: str | Path | None) -> str | None:
    """SHA-256 of a file."""
    if path is None or not Path(path).expanduser().is_file():
        return None if path is None else f"{path}, which is not there any more"
    with open(Path(path).expanduser(), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def end_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says when a training ends: limits of the Trainer, and callbacks, which may stop it."""
    names = ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")
    limits = {name: config.get("trainer", {}).get(name) for name in names}
    return {**limits, "max_steps": limits["max_steps"] or -1, "callbacks": callback_facts(config.get("callbacks", {}))}
