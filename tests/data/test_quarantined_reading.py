"""Where images are left out: batches, runs that go on, and numbers are those of the others."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import quick_first, tiny_images
from tests.data.bad_images import QUARANTINED, SIDE, break_some, checked, module_of, opened
from zfscope.data import quarantine
from zfscope.data.contents import UNREADABLE, check_unchanged, contents_of
from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.quarantine import (
    TooManyUnreadable,
    check_images,
    counts,
    manifest,
    mark_unreadable,
    with_quarantine,
)
from zfscope.data.reading import UnreadableImage
from zfscope.data.splits import Splits
from zfscope.evaluation import predict
from zfscope.networks.build import build_network
from zfscope.protocols.features import feature_tables
from zfscope.protocols.overlap import find_overlap
from zfscope.protocols.transfer import Target, draw_fold

# --- batches ---


@pytest.mark.parametrize("checks", quick_first([True, False], 1))
@pytest.mark.filterwarnings("ignore:.*cannot be read|cannot read")
def test_batches_and_manifest_are_the_same_with_0_and_2_workers_and_in_a_run_that_goes_on(home, checks):
    break_some(home, 1)
    break_some(home, 1, QUARANTINED["truncated"][0], part="val", first=5)

    def run(num_workers, position=0):
        splits = checked(home, num_workers) if checks else opened(home)
        data = module_of(splits, num_workers, position)
        batches = [list(data.train_dataloader()), list(data.val_dataloader())]
        return batches, manifest(splits)

    alone, helped, later = run(0), run(2), run(0, position=5)

    assert alone[1] == helped[1] == later[1] and alone[1].count("\n") == 3
    assert sorted(map(len, (batch[1] for batch in alone[0][0])))[:2] == [7, 8]
    for part in (0, 1):
        for one, other in zip(alone[0][part], helped[0][part], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(alone[0][0][5:], later[0][0], strict=False):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:1 of the 20 validation images")
def test_the_others_keep_their_index_label_and_view(home):
    data = module_of(opened(home))
    whole = {int(i): (view, label) for batch in data.val_dataloader() for view, label, i in zip(*batch, strict=True)}
    break_some(home, 1, part="val", first=5)

    left = module_of(checked(home))
    batches = list(left.val_dataloader())

    (gone,) = left.splits.val.quarantine.positions().tolist()
    indices = torch.cat([index for *_, index in batches]).tolist()
    assert [len(batch[0]) for batch in batches] == [7, 8, 4] or gone >= 8
    assert indices == [index for index in range(20) if index != gone]
    for views, labels, numbers in batches:
        for view, label, number in zip(views, labels, numbers, strict=True):
            torch.testing.assert_close((view, label), whole[int(number)], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:1 of the 20 .* images")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_of_which_no_image_can_be_read_comes_empty_in_training_and_validation_and_not_at_all_elsewhere(
    home, num_workers
):
    break_some(home, 1, part="val", first=5)
    splits = checked(home)

    data = module_of(Splits(splits.val, splits.val), num_workers, batch_size=1)
    training, validation = list(data.train_dataloader()), list(data.val_dataloader())
    evaluation = list(data.canvases(splits.val, 1))

    (gone,) = splits.val.quarantine.positions().tolist()
    assert len(training) == len(validation) == 20 and len(evaluation) == 19
    assert [len(labels) for _, labels, _ in validation] == [int(number != gone) for number in range(20)]
    assert sum(len(labels) for _, labels, _ in training) == 19


def test_without_the_check_an_image_is_left_out_with_a_warning_when_it_is_first_read(home):
    (bad,) = break_some(home, 1)
    splits, seen = opened(home), []
    splits.train.quarantine.noted = seen.append

    with pytest.warns(UserWarning, match=rf"^cannot read {bad}: it is empty .*up to 1 of the 200 training") as told:
        indices = torch.cat([index for *_, index in module_of(splits).centre_crops(splits.train, 8)])

    told = [one for one in told if "srun" not in str(one.message)]  # Lightning's, where there is a Slurm
    assert len(told) == 1 and seen == splits.train.quarantine.positions().tolist()
    assert indices.tolist() == [index for index in range(200) if index != seen[0]]


@pytest.mark.filterwarnings("ignore:cannot read")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_the_check_reading_ends_where_one_too_many_is_met(home, num_workers):
    broken = break_some(home, 20)
    splits = opened(home)

    with pytest.raises(TooManyUnreadable, match="images cannot be read, and at most 1 may be left out") as many:
        list(module_of(splits, num_workers).centre_crops(splits.train, 8))

    assert sum(str(path) in str(many.value) for path in broken) == 2


def test_an_image_that_the_check_left_out_stays_out_though_its_file_is_mended(home):
    (bad,) = break_some(home, 1)
    with pytest.warns(UserWarning, match="left out"):
        splits = checked(home)
    shutil.copy(home / "images/test/cat/0.jpg", bad)

    indices = torch.cat([index for *_, index in module_of(splits).centre_crops(splits.train, 8)])

    assert len(indices) == 199


def test_control_a_set_without_a_quarantine_refuses_the_image_in_one_line(home):
    (bad,) = break_some(home, 1)
    images = opened(home).train.readable()

    for num_workers in (0, 2):
        with pytest.raises(UnreadableImage, match=rf"^cannot read the image {bad}: it is empty .*replace the file"):
            list(module_of(Splits(images, images), num_workers).centre_crops(images, 8))


@pytest.mark.slow  # files settle for two seconds before each start
def test_a_run_does_not_go_on_where_other_images_can_be_read(home):
    (bad,) = break_some(home, 1, QUARANTINED["dangling link"][0])
    with pytest.warns(UserWarning, match="left out"):
        splits = checked(home)
    earlier = contents_of(splits, home / "cache")
    mark_unreadable(splits, earlier)
    recorded = {part: torch.from_numpy(earlier[part].copy()) for part in ("train", "val")}
    check_unchanged(recorded, "last.ckpt", splits, earlier, checked=True)

    bad.unlink()
    shutil.copy(home / "images/test/cat/0.jpg", bad)
    mended = checked(home)
    now = contents_of(mended, home / "cache")
    mark_unreadable(mended, now)

    assert (earlier["train"][splits.train.quarantine.positions()] == UNREADABLE).all()
    check_unchanged(recorded, "last.ckpt", mended, now)  # one of the two legs did not check
    with pytest.raises(ValueError, match=r"training images changed since last\.ckpt was written, 1 of 200: .*0\.jpg"):
        check_unchanged(recorded, "last.ckpt", mended, now, checked=True)


# --- numbers ---

MODEL = {"name": "n", "conv1": {"maps": 4, "kernel_size": 3, "pool": {}}, "fc6": {"units": 8}, "fc8": {}}


def network_of(prepare):
    torch.manual_seed(0)
    network = build_network(MODEL, 2, 20)
    network.preprocessing = prepare
    return network


@pytest.mark.filterwarnings("ignore:1 of the 20 test images")
def test_predictions_are_those_of_the_others(home):
    data = module_of(opened(home))
    network = network_of(data.preprocessing)
    before = predict(network, data.canvases(data.splits.test, 8))
    break_some(home, 1, part="test", first=5)
    splits = checked(home)

    after = predict(network, module_of(splits).canvases(splits.test, 8))

    kept = np.delete(np.arange(20), splits.test.quarantine.positions())
    assert torch.equal(after.labels, before.labels[kept])
    for kind, values in after.probabilities.items():
        torch.testing.assert_close(values, before.probabilities[kind][kept])


@pytest.mark.filterwarnings("ignore:1 of the 20 test images")
def test_folds_are_drawn_from_images_that_can_be_read(home):
    break_some(home, 1, part="test")
    splits = checked(home)

    target = Target.of(splits)
    fold = draw_fold(target, 100, None, fold=0, seed=0)

    names = {target.images.name(int(index)) for index in fold.test}
    (gone,) = splits.test.quarantine.positions().tolist()
    assert len(target.images) == 239 and len(names) == 19 + 20 - 20
    assert splits.test.name(gone) not in names


@pytest.mark.filterwarnings("ignore:cannot read")
def test_features_are_never_kept_where_an_image_cannot_be_read(home):
    break_some(home, 1, part="test")
    data = module_of(opened(home))
    data.config = data.config.model_copy(update={"cache": str(home / "features")})
    network = network_of(data.preprocessing)

    with pytest.raises(ValueError, match="1 of 20 images cannot be read and have no features"):
        feature_tables(network, data, data.splits.test, ["conv1"], 8, torch.device("cpu"))

    assert not list((home / "features").glob("features_*"))


@pytest.mark.filterwarnings("ignore:cannot read")
@pytest.mark.parametrize("joined", [False, True], ids=["one part", "joined parts"])
def test_copies_are_found_at_their_places_where_an_image_cannot_be_read(tmp_path, joined):
    pixels, labels = tiny_images(40, side=40)
    names = [f"{number}.png" for number in range(40)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / names[11]).write_bytes(b"")
    files = FileImages(names, labels, ("a", "b", "c"), root=tmp_path)
    splits = with_quarantine(Splits(files.subset(np.arange(20)), files.subset(np.arange(20, 40))))
    first = JoinedImages([splits.train, splits.val]) if joined else splits.train

    overlap = find_overlap(first, ArrayImages(pixels[:20], labels[:20], ("a", "b", "c"), "copies"))

    pairs = overlap.pairs[overlap.same]
    assert sorted(pairs.tolist()) == [[number, number] for number in range(20) if number != 11]
    assert counts(splits) == {"train": 1, "val": 0}


def test_arrays_in_memory_are_never_decoded_for_the_check(tmp_path, monkeypatch):
    images = ArrayImages(*tiny_images(20), ("a", "b", "c"), "tiny")
    monkeypatch.setattr(quarantine, "Loader", lambda *_, **__: pytest.fail("decoded"))
    splits = with_quarantine(Splits(images, images.subset(np.arange(5))))

    check_images(splits, tmp_path, SIDE, 0)

    assert not list(tmp_path.iterdir())
