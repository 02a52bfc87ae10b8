"""A small module, images with classes, and what an atlas's files hold."""

import json
import re

import pytest
import torch
from torch import nn

from zfscope.atlas import write
from zfscope.atlas.content import Options
from zfscope.atlas.public import make
from zfscope.atlas.source import Source
from zfscope.networks.hooked import as_network

SIDE, CLASSES = 40, ("cat", "dog", "owl")


def content_of(folder, name):
    """What a data script hands to the page."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    named, content = re.fullmatch(r'zfscopeAtlas\.take\("([^"]*)", ?(.*)\);\n', text).groups()
    assert named == name
    return json.loads(content)


def small_module(names=("one", "two"), maps=(5, 40)):
    """Two convolutions with a pool between; the last map of the second is dead."""
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module(names[0], nn.Conv2d(3, maps[0], 5, stride=2))
    module.add_module("act", nn.ReLU())
    module.add_module("pool", nn.MaxPool2d(2))
    module.add_module(names[1], nn.Sequential(nn.Conv2d(maps[0], maps[1], 3), nn.ReLU()))
    module.add_module("mean", nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", nn.Flatten())
    module.add_module("head", nn.Linear(maps[1], len(CLASSES)))
    with torch.no_grad():
        conv = module.get_submodule(names[1])[0]
        conv.weight[-1], conv.bias[-1] = 0, -1
    return module


def random_images(count=14):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder of an atlas of ``small_module`` over ``random_images``: four winners of each map, three pages."""
    folder = tmp_path_factory.mktemp("atlas") / "atlas"
    labels = [number % 3 for number in range(14)]
    ways = {"labels": labels, "classes": CLASSES, "layers": ["one", "two"], "top": 4, "pages": 3}
    assert write(small_module(), random_images(), folder, **ways) == folder / "index.html"
    return folder


HOSTILE = (
    "../../outside",
    "/etc/passwd",
    "..\\..\\outside",
    "C:\\con",
    "nul",
    ".",
    "..",
    "~/.ssh",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--",
    "]]>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}",
    "{% include '/etc/passwd' %}",
    "${alert(1)}",
    "&lt;b&gt;&amp;",
    "`);alert(1)//",
    "\u2028\u2029",
    "\u202eevil",
    "שלום",
    "🦉🦉",
    "name\nwith\tbreaks\0",
    "\udce9\udcff",
    "x" * 300,
    "%2e%2e%2f%00?#/",
    "images",
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """An atlas whose classes, images and layers have such names."""
    folder = tmp_path_factory.mktemp("hostile") / "inside" / "atlas"
    layers = ('<script>"/&', "image")
    network = as_network(small_module(layers, maps=(3, 4)), layers)
    images = random_images(len(HOSTILE))
    source = Source(
        read=lambda chosen: images[list(chosen)],
        batches=lambda size: [(images, None, torch.arange(len(images)))],
        labels=[(number,) for number in range(len(HOSTILE))],
        classes=HOSTILE,
        name=lambda index: HOSTILE[index],
        example=images[0],
        title=HOSTILE[8],
    )
    make(network, source, folder, range(2), Options(layers=layers, top=3), HOSTILE[13], False)
    return folder
