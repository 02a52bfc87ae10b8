"""CelebA: 202,599 photographs of faces, with 40 attributes each, of 10,177 people.

Source: Liu, Luo, Wang & Tang (2015), "Deep learning face attributes in the wild". As the target one attribute is our
choice, where the paper learns all of them at once. The authors' parts have no person in common, so that people can be
told apart only in parts that are drawn from all images.
"""

from pathlib import Path

import numpy as np
from torchvision import datasets

from zfscope.data.imageset import FileImages
from zfscope.data.sources.folders import carved_splits
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.schema import nearest

IDENTITY = "identity"
DEFAULT_TARGET = "Smiling"  # about half of the faces do
ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)
_PARTS = {"train": 0, "val": 1, "test": 2}  # in list_eval_partition.txt


def check_target(target: str | None, attributes: tuple[str, ...] = ATTRIBUTES) -> None:
    """Refuse a target that is neither an attribute nor ``identity``."""
    if target is not None and target not in (*attributes, IDENTITY):
        raise ValueError(
            f"data.target={target}: CelebA has no such attribute; {nearest(target, (*attributes, IDENTITY))}"
        )


def open_celeba(config: DataConfig) -> Splits:
    """Open CelebA's aligned faces, which torchvision's reader knows; the files must be there.

    With ``config.target`` an attribute the two classes are ``not Smiling`` and ``Smiling`` and so on, and the parts are
    the authors'. With ``identity`` a class is a person, by number, and parts are carved out of each one's images.
    """
    everyone = datasets.CelebA(config.root, split="all", target_type=["attr", "identity"])
    attributes = tuple(filter(None, everyone.attr_names))  # the header ends with a blank
    check_target(config.target, attributes)
    folder = Path(everyone.root, everyone.base_folder)
    files = [f"img_align_celeba/{name}" for name in everyone.filename]
    if config.target == IDENTITY:
        people, labels = np.unique(everyone.identity[:, 0].numpy(), return_inverse=True)
        return carved_splits(FileImages(files, labels, [str(person) for person in people], folder), config)
    attribute = config.target or DEFAULT_TARGET
    labels = everyone.attr[:, attributes.index(attribute)].numpy()
    images = FileImages(files, labels, (f"not {attribute}", attribute), folder)
    parts = everyone._load_csv("list_eval_partition.txt").data[:, 0].numpy()
    return Splits(**{part: images.subset(np.flatnonzero(parts == number)) for part, number in _PARTS.items()})
