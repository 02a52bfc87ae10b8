"""The pretrained models of timm by name: which weights there are, how they want their images, and where they lie.

``timm/resnet18`` means the weights that timm takes by default, ``timm/resnet18.a1_in1k`` those of one training.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from timm.models._hub import load_state_dict_from_hf
from torch import Tensor

from zfscope.networks.downloads import downloading
from zfscope.networks.hooked import TimmNetwork
from zfscope.networks.imagenet import class_names
from zfscope.networks.preprocessing import INTERPOLATIONS, Preprocessing
from zfscope.networks.state_dicts import check_weights, find_weights, read_weights, tensor_mappings
from zfscope.schema import nearest

PREFIX = "timm/"
FILES = ("model.safetensors", "pytorch_model.bin")  # on the hub, the safer one first


def full_name(name: str) -> str:
    """The name that timm has for ``timm/resnet18``, with its training: ``resnet18.a1_in1k``, where there are weights.

    Raises:
        ValueError: If timm has no such model or training, with the nearest name.
    """
    short = name.removeprefix(PREFIX)
    model, _, tag = short.partition(".")
    if not timm.is_model(model):
        names = [PREFIX + known for known in timm.list_models()]
        raise ValueError(f"there are no public weights {name!r}; {nearest(PREFIX + model, names)}")
    trainings = [known for known in _trainings() if known.partition(".")[0] == model]
    if tag and short not in trainings:
        names = [PREFIX + known for known in trainings]
        way = nearest(name, names) if names else f"timm has no pretrained weights of {model}"
        raise ValueError(f"there are no public weights {name!r}; {way}")
    config = timm.get_pretrained_cfg(short)
    return f"{model}.{config.tag}" if config is not None and config.tag else model


@cache
def _trainings() -> tuple[str, ...]:
    return tuple(timm.list_models(pretrained=True))


def model_config(name: str) -> dict[str, Any]:
    """The ``model`` group of a network that the public weights ``name`` belong to."""
    return {"source": "timm", "name": full_name(name), "input_scale": "unit"}


def pretrained(name: str, weights_file: str | Path | None = None) -> PretrainedCfg:
    """What timm knows of the public weights ``name``; refused where it has none and no file is given."""
    config = timm.get_pretrained_cfg(full_name(name))
    if config is None or not (weights_file or config.has_weights):
        model = name.removeprefix(PREFIX)
        raise ValueError(
            f"timm has the model {model}, but no pretrained weights of it; train it (model=timm model.name={model}), "
            "or give weights of your own: weights_file=FILE"
        )
    return config


def preprocessing(name: str, config: PretrainedCfg) -> Preprocessing:
    """How the weights want their images, as timm evaluates them at the size that they were trained with.

    Raises:
        ValueError: If that cannot be done exactly.
    """
    data = resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise ValueError(f"{name} wants images of {channels} x {height} x {width}; only squares in colour can be given")
    resize = int(height / data["crop_pct"])  # as timm rounds it
    if resize < height:
        raise ValueError(
            f"{name} wants images of {resize} px in a black frame of {height} px, which is not drawn; choose another"
        )
    if data["interpolation"] not in INTERPOLATIONS:
        raise ValueError(f"{name} wants {data['interpolation']} resizing; there is {' and '.join(INTERPOLATIONS)}")
    mean, std = (torch.tensor(data[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    ways = data["interpolation"], data["crop_mode"]
    return Preprocessing(resize, height, (255 * mean).float(), (1 / (255 * std)).float(), *ways)


def open_timm(name: str, weights_file: str | Path | None = None) -> TimmNetwork:
    """The public weights ``name``, or those of a file for that model, in a network in eval mode.

    Raises:
        ValueError: If there are no such weights, or they are another model's.
        FileNotFoundError: If there is no such file.
        ConnectionError: If the weights could not be downloaded.
    """
    full, config = full_name(name), pretrained(name, weights_file)
    prepared = preprocessing(name, config)
    if weights_file is None:
        weights = _downloaded(f"{PREFIX}{full}", config)
        try:
            body = _model(full, weights)
        except Exception as error:  # timm's conversions fail in many ways
            raise ValueError(f"{name}: timm cannot read the weights that it has ({error})") from error
    else:
        body = _model_of_file(full, config, weights_file, prepared.crop)
    network = TimmNetwork(full, config.num_classes, prepared.crop, body=body)
    check_weights(network, network.state_dict(), weights_file or name)
    network.preprocessing = prepared
    network.classes = class_names(config.num_classes) or None
    return network.eval()


def _model(full: str, weights: Mapping[str, Tensor]) -> torch.nn.Module:
    """A model of timm with weights that timm brings into its own names and shapes."""
    with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
        body = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(weights)})
    body.pretrained_cfg.pop("state_dict", None)
    return body


def _model_of_file(full: str, config: PretrainedCfg, path: str | Path, image_size: int) -> torch.nn.Module:
    content = read_weights(path)
    with torch.device("meta"):
        bare = TimmNetwork(full, config.num_classes, image_size)
    weights = find_weights(content, bare, path)
    if bare.state_dict().keys() <= weights.keys():
        check_weights(bare, weights, path)
        return _model(full, {name.removeprefix("body."): tensor for name, tensor in weights.items()})
    for foreign in tensor_mappings(content):  # names of the model's authors, some of which timm knows
        try:
            return _model(full, foreign)
        except Exception:  # timm's conversions fail in many ways; told is what is missing
            continue
    check_weights(bare, weights, path)
    raise ValueError(f"{path} holds no weights of {full}")


def _downloaded(name: str, config: PretrainedCfg) -> Mapping[str, Tensor]:
    """The weights as timm's hub has them: put there by hand, cached, or downloaded."""
    folder = Path(torch.hub.get_dir(), "checkpoints")
    if not config.hf_hub_id:
        file = folder / config.url.rpartition("/")[2]
        with downloading(name, config.url, f"into {folder}", file):
            return torch.hub.load_state_dict_from_url(config.url, map_location="cpu", weights_only=True)
    own = folder / name
    cached = (huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file) for file in FILES)
    places = [*(own / file for file in FILES), *(Path(path) for path in cached if isinstance(path, str))]
    for path in places:
        if path.is_file():
            return read_weights(path)
    with downloading(name, huggingface_hub.hf_hub_url(config.hf_hub_id, FILES[0]), f"into {own}"):
        return load_state_dict_from_hf(config.hf_hub_id, weights_only=True)
