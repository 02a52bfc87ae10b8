"""Panels of short trainings, on the CPU, against brute force over all images."""

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests.callbacks.conftest import (
    COUNT,
    SIDE,
    Body,
    Module,
    Noted,
    Pictures,
    feature_maps,
    fit,
    hooks_of,
    in_batches_of_its_own,
    panels,
    resnet,
    same,
    small_chain,
)
from tests.conftest import START
from zfscope.activations import TopTable
from zfscope.callbacks import FeatureEvolution, OcclusionMaps, Projections
from zfscope.deconvnet.boxes import cut
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import as_pictures, project_winners, random_subset
from zfscope.figures import projection_sheet
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.hooked import as_network


def brute_force(module, images, layer, maps, k):
    """Values, indices and positions of the strongest activations, from all activations of all images at once."""
    activations = feature_maps(module, images, layer)[:, maps]
    values, places = activations.flatten(2).max(2)
    values, indices = values.t().sort(dim=1, descending=True, stable=True)
    places = places.t().gather(1, indices)
    width = activations.shape[3]
    return TopTable(values[:, :k], indices[:, :k], torch.stack([places // width, places % width], 2)[:, :k])


def drawn_alone(network, images, layer, maps, table, title, rule):
    """The sheet of a table, each winner read and projected by itself."""
    shape, rows = table.values.shape, maps.repeat_interleave(table.values.shape[1])
    chosen, positions = images[table.indices.flatten()], table.positions.flatten(0, 1)
    projections, boxes = project(network, chosen, layer, rows, positions, rule=rule, crop=True)
    if projections.shape[-1] >= images.shape[-1]:
        projections = project(network, chosen, layer, rows, positions, rule=rule)
        boxes = torch.tensor([0, 0, images.shape[-1], images.shape[-1]]).expand(len(rows), 4)
    tiles = to_tiles(projections, limit=contrast_limits(projections))
    patches = cut(as_pictures(network, chosen), boxes, 127)
    below = table.values.flatten() <= 0
    tiles[below] = patches[below] = 127
    tiles, patches = (part.unflatten(0, shape) for part in (tiles, patches))
    return projection_sheet(maps, patches, tiles, table.values, title=title)


class Oracle(lightning.Callback):
    """Draws by brute force, after each validation of the fit, what the panels should show."""

    def __init__(self, images, maps, k, guided=()):
        self.images, self.maps, self.k, self.guided, self.sheets = images, maps, k, guided, {}

    def on_train_epoch_end(self, trainer, pl_module):
        network, epoch = as_network(pl_module), trainer.current_epoch + 1
        for layer in network.layers:
            if layer in ("fc3", "fc4", "fc"):
                continue
            maps = random_subset(feature_maps(pl_module, self.images[:1], layer).shape[1], self.maps, seed=0)
            table = brute_force(pl_module, self.images, layer, maps, self.k)
            rule = "guided" if layer in self.guided else "deconvnet"
            title = f"{layer}, epoch {epoch}" + (", rule guided" if rule == "guided" else "")
            sheet = drawn_alone(network, self.images, layer, maps, table, title, rule)
            self.sheets[f"projections/{layer}/epoch_{epoch:03d}.png"] = sheet


def pixels(picture):
    return np.asarray(picture).astype(int)


def check_panels(folder, sheets):
    assert panels(folder) == sorted(sheets)
    for panel, sheet in sheets.items():
        shown, expected = pixels(Image.open(folder / "figures" / panel)), pixels(sheet)
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).max() <= 3, panel  # other batches round otherwise


@pytest.mark.parametrize(
    ("make", "layers", "when", "guided"),
    [
        (Body, ["network.conv1", "network.conv2"], [1, 3], ["network.conv2"]),
        (small_chain, ["conv1", "conv2"], [1, 3], []),
        (resnet, ["act1", "layer1", "layer2", "layer3", "layer4"], [1], ["layer2", "layer3", "layer4"]),
    ],
    ids=["plain", "chain", "resnet"],
)
def test_each_epoch_shows_the_winners_of_a_pass_over_all_images_and_their_projections(
    tmp_path, make, layers, when, guided
):
    module = Module(make())
    oracle = Oracle(module.validation.images, maps=2, k=3, guided=guided)

    fit(tmp_path, module, Projections(maps=2, top=3, when=when), oracle, max_epochs=max(when))

    expected = [f"projections/{layer}/epoch_{epoch:03d}.png" for layer in layers for epoch in when]
    check_panels(tmp_path, {panel: oracle.sheets[panel] for panel in expected})


@pytest.fixture
def projected(monkeypatch):
    """What the callback projects: tables and maps of each time, and how it reads images."""
    calls = []

    def recording(network, tables, maps, read, **options):
        calls.append((tables, maps, read))
        return project_winners(network, tables, maps, read, **options)

    monkeypatch.setattr("zfscope.callbacks.projections.project_winners", recording)
    return calls


def check_winners(calls, module):
    """The only call's tables are those of brute force with the weights as they are."""
    ((tables, maps, _),) = calls
    for layer, table in tables.items():
        expected = brute_force(module, Pictures().images, layer, maps[layer], table.values.shape[1])
        torch.testing.assert_close(table.values.float(), expected.values, rtol=1e-4, atol=1e-5)
        above = expected.values > 0
        assert above.any() and torch.equal(table.indices[above], expected.indices[above])
        assert torch.equal(table.positions[above], expected.positions[above])


class Several(Module):
    def validation_step(self, batch, _, dataloader_idx=0):
        self(batch[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Module(validation=DataLoader(Pictures(parts=3), batch_size=4, shuffle=True)),
        lambda: Module(validation=in_batches_of_its_own(Pictures(parts=3))),
        lambda: Module(validation=DataLoader(Pictures(), batch_size=4, sampler=range(COUNT - 1, -1, -1))),
        lambda: Module(
            validation=DataLoader(Pictures(), batch_sampler=BatchSampler(SequentialSampler(range(COUNT)), 3, False))
        ),
        lambda: Module(validation=Pictures(parts=1)),
        lambda: Several(validation=[DataLoader(Pictures(), 4), DataLoader(Pictures(count=30), 4)]),
        lambda: Several(validation={"first": DataLoader(Pictures(), 4), "second": DataLoader(Pictures(30), 4)}),
    ],
    ids=["shuffled", "own batches", "own sampler", "batch sampler", "images alone", "list", "dict"],
)
def test_winners_are_right_however_the_images_come(tmp_path, projected, make):
    module = make()

    fit(tmp_path, module, Projections(top=3), num_sanity_val_steps=2)

    check_winners(projected, module)


class Groups(Pictures):
    """A third part that is a whole number, but no index."""

    def __getitem__(self, index):
        return *super().__getitem__(index), index // 4


def test_a_third_part_that_is_no_index_is_not_taken_for_one(tmp_path, projected):
    module = Module(validation=Groups())

    fit(tmp_path, module, Projections(top=3))

    check_winners(projected, module)


class KeepingGradients(Module):
    """Has gradients while it validates, and a layer that is never trained."""

    def __init__(self, network):
        super().__init__(network)
        network.conv2.requires_grad_(False)

    def on_validation_model_zero_grad(self):
        pass


@pytest.mark.parametrize("make", [Body, small_chain], ids=["plain", "chain"])
def test_module_mode_and_gradients_are_untouched(tmp_path, make):
    before, after, module = Noted(), Noted(), KeepingGradients(make())

    fit(tmp_path, module, before, Projections(), after, max_epochs=2)

    assert len(before.states) == 2 and panels(tmp_path)
    assert same(before.states, after.states)
    assert any(gradient is not None for gradient in before.states[0]["gradients"])
    assert module.training and not hooks_of(module)


@pytest.mark.parametrize("make", [Body, small_chain], ids=["plain", "chain"])
def test_training_goes_the_same_way_to_the_bit_with_and_without_panels(tmp_path, make):
    alone, watched = (Module(make(), Pictures(noise=1e-3)) for _ in range(2))

    fit(tmp_path, alone, max_epochs=2)
    fit(tmp_path, watched, Projections(), max_epochs=2)

    assert panels(tmp_path) and same(alone.state_dict(), watched.state_dict())


BOTH = [f"projections/network.conv{number}/epoch_001.png" for number in (1, 2)]


def test_no_hook_stays_after_a_validation_that_failed_and_the_callback_can_go_on(tmp_path):
    class Failing(Module):
        fails = True

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.fails and batch_idx == 1:
                raise RuntimeError("the disk is gone")

    module, callback = Failing(), Projections()

    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(tmp_path, module, callback)
    assert not hooks_of(module) and panels(tmp_path) == []
    module.fails = False
    fit(tmp_path, module, callback)

    assert panels(tmp_path) == BOTH and not hooks_of(module)


def test_one_callback_watches_one_module_after_another(tmp_path):
    callback = Projections(maps=1, top=1)

    for name, make in [("first", Body), ("second", small_chain)]:
        module = Module(make())
        fit(tmp_path / name, module, callback)
        assert not hooks_of(module)

    assert panels(tmp_path / "first") == BOTH
    assert panels(tmp_path / "second") == [f"projections/conv{number}/epoch_001.png" for number in (1, 2)]


def test_neither_the_sanity_check_nor_a_validation_by_itself_draws(tmp_path, projected):
    module = Module()

    trainer = fit(tmp_path, module, Projections(when=2), num_sanity_val_steps=2)
    trainer.validate(module, verbose=False)

    assert projected == [] and not (tmp_path / "figures").exists() and not hooks_of(module)


def test_the_images_shown_are_read_once_more_and_no_others(tmp_path, projected):
    images = Pictures()

    fit(tmp_path, Module(validation=images), Projections(maps=1, top=2))

    ((tables, _, _),) = projected
    won = {int(index) for table in tables.values() for index in table.indices[table.values > 0]}
    assert images.read[0] == COUNT - 1  # whether it can be shown
    assert images.read[1 : 1 + COUNT] == list(range(COUNT))
    assert images.read[1 + COUNT] in won  # does it come again as it was?
    assert images.read[2 + COUNT :] == sorted(won)


def test_other_ranks_neither_read_nor_draw(tmp_path, monkeypatch, projected):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)

    fit(tmp_path, Module(), Projections())

    assert projected == [] and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("dead", [slice(None), slice(2, 3)], ids=["all", "one"])
def test_a_dead_map_has_a_block_that_says_so(tmp_path, monkeypatch, dead):
    module = Module(small_chain(), lr=1e-12)
    module.network.conv2.conv.bias.data[dead] = -1e4
    oracle = Oracle(module.validation.images, maps=6, k=3)
    drawn = []
    monkeypatch.setattr("zfscope.figures.sheets.draw_dead", lambda *_: drawn.append(1))

    fit(tmp_path, module, Projections(top=3), oracle)

    assert len(drawn) == 2 * len(range(6)[dead])  # ours, and the oracle's
    if dead == slice(None):
        tiles = torch.full((6, 3, 3, 8, 8), 127, dtype=torch.uint8)
        empty = projection_sheet(torch.arange(6), tiles, tiles, torch.zeros(6, 3), title="conv2, epoch 1")
        oracle.sheets["projections/conv2/epoch_001.png"] = empty
    check_panels(tmp_path, oracle.sheets)


def test_half_precision_and_compiled_networks_have_panels_too(tmp_path):
    compiled = Module()
    compiled.compile(backend="eager")

    fit(tmp_path / "half", Module(small_chain()), Projections(), precision="bf16-mixed")
    fit(tmp_path / "compiled", compiled, Projections())
    torch._dynamo.reset()

    assert len(panels(tmp_path / "half")) == len(panels(tmp_path / "compiled")) == 2


class Still(Module):
    """Learns nothing, for two processes train on other batches than one."""

    def __init__(self):
        super().__init__(lr=0.0)
        self.network.norm = nn.Identity()

    def setup(self, stage):
        if self.trainer.world_size > 1:
            torch.set_num_threads(1)  # a forked process has not the threads of its parent


def test_two_processes_show_what_one_shows(tmp_path):
    fit(tmp_path / "one", Still(), Projections(top=3))

    fit(tmp_path / "two", Still(), Projections(top=3), devices=2, strategy=f"ddp_{START}")

    assert panels(tmp_path / "one") == BOTH
    check_panels(tmp_path / "two", {panel: Image.open(tmp_path / "one/figures" / panel) for panel in BOTH})


@pytest.mark.parametrize(("rule", "said"), [("deconvnet", True), ("guided", False)])
def test_titles_say_where_the_projections_are_the_same_for_every_image(tmp_path, monkeypatch, rule, said):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    body(torch.zeros(1, 3, SIDE, SIDE))  # without a pool
    titles = []

    def recording(*tensors, title):
        titles.append(title)
        return projection_sheet(*tensors, title=title)

    monkeypatch.setattr("zfscope.callbacks.projections.projection_sheet", recording)

    fit(tmp_path, Module(body), Projections(layers=["network.1", "network.3"], rule=rule))

    first, second = titles
    assert first.endswith(", the filter itself")  # whatever the rule: one unit of a first filter is above 0
    assert second.endswith(", the same for every image") == said


@pytest.mark.parametrize("make", [Projections, FeatureEvolution, OcclusionMaps])
def test_a_rule_of_null_as_in_the_configs_of_older_runs_is_the_default(make):
    assert make(rule=None).rule == make().rule == "auto"
    assert make(rule=None).state_key == make().state_key
