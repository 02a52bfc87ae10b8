"""Types of the public API, as a user sees them: right calls pass mypy's strict mode, wrong ones do not."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
from typing import assert_type

import torch
from torch import Tensor

from zfscope import ConvNet, build_network, load_network, receptive_field
from zfscope.activations import TopActivations, TopTable
from zfscope.deconvnet import project
from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.network import Network
from zfscope.occlusion import Occlusion, occlude


def projections(network: torch.nn.Module, images: Tensor, cut: bool) -> None:
    assert_type(project(network, images, "conv5", [0, 1]), Tensor)
    assert_type(project(network, images, "conv5", torch.tensor([0, 1]), crop=False), Tensor)
    patches, boxes = project(network, images, "conv5", [0, 1], rule="guided", crop=True)
    assert_type(boxes, Tensor)
    assert_type(project(network, images, "conv5", [0, 1], crop=cut), Tensor | tuple[Tensor, Tensor])


def strongest(network: Network, batches: list[Tensor]) -> dict[str, TopTable]:
    top = TopActivations({"conv5": 256}, k=9)
    for number, images in enumerate(batches):
        top.update({"conv5": network.features(images, "conv5")}, torch.tensor([number]))
    return top.own_tables()


network = load_network("outputs/RUN")
assert_type(network, Network)
assert_type(build_network({"source": "timm", "name": "resnet18"}, 10, 224), Network)
assert_type(receptive_field(network, "conv5"), ReceptiveField)
assert_type(occlude(network, torch.zeros(3, 224, 224), 3, layer=None), Occlusion)
if isinstance(network, ConvNet):
    assert_type(network.image_size, int)
"""
MISTAKES = """
import torch

from zfscope import build_network, load_network
from zfscope.activations import TopActivations
from zfscope.deconvnet import project
from zfscope.occlusion import occlude

images = torch.zeros(1, 3, 224, 224)
network = load_network("outputs/RUN")
load_network(3)  # mistake
build_network("zfnet", 10, 224)  # mistake
project(network, images, "conv5", [0], rule="guidd")  # mistake
project(network, images, "conv5", [0], crop=True).shape  # mistake
occlude(network, images[0], "cat")  # mistake
TopActivations(["conv5"])  # mistake
network.preprocessing.crop  # mistake
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What mypy says of both programs, by line, with the settings and the cache of ``make lint``."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "mistakes.py").write_text(MISTAKES)
    mypy = [sys.executable, "-m", "mypy", "--no-error-summary", folder / "program.py", folder / "mistakes.py"]

    ran = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)

    assert not ran.stderr
    found = re.findall(r"(\w+)\.py:(\d+): error: (.*)", ran.stdout)
    return {name: {int(line): text for of, line, text in found if of == name} for name in ("program", "mistakes")}


@pytest.mark.slow
def test_a_program_that_uses_the_public_api_is_taken_strictly(reported):
    assert reported["program"] == {}


@pytest.mark.slow
def test_each_argument_of_a_wrong_type_is_found(reported):
    mistakes = [number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.endswith("# mistake")]

    assert len(mistakes) == 7
    assert sorted(reported["mistakes"]) == mistakes
