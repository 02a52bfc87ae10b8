"""Six tiny runs, as a sweep leaves them."""

import pytest
import torch

from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing

CLASSES = tuple("abcdefgh")


def model(maps=4, name="tiny"):
    layer = {"maps": maps, "kernel_size": 3, "stride": 2, "padding": 1}
    return {"name": name, "conv1": layer, "fc6": {"units": 6}, "fc8": {}}


def save(path, seed=0, maps=4, name="tiny", classes=CLASSES, crop=16, resize=20, preprocessing=True, best="best"):
    """A run folder with a tiny network in it."""
    torch.manual_seed(seed)
    network = build_network(model(maps, name), len(classes), crop)
    network.classes = classes
    if preprocessing:
        mean, scale = torch.full((3, 1, 1), 110.0 + seed), torch.full((3, 1, 1), 0.05)
        network.preprocessing = Preprocessing(resize, crop, mean, scale)
    save_network(network, {"model": model(maps, name)}, path / "checkpoints" / f"{best}.ckpt")
    return path


@pytest.fixture
def six(tmp_path):
    """What a sweep leaves: six runs, the last one wider and with larger images, and a file beside them."""
    for number in range(5):
        save(tmp_path / "six" / str(number), number)
    save(tmp_path / "six" / "5", 5, maps=9, name="tiny_wide", resize=24, crop=20)
    (tmp_path / "six" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "six" / ".submitit").mkdir()
    return tmp_path / "six"
