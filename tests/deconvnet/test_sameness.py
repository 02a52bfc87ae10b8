"""How much alike the projections of a map are from image to image."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from zfscope.activations import TopTable
from zfscope.deconvnet.sameness import sameness, told_same
from zfscope.deconvnet.winners import project_winners, top_images
from zfscope.networks.hooked import as_network

BOX = torch.tensor([2, 2, 6, 6])


def winners(maps=4, top=5):
    generator = torch.Generator().manual_seed(0)
    projections = torch.randn(maps, top, 3, 4, 4, generator=generator)
    return projections, BOX.repeat(maps, top, 1), torch.arange(top).repeat(maps, 1)


def test_it_is_pearsons_correlation_over_pairs_of_different_images():
    projections, boxes, indices = winners()
    indices[0, 1] = 0  # the same image twice

    found = sameness(projections, boxes, indices, (10, 10))

    pairs = [
        np.corrcoef(projections[row, one].flatten(), projections[row, other].flatten())[0, 1]
        for row in range(4)
        for one in range(5)
        for other in range(one)
        if indices[row, one] != indices[row, other]
    ]
    assert len(pairs) == 4 * 10 - 1
    assert found == pytest.approx(np.mean(pairs))


def test_projections_that_differ_in_strength_alone_are_the_same():
    projections, boxes, indices = winners()
    one = projections[:, :1] * torch.rand(4, 5, 1, 1, 1)

    assert sameness(one, boxes, indices, (10, 10)) == pytest.approx(1)


def test_boxes_that_overhang_and_whole_images_do_not_count():
    projections, boxes, indices = winners()

    assert sameness(projections, boxes - torch.tensor([3, 0, 3, 0]), indices, (10, 10)) is None
    assert sameness(projections, boxes + torch.tensor([0, 5, 0, 5]), indices, (10, 10)) is None
    assert sameness(projections, boxes - 2, indices, (4, 4)) is None
    assert sameness(projections, boxes * 0, indices, (10, 10)) is None  # activations that are not above 0
    assert sameness(projections, boxes, indices.fill_(-1), (10, 10)) is None


def test_too_few_pairs_are_no_measurement():
    assert sameness(*(part[:1] for part in winners()), (10, 10)) is None
    assert sameness(*(part[:2] for part in winners()), (10, 10)) is not None


@torch.no_grad()
def test_without_pools_the_deconvnet_draws_the_same_for_every_image_and_guided_does_not():
    torch.manual_seed(0)
    network = as_network(timm.create_model("mobilenetv2_035").eval(), ["blocks.1"])
    for module in network.modules():  # of fresh weights: statistics as after training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    images = torch.randn(6, 3, 96, 96)
    table = top_images(network, [(images, torch.zeros(6), torch.arange(6))], ["blocks.1"], 6)["blocks.1"]
    rows = torch.arange(len(table.values))

    found = {}
    for rule in ("deconvnet", "guided"):
        chosen = {"blocks.1": TopTable(*table)}, {"blocks.1": rows}
        (own,) = project_winners(network, *chosen, lambda indices: images[indices], rule=rule)
        projections = torch.zeros(*table.values.shape, *own.projections.shape[1:])
        boxes = torch.full((*table.values.shape, 4), -1)
        projections[own.rows, own.ranks], boxes[own.rows, own.ranks] = own.projections, own.boxes
        found[rule] = sameness(projections, boxes, table.indices, (96, 96))

    assert found["deconvnet"] > 0.95 > 0.7 > found["guided"], found


def test_titles_say_so_above_nine_tenths():
    body = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network = as_network(body, ["1", "2"])

    def titles(*values):
        return {told_same(network, layer, value, (3, 32, 32)) for layer in ("1", "2") for value in values}

    assert told_same(network, "2", 0.91, (3, 32, 32)) == ", the same for every image"
    assert told_same(network, "1", 0.91, (3, 32, 32)) == ", the filter itself"
    assert titles(0.9, None, -0.95) == {""}
