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
        """Add a batch of images: their strongest activations enter the table of each map.

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
            setattr(self, name, _updated_state(getattr(self, name), batch.detach(), indices))

    def compute(self) -> dict[str, TopTable]:
        """The tables by layer, over all ranks."""
        return self.own_tables()

    def own_tables(self) -> dict[str, TopTable]:
        """The tables by layer as they are in this process."""
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

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # Module.to(float16) would round values and image indices: the state follows to a device, never to a dtype.
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return tensor if device.type == "mps" else tensor.to(device)

        return super()._apply(move, exclude_state)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., dict[str, TopTable]]:
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
    """Prefixed, since a layer may have the name of an attribute of a Metric, such as "device"."""
    return f"top_{layer}"


def _table(state: Tensor) -> TopTable:
    value, rest = state[..., 0], state[..., 1:].long()
    return TopTable(value, rest[..., 0], rest[..., 1:])


def _updated_state(state: Tensor, maps: Tensor, indices: Tensor) -> Tensor:
    """The state of a layer after a batch: ``(C, k, 4)`` of value, index, row, column, best first."""
    k = state.shape[1]
    maps = maps[:, :, None, None] if maps.ndim == 2 else maps
    peaks = _finite_peaks(maps).to(state.device).double()
    indices = indices.to(state.device).long()

    # Few maps of a batch reach the k-th place: only their tables change.
    last_value, last_index = state[:, -1, 0], state[:, -1, 1]
    reaching = (peaks > last_value) | ((peaks == last_value) & (indices[:, None] <= last_index))
    image, channel = reaching.nonzero(as_tuple=True)
    if len(image) == 0:
        return state

    # The list of entries: first those that are in the tables already, then those of the batch.
    changing, batch_numbers = channel.unique(return_inverse=True)
    rows = state[changing].flatten(0, 1)
    numbers = torch.arange(len(changing), device=state.device).repeat_interleave(k)
    numbers = torch.cat([numbers, batch_numbers])
    values = torch.cat([rows[:, 0], peaks[image, channel]])
    images = torch.cat([rows[:, 1].long(), indices[image]])
    winners, slots = _winners(numbers, values, images, k)

    positions = torch.cat([_packed_positions(rows), torch.zeros_like(image)])
    entering = winners[winners >= len(rows)]
    batch_entry = entering - len(rows)
    positions[entering] = _first_positions(maps, image[batch_entry], channel[batch_entry], values[entering])
    table = _fill_table(slots, values[winners], images[winners], positions[winners], len(changing) * k)
    # Not in place: torch forbids changing a tensor made under inference_mode outside of it.
    return state.index_put((changing,), table.view(-1, k, 4))


def _merge(states: Tensor) -> Tensor:
    """One state ``(C, k, 4)`` from those of all ranks, ``(R, C, k, 4)``."""
    _, count, k, _ = states.shape
    rows = states.flatten(0, 2)
    numbers = torch.arange(count, device=states.device).repeat_interleave(k).repeat(len(states))
    values, images, positions = rows[:, 0], rows[:, 1].long(), _packed_positions(rows)
    winners, slots = _winners(numbers, values, images, k)
    return _fill_table(slots, values[winners], images[winners], positions[winners], count * k).view(count, k, 4)


def _finite_peaks(maps: Tensor) -> Tensor:
    """The largest finite activation of each map, ``(N, C)``; -inf where there is none."""
    # Both are one vectorised pass: in channels_last a pooling takes a third of amax's time, in the plain format
    # amax a fifth of a pooling's. max() with its indices would cost six times as much.
    if not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last) and maps.is_floating_point():
        peaks = F.max_pool2d(maps, maps.shape[2:]).flatten(1)
    else:
        peaks = maps.amax((2, 3))
    not_finite = ~peaks.isfinite()
    if not_finite.any():
        affected = maps[not_finite]
        peaks[not_finite] = affected.masked_fill(~affected.isfinite(), -torch.inf).amax((1, 2))
    return peaks


def _first_positions(maps: Tensor, image: Tensor, channel: Tensor, values: Tensor) -> Tensor:
    """The first position, row by row, where each map ``(image, channel)`` has its value."""
    # By equality, since argmax would take a NaN for the maximum.
    selected = maps[image.to(maps.device), channel.to(maps.device)].flatten(1)
    first = (selected == values.to(maps.dtype).to(maps.device)[:, None]).to(torch.uint8).argmax(1).to(values.device)
    width = maps.shape[3]
    return first // width * ROW + first % width


def _winners(numbers: Tensor, values: Tensor, images: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The entries of the best ``k`` images of each map, from a list of M entries in any order.

    An entry has a map (``numbers``), a value and an image; image -1 is an empty entry. Returns the winners as indices
    into the list, and their slots ``map * k + rank``. Entries of the same map, image and value share a slot: they
    differ only in their position in the map.
    """
    owners = numbers * IMAGES + images
    order = (images >= 0).nonzero().squeeze(1)
    order = order[_sorted(-values[order], owners[order])]
    strongest = values[order][_starts(owners[order])]
    order = order[values[order] == strongest]  # each image's strongest entry in a map

    # The list is sorted by image already, and stable sorts keep it so among equal values.
    order = order[_sorted(-values[order], numbers[order])]
    rank = _heads(owners[order]).cumsum(0)
    rank = rank - rank[_starts(numbers[order])]
    inside = rank < k
    return order[inside], (numbers[order] * k + rank)[inside]


def _fill_table(slots: Tensor, values: Tensor, images: Tensor, positions: Tensor, count: int) -> Tensor:
    """Rows ``(count, 4)`` of value, index, row, column; where several share a slot, the first position counts."""
    nowhere = torch.iinfo(torch.int64).max
    first = torch.full((count,), nowhere, device=slots.device).scatter_reduce(0, slots, positions, "amin")[slots]
    rows = values.new_tensor(EMPTY).expand(count, 4).clone()
    rows[slots] = torch.stack([values, *(part.to(values) for part in (images, first // ROW, first % ROW))], dim=1)
    return rows


def _packed_positions(rows: Tensor) -> Tensor:
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
