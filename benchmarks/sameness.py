"""How much alike projections of different photographs are for the same map, by layer and rule.

    python benchmarks/sameness.py FOLDER zoo/squeezenet1_1 zoo/efficientnet_lite0 outputs/RUN

FOLDER holds photographs (*.jpg), of which each is made a square of ``--side`` pixels, so that the fields of high layers
lie within it. The measure is that of ``analysis=projections`` (docs/projections.md).
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from zfscope import load_network
from zfscope.activations import TopTable
from zfscope.deconvnet.choice import rule_for
from zfscope.deconvnet.sameness import sameness
from zfscope.deconvnet.winners import project_winners, random_subset, top_images
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing

RULES = ("deconvnet", "guided", "gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="+", metavar="checkpoint")
    parser.add_argument("--layers", nargs="*", help="default: all that have maps")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--maps", type=int, default=24, help="of each layer, drawn at random")
    parser.add_argument("--top", type=int, default=6, help="strongest activations of each map")
    options = parser.parse_args()
    photographs = [Image.open(path).convert("RGB") for path in sorted(options.folder.glob("*.jpg"))]
    print(
        f"{len(photographs)} photographs at {options.side} px, {options.maps} maps a layer, their {options.top} winners"
    )
    print(f"{'layer':40}{'field':>6}  " + "".join(f"{rule:>11}" for rule in RULES) + f"{'auto':>11}{'pairs':>7}")
    for name in options.networks:
        network = load_network(name)
        own = network.preprocessing
        mean = own.mean.mean((1, 2), keepdim=True)
        network.preprocessing = Preprocessing(options.side, options.side, mean, own.scale, own.interpolation)
        inputs = torch.stack([network.preprocess(photograph) for photograph in photographs])
        for layer in options.layers or network.layers_with_maps:
            field = network.field_below_pool(layer, tuple(inputs.shape[1:])).size
            found = {rule: _alike(network, layer, inputs, rule, options) for rule in RULES}
            pairs = found[RULES[0]][1]
            numbers = "".join(f"{'-' if value is None else f'{value:.2f}':>11}" for value, _ in found.values())
            print(
                f"{name + ' ' + layer:40}{field:6}  {numbers}{rule_for(network, layer, inputs):>11}{pairs:7}",
                flush=True,
            )


@torch.no_grad()
def _alike(
    network: Network, layer: str, inputs: torch.Tensor, rule: str, options: argparse.Namespace
) -> tuple[float | None, int]:
    """The mean correlation, and how many activations lie within their image."""
    numbers = torch.arange(len(inputs))
    table = top_images(
        network, [(image[None], 0, numbers[[at]]) for at, image in enumerate(inputs)], [layer], options.top
    )
    maps = random_subset(len(table[layer].values), options.maps, 0)
    chosen = TopTable(*(part[maps] for part in table[layer]))
    projections, boxes = None, torch.zeros(*chosen.values.shape, 4, dtype=torch.int64)
    read = inputs.__getitem__
    for winners in project_winners(network, {layer: chosen}, {layer: maps}, read, rule=rule, batch_size=1):
        if projections is None:
            projections = torch.zeros(*chosen.values.shape, *winners.projections.shape[1:])
        projections[winners.rows, winners.ranks] = winners.projections
        boxes[winners.rows, winners.ranks] = winners.boxes
    if projections is None:
        return None, 0
    side = inputs.shape[-1]
    inside = (boxes[..., :2] >= 0).all(-1) & (boxes[..., 2] <= side) & (boxes[..., 3] <= side) & (boxes[..., 2] > 0)
    counts = inside.sum(1)
    return sameness(projections, boxes, chosen.indices, (side, side)), int((counts * (counts - 1) // 2).sum())


if __name__ == "__main__":
    main()
