"""Contrast normalisation against PyTorch's own in float64; filter renormalisation by hand."""

import math

import pytest
import torch
from torch import nn

from zfscope.networks import layers
from zfscope.networks.layers import ContrastNorm, contrast_norm, filter_rms, rescale_filters_

FORMATS = {"maps_first": torch.contiguous_format, "maps_last": torch.channels_last}


def random_maps(*shape, dtype=torch.float64, scale=20.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(*shape, dtype=dtype, generator=generator)


@pytest.fixture(params=[2**19, 40], ids=["one_block", "many_blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(layers, "BLOCK_CPU", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 20])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_contrast_norm_and_its_gradient_equal_pytorchs(memory, size, beta):
    maps = random_maps(3, 12, 4, 5).to(memory_format=memory).requires_grad_()
    copy = maps.detach().clone().requires_grad_()
    above = random_maps(3, 12, 4, 5).flip(0)

    out = contrast_norm(maps, size, alpha=1e-2, beta=beta, k=1.5)
    expected = nn.LocalResponseNorm(size, alpha=1e-2, beta=beta, k=1.5)(copy)
    out.backward(above)
    expected.backward(above)

    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps.grad, copy.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(2, 6), (2, 6, 7), (2, 6, 2, 3), (1, 6, 2, 2, 2)], ids=lambda shape: f"{len(shape)}d"
)
@pytest.mark.parametrize("size", [4, 5])
def test_gradient_of_contrast_norm_equals_finite_differences(shape, size):
    maps = random_maps(*shape, scale=3.0).requires_grad_()

    assert torch.autograd.gradcheck(lambda x: contrast_norm(x, size, alpha=0.1), maps)


def test_contrast_norm_by_hand():
    maps = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)

    out = contrast_norm(maps, size=2, alpha=0.2, beta=1.0, k=1.0)  # an even window reaches one map back

    torch.testing.assert_close(out, torch.tensor([[1 / 1.1, 2 / 1.5, 3 / 2.3]], dtype=torch.float64))


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
def test_memory_format_stays_also_in_the_gradient(memory):
    maps = random_maps(2, 6, 4, 4).to(memory_format=memory).requires_grad_()

    out = contrast_norm(maps)
    (gradient,) = torch.autograd.grad(out, maps, torch.ones(2, 6, 4, 4, dtype=torch.float64))

    assert out.is_contiguous(memory_format=memory)
    assert gradient.is_contiguous(memory_format=memory)


def test_a_view_with_gaps_is_normalised_like_its_copy():
    maps = random_maps(2, 12, 4, 8)[:, ::2, :, 1:6]

    torch.testing.assert_close(contrast_norm(maps), contrast_norm(maps.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4), (2, 0, 4, 4)])
def test_nothing_in_gives_nothing_out(shape):
    maps = torch.zeros(shape, requires_grad=True)

    out = contrast_norm(maps)
    out.sum().backward()

    assert out.shape == maps.grad.shape == shape


def test_bfloat16_is_computed_in_float32():
    maps = random_maps(2, 6, 4, 4, dtype=torch.float32).bfloat16().requires_grad_()

    with torch.autocast("cpu", torch.bfloat16):
        out = ContrastNorm()(maps)
    out.sum().backward()

    exact = maps.detach().float().requires_grad_()
    contrast_norm(exact).sum().backward()
    assert out.dtype == maps.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), contrast_norm(exact.detach()), rtol=2**-8, atol=0)
    torch.testing.assert_close(maps.grad.float(), exact.grad, rtol=2**-7, atol=0)


def test_nan_reaches_only_the_maps_in_its_window():
    maps = torch.ones(1, 9, 1, 2)
    maps[0, 4, 0, 0] = math.nan

    out = contrast_norm(maps, size=3)

    assert out.isnan().nonzero()[:, 1].tolist() == [3, 4, 5]
    assert not out[..., 1].isnan().any()


def test_compiled_contrast_norm_is_one_graph_with_the_same_values_and_gradient():
    maps = random_maps(2, 6, 4, 4).requires_grad_()
    compiled = torch.compile(ContrastNorm(), backend="aot_eager", fullgraph=True)

    expected, out = contrast_norm(maps), compiled(maps)

    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(norm.square().sum(), maps) for norm in (out, expected)))


def test_second_derivatives_equal_finite_differences():
    maps = random_maps(1, 6, 2, 2, scale=3.0).requires_grad_()

    assert torch.autograd.gradgradcheck(lambda x: contrast_norm(x * 1.0, alpha=0.1), maps)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"size": 0}, "size must be a whole number of maps, at least 1, but is 0"),
        ({"size": 2.5}, "but is 2.5"),
        ({"alpha": -1.0}, "alpha must be a finite number, at least 0, but is -1.0"),
        ({"beta": math.nan}, "beta must be a finite number, but is nan"),
        ({"k": 0.0}, "k must be a finite number above 0"),
    ],
)
def test_constants_without_meaning_are_refused(constants, message):
    with pytest.raises(ValueError, match=message):
        ContrastNorm(**constants)


def test_maps_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match=r"floating point, but are torch.uint8; convert them with .float\(\)"):
        contrast_norm(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \(N, C, ...\), but came with shape \(3,\)"):
        contrast_norm(torch.zeros(3))


def test_the_layer_prints_its_constants():
    assert repr(ContrastNorm(3)) == "ContrastNorm(3, alpha=0.0001, beta=0.75, k=2.0)"


def test_renormalisation_by_hand():
    weight = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)

    rescaled = rescale_filters_(weight, radius=1.0)  # RMS 2.5, 0.25 and 0

    assert rescaled.tolist() == [True, False, False]
    expected = torch.tensor([[1.2, 1.6, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)
    torch.testing.assert_close(weight, expected)


def test_filter_rms_is_over_all_weights_of_one_filter():
    weight = random_maps(5, 3, 7, 7)

    expected = [math.sqrt(sum(value**2 for value in one.flatten().tolist()) / 147) for one in weight]

    torch.testing.assert_close(filter_rms(weight), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_renormalising_twice_rescales_nothing_the_second_time(dtype):
    weight = random_maps(64, 3, 7, 7).to(dtype)

    assert rescale_filters_(weight, 0.1).all()
    assert not rescale_filters_(weight, 0.1).any()


def test_renormalisation_works_in_place_on_a_parameter_and_leaves_no_trace_in_its_graph():
    parameter = nn.Parameter(random_maps(4, 3, 3, 3))

    rescale_filters_(parameter, 0.1)

    assert parameter.is_leaf and parameter.requires_grad
    torch.testing.assert_close(filter_rms(parameter), torch.full((4,), 0.1, dtype=torch.float64))


def test_a_filter_at_nan_stays_nan_and_its_neighbours_are_rescaled():
    weight = torch.ones(3, 1, 2, 2)
    weight[1, 0, 0, 0] = math.nan

    above = rescale_filters_(weight, 0.5)

    assert above.tolist() == [True, False, True]
    assert weight[1, 0, 0, 0].isnan() and filter_rms(weight)[1].isnan()
    assert weight[[0, 2]].eq(0.5).all()


@pytest.mark.parametrize(("roundings", "counts"), [(4, False), (5, True)])
def test_a_filter_above_the_radius_by_more_than_four_roundings_counts(roundings, counts):
    weight = torch.full((1, 1, 1, 1), 1 + roundings * torch.finfo(torch.float64).eps, dtype=torch.float64)

    assert rescale_filters_(weight, 1.0).tolist() == [counts]


@pytest.mark.parametrize("radius", [0, -1.0, math.nan, math.inf])
def test_a_radius_without_meaning_is_refused(radius):
    with pytest.raises(ValueError, match="radius must be a finite number above 0"):
        rescale_filters_(torch.ones(1, 1, 1, 1), radius)


def test_a_weight_without_filters_is_refused():
    with pytest.raises(ValueError, match="one filter per row"):
        filter_rms(torch.ones(3))


def test_maps_are_normalised_in_blocks_of_bounded_size(monkeypatch):
    monkeypatch.setattr(layers, "BLOCK_CPU", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    blocks, work = layers._blocks(5, torch.randn(7, 4, 3, 3))

    assert [len(block) for (block,) in blocks] == [2, 2, 2, 1]  # 36 values an image
    assert [tuple(array.shape) for array in work] == [(2, 4 + 5 - 1, 9)] * 3
