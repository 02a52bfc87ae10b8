"""What a network makes of one image: the most probable classes, and the strongest maps of each layer, projected."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zfscope.activations import TopTable
from zfscope.deconvnet.choice import Choice, told
from zfscope.deconvnet.winners import OUTSIDE, NoFeatureMaps, project_winners, projectable_layers, top_images
from zfscope.figures import projection_sheet
from zfscope.networks.network import Network, evaluating
from zfscope.schema import printable

CLASSES, MAPS = 5, 16
TILE = 144  # pixels, about: a unit that sees the whole image may respond to a small part of it


@torch.no_grad()
def most_probable(network: Network, inputs: Tensor) -> str:
    """The most probable classes of one network input ``(3, H, W)`` and their probabilities, as text."""
    with evaluating(network):
        shares, numbers = F.softmax(network(network.as_input(inputs[None]))[0].float(), 0).sort(descending=True)
    names = network.classes or [f"class {number}" for number in range(len(shares))]
    best = zip(shares[:CLASSES].tolist(), numbers[:CLASSES].tolist(), strict=True)
    return ", ".join(f"{printable(names[number])} {100 * share:.1f} %" for share, number in best)


def strongest_maps(network: Network, inputs: Tensor, title: str, rule: Choice = "auto") -> dict[str, Image.Image]:
    """A sheet for each layer: of one network input ``(3, H, W)`` the strongest maps, what they saw and its projection.

    Layers that cannot be projected are left out; there may be none, as in a vision transformer.
    """
    try:
        layers, _ = projectable_layers(network, None, inputs, rule=rule, errors=ValueError)
    except NoFeatureMaps:
        layers = ()
    if not layers:
        return {}
    whole = top_images(network, [(inputs[None], torch.zeros(1), torch.zeros(1, dtype=torch.int64))], layers, 1)
    maps = {layer: table.values[:, 0].argsort(descending=True, stable=True)[:MAPS] for layer, table in whole.items()}
    tables = {layer: TopTable(*(part[maps[layer]] for part in table)) for layer, table in whole.items()}
    sheets = {}
    for winners in project_winners(network, tables, maps, lambda indices: inputs[None], rule=rule):
        table, shape = tables[winners.layer], winners.patches.shape[1:]
        pair = torch.full((2, *table.values.shape, *shape), OUTSIDE, dtype=torch.uint8)
        pair[:, winners.rows, winners.ranks] = torch.stack([winners.patches, winners.tiles()[0]])
        name = f"{winners.layer}, strongest maps of {title}"
        name += told(network, winners.layer, inputs[None], rule)
        sheets[winners.layer] = projection_sheet(maps[winners.layer], *pair, table.values, title=name, tile=TILE)
    return sheets
