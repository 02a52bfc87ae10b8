"""Images with boxes of their parts, as a network sees them: from a CSV, or the phantom's faces.

Source: Zeiler & Fergus (2014), Sec. 4.3: five photographs of dogs in frontal pose. How they were chosen and their parts
marked, the paper does not say; all of it here is our choice.
"""

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zfscope.data.reading import UnreadableImage, read_image
from zfscope.data.sources.phantom import Phantom
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import listed, printable

COLUMNS = ("image", "part", "x0", "y0", "x1", "y1")
FACE_PARTS = ("right_eye", "left_eye", "nose", "mouth")
RESERVED = ("random", "on_object", "same_place")  # what results call the controls
SEEN = 0.95  # share of a part's box in which the object is seen: what lies behind another object is no part to hide
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PartImages:
    """Images of one kind of object, each with the same parts."""

    names: tuple[str, ...]  # of the N images
    inputs: Tensor  # as the network wants them, (N, 3, S, S)
    boxes: dict[str, Tensor]  # by part (N, 4) int64, half-open (x0, y0, x1, y1) in pixels of the inputs, inside them

    def objects(self) -> Tensor:
        """The box that holds all parts of each image, ``(N, 4)``."""
        boxes = torch.stack(list(self.boxes.values()))
        return torch.cat([boxes[..., :2].amin(0), boxes[..., 2:].amax(0)], dim=1)

    def misalignment(self) -> float:
        """How far the parts' middles lie from their mean place over the images: RMS over parts and images, pixels."""
        boxes = torch.stack(list(self.boxes.values())).double()
        middles = (boxes[..., :2] + boxes[..., 2:]) / 2
        return float((middles - middles.mean(1, keepdim=True)).square().sum(-1).mean().sqrt())


def read_parts(path: str | os.PathLike, preprocessing: Preprocessing) -> PartImages:
    """Read images and the boxes of their parts from a CSV; both in the order in which they first come.

    The CSV is UTF-8, with or without BOM, with a header that names ``image,part,x0,y0,x1,y1``; other columns are
    ignored. ``image`` is a path relative to the CSV; a box is half-open, in pixels of the upright image, and what lies
    inside the network's input is taken. What does not fit is refused with its line.
    """
    path = Path(path)
    lines: dict[tuple[str, str], int] = {}  # where each part of each image stands
    sizes: dict[str, tuple[int, int]] = {}
    inputs: dict[str, Tensor] = {}
    boxes: dict[str, dict[str, Box]] = {}
    for line, row in _rows(path):
        where, part = f"{printable(path)}, line {line}", row["part"]
        image = os.path.normpath(path.parent / row["image"])
        box = _box(row, where)
        if (image, part) in lines:
            raise ValueError(
                f"{where}: {printable(part)} of {printable(row['image'])} stands in line {lines[image, part]} already; "
                "remove one of them"
            )
        lines[image, part] = line
        if image not in inputs:
            try:
                picture = read_image(image)
            except UnreadableImage as error:
                raise ValueError(f"{where}: {error}") from None
            sizes[image], inputs[image] = picture.size, preprocessing(picture)
        boxes.setdefault(part, {})[image] = _seen(box, sizes[image], preprocessing, where)
    for part, by_image in boxes.items():
        lacking = [os.path.relpath(image, path.parent) for image in inputs if image not in by_image]
        if lacking:
            raise ValueError(
                f"{printable(path)}: {printable(part)} has no box in {listed(lacking)}; every image needs every part"
            )
    if len(inputs) < 2:
        raise ValueError(f"{printable(path)} names {len(inputs)} images; what parts do is compared between 2 or more")
    ordered = {part: torch.tensor([by_image[image] for image in inputs]) for part, by_image in boxes.items()}
    return PartImages(tuple(map(printable, inputs)), torch.stack(list(inputs.values())), ordered)


def aligned_faces(images: Phantom, preprocessing: Preprocessing, count: int) -> PartImages:
    """The phantom's faces that lie most alike: their eyes, noses and mouths at nearly the same places.

    Candidates are the faces whose four parts lie wholly in the network's input and are not hidden behind other objects.
    Two faces are as far apart as their parts' middles, RMS: place, size and angle count alike. Chosen are a face and
    the ``count - 1`` nearest to it, such that their mean distance from it is least. No network has a say. Refused where
    there are fewer candidates.
    """
    if "face" not in images.classes:
        raise ValueError("these images of the phantom are of other classes than faces; data=phantom has all classes")
    faces, boxes = [], []
    for index in np.flatnonzero(images.labels == images.classes.index("face")).tolist():
        parts, size = images.parts(index), images.read(index).size
        mapped = [input_box(parts[part], size, preprocessing) for part in FACE_PARTS]
        if min(min(box) for box in mapped) < 0 or max(max(box) for box in mapped) > preprocessing.crop:
            continue
        mask = images.mask(index)
        if all(mask[y0:y1, x0:x1].mean() >= SEEN for x0, y0, x1, y1 in (parts[part] for part in FACE_PARTS)):
            faces.append(index)
            boxes.append(mapped)
    if not 2 <= count <= len(faces):
        raise ValueError(
            f"{count} faces were asked for, but {len(faces)} of these {len(images):,} images show all parts of one; "
            f"ask for 2 to {len(faces)}, or for another part of the data"
        )
    corners = torch.tensor(boxes)  # (faces, parts, 4)
    middles = (corners[..., :2] + corners[..., 2:]).double().flatten(1) / 2
    near = torch.cdist(middles, middles).topk(count, largest=False)
    chosen = near.indices[near.values.mean(1).argmin()].tolist()
    inputs = torch.stack([preprocessing(images.read(faces[number])) for number in chosen])
    names = tuple(images.name(faces[number]) for number in chosen)
    return PartImages(names, inputs, dict(zip(FACE_PARTS, corners[chosen].unbind(1), strict=True)))


def input_box(box: Box, size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Where a box of an image comes to lie in the network's input, in whole pixels, outwards; it may overhang.

    ``box`` is half-open ``(x0, y0, x1, y1)``, ``size`` the width and height of the image, all in pixels.
    """
    resized, corner = preprocessing.canvas_kind.placement(size)
    margin = round((preprocessing.resize - preprocessing.crop) / 2)  # of torchvision's centre crop
    edges = []
    for axis in (0, 1):
        shift = corner[axis] - margin
        edges.append([box[axis + end] * resized[axis] / size[axis] + shift for end in (0, 2)])
    (x0, x1), (y0, y1) = edges
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the needed columns of each row, surrounding blanks removed; empty lines are passed over."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in COLUMNS if name not in header]
            where = f"{printable(path)}, line"
            if missing:
                raise ValueError(
                    f"{where} 1: no column {', '.join(missing)}; the header must name {','.join(COLUMNS)}, and names "
                    f"{printable(','.join(header)) or 'nothing'}"
                )
            twice = [name for name in COLUMNS if header.count(name) > 1]
            if twice:
                raise ValueError(f"{where} 1: column {', '.join(twice)} stands there twice; keep one")
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
                empty = [name for name in COLUMNS if not row.get(name)]
                if empty:
                    raise ValueError(
                        f"{where} {reader.line_num}: no {', '.join(empty)}; a row holds {','.join(COLUMNS)}"
                    )
                if row["part"] in RESERVED or not row["part"].isprintable() or set(row["part"]) & set("/[]"):
                    raise ValueError(
                        f"{where} {reader.line_num}: a part cannot be called {printable(row['part'])!r}; give it a "
                        "word such as nose"
                    )
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(path)} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{printable(path)}, line {reader.line_num}: {error}; mend the row") from None


def _box(row: dict[str, str], where: str) -> Box:
    box = []
    for name in COLUMNS[2:]:
        try:
            box.append(float(row[name]))
        except ValueError:
            box.append(math.nan)
        if not math.isfinite(box[-1]):
            raise ValueError(f"{where}: {name}={printable(row[name])} is no number; give pixels of the image")
    return tuple(box)


def _seen(box: Box, size: tuple[int, int], preprocessing: Preprocessing, where: str) -> tuple[int, int, int, int]:
    """What the network's input holds of a box of an image."""
    (x0, y0, x1, y1), (width, height) = box, size
    shown = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"{where}: the box {shown} is empty or outside the image of {width}x{height} px; give "
            f"0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
        )
    x0, y0, x1, y1 = (min(max(edge, 0), preprocessing.crop) for edge in input_box(box, size, preprocessing))
    if x0 == x1 or y0 == y1:
        raise ValueError(
            f"{where}: the network sees the middle of the image, and the box {shown} lies outside; cut the image "
            "closer around the object, or leave this part away in every image"
        )
    return x0, y0, x1, y1
