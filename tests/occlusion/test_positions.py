"""Where a sliding square comes to lie, and what it hides."""

import pytest
import torch

from zfscope.occlusion.positions import hidden, spans


def test_positions_along_a_side_are_clipped_at_its_end():
    first, last = spans(10, 4, 3)
    beyond, end = spans(10, 1, 4)

    assert first.tolist() == [0, 3, 6] and last.tolist() == [4, 7, 10]
    assert [edge.tolist() for edge in spans(11, 4, 3)] == [[0, 3, 6, 9], [4, 7, 10, 11]]
    assert beyond.tolist() == [0, 4, 8, 10] and end.tolist() == [1, 5, 9, 10]


@pytest.mark.parametrize(("size", "stride"), [(5, 2), (4, 3), (2, 5), (1, 4), (13, 1)])
def test_what_a_square_hides_is_what_a_loop_counts(size, stride):
    mask = torch.rand(13, 17, generator=torch.Generator().manual_seed(0)) < 0.4

    objects, pixels = hidden(mask, size, stride)

    for row in range(len(objects)):
        for column in range(objects.shape[1]):
            piece = mask[row * stride : row * stride + size, column * stride : column * stride + size]
            assert objects[row, column] == piece.sum() and pixels[row, column] == piece.numel()
    assert objects.shape == (-(-(13 - size) // stride) + 1, -(-(17 - size) // stride) + 1)
