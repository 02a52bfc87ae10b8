"""An atlas from first to last: of any module by ``write``, of a run by ``analysis=atlas``."""

import math
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from zfscope.activations import TopTable
from zfscope.atlas.content import Options, sizes_by_kind, write_classes, write_images, write_layers
from zfscope.atlas.looks import write_looks
from zfscope.atlas.page import is_atlas, write_data, write_page
from zfscope.atlas.source import Source, over_classes, tensor_source
from zfscope.deconvnet.choice import Choice
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network
from zfscope.schema import printable

INDEX = "index.html"


@dataclass(frozen=True)
class Atlas:
    """What was written: maps and dead maps by layer, images with a page, bytes by kind, further numbers."""

    maps: Mapping[str, int]
    dead: Mapping[str, int]
    pages: tuple[int, ...]
    sizes: Mapping[str, int]
    numbers: Mapping[str, float]


def write(
    module: nn.Module,
    images: Tensor,
    folder: str | Path,
    *,
    labels: Sequence[int] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    top: int = 9,
    pages: int = 24,
    rule: Choice = "auto",
    seed: int = 0,
    title: str | None = None,
) -> Path:
    """Write an atlas of a network over some images: every feature map with the images that activate it most.

    Args:
        module: What ``zfscope.deconvnet.project`` takes: a ``ConvNet``, or any module; it runs in eval mode.
        images: Network inputs, ``(N, C, H, W)``.
        folder: Where to write it; an atlas that is there is replaced, any other content is refused.
        labels: The class of each image, ``(N,)``; default: none, and the atlas has no classes.
        classes: Names of the labels; default: the network's, or their numbers.
        layers: Which layers; default: all with feature maps.
        top: Images of each map.
        pages: Images with a page of their own, taken from each class in turn.
        rule: By which activations go down (see ``project``).
        seed: Of the choice of these images.
        title: Of the page; default: the module's type.

    Returns:
        The page to open, ``folder/index.html``.

    Raises:
        ValueError: For a network or images that cannot be projected, labels that do not fit, a folder of other content.
    """
    network = as_network(module, layers)
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (is_atlas(folder) or not any(folder.iterdir()))):
        raise ValueError(f"folder={printable(folder)} holds other files, or is one; give a new folder")
    if labels is not None and classes is None and network.classes is not None:
        classes = network.classes
    source = tensor_source(images, None if labels is None else list(labels), classes)
    own = network.classes or classes
    same = labels is not None and (network.num_classes is None or network.num_classes == len(own or ()))
    if top > len(source):
        warnings.warn(f"top={top}, but there are {len(source)} images: all of them are taken", stacklevel=2)
    options = Options(layers=layers, top=min(top, len(source)), rule=rule, seed=seed)
    temporary = folder.absolute().with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        make(
            network,
            source,
            temporary,
            over_classes(source.labels, seed)[:pages],
            options,
            title or type(module).__name__,
            same,
        )
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / INDEX


def make(
    network: Network,
    source: Source,
    folder: Path,
    pages: Sequence[int],
    options: Options,
    title: str,
    same_classes: bool,
    measure: Callable[[Mapping[str, TopTable]], Mapping[str, float]] | None = None,
) -> Atlas:
    """Write an atlas into a folder that is not there yet; the page comes last.

    ``pages`` are the images with a page of their own; ``same_classes`` says whether labels are the network's classes;
    ``measure`` gives further numbers of the winners by name, ``conv5/…``, which the front page lists.
    """
    folder.mkdir(parents=True)
    found = write_layers(network, source, folder, options)
    thumbs = write_images(network, source, found, folder, pages)
    write_classes(source, found, folder)
    answers = write_looks(network, source, found, folder, pages, same_classes, options)
    numbers = {} if measure is None else measure(found.tables)
    about = {"title": printable(title), "images": source.title, "top": options.top}
    content = {
        **about,
        "layers": found.overview,
        "thumbs": thumbs,
        "pages": list(pages),
        "classes": [printable(name) for name in source.classes],
        "answers": answers,
        "numbers": {name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "total": len(source),
        "seed": options.seed,
    }
    write_data(folder, "index", content)
    write_page(
        folder, about | {"layers": found.overview, "has_classes": bool(source.classes), "has_pages": bool(pages)}
    )
    maps = {layer: len(table.values) for layer, table in found.tables.items()}
    return Atlas(maps, found.dead, tuple(pages), sizes_by_kind(folder), numbers)
