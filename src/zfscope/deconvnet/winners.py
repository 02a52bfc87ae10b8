"""The strongest activations of feature maps beside what they were: image patches and their projections.

Winners of many maps share images, so each image goes forward once, whatever it won.

Source: Zeiler & Fergus (2014), Fig. 2 and Fig. 4.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zfscope.activations import TopActivations, TopTable
from zfscope.console import progress
from zfscope.deconvnet.boxes import cut
from zfscope.deconvnet.chain import ChainDeconvnet
from zfscope.deconvnet.choice import Choice, rule_for
from zfscope.deconvnet.projection import Unpooling, deconvnet_of, project
from zfscope.deconvnet.switches import KeptSwitches
from zfscope.images import as_rgb, contrast_limits, to_tiles
from zfscope.networks.hooked import TimmNetwork
from zfscope.networks.network import Network, Trace, evaluating, watching
from zfscope.networks.ranks import end_passes, learn_unread, tell_all
from zfscope.schema import listed

OUTSIDE = 127  # grey of a patch where its box overhangs the image, and of an empty place


class NoFeatureMaps(ValueError):
    """Layers without feature maps: the blocks of a vision transformer or of a mixer, dense layers."""

    def __init__(self, network: Network, layers: Sequence[str]) -> None:
        way = "name other layers"
        if isinstance(network, TimmNetwork):
            convs = (path for path, module in network.body.named_modules() if isinstance(module, nn.Conv2d))
            way = f"train with other layers, such as model.layers=[{next(convs, '…')}]"
        super().__init__(f"none of {listed(layers or network.layers)} has feature maps (N, C, h, w); {way}")


@dataclass(frozen=True)
class Winners:
    """Winners of one layer, as pictures."""

    layer: str
    rows: Tensor  # row of each in the layer's table, (P,)
    ranks: Tensor  # its column there, 0 the strongest, (P,)
    patches: Tensor  # what the unit saw, uint8 (P, 3, h, w); grey where the box overhangs the image
    projections: Tensor  # float (P, C, h, w), C the image's channels
    boxes: Tensor  # (P, 4) half-open (x0, y0, x1, y1), pixels; the whole image where a unit sees more

    def tiles(self) -> tuple[Tensor, Tensor]:
        """Projections as uint8 tiles ``(P, 3, h, w)``, each on its own scale, 0 mid grey, and these scales.

        A scale is the magnitude that is black or white.
        """
        projections = as_rgb(self.projections)
        limits = contrast_limits(projections)
        return to_tiles(projections, limit=limits), limits


@torch.no_grad()
def project_winners(
    network: Network,
    tables: Mapping[str, TopTable],
    maps: Mapping[str, Tensor],
    read: Callable[[Sequence[int]], Tensor],
    *,
    batch_size: int = 32,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    kept: KeptSwitches | None = None,
) -> Iterator[Winners]:
    """Project all winners of all layers, going through the images that won in the order of their indices.

    ``tables`` holds a table by layer, a row per feature map, and ``maps`` says which map each row is, ``(M,)``.
    ``read`` gives the network inputs ``(N, C, H, W)`` of image indices. Networks that are no chain, and other rules
    than ``deconvnet``, can only sum in unpooling. Images whose switches `top_images` ``kept`` come first, and do not
    run again.

    Yields:
        Winners, a layer and a batch of images at a time. Empty places and activations that are not above 0 are left
        out: there is nothing to carry down.
    """
    projectable = {layer: ((table.indices >= 0) & (table.values > 0)).cpu() for layer, table in tables.items()}
    winning = torch.cat([tables[layer].indices.cpu()[mask] for layer, mask in projectable.items()]).unique()
    top = max(tables, key=network.layers.index)
    known = torch.tensor([kept is not None and image in kept for image in winning.tolist()], dtype=torch.bool)
    for batch in (*winning[known].split(batch_size), *winning[~known].split(batch_size)):
        if not len(batch):
            continue
        images = read(batch.tolist())
        pictures = as_pictures(network, images)  # before a network in half precision rounds them
        inputs = network.as_input(images).contiguous(memory_format=torch.channels_last)
        height, width = inputs.shape[2:]
        rules = {layer: rule_for(network, layer, inputs, rule, unpooling) for layer in tables}
        ways = {"unpooling": unpooling, "batch_size": batch_size}
        again = kept is None or int(batch[0]) not in kept
        deconvnets = {
            rule: deconvnet_of(network, inputs, top, rule=rule, **ways)
            if again or rule != "deconvnet"
            else ChainDeconvnet(network, kept.trace(inputs, batch.tolist()), unpooling)
            for rule in set(rules.values())
        }
        for layer, table in tables.items():
            deconvnet = deconvnets[rules[layer]]
            indices = table.indices.cpu()
            rows, ranks = (projectable[layer] & torch.isin(indices, batch)).nonzero(as_tuple=True)
            if not len(rows):
                continue
            sources = torch.searchsorted(batch, indices[rows, ranks])
            positions, numbers = table.positions.cpu()[rows, ranks], maps[layer].cpu()[rows]
            crop = network.field_below_pool(layer, tuple(inputs.shape[1:])).size < min(height, width)
            if again or rules[layer] != "deconvnet":
                projections = deconvnet.project(layer, numbers, positions, sources=sources, crop=crop)
            else:
                values = table.values[rows.to(table.values.device), ranks.to(table.values.device)].to(inputs)
                projections = deconvnet.project_values(layer, values, numbers, positions, sources, crop)
            if crop:
                projections, boxes = projections
            else:  # a unit that sees more than the image is shown with the image
                boxes = torch.tensor([0, 0, width, height]).repeat(len(rows), 1)
            yield Winners(layer, rows, ranks, cut(pictures, boxes, OUTSIDE, sources), projections.cpu(), boxes)


class TopActivationsHook:
    """Hooks on a network's feature maps that let every batch compete; ``close`` removes them.

    Compiled code runs as ordinary code meanwhile. A layer whose output is no feature maps is passed over. Before each
    batch ``indices`` must be set to its images' numbers; ``top`` holds the ``k`` winners of each map. A layer that has
    not one output for each image is refused where the network runs; with ``strict=False`` it competes no longer, and
    ``mismatches`` says why. With ``most`` only so many maps of each layer compete, a `random_subset`; ``maps`` holds
    by layer which map each row of the tables is.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        k: int,
        strict: bool = True,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        self.indices: Tensor | None = None
        self.top: TopActivations | None = None
        self.mismatches: dict[str, str] = {}
        self.maps: dict[str, Tensor] = {}
        self._layers, self._k, self._strict, self._most, self._seed = tuple(layers), k, strict, most, seed
        self._first: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = ExitStack()
        self._hooks.enter_context(watching({layer: network.map_module(layer) for layer in layers}, self._listen))

    def close(self) -> None:
        """Take the hooks off; what the last batch left behind competes."""
        self._hooks.close()
        self._begin()

    def tables(self) -> dict[str, TopTable]:
        """The winners so far by layer, of this process alone; empty before the second batch."""
        return {} if self.top is None else self.top.own_tables()

    def compete(self, trace: Trace, kept: KeptSwitches) -> None:
        """After the trace of a batch: pooled maps, which no hook sees there, compete; winners' switches are kept."""
        for layer in trace.switches:
            if layer in self._layers:
                self._listen(layer, trace.maps[layer])
        tables = self.tables().values()
        winning = torch.cat([table.indices.flatten() for table in tables]).unique() if tables else self.indices
        kept.update(trace, self.indices, winning)

    def _listen(self, layer: str, maps: Any) -> None:
        if self.indices is None or layer in self.mismatches or not isinstance(maps, Tensor) or maps.ndim not in (2, 4):
            return
        if len(maps) != len(self.indices):
            self.mismatches[layer] = (
                f"{layer} gave {len(maps)} maps for a batch of {len(self.indices)} images; look into a "
                "layer that runs once for each image"
            )
            if self._strict:
                raise ValueError(self.mismatches[layer])
            return
        if layer not in self.maps:
            count = maps.shape[1]
            self.maps[layer] = random_subset(count, count if self._most is None else self._most, self._seed)
        if len(self.maps[layer]) < maps.shape[1]:
            maps = maps[:, self.maps[layer].to(maps.device)]
        if self.top is None and layer in self._first:  # a second batch: all layers have shown how many maps they have
            self._begin()
        if self.top is None:
            self._first[layer] = maps.detach().clone(), self.indices
        elif layer in self.top.channels:
            self.top.update({layer: maps}, self.indices)

    def _begin(self) -> None:
        if self.top is not None or not self._first:
            return
        device = next(iter(self._first.values()))[0].device
        self.top = TopActivations({layer: maps.shape[1] for layer, (maps, _) in self._first.items()}, self._k)
        self.top.to("cpu" if device.type == "mps" else device)
        for layer, (maps, indices) in self._first.items():
            self.top.update({layer: maps}, indices)
        self._first = {}


def top_images(
    network: Network,
    batches: Iterable[Sequence[Tensor]],
    layers: Sequence[str],
    k: int,
    kept: KeptSwitches | None = None,
) -> dict[str, TopTable]:
    """The top ``k`` images of every feature map in one pass over ``(inputs, label, index)``.

    Of a chain ``kept`` takes the switches of the winning images, so that `project_winners` need not run them again.
    """
    hook = TopActivationsHook(network, layers, k)
    try:
        with evaluating(network), torch.inference_mode():
            for inputs, _, hook.indices in progress(batches, "Finding the strongest activations"):
                inputs = inputs.to(network.device, memory_format=torch.channels_last)
                if kept is None:
                    network.run_up_to(inputs, layers)
                else:
                    hook.compete(network.trace(inputs, top=max(layers, key=network.layers.index)), kept)
    finally:
        hook.close()
    learn_unread(batches)
    tops = [top for top in tell_all(hook.top and hook.top.cpu()) if top is not None]  # of processes that had a batch
    end_passes()
    if not tops:
        raise NoFeatureMaps(network, layers)
    for other in tops[1:]:
        tops[0].merge_state(other)
    tables = tops[0].own_tables()
    return {layer: TopTable(*(part.clone() for part in table)) for layer, table in tables.items()}


def layers_to_watch(network: Network, layers: Sequence[str] | None) -> tuple[str, ...]:
    """The layers named, or those with maps: all but the dense ones at the top."""
    if layers is not None:
        if not layers:
            raise ValueError(f"layers names no layer; the layers are {', '.join(network.layers)}")
        for layer in layers:
            network.check_layer(layer)
            if layer in network.channels_last:
                raise ValueError(
                    f"layer {layer!r} gives (N, h, w, C), no feature maps (N, C, h, w); name another layer"
                )
        return tuple(dict.fromkeys(layers))
    return network.layers_with_maps


def check_projectable(
    network: Network,
    layers: Sequence[str] | None,
    image: Tensor,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
) -> tuple[str, ...]:
    """The layers to watch, each projected once, so that what cannot be is refused before a long pass over the data.

    ``image`` is a network input, ``(C, H, W)``; of layers that nobody named those without feature maps are left out.
    """
    projectable, refused = projectable_layers(network, layers, image, unpooling, rule, errors=ValueError)
    for cause in refused.values():
        raise ValueError(cause)
    return projectable


@torch.no_grad()
def projectable_layers(
    network: Network,
    layers: Sequence[str] | None,
    image: Tensor,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    errors: type[Exception] = Exception,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which layers can be projected, and why each of the others cannot.

    The arguments are those of ``check_projectable``; only ``errors`` count as causes, others are raised. Where no layer
    was named, those without feature maps are left out in silence as long as there are others.

    Raises:
        ValueError: If a layer is named that is not there, or the image is none.
        NoFeatureMaps: If no layer was named, and none has feature maps.
    """
    watched = layers_to_watch(network, layers)
    if image.ndim != 3:
        raise ValueError(f"projections need an image (C, H, W), but it came as {tuple(image.shape)}")
    inputs = network.as_input(image[None])
    if layers is None:
        hook = TopActivationsHook(network, watched, 1)
        hook.indices = torch.zeros(1, dtype=torch.int64)
        try:
            with evaluating(network):
                network(inputs.clone())
        finally:
            hook.close()
        if hook.top is None:
            raise NoFeatureMaps(network, watched)
        watched = tuple(layer for layer in watched if layer in hook.top.channels)
    projectable, refused = [], {}
    for layer in watched:
        try:
            project(network, inputs.clone(), layer, [0], unpooling=unpooling, rule=rule)
            projectable.append(layer)
        except errors as error:
            refused[layer] = str(error).strip().partition("\n")[0] or type(error).__name__
    return tuple(projectable), refused


@torch.no_grad()
def reproduces_activations(
    network: Network,
    tables: Mapping[str, TopTable],
    maps: Mapping[str, Tensor],
    read: Callable[[Sequence[int]], Tensor],
) -> bool:
    """Whether an image that won, read anew, gives about the activations that it won with.

    It does not where images are changed at random, or between reading them and the network; or where it was another.
    The arguments are those of ``project_winners``.
    """
    for layer, table in tables.items():
        won = (table.indices >= 0) & (table.values > 0)
        if not won.any():
            continue
        index = table.indices[won][0]
        rows, ranks = (won & (table.indices == index)).nonzero(as_tuple=True)
        with evaluating(network):
            feature_maps = network.features(network.as_input(read([int(index)])), layer)[0]
        feature_maps = feature_maps.flatten(1) if feature_maps.ndim > 1 else feature_maps[:, None]
        again, before = feature_maps.amax(1).cpu().double()[maps[layer].cpu()[rows]], table.values[rows, ranks].cpu()
        # Half precision and other batches change a few per cent, another image all of it.
        return bool(((again - before).abs() / before).median() < 0.1)
    return True


def as_pictures(network: Network, inputs: Tensor) -> Tensor:
    """Network inputs ``(N, C, H, W)`` as uint8 pictures ``(N, 3, H, W)``; other channels than three as their mean.

    Those of a network without preprocessing are shown each on its own scale.
    """
    if network.preprocessing is not None:
        return network.unpreprocess(inputs).round().to(torch.uint8).cpu()
    inputs = as_rgb(inputs.float())
    low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
    return (255 * (inputs - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8).cpu()


def random_subset(count: int, most: int, seed: int) -> Tensor:
    """A fixed random subset of ``count`` feature maps, at most ``most`` of them, in order."""
    return random_order(count, seed)[:most].sort().values


def random_order(count: int, seed: int) -> Tensor:
    """A fixed random order of ``count`` feature maps or images; its first ones are a `random_subset`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
