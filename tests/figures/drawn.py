"""Tiles of one colour each, and where they stand on a sheet."""

import numpy as np
import torch


def is_red(pixels):
    return bool((pixels[..., 0] - pixels[..., 1] > 80).any())


def coloured(maps, winners, part=0, side=7):
    """Tiles of one colour each, unlike any other and unlike the greys and the red of a sheet."""
    colours = torch.zeros(maps, winners, 3, dtype=torch.uint8)
    colours[..., 0] = torch.arange(maps)[:, None]
    colours[..., 1] = torch.arange(winners) + 100 * part
    colours[..., 2] = 255
    return colours[..., None, None].repeat(1, 1, 1, side, side)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def box_of(sheet, tile):
    """Where the pixels of a tile's colour lie: left, top, right, bottom (half-open); it must be filled by them."""
    match = (np.asarray(sheet) == tile[:, 0, 0].numpy()).all(axis=2)
    if not match.any():
        return None
    rows, columns = np.flatnonzero(match.any(axis=1)), np.flatnonzero(match.any(axis=0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert match[top:bottom, left:right].all()
    return int(left), int(top), int(right), int(bottom)


def cut(sheet, box):
    return np.asarray(sheet.crop(box)).astype(int)
