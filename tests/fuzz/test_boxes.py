"""Boxes: crops that overhang, a CSV of parts, lists of exclusions, and the geometry of chains of layers."""

import csv
import io
import warnings

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from tests.fuzz.cases import check_message, counts, refusal, try_cases
from tests.fuzz.grammar import ODD
from zfscope.data.exclusions import without
from zfscope.data.imageset import ArrayImages
from zfscope.data.parts import COLUMNS, read_parts
from zfscope.deconvnet.boxes import boxes_of, check_maps, check_positions, cut, image_of_each
from zfscope.networks.geometry import Step, check_chain, field_of, map_sizes
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer
from zfscope.schema import check

# --- crops ---

SIDES = st.integers(1, 12)
PLACES = st.integers(-30, 30)


@counts(40, 1000)
def test_a_crop_that_overhangs_is_the_one_of_a_padded_image(record_property, count):
    def check(case):
        (height, width), (crop_height, crop_width), corners = case
        images = torch.rand(len(corners), 2, height, width, dtype=torch.float64)
        starts = torch.tensor(corners)
        boxes = torch.cat([starts, starts + torch.tensor([crop_width, crop_height])], dim=1)

        patches = cut(images, boxes, fill=-1.0)

        padded = F.pad(images, [50] * 4, value=-1.0)
        for image, patch, (x, y) in zip(padded, patches, corners, strict=True):
            assert torch.equal(patch, image[:, y + 50 : y + 50 + crop_height, x + 50 : x + 50 + crop_width])

    corners = st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=3)
    try_cases(record_property, count, st.tuples(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), corners), check)


@st.composite
def questions(draw):
    """Maps and positions to ask for, of kinds and shapes that fit or do not."""
    kind = draw(st.sampled_from([torch.int64, torch.int64, torch.int32, torch.uint8, torch.float32, torch.bool]))
    count = draw(st.integers(0, 4))
    numbers = st.integers(-2, 6) if kind in (torch.int64, torch.int32) else st.integers(0, 6)
    shape = draw(st.sampled_from([(count,), (count,), (count,), (count, 1), ()]))
    maps = torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=kind)
    maps = maps.reshape(shape) if maps.numel() == np.prod(shape) else maps
    pairs = draw(st.integers(0, 4))
    positions = torch.tensor(draw(st.lists(numbers, min_size=2 * pairs, max_size=2 * pairs)), dtype=kind)
    size = draw(st.sampled_from([(3, 4, 5, 5), (3, 4), (0, 4, 5, 5), (3, 0, 1, 1)]))
    return torch.zeros(size), maps, positions.reshape(pairs, 2)


@counts(30, 500)
def test_maps_and_positions_are_taken_or_refused_in_one_line(record_property, count):
    def check(case):
        feature_maps, maps, positions = case
        if refusal(image_of_each, feature_maps, maps, None) is None:
            assert len(image_of_each(feature_maps, maps, None)) == len(feature_maps)
            if refusal(check_maps, feature_maps, "conv1", maps) is None:
                assert all(0 <= number < feature_maps.shape[1] for number in maps.tolist())
        if refusal(check_positions, feature_maps, "conv1", positions, len(feature_maps)) is None:
            rows, columns = [*feature_maps.shape[2:], 1, 1][:2]
            assert all(0 <= row < rows and 0 <= column < columns for row, column in positions.tolist())

    try_cases(record_property, count, questions(), check)


# --- geometry ---

CONVS = st.builds(
    Step, st.just("conv1"), st.just("conv"), st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.just(False)
)
POOLS = st.builds(
    Step, st.just("conv1"), st.just("pool"), st.integers(1, 4), st.integers(1, 4), st.just(0), st.booleans()
)


@counts(20, 600)
def test_maps_have_the_sizes_of_pytorch_and_units_see_their_receptive_fields(record_property, count):
    def check_case(case):
        steps, size = case
        if refusal(map_sizes, steps, size) is not None:
            return
        image = torch.zeros(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        maps = image
        for step, expected in zip(steps, map_sizes(steps, size), strict=True):
            if step.kind == "conv":
                weight = torch.ones(1, 1, step.kernel_size, step.kernel_size, dtype=torch.float64)
                maps = F.conv2d(maps, weight, stride=step.stride, padding=step.padding)
            else:  # the mean instead of the maximum: all that a unit sees has a gradient
                maps = F.avg_pool2d(maps, step.kernel_size, step.stride, ceil_mode=step.ceil_mode)
            assert maps.shape[-1] == expected
        place = maps.shape[-1] // 2
        (gradient,) = torch.autograd.grad(maps[0, 0, place, place], image)
        seen = gradient[0, 0] != 0
        ((x0, y0, x1, y1),) = boxes_of(field_of(steps), torch.tensor([[place, place]])).tolist()
        inside = seen[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        assert (x0, y0, x1, y1) == field_of(steps).box(place, place)
        assert int(inside.sum()) == int(seen.sum())
        if all(step.stride <= step.kernel_size and not step.padding for step in steps):
            assert bool(inside.all())

    chains = st.lists(st.one_of(CONVS, POOLS), min_size=1, max_size=4)
    try_cases(record_property, count, st.tuples(chains, st.integers(1, 40)), check_case)


NUMBERS = st.one_of(st.integers(-1, 12), st.sampled_from([2**31, 2**63, 10**30]))


@st.composite
def layers(draw):
    """The values of a chain of layers, as a config has them."""
    chain = {}
    for name in draw(st.lists(st.sampled_from(["conv1", "conv2", "conv3", "fc6"]), unique=True).map(sorted)):
        keys = ["units"] if name == "fc6" else ["maps", "kernel_size", "stride", "padding", "groups"]
        chain[name] = {key: draw(NUMBERS) for key in keys}
        if name != "fc6" and draw(st.booleans()):
            chain[name]["pool"] = {"kernel_size": draw(NUMBERS), "stride": draw(NUMBERS), "ceil_mode": True}
    return chain


@counts(25, 800)
def test_a_chain_of_layers_has_sizes_or_is_refused_in_one_line(record_property, count):
    def layer(name, values):
        return check(DenseLayer if name == "fc6" else ConvLayer, values, name)

    def check_case(case):
        chain, size = case
        valid = {name: layer(name, values) for name, values in chain.items() if refusal(layer, name, values) is None}
        if refusal(check_chain, valid, size) is None:
            assert all(side >= 1 for side in check_chain(valid, size))

    try_cases(record_property, count, st.tuples(layers(), st.integers(1, 300)), check_case)


# --- files that name images ---

TEXTS = st.one_of(
    ODD, st.text(max_size=8), st.sampled_from(["nose", "eye", "random", "=1+1", "", " ", '"', "\r", "\x00"])
)
CELLS = {
    "image": st.one_of(st.sampled_from(["a.png", "b.png", "./a.png", "../a.png", "c.png", ".", "broken.png"]), TEXTS),
    "part": st.one_of(st.sampled_from(["nose", "eye"]), TEXTS),
    **{name: st.one_of(st.integers(-3, 41).map(str), st.floats().map(str), TEXTS) for name in COLUMNS[2:]},
}
GOOD = {"image": "a.png", "part": "nose", "x0": "2", "y0": "3", "x1": "20", "y1": "30"}


@st.composite
def tables(draw) -> bytes:
    """A CSV of boxes of parts; rows that are right, and cells that are not."""
    names = draw(st.permutations(COLUMNS))
    if draw(st.integers(0, 4)) == 0:
        names = [*names, draw(TEXTS)] if draw(st.booleans()) else names[:-1]
    rows = [names]
    for number in range(draw(st.integers(0, 5))):
        row = GOOD | {"image": ["a.png", "b.png"][number % 2], "part": ["nose", "eye"][number // 2 % 2]}
        for name in draw(st.lists(st.sampled_from(COLUMNS), max_size=1)):
            row[name] = draw(CELLS[name])
        rows.append([row.get(name, "") for name in names][: draw(st.sampled_from([9, 9, 9, 9, 4]))])
    file = io.StringIO()
    csv.writer(file, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"]))).writerows(rows)
    text = file.getvalue().encode("utf-8", "surrogatepass")
    place = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from([text, text, text, b"\xef\xbb\xbf" + text, text[:place], text[:place] + b'\xff"' + text])
    )


@counts(20, 700)
def test_a_csv_of_parts_is_read_or_refused_in_one_line(tmp_path, record_property, count):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((40, 40, 3), len(name), np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    preprocessing = Preprocessing(32, 28, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    path = tmp_path / "parts.csv"

    def check_case(content):
        path.write_bytes(content)
        if refusal(read_parts, path, preprocessing) is None:
            parts = read_parts(path, preprocessing)
            boxes = torch.stack([*parts.boxes.values()])
            assert bool(((boxes >= 0) & (boxes <= 28)).all()) and bool((boxes[..., 2:] > boxes[..., :2]).all())

    try_cases(record_property, count, st.one_of(tables(), tables(), tables(), st.binary(max_size=60)), check_case)


LINES = st.one_of(
    st.sampled_from([f"set/{number}" for number in range(5)] + ["# set/1", "", " set/1", "set/01"]), TEXTS
)


@counts(20, 600)
def test_a_list_of_exclusions_is_taken_or_refused_in_one_line(tmp_path, record_property, count):
    images = ArrayImages(np.zeros((4, 2, 2), np.uint8), [0, 0, 1, 1], ("a", "b"), "set")
    path = tmp_path / "list.txt"

    def check_case(content):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if refusal(without, images, path) is None:
                left = without(images, path)
                listed = {images.key(index).encode() for index in range(4)} & set(
                    content.replace(b"\r", b"").split(b"\n")
                )
                assert len(left) >= 4 - len(listed)
                assert set(left.labels.tolist()) == {0, 1}
        for warning in told:
            check_message(str(warning.message))

    texts = st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    try_cases(record_property, count, st.one_of(texts, texts, texts, st.binary(max_size=40)), check_case)
