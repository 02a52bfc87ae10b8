"""CelebA: 202,599 photographs of faces, with 40 attributes each, of 10,177 people.

Source: Liu, Luo, Wang & Tang (2015), "Deep learning face attributes in the wild". As the target one attribute is our
choice, where the paper learns all of them at once. The authors' parts have no person in common, so that people can be
told apart only in parts that are drawn from all images.
"""

from pathlib import Path

import numpy as np

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
    """Open CelebA's aligned faces in ``celeba`` below ``config.root``; the files must be there.

    With ``config.target`` an attribute the two classes are ``not Smiling`` and ``Smiling`` and so on, and the parts are
    the authors'. With ``identity`` a class is a person, by number, and parts are carved out of each one's images.
    """
    folder, identity = Path(config.root, "celeba"), config.target == IDENTITY
    names, values, header = _read_list(folder / ("identity_CelebA.txt" if identity else "list_attr_celeba.txt"))
    files = [f"img_align_celeba/{name}" for name in names]
    if identity:
        people, labels = np.unique(values[:, 0], return_inverse=True)
        return carved_splits(FileImages(files, labels, [str(person) for person in people], folder), config)
    check_target(config.target, header)
    attribute = config.target or DEFAULT_TARGET
    labels = (values[:, header.index(attribute)] == 1).astype(np.int64)
    images = FileImages(files, labels, (f"not {attribute}", attribute), folder)
    others, parts, _ = _read_list(folder / "list_eval_partition.txt")
    if others != names:
        raise ValueError("list_eval_partition.txt names other images than list_attr_celeba.txt")
    return Splits(**{part: images.subset(np.flatnonzero(parts[:, 0] == number)) for part, number in _PARTS.items()})


def _read_list(path: Path) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """The images that a list names, its integers ``(N, columns)``, and the columns' names where it has them.

    torchvision's reader takes all five lists at each opening, which took 50 s where two of them take 2.
    """
    lines = path.read_text(encoding="ascii").splitlines()
    header: tuple[str, ...] = ()
    if len(lines[0].split()) == 1:  # how many images there are
        header, lines = tuple(lines[1].split()), lines[2:]
    rows = [line.partition(" ")[::2] for line in lines]
    values = np.fromstring(" ".join(numbers for _, numbers in rows), dtype=np.int64, sep=" ")
    columns = len(header) or 1
    if len(values) != len(rows) * columns:
        raise ValueError(f"{path.name} must have {columns} numbers for each image")
    return [name for name, _ in rows], values.reshape(-1, columns), header
