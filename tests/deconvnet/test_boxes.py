"""Cutting boxes out of images."""

import math

import torch

from zfscope.deconvnet.boxes import boxes_of, cut
from zfscope.networks.geometry import ReceptiveField


def test_windows_are_cut_from_images_with_what_overhangs_filled():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    field = ReceptiveField(size=2, stride=2, offset=-1)

    boxes = boxes_of(field, torch.tensor([[0, 1]]))

    assert boxes.tolist() == [[1, -1, 3, 1]]
    assert cut(image, boxes, fill=7).tolist() == [[[[7, 7], [1, 2]]]]
    assert not math.isnan(float(cut(image, boxes).sum()))
