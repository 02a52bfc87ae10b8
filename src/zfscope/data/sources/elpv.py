"""ELPV: 2,624 real photographs of solar cells by electroluminescence, functional or defective; 300 x 300 px, grey.

The images come with the PyPI package ``elpv-dataset`` (this project's extra ``elpv``) under CC BY-NC-SA 4.0: not for
commercial use.

Source: Buerhop-Lutz et al. (2018); Deitsch et al. (2019), "Automatic classification of defective photovoltaic module
cells in electroluminescence images", Sec. 4: 75/25 split, probability of 1/2 or more is defective. Stratifying by
probability and kind of cell is theirs, the drawing is ours: the paper's list of images is not public.
"""

import hashlib

import numpy as np
from PIL import Image

from zfscope.data.imageset import ArrayImages
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits, stratified_split

CLASSES = ("functional", "defective")
TEST_FRACTION = 0.25
TEST_SEED = 0  # never the training seed: results of all seeds are on the same 656 images


class ElpvImages(ArrayImages):
    """Solar cells in memory, with the judgement that their labels were made of, and their kind."""

    def __init__(self, images: np.ndarray, probability: np.ndarray, types: np.ndarray):
        super().__init__(images, (probability >= 0.5).astype(np.int64), CLASSES, prefix="elpv")
        self._probability, self._types = probability, types

    @property
    def probability(self) -> np.ndarray:
        """How likely each cell is defective, ``(N,)`` float64: 0, 1/3, 2/3 or 1."""
        return self._probability[self._rows]

    @property
    def origin(self) -> str:
        """Digest of which cells these are: the pixels are the package's, reduced to the size that was wanted."""
        rows = [self._rows, self.labels, np.rint(3 * self.probability)]
        return hashlib.sha256(b"elpv" + b"".join(np.asarray(row, "<i8").tobytes() for row in rows)).hexdigest()

    @property
    def types(self) -> np.ndarray:
        """Kind of each cell, ``(N,)`` strings: ``mono`` or ``poly`` (monocrystalline, polycrystalline)."""
        return self._types[self._rows]


def open_elpv(config: DataConfig) -> Splits:
    """Open the solar cells: 1,968 for training and validation, 656 for testing, always the same ones.

    Both splits are stratified by probability and kind of cell. Images are reduced to ``config.resize`` pixels by area
    averaging; ``config.split_seed`` says which of the 1,968 validate.
    """
    size = config.resize
    if not 8 <= size <= 300:
        raise ValueError(f"data.resize={size}: the solar cells have 300 px; give 8 to 300")
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise FileNotFoundError(
            "the solar cells come with the package elpv-dataset, which is not there; run: pip install -e '.[elpv]'"
        ) from error
    images, probability, types = load_dataset()
    if size < 300:
        images = np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BOX)) for i in images])
    cells = ElpvImages(images, probability, types)
    rest, test = stratified_split(_strata(cells), TEST_FRACTION, TEST_SEED)
    rest, test = cells.subset(rest), cells.subset(test)
    train, val = stratified_split(_strata(rest), config.val_fraction, config.split_seed)
    return Splits(rest.subset(train), rest.subset(val), test)


def _strata(cells: ElpvImages) -> np.ndarray:
    """One number for each pair of probability (0, 1/3, 2/3, 1) and kind of cell."""
    return np.rint(cells.probability * 3).astype(np.int64) * 2 + (cells.types == "poly")
