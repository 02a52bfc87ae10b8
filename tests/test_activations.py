import copy
import pickle

import pytest
import torch

from tests.conftest import on_two_ranks
from zfscope.activations import TopActivations

EMPTY = (-torch.inf, -1, (-1, -1))


def brute_force(maps, indices, k):
    """For each map the rows ``(value, image, (row, column))``: every activation, sorted in plain Python."""
    count, height, width = maps.shape[1:]
    table = []
    for channel in range(count):
        everything = sorted(
            (-float(maps[n, channel, row, column]), int(index), row, column)
            for n, index in enumerate(indices)
            for row in range(height)
            for column in range(width)
        )
        best = {}
        for value, index, row, column in everything:
            best.setdefault(index, (-value, index, (row, column)))
        table.append([*best.values(), *[EMPTY] * k][:k])
    return table


def rows(table):
    """A TopTable in the form of ``brute_force``."""
    values, indices, positions = table
    return [
        [(value, index, tuple(place)) for value, index, place in zip(*parts, strict=True)]
        for parts in zip(values.tolist(), indices.tolist(), positions.tolist(), strict=True)
    ]


def mined(maps, indices=None, k=9, layer="conv1"):
    """The rows of one layer after a single update."""
    metric = TopActivations({layer: maps.shape[1]}, k)
    metric.update({layer: maps}, torch.arange(len(maps)) if indices is None else indices)
    return rows(metric.compute()[layer])


def with_ties(count, channels=5, height=4, width=6, values=4, seed=0):
    """Small whole numbers: most maps share their maximum with others, and have it in several places."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(values, (count, channels, height, width), generator=generator).float()


@pytest.mark.parametrize("seed", [*range(9), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(9, 12))])
def test_the_table_is_that_of_sorting_everything(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = with_ties(60, values=(2, 4, 40, 1000)[seed % 4], seed=seed) - seed % 3
    indices = torch.randint(20, (60,), generator=generator)  # most images come several times, with other maps
    metric = TopActivations({"conv1": 5}, k=seed % 7 + 1)

    cuts = torch.randint(61, (seed,), generator=generator).sort().values.tolist()
    order = torch.randperm(60, generator=generator)
    for part in torch.tensor_split(order, cuts):
        metric.update({"conv1": maps[part]}, indices[part])

    assert rows(metric.compute()["conv1"]) == brute_force(maps, indices, metric.k)


def test_ties_go_to_the_lower_image_then_to_the_lower_position():
    maps = torch.zeros(3, 1, 2, 2)
    maps[0, 0] = torch.tensor([[0, 1], [1, 1]])
    maps[1, 0] = torch.tensor([[0, 0], [1, 0]])
    maps[2, 0] = torch.tensor([[0, 2], [2, 0]])

    table = mined(maps, torch.tensor([7, 4, 9]), k=4)

    assert table == [[(2, 9, (0, 1)), (1, 4, (1, 0)), (1, 7, (0, 1)), EMPTY]]


def test_a_later_image_of_a_lower_index_takes_the_place_of_an_equal_one():
    metric = TopActivations({"conv1": 1}, k=1)

    metric.update({"conv1": torch.ones(1, 1, 2, 2)}, torch.tensor([5]))
    metric.update({"conv1": torch.ones(1, 1, 2, 2)}, torch.tensor([3]))
    metric.update({"conv1": torch.ones(1, 1, 2, 2)}, torch.tensor([4]))

    assert rows(metric.compute()["conv1"]) == [[(1, 3, (0, 0))]]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two batches"])
def test_an_image_that_comes_again_counts_once_with_its_larger_activation_at_its_first_place(together):
    maps = torch.tensor([[[[1.0, 0.0, 3.0]]], [[[0.0, 3.0, 3.0]]], [[[2.0, 0.0, 0.0]]]])
    indices = torch.tensor([6, 6, 6])
    metric = TopActivations({"conv1": 1}, k=2)

    for part in [slice(3)] if together else [slice(1), slice(1, 2), slice(2, 3)]:
        metric.update({"conv1": maps[part]}, indices[part])

    assert rows(metric.compute()["conv1"]) == [[(3, 6, (0, 1)), EMPTY]]


def test_layers_of_any_subset_keep_their_own_tables():
    convolved, dense = with_ties(20, channels=3, seed=1), with_ties(20, channels=6, height=1, width=1, seed=2)
    metric = TopActivations({"conv1": 3, "fc6": 6, "fc7": 2}, k=4)

    metric.update({"conv1": convolved[:12]}, torch.arange(12))
    metric.update({"conv1": convolved[12:], "fc6": dense[12:].flatten(1)}, torch.arange(12, 20))
    metric.update({"fc6": dense[:12].flatten(1)}, torch.arange(12))
    tables = metric.compute()

    assert list(tables) == ["conv1", "fc6", "fc7"]
    assert rows(tables["conv1"]) == brute_force(convolved, range(20), 4)
    assert rows(tables["fc6"]) == brute_force(dense, range(20), 4)
    assert rows(tables["fc7"]) == [[EMPTY] * 4] * 2


def test_maps_of_different_sizes_share_a_table():
    metric = TopActivations({"conv1": 1}, k=3)
    small, large = torch.tensor([[[[0.0, 4.0]]]]), torch.zeros(1, 1, 9, 11)
    large[0, 0, 8, 10] = 4

    metric.update({"conv1": large}, torch.tensor([1]))
    metric.update({"conv1": small}, torch.tensor([1]))
    metric.update({"conv1": large}, torch.tensor([0]))

    assert rows(metric.compute()["conv1"]) == [[(4, 0, (8, 10)), (4, 1, (0, 1)), EMPTY]]


def test_fewer_images_than_places_leave_places_empty():
    maps = with_ties(3)

    assert mined(maps, k=9) == brute_force(maps, range(3), 9)
    assert mined(maps[:0], k=2) == [[EMPTY] * 2] * 5


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_dtype_and_memory_format_gives_the_table_of_the_same_numbers(dtype, memory_format):
    maps = (torch.randn(30, 5, 7, 9, generator=torch.Generator().manual_seed(3)) * 50).to(dtype)

    table = mined(maps.to(memory_format=memory_format), k=6)

    assert table == brute_force(maps, range(30), 6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_never_enters(odd, memory_format):
    maps = with_ties(12, seed=4)
    maps[2, 1, 0, 0] = odd
    maps[5, 3, 2, 2:4] = odd
    maps[7, 2] = odd
    maps[8] = odd
    finite = maps.nan_to_num(-1000, -1000, -1000)

    table = mined(maps.to(memory_format=memory_format), k=12)

    expected = [[row if row[0] > -1000 else EMPTY for row in best] for best in brute_force(finite, range(12), 12)]
    assert table == expected
    assert [sum(row == EMPTY for row in best) for best in table] == [1, 1, 2, 1, 1]


def test_float64_values_and_large_indices_are_kept_exactly():
    maps = torch.tensor([1 + 2**-50, 1 + 2**-51, 1 + 2**-52], dtype=torch.float64).view(3, 1, 1, 1)
    indices = torch.tensor([2**40 - 1, 2**39 + 1, 2**33 - 1])

    table = mined(maps, indices, k=3)

    assert table == [[(1 + 2.0 ** -(50 + n), int(index), (0, 0)) for n, index in enumerate(indices)]]


def test_an_image_of_a_large_index_is_not_taken_for_another_map_s():
    indices = torch.tensor([0, *(2**power for power in range(40))])
    maps = with_ties(41, channels=8, values=60)

    assert mined(maps, indices, k=41) == brute_force(maps, indices, 41)


def test_one_map_with_one_place_keeps_the_table_s_shape():
    metric = TopActivations({"fc8": 1}, k=1)
    metric.update({"fc8": torch.ones(2, 1)}, torch.arange(2))

    for _ in range(2):  # the second answer is the cached one
        values, indices, positions = metric.compute()["fc8"]

        assert (values.shape, indices.shape, positions.shape) == ((1, 1), (1, 1), (1, 1, 2))
        assert (values.dtype, indices.dtype, positions.dtype) == (torch.float64, torch.int64, torch.int64)


def test_layers_may_have_any_name():
    channels = {"device": 2, "update": 2, "layer1.0.conv2": 2}
    metric = TopActivations(channels, k=2)
    maps = with_ties(5, channels=2)

    metric.update(dict.fromkeys(channels, maps), torch.arange(5))

    assert all(rows(table) == brute_force(maps, range(5), 2) for table in metric.compute().values())


def test_memory_does_not_grow_with_the_images():
    maps = with_ties(64)
    metric = TopActivations({"conv1": 5})

    sizes = []
    for batch in range(20):
        metric.update({"conv1": maps + batch}, torch.arange(64) + 64 * batch)
        sizes.append(len(pickle.dumps(metric)))

    assert len(set(sizes)) == 1


@pytest.mark.parametrize("first", [True, False], ids=["made inside", "made outside"])
def test_updates_inside_and_outside_of_inference_mode_mix(first):
    maps = with_ties(30, values=60)

    with torch.inference_mode(first):
        metric = TopActivations({"conv1": 5}, k=4)
        metric.update({"conv1": maps[:10]}, torch.arange(10))
    with torch.inference_mode(not first):
        metric.update({"conv1": maps[10:20]}, torch.arange(10, 20))
    with torch.inference_mode(first):
        metric.update({"conv1": maps[20:]}, torch.arange(20, 30))
    with torch.inference_mode(not first):
        table = metric.compute()["conv1"]

    assert rows(table) == brute_force(maps, range(30), 4)


def test_calling_the_metric_gives_the_batch_s_table_and_holds_no_graph():
    maps = with_ties(20, values=60).requires_grad_()
    metric = TopActivations({"conv1": 5}, k=4)

    metric({"conv1": maps[:12]}, torch.arange(12))
    last = metric({"conv1": maps[12:]}, torch.arange(12, 20))["conv1"]
    table = metric.compute()["conv1"]

    assert rows(last) == brute_force(maps.detach()[12:], range(12, 20), 4)
    assert rows(table) == brute_force(maps.detach(), range(20), 4)
    assert not table.values.requires_grad
    assert not last.values.requires_grad


def test_copies_go_their_own_way_and_merge_to_the_whole():
    maps = with_ties(30, values=60)
    metric = TopActivations({"conv1": 5}, k=4)
    metric.update({"conv1": maps[:10]}, torch.arange(10))

    copied, pickled = copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))
    copied.update({"conv1": maps[10:20]}, torch.arange(10, 20))
    pickled.update({"conv1": maps[20:]}, torch.arange(20, 30))

    copied.merge_state(pickled)

    assert rows(metric.compute()["conv1"]) == brute_force(maps[:10], range(10), 4)
    without_second = torch.cat([maps[:10], maps[20:]])
    assert rows(pickled.compute()["conv1"]) == brute_force(without_second, [*range(10), *range(20, 30)], 4)
    assert rows(copied.compute()["conv1"]) == brute_force(maps, range(30), 4)


def test_a_reset_metric_starts_anew():
    maps = with_ties(20, values=60)
    metric = TopActivations({"conv1": 5}, k=4)
    metric.update({"conv1": maps[:10] + 100}, torch.arange(10))

    metric.reset()
    metric.update({"conv1": maps[10:]}, torch.arange(10))

    assert rows(metric.compute()["conv1"]) == brute_force(maps[10:], range(10), 4)


def test_a_saved_state_is_loaded_again():
    maps = with_ties(20, values=60)
    metric, fresh = TopActivations({"conv1": 5}, k=4), TopActivations({"conv1": 5}, k=4)
    metric.persistent(True)
    fresh.persistent(True)
    metric.update({"conv1": maps[:10]}, torch.arange(10))

    fresh.load_state_dict(metric.state_dict())
    fresh.update({"conv1": maps[10:]}, torch.arange(10, 20))

    assert rows(fresh.compute()["conv1"]) == brute_force(maps, range(20), 4)


@pytest.mark.parametrize(
    "cast",
    [
        lambda metric: metric.to(torch.float16),
        lambda metric: torch.nn.ModuleList([metric]).half(),
        lambda metric: metric.set_dtype(torch.float32),
    ],
    ids=["to", "half", "set_dtype"],
)
def test_no_cast_makes_the_state_less_exact(cast):
    maps = with_ties(3).double() + 2**-40
    indices = torch.tensor([70001, 70002, 2**39 + 1])
    metric = TopActivations({"conv1": 5}, k=3)
    metric.update({"conv1": maps[:2]}, indices[:2])

    cast(metric)
    metric.update({"conv1": maps[2:]}, indices[2:])

    assert rows(metric.compute()["conv1"]) == brute_force(maps, indices, 3)


def test_the_state_follows_to_a_device():
    metric = TopActivations({"conv1": 5}, k=3).to("meta")

    assert metric.top_conv1.device.type == "meta"
    assert metric.device.type == "meta"


def one_of_two_ranks(rank):
    maps, order = with_ties(65, seed=5), [*range(65), 0]  # 33 + 33: the sampler repeats image 0
    metric = TopActivations({"conv1": 5, "fc6": 5})
    for part in (order[rank::2][:20], order[rank::2][20:]):
        metric.update({"conv1": maps[part], "fc6": maps[part].amax((2, 3))}, torch.tensor(part))
    return {layer: rows(table) for layer, table in metric.compute().items()}, metric.top_conv1


def test_two_gloo_processes_give_the_table_of_one(tmp_path):
    maps = with_ties(65, seed=5)

    (first, first_state), (second, second_state) = on_two_ranks(tmp_path, one_of_two_ranks)

    assert first["conv1"] == mined(maps) == brute_force(maps, range(65), 9)
    assert first["fc6"] == mined(maps.amax((2, 3)))
    assert second == first
    assert not torch.equal(first_state, second_state)  # each rank goes on with its own


@pytest.mark.parametrize(
    ("maps", "indices", "message"),
    [
        ({"conv9": torch.ones(2, 3, 4, 4)}, [0, 1], "no layer 'conv9'; the layers are conv1, fc6"),
        ({"conv1": torch.ones(2, 4, 4, 4)}, [0, 1], r"conv1 must be \(N, 3, h, w\) or \(N, 3\), but is \(2, 4, 4, 4\)"),
        ({"conv1": torch.ones(2, 3, 4)}, [0, 1], r"conv1 must be .* but is \(2, 3, 4\)"),
        ({"conv1": torch.ones(2, 3, 0, 4)}, [0, 1], r"conv1 must be .* but is \(2, 3, 0, 4\)"),
        ({"conv1": torch.ones(2, 3, 4, 4)}, [0, 1, 2], r"one integer for each of the 2 images .* of shape \(3,\)"),
        ({"conv1": torch.ones(2, 3, 4, 4)}, [[0, 1]], r"one integer for each of the 2 images .* of shape \(1, 2\)"),
        ({"conv1": torch.ones(2, 3, 4, 4)}, [0.0, 1.0], r"one integer for each .* but are torch.float32"),
        ({"conv1": torch.ones(2, 3, 4, 4)}, [-1, 1], r"from 0 to 2\*\*40 - 1, but go from -1 to 1"),
        ({"conv1": torch.ones(2, 3, 4, 4)}, [0, 2**40], r"from 0 to 2\*\*40 - 1, but go from 0 to 1099511627776"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing(maps, indices, message):
    metric = TopActivations({"conv1": 3, "fc6": 2}, k=2)

    with pytest.raises(ValueError, match=message):
        metric.update({"fc6": torch.ones(2, 2), **maps}, torch.tensor(indices))

    assert all(rows(table) == [[EMPTY] * 2] * len(table.values) for table in metric.compute().values())


@pytest.mark.parametrize(
    ("channels", "k", "message"),
    [
        ({"conv1": 3}, 0, "k must be 1 or more, but is 0"),
        ({}, 9, "channels names no layer"),
        ({"conv1": 0}, 9, "layer 'conv1' must have 1 map or more, but has 0"),
    ],
)
def test_a_table_without_places_is_refused(channels, k, message):
    with pytest.raises(ValueError, match=message):
        TopActivations(channels, k)
