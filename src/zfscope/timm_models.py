"""The networks of ``conf/model`` in timm: ``import zfscope.timm_models``, then ``timm.create_model("zfnet")``.

Their inputs in timm's own terms (``timm.data.resolve_data_config``) are the paper's: grey levels minus a mean, not
divided by a deviation where the model takes values of about ±128.

Source: Zeiler & Fergus (2014), Fig. 3; the mini networks are ours.
"""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model

from zfscope.networks.build import build_network
from zfscope.networks.network import Network
from zfscope.schema import CONF

SIDES = dict.fromkeys(("zfnet", "zfnet_wide", "alexnet"), 224)  # of inputs, pixels
SIDES |= dict.fromkeys(("zfnet_mini", "zfnet_mini_wide", "alexnet_mini"), 112)


def _described(name: str) -> DictConfig:
    """A file of ``conf/model``, on top of those that its ``defaults`` name."""
    own = DictConfig(OmegaConf.load(f"{CONF}/model/{name}.yaml"))
    parents = [parent for parent in own.pop("defaults", []) if parent != "_self_"]
    return DictConfig(OmegaConf.merge(*(_described(parent) for parent in parents), own))


def _entry(name: str) -> Callable[..., Network]:
    def create(
        pretrained: bool = False, num_classes: int = 1000, img_size: int = SIDES[name], in_chans: int = 3, **timms: Any
    ) -> Network:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights in timm; zfscope.load_network('zoo/zfnet') has some")
        if in_chans != 3:
            raise ValueError(f"{name} takes images of 3 channels, but in_chans={in_chans}")
        if further := sorted(timms.keys() - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}):
            raise TypeError(f"{name} takes num_classes and img_size, not {', '.join(further)}")
        model = _described(name)
        network = build_network(model, num_classes, img_size)
        deviations = (1 / 255,) * 3 if model["input_scale"] == 1.0 else IMAGENET_DEFAULT_STD
        network.default_cfg = network.pretrained_cfg = {  # type: ignore[assignment]  # torch knows tensors and modules
            "architecture": name,
            "num_classes": num_classes,
            "input_size": (3, img_size, img_size),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": deviations,
            "first_conv": f"{network.layers[0]}.conv",
            "classifier": f"{network.layers[-1]}.linear",
        }
        return network

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"``conf/model/{name}.yaml``, fresh weights; ``img_size`` in pixels."
    return create


__all__ = list(SIDES)  # register_model adds to it, too
for _name in SIDES:
    globals()[_name] = register_model(_entry(_name))
