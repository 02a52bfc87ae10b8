import copy

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader
from torchvision import transforms

from zfscope.data.datamodule import Examples
from zfscope.data.imageset import ArrayImages, FileImages
from zfscope.evaluation import (
    Canvases,
    Predictions,
    average,
    error_metrics,
    error_table,
    gain_interval,
    label_ranks,
    predict,
    predict_members,
    subset_errors,
    subsets,
    top_error,
)
from zfscope.networks.build import build_network
from zfscope.networks.preprocessing import CanvasKind, Preprocessing

CLASSES = tuple("abcdefgh")


def network(seed=0, maps=4, resize=20, crop=16, classes=8, per_pixel=True):
    torch.manual_seed(seed)
    layer = {"maps": maps, "kernel_size": 3, "stride": 2, "padding": 1}
    built = build_network({"name": "tiny", "conv1": layer, "fc6": {"units": 6}, "fc8": {}}, classes, crop)
    mean = 255 * torch.rand(3, resize, resize) if per_pixel else torch.full((3, 1, 1), 100.0 + seed)
    built.preprocessing = Preprocessing(resize, crop, mean, torch.rand(3, 1, 1) + 0.02)
    return built  # in training mode, as it is built


def images(count=11, height=26, width=31, classes=CLASSES, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return ArrayImages(pixels, random.integers(0, len(classes), count), classes, "noise")


def alone(member, examples, **options):
    """A network evaluated by itself, as ``analysis=evaluate`` does."""
    own = member.preprocessing
    return predict(member, DataLoader(Examples(examples, own.normalised_canvas, own.canvas_kind), 4), **options)


def together(members, examples, **options):
    loader = DataLoader(Canvases(examples, [member.preprocessing.canvas_kind for member in members]), 4)
    return predict_members(members, loader, **options)


def assert_same(one, other):
    assert one.probabilities.keys() == other.probabilities.keys()
    assert torch.equal(one.labels, other.labels)
    for kind, probabilities in one.probabilities.items():
        assert torch.equal(probabilities, other.probabilities[kind]), kind


def different():
    """Two that see the same crops, and others that differ in layers, canvas, crop, mean or scale."""
    first = network(0)
    second = network(1, maps=7)
    second.preprocessing = copy.deepcopy(first.preprocessing)
    other_scale = network(2)
    other_scale.preprocessing = Preprocessing(20, 16, first.preprocessing.mean, first.preprocessing.scale * 2)
    other_mean = network(3)
    other_mean.preprocessing = Preprocessing(20, 16, first.preprocessing.mean + 9, first.preprocessing.scale)
    other_crop = network(4, crop=12)
    other_crop.preprocessing = Preprocessing(20, 12, first.preprocessing.mean, first.preprocessing.scale)
    return [first, network(5, maps=5, resize=24, crop=17, per_pixel=False), second, other_scale, other_mean, other_crop]


def random_members(count=5, size=40, classes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    members = [torch.rand(size, classes, generator=generator).softmax(1) for _ in range(count)]
    return members, torch.randint(classes, (size,), generator=generator)


# --- one network ---


@torch.no_grad()
def test_ten_crops_are_averaged_as_a_loop_over_torchvisions_ten_crops_does():
    member, examples = network(), images()
    preprocessing = member.preprocessing

    found = alone(member, examples)

    member.eval()
    for index in range(len(examples)):
        canvas = preprocessing.normalise(preprocessing.canvas(examples.read(index)))
        each = [member(view[None]).softmax(1)[0] for view in transforms.TenCrop(16)(canvas)]
        torch.testing.assert_close(found.probabilities["ten_crops"][index], sum(each) / 10)
        torch.testing.assert_close(
            found.probabilities["centre"][index], member(preprocessing(examples.read(index))[None]).softmax(1)[0]
        )
    assert found.labels.tolist() == examples.labels.tolist()


def test_the_centre_crop_is_the_same_with_ten_crops_and_without():
    member, examples = network(), images()

    both, one = alone(member, examples), alone(member, examples, crops=False)

    assert list(one.probabilities) == ["centre"]
    assert torch.equal(both.probabilities["centre"], one.probabilities["centre"])


def test_a_network_that_lacks_its_image_size_or_preprocessing_is_refused():
    member, examples = network(), images()
    dataset = Examples(examples, member.preprocessing.normalised_canvas, CanvasKind(20))
    canvases = Canvases(examples, [member.preprocessing.canvas_kind])
    sizeless, bare = network(), network()
    sizeless.image_size, bare.preprocessing = None, None

    with pytest.raises(ValueError, match="does not say how large its input is; set its image_size, in pixels"):
        predict(sizeless, DataLoader(dataset, 4))
    with pytest.raises(ValueError, match="has no preprocessing yet"):
        predict_members([bare], DataLoader(canvases, 4))


def test_predictions_come_in_the_order_of_the_data_set_whatever_the_loaders():
    member, examples = network(), images()
    dataset = Examples(examples, member.preprocessing.normalised_canvas, CanvasKind(20))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3)).tolist()

    shuffled = predict(member, DataLoader(dataset, 4, sampler=order))

    straight = alone(member, examples)
    assert torch.equal(shuffled.labels, straight.labels)
    torch.testing.assert_close(shuffled.probabilities, straight.probabilities)


@pytest.mark.parametrize("crops", [True, False])
def test_a_network_that_overflows_is_refused_and_has_no_error(crops):
    member = network()
    with torch.no_grad():
        list(member.parameters())[-2].fill_(3e38)  # the weights of fc8: finite, as are all others

    with pytest.raises(ValueError, match="the probabilities of an image hold NaN or infinity, though weights and imag"):
        alone(member, images(), crops=crops)


# --- several ---


@pytest.mark.parametrize("crops", [True, False], ids=["ten_crops", "centre"])
def test_each_member_predicts_what_it_predicts_alone_with_its_own_preprocessing(crops):
    members, examples = different(), images()

    found = together(members, examples, crops=crops)

    for member, predictions in zip(members, found, strict=True):
        assert_same(predictions, alone(member, examples, crops=crops))
        assert not member.training


def test_six_copies_give_exactly_what_one_gives():
    member, examples = network(), images()

    whole = average(together([copy.deepcopy(member) for _ in range(6)], examples))

    own = alone(member, examples)
    assert_same(whole, own)
    assert error_metrics(whole, "val") == error_metrics(own, "val")


def test_the_ensemble_is_the_mean_over_members_and_crops_of_a_hand_made_loop():
    members, examples = different(), images()

    whole = average(together(members, examples))

    for index in range(len(examples)):
        views = []
        for member in members:
            own = member.preprocessing
            crops = transforms.TenCrop(own.crop)(own.normalise(own.canvas(examples.read(index))))
            views += [member.double()(view[None].double()).softmax(1)[0] for view in crops]
        expected = sum(views) / len(views)
        torch.testing.assert_close(whole.probabilities["ten_crops"][index].double(), expected, atol=1e-6, rtol=1e-5)


def test_every_image_is_read_once_for_all_members_at_the_largest_side(monkeypatch):
    members, examples, read = different(), images(), []
    original = ArrayImages.pixels
    monkeypatch.setattr(
        ArrayImages, "pixels", lambda self, i, short_side=None: read.append((i, short_side)) or original(self, i)
    )

    together(members, examples)

    assert read == [(index, 24) for index in range(11)]


def test_of_a_small_jpeg_each_member_sees_its_own_pixels_and_of_a_large_one_nearly(tmp_path):
    ramp = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3)
    for name, size in (("small.jpg", (39, 35)), ("large.jpg", (120, 90))):
        picture = Image.fromarray(ramp.astype(np.uint8)).resize(size)
        picture.save(tmp_path / name)
    examples = FileImages([tmp_path / "small.jpg", tmp_path / "large.jpg"], np.array([0, 1]), ("a", "b"))
    preprocessing = network().preprocessing

    kinds = [CanvasKind(20), CanvasKind(36)]
    shared = [Canvases(examples, kinds)[index][0][kinds[0]] for index in range(2)]

    own = [preprocessing.canvas(examples.read(index, short_side=20)).permute(1, 2, 0) for index in range(2)]
    assert torch.equal(shared[0], own[0])
    difference = (shared[1].float() - own[1].float()).abs()
    assert 0 < difference.mean() < 3 and difference.max() < 10


# --- errors ---


def test_top_error_is_that_of_a_sorted_list_where_ties_go_to_the_lower_class():
    random = np.random.default_rng(1)
    probabilities = torch.from_numpy(random.integers(0, 4, (200, 7)) / 8).float()  # full of ties
    labels = torch.from_numpy(random.integers(0, 7, 200))

    for k in (1, 2, 5, 7):
        wrong = 0
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            best = sorted(range(7), key=lambda name, row=row: (-row[name], name))[:k]
            wrong += label not in best
        assert top_error(probabilities, labels, k) == pytest.approx(wrong / 2)


def test_a_network_that_gives_nan_is_never_right():
    probabilities = torch.full((4, 8), torch.nan)
    probabilities[3] = torch.eye(8)[3]

    assert label_ranks(probabilities, torch.tensor([0, 1, 7, 3])).tolist() == [8, 8, 8, 0]
    assert top_error(probabilities, torch.tensor([0, 1, 7, 3]), 5) == 75.0


def test_errors_of_subsets_are_those_of_their_averages_however_the_images_are_cut(monkeypatch):
    members, labels = random_members()
    chosen = [subset for size in range(1, 6) for subset in subsets(5, size)]
    expected = []
    for subset in chosen:
        mean = torch.stack([members[number] for number in subset]).mean(0)
        expected.append(error_table(mean, labels))

    for values in (2**24, 7 * 8 * len(chosen), 1):
        monkeypatch.setattr("zfscope.evaluation.VALUES", values)
        found = subset_errors(members, labels, chosen)

        assert list(found) == ["top1_error", "top5_error"]
        for name, errors in found.items():
            assert errors.tolist() == pytest.approx([table[name] for table in expected])


def test_the_subset_of_all_has_exactly_the_error_of_the_ensemble():
    members, labels = random_members(6, 500, seed=4)

    errors = subset_errors(members, labels, [tuple(range(6))])

    whole = average([Predictions({"centre": member}, labels) for member in members])
    assert errors["top1_error"][0] == top_error(whole.probabilities["centre"], labels, 1)
    assert errors["top5_error"][0] == top_error(whole.probabilities["centre"], labels, 5)


def test_an_ensemble_of_one_predicts_what_its_member_does():
    member = Predictions({"centre": torch.rand(5, 3)}, torch.arange(5) % 3)

    whole = average([member])

    assert torch.equal(whole.probabilities["centre"], member.probabilities["centre"])
    assert torch.equal(whole.labels, member.labels)


def test_few_classes_have_no_top5_error():
    members, labels = random_members(classes=5)

    assert list(subset_errors(members, labels, [(0, 1)])) == ["top1_error"]


def test_subsets_of_images_with_several_labels_are_scored_by_mean_average_precision():
    members, _ = random_members(3)
    labels = (torch.rand(40, 8, generator=torch.Generator().manual_seed(2)) < 0.3).float()

    found = subset_errors(members, labels, [(0,), (0, 2)])

    pair = (members[0] + members[2]) / 2
    expected = [100 * average_precision_score(labels, each, average="macro") for each in (members[0], pair)]
    assert list(found) == ["mean_average_precision"]
    assert found["mean_average_precision"].tolist() == pytest.approx(expected, rel=1e-5)


def test_subsets_are_all_there_are_or_a_sample_of_different_ones():
    assert subsets(3, 2) == [(0, 1), (0, 2), (1, 2)]
    assert subsets(3, 3) == [(0, 1, 2)]
    assert len(subsets(12, 6)) == 924

    sample = subsets(20, 10, most=50)

    assert len(set(sample)) == 50
    assert all(len(set(each)) == 10 and list(each) == sorted(each) and each[-1] < 20 for each in sample)
    assert sample == subsets(20, 10, most=50) != subsets(20, 10, most=50, seed=1)


def test_the_interval_of_a_gain_is_that_of_drawing_the_images_anew():
    random = np.random.default_rng(5)
    before = torch.from_numpy(random.random(150) < 0.4)
    after = before & torch.from_numpy(random.random(150) < 0.8) | torch.from_numpy(random.random(150) < 0.05)

    low, high = gain_interval(before, after)

    rows = random.integers(0, 150, (10_000, 150))
    gains = 100 * (before.numpy()[rows].mean(1) - after.numpy()[rows].mean(1))
    assert (low, high) == pytest.approx(np.quantile(gains, (0.025, 0.975)), abs=0.4)
    assert gain_interval(before, before) == (0, 0)
    assert gain_interval(after, before) == pytest.approx((-high, -low), abs=0.4)
