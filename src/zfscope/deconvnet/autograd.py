"""Activations projected down to pixels by autograd, for networks that are no chain of named layers.

Source: Zeiler & Fergus (2014), Sec. 2.1; see ``rules`` for what replaces the gradients of ReLU and normalisation.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zfscope.deconvnet.boxes import boxes_of, check_maps, check_positions, conv_cells, cut, image_of_each, strongest
from zfscope.deconvnet.rules import Rule, backward_rule, check_graph, check_rule, refusal, script_name
from zfscope.networks.network import Network, evaluating, run_to, uncompiled, watching

# Layers known to run once in a pass, by network.
_runs_once: weakref.WeakKeyDictionary[Network, set[str]] = weakref.WeakKeyDictionary()


class AutogradDeconvnet:
    """Projects activations of network inputs ``(N, 3, H, W)`` by autograd, ``batch_size`` at a time (default: all).

    The seed is the activation's own value, all others of the layer are zero. Nothing above the layer is computed, and
    the network is left as it was: mode, gradients, ``requires_grad``, hooks and torch's random numbers.
    """

    def __init__(
        self, network: Network, images: Tensor, rule: Rule = "deconvnet", batch_size: int | None = None
    ) -> None:
        check_rule(rule)
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"images must be floating point (N, 3, H, W), but are {images.dtype} {tuple(images.shape)}"
            )
        self.network, self.images, self.rule, self.batch_size = network, images, rule, batch_size

    def project(
        self,
        layer: str,
        maps: Tensor,
        positions: Tensor | None = None,
        *,
        sources: Tensor | None = None,
        crop: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project activations of a layer, as ``ChainDeconvnet.project`` does; in the dtype of the images.

        Raises:
            ValueError: If there is no such layer, it has no feature maps or is ambiguous, a map or position is not in
                it, or the network holds something that the rule is not defined for.
        """
        self.network.check_layer(layer)
        maps, positions = maps.cpu(), None if positions is None else positions.cpu()
        own, sources = sources is None, image_of_each(self.images, maps, sources)
        projections = []
        for rows in torch.arange(len(maps)).split(self.batch_size or max(1, len(maps))):
            every = own and len(rows) == len(maps)  # indexing could change their layout in memory
            images = self.images if every else self.images[sources[rows]]
            projections.append(self._project(images, layer, maps[rows], None if positions is None else positions[rows]))
        canvases = torch.cat(projections)
        if not crop:
            return canvases
        boxes = self._boxes(layer, maps, positions, sources)
        return cut(canvases, boxes), boxes

    @torch.no_grad()
    def _boxes(self, layer: str, maps: Tensor, positions: Tensor | None, sources: Tensor) -> Tensor:
        if positions is None or self.network.has_switches:
            with evaluating(self.network):
                trace = self.network.trace(self.images, top=layer)
            positions = strongest(trace.maps[layer], maps, sources) if positions is None else positions
            positions = conv_cells(trace, layer, maps, positions, sources)
        return boxes_of(self.network.field_below_pool(layer, tuple(self.images.shape[1:])), positions)

    def _project(self, images: Tensor, layer: str, maps: Tensor, positions: Tensor | None) -> Tensor:
        network, rule, device = self.network, self.rule, images.device
        if rule != "gradient":
            for path, module in network.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    raise ValueError(refusal(f"the scripted module {path or script_name(module)!r}", rule))
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=_rng_type(device)),
            evaluating(network),
            _frozen(network),
            uncompiled(),
        ):
            # A tensor from inference mode cannot take part in autograd.
            leaf = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
            _check_runs_once(network, leaf, layer)
            with backward_rule(rule):
                output = run_to(network, leaf, layer)
                activations = _address(output, layer, maps, positions)
                if not output.requires_grad:
                    raise ValueError(f"layer {layer!r} is cut off from the image: no gradient comes down from it")
                if rule != "gradient":
                    check_graph([output.grad_fn], set(), rule)
                seed = torch.zeros_like(output)
                seed[activations] = output.detach()[activations]
                (projections,) = torch.autograd.grad(output, leaf, seed)
        return projections


def _address(output: object, layer: str, maps: Tensor, positions: Tensor | None) -> tuple[Tensor, ...]:
    """The index of each image's activation in the layer's output."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != len(maps):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} has no feature maps (N, C, h, w) or (N, C): its output is {shape}")
    check_maps(output, layer, maps)
    positions = strongest(output.detach(), maps) if positions is None else positions.cpu()
    check_positions(output, layer, positions, len(maps))
    index = (torch.arange(len(maps)), maps, *(positions.unbind(1) if output.ndim == 4 else ()))
    return tuple(part.to(output.device) for part in index)


@torch.no_grad()
def _check_runs_once(network: Network, images: Tensor, layer: str) -> None:
    """Refuse an ambiguous layer: its module runs twice in one pass."""
    known = _runs_once.setdefault(network, set())
    if layer in known:
        return
    runs: list[str] = []
    with watching({layer: network.map_module(layer)}, lambda name, _output: runs.append(name)):
        network.forward(images[:1])
    if len(runs) > 1:
        raise ValueError(f"layer {layer!r} runs more than once in one pass; name a submodule that runs once")
    known.add(layer)


@contextmanager
def _frozen(network: Network) -> Iterator[None]:
    """No parameter needs a gradient inside: only what comes from the image does, and less is kept."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _rng_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
