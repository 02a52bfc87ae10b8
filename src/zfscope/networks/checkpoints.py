"""Checkpoints: weights with the network's config, its preprocessing and class names.

They hold tensors and plain containers only, are written beside their target, flushed and renamed, and
are checked when they are read. Nothing is ever instantiated from one.
"""

import hashlib
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zfscope.files import replacing
from zfscope.networks.archives import check_archive
from zfscope.networks.build import build_network
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.public import check_fits, is_zoo_name, open_zoo
from zfscope.networks.state_dicts import check_weights, find_weights, read_weights
from zfscope.networks.tensors import read_tensors
from zfscope.runs import RECORD, finished_conditions, why_no_training
from zfscope.schema import leaves, plain, shown

FORMAT = 1
# What a checkpoint holds, and of which kind; each may be missing.
_KINDS: dict[tuple[str, ...], type] = {("epoch",): int, ("global_step",): int, ("loops",): dict, ("progress",): dict}
_KINDS |= {("state_dict",): dict}
_KINDS |= {("loops", "fit_loop"): dict, ("loops", "fit_loop", "epoch_loop.batch_progress"): dict}
_KINDS |= {("zfscope", key): dict for key in ("config", "contents", "identity", "model", "preprocessing")}
_KINDS |= {("zfscope", "config", key): dict for key in ("data", "model", "optim", "trainer")}
_KINDS |= {("zfscope", "data"): str, ("zfscope", "classes"): list, ("zfscope", "identity", "digest"): str}
_KINDS |= {("zfscope", "identity", "facts"): dict, ("zfscope", "identity", "legs"): list}


def load_network(source: str | Path, weights_file: str | Path | None = None) -> Network:
    """A trained network from a run, a checkpoint or a public zoo; in eval mode, with ``preprocessing`` and ``classes``.

    Args:
        source: A run folder (its best checkpoint), ``RUN/last`` or ``RUN/epoch_010``, a ``.ckpt`` file,
            ``zoo/zfnet``, ``torchvision/alexnet`` or ``timm/resnet18`` (these need a network connection).
        weights_file: A file, safetensors or torch's, with weights for that public network.

    Raises:
        FileNotFoundError: If there is no such checkpoint, with the candidates.
        ValueError: If the file is damaged or is no checkpoint of this project.
    """
    if is_zoo_name(source):
        return open_zoo(str(source), weights_file).eval()
    if weights_file is not None:
        raise ValueError(f"weights_file={weights_file} belongs to a public network, such as timm/resnet18")
    path = find_checkpoint(source)
    return network_from_checkpoint(read_checkpoint(path), path).eval()


def save_network(network: Network, config: Mapping[str, Any], path: str | Path) -> None:
    """Write a network as a checkpoint that ``load_network`` reads; ``config`` holds at least the group ``model``."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    write_checkpoint({"state_dict": state, "zfscope": network_state(network, config)}, path)


def network_state(
    network: Network,
    config: Mapping[str, Any],
    data: str | None = None,
    identity: Mapping[str, Any] | None = None,
    contents: Mapping[str, Tensor] | None = None,
    unread: Mapping[str, Mapping[int, int]] | None = None,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds beside the weights: how to build the network, its preprocessing, classes and run.

    ``data`` is the fingerprint of its training set, ``identity`` that of the training (see ``training.identity``),
    ``contents`` the hashes of its images by part, ``(N, 8)`` uint8 (see ``data.contents``), ``unread`` the sizes, by
    part and index, of those that it could not read (see ``training.images``). ``model`` is what the network is built
    from, where ``config`` has interpolations instead of values from the environment.
    """
    return {
        "format": FORMAT,
        "model": plain(model or config["model"]),
        "config": plain(config),
        "data": data,
        "contents": dict(contents) if contents else None,
        "unread": {part: dict(sizes) for part, sizes in (unread or {}).items()},
        "identity": plain(identity) if identity else None,
        "num_classes": network.num_classes,
        "image_size": network.image_size,
        "classes": list(network.classes) if network.classes else None,
        "preprocessing": network.preprocessing.state() if network.preprocessing else None,
    }


def run_config(source: str | Path) -> dict[str, Any]:
    """The config that a checkpoint's run had, with what its network is built from; empty for public weights.

    What it took from the environment stands there as interpolations, which nothing resolves.
    """
    state = _state(source)
    config = dict(state.get("config") or {})
    return config | ({"model": state["model"]} if config and isinstance(state.get("model"), Mapping) else {})


def run_identity(source: str | Path, weights_file: str | Path | None = None) -> dict[str, Any] | None:
    """The identity of the training that made a network; of public weights their name, None where it is not known.

    Of a file of weights for a public network also its SHA-256.
    """
    if is_zoo_name(source):
        digest = {} if weights_file is None else {"weights_file": _content_of(weights_file)}
        name = str(source)
        return {"digest": " ".join([name, *digest.values()]), "facts": {"weights": name, **digest}}
    return _state(source).get("identity")


def run_progress(source: str | Path, weights_file: str | Path | None = None) -> dict[str, Any]:
    """The identity of a network's training, as ``run_identity`` gives it, and how far the training was.

    Where it is known ``epoch`` counts the whole epochs that the checkpoint has behind it, ``steps`` its steps;
    ``finished`` says whether its run has come to its end, and ``epochs`` counts those of the run, if it has not those
    of the checkpoint.
    """
    if is_zoo_name(source):
        return {"identity": run_identity(source, weights_file)}
    path = find_checkpoint(source)
    content = read_checkpoint(path)
    identity = _zfscope(content).get("identity")
    if content.get("epoch") is None:
        return {"identity": identity}
    # Lightning counts an epoch once its validation has ended, after the checkpoints of its end are written.
    batches = _at(content, "loops", "fit_loop", "epoch_loop.batch_progress") or {}
    epoch = content["epoch"] + bool(batches.get("is_last_batch", True))
    progress = {"identity": identity, "epoch": epoch, "steps": content.get("global_step")}
    if path.parent.name != "checkpoints":  # a file that was copied out of its run
        return progress
    conditions = finished_conditions(path.parent.parent)
    finished = conditions is not None and _digest_of(conditions.get("identity")) == _digest_of(identity)
    if conditions is not None and not finished and (last := path.with_name("last.ckpt")).is_file():
        # Results of an earlier end stay while a run goes on; a best epoch may lie before such an end.
        later = _zfscope(read_checkpoint(last)).get("identity")
        finished = _digest_of(conditions.get("identity")) == _digest_of(later)
    epochs = conditions.get("epochs") if conditions is not None and finished else epoch
    return {**progress, "finished": finished, **({} if epochs is None else {"epochs": epochs})}


def _content_of(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(identity: Any) -> Any:
    return identity.get("digest") if isinstance(identity, Mapping) else None


def _state(source: str | Path) -> Mapping[str, Any]:
    return {} if is_zoo_name(source) else _zfscope(read_checkpoint(find_checkpoint(source)))


def _zfscope(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint holds for this project; empty where it is another's."""
    state = content.get("zfscope")
    return state if isinstance(state, Mapping) else {}


def network_from_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> Network:
    """The network of a checkpoint read from ``path``; refused if it is not this project's or its weights do not fit."""
    state = checkpoint.get("zfscope")
    if not isinstance(state, Mapping) or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is no checkpoint of this project: it has no 'zfscope' entry; bare weights go to weights={path}"
        )
    version = state.get("format")
    if not isinstance(version, int) or version > FORMAT:
        told = shown(str(version), 40)
        raise ValueError(f"{path} has format {told}, newer than {FORMAT}; update this project to read it")
    weights = _weights_of(checkpoint["state_dict"])
    try:
        with torch.device("meta"):  # without memory first: a damaged size must not ask for terabytes
            sizeless = build_network(state["model"], state["num_classes"], state["image_size"])
        classes = tuple(state["classes"]) if state["classes"] else None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        cause = shown(str(error), 200)
        raise ValueError(f"{path} does not tell how to build its network ({cause}); use another checkpoint") from None
    preprocessing = recorded_preprocessing(checkpoint, path)
    check_weights(sizeless, weights, path)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
        network = build_network(state["model"], state["num_classes"], state["image_size"])
    network.load_state_dict(weights)
    network.classes, network.preprocessing = classes, preprocessing
    return network


def recorded_preprocessing(checkpoint: Mapping[str, Any], path: str | Path) -> Preprocessing | None:
    """How the images of a checkpoint's network are prepared, None where it has no way of its own."""
    try:
        values = checkpoint["zfscope"]["preprocessing"]
        return Preprocessing.from_state(values) if values else None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        cause = shown(str(error), 200)
        raise ValueError(
            f"{path} does not tell how its images are prepared ({cause}); use another checkpoint"
        ) from None


def _weights_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The network's part of the state of a LightningModule."""
    prefix = "network."
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def check_same_data(checkpoint: Mapping[str, Any], path: str | Path, fingerprint: str) -> None:
    """Refuse to resume a checkpoint, read from ``path``, with training images other than its own."""
    recorded = checkpoint.get("zfscope", {}).get("data")
    if recorded is not None and recorded != fingerprint:
        raise ValueError(f"the training images changed since {path} was written; start a new run with weights={path}")


def start_from(network: Network, source: str, weights_file: str | Path | None = None) -> list[str]:
    """Start a network from trained weights (``weights=`` of train.py); a classifier of another size stays fresh.

    ``source`` is what ``load_network`` takes, or a file that holds a state dict of the right shapes (see
    ``find_weights``). Preprocessing that came with the weights replaces the network's, since the filters were learned
    on such inputs. Returns the names of the parameters that kept their fresh start; refused are weights that are
    missing or have another shape.
    """
    own = network.state_dict()
    if is_zoo_name(source):
        check_fits(network, source, weights_file)
        pretrained = open_zoo(source, weights_file)
        weights, preprocessing = pretrained.state_dict(), pretrained.preprocessing
        if pretrained.num_classes == 0:  # without a head
            weights |= {name: tensor.new_empty(0) for name, tensor in own.items() if network.is_of_classifier(name)}
    else:
        if weights_file is not None:
            raise ValueError(f"weights_file={weights_file} belongs to a public network, such as weights=timm/resnet18")
        path = find_checkpoint(source)
        content = read_weights(path)
        state = _zfscope(content)
        if state:
            _check_kinds(content, path)
        if not all(isinstance(name, str) for name in content):
            raise ValueError(f"{source} is no state dict: its keys are not names; give a checkpoint or a state dict")
        weights = find_weights(content, network, source)
        preprocessing = recorded_preprocessing(content, source) if state else None
    fresh = [
        name
        for name in own
        if network.is_of_classifier(name)
        and isinstance(weights.get(name), Tensor)
        and weights[name].shape != own[name].shape
    ]
    weights = {**weights, **{name: own[name] for name in fresh}}
    check_weights(network, weights, source)
    network.load_state_dict(weights)
    if preprocessing is not None:
        if preprocessing.crop != network.image_size:
            raise ValueError(
                f"{source} was trained on crops of {preprocessing.crop} px; use data.resize={preprocessing.resize} "
                f"data.crop={preprocessing.crop}"
            )
        network.preprocessing = preprocessing
    return fresh


def find_checkpoint(source: str | Path) -> Path:
    """The file that a run folder, ``RUN/last`` or a path means; refused with the runs or checkpoints that are there."""
    if "://" in str(source):
        raise ValueError(f"checkpoint={source} is a URL; download the file first and give its path")
    path = Path(source)
    if path.is_file():
        return path
    folder = path / "checkpoints"
    if folder.is_dir():
        if (folder / "best.ckpt").is_file():
            return folder / "best.ckpt"
        if (folder / "last.ckpt").is_file():
            _tell_that_last_is_taken(folder)
            return folder / "last.ckpt"
        raise FileNotFoundError(f"{folder} holds no best.ckpt or last.ckpt; the run had not finished an epoch")
    if path.name == "last" and (path.parent / RECORD).is_dir() and not (path.parent / "checkpoints").is_dir():
        path = path.parent
    if path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}: {why_no_training(path)}")
    for candidate in (path.parent / "checkpoints" / f"{path.name}.ckpt", path.with_name(f"{path.name}.ckpt")):
        if candidate.is_file():
            return candidate
    folders = [folder for folder in (path.parent / "checkpoints", path.parent) if folder.is_dir()]
    entries = [str(entry) for folder in folders for entry in sorted(folder.iterdir())]
    sources = [entry for entry in entries if entry.endswith(".ckpt") or (Path(entry) / "checkpoints").is_dir()]
    alternatives = f"; there are {', '.join(sources[-5:])}" if sources else ""
    raise FileNotFoundError(f"no checkpoint at {path}{alternatives}; give a run folder, a .ckpt file or RUN/last")


@cache  # a command looks for its checkpoint several times
def _tell_that_last_is_taken(folder: Path) -> None:
    warnings.warn(f"{folder} holds no best.ckpt; last.ckpt is taken", stacklevel=3)


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write beside the target, flush to disk, then rename: the name never holds half a file (see `replacing`)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=True) as file:
        torch.save(dict(content), file)  # type: ignore[arg-type]  # torch writes to all that has write() and flush()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: checksums and sizes first, then tensors and plain containers; anything else is refused."""
    check_archive(path)
    content = read_tensors(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary")
    if _zfscope(content):
        _check_kinds(content, path)
    return content


def _check_kinds(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of this project whose parts are of another kind than we write."""
    for keys, kind in _KINDS.items():
        value = _at(content, *keys)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            told = f"its {'.'.join(keys)} is a {type(value).__name__}, not a {kind.__name__}"
            raise ValueError(f"{path}: {told}; use another checkpoint")
    about = content["zfscope"]
    for key, value in leaves({key: about.get(key) for key in ("classes", "config", "identity")}):
        if not isinstance(value, str if key.startswith("classes.") else str | int | float | None):
            raise ValueError(f"{path}: its {shown(key)} is a {type(value).__name__}; use another checkpoint")


def _at(content: Any, *keys: str) -> Any:
    """What nested mappings hold at these keys; None where they end before."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content
