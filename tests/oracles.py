"""What several rooms' tests compare with: results worked out the slow and obvious way."""

import pytest
import torch

from zfscope.activations import TopTable
from zfscope.networks.network import evaluating
from zfscope.occlusion.maps import Occlusion
from zfscope.occlusion.sensitivity import Sensitivity


def occluded_by_hand(network, image, target, size, stride, fill, layer):
    """Sensitivity of an image by covering it in a double loop, in eval mode; nothing of ``look`` is used."""
    weight = next(network.parameters())
    image = image.to(weight)

    def answers(covered):
        trace = network.trace(covered[None])
        return trace.logits[0].softmax(0), trace.maps[layer][0].flatten(1).sum(1)

    count = -(-(image.shape[-1] - size) // stride) + 1
    probability, activation = torch.zeros(count, count, dtype=weight.dtype), torch.zeros(count, count)
    label = torch.zeros(count, count, dtype=torch.int64)
    with torch.no_grad(), evaluating(network):
        whole, sums = answers(image)
        target, strongest = int(whole.argmax()) if target is None else target, int(sums.argmax())
        for row in range(count):
            for column in range(count):
                covered = image.clone()
                covered[:, row * stride : row * stride + size, column * stride : column * stride + size] = fill
                probabilities, sums_now = answers(covered)
                probability[row, column], label[row, column] = probabilities[target], probabilities.argmax()
                activation[row, column] = sums_now[strongest]
    return Sensitivity(
        Occlusion(probability, label, activation, strongest),
        target,
        float(whole[target]),
        int(whole.argmax()),
        float(sums[strongest]),
        layer,
        size,
        stride,
    )


def check_alike(one, other):
    """Two sensitivities are the same but for rounding."""
    for name in ("probability", "activation"):
        torch.testing.assert_close(
            getattr(one.occlusion, name).double(), getattr(other.occlusion, name).double(), rtol=1e-4, atol=1e-5
        )
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)
    assert torch.equal(one.occlusion.label, other.occlusion.label)
    assert one.occlusion.feature_map == other.occlusion.feature_map
    for name in ("target", "label", "layer", "size", "stride"):
        assert getattr(one, name) == getattr(other, name), name


def strongest_by_sorting(network, images, layer, maps, k):
    """Values, indices and positions of the strongest activations, from all activations of all images at once."""
    with torch.no_grad(), evaluating(network):
        activations = network.features(images, layer)[:, maps]
    values, places = activations.flatten(2).max(2)
    values, indices = values.t().sort(dim=1, descending=True, stable=True)
    places = places.t().gather(1, indices)
    width = activations.shape[3]
    return TopTable(values[:, :k], indices[:, :k], torch.stack([places // width, places % width], 2)[:, :k])
