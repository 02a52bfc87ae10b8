"""Random chains and questions to them."""

import random

import torch
from torch import nn
from torch.nn import functional as F

from zfscope import ConvNet
from zfscope.networks.spec import ContrastConfig, ConvLayer, DenseLayer, InitConfig, PoolConfig


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx, above):
        return above.clamp(min=0)


def oracle(network, images, layer, maps, positions, overwrite=False):
    """Autograd over plain functions: ReLU's gradient rectified, the norm's the identity."""
    images = images.clone().requires_grad_()
    found = images
    for name in network.layers:
        for part, module in getattr(network, name).named_children():
            if part == "norm":
                found = found + (module(found) - found).detach()
            elif part == "relu":
                found = Rectified.apply(found)
            elif part == "pool":
                # In the layer that is asked about only the seed is sent down; nothing can overwrite it.
                pooling = Overwriting.apply if overwrite and name != layer else pooled
                found = pooling(found, module.kernel_size, module.stride, module.ceil_mode)
            elif part == "linear":
                found = F.linear(found.flatten(1), module.weight, module.bias)
            elif part == "conv":
                found = F.conv2d(found, module.weight, module.bias, module.stride, module.padding, groups=module.groups)
            else:
                continue
            if part in ("relu", "pool", "linear"):
                feature_map = found
        if name == layer:
            break
    chosen = feature_map[torch.arange(len(maps)), maps]
    if positions is None:
        chosen = chosen.flatten(1).amax(1) if chosen.ndim > 1 else chosen
    elif chosen.ndim > 1:
        chosen = chosen[torch.arange(len(maps)), positions[:, 0], positions[:, 1]]
    (gradient,) = torch.autograd.grad((chosen * chosen.detach()).sum(), images)
    return gradient


def pooled(maps, kernel_size, stride, ceil_mode):
    return F.max_pool2d(maps, kernel_size, stride, ceil_mode=ceil_mode)


class Overwriting(torch.autograd.Function):
    """Max pooling whose gradient lets the last window in row-major order win, by a naive loop."""

    @staticmethod
    def forward(ctx, maps, kernel_size, stride, ceil_mode):
        out, ctx.switches = F.max_pool2d(maps, kernel_size, stride, ceil_mode=ceil_mode, return_indices=True)
        ctx.size = maps.shape
        return out

    @staticmethod
    def backward(ctx, above):
        below = above.new_zeros(ctx.size).flatten(2)
        switches, above = ctx.switches.flatten(2), above.flatten(2)
        for image in range(above.shape[0]):
            for channel in range(above.shape[1]):
                for window in range(above.shape[2]):
                    below[image, channel, switches[image, channel, window]] = above[image, channel, window]
        return below.view(ctx.size), None, None, None


def random_network(seed, dense=True, norms=True, bias=True):
    """A small chain that nobody would design: odd sizes, strides, paddings, groups, both orders of pool and norm."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        layers, channels = {}, 3
        for number in range(1, chance.randint(1, 4) + 1):
            kernel = chance.choice([1, 2, 3, 4, 5, 7])
            groups = chance.choice([1, 1, 2, 3]) if number > 1 else chance.choice([1, 1, 3])
            groups = groups if channels % groups == 0 else 1
            pool = PoolConfig(kernel_size=3, stride=2, ceil_mode=True) if chance.random() < 0.6 else None
            if chance.random() < 0.1:
                pool = PoolConfig(kernel_size=2, stride=chance.choice([1, 2, 3]), ceil_mode=chance.random() < 0.5)
            layers[f"conv{number}"] = ConvLayer(
                maps=6,
                kernel_size=kernel,
                stride=chance.randint(1, 4) if number == 1 else chance.choice([1, 1, 2, 3]),
                padding=chance.randint(0, min(3, kernel - 1) if kernel > 1 else 1),
                groups=groups,
                pool=pool,
                norm=chance.choice([None, "after_pool", "before_pool"]) if norms else None,
            )
            channels = 6
        if dense:
            layers["fc6"] = DenseLayer(units=7, dropout=0.5)
        layers["fc8"] = DenseLayer()
        size = chance.randint(15, 49)
        try:
            network = ConvNet(
                layers,
                num_classes=4,
                image_size=size,
                contrast=ContrastConfig(size=3, alpha=0.5),
                init=InitConfig(scheme="he"),
            )
        except ValueError:
            continue  # a kernel larger than its map
        break
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1) if bias else nn.init.zeros_(parameter)
    return network.double().eval()


def random_question(network, layer, seed, count=5):
    generator = torch.Generator().manual_seed(seed)
    size = network.image_size
    images = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    feature_maps = network.features(images, layer)
    maps = torch.randint(feature_maps.shape[1], (count,), generator=generator)
    if feature_maps.ndim == 2:
        return images, maps, torch.zeros(count, 2, dtype=torch.int64)
    height, width = feature_maps.shape[2:]
    corners = torch.tensor([[0, 0], [height - 1, width - 1], [0, width - 1]])  # where padding and ceil mode bite
    inner = torch.stack([torch.randint(side, (count - 3,), generator=generator) for side in (height, width)], 1)
    return images, maps, torch.cat([corners, inner])
