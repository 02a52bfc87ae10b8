"""Panels of short trainings and the atlas of a whole run, on the CPU, against brute force over all images."""

import contextlib
import io
import json
import re
import sys

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
)

from tests.conftest import ROOT, composed, fit, write_folders

sys.path.insert(0, str(ROOT))
import analyze
import train
from zfscope import build_network, load_network
from zfscope.activations import TopTable
from zfscope.analyses.projections import Arrays, controls
from zfscope.analyses.spec import ProjectionsAnalysis
from zfscope.callbacks import Projections
from zfscope.callbacks.projections import indices_of, order_of
from zfscope.deconvnet.boxes import cut
from zfscope.deconvnet.controls import control_correlations
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import Winners, as_pictures, project_winners, random_subset
from zfscope.figures import projection_sheet
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import as_network
from zfscope.networks.network import evaluating
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.training.classifier import Classifier
from zfscope.training.spec import OptimConfig

SIDE, COUNT = 21, 11


class Pictures(Dataset):
    """``(image, label)``, or with ``indexed`` ``(image, label, index)``."""

    def __init__(self, indexed=False, count=COUNT, side=SIDE, channels=3):
        self.images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
        self.indexed = indexed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return (self.images[index], index % 2, index)[: 2 + self.indexed]


class Body(nn.Module):
    """Functional ReLUs only: nothing of them is seen among the modules."""

    def __init__(self, channels=3, activation=F.relu):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, 2)
        self.head, self.activation = nn.Linear(6, 2), activation

    def forward(self, images):
        maps = self.activation(self.conv2(F.max_pool2d(self.activation(self.norm(self.conv1(images))), 2)))
        return self.head(F.dropout(maps.mean((2, 3)), training=self.training))


class Plain(lightning.LightningModule):
    """Any LightningModule: no network of ours, no indices in its batches."""

    def __init__(self, validation=None, lr=0.1, **options):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.lr, self.validation = Body(**options), lr, validation if validation is not None else Pictures()
        self.channels = options.get("channels", 3)

    def forward(self, images):
        return self.body(images)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(Pictures(channels=self.channels), batch_size=4, shuffle=True)

    def val_dataloader(self):
        made = isinstance(self.validation, DataLoader | list | dict)
        return self.validation if made else DataLoader(self.validation, batch_size=4)


def plain(_validation=None):
    return Plain(_validation), _validation or Pictures()


def small_chain(side=SIDE):
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    network = ConvNet(layers, num_classes=2, image_size=side, init=InitConfig(scheme="he"))
    network.preprocessing = Preprocessing(side, side, torch.full((3, 1, 1), 128.0), torch.full((3, 1, 1), 1 / 60))
    return network


class Ours(Classifier):
    def __init__(self, network, validation):
        super().__init__(network, OptimConfig(lr=0.01))
        self.validation = validation

    def train_dataloader(self):
        return DataLoader(Pictures(indexed=True), batch_size=4)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=4)


def chain(_validation=None):
    validation = _validation or Pictures(indexed=True)
    return Ours(small_chain(), validation), validation


def resnet(_validation=None):
    torch.manual_seed(0)
    validation = _validation or Pictures(indexed=True)
    return Ours(build_network(composed("model=timm", "model.name=resnet18")["model"], 2, SIDE), validation), validation


MODULES = pytest.mark.parametrize("make", [plain, chain, resnet])


def hooks_of(module):
    return [each for each in module.modules() if each._forward_hooks or each._forward_pre_hooks]


def panels(folder):
    return sorted(str(path.relative_to(folder / "figures")) for path in folder.glob("figures/projections/*/*.png"))


def brute_force(network, images, layer, maps, k):
    """Values, indices and positions of the strongest activations, from all activations of all images at once."""
    with torch.no_grad(), evaluating(network):
        found = network.features(images, layer)[:, maps]
    values, places = found.flatten(2).max(2)
    values, indices = values.t().sort(dim=1, descending=True, stable=True)
    places = places.t().gather(1, indices)
    width = found.shape[3]
    return TopTable(values[:, :k], indices[:, :k], torch.stack([places // width, places % width], 2)[:, :k])


def drawn_alone(network, images, layer, maps, table, title):
    """The sheet of a table, each winner read and projected by itself."""
    shape, rows = table.values.shape, maps.repeat_interleave(table.values.shape[1])
    chosen, positions = images[table.indices.flatten()], table.positions.flatten(0, 1)
    projections, boxes = project(network, chosen, layer, rows, positions, crop=True)
    if projections.shape[-1] >= images.shape[-1]:
        projections = project(network, chosen, layer, rows, positions)
        boxes = torch.tensor([0, 0, images.shape[-1], images.shape[-1]]).expand(len(rows), 4)
    tiles = to_tiles(projections, limit=contrast_limits(projections))
    patches = cut(as_pictures(network, chosen), boxes, 127)
    below = table.values.flatten() <= 0
    tiles[below] = patches[below] = 127
    tiles, patches = (each.unflatten(0, shape) for each in (tiles, patches))
    return projection_sheet(maps, patches, tiles, table.values, title=title)


class Oracle(lightning.Callback):
    """Draws by brute force, after each validation of the fit, what the panels should show."""

    def __init__(self, images, maps, k):
        self.images, self.maps, self.k, self.sheets = images, maps, k, {}

    def on_train_epoch_end(self, trainer, pl_module):
        network, epoch = as_network(pl_module), trainer.current_epoch + 1
        for layer in network.layers:
            if layer in ("fc3", "fc4", "fc"):
                continue
            with evaluating(network):
                maps = random_subset(network.features(self.images[:1], layer).shape[1], self.maps, seed=0)
            table = brute_force(network, self.images, layer, maps, self.k)
            self.sheets[f"projections/{layer}/epoch_{epoch:03d}.png"] = drawn_alone(
                network, self.images, layer, maps, table, f"{layer}, epoch {epoch}"
            )


@MODULES
def test_each_epoch_shows_the_winners_of_a_pass_over_all_images_and_their_projections(tmp_path, make):
    module, validation = make()
    oracle = Oracle(validation.images, maps=2, k=3)

    fit(tmp_path, module, Projections(maps=2, top=3, when=[1, 3]), oracle, max_epochs=3 if make is not resnet else 1)

    layers = {
        plain: ["body.conv1", "body.conv2"],
        chain: ["conv1", "conv2"],
        resnet: ["act1", "layer1", "layer2", "layer3", "layer4"],
    }[make]
    epochs = [1, 3] if make is not resnet else [1]
    assert panels(tmp_path) == [f"projections/{layer}/epoch_{epoch:03d}.png" for layer in layers for epoch in epochs]
    for panel in panels(tmp_path):
        shown, expected = (np.asarray(each).astype(int) for each in (
            Image.open(tmp_path / "figures" / panel), oracle.sheets[panel],
        ))  # fmt: skip
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).max() <= 3, panel  # other batches round otherwise


def recorded(monkeypatch):
    """What the callback has projected: tables and maps of each time, and the images read for it."""
    calls = []

    def recording(network, tables, maps, read, **options):
        calls.append((tables, maps, read))
        return project_winners(network, tables, maps, read, **options)

    monkeypatch.setattr("zfscope.callbacks.projections.project_winners", recording)
    return calls


def check_winners(calls, module, images):
    """The last call's tables are those of brute force with the weights as they are."""
    tables, maps, _ = calls[-1]
    network = as_network(module)
    for layer, table in tables.items():
        expected = brute_force(network, images, layer, maps[layer], table.values.shape[1])
        torch.testing.assert_close(table.values.float(), expected.values, rtol=1e-4, atol=1e-5)
        above = expected.values > 0
        assert above.any() and torch.equal(table.indices[above], expected.indices[above])
        assert torch.equal(table.positions[above], expected.positions[above])


class Alone(Pictures):
    def __getitem__(self, index):
        return self.images[index]


class ImagesAlone(Plain):
    def validation_step(self, batch, _):
        self(batch)


class Several(Plain):
    def validation_step(self, batch, _, dataloader_idx=0):
        self(batch[0])


class Reversed(DataLoader):
    """Batches back to front, as a sampler of one's own may have them."""

    def __init__(self, dataset):
        batches = [[10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]
        super().__init__(dataset, batch_sampler=batches)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(DataLoader(Pictures(indexed=True), batch_size=4, shuffle=True)),
        lambda: Plain(Reversed(Pictures(indexed=True))),
        lambda: Plain(DataLoader(Pictures(), batch_size=4, sampler=range(COUNT - 1, -1, -1))),
        lambda: Plain(DataLoader(Pictures(), batch_sampler=BatchSampler(SequentialSampler(range(COUNT)), 3, False))),
        lambda: ImagesAlone(Alone()),
        lambda: Several([DataLoader(Pictures(), 4), DataLoader(Pictures(count=30), 4)]),
        lambda: Several({"first": DataLoader(Pictures(), 4), "second": DataLoader(Pictures(count=30), 4)}),
    ],
    ids=["shuffled", "own batches", "own sampler", "batch sampler", "images alone", "list", "dict"],
)
def test_winners_are_right_however_the_images_come(tmp_path, monkeypatch, make):
    calls, module = recorded(monkeypatch), make()
    fit(tmp_path, module, Projections(top=3))

    assert len(calls) == 1
    check_winners(calls, module, Pictures().images)


class Groups(Pictures):
    """A third part that is a whole number, but no index."""

    def __getitem__(self, index):
        return self.images[index], index % 2, index // 4


def test_a_third_part_that_is_no_index_is_not_taken_for_one(tmp_path, monkeypatch):
    calls, module = recorded(monkeypatch), Plain(Groups())

    fit(tmp_path, module, Projections(top=3))
    check_winners(calls, module, Pictures().images)
    with pytest.raises(ValueError, match="which images a validation batch holds"):
        fit(tmp_path, Plain(DataLoader(Groups(), batch_size=4, shuffle=True)), Projections())


class Around(lightning.Callback):
    """Notes the module's state when a validation of the fit ends, before and after the callback between them."""

    def __init__(self):
        self.noted = []

    def on_validation_epoch_end(self, trainer, pl_module):
        state = {name: each.clone() for name, each in pl_module.state_dict().items()}
        grads = [None if each.grad is None else each.grad.clone() for each in pl_module.parameters()]
        needed = [each.requires_grad for each in pl_module.parameters()]
        self.noted.append(
            (state, grads, needed, [each.training for each in pl_module.modules()], torch.get_rng_state())
        )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Keeping(Plain):
    """Keeps its gradients after a step, and has a layer that is never trained."""

    def __init__(self):
        super().__init__()
        self.body.conv2.requires_grad_(False)

    def on_validation_model_zero_grad(self):
        pass


@pytest.mark.parametrize("make", [Keeping, lambda: chain()[0]], ids=["plain", "chain"])
def test_module_mode_and_gradients_are_untouched(tmp_path, make):
    before, after, module = Around(), Around(), make()

    fit(tmp_path, module, before, Projections(), after, num_sanity_val_steps=0, max_epochs=2)

    assert len(before.noted) == 2 and panels(tmp_path)
    assert all(map(same, before.noted, after.noted))
    assert make is not Keeping or any(each is not None for each in before.noted[0][1])
    assert module.training and not hooks_of(module)


class Restless(Pictures):
    """Each view draws from the global generator, as augmentation may."""

    def __getitem__(self, index):
        return self.images[index] + 1e-3 * torch.randn(3, SIDE, SIDE) * np.random.rand(), index % 2


@pytest.mark.parametrize("make", [lambda: Plain(Restless()), lambda: chain()[0]], ids=["plain", "chain"])
def test_training_goes_the_same_way_to_the_bit_with_and_without_panels(tmp_path, make):
    alone, watched = make(), make()

    fit(tmp_path, alone, max_epochs=2)
    fit(tmp_path, watched, Projections(), max_epochs=2)

    assert panels(tmp_path) and same(alone.state_dict(), watched.state_dict())


class Failing(Plain):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.fails and batch_idx == 1 and not self.trainer.sanity_checking:
            raise RuntimeError("the disk is gone")


def test_no_hook_stays_after_a_validation_that_failed_and_the_callback_can_go_on(tmp_path):
    module, callback = Failing(), Projections()
    module.fails = True

    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(tmp_path, module, callback)
    assert not hooks_of(module) and panels(tmp_path) == []
    module.fails = False
    fit(tmp_path, module, callback)

    assert panels(tmp_path) == [f"projections/body.conv{number}/epoch_001.png" for number in (1, 2)]
    assert not hooks_of(module)


def test_one_callback_watches_one_module_after_another(tmp_path):
    callback = Projections(maps=1, top=1)

    for name, make in [("first", plain), ("second", chain)]:
        module, _ = make()
        fit(tmp_path / name, module, callback)
        assert not hooks_of(module)

    assert panels(tmp_path / "first") == [f"projections/body.conv{number}/epoch_001.png" for number in (1, 2)]
    assert panels(tmp_path / "second") == [f"projections/conv{number}/epoch_001.png" for number in (1, 2)]


def test_neither_the_sanity_check_nor_a_validation_by_itself_draws(tmp_path, monkeypatch):
    calls, module = recorded(monkeypatch), Plain()

    trainer = fit(tmp_path, module, Projections(when=2), num_sanity_val_steps=2)
    trainer.validate(module, verbose=False)

    assert calls == [] and not (tmp_path / "figures").exists() and not hooks_of(module)


def test_the_images_shown_are_read_once_more_and_no_others(tmp_path, monkeypatch):
    class Counting(Pictures):
        def __getitem__(self, index):
            counted.append(index)
            return super().__getitem__(index)

    counted, calls = [], recorded(monkeypatch)
    fit(tmp_path, Plain(Counting()), num_sanity_val_steps=0)
    passed = len(counted)

    fit(tmp_path, Plain(Counting()), Projections(maps=1, top=2), num_sanity_val_steps=0)

    (tables, _, _), own = calls[0], counted[passed:]
    won = {int(index) for table in tables.values() for index in table.indices[table.values > 0]}
    assert own[0] == COUNT - 1  # tried out before training
    assert own[1 : 1 + COUNT] == list(range(COUNT))
    assert own[1 + COUNT] in won  # does it come again as it was?
    assert own[2 + COUNT :] == sorted(won)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"maps": 0}, "Projections: maps=0 and top=9 must be 1 or more"),
        ({"top": 0}, "Projections: maps=6 and top=0 must be 1 or more"),
        ({"unpooling": "overwrit"}, "Projections: unpooling='overwrit' must be sum or overwrite"),
        ({"when": 0}, "0 must be a whole number n"),
    ],
)
def test_numbers_and_words_that_cannot_be_are_refused_at_once(given, message):
    with pytest.raises(ValueError, match=message):
        Projections(**given)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Pictures())


class Long(Stream):
    def __len__(self):
        return COUNT


class Named(Pictures):
    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 2}


class Blind(Plain):
    forward = lightning.LightningModule.forward

    def training_step(self, batch, _):
        return F.cross_entropy(self.body(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.body(batch[0])


class Dicts(Plain):
    def validation_step(self, batch, _):
        self(batch["image"])


@pytest.mark.parametrize(
    ("make", "given", "error", "message"),
    [
        (lambda: Plain(), {"layers": ["conv9"]}, ValueError, "Plain has no submodule 'conv9'; there are body"),
        (lambda: chain()[0], {"layers": ["conv9"]}, ValueError, "no layer 'conv9'; the layers are conv1, conv2, fc3"),
        (lambda: chain()[0], {"layers": []}, ValueError, "layers names no layer; the layers are conv1"),
        (lambda: Plain(Stream()), {}, ValueError, r"a validation data set with dataset\[index\] and a length"),
        (lambda: Plain(Long()), {}, ValueError, r"a validation data set with dataset\[index\] and a length"),
        (lambda: Plain(DataLoader(Pictures(), 4, shuffle=True)), {}, ValueError, "use a loader without shuffling"),
        (lambda: Plain(Reversed(Pictures())), {}, ValueError, "use a loader without shuffling"),
        (lambda: Dicts(Named()), {}, ValueError, "need validation data .* but got dict"),
        (lambda: Plain(activation=F.gelu), {}, ValueError, "the rule 'deconvnet' is not defined for gelu"),
        (lambda: Plain(Pictures(channels=1), channels=1), {}, ValueError, r"square images in colour.* \(1, 21, 21\)"),
        (lambda: Plain(), {"unpooling": "overwrite"}, ValueError, "unpooling='overwrite' needs a chain"),
        (lambda: Blind(), {}, NotImplementedError, "missing the required .forward. function"),
    ],
    ids=["submodule", "layer", "no layer", "stream", "long stream", "shuffled", "own batches", "dict", "gelu", "grey",
         "overwrite", "no forward"],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_line_before_the_first_step(tmp_path, make, given, error, message):
    module = make()

    with pytest.raises(error, match=message) as caught:
        fit(tmp_path, module, Projections(**given))

    assert module.global_step == 0 and len(str(caught.value).splitlines()) == 1
    assert not hooks_of(module) and not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"validation": Stream()}, r"set with dataset\[index\] and a length"), ({"activation": F.gelu}, "for gelu")],
    ids=["stream", "gelu"],
)
def test_what_lightning_shows_late_is_refused_before_the_pass(tmp_path, given, message):
    class Counting(Plain):
        def validation_step(self, batch, batch_idx):
            passed.append(batch_idx)

    passed = []

    with pytest.raises(ValueError, match=message):
        fit(
            *(tmp_path, Counting(**given), Projections()),
            **{"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        )

    assert passed == []


def test_an_unknown_layer_is_refused_where_nothing_is_validated(tmp_path):
    module, _ = chain()

    with pytest.raises(ValueError, match="no layer 'conv9'"):
        fit(tmp_path, module, Projections(["conv9"]), limit_val_batches=0)

    assert module.global_step == 0


def test_other_ranks_neither_read_nor_draw(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)

    fit(tmp_path, Plain(), Projections())

    assert calls == [] and not (tmp_path / "figures").exists()


class Scaling(Plain):
    """Changes images between loader and network, as augmentation on a GPU does."""

    def on_after_batch_transfer(self, batch, _):
        return [batch[0] * 3, *batch[1:]]


@pytest.mark.parametrize("make", [Scaling, lambda: Plain(Wild())], ids=["scaled", "random"])
def test_images_that_do_not_come_again_as_they_were_are_told_of(tmp_path, make):
    with pytest.warns(UserWarning, match="an image read again .* does not give the activations that it won with"):
        fit(tmp_path, make(), Projections())


class Wild(Pictures):
    def __getitem__(self, index):
        return torch.randn(3, SIDE, SIDE) * 3, index % 2


class Elsewhere(Plain):
    def validation_step(self, batch, _):
        pass


def test_a_validation_that_runs_no_layer_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match="validation ran none of body.conv1, body.conv2; there is nothing to show"):
        fit(tmp_path, Elsewhere(), Projections())

    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("dead", [slice(None), slice(2, 3)], ids=["all", "one"])
def test_a_dead_map_has_a_block_that_says_so(tmp_path, monkeypatch, dead):
    module, validation = chain()
    module.optim = OptimConfig(lr=1e-12)
    module.network.conv2.conv.bias.data[dead] = -1e4
    oracle = Oracle(validation.images, maps=6, k=3)
    drawn = []
    monkeypatch.setattr("zfscope.figures.sheets.draw_dead", lambda *_: drawn.append(1))

    fit(tmp_path, module, Projections(top=3), oracle)

    assert len(drawn) == 2 * len(range(6)[dead])  # ours, and the oracle's
    sheet = np.asarray(Image.open(tmp_path / "figures/projections/conv2/epoch_001.png")).astype(int)
    expected = np.asarray(oracle.sheets["projections/conv2/epoch_001.png"]).astype(int)
    if dead == slice(None):
        tiles = torch.full((6, 3, 3, 8, 8), 127, dtype=torch.uint8)
        empty = projection_sheet(torch.arange(6), tiles, tiles, torch.zeros(6, 3), title="conv2, epoch 1")
        expected = np.asarray(empty).astype(int)
    assert sheet.shape == expected.shape and np.abs(sheet - expected).max() <= 3


def test_half_precision_and_compiled_networks_have_panels_too(tmp_path):
    compiled = Plain()
    compiled.compile(backend="eager")

    fit(tmp_path / "half", chain()[0], Projections(), precision="bf16-mixed")
    fit(tmp_path / "compiled", compiled, Projections())
    torch._dynamo.reset()

    assert len(panels(tmp_path / "half")) == len(panels(tmp_path / "compiled")) == 2


class Numbers(Dataset):
    """An image of each index that is that index."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.full((3, 1, 1), float(index)), 0


def distributed(rank, **options):
    return DistributedSampler(Numbers(), num_replicas=2, rank=rank, **({"shuffle": False} | options))


def wrapped(rank):
    return DistributedSamplerWrapper(range(COUNT - 1, -1, -1), num_replicas=2, rank=rank, shuffle=False)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 3, "sampler": range(1, COUNT, 2)},
        {"batch_size": 3, "sampler": distributed(0)},
        {"batch_size": 4, "sampler": distributed(1)},
        {"batch_size": 4, "sampler": distributed(1, drop_last=True)},
        {"batch_size": 4, "sampler": distributed(1, shuffle=True)},
        {"batch_size": 4, "sampler": wrapped(1)},
        {"batch_sampler": BatchSampler(distributed(1), 4, drop_last=False)},
    ],
    ids=["in order", "drop last", "every other", "rank 0", "rank 1 padded", "rank 1 cut off", "rank 1 shuffled",
         "rank 1 of an own order", "batch sampler"],
)  # fmt: skip
def test_the_indices_of_a_batch_are_those_that_its_loader_reads(options):
    loader = DataLoader(Numbers(), **options)

    order = order_of(loader)

    batches = list(loader)
    assert len(order) == len(batches)
    for number, batch in enumerate(batches):
        assert indices_of(order, batch, number).tolist() == batch[0][:, 0, 0, 0].tolist()


def test_two_ranks_read_all_images_and_the_last_one_begins_again():
    read = []
    for rank in range(2):
        loader = DataLoader(Numbers(), batch_size=4, sampler=distributed(rank))
        read.append(
            [index for number, batch in enumerate(loader) for index in indices_of(order_of(loader), batch, number)]
        )

    assert [int(index) for index in read[0]] == [0, 2, 4, 6, 8, 10]
    assert [int(index) for index in read[1]] == [1, 3, 5, 7, 9, 0]


@pytest.mark.parametrize(
    "options",
    [{"shuffle": True}, {"sampler": SubsetRandomSampler(range(COUNT))}, {"batch_sampler": [[3, 1], [2]]}],
    ids=["shuffled", "subset", "own batches"],
)
def test_where_a_loader_does_not_tell_the_batch_must(options):
    order = order_of(DataLoader(Pictures(indexed=True), **options))
    images = torch.zeros(3, 3, 4, 4)

    assert order is None
    assert indices_of(order, (images, torch.zeros(3), torch.tensor([5, 2, 9])), 0).tolist() == [5, 2, 9]
    for batch in [images, (images,), (images, images, torch.zeros(3)), (images, images, torch.tensor([1]))]:
        with pytest.raises(ValueError, match="which are the 3 images of validation batch 7.* give batches"):
            indices_of(order, batch, 7)
    with pytest.raises(ValueError, match="which are the 3 images of validation batch 0"):
        indices_of([[4, 5]], images, 0)  # a collate function that made three of two


class Still(Plain):
    """Learns nothing, for two processes train on other batches than one."""

    def __init__(self):
        super().__init__(lr=0.0)
        self.body.norm = nn.Identity()


def test_two_processes_show_what_one_shows(tmp_path):
    fit(tmp_path / "one", Still(), Projections(top=3))

    fit(tmp_path / "two", Still(), Projections(top=3), devices=2, strategy="ddp_spawn", num_sanity_val_steps=0)

    assert len(panels(tmp_path / "one")) == 2
    for panel in panels(tmp_path / "one"):
        one, two = (np.asarray(Image.open(tmp_path / run / "figures" / panel)).astype(int) for run in ("one", "two"))
        assert one.shape == two.shape and np.abs(one - two).max() <= 3


TINY = [
    *("data=folder", "data.resize=32", "data.crop=28", "data.batch_size=8", "data.num_workers=0", "logger=none"),
    *("device=cpu", "evaluate.enabled=false", "model.conv1.maps=8", "model.conv2.maps=8", "model.conv2.stride=1"),
    *("model.conv2.padding=2", "model.conv3.maps=8", "model.conv4.maps=8", "model.conv5.maps=8", "model.fc6.units=16"),
    *("model.fc7.units=16", "model.init.scheme=he", "trainer.max_epochs=2"),
]


def typed(folder, name, *overrides):
    """Type a command in a folder: ``(exit code, what it says to stderr)``."""
    said = io.StringIO()
    job, config_name = (train.run_training, "train") if name == "train" else (analyze.main, "analyze")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{name}.py", *overrides])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            code = train.run_command(job, config_name) or 0
        except SystemExit as stop:
            code = stop.code
    return code, said.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("data") / "images", {"train": 8, "val": 4})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Two epochs of a tiny zfnet_mini with panels."""
    folder = tmp_path_factory.mktemp("trained")
    code, err = typed(
        folder, "train", *TINY, f"data.root={data}", f"data.cache={folder / 'cache'}", "hydra.run.dir=outputs/run"
    )
    assert code == 0, err
    return folder / "outputs/run"


@pytest.fixture(scope="module")
def residual(tmp_path_factory, data):
    """One epoch of timm's resnet18 with panels."""
    folder = tmp_path_factory.mktemp("residual")
    tiny = [each for each in TINY if not each.startswith(("model.", "trainer.max_epochs"))]
    own = ["model=timm", "model.name=resnet18", "trainer.max_epochs=1", "hydra.run.dir=outputs/run"]
    code, err = typed(folder, "train", *tiny, *own, f"data.root={data}", f"data.cache={folder / 'cache'}")
    assert code == 0, err
    return folder / "outputs/run"


def analysed(folder, run, *overrides):
    """An atlas: what its results say, and its arrays without pickle."""
    code, err = typed(
        folder, "analyze", "analysis=projections", f"checkpoint={run}", "device=cpu", "hydra.run.dir=atlas", *overrides
    )
    assert code == 0, err
    with np.load(folder / "atlas/arrays.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return json.loads((folder / "atlas/results.json").read_text())["metrics"], found


def validation_images(run, data):
    """Network and validation images, read without the data loaders: inputs, and uint8 pictures."""
    network = load_network(run)
    opened = [Image.open(path).convert("RGB") for path in sorted((data / "val").rglob("*.jpg"))]
    inputs = torch.stack([network.preprocess(image) for image in opened])
    canvases = torch.stack([network.preprocessing.canvas(image) for image in opened])
    edge = (canvases.shape[-1] - inputs.shape[-1]) // 2
    return network, inputs, canvases[:, :, edge:-edge, edge:-edge]


def check_atlas(network, inputs, pictures, found, layer, k, unpooling="sum"):
    """The arrays of a layer against brute force over all images and single projections."""
    arrays = {name: torch.from_numpy(found[f"{layer}/{name}"]) for name in NAMES}
    expected = brute_force(network, inputs, layer, arrays["maps"], k)
    torch.testing.assert_close(arrays["values"].float(), expected.values, rtol=1e-4, atol=1e-5)
    above = arrays["values"] > 0
    assert torch.equal(above, expected.values > 0)
    for name in ("indices", "positions"):
        assert torch.equal(arrays[name][above], getattr(expected, name)[above])
    rows = above.nonzero()[:, 0]
    chosen, positions, boxes = (arrays[name][above] for name in ("indices", "positions", "boxes"))
    side = arrays["patches"].shape[-1]
    assert ((boxes[:, 2:] - boxes[:, :2]) == side).all()
    for patch, index, box in zip(arrays["patches"][above], chosen, boxes, strict=True):
        assert torch.equal(patch, cut(pictures[index][None], box[None], 127)[0])
    question = network, inputs[chosen], layer, arrays["maps"][rows], positions
    whole = side == inputs.shape[-1]
    projected = project(*question, unpooling=unpooling, crop=not whole)
    if not whole:
        projected, own = projected
        assert torch.equal(own, boxes)
    scales = arrays["scales"][above][:, None, None, None]
    torch.testing.assert_close(scales.flatten(), contrast_limits(projected), rtol=1e-3, atol=1e-6)
    back = (arrays["projections"][above].float() - 127.5) / 127.5 * scales
    step = scales / 127.5
    assert ((back - projected.clamp(-scales, scales)).abs() <= 0.51 * step + 1e-6).all()
    for name, value in {"patches": 127, "projections": 127, "scales": 0, "boxes": 0}.items():
        assert (arrays[name][~above] == value).all()


NAMES = {
    "maps": ((), "int64"),
    "values": ("k", "float64"),
    "indices": ("k", "int64"),
    "positions": ("k", 2, "int64"),
    "boxes": ("k", 4, "int64"),
    "scales": ("k", "float32"),
    "patches": ("k", 3, "side", "side", "uint8"),
    "projections": ("k", 3, "side", "side", "uint8"),
}
CONVS = [f"conv{number}" for number in range(1, 6)]


def test_a_run_has_panels_of_each_epoch(trained, residual):
    assert panels(trained) == [f"projections/{layer}/epoch_{epoch:03d}.png" for layer in CONVS for epoch in (1, 2)]
    stages = ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert panels(residual) == [f"projections/{layer}/epoch_001.png" for layer in stages]


def test_an_atlas_holds_all_maps_of_all_layers_as_brute_force_finds_them(tmp_path, trained, data):
    metrics, found = analysed(tmp_path, trained)

    network, inputs, pictures = validation_images(trained, data)
    assert set(found) == {f"{layer}/{name}" for layer in CONVS for name in NAMES}
    assert not (tmp_path / "atlas/arrays.tmp").exists()
    for layer in CONVS:
        side = found[f"{layer}/patches"].shape[-1]
        for name, (*shape, dtype) in NAMES.items():
            expected = [8, *({"k": 9, "side": side}.get(size, size) for size in shape if size != ())]
            assert (list(found[f"{layer}/{name}"].shape), str(found[f"{layer}/{name}"].dtype)) == (expected, dtype)
        assert found[f"{layer}/maps"].tolist() == list(range(8))
        check_atlas(network, inputs, pictures, found, layer, k=9)
        strongest = brute_force(network, inputs, layer, torch.arange(8), 1).values
        assert metrics[f"{layer}/dead_maps"]["value"] == int((strongest <= 0).sum())
        assert metrics[f"{layer}/dead_maps"]["unit"] == "of 8"
        sheet = Image.open(tmp_path / f"atlas/figures/projections/{layer}.png")
        assert sheet.mode == "RGB" and min(sheet.size) > 100
        for control in ("other_map", "random_weights", "other_map_place", "random_weights_place"):
            value = metrics[f"{layer}/{control}_correlation"]["value"]
            assert value is None or -1 <= value < 1
    assert found["conv1/patches"].shape[-1] == 7 and found["conv5/patches"].shape[-1] == 28
    assert sum(name.endswith("_correlation") for name in metrics) == 4 * 5
    assert metrics["conv1/random_weights_correlation"]["value"] is not None


def test_an_atlas_of_some_maps_of_one_layer_overwriting_and_without_controls(tmp_path, trained, data):
    asked = ["maps=5", "layers=[conv2]", "unpooling=overwrite", "controls=0", "top=4", "batch_size=5", "seed=3"]

    metrics, found = analysed(tmp_path, trained, *(f"analysis.{each}" for each in asked))

    network, inputs, pictures = validation_images(trained, data)
    assert set(found) == {f"conv2/{name}" for name in NAMES} and list(metrics) == ["conv2/dead_maps"]
    assert found["conv2/maps"].tolist() == random_subset(8, 5, seed=3).tolist()
    assert metrics["conv2/dead_maps"]["unit"] == "of 8"
    check_atlas(network, inputs, pictures, found, "conv2", k=4, unpooling="overwrite")
    assert [path.name for path in (tmp_path / "atlas/figures/projections").iterdir()] == ["conv2.png"]


def test_an_atlas_of_a_timm_run(tmp_path, residual, data):
    metrics, found = analysed(tmp_path, residual, "analysis.maps=2", "analysis.top=2")

    network, inputs, pictures = validation_images(residual, data)
    stages = ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert set(found) == {f"{layer}/{name}" for layer in stages for name in NAMES}
    assert list(metrics) == [f"{layer}/dead_maps" for layer in stages]
    for layer in ("act1", "layer1"):
        check_atlas(network, inputs, pictures, found, layer, k=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers=[conv9]", "no layer 'conv9'; the layers are conv1, conv2"),
        ("layers=[]", "layers names no layer; the layers are conv1, conv2"),
        ("layers=[fc8]", "fc8 is dense; the layers with feature maps are conv1, conv2, conv3, conv4, conv5"),
        ("part=test", "analysis.part=test: this data set has no labelled test images; use val"),
        ("part=vall", "analysis.*part='vall'"),
        ("unpooling=overwrit", "analysis.*unpooling='overwrit'"),
        ("maps=0", "analysis.*maps=0"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line_and_leaves_nothing(tmp_path, trained, override, message):
    code, err = typed(tmp_path, "analyze", "analysis=projections", f"checkpoint={trained}", f"analysis.{override}")

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


def test_a_timm_run_cannot_be_overwritten_and_says_so_before_it_mines(tmp_path, residual, monkeypatch):
    monkeypatch.setattr("zfscope.analyses.projections.mine", None)

    code, err = typed(
        tmp_path, "analyze", "analysis=projections", f"checkpoint={residual}", "analysis.unpooling=overwrite"
    )

    assert code == 2 and "unpooling='overwrite' needs a chain" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_an_atlas_that_ends_badly_leaves_no_half_of_it(tmp_path, trained, monkeypatch):
    def broken(*given, **options):
        yield next(project_winners(*given, **options))
        raise OSError("no space left on device")

    monkeypatch.setattr("zfscope.analyses.projections.project_winners", broken)

    code, err = typed(tmp_path, "analyze", "analysis=projections", f"checkpoint={trained}")

    assert code == 2 and "no space left on device" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def table_of(values):
    indices = torch.arange(values.numel()).view_as(values)
    return TopTable(values, indices, torch.stack([indices, indices + 1], 2))


def test_arrays_are_filled_in_any_order_and_a_dead_layer_has_all_its_names(tmp_path):
    tables = {"conv1": table_of(torch.ones(2, 3)), "conv2": table_of(torch.zeros(4, 3))}
    maps = {"conv1": torch.tensor([5, 9]), "conv2": torch.arange(4)}
    places = [(1, 2), (0, 0), (1, 0)]
    projections = torch.randn(3, 3, 6, 6)

    with Arrays(tmp_path / "arrays.npz", tables, maps) as arrays:
        for number, (row, rank) in enumerate(places):
            patch = torch.full((1, 3, 6, 6), number, dtype=torch.uint8)
            box = torch.tensor([[number, 0, number + 6, 6]])
            arrays.put(
                Winners("conv1", torch.tensor([row]), torch.tensor([rank]), patch, projections[number][None], box)
            )

    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as found:
        assert set(found.files) == {f"{layer}/{name}" for layer in tables for name in NAMES}
        assert found["conv1/patches"][:, :, 0, 0, 0].tolist() == [[1, 127, 127], [2, 127, 0]]
        assert found["conv1/boxes"][1].tolist() == [[2, 0, 8, 6], [0, 0, 0, 0], [0, 0, 6, 6]]
        limits = contrast_limits(projections)
        np.testing.assert_array_equal(found["conv1/scales"], [[limits[1], 0, 0], [limits[2], 0, limits[0]]])
        np.testing.assert_array_equal(found["conv1/projections"][1, 2], to_tiles(projections, limit=limits)[0])
        assert found["conv1/maps"].tolist() == [5, 9] and found["conv2/maps"].tolist() == [0, 1, 2, 3]
        assert found["conv2/scales"].shape == (4, 3) and not found["conv2/scales"].any()
        assert found["conv2/boxes"].shape == (4, 3, 4) and not found["conv2/boxes"].any()
        assert (found["conv2/patches"] == 127).all() and (found["conv2/projections"] == 127).all()
    assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]


def test_arrays_that_are_not_finished_leave_the_old_ones_and_nothing_else(tmp_path):
    (tmp_path / "arrays.npz").write_text("old")
    tables = {"conv1": table_of(torch.ones(2, 3))}

    with (
        pytest.raises(KeyboardInterrupt),
        Arrays(tmp_path / "arrays.npz", tables, {"conv1": torch.arange(2)}) as arrays,
    ):
        arrays.get("conv1", "patches")
        raise KeyboardInterrupt

    assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]
    assert (tmp_path / "arrays.npz").read_text() == "old"


def test_controls_are_means_over_winners_with_the_same_random_weights_each_time():
    network, images = small_chain().eval(), Pictures().images
    maps = torch.tensor([3, 0, 4])
    table = brute_force(network, images, "conv2", maps, 3)
    asked = ProjectionsAnalysis(controls=1000, batch_size=4, seed=5)
    reads = []

    def read(indices):
        reads.append(sorted(indices))
        return images[list(indices)]

    before = torch.get_rng_state()
    found = controls(network, {"conv2": table}, {"conv2": maps}, read, asked)
    again = controls(network, {"conv2": table}, {"conv2": maps}, read, asked)
    after = torch.get_rng_state()

    randomised = small_chain().eval()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        randomised.initialise(InitConfig(scheme="he"))
    rows, ranks = (table.values > 0).nonzero(as_tuple=True)
    with torch.no_grad():
        trace = network.trace(images[table.indices[rows, ranks]])
    places = table.positions[rows, ranks]
    expected = control_correlations(
        network, trace, "conv2", maps[rows], places, torch.arange(len(rows)), randomised, torch.Generator()
    )
    assert found == again and torch.equal(after, before)
    for name in ("random_weights", "random_weights_place"):  # the other map is drawn, these are not
        assert found[f"conv2/{name}_correlation"] == pytest.approx(float(expected[name].mean()), abs=1e-5)
    assert all(len(indices) <= 4 and len(indices) == len(set(indices)) for indices in reads)
    few = controls(network, {"conv2": table}, {"conv2": maps}, read, ProjectionsAnalysis(controls=2))
    assert len(reads[-1]) <= 2 and few != found


def test_controls_of_a_dead_layer_are_left_out():
    table = TopTable(torch.zeros(5, 3), torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3, 2, dtype=torch.int64))

    found = controls(small_chain(), {"conv1": table}, {"conv1": torch.arange(5)}, None, ProjectionsAnalysis())

    assert found == {}
