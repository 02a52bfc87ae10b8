"""The images that drive each feature map hardest, found in one streaming pass.

Source: Zeiler & Fergus (2014), Sec. 4 and Fig. 2: the top 9 activations of a feature map over the
validation set. The figure shows nine different images, so each image counts once per map, with its
strongest activation.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

# Pairs as one int64 that sorts as the pair does: a place in a map of any width is row * ROW + column,
# a map's image is map * IMAGES + image.
ROW = 2**32
IMAGES = 2**40
EMPTY = (-torch.inf, -1.0, -1.0, -1.0)


class TopTable(NamedTuple):
    """The strongest activations of one layer, a row per map, strongest first."""

    values: Tensor  # the activations, (C, k) float64; -inf where there were fewer than k images
    indices: Tensor  # in which image, (C, k) int64; -1 where empty
    positions: Tensor  # where in the map, (C, k, 2) int64 as (row, column); -1 where empty


class TopActivations(Metric):
    """The ``k`` images with the strongest activation of each feature map, of every layer at once.

    Each image counts once per map, also when it comes again, as in the padded batches of DDP: its
    larger activation counts. Ties go to the lower image index, then to the lower position (row by row).
    NaN and infinite activations never enter. The order of images, their split into batches and over
    ranks change nothing, and memory does not grow with their number.

    The state is float64 whatever the maps are, so that values and indices are exact; ``half()``,
    ``to(dtype)`` and ``set_dtype`` leave it so. It may lie on another device than the maps. MPS has no
    float64: there the state stays on the CPU, and ``update`` brings over what it needs.

    Args:
        channels: Number of maps (of units, if dense) by layer.
        k: How many images to keep for each map.
        **kwargs: As for any ``torchmetrics.Metric``.

    Raises:
        ValueError: If there is no layer, ``k`` is below 1, or a layer has no map.

    Source: Zeiler & Fergus (2014), Sec. 4 and Fig. 2; the rule for ties is our choice.
    """

    full_state_update = False

    def __init__(self, channels: Mapping[str, int], k: int = 9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be 1 or more, but is {k}")
        if not channels:
            raise ValueError("channels names no layer; give the number of maps by layer, such as {'conv5': 256}")
        self.channels = dict(channels)
        self.k = k
        for layer, count in self.channels.items():
            if count < 1:
                raise ValueError(f"layer {layer!r} must have 1 map or more, but has {count}")
            empty = torch.tensor(EMPTY, dtype=torch.float64).repeat(count, k, 1)
            self.add_state(_state_name(layer), empty, dist_reduce_fx=_merge)

    def update(self, maps: Mapping[str, Tensor], indices: Tensor) -> None:
        """Let a batch of images compete.

        Args:
            maps: Feature maps by layer, ``(N, C, h, w)`` or ``(N, C)``; any subset of the layers.
            indices: Each image's index in its data set, ``(N,)`` int64.

        Raises:
            ValueError: If a layer is unknown or has another number of maps, or ``indices`` does not
                give one number from 0 to 2**40 - 1 for each image. Nothing has changed then.
        """
        for layer, batch in maps.items():
            self._check(layer, batch, indices)
        for layer, batch in maps.items():
            name = _state_name(layer)
            setattr(self, name, _admit(getattr(self, name), batch.detach(), indices))

    def compute(self) -> dict[str, TopTable]:
        """The tables by layer, over all ranks."""
        return {layer: _table(getattr(self, _state_name(layer))) for layer in self.channels}

    def _check(self, layer: str, batch: Tensor, indices: Tensor) -> None:
        if layer not in self.channels:
            raise ValueError(f"no layer {layer!r}; the layers are {', '.join(self.channels)}")
        if batch.ndim not in (2, 4) or batch.shape[1] != self.channels[layer] or 0 in batch.shape[2:]:
            raise ValueError(
                f"{layer} must be (N, {self.channels[layer]}, h, w) or (N, {self.channels[layer]}), "
                f"but is {tuple(batch.shape)}"
            )
        if indices.is_floating_point() or indices.shape != batch.shape[:1]:
            raise ValueError(
                f"indices must be one integer for each of the {len(batch)} images of {layer}, "
                f"but are {indices.dtype} of shape {tuple(indices.shape)}"
            )
        if ((indices < 0) | (indices >= IMAGES)).any():
            raise ValueError(f"indices must be from 0 to 2**40 - 1, but go from {indices.min()} to {indices.max()}")

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # Module.to(float16) would round values and image indices: the state follows to a device, never to a dtype.
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return tensor if device.type == "mps" else tensor.to(device)

        return super()._apply(move, exclude_state)

    def _wrap_compute(self, compute: Callable) -> Callable:
        # torchmetrics squeezes every tensor of one element; the table of one map with k = 1 keeps its shape.
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def shaped(*args: Any, **kwargs: Any) -> dict[str, TopTable]:
            return {
                layer: TopTable(*(part.reshape(self.channels[layer], self.k, *part.shape[2:]) for part in table))
                for layer, table in wrapped(*args, **kwargs).items()
            }

        return shaped


def _state_name(layer: str) -> str:
    """A layer may be called "device", as an attribute of a Metric is."""
    return f"top_{layer}"


def _table(held: Tensor) -> TopTable:
    value, rest = held[..., 0], held[..., 1:].long()
    return TopTable(value, rest[..., 0], rest[..., 1:])


def _admit(held: Tensor, maps: Tensor, indices: Tensor) -> Tensor:
    """The state of a layer after a batch: ``(C, k, 4)`` of value, index, row, column, best first."""
    k = held.shape[1]
    maps = maps[:, :, None, None] if maps.ndim == 2 else maps
    peaks = _finite_peaks(maps).to(held.device).double()
    indices = indices.to(held.device).long()

    # Few maps of a batch reach the k-th place: only they are looked at again.
    last_value, last_index = held[:, -1, 0], held[:, -1, 1]
    reaching = (peaks > last_value) | ((peaks == last_value) & (indices[:, None] <= last_index))
    image, channel = reaching.nonzero(as_tuple=True)
    if len(image) == 0:
        return held

    # The holders of these maps' places come first in the list of rivals, the newcomers after them.
    contested, newcomer_map = channel.unique(return_inverse=True)
    holders = held[contested].flatten(0, 1)
    numbers = torch.arange(len(contested), device=held.device).repeat_interleave(k)
    numbers = torch.cat([numbers, newcomer_map])
    values = torch.cat([holders[:, 0], peaks[image, channel]])
    images = torch.cat([holders[:, 1].long(), indices[image]])
    winners, slots = _winners(numbers, values, images, k)

    places = torch.cat([_place(holders), torch.zeros_like(image)])
    entering = winners[winners >= len(holders)]
    batch_entry = entering - len(holders)
    places[entering] = _first_places(maps, image[batch_entry], channel[batch_entry], values[entering])
    seated = _seat(slots, values[winners], images[winners], places[winners], len(contested) * k)
    # A new tensor: changing in place a state that was made under inference_mode is refused outside of it.
    return held.index_put((contested,), seated.view(-1, k, 4))


def _merge(states: Tensor) -> Tensor:
    """One state ``(C, k, 4)`` from those of all ranks, ``(R, C, k, 4)``."""
    _, count, k, _ = states.shape
    rows = states.flatten(0, 2)
    numbers = torch.arange(count, device=states.device).repeat_interleave(k).repeat(len(states))
    values, images, places = rows[:, 0], rows[:, 1].long(), _place(rows)
    winners, slots = _winners(numbers, values, images, k)
    return _seat(slots, values[winners], images[winners], places[winners], count * k).view(count, k, 4)


def _finite_peaks(maps: Tensor) -> Tensor:
    """The largest finite activation of each map, ``(N, C)``; -inf where there is none."""
    # One vectorised pass each: in channels_last a pooling takes a third of amax's time, in the plain format
    # amax a fifth of a pooling's. max() with its indices would cost six times as much.
    if not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last) and maps.is_floating_point():
        peaks = F.max_pool2d(maps, maps.shape[2:]).flatten(1)
    else:
        peaks = maps.amax((2, 3))
    odd = ~peaks.isfinite()
    if odd.any():
        spoilt = maps[odd]
        peaks[odd] = spoilt.masked_fill(~spoilt.isfinite(), -torch.inf).amax((1, 2))
    return peaks


def _first_places(maps: Tensor, image: Tensor, channel: Tensor, values: Tensor) -> Tensor:
    """Where, row by row, each of these maps first has its value."""
    # By equality, for a map may also hold NaN, which argmax would take for its maximum.
    picked = maps[image.to(maps.device), channel.to(maps.device)].flatten(1)
    first = (picked == values.to(maps.dtype).to(maps.device)[:, None]).to(torch.uint8).argmax(1).to(values.device)
    width = maps.shape[3]
    return first // width * ROW + first % width


def _winners(numbers: Tensor, values: Tensor, images: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Who takes the ``k`` places of each map, from a list of M rivals in any order.

    Each rival has a map (``numbers``), a value and an image; image -1 is nobody. Returns the winners as positions in
    the list, and the slots ``map * k + place`` they take. Rivals alike in map, image and value share a slot: only where
    in the map they stand tells them apart.
    """
    owners = numbers * IMAGES + images
    order = (images >= 0).nonzero().squeeze(1)
    order = order[_sorted(-values[order], owners[order])]
    strongest = values[order][_starts(owners[order])]
    order = order[values[order] == strongest]  # each image's strongest in a map

    # The list is sorted by image already, and stable sorts keep it so among equal values.
    order = order[_sorted(-values[order], numbers[order])]
    rank = _heads(owners[order]).cumsum(0)
    rank = rank - rank[_starts(numbers[order])]
    inside = rank < k
    return order[inside], (numbers[order] * k + rank)[inside]


def _seat(slots: Tensor, values: Tensor, images: Tensor, places: Tensor, count: int) -> Tensor:
    """Rows ``(count, 4)`` of value, index, row, column; where several share a slot, the first place counts."""
    nowhere = torch.iinfo(torch.int64).max
    first = torch.full((count,), nowhere, device=slots.device).scatter_reduce(0, slots, places, "amin")[slots]
    rows = values.new_tensor(EMPTY).expand(count, 4).clone()
    rows[slots] = torch.stack([values, *(part.to(values) for part in (images, first // ROW, first % ROW))], dim=1)
    return rows


def _place(rows: Tensor) -> Tensor:
    return rows[:, 2].long() * ROW + rows[:, 3].long()


def _sorted(*keys: Tensor) -> Tensor:
    """The order that sorts by the last key, ties by the one before it, and so on (``numpy.lexsort``)."""
    order = keys[0].argsort(stable=True)
    for key in keys[1:]:
        order = order[key[order].argsort(stable=True)]
    return order


def _heads(keys: Tensor) -> Tensor:
    """Which members of a sorted list start a run of equal keys."""
    heads = torch.ones_like(keys, dtype=torch.bool)
    heads[1:] = keys[1:] != keys[:-1]
    return heads


def _starts(keys: Tensor) -> Tensor:
    """For each member of a sorted list, where its run of equal keys starts."""
    return torch.arange(len(keys), device=keys.device).where(_heads(keys), 0).cummax(0).values
