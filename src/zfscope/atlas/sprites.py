"""Many small pictures in one file: sheets of equal tiles as WebP, and the tiles while they are collected on disk.

A browser loads a sheet once and shows a tile of it as a background, moved to the tile's place.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zfscope.deconvnet.winners import OUTSIDE, Winners
from zfscope.files import map_array, replacing

LARGEST = 96  # pixels of a tile's longer side
SHARP = 32  # tiles up to this side are stored without loss, and shown enlarged a whole number of times
QUALITY = 80  # of WebP; a sheet of photographs has about a third of a JPEG's bytes
ACROSS = 32  # tiles in a row of a sheet: WebP is at most 16,383 pixels wide


@dataclass(frozen=True)
class TileSize:
    """How large a layer's tiles are in their sheets, and how many times as large on the page."""

    width: int
    height: int

    @property
    def is_sharp(self) -> bool:
        """Whether pixels shall be seen as squares."""
        return max(self.width, self.height) <= SHARP

    @property
    def scale(self) -> int:
        """Pixels of the page for one of the tile."""
        return max(1, LARGEST // max(self.width, self.height))


def tile_size(width: int, height: int, largest: int = LARGEST) -> TileSize:
    """The size of a picture's tile: no side above ``largest`` pixels."""
    shrink = min(1.0, largest / max(width, height))
    return TileSize(max(1, round(width * shrink)), max(1, round(height * shrink)))


def shrunk(pictures: Tensor, size: TileSize) -> np.ndarray:
    """Pictures ``(N, 3, H, W)`` uint8 as tiles ``(N, height, width, 3)`` uint8."""
    if pictures.shape[2:] != (size.height, size.width):
        pictures = F.interpolate(pictures.float(), (size.height, size.width), mode="bilinear", antialias=True)
        pictures = pictures.round().clamp(0, 255).to(torch.uint8)
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def write_sheet(path: Path, tiles: np.ndarray, across: int, *, lossless: bool, quality: int = QUALITY) -> int:
    """Write tiles ``(N, height, width, 3)`` uint8, row by row with ``across`` in each; returns the bytes."""
    count, height, width, _ = tiles.shape
    rows = math.ceil(count / across)
    sheet = np.full((rows * across, height, width, 3), OUTSIDE, np.uint8)
    sheet[:count] = tiles
    sheet = sheet.reshape(rows, across, height, width, 3).swapaxes(1, 2).reshape(rows * height, across * width, 3)
    with replacing(path) as file:
        Image.fromarray(sheet).save(file, "webp", lossless=lossless, quality=quality, method=4)
    return path.stat().st_size


class WinnerTiles:
    """Projections and patches of one layer's winners, kept in a file until all of a map's are there."""

    def __init__(self, path: Path, maps: int, top: int) -> None:
        self.maps, self.top = maps, top
        self.boxes = torch.zeros(maps, top, 4, dtype=torch.int64)
        self.size = TileSize(8, 8)  # of a layer without any winner
        self._path, self._tiles = path, None

    def put(self, winners: Winners) -> None:
        """Keep some winners: their tiles and the boxes that they see."""
        if self._tiles is None:
            height, width = winners.patches.shape[2:]
            self.size = tile_size(width, height)
            shape = (self.maps, 2, self.top, self.size.height, self.size.width, 3)
            self._tiles = map_array(self._path, np.dtype(np.uint8), shape)
            self._tiles[...] = OUTSIDE
        rows, ranks = winners.rows.numpy(), winners.ranks.numpy()
        for kind, pictures in enumerate((winners.tiles()[0], winners.patches)):
            self._tiles[rows, kind, ranks] = shrunk(pictures, self.size)
        self.boxes[winners.rows, winners.ranks] = winners.boxes

    def of(self, number: int) -> np.ndarray:
        """The tiles of one map, ``(2, top, height, width, 3)``: its projections, then its patches."""
        if self._tiles is None:
            return np.full((2, self.top, self.size.height, self.size.width, 3), OUTSIDE, np.uint8)
        return np.asarray(self._tiles[number])

    def close(self) -> None:
        """Remove the file."""
        self._tiles = None
        self._path.unlink(missing_ok=True)
