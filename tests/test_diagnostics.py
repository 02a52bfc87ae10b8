"""Dead maps, frequencies and grids that were planted; the callback and the analysis against brute force."""

import json
import math
import sys
from datetime import timedelta
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import ROOT, composed
from tests.conftest import fit as train_briefly
from zfscope import build_network
from zfscope.analyses.diagnostics import filters_at_radius
from zfscope.callbacks import Diagnostics, FilterRenorm, Projections
from zfscope.diagnostics import (
    HIGH,
    LOW,
    NOISE,
    Diagnosis,
    MapRanges,
    MapWatch,
    dead_maps,
    filter_frequencies,
    first_filters,
    grid_score,
    near_dead_maps,
)
from zfscope.figures import diagnostics_sheet
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import save_network
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.layers import conv_layers, filter_rms
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.training.spec import check_targets


def planted(count=40, maps=12, side=5, seed=0):
    """Rectified maps: 2 is dead, 5 hardly answers, 7 always says the same, 9 answers to a single image."""
    maps = torch.randn(count, maps, side, side, generator=torch.Generator().manual_seed(seed)).relu()
    maps[:, 2] = 0
    maps[:, 5] *= 1e-4
    maps[:, 7] = 3 + 1e-3 * maps[:, 7]
    maps[:, 9] = 0
    maps[17, 9, 2, 2] = 2
    return maps


def ranges_of(*batches):
    metric = MapRanges(batches[0].shape[1])
    for maps in batches:
        metric.update(maps)
    return metric.compute()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dense", [False, True], ids=["maps", "units"])
def test_planted_dead_and_nearly_dead_maps_are_found_and_a_map_of_one_image_is_well(scale, dense):
    maps = scale * planted()

    ranges = ranges_of(maps.amax((2, 3)) if dense else maps)

    assert dead_maps(ranges).nonzero().flatten().tolist() == [2]
    assert near_dead_maps(ranges).nonzero().flatten().tolist() == [5, 7]


def test_what_a_relu_would_cut_off_is_no_answer():
    maps = planted()
    maps[:, 2] = -5 * planted(seed=1)[:, 0] - 1  # before the ReLU, and always below 0
    maps[:, 5] = 1e-4 - maps[:, 0]

    ranges = ranges_of(maps)

    assert dead_maps(ranges).nonzero().flatten().tolist() == [2]
    assert near_dead_maps(ranges).nonzero().flatten().tolist() == [5, 7]


def test_where_most_maps_are_dead_the_living_ones_are_compared_with_each_other():
    ranges = torch.tensor([[0.0, 0, 0, 0, 0, 4, 5, 6, 0.001], [0.0] * 9])

    assert near_dead_maps(ranges).tolist() == [False] * 8 + [True]
    assert not near_dead_maps(torch.zeros(2, 4)).any() and dead_maps(torch.zeros(2, 4)).all()


def test_ranges_are_those_of_all_activations_however_they_come_in():
    maps = planted() - 0.5
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    channels_last = maps[order].to(memory_format=torch.channels_last)

    found = ranges_of(*channels_last.split(7), maps[:3], maps[:0], maps[:5].amax((2, 3)))

    everything = maps.transpose(0, 1).flatten(1)
    assert torch.equal(found, torch.stack([everything.max(1).values, everything.min(1).values]))
    assert ranges_of(torch.tensor([[1.0], [math.nan]])).isnan().all()


def one_of_two_ranks(rank, folder):
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    metric = MapRanges(12)
    metric.update(planted()[rank::2])
    torch.save((metric.compute(), metric.extremes), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_gloo_processes_find_the_ranges_of_one(tmp_path):
    multiprocessing.spawn(one_of_two_ranks, (str(tmp_path),), nprocs=2)
    (first, own), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    assert torch.equal(first, ranges_of(planted())) and torch.equal(second, first)
    assert not torch.equal(own, other)  # each rank goes on with its own


def waves(side, frequency, angle=0.0, phase=0.3):
    """One filter, a cosine of that many cycles per pixel along a direction."""
    rows, columns = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    along = math.cos(angle) * columns + math.sin(angle) * rows
    return torch.cos(2 * math.pi * frequency * along + phase).expand(1, 3, -1, -1)


@pytest.mark.parametrize(("frequency", "band"), [(0.03, "low"), (0.19, "middle"), (0.4, "high")])
@pytest.mark.parametrize("angle", [0.0, 0.6, math.pi / 2])
@pytest.mark.parametrize("side", [11, 63])
def test_a_wave_has_most_of_its_energy_in_its_band(side, frequency, band, angle):
    found = vars(filter_frequencies(waves(side, frequency, angle)))

    share = found.pop(band)
    assert share > (0.95 if side == 63 else 0.6)
    assert share > max(found["low" if band == "middle" else "middle"], 0.3)


@pytest.mark.parametrize("side", [7, 11])
def test_shares_are_the_integral_of_the_spectrum_over_the_band(side):
    weight = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)

    found = filter_frequencies(weight, (2, 4))

    # By Monte Carlo: the spectrum of single frequencies, drawn at random, straight from its definition.
    drawn = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    wave = [torch.exp(-2j * math.pi * drawn[:, axis, None] * torch.arange(side)) for axis in (0, 1)]
    energy = torch.einsum("kchw,nh,nw->knc", weight.to(wave[0].dtype), *wave).abs().square().sum(2)
    length = drawn.norm(dim=1)
    inside = {
        "low": length < LOW,
        "middle": (length >= LOW) & (length <= HIGH),
        "high": length > HIGH,
        "beyond_stride": (drawn[:, 0].abs() > 1 / 4) | (drawn[:, 1].abs() > 1 / 8),
    }
    for name, where in inside.items():
        torch.testing.assert_close(
            getattr(found, name), energy[:, where].sum(1) / energy.sum(1), atol=0.012, rtol=0, msg=name
        )
    torch.testing.assert_close(found.low + found.middle + found.high, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("side", "strides"), [(7, (2, 2)), (11, (4, 4)), (11, (4, 2))])
def test_what_a_stride_carries_is_the_closed_integral_over_its_rectangle(side, strides):
    weight = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found = filter_frequencies(weight, strides).beyond_stride

    apart = torch.arange(side).double()[:, None] - torch.arange(side)
    rows, columns = (torch.sinc(apart / stride) / stride for stride in strides)  # of the cosine up to 1 / (2 stride)
    carried = torch.einsum("kchw,hi,wj,kcij->k", weight, rows, columns, weight)
    torch.testing.assert_close(found, 1 - carried / weight.square().sum((1, 2, 3)), atol=5e-4, rtol=0)


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (11, 4), (11, 1)])
def test_white_noise_has_in_each_band_its_area(side, stride):
    noise = torch.randn(300, 3, side, side, generator=torch.Generator().manual_seed(0))

    found = filter_frequencies(noise, stride)

    expected = {**NOISE, "beyond_stride": 1 - 1 / stride**2}
    assert sum(NOISE.values()) == pytest.approx(1)
    for name, share in expected.items():
        assert getattr(found, name).mean().item() == pytest.approx(share, abs=0.005)


def test_a_stride_of_one_folds_nothing_back_and_a_wave_aliases_just_beyond_its_own():
    weight = torch.randn(9, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    wave = waves(63, 0.2)

    assert filter_frequencies(weight, 1).beyond_stride.max() == 0
    assert filter_frequencies(wave, 2).beyond_stride < 0.05  # 1/4 cycles fit
    assert filter_frequencies(wave, 3).beyond_stride > 0.95  # 1/6 do
    assert filter_frequencies(wave, (3, 1)).beyond_stride < 0.05  # it runs along the columns
    assert filter_frequencies(wave, (1, 3)).beyond_stride > 0.95


def test_filters_of_one_pixel_of_zeros_and_larger_than_the_grid_are_measured_too():
    point = filter_frequencies(torch.ones(1, 3, 1, 1), 2)

    assert point.high.item() == pytest.approx(NOISE["high"], abs=0.01)
    assert filter_frequencies(torch.zeros(1, 3, 5, 5)).low.isnan().all()
    far = torch.zeros(1, 3, 100, 100)
    far[..., 98, 99] = 1  # the same point, but beyond the grid's end
    assert filter_frequencies(far).high.item() == pytest.approx(NOISE["high"], abs=0.01)


@pytest.mark.parametrize(
    ("weight", "stride", "message"),
    [
        (torch.ones(3, 7, 7), 1, r"must be filters \(C, C_in, h, w\), .* \(3, 7, 7\)"),
        (torch.ones(0, 3, 7, 7), 1, r"at least one, but came with \(0, 3, 7, 7\)"),
        (torch.ones(2, 3, 7, 7), 0, "stride must be 1 or more, for rows and columns, but is 0"),
        (torch.ones(2, 3, 7, 7), (2, 2, 2), r"but is \(2, 2, 2\)"),
    ],
)
def test_what_are_no_filters_is_refused(weight, stride, message):
    with pytest.raises(ValueError, match=message):
        filter_frequencies(weight, stride)


def smooth(count=200, side=27, seed=0):
    """Noise without fine detail, at random corners."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 3, side + 12, side + 12, generator=generator, dtype=torch.float64)
    corners = torch.randint(-9, 100, (count, 2), generator=generator)
    return nn.functional.avg_pool2d(nn.functional.avg_pool2d(rough, 7, 1), 7, 1), corners


def on_grid(patches, corners, period, depth, phase=1):
    """The same patches, stronger on every ``period``-th row and column of the image."""
    side = patches.shape[-1]
    x, y = (torch.arange(side) + corners[:, axis, None] for axis in (0, 1))
    lines = ((y % period == phase)[:, :, None] | (x % period == phase)[:, None, :]).double()
    return patches * (1 + depth * lines[:, None])


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_planted_grid_raises_the_score_of_its_period_and_smooth_patterns_have_none(period):
    patches, corners = smooth()

    without = grid_score(patches, corners, period)
    scores = [grid_score(on_grid(patches, corners, period, depth), corners, period).score for depth in (0.2, 0.5, 1)]
    elsewhere = grid_score(on_grid(patches, corners, period, 1), corners, 5)

    assert without.score < 2.5 * without.chance < 0.1
    assert without.score < scores[0] < scores[1] < scores[2] and scores[0] > 5 * without.score
    assert elsewhere.score < 2.5 * elsewhere.chance


def test_a_grid_is_counted_in_the_image_and_not_in_the_patch():
    patches, corners = smooth()
    gridded = on_grid(patches, corners, 4, 1)

    in_step, out_of_step = (grid_score(gridded, where, 4) for where in (corners, corners.flip(0)))

    assert in_step.score > 10 * out_of_step.score
    assert out_of_step.score < 2.5 * out_of_step.chance


@pytest.mark.parametrize("period", [2, 4, 8])
def test_where_patches_end_is_no_grid_even_if_all_of_them_end_there(period):
    patches = torch.ones(5, 3, 27, 27)

    found = grid_score(patches, torch.zeros(5, 2), period)

    assert found.score < 0.02  # 14 rows of one kind and 13 of the other would be 0.05


def test_score_and_chance_by_hand():
    # All energy at one of four phases: 4 at it, 0 at three, their mean 1: a deviation of sqrt(3).
    alone = torch.zeros(1, 1, 8, 8)
    alone[0, 0, 4, 2] = 5
    pair = torch.zeros(2, 1, 8, 8)
    pair[0, 0, 4, 2], pair[1, 0, 2, 3] = 5, 1
    corners = torch.tensor([[0, 0], [3, -2]])

    # With their corners both lie at an even row and an even column; without, in different columns.
    assert grid_score(alone, corners[:1], 2) == pytest.approx((3**0.5, 3**0.5))
    assert grid_score(pair, corners, 2) == pytest.approx((3**0.5, (3 / 2) ** 0.5))
    assert grid_score(pair, torch.zeros(2, 2), 2) == pytest.approx((1, (3 / 2) ** 0.5))


def test_chance_is_what_random_shifts_give():
    patches, corners = smooth(60)
    gridded = on_grid(patches, corners, 4, 1)
    generator = torch.Generator().manual_seed(1)

    shifted = [
        grid_score(gridded, corners + torch.randint(4, corners.shape, generator=generator), 4) for _ in range(300)
    ]

    scores = torch.tensor([each.score for each in shifted])
    assert scores.square().mean().sqrt().item() == pytest.approx(shifted[0].chance, rel=0.06)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (11, 4)])
def test_filters_put_down_at_a_stride_leave_a_grid_and_at_every_pixel_none(kernel, stride):
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(4, 3, kernel, kernel, generator=generator, dtype=torch.float64)

    def laid(step):
        seeds = torch.randn(100, 4, -(-60 // step), -(-60 // step), generator=generator, dtype=torch.float64)
        return nn.functional.conv_transpose2d(seeds, filters, stride=step)[:, :, 12:48, 12:48]

    corners = torch.full((100, 2), 12)
    strided, dense = (grid_score(laid(step), corners, stride) for step in (stride, 1))

    assert strided.score > 0.1 > 4 * dense.score


def test_projections_that_are_all_zero_have_no_score_and_single_ones_do_not_count():
    patches, corners = smooth(6)
    zeros = torch.zeros_like(patches)

    assert all(math.isnan(value) for value in grid_score(zeros, corners, 2))
    together = grid_score(torch.cat([zeros, patches]), torch.cat([corners, corners]), 2)
    assert together == pytest.approx(grid_score(patches, corners, 2))


@pytest.mark.parametrize(
    ("side", "corners", "period", "message"),
    [
        (9, torch.zeros(2, 2), 1, "period=1 must be 2 or more"),
        (9, torch.zeros(2, 2), 5, "two of it must fit into projections of 9x9 pixels"),
        (9, torch.zeros(3, 2), 2, r"corners must be \(x0, y0\) of 2 projections, but is \(3, 2\)"),
    ],
)
def test_what_has_no_grid_is_refused(side, corners, period, message):
    with pytest.raises(ValueError, match=message):
        grid_score(torch.ones(2, 3, side, side), corners, period)


def chain(seed=0, stride=2):
    torch.manual_seed(seed)
    layers = {
        "conv1": ConvLayer(maps=8, kernel_size=5, stride=stride, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    network = ConvNet(layers, num_classes=2, image_size=33, init=InitConfig(scheme="he"))
    nn.init.constant_(network.conv2.conv.bias[:2].detach(), -1e4)
    with torch.no_grad():
        network.conv1.conv.weight[3] *= 1e-5
    return network


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1350, 2)),
    )


class Module(lightning.LightningModule):
    def __init__(self, network=None, loaders=1, lr=1e-4):
        super().__init__()
        self.network = network if network is not None else chain()
        self.loaders, self.lr, self.logged = loaders, lr, []
        self.images = torch.randn(14, 3, 33, 33, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _, dataloader_idx=0):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def log(self, name, value, *args, **kwargs):
        self.logged.append((self.trainer.current_epoch, name, float(value)))
        super().log(name, value, *args, **kwargs)

    def train_dataloader(self, images=None):
        images = self.images if images is None else images
        return DataLoader(TensorDataset(images, torch.arange(14) % 2), batch_size=4)

    def val_dataloader(self):
        return [self.train_dataloader(1e6**number * self.images) for number in range(self.loaders)]


class Kept(lightning.Callback):
    """Copies of the weights at each validation."""

    def __init__(self):
        self.epochs = []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: each.clone() for name, each in pl_module.state_dict().items()})


fit = partial(train_briefly, max_epochs=2, num_sanity_val_steps=0)


def brute_force(network, images):
    """What is logged, from the whole maps of all images at once and from a plain loop."""
    expected = {}
    layers = ["conv1", "conv2", "fc3"] if isinstance(network, ConvNet) else ["2", "4"]
    hooked = network if isinstance(network, ConvNet) else HookedNetwork(network, layers)
    with torch.no_grad():
        for layer in layers:
            maps = hooked.eval().features(images, layer).transpose(0, 1).flatten(1).clamp_min(0)
            spans = maps.amax(1) - maps.amin(1)
            living = maps.amax(1) > 0
            nearly = living & (spans < 0.01 * spans[living].median())
            expected[f"{layer}/dead_maps"] = int((~living).sum())
            expected[f"{layer}/near_dead_maps"] = int(nearly.sum())
    name, conv = ("conv1", network.conv1.conv) if isinstance(network, ConvNet) else ("0", network[0])
    shares = filter_frequencies(conv.weight, conv.stride)
    for band in ("low", "middle", "high"):
        expected[f"{name}/{band}_frequency_energy"] = getattr(shares, band).median().item()
    expected[f"{name}/energy_beyond_stride"] = shares.beyond_stride.median().item()
    return expected


@pytest.mark.parametrize(("make", "layers"), [(chain, None), (plain, ["network.2", "network.4"])])
@pytest.mark.parametrize("loaders", [1, 2])
def test_each_epoch_logs_what_brute_force_over_all_validation_images_finds(tmp_path, make, layers, loaders):
    module, kept = Module(make(), loaders), Kept()

    trainer = fit(tmp_path, module, Diagnostics(layers), kept, num_sanity_val_steps=2)

    for epoch, weights in enumerate(kept.epochs[1:]):  # the first was the sanity check
        module.load_state_dict(weights)
        prefix = "" if make is chain else "network."
        expected = {
            f"diagnostics/{prefix}{key}": value for key, value in brute_force(module.network, module.images).items()
        }
        found = {name: value for when, name, value in module.logged if when == epoch}
        assert found == pytest.approx(expected, rel=1e-5)
    assert set(expected) <= set(trainer.logged_metrics)
    if make is chain:
        assert found["diagnostics/conv2/dead_maps"] == 2 and found["diagnostics/conv1/near_dead_maps"] == 1


def test_a_foreign_modules_bare_filterings_are_not_called_dead(tmp_path):
    module = Module(plain())
    module.network[0].bias.data[0] = -1000.0  # brought back by the norm above it

    fit(tmp_path, module, Diagnostics())

    assert not any("dead" in name for _, name, _ in module.logged)
    assert any("network.0/low_frequency_energy" in name for _, name, _ in module.logged)


def test_training_goes_the_same_way_to_the_bit_and_no_hook_stays(tmp_path):
    watched, alone = Module(), Module()

    fit(tmp_path, watched, Diagnostics())
    fit(tmp_path, alone)

    for name, weight in watched.state_dict().items():
        assert torch.equal(weight, alone.state_dict()[name]), name
    assert not any(each._forward_hooks for each in watched.modules())


def test_only_the_epochs_asked_for_are_logged_and_none_outside_of_training(tmp_path):
    module = Module()

    trainer = fit(tmp_path, module, Diagnostics(["conv2"], when=[2]), max_epochs=3)
    logged = list(module.logged)
    trainer.validate(module, verbose=False)

    assert {epoch for epoch, *_ in logged} == {1} and module.logged == logged
    assert {name.split("/")[1] for _, name, _ in logged if "dead" in name} == {"conv2"}


def test_hooks_go_after_a_validation_that_failed(tmp_path):
    class Failing(Module):
        def validation_step(self, batch, *_):
            super().validation_step(batch, *_)
            raise RuntimeError("no more")

    module = Failing()

    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, module, Diagnostics())

    assert not any(each._forward_hooks for each in module.modules())


@pytest.mark.parametrize("swapped", [False, True])
def test_beside_other_pictures_a_compiled_network_is_looked_into_and_runs_compiled_again(tmp_path, swapped):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    module = Module()
    module.network.compile(backend=counter)
    callbacks = [Diagnostics(), Projections(maps=2, top=2)]

    fit(tmp_path, module, *(reversed(callbacks) if swapped else callbacks), max_epochs=1)
    compiled = counter.frame_count
    module.network(torch.randn(5, 3, 33, 33).double().float().requires_grad_())

    assert any(name == "diagnostics/conv2/dead_maps" and value == 2 for _, name, value in module.logged)
    assert compiled > 0 and counter.frame_count > compiled


def test_an_unknown_layer_is_refused_before_the_first_step_and_the_callback_is_known_by_name(tmp_path):
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"):
        fit(tmp_path, Module(), Diagnostics(["conv9"]))

    callbacks = composed()["callbacks"]
    assert callbacks["diagnostics"]["_target_"] == "zfscope.callbacks.Diagnostics"
    check_targets(callbacks)


def test_the_largest_rms_before_renormalisation_is_logged(tmp_path):
    class Before(lightning.Callback):
        largest = dict.fromkeys(range(2), 0.0)

        def on_train_batch_end(self, trainer, pl_module, *_):
            if (trainer.fit_loop.epoch_loop.batch_idx + 1) % 2 == 0:  # a step is made of two batches
                found = float(filter_rms(pl_module.network.conv1.conv.weight.detach()).max())
                epoch = trainer.current_epoch
                self.largest[epoch] = max(self.largest[epoch], found)

    module, before = Module(lr=0.5), Before()

    fit(tmp_path, module, before, FilterRenorm(0.05), accumulate_grad_batches=2)

    logged = {epoch: value for epoch, name, value in module.logged if name == "filter_rms/conv1"}
    assert logged == pytest.approx(before.largest) and min(logged.values()) > 0.05
    assert filter_rms(module.network.conv1.conv.weight.detach()).max() <= 0.05 * 1.00001


def checkpoint(path, folders, *overrides, crop=64, seed=0):
    config = composed("data=folder", f"data.root={folders}", f"data.crop={crop}", f"data.resize={crop + 4}", *overrides)
    torch.manual_seed(seed)
    network = build_network(config["model"], 3, crop)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(crop + 4, crop, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    save_network(network, config, path)
    return network


def analysed(folder, source, *overrides):
    sys.path.insert(0, str(ROOT))
    import analyze  # not above: the processes that are spawned would load it too

    folder.mkdir()
    values = composed("analysis=diagnostics", f"checkpoint={source}", "device=cpu", *overrides, name="analyze")
    analyze.analyze(analyze.check(analyze.AnalyzeConfig, values), folder)
    return json.loads((folder / "results.json").read_text())["metrics"], np.load(folder / "arrays.npz")


MAPS = ("model.conv1.maps=6", "model.conv2.maps=10", "model.fc6.units=9", "model.fc7=null")


def test_two_networks_of_other_stems_and_sizes_are_measured_side_by_side(tmp_path, folders):
    checkpoint(tmp_path / "one.ckpt", folders, *MAPS)
    other = checkpoint(tmp_path / "two.ckpt", folders, "model/stem=11x11s4", *MAPS, crop=80)

    metrics, arrays = analysed(tmp_path / "both", tmp_path / "one.ckpt", f"analysis.other={tmp_path / 'two.ckpt'}")
    alone, _ = analysed(tmp_path / "alone", tmp_path / "two.ckpt")

    assert {name.removeprefix("other/"): each for name, each in metrics.items() if name.startswith("other/")} == alone
    weight = other.conv1.conv.weight
    share = 100 * filter_frequencies(weight, 4).beyond_stride.median().item()
    assert metrics["other/conv1/energy_beyond_stride"]["value"] == pytest.approx(share)
    assert metrics["conv1/dead_maps"]["unit"] == "of 6" and metrics["fc6/near_dead_maps"]["unit"] == "of 9"
    assert metrics["other/conv1/largest_filter_rms"]["value"] == pytest.approx(float(filter_rms(weight.detach()).max()))
    assert {name for name in metrics if "grid" in name and "chance" not in name} == {
        *("conv2/grid_2px", "conv2/grid_4px", "other/conv2/grid_4px", "other/conv2/grid_8px")
    }
    assert arrays["tiles"].shape[2:] == (27, 27) and arrays["other/tiles"].shape[2:] == (51, 51)
    with (
        Image.open(tmp_path / "both/figures/diagnostics.png") as both,
        Image.open(tmp_path / "alone/figures/diagnostics.png") as one,
    ):
        assert both.width - one.width > 600


def test_ranges_in_the_arrays_are_those_of_all_images(tmp_path, folders):
    network = checkpoint(tmp_path / "one.ckpt", folders, *MAPS).eval()

    metrics, arrays = analysed(tmp_path / "out", tmp_path / "one.ckpt", "analysis.batch_size=5")
    _, some = analysed(tmp_path / "some", tmp_path / "one.ckpt", "analysis.images=4", "analysis.maps=3")

    files = sorted(folders.glob("val/*/*.jpg"))
    inputs = torch.stack([network.preprocess(Image.open(path).convert("RGB")) for path in files])
    with torch.no_grad():
        for layer in ("conv1", "conv5", "fc6"):
            maps = network.features(inputs, layer).transpose(0, 1).flatten(1)
            np.testing.assert_allclose(arrays[f"ranges/{layer}"], [maps.amax(1), maps.amin(1)], atol=1e-5)
            dead = int((maps.amax(1) <= 0).sum())
            assert metrics[f"{layer}/dead_maps"]["value"] == dead
            assert (some[f"ranges/{layer}"][0] <= arrays[f"ranges/{layer}"][0] + 1e-5).all()
    assert len(some["maps"]) <= 3 < len(arrays["maps"])


def test_dominance_is_how_far_the_largest_filter_stands_out(tmp_path, folders):
    network = checkpoint(tmp_path / "one.ckpt", folders, *MAPS)
    weight = network.conv1.conv.weight.detach()
    weight /= filter_rms(weight)[:, None, None, None] / torch.tensor([1.0, 2, 3, 4, 5, 21])[:, None, None, None]

    found = filters_at_radius(network, None)

    assert found["conv1/filter_dominance"]["value"] == pytest.approx(7)  # of six the lower of the middle two is 3


def test_what_a_network_has_not_is_left_out_and_said(tmp_path, folders):
    checkpoint(tmp_path / "vit.ckpt", folders, "model=timm", "model.name=vit_tiny_patch16_224")
    checkpoint(tmp_path / "gelu.ckpt", folders, "model=timm", "model.name=convnext_atto")

    vit, _ = analysed(tmp_path / "vit", tmp_path / "vit.ckpt")
    gelu, arrays = analysed(tmp_path / "gelu", tmp_path / "gelu.ckpt")

    assert not any("dead" in name or "grid" in name for name in vit)
    assert vit["patch_embed.proj/energy_beyond_stride"]["value"] > 99
    assert "stages.0/dead_maps" in gelu and not any("grid" in name for name in gelu) and "tiles" not in arrays


def test_a_checkpoint_that_is_not_there_is_refused_and_nothing_is_written(tmp_path, folders):
    checkpoint(tmp_path / "one.ckpt", folders, *MAPS)

    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        analysed(tmp_path / "out", tmp_path / "one.ckpt", f"analysis.other={tmp_path / 'nowhere'}")

    assert list((tmp_path / "out").iterdir()) == []


def drawn(**given):
    weight = torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    ranges = {"conv1": torch.stack([torch.arange(40.0).sub(20).clamp_min(0), torch.zeros(40)])}
    parts = {
        **{"ranges": ranges, "first": "conv1", "filters": weight, "stride": 2},
        **{"frequencies": filter_frequencies(weight, 2), "missing": "why not"},
    }
    return diagnostics_sheet([Diagnosis("outputs/RUN", **{**parts, **given})])


def test_half_of_the_bar_is_red_where_half_of_the_maps_are_dead():
    sheet = np.asarray(drawn()).astype(int)

    red = (abs(sheet - [176, 0, 32]) < 8).all(2)
    grey = (abs(sheet - [228, 228, 228]) < 3).all(2)
    row = red.sum(1).argmax()
    assert red[row].sum() == pytest.approx(21 / 40 * 0.63 * 660, abs=4)
    assert red[row].sum() / (red[row].sum() + grey[row].sum()) == pytest.approx(21 / 40, abs=0.02)


def test_filters_have_one_scale_and_bars_the_shares():
    weak = torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 1e-3
    weak[0] = 1

    sheet = np.asarray(drawn(filters=weak)).astype(int)

    assert (sheet[100:110, 32:70] == 255).all()  # the first filter is white, all others grey
    assert abs(sheet[100:110, 90:110] - 127.5).max() < 2
    low = filter_frequencies(torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))).low
    blue = (abs(np.asarray(drawn()).astype(int) - [27, 58, 92]) < 6).all(2)
    orange = (abs(np.asarray(drawn()).astype(int) - [224, 160, 48]) < 6).all(2)
    chart = blue[blue[200:].any(1).argmax() + 220 :]  # below the legend
    heights = chart.sum(0)[chart.sum(0) > 0]
    assert heights[:100].mean() > 2 * heights[-100:].mean()  # sorted
    middle = filter_frequencies(torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))).middle
    assert blue[200:].sum() / orange[200:].sum() == pytest.approx(float(low.sum() / middle.sum()), rel=0.35)


def test_a_picture_needs_a_network():
    with pytest.raises(ValueError, match="networks holds none"):
        diagnostics_sheet([])


def test_the_first_filters_are_those_that_see_the_pixels():
    assert first_filters(chain())[0] == "conv1"
    assert first_filters(HookedNetwork(plain()))[0] == "0"
    assert first_filters(HookedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["1"])) is None
    assert set(conv_layers(chain())) == {"conv1", "conv2"}
    watch = MapWatch(chain())
    watch.close()
    assert watch.ranges == {}
