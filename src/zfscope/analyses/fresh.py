"""Networks with fresh weights: random ones as a control, and those that are trained from scratch on another data set.

Source: Zeiler & Fergus (2014), Sec. 5.2 trains its own network from scratch. Which other one does better, and the
recipe of a network that has no run, are our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from zfscope.analyses.spec import Analysis
from zfscope.data.spec import AugmentConfig
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import (
    find_checkpoint,
    read_checkpoint,
    recorded_preprocessing,
    run_config,
    run_identity,
)
from zfscope.networks.network import Network, count_parameters
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.public import imagenet_preprocessing, is_zoo_name, preprocessing_of, zoo_config
from zfscope.report.architectures import PUBLIC
from zfscope.schema import about, check
from zfscope.training.spec import OptimConfig

# Of a public network, which has no run: as experiment=elpv_resnet18 trains a network of timm's on two thousand images.
# In the paper's batches of 128 every step is a whole epoch of such folds.
MODERN = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "epochs": 100}, 32
PAPERS = {}, 128  # of the paper's own network: Sec. 3
UNTOLD = "does not tell how its network was trained"


@dataclass(frozen=True)
class Recipe:
    """What is trained from scratch, and how."""

    source: str  # the run or public name that it is taken from
    model: Mapping[str, Any]  # the group ``model`` of the config
    preprocessing: Preprocessing
    optim: OptimConfig
    augment: AugmentConfig  # of its own training
    batch_size: int

    @property
    def name(self) -> str:
        """What the network is called: ``zfnet_mini``, or the public name."""
        return self.source if is_zoo_name(self.source) else str(self.model.get("name"))

    def build(self, classes: int) -> Network:
        """The network with fresh weights from torch's generator."""
        network = build_network(self.model, classes, self.preprocessing.crop)
        network.preprocessing = self.preprocessing
        return network


def find_recipe(options: Analysis, checkpoint: str, network: Network, run: Mapping[str, Any]) -> Recipe | None:
    """What ``analysis=transfer`` trains from scratch: the checkpoint's own architecture, or ``analysis.scratch_model``.

    ``run`` is the config of the checkpoint's run. None where nothing is trained. A source that is no run of ours and no
    public name, and an image size that the network cannot have, are refused.
    """
    if not getattr(options, "scratch", False):
        return None
    source = options.scratch_model
    if source is None:
        if not is_zoo_name(checkpoint) and not run.get("model"):
            raise ValueError(f"{checkpoint} {UNTOLD}; give analysis.scratch_model, or analysis.scratch=false")
        recipe = _recipe(checkpoint, run, network.preprocessing)
    else:
        with about("analysis.scratch_model", source):
            recipe = recipe_of(source)
    if options.scratch_image_size is not None:
        with about("analysis.scratch_image_size", options.scratch_image_size):
            recipe = replace(recipe, preprocessing=resized(recipe.preprocessing, options.scratch_image_size))
            count_parameters_of(recipe.model, 2, recipe.preprocessing.crop)
    return recipe


def recipe_of(source: str) -> Recipe:
    """How a run of ours trained, or how a public network is trained."""
    if is_zoo_name(source):
        return _recipe(source, {}, None)
    path = find_checkpoint(source)
    content, run = read_checkpoint(path), run_config(source)
    preprocessing = recorded_preprocessing(content, path) if run else None
    if not run.get("model") or preprocessing is None:
        raise ValueError(f"it {UNTOLD}; give the folder of a run, or a public name such as zoo/squeezenet1_1")
    return _recipe(source, run, preprocessing)


def _recipe(source: str, run: Mapping[str, Any], preprocessing: Preprocessing | None) -> Recipe:
    if not is_zoo_name(source):
        optim = check(OptimConfig, run.get("optim", {}), "optim")
        data = run.get("data", {})
        augment = check(AugmentConfig, data.get("augment") or {}, "data.augment")
        return Recipe(source, run["model"], preprocessing, optim, augment, data.get("batch_size", 128))
    optim, batch_size = PAPERS if source in PUBLIC else MODERN
    # Fresh weights expect inputs of unit variance; some public ones were trained on grey levels.
    public, usual = preprocessing_of(source), imagenet_preprocessing()
    preprocessing = replace(public, mean=usual.mean, scale=usual.scale)
    return Recipe(source, zoo_config(source), preprocessing, OptimConfig(**optim), AugmentConfig(), batch_size)


def resized(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same for inputs of ``size`` pixels: the canvas in proportion, a mean image resized with it."""
    resize, mean = round(preprocessing.resize * size / preprocessing.crop), preprocessing.mean
    if mean.shape[-1] != 1:
        mean = F.interpolate(mean[None], (resize, resize), mode="bilinear", antialias=True)[0]
    return replace(preprocessing, resize=resize, crop=size, mean=mean)


def architecture(source: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group ``model`` of a public network's config, or of a run's; refused where none is told."""
    if not is_zoo_name(source) and not run.get("model"):
        raise ValueError(f"{source} does not tell its architecture, so there is none to give random weights to")
    return zoo_config(source) if is_zoo_name(source) else run["model"]


def count_parameters_of(model: Mapping[str, Any], classes: int, image_size: int) -> int:
    """How many a network would have; refused if it cannot be built."""
    with torch.device("meta"):
        return count_parameters(build_network(model, classes, image_size))


def named(source: str) -> str:
    """A source by what is trained, wherever it lies: seeds of one training have one name."""
    if is_zoo_name(source):
        return source
    identity, name = run_identity(source), run_config(source).get("model", {}).get("name")
    return f"{name} {identity['digest'][:12]}" if identity else source


def fresh_network(source: str, run: Mapping[str, Any], network: Network, seed: int) -> Network:
    """The architecture of a checkpoint, ``network``, with random weights; in eval mode, on its device."""
    model = architecture(source, run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_network(model, network.num_classes, network.image_size)
    fresh.preprocessing = network.preprocessing
    return fresh.to(network.device).eval()
