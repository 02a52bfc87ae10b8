import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.conftest import tiny_images
from zfscope.data.datamodule import Examples
from zfscope.data.imageset import ArrayImages
from zfscope.data.order import TrainBatches
from zfscope.data.spec import AugmentConfig
from zfscope.data.splits import Splits
from zfscope.data.transforms import TrainTransform
from zfscope.evaluation import predict
from zfscope.networks.build import build_network
from zfscope.networks.layers import filter_rms
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols import transfer
from zfscope.protocols.transfer import Fold, Target, draw_fold, labels_of, train_from_scratch, used_by
from zfscope.training.classifier import shared_targets
from zfscope.training.spec import OptimConfig

CLASSES = ("cat", "dog", "owl")


def images(count, start=0):
    pixels, labels = tiny_images(count, seed=start)
    return ArrayImages(pixels, labels, CLASSES, f"tiny{start}")


def target(carved=True, counts=(30, 12, 18)):
    return Target.of(Splits(*(images(count, start) for start, count in enumerate(counts)), carved=carved))


def names(target, positions):
    return {target.images.name(position) for position in positions}


@pytest.mark.parametrize("carved", [True, False])
@pytest.mark.parametrize("per_class", [1, 5, 9])
def test_a_fold_has_as_many_training_images_of_each_class_and_shares_none_with_its_test(carved, per_class):
    whole = target(carved)

    fold = draw_fold(whole, per_class, 4, fold=2, seed=7)

    labels = whole.images.labels
    assert np.bincount(labels[fold.train]).tolist() == [per_class] * 3
    assert np.bincount(labels[fold.test]).tolist() == [4] * 3
    assert not names(whole, fold.train) & names(whole, fold.test)


def test_a_fold_follows_from_seed_and_number_alone():
    first, again = (draw_fold(target(), 5, 4, fold=1, seed=3) for _ in range(2))
    others = [draw_fold(target(), 5, 4, fold=fold, seed=seed) for fold, seed in ((0, 3), (1, 4), (3, 1))]

    assert np.array_equal(first.train, again.train) and np.array_equal(first.test, again.test)
    assert all(not np.array_equal(first.train, other.train) for other in others)


def test_more_training_images_keep_those_of_fewer():
    folds = [draw_fold(target(), size, 4, fold=0, seed=0) for size in (3, 6, 12)]

    assert set(folds[0].train) < set(folds[1].train) < set(folds[2].train)
    assert np.array_equal(folds[0].test, folds[2].test)


def test_a_small_class_tests_on_what_is_left_and_at_most_so_many():
    whole = target(counts=(30, 12, 18))

    assert len(draw_fold(whole, 18, 50, fold=0, seed=0).test) == 3 * 2
    assert len(draw_fold(whole, 5, None, fold=0, seed=0).test) == 60 - 15


def test_images_that_a_data_set_keeps_for_testing_never_train():
    whole = target(carved=False)

    fold = draw_fold(whole, 14, None, fold=0, seed=0)

    assert names(whole, fold.test) == {f"tiny2/{number}" for number in range(18)}
    assert all(name.startswith(("tiny0/", "tiny1/")) for name in names(whole, fold.train))


def test_a_class_with_too_few_images_is_refused_by_name():
    whole = target(carved=True, counts=(30, 12, 18))
    short = Target(whole.images.subset([*range(30), *range(30, 60, 3)]), None)

    with pytest.raises(
        ValueError, match=r"12 training images per class .* of dog \(10\), owl \(10\); .*images_per_class"
    ):
        draw_fold(short, 12, 50, fold=0, seed=0)
    with pytest.raises(ValueError, match=r"20 training images per class and one to test .* of cat \(20\), dog \(20\)"):
        draw_fold(whole, 20, 50, fold=0, seed=0)
    with pytest.raises(ValueError, match=r"15 training .*cat \(14 \+ 6 to test\)"):
        draw_fold(target(carved=False), 15, 50, fold=0, seed=0)


def test_used_images_are_those_of_all_folds_once():
    folds = [Fold(np.array([3, 1]), np.array([7])), Fold(np.array([1]), np.array([0, 7]))]

    assert used_by(folds).tolist() == [0, 1, 3, 7]


def test_shuffled_labels_are_the_same_ones_dealt_out_anew():
    target = Target(images(100), None)
    labels = target.images.labels.copy()
    fold = Fold(np.arange(100), np.arange(0))

    dealt = labels_of(target, fold, seed=0, shuffle=True)

    assert labels_of(target, fold, seed=0, shuffle=False).tolist() == labels.tolist()
    assert np.bincount(dealt).tolist() == np.bincount(labels).tolist()
    assert (dealt == labels).mean() < 0.5
    assert target.images.labels.tolist() == labels.tolist()


def test_an_image_with_several_labels_shares_its_target_among_them():
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])

    assert shared_targets(labels).tolist() == [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]]
    assert shared_targets(torch.tensor([2, 0])).tolist() == [2, 0]


MODEL = {"name": "n", "conv1": {"maps": 8, "kernel_size": 3, "pool": {}}, "fc6": {"units": 16}, "fc8": {}}


def scratch(steps, seed=0, filter_rms=None, optim=None):
    few, preprocessing = images(24), Preprocessing(24, 20, torch.full((3, 1, 1), 110.0), torch.full((3, 1, 1), 0.02))
    torch.manual_seed(seed)
    network = build_network(MODEL, 3, 20)
    network.preprocessing = preprocessing
    views = Examples(few, TrainTransform(preprocessing, AugmentConfig(), seed), preprocessing.canvas_kind)
    train_from_scratch(
        network,
        lambda batches: DataLoader(views, batch_sampler=batches),
        len(few),
        optim or OptimConfig(lr=0.01, weight_decay=0.0),
        batch_size=8,
        steps=steps,
        seed=seed,
        filter_rms=filter_rms,
    )
    unseen = images(30, start=5)
    loader = DataLoader(Examples(unseen, preprocessing, preprocessing.canvas_kind), 7)
    found = predict(network, loader, crops=False)
    return network, found.probabilities["centre"], torch.from_numpy(unseen.labels)


def test_a_network_from_scratch_learns_what_can_be_learned():
    network, found, labels = scratch(60)

    assert (found.argmax(1) == labels).double().mean() > 0.9
    assert not network.training
    torch.testing.assert_close(found.sum(1), torch.ones(30))


def test_a_network_from_scratch_revives_maps_as_its_optim_says(monkeypatch):
    rates, revive = [], transfer.revive_
    monkeypatch.setattr(transfer, "revive_", lambda network, rate: rates.append(rate) or revive(network, rate))

    for share in (0.0, 0.5):
        scratch(4, optim=OptimConfig(lr=0.01, revive=share))

    assert rates == pytest.approx([0.005 * transfer.cosine_share(step, 4, 0.2, 0.0) for step in range(4)])


def test_the_rate_goes_up_over_a_twentieth_of_the_steps_and_down_half_a_cosine(monkeypatch):
    asked, cosine = [], transfer.cosine_share
    monkeypatch.setattr(transfer, "cosine_share", lambda *values: asked.append(values) or cosine(*values))

    scratch(40)

    steps = [step for step, *_ in asked]
    assert {tuple(rest) for _, *rest in asked} == {(40, 2.0, 0.0)} and steps == list(range(41))


class Seen(Dataset):
    """Six grey images; notes in which order they are read."""

    def __init__(self):
        self.keys = []

    def __len__(self):
        return 6

    def __getitem__(self, key):
        self.keys.append(key)
        return torch.zeros(3, 20, 20), key[1] % 3, key[1]


def test_training_from_scratch_begins_with_the_first_batch_and_sees_every_image_once_an_epoch():
    images = Seen()

    train_from_scratch(
        build_network(MODEL, 3, 20),
        lambda batches: DataLoader(images, batch_sampler=batches),
        len(images),
        OptimConfig(),
        batch_size=2,
        steps=6,
        seed=3,
    )

    epochs = [[key for batch in TrainBatches(6, 2, 3, lambda start=start: start) for key in batch] for start in (0, 3)]
    assert images.keys == [*epochs[0], *epochs[1]]
    assert [sorted(epoch) for epoch in epochs] == [[(number, index) for index in range(6)] for number in range(2)]


def test_training_from_scratch_makes_that_many_steps_and_can_be_repeated():
    seen = []
    optim = OptimConfig(lr=0.05, name="adamw", weight_decay=0.0)

    first, again, other = (scratch(7, seed, optim=optim)[0] for seed in (0, 0, 1))

    seen = [each.conv1.conv.weight for each in (first, again, other)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_training_from_scratch_ends_after_its_steps_also_in_the_middle_of_an_epoch(monkeypatch):
    batches = []
    monkeypatch.setattr(transfer, "shared_targets", lambda labels: batches.append(labels.tolist()) or labels)

    scratch(7)

    assert len(batches) == 7 and all(len(batch) == 8 for batch in batches)


def test_filters_from_scratch_stay_within_their_radius():
    network, _, _ = scratch(5, filter_rms=0.05)

    assert float(filter_rms(network.conv1.conv.weight.detach()).max()) <= 0.05 * (1 + 1e-5)


def test_a_loss_that_is_no_number_ends_training_from_scratch():
    with pytest.raises(ValueError, match=r"training from scratch: the loss became .* lower optim\.lr"):
        scratch(60, optim=OptimConfig(lr=1e6, weight_decay=0.0))
