"""Fig. 7 in short trainings and by analyze.py, on the CPU: every number and panel against images covered one by one."""

import contextlib
import io
import json
import random
import sys
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.conftest import ROOT, composed, write_folders
from tests.conftest import fit as train_briefly

sys.path.insert(0, str(ROOT))
import analyze
import train
from zfscope import build_network, load_network
from zfscope.activations import TopTable
from zfscope.analyses.occlusion import _from_others, class_number, drop_places, object_mask, occlusion
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.callbacks import OcclusionMaps
from zfscope.callbacks.occlusion_maps import label_of
from zfscope.data.datamodule import ImageData
from zfscope.data.sources.phantom import Phantom
from zfscope.data.sources.phantom_scene import draw
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import as_pictures, random_subset
from zfscope.figures import occlusion_panel
from zfscope.figures.occlusion import OPACITY, RAMP, _cells
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import save_network
from zfscope.networks.hooked import HookedNetwork, as_network
from zfscope.networks.network import evaluating
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.occlusion.maps import Occlusion
from zfscope.occlusion.positions import hidden, spans
from zfscope.occlusion.sensitivity import Sensitivity, look, projected
from zfscope.schema import check

SIDE = 21


def chain(side=SIDE, classes=3):
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=classes, image_size=side, init=InitConfig(scheme="he"))


class Body(nn.Module):
    """Any module: batch norm, in-place and functional calls, dropout; its classes have no names."""

    def __init__(self, activation=F.relu):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, 2)
        self.head, self.activation = nn.Linear(6, 3), activation

    def forward(self, images):
        maps = self.activation(self.conv2(F.max_pool2d(self.activation(self.norm(self.conv1(images))), 2)))
        return self.head(F.dropout(maps.mean((2, 3)), training=self.training))


def resnet():
    torch.manual_seed(0)
    return build_network(composed("model=timm", "model.name=resnet18")["model"], 3, SIDE)


NETWORKS = {"chain": chain, "module": lambda: HookedNetwork(Body()), "resnet18": resnet}
LAST = {"chain": "conv2", "module": "conv2", "resnet18": "layer4"}


def picture(seed=0):
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def by_hand(network, image, target, size, stride, fill, layer):
    """Sensitivity of an image by covering it in a double loop, in eval mode; nothing of ``look`` is used."""
    weight = next(network.parameters())
    image = image.to(weight)

    def told(covered):
        trace = network.trace(covered[None])
        return trace.logits[0].softmax(0), trace.maps[layer][0].flatten(1).sum(1)

    count = -(-(SIDE - size) // stride) + 1
    probability, activation = torch.zeros(count, count, dtype=weight.dtype), torch.zeros(count, count)
    label = torch.zeros(count, count, dtype=torch.int64)
    with torch.no_grad(), evaluating(network):
        whole, sums = told(image)
        target, strongest = int(whole.argmax()) if target is None else target, int(sums.argmax())
        for row in range(count):
            for column in range(count):
                covered = image.clone()
                covered[:, row * stride : row * stride + size, column * stride : column * stride + size] = fill
                found, maps = told(covered)
                probability[row, column], label[row, column] = found[target], found.argmax()
                activation[row, column] = maps[strongest]
    return Sensitivity(
        Occlusion(probability, label, activation, strongest),
        target,
        float(whole[target]),
        int(whole.argmax()),
        float(sums[strongest]),
        layer,
        size,
        stride,
    )


def alike(one, other):
    for name in ("probability", "activation"):
        torch.testing.assert_close(
            getattr(one.occlusion, name).double(), getattr(other.occlusion, name).double(), rtol=1e-4, atol=1e-5
        )
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)
    assert torch.equal(one.occlusion.label, other.occlusion.label)
    assert one.occlusion.feature_map == other.occlusion.feature_map
    for name in ("target", "label", "layer", "size", "stride"):
        assert getattr(one, name) == getattr(other, name), name


# The library: what one look finds


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_look_finds_what_covering_by_hand_finds_also_beside_the_square(kind):
    network = NETWORKS[kind]().double().train()

    found = look(network, picture(), 2, size=7, stride=4, fill=0.5)

    expected = by_hand(network, picture(), 2, 7, 4, 0.5, LAST[kind])
    alike(found, expected)
    torch.testing.assert_close(found.drop, expected.probability - expected.occlusion.probability)
    assert network.training and all(each.training for each in network.modules())


def test_the_square_and_its_step_are_the_papers_share_and_the_target_the_most_probable_class():
    network = chain(side=112)
    image = torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(1))

    found = look(network, image)

    with torch.no_grad():
        whole = network.eval()(image[None])[0].softmax(0)
    assert (found.size, found.stride, found.layer) == (24, 8, "conv2")
    assert found.target == found.label == int(whole.argmax())
    assert found.probability == pytest.approx(float(whole.max()), rel=1e-5)
    assert found.occlusion.probability.shape == (12, 12)


def test_of_the_layers_that_nobody_named_the_last_one_with_maps_is_taken():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.LazyLinear(3))
    body(picture()[None])

    assert look(HookedNetwork(body, ["0", "1", "2"]), picture(), size=9, stride=6).layer == "1"
    with pytest.raises(ValueError, match="none of 2 has feature maps"):
        look(HookedNetwork(body, ["2"]), picture())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        ({"size": 22}, "size=22 is larger than the image of 21x21 pixels"),
        ({"stride": 0}, "stride must be a whole number of pixels, 1 or more, but is 0"),
        ({"target": 3}, "0 … 2, but is 3"),
    ],
)
def test_a_look_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        look(chain(), picture(), **given)


def test_a_network_without_logits_is_refused_by_what_it_gives():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, images):
            return {"logits": self.conv(images).mean((2, 3))}

    with pytest.raises(ValueError, match="occlusion needs a network that gives logits"):
        look(HookedNetwork(Named(), ["conv"]), picture())


def test_a_projection_is_that_of_the_strongest_activation():
    network = chain()
    with torch.no_grad():
        position = divmod(int(network.eval().features(picture()[None], "conv2")[0, 3].argmax()), 5)

    tile = projected(network, picture(), "conv2", 3)

    expected = project(network, picture()[None], "conv2", [3], torch.tensor([position]))
    assert torch.equal(tile, to_tiles(expected, limit=contrast_limits(expected))[0])


def test_positions_along_a_side_are_clipped_at_its_end():
    first, last = spans(10, 4, 3)
    beyond, end = spans(10, 1, 4)

    assert first.tolist() == [0, 3, 6] and last.tolist() == [4, 7, 10]
    assert [each.tolist() for each in spans(11, 4, 3)] == [[0, 3, 6, 9], [4, 7, 10, 11]]
    assert beyond.tolist() == [0, 4, 8, 10] and end.tolist() == [1, 5, 9, 10]


@pytest.mark.parametrize(("size", "stride"), [(5, 2), (4, 3), (2, 5), (1, 4), (13, 1)])
def test_what_a_square_hides_is_what_a_loop_counts(size, stride):
    mask = torch.rand(13, 17, generator=torch.Generator().manual_seed(0)) < 0.4

    objects, pixels = hidden(mask, size, stride)

    for row in range(len(objects)):
        for column in range(objects.shape[1]):
            piece = mask[row * stride : row * stride + size, column * stride : column * stride + size]
            assert objects[row, column] == piece.sum() and pixels[row, column] == piece.numel()
    assert objects.shape == (-(-(13 - size) // stride) + 1, -(-(17 - size) // stride) + 1)


def given(probability, size=2, stride=2, **changed):
    """A Sensitivity whose maps are these probabilities of class 0, of 0.9 for the whole image."""
    probability = torch.tensor(probability)
    maps = Occlusion(probability, (probability < 0.5).long(), 10 * probability, 3)
    values = {"target": 0, "probability": 0.9, "label": 0, "activation": 9.0, "layer": "conv5"}
    return Sensitivity(maps, **(values | changed), size=size, stride=stride)


def test_the_places_of_a_drop_are_those_worked_out_by_hand():
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:2, :3] = True  # all of the first square, half of the second

    on, off, inside, chance = drop_places(given([[0.1, 0.5, 0.9], [0.9, 0.9, 0.9], [0.9, 0.7, 0.9]]), mask)

    assert on == pytest.approx((0.8 * 1 + 0.4 * 0.5) / 1.5)
    assert off == pytest.approx((0.4 * 0.5 + 0.2) / 7.5)
    assert inside is True and chance == pytest.approx(1 / 9)  # the second square's centre, (1, 3), is outside
    assert drop_places(given([[0.5, 0.1, 0.9], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]]), mask)[2] is False


def test_a_mask_goes_the_way_of_its_image():
    class Masked:
        def mask(self, index):
            mask = np.zeros((128, 128), dtype=bool)
            mask[20:100, 31:47] = True
            return mask

    for resize, crop in ((128, 112), (64, 40), (256, 224)):
        preprocessing = Preprocessing(resize, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        image = Image.fromarray(np.repeat(255 * Masked().mask(0)[..., None], 3, 2).astype(np.uint8))

        found = object_mask(Masked(), 0, preprocessing)

        assert torch.equal(found, preprocessing(image)[0] >= 128)
    assert object_mask(Masked(), 0, Preprocessing(128, 112, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))).sum() == 80 * 16


def test_a_class_is_found_by_name_or_number():
    network = chain(classes=3)
    assert class_number(network, 2) == class_number(network, "2") == 2
    network.classes = ("dog", "cat", "7")

    assert class_number(network, "cat") == 1 and class_number(network, 0) == 0
    assert class_number(network, 7) == class_number(network, "7") == 2  # a name goes before a number
    for asked, message in (
        ("dgo", "did you mean dog?"),
        ("zebra", "a number from 0 to 2; the classes are dog, cat, 7"),
        (3, "0 to 2"),
        (-1, "0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            class_number(network, asked)


# The panel


def written(monkeypatch):
    """Keep what is written into pictures, and where."""
    texts, text = {}, ImageDraw.ImageDraw.text

    def keep(self, place, said, *options, **more):
        texts[said] = place
        return text(self, place, said, *options, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    return texts


@pytest.mark.parametrize(("length", "size", "stride"), [(112, 24, 8), (21, 7, 4), (30, 5, 9), (20, 1, 16), (16, 16, 5)])
def test_a_cell_is_coloured_by_the_nearest_centre_and_a_stride_wide(length, size, stride):
    first, last = spans(length, size, stride)
    centres = ((first + last) / 2).numpy()

    found = _cells(length, 4 * length, size, stride)

    for pixel, cell in enumerate(found):
        place = (pixel + 0.5) / 4
        covered = centres[0] - stride / 2 < place < centres[-1] + stride / 2
        assert cell == (np.abs(centres - place).argmin() if covered else -1)


def test_a_position_has_its_colour_where_the_squares_centre_was_and_the_image_shows_through(monkeypatch):
    texts = written(monkeypatch)
    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = given([[0.9, 0.9, 0.9], [0.9, 0.25, 0.9], [0.9, 0.9, 0.9]], size=4, stride=2)

    panel = np.asarray(occlusion_panel(image, found, classes=("dog", "cat")).convert("RGB")).astype(float)

    grey = image.float().mean(0).numpy()
    side, times = 224, 28
    columns = [name for name in texts if name.startswith("(")]
    assert [name[:3] for name in columns] == ["(a)", "(b)", "(d)", "(e)"]
    for name, share, colour in (
        ("(b) conv5, map 3: sum", 2.5 / 9, None),
        ("(d) probability of dog", 0.25, None),
        ("(e) most probable class", None, (230, 159, 0)),
    ):
        x, y = int(texts[name][0]), int(texts[name][1]) + 6
        tile = panel[y : y + side, x : x + side].reshape(8, times, 8, times, 3)
        colour = np.array(colour) if colour else RAMP[round(255 * share)]
        for row, column in ((3, 3), (4, 4), (4, 3)):  # centre (4, 4), a stride of 2 wide
            expected = OPACITY * colour + (1 - OPACITY) * grey[row, column]
            assert np.abs(tile[row, :, column] - expected).max() < 1.5, name
        assert np.abs(tile[0, :, 0] - grey[0, 0]).max() < 1.5 and np.abs(tile[7, :, 7] - grey[7, 7]).max() < 1.5
        assert np.abs(tile[2, :, 4] - (OPACITY * colour + (1 - OPACITY) * grey[2, 4])).max() > 20
    x, y = int(texts["(a) 4 px square, largest drop"][0]), int(texts["(a) 4 px square, largest drop"][1]) + 6
    tile = panel[y : y + side, x : x + side]
    assert (tile[2 * times, 2 * times : 6 * times] == 255).all()  # the outline of the middle square
    assert (tile[6 * times - 1, 2 * times : 6 * times] == 255).all()
    shown = np.repeat(np.repeat(image.permute(1, 2, 0).numpy(), times, 0), times, 1)
    assert (tile[: 2 * times - 1] == shown[: 2 * times - 1]).all()
    assert (tile[:, 6 * times + 1 :] == shown[:, 6 * times + 1 :]).all()


def test_the_legend_names_the_classes_that_occur_most_frequent_first_and_joins_the_rest(monkeypatch):
    texts = written(monkeypatch)
    found = given([[0.9] * 4] * 4)
    labels = torch.tensor([5, 5, 5, 5, 5, 0, 0, 0, 1, 1, 2, 3, 4, 6, 7, 8]).view(4, 4)
    found = Sensitivity(**{**vars(found), "occlusion": found.occlusion._replace(label=labels), "label": 5})

    occlusion_panel(
        torch.zeros(3, 8, 8, dtype=torch.uint8), found, classes=[f"kind {i}" for i in range(9)], title="image 4"
    )

    entries = [text for text in texts if text.endswith(" %")]
    assert entries[:3] == ["kind 5  31 %", "kind 0  19 %", "kind 1  12 %"]
    assert len(entries) == 8 and entries[-1] == "others  12 %"  # six colours, the target's, and the rest
    assert "image 4" in texts
    assert any("unoccluded: kind 0 0.90, but most probable is kind 5" in text for text in texts)


def test_projections_of_the_map_stand_between_its_sum_and_the_probability(monkeypatch):
    texts = written(monkeypatch)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    tile = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    others = torch.full((4, 3, 5, 5), 90, dtype=torch.uint8), torch.full((4, 3, 5, 5), 30, dtype=torch.uint8)

    panel = np.asarray(occlusion_panel(image, given([[0.5] * 4] * 4), projection=tile, others=others))

    names = [name for name in texts if name.startswith(("(", "…"))]
    assert [name[:3] for name in names] == ["(a)", "(b)", "(c)", "(c)", "… a", "(d)", "(e)"]
    for name, value in zip(names[2:5], (200, 90, 30), strict=True):
        x, y = int(texts[name][0]), int(texts[name][1]) + 6
        assert (panel[y + 10 : y + 60, x + 10 : x + 60] == value).all(), name


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"image must be uint8 \(3, H, W\)"):
        occlusion_panel(torch.zeros(3, 8, 8), given([[0.5]]))


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 480, 640), (3, 5, 9)])
def test_images_of_any_size_are_shown_at_about_one_size(shape):
    rows, columns = (len(spans(length, 1, 3)[0]) for length in shape[1:])

    panel = occlusion_panel(torch.zeros(shape, dtype=torch.uint8), given([[0.5] * columns] * rows, 1, 3))

    assert 300 < panel.width < 1500 and 150 < panel.height < 420


# The callback


class Pictures(Dataset):
    """Fixed noise; reading an image draws from all three global generators, as an augmentation may."""

    def __init__(self, count=11, labels=True):
        self.images = torch.stack([picture(index) for index in range(count)])
        self.labels, self.read = labels, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        torch.rand(1), random.random(), np.random.rand()
        return (self.images[index], index % 3) if self.labels else self.images[index]


class Module(lightning.LightningModule):
    def __init__(self, network, validation=None, lr=0.1):
        super().__init__()
        self.network, self.validation, self.lr = network, validation if validation is not None else Pictures(), lr

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0] if isinstance(batch, list) else batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(Pictures(), batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=4)


MODULES = {"chain": chain, "module": Body, "resnet18": resnet}


fit = partial(train_briefly, max_epochs=2, num_sanity_val_steps=0)


def panels(folder):
    return sorted(str(path.relative_to(folder / "figures")) for path in (folder / "figures").rglob("*.png"))


class Oracle(lightning.Callback):
    """Looks by hand after each validation, with the weights of that moment."""

    def __init__(self, images, **square):
        self.images, self.square, self.found = images, square, {}

    def on_validation_epoch_end(self, trainer, pl_module):
        network = as_network(pl_module)
        layer = next(layer for layer in reversed(network.layers) if layer in ("conv2", "network.conv2", "layer4"))
        for index in self.images:
            image, label = pl_module.validation.images[index], index % 3 if pl_module.validation.labels else None
            found = by_hand(network, image, label, **self.square, layer=layer)
            tile = projected(network, image, layer, found.occlusion.feature_map)
            self.found[index, trainer.current_epoch + 1] = found, as_pictures(network, image[None])[0], tile


@pytest.mark.parametrize("kind", MODULES)
def test_each_epoch_shows_the_same_images_as_the_network_sees_them_then(tmp_path, monkeypatch, kind):
    drawn = []
    monkeypatch.setattr(
        "zfscope.callbacks.occlusion_maps.occlusion_panel",
        lambda image, found, **more: drawn.append((image, found, more)) or occlusion_panel(image, found, **more),
    )
    module, chosen = Module(MODULES[kind]()), random_subset(11, 2, 5).tolist()
    oracle = Oracle(chosen, size=8, stride=5, fill=0.3)

    fit(tmp_path, module, OcclusionMaps(size=8, stride=5, fill=0.3, seed=5), oracle)

    assert panels(tmp_path) == sorted(f"occlusion/{i}/epoch_00{epoch}.png" for i in chosen for epoch in (1, 2))
    keys = [(index, epoch) for epoch in (1, 2) for index in chosen]
    for (index, epoch), (image, found, more) in zip(keys, drawn, strict=True):
        expected, shown, tile = oracle.found[index, epoch]
        alike(found, expected)
        assert torch.equal(image, shown)
        assert (more["projection"].int() - tile.int()).abs().max() <= 1
        assert more["title"] == f"validation image {index}, class {index % 3}, epoch {epoch}"
    assert drawn[0][1].probability != drawn[2][1].probability


def test_the_weights_are_bit_equal_with_and_without_it_and_nothing_is_left_behind(tmp_path):
    watched, alone = Module(Body()), Module(Body())

    fit(tmp_path, watched, OcclusionMaps(size=9, stride=6))
    fit(tmp_path, alone)

    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in watched.modules())


def test_modes_and_random_numbers_go_on_as_they_were(tmp_path):
    class Noisy(Body):
        def forward(self, images):
            return super().forward(images) + 0 * torch.rand(1)

    class Noted(lightning.Callback):
        def __init__(self):
            self.states = []

        def on_validation_epoch_end(self, trainer, pl_module):
            modes = [each.training for each in pl_module.modules()]
            self.states.append((torch.get_rng_state().tolist(), random.getstate(), np.random.rand.__self__.get_state()))
            self.states[-1] = (*self.states[-1][:2], self.states[-1][2][1].tolist(), modes)

    before, after = Noted(), Noted()

    fit(tmp_path, Module(Noisy()), before, OcclusionMaps(size=9, stride=6), after)

    assert before.states == after.states and len(before.states) == 2


def test_the_images_are_read_once(tmp_path):
    plain, watched = Pictures(), Pictures()

    fit(tmp_path, Module(chain(), plain), max_epochs=3)
    fit(tmp_path, Module(chain(), watched), OcclusionMaps(images=3, size=9, stride=6), max_epochs=3)

    assert len(watched.read) - len(plain.read) == 3


def test_images_without_labels_are_followed_by_their_most_probable_class(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        "zfscope.callbacks.occlusion_maps.look",
        lambda *given, **more: found.append(look(*given, **more)) or found[-1],
    )

    fit(tmp_path, Module(chain(), Pictures(labels=False)), OcclusionMaps(size=9, stride=6), max_epochs=1)

    assert len(found) == 3 and all(each.target == each.label for each in found)  # one of them to try it out


@pytest.mark.parametrize(
    ("item", "label"),
    [
        ((0, 4), 4),
        ([0, torch.tensor(2), 7], 2),
        ((0, np.int64(3)), 3),
        ((0, torch.tensor([0.0, 1.0])), None),
        ((0, torch.tensor(1.5)), None),
        ((0, 0.5), None),
        ((0, "dog"), None),
        ((0, True), None),
        ((0,), None),
        (torch.zeros(2, 3), None),
    ],
)
def test_only_a_whole_number_is_a_label(item, label):
    assert label_of(item) == label


def test_a_network_that_cannot_be_projected_is_shown_without_and_says_so_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "zfscope.callbacks.occlusion_maps.occlusion_panel",
        lambda image, found, **more: drawn.append(more) or occlusion_panel(image, found, **more),
    )

    with pytest.warns(UserWarning, match="OcclusionMaps: the panels come without projections: .*gelu") as said:
        fit(tmp_path, Module(Body(F.gelu)), OcclusionMaps(size=9, stride=6))

    assert sum("OcclusionMaps" in str(each.message) for each in said) == 1
    assert len(drawn) == 4 and all(each["projection"] is None for each in drawn)


def test_other_ranks_neither_read_nor_look(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    monkeypatch.setattr("zfscope.callbacks.occlusion_maps.look", None)
    module = Module(chain())

    fit(tmp_path, module, OcclusionMaps(size=9, stride=6), max_epochs=1)

    assert not (tmp_path / "figures").exists() and len(module.validation.read) == 11


def test_only_the_epochs_asked_for_are_shown_and_no_sanity_check(tmp_path):
    fit(
        tmp_path,
        Module(chain()),
        OcclusionMaps(images=1, size=9, stride=6, when=2),
        max_epochs=3,
        num_sanity_val_steps=1,
    )

    assert [each.split("/")[-1] for each in panels(tmp_path)] == ["epoch_002.png"]


def test_it_works_in_double_precision(tmp_path):
    fit(tmp_path, Module(chain()), OcclusionMaps(size=9, stride=6), max_epochs=1, precision="64-true")

    assert len(panels(tmp_path)) == 2


@pytest.mark.parametrize("number", [{"images": 0}, {"size": 0}, {"stride": -1}])
def test_a_number_below_one_is_refused(number):
    with pytest.raises(ValueError, match="OcclusionMaps: .*must be 1 or more"):
        OcclusionMaps(**number)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3, SIDE, SIDE), 0)] * 4)


@pytest.mark.parametrize(
    ("options", "validation", "message"),
    [
        ({"layer": "conv9"}, None, "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        ({"size": 22}, None, "size=22 is larger than the image"),
        ({}, Endless(), r"a validation data set with dataset\[index\] and a length"),
    ],
    ids=["layer", "size", "dataset"],
)
def test_what_cannot_be_shown_is_refused_before_the_first_step(tmp_path, options, validation, message):
    module = Module(chain(), validation)

    # With a sanity check Lightning has the validation loader before training starts.
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module, OcclusionMaps(**options), num_sanity_val_steps=1)

    assert module.global_step == 0


# The analysis


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network of three classes, and the class folders that it knows: ``(run, data)``."""
    folder = tmp_path_factory.mktemp("occlusion")
    data = write_folders(folder / "images", {"train": 8, "val": 4})
    layers = {
        "conv1": {"maps": 5, "kernel_size": 3, "stride": 2, "pool": {}},
        "conv2": {"maps": 6, "kernel_size": 3, "padding": 1},
        "fc6": {"units": 7, "dropout": 0.5},
        "fc8": {},
    }
    torch.manual_seed(0)
    network = build_network({"name": "chain", **layers}, 3, SIDE)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(24, SIDE, torch.full((3, 1, 1), 90.0), torch.full((3, 1, 1), 1 / 50))
    values = {"name": "folder", "root": str(data), "resize": 24, "crop": SIDE, "batch_size": 4, "num_workers": 0}
    save_network(network, {"model": {"name": "chain", **layers}, "data": values}, folder / "run/checkpoints/best.ckpt")
    return folder / "run", data


def typed(folder, *overrides):
    """Type analyze.py in a folder: ``(exit code, what it says to stderr)``."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["analyze.py", "device=cpu", "hydra.run.dir=outputs/found", *overrides])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            code = train.run_command(analyze.main, "analyze") or 0
        except SystemExit as stop:
            code = stop.code
    return code, said.getvalue()


def analysed(folder, *overrides):
    """What the command wrote: results, arrays without pickle, names of the panels."""
    code, err = typed(folder, "analysis=occlusion", *overrides)
    assert code == 0, err
    found = folder / "outputs/found"
    with np.load(found / "arrays.npz", allow_pickle=False) as arrays:
        content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return json.loads((found / "results.json").read_text()), content, panels(found)


def in_order(data):
    return sorted((data / "val").rglob("*.jpg"))


def test_the_analysis_finds_what_covering_by_hand_finds_in_the_images_asked_for(tmp_path, run):
    folder, data = run

    results, arrays, drawn = analysed(
        tmp_path, f"checkpoint={folder}", "analysis.indices=[7,2,9]", "analysis.size=8", "analysis.stride=5"
    )

    network, paths = load_network(folder), in_order(data)
    assert arrays["indices"].tolist() == [7, 2, 9]
    assert drawn == ["occlusion/2.png", "occlusion/7.png", "occlusion/9.png"]
    drops, changed = [], []
    for row, index in enumerate([7, 2, 9]):
        inputs = network.preprocess(Image.open(paths[index]))
        expected = by_hand(network, inputs, index // 4, 8, 5, 0.0, "conv2")
        for name in ("probability", "label", "activation"):
            torch.testing.assert_close(arrays[name][row], getattr(expected.occlusion, name), rtol=1e-4, atol=1e-5)
            assert float(arrays[f"unoccluded_{name}"][row]) == pytest.approx(getattr(expected, name), rel=1e-4)
        assert arrays["target"][row] == index // 4 and arrays["feature_map"][row] == expected.occlusion.feature_map
        drops.append(expected.drop)
        changed.append(expected.occlusion.label != expected.label)
    metrics = {name: metric["value"] for name, metric in results["metrics"].items()}
    assert metrics["mean_drop"] == pytest.approx(100 * float(torch.stack(drops).mean()), abs=1e-3)
    assert metrics["largest_drop"] == pytest.approx(100 * float(torch.stack(drops).amax((1, 2)).mean()), abs=1e-3)
    assert metrics["other_class"] == pytest.approx(100 * float(torch.stack(changed).double().mean()))
    assert set(metrics) == {"mean_drop", "largest_drop", "other_class"}
    assert results["conditions"]["data"] == "folder" and "image" not in results["conditions"]


def test_without_indices_a_fixed_random_subset_is_covered_and_no_more_panels_are_drawn_than_asked_for(tmp_path, run):
    _, arrays, drawn = analysed(
        tmp_path, f"checkpoint={run[0]}", "analysis.images=5", "analysis.shown=2", "analysis.seed=3", "analysis.size=9"
    )

    indices = random_subset(12, 5, 3).tolist()
    assert arrays["indices"].tolist() == indices
    assert drawn == sorted(f"occlusion/{index}.png" for index in indices[:2])


def test_an_image_of_ones_own_is_followed_by_its_most_probable_class_or_the_one_asked_for(tmp_path, run):
    folder, data = run
    path = in_order(data)[5]
    network = load_network(folder)
    inputs = network.preprocess(Image.open(path))
    own = tmp_path / "my dog.jpg"
    own.write_bytes(path.read_bytes())

    results, arrays, drawn = analysed(tmp_path, f"checkpoint={folder}", f"image='{own}'", "analysis.size=9")
    asked = analysed(tmp_path, f"checkpoint={folder}", f"image='{own}'", "analysis.target=owl")[1]

    assert drawn == ["occlusion/my dog.png"] and "indices" not in arrays
    alone = by_hand(network, inputs, None, 9, 2, 0.0, "conv2")
    torch.testing.assert_close(arrays["probability"][0], alone.occlusion.probability, rtol=1e-4, atol=1e-5)
    assert arrays["target"].tolist() == [alone.label] and asked["target"].tolist() == [2]
    assert results["conditions"]["image"] == str(own)


@pytest.mark.parametrize("gone", ["config", "files"])
def test_an_image_of_ones_own_needs_no_data_set(tmp_path, run, monkeypatch, gone):
    folder, data = run
    others = []
    monkeypatch.setattr(
        "zfscope.analyses.occlusion.occlusion_panel",
        lambda *given, **more: others.append(more) or occlusion_panel(*given, **more),
    )
    known = {} if gone == "config" else {**analyze.run_config(folder)["data"], "root": str(tmp_path / "moved")}
    monkeypatch.setattr("analyze.run_config", lambda _: {"data": known} if known else {})

    results, _, drawn = analysed(tmp_path, f"checkpoint={folder}", f"image={in_order(data)[0]}")

    assert drawn == ["occlusion/0.png"] and results["conditions"]["data"] is None
    assert others[0]["others"] is None and others[0]["projection"] is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis.size=22"], "size=22 is larger than the image"),
        (["analysis.stride=0"], "analysis.*stride=0"),
        (["analysis.layer=conv9"], "no layer 'conv9'; the layers are conv1, conv2, fc6, fc8"),
        (["analysis.target=oowl"], r"analysis.target=oowl: the network has no such class; did you mean owl\?"),
        (["analysis.target=3"], "analysis.target=3: .* a number from 0 to 2"),
        (["analysis.indices=[12]"], "there is no image 12; they are numbered 0 to 11"),
        (["analysis.indices=[]"], "analysis.indices names no image"),
        (["analysis.part=test"], "this data set has no labelled test images"),
        (["image=nowhere.jpg"], "cannot read the image .*nowhere.jpg: there is no such file"),
        (["image=dog.jpg", "analysis.indices=[1]"], "image=FILE and analysis.indices name different images"),
        (["image=dog.jpg", "data.root=elsewhere"], "folder elsewhere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(tmp_path, run, overrides, message):
    code, err = typed(tmp_path, "analysis=occlusion", f"checkpoint={run[0]}", *overrides)

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)
    assert not (tmp_path / "outputs").exists()


def test_other_analyses_refuse_an_image_of_ones_own(tmp_path, run):
    code, err = typed(tmp_path, "analysis=evaluate", f"checkpoint={run[0]}", "image=dog.jpg")

    assert code == 2 and err.strip().endswith("image=dog.jpg belongs to analysis=occlusion, not to analysis=evaluate")
    assert not (tmp_path / "outputs").exists()


def test_other_images_are_those_where_the_map_is_strongest_without_the_one_looked_at():
    network = chain()
    data = Pictures(9)
    with torch.no_grad():
        maps = network.eval().features(data.images, "conv2")
    values, indices = maps.flatten(2).amax(2).t().sort(dim=1, descending=True)
    places = maps.flatten(2).argmax(2).t().gather(1, indices)
    table = TopTable(values[:, :4].double(), indices[:, :4], torch.stack([places // 5, places % 5], 2)[:, :4])
    chosen = torch.tensor([4, 1, 4])
    itself = [int(indices[4, 0]), int(indices[1, 2]), -1]

    found = _from_others(network, "conv2", table, chosen, itself, data, 3)

    for row, (projections, patches) in enumerate(found):
        number = int(chosen[row])
        ranks = [rank for rank in range(4) if int(indices[number, rank]) != itself[row]][:3]
        for place, rank in enumerate(ranks):
            index, position = int(indices[number, rank]), table.positions[number, rank][None]
            tile, box = project(network, data.images[index][None], "conv2", [number], position, crop=True)
            x0, y0, x1, y1 = box[0].tolist()
            shown = F.pad(as_pictures(network, data.images[index][None]), (SIDE,) * 4, value=127)
            assert torch.equal(patches[place], shown[0, :, SIDE + y0 : SIDE + y1, SIDE + x0 : SIDE + x1])
            assert (projections[place].int() - to_tiles(tile, limit=contrast_limits(tile))[0].int()).abs().max() <= 1


def test_on_the_phantom_the_places_of_the_drops_are_told_of_the_images_classified_correctly(tmp_path):
    samples = [draw(0, "val", index) for index in range(30)]
    images = Phantom(np.stack([sample.image for sample in samples]), 0, "val")
    network = chain(side=28, classes=10)
    network.classes = images.classes
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 1 / 60))
    with torch.no_grad():
        told = network.eval()(torch.stack([network.preprocess(images.read(i)) for i in range(30)])).argmax(1).numpy()
    images.labels = np.where(np.arange(30) % 4 == 0, (told + 1) % 10, told)  # untrained, it would be right too rarely
    data = ImageData(
        Splits(images, images), check(DataConfig, {"name": "phantom", "resize": 32, "crop": 28, "batch_size": 1}), None
    )
    data.preprocessing = network.preprocessing
    values = {"name": "occlusion", "images": 30, "shown": 0, "size": 7, "stride": 3}
    config = check(AnalyzeConfig, {"checkpoint": "RUN", "analysis": values})

    found = occlusion(network, data, config, torch.device("cpu"), tmp_path)

    right, larger, inside = 0, 0, 0
    for index, sample in enumerate(samples):
        inputs = network.preprocess(images.read(index))
        looked = look(network, inputs, int(images.labels[index]), size=7, stride=3)
        if index % 4 == 0:
            continue
        right += 1
        mask = np.asarray(Image.fromarray(255 * sample.mask.astype(np.uint8)).resize((32, 32), 2))[2:-2, 2:-2] >= 128
        on = off = weight = 0.0
        best = (-np.inf, False)
        for row in range(8):
            for column in range(8):
                square = mask[3 * row : 3 * row + 7, 3 * column : 3 * column + 7]
                drop, share = float(looked.drop[row, column]), square.mean()
                on, off, weight = on + share * drop, off + (1 - share) * drop, weight + share
                centre = mask[3 * row + 3, 3 * column + 3]
                best = max(best, (drop, bool(centre)), key=lambda pair: pair[0])
        larger += on / weight > off / (64 - weight)
        inside += best[1]
    assert 2 * larger != right and 2 * inside != right  # else their opposites would pass too
    assert found["correct"] == {"value": right, "unit": "of 30 images"}
    assert found["drop_larger_on_object"]["value"] == pytest.approx(100 * larger / right)
    assert found["largest_drop_in_mask"]["value"] == pytest.approx(100 * inside / right)
    assert found["drop_larger_on_object"]["unit"] == f"% of {right} images"
    assert not (tmp_path / "figures/occlusion").is_dir() or not list((tmp_path / "figures/occlusion").iterdir())
