"""Dead maps, frequencies of filters and grids, planted and measured."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import on_two_ranks
from tests.examples.diagnostics import chain, plain
from zfscope.diagnostics import (
    HIGH,
    LOW,
    NOISE,
    MapRanges,
    MapWatch,
    dead_maps,
    filter_frequencies,
    first_filters,
    grid_score,
    near_dead_maps,
)
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.layers import conv_layers


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


def one_of_two_ranks(rank):
    metric = MapRanges(12)
    metric.update(planted()[rank::2])
    return metric.compute(), metric.extremes


def test_two_gloo_processes_find_the_ranges_of_one(tmp_path):
    (first, own), (second, other) = on_two_ranks(tmp_path, one_of_two_ranks)

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


def test_the_first_filters_are_those_that_see_the_pixels():
    assert first_filters(chain())[0] == "conv1"
    assert first_filters(HookedNetwork(plain()))[0] == "0"
    assert first_filters(HookedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ["1"])) is None
    assert set(conv_layers(chain())) == {"conv1", "conv2"}
    watch = MapWatch(chain())
    watch.close()
    assert watch.ranges == {}
