"""The atlas of a network: pages of all layers, maps, classes and some images, in a folder that needs no server.

Source: Zeiler & Fergus (2014), Fig. 2, of which it is the whole, and Fig. 7 for the images.
"""

import itertools
import secrets
import shutil
from collections.abc import Mapping

import torch
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.controls import controls
from zfscope.analyses.question import Metric, Question, Result, at_most, have_maps, readable_inputs, reader
from zfscope.atlas.content import Options
from zfscope.atlas.public import make
from zfscope.atlas.source import Source, over_classes
from zfscope.data.imageset import ImageSet
from zfscope.deconvnet.choice import rule_for
from zfscope.deconvnet.rules import WAY_OUT
from zfscope.networks.imagenet import same_classes
from zfscope.networks.network import Network
from zfscope.secrets import masked


def analyse(question: Question) -> Result:
    """The folder ``atlas``; dead maps and controls by layer, as of ``analysis=projections``, and bytes by kind."""
    options, network, images = question.options, question.network, question.images
    have_maps(network, options.layers)
    examples = question.inputs(images)
    _, example = next(readable_inputs(examples, range(len(images))))
    source = source_of(question, images, example)
    readable = (index for index, _ in readable_inputs(examples, over_classes(source.labels, options.seed)))
    pages = list(itertools.islice(readable, at_most(options.pages, len(images), "analysis.pages")))
    ways = Options(
        layers=options.layers,
        top=at_most(options.top, len(images), "analysis.top"),
        rule=options.rule,
        batch_size=options.batch_size,
        memory_gb=options.memory_gb,
        seed=options.seed,
    )

    def measure(tables: Mapping[str, TopTable]) -> Mapping[str, float]:
        rules = {rule_for(network, layer, source.example[None], options.rule) for layer in tables}
        if not options.controls or not network.has_switches or rules != {"deconvnet"}:
            return {}
        maps = {layer: torch.arange(len(table.values)) for layer, table in tables.items()}
        return controls(network, tables, maps, reader(examples), options)

    folder = question.folder / f".atlas.{secrets.token_hex(4)}.tmp"  # a killed process's is removed by the next one
    try:
        same = is_of_these_classes(network, images)
        atlas = make(network, source, folder, pages, ways, masked(question.title), same, measure)
    except ValueError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(str(error).replace(WAY_OUT, f"{WAY_OUT}: analysis.rule=gradient")) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    metrics: dict[str, Metric] = {}
    for layer, count in atlas.maps.items():
        metrics[f"{layer}/dead_maps"] = {"value": atlas.dead[layer], "unit": f"of {count}"}
    metrics |= {name: {"value": value, "unit": "r"} for name, value in atlas.numbers.items()}
    metrics |= {f"bytes/{kind}": {"value": size, "unit": "bytes"} for kind, size in atlas.sizes.items()}
    sizes = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in atlas.sizes.items())
    page = question.folder / "atlas" / "index.html"
    notes = [f"{sum(atlas.sizes.values()) / 1e6:.1f} MB ({sizes}); open {page} in a browser"]
    return Result(metrics, folders={"atlas": folder}, notes=notes)


def source_of(question: Question, images: ImageSet, example: Tensor) -> Source:
    """The images of a part of the data, as an atlas takes them; ``example`` is one of them as the network's input."""
    several = images.labels.ndim == 2
    labels = [tuple(row.nonzero()[0].tolist()) if several else (int(row),) for row in images.labels]
    return Source(
        read=reader(question.inputs(images)),
        batches=lambda size: question.data.centre_crops(images, size),
        labels=labels,
        classes=images.classes,
        name=images.key,
        example=example,
        title=f"{len(images):,} {question.part} images of {question.data.config.name}",
    )


def is_of_these_classes(network: Network, images: ImageSet) -> bool:
    """Whether the labels of the images are the network's own classes."""
    if network.num_classes != len(images.classes):
        return False
    return network.classes is None or same_classes(network.classes, images.classes)
