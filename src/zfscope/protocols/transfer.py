"""Transfer to another data set: so many training images per class, frozen features or a network from scratch.

Source: Zeiler & Fergus (2014), Sec. 5.2, Tables 4 to 6, Fig. 9: random training images of each class, at most 50 test
images of each, five folds, mean accuracy per class. What a class with fewer images gets, the optimiser and the crops
the paper leaves open; what stands here is our choice.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from zfscope.console import progress
from zfscope.data.imageset import ImageSet, JoinedImages
from zfscope.data.order import TrainBatches
from zfscope.data.splits import Splits
from zfscope.networks.layers import conv_layers, rescale_filters_
from zfscope.networks.network import Network
from zfscope.schema import listed
from zfscope.training.classifier import shared_targets
from zfscope.training.optimisers import cosine_share, optimizer_of, revive_
from zfscope.training.spec import OptimConfig

LEAST_STEPS = 500  # of training from scratch: a few epochs of a few images would teach nothing


@dataclass(frozen=True)
class Target:
    """The data set that is learned: all images that folds are drawn from."""

    images: ImageSet
    held_out: np.ndarray | None  # (N,) bool, those kept for testing; None where the data set knows no such part

    @classmethod
    def of(cls, splits: Splits) -> Self:
        """All images of a data set that are not left out of it; an image that cannot be read is refused from here on.

        Its test images, or where there are none its validation images, never train.
        """
        parts = [images.readable() for images in splits.parts.values()]
        images = JoinedImages(parts)
        last = np.arange(len(images)) >= len(images) - len(parts[-1])
        return cls(images, None if splits.carved else last)

    def digest(self, fold: "Fold") -> str:
        """Equal for two folds that train and test on the same images, whatever size these were opened at."""
        parts = [self.images.origin.encode(), *(part.astype("<i8").tobytes() for part in (fold.train, fold.test))]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@dataclass(frozen=True)
class Fold:
    """Positions of the images that train and of those that test, sorted; none is in both."""

    train: np.ndarray
    test: np.ndarray
    number: int = 0


def draw_fold(target: Target, per_class: int, most_test: int | None, *, fold: int, seed: int) -> Fold:
    """Draw a fold: ``per_class`` training images of each class and, of the others, at most ``most_test`` to test.

    A fold's images of a class are shuffled once: the first train and the last test, so that with more training images
    those of fewer stay among them. Images have one label each. ``fold`` and ``seed`` fix the result on every machine;
    ``most_test=None`` takes all that are left.
    """
    random = np.random.RandomState(np.random.SeedSequence((seed, fold)).generate_state(4))
    train, test, short, held_out = [], [], [], target.held_out
    for number, name in enumerate(target.images.classes):
        own = random.permutation(np.flatnonzero(target.images.labels == number))
        if held_out is None:
            pool, rest = own, own[per_class:]
        else:
            pool, rest = own[~held_out[own]], own[held_out[own]]
        if len(pool) < per_class or not len(rest):
            short.append(f"{name} ({len(own)})" if held_out is None else f"{name} ({len(pool)} + {len(rest)} to test)")
        train.append(pool[:per_class])
        test.append(rest if most_test is None else rest[max(0, len(rest) - most_test) :])
    if short:
        raise ValueError(
            f"{per_class} training images per class and one to test are more than there are of {listed(short)}; "
            "ask for fewer (analysis.images_per_class), or leave classes out (data.classes)"
        )
    return Fold(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)), fold)


def used_by(folds: Iterable[Fold]) -> np.ndarray:
    """Positions of all images that any of the folds needs, sorted."""
    return np.unique(np.concatenate([part for fold in folds for part in (fold.train, fold.test)]))


def labels_of(target: Target, fold: Fold, seed: int, shuffle: bool) -> np.ndarray:
    """The labels that a fold trains on: its own, or as a control the same in a random order."""
    labels = target.images.labels[fold.train]
    return labels[np.random.RandomState(seed_of(fold, seed)).permutation(len(labels))] if shuffle else labels


def seed_of(fold: Fold, seed: int) -> int:
    """A seed of this fold's own."""
    return int(np.random.SeedSequence((seed, fold.number)).generate_state(1)[0])


def train_from_scratch(
    network: Network,
    loader: Callable[[TrainBatches], DataLoader],
    count: int,
    optim: OptimConfig,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    filter_rms: float | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Train a fresh network in place on ``count`` images; returned in eval mode.

    ``loader`` makes the loader of random views for a sampler of ``(epoch, index)``. Loss and optimiser are those of
    ``optim``; the rate goes down half a cosine to 0 over the ``steps``: the paper lowers it when validation error stops
    falling, but all images of a fold are needed to train. ``seed`` is that of the order of images and of dropout; after
    each update filters are set back to the radius ``filter_rms``.
    """
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = optimizer_of(network.parameters(), optim)
    warmup = steps / 20
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_share(step, steps, warmup, 0.0))
    filters = conv_layers(network).values() if filter_rms is not None else ()
    done = 0
    batches = loader(TrainBatches(count, min(batch_size, count), seed, position=lambda: done))
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    for images, labels, _ in progress(itertools.islice(endless, steps), "Training from scratch", steps):
        torch.manual_seed(int(np.random.SeedSequence((seed, done)).generate_state(1)[0]))
        logits = network(images.to(device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, shared_targets(labels).to(device), label_smoothing=optim.label_smoothing)
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"training from scratch: the loss became {loss.item()} at step {done}; lower optim.lr")
        optimizer.zero_grad()
        loss.backward()
        if optim.revive:
            revive_(network, optim.revive * optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        for layer in filters:
            rescale_filters_(layer.weight, filter_rms)
        done += 1
    return network.eval()
