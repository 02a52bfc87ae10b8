"""The networks of ``conf/model``, made by timm."""

import pytest
import timm
import torch

import zfscope.timm_models
from tests.conftest import composed
from zfscope import build_network


@pytest.mark.parametrize("name", zfscope.timm_models.SIDES)
def test_timm_makes_the_network_that_hydra_composes(name):
    torch.manual_seed(0)
    ours = build_network(composed(f"model={name}")["model"], 7, zfscope.timm_models.SIDES[name])

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7)

    assert network.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), ours.parameters(), strict=True))


def test_zfnet_has_the_papers_parameters_and_takes_another_size():
    assert sum(weights.numel() for weights in timm.create_model("zfnet").parameters()) == 62_357_608

    network = timm.create_model("zfnet_mini", num_classes=3, img_size=64)

    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(("name", "largest"), [("zfnet", 0.6 * 255), ("zfnet_mini", 3)])
def test_timms_own_preprocessing_gives_values_of_the_models_scale(name, largest):
    options = timm.data.resolve_data_config({}, model=timm.create_model(name))

    white = (1 - torch.tensor(options["mean"])) / torch.tensor(options["std"])

    assert options["input_size"] == (3, *[zfscope.timm_models.SIDES[name]] * 2)
    assert largest * 0.8 < float(white.max()) < largest * 1.2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pretrained": True}, "zfnet has no pretrained weights in timm; zfscope.load_network"),
        ({"in_chans": 1}, "zfnet takes images of 3 channels, but in_chans=1"),
        ({"drop_rate": 0.1}, "zfnet takes num_classes and img_size, not drop_rate"),
    ],
)
def test_what_the_networks_have_not_is_refused(options, told):
    with pytest.raises((ValueError, TypeError), match=told):
        timm.create_model("zfnet", **options)
