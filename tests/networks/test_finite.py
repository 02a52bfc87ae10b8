"""Which tensor holds NaN or infinity."""

import math

import pytest
import torch
from torch import nn

from zfscope.networks.finite import broken_tensor, check_finite, check_result
from zfscope.networks.hooked import HookedNetwork


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 33, 3), nn.BatchNorm2d(33), nn.Conv2d(33, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(value, dtype):
    module = body().to(dtype)
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    assert broken_tensor(module) is None

    for name, tensor in tensors.items():
        for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
            kept = tensor.view(-1)[place].clone()
            tensor.view(-1)[place] = value
            assert broken_tensor(module) == name
            tensor.view(-1)[place] = kept


def test_a_large_value_is_none_that_is_not_finite():
    module = body()
    nn.init.constant_(module[0].weight, torch.finfo(torch.float32).max)  # their sum overflows

    assert broken_tensor(module) is None


def test_a_mask_or_limit_may_be_infinite_but_not_nan():
    module = body()
    module.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
    module.register_buffer("best", torch.tensor(math.inf), persistent=False)
    assert broken_tensor(module) is None

    module.mask[2, 0] = math.nan

    assert broken_tensor(module) == "mask"


def test_what_has_no_floating_values_is_passed_over():
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(0, 0))
    module.register_buffer("count", torch.tensor(3))
    module.register_buffer("narrow", torch.zeros(2).to(torch.float8_e4m3fn))

    assert broken_tensor(module) is None
    assert broken_tensor(nn.ReLU()) is None


def test_the_tensor_has_the_name_that_the_module_itself_gives_it():
    module = nn.Sequential(torch.compile(body(), backend="eager"))
    module[0].get_parameter("_orig_mod.2.bias").data[1] = math.nan

    with pytest.raises(ValueError, match=r"^the network's 0\.2\.bias holds NaN or infinity; load finite weights"):
        check_finite(HookedNetwork(module, ["0.2"]))


def test_images_and_results_that_are_not_finite_are_refused():
    network, values = body(), torch.zeros(1, 3, 4, 4)
    check_finite(network, values)
    check_result(values[:0], network, "the maps")

    values[0, 2, 3, 3] = -math.inf

    with pytest.raises(ValueError, match="^the images hold NaN or infinity"):
        check_finite(network, values)
    with pytest.raises(
        ValueError, match="^the maps hold NaN or infinity, though .*: bfloat16 may be too narrow for this"
    ):
        check_result(values, network.bfloat16(), "the maps")
