"""Cutting boxes out of images."""

import math

import torch

from zfscope.deconvnet.boxes import boxes_of, cut, paste
from zfscope.networks.geometry import ReceptiveField


def test_windows_are_cut_from_images_with_what_overhangs_filled():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    field = ReceptiveField(size=2, stride=2, offset=-1)

    boxes = boxes_of(field, torch.tensor([[0, 1]]))

    assert boxes.tolist() == [[1, -1, 3, 1]]
    assert cut(image, boxes, fill=7).tolist() == [[[[7, 7], [1, 2]]]]
    assert not math.isnan(float(cut(image, boxes).sum()))


def test_a_window_of_the_size_of_its_target_that_begins_elsewhere_is_shifted():
    window, target = torch.arange(1.0, 10).view(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)

    paste(window, torch.tensor([[1, 1]]), target, torch.tensor([[0, 0]]))

    assert target[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
