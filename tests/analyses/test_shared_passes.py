"""Analyses whose passes over the images processes share: the answer of one process, each image read by one of them."""

import shutil
from collections import Counter
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from importlib import import_module

import pytest
import torch
from torch import distributed

from tests.conftest import composed, on_two_ranks
from zfscope.analyses import run
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.imageset import FileImages
from zfscope.data.quarantine import counts
from zfscope.data.reading import UnreadableImage
from zfscope.deconvnet.winners import random_order, top_images
from zfscope.networks import ranks
from zfscope.networks.checkpoints import load_network
from zfscope.protocols import features
from zfscope.schema import check

ON_FOLDS = ["analysis.images_per_class=[4]", "analysis.folds=2", "analysis.random_weights=true"]
QUESTIONS = {
    "transfer": [*ON_FOLDS, "analysis.scratch=false"],
    "probes": [*ON_FOLDS[1:], "analysis.images_per_class=4", "analysis.layers=[conv5,fc7]"],
    "embedding": ["analysis.images=8", "analysis.neighbours=2", "analysis.draws=2", "analysis.part=val"],
}


@pytest.fixture
def images(trained_run, tmp_path):
    """The images of ``trained_run``; of the 12 to validate one cannot be read, the third of a random order."""
    images = shutil.copytree(trained_run.parent / "images", tmp_path / "images")
    broken = sorted(images.glob("val/*/*.jpg"))[random_order(12, 0)[2]]
    broken.write_bytes(b"no image")
    return images


def config_of(name, checkpoint, images, folder, *more):
    own = [f"analysis={name}", f"checkpoint={checkpoint}", f"data.root={images}", f"data.cache={folder / 'cache'}"]
    own += [*QUESTIONS[name], "analysis.batch_size=2", "device=cpu", "logger=none", *more]
    return check(AnalyzeConfig, composed(*own, name="analyze"))


def answered(config, folder):
    """Digests of what an analysis answers, empty in other ranks; the image files that were read; what was written."""
    read, pixels = [], FileImages.pixels
    folder.mkdir(parents=True, exist_ok=True)

    def noted(images, index, short_side=None, content=None):
        read.append(images.name(index))
        return pixels(images, index, short_side, content)

    FileImages.pixels = noted
    answer = {}
    try:
        question = run.ask(config, folder)
        with ranks.ending_together() if distributed.is_initialized() else nullcontext():
            result = import_module(f"zfscope.analyses.{config.analysis.name}").analyse(question)
            answer = {name: sha256(array.tobytes()).hexdigest() for name, array in result.arrays.items()}
            answer |= {name: sha256(figure.tobytes()).hexdigest() for name, figure in result.figures.items()}
            answer |= {"metrics": repr(result.metrics), "left out": counts(question.data.splits)}
    finally:
        FileImages.pixels = pixels
    return answer, read, sorted(path.name for path in folder.rglob("*"))


def answered_by(folder, make, rank):
    own = folder / str(rank)
    return answered(make(own), own)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("name", QUESTIONS)
def test_processes_share_the_readings_of_every_pass_and_answer_as_one(tmp_path, trained_run, images, name):
    make = partial(config_of, name, trained_run, images)
    one, read_by_one, written_by_one = answered(make(tmp_path / "one"), tmp_path / "one")
    foreign = tmp_path / "1" / ".embedding.0.tmp" / "foreign"  # of the first process, where both have one folder
    foreign.mkdir(parents=True)

    (first, read_by_first, written), (second, read_by_second, nothing) = on_two_ranks(
        tmp_path, partial(answered_by, tmp_path, make)
    )

    assert first == one and one and second == {}
    assert written == written_by_one and nothing == [".embedding.0.tmp", "foreign"]
    assert Counter(read_by_first) + Counter(read_by_second) == Counter(read_by_one)
    assert len(read_by_one) / 5 < len(read_by_second) <= len(read_by_one) / 2


@pytest.mark.parametrize("name", ["transfer", "probes"])
def test_features_that_the_first_process_has_in_its_cache_are_made_by_none(tmp_path, trained_run, name):
    make = partial(config_of, name, trained_run, trained_run.parent / "images")
    one, *_ = answered(make(tmp_path / "0"), tmp_path / "0")

    (first, read_by_first, _), (_, *nothing) = on_two_ranks(tmp_path, partial(answered_by, tmp_path, make))

    assert first == one and read_by_first == [] and nothing == [[], []]


def strongest(run, batches):
    """The top images of conv1 in these of three batches of two images."""
    images = torch.randn(3, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    given = [(images[number], torch.zeros(2), 2 * number + torch.arange(2)) for number in batches]
    return tuple(top_images(load_network(run), given, ["conv1"], 3)["conv1"])


def strongest_on(run, shares, rank):
    with ranks.ending_together():
        return strongest(run, shares[rank])


@pytest.mark.parametrize("shares", [((0, 2), (1,)), ((0, 1, 2), ())], ids=["each has some", "one has none"])
def test_the_first_process_has_the_strongest_activations_of_all(tmp_path, trained_run, shares):
    first, second = on_two_ranks(tmp_path, partial(strongest_on, trained_run, shares))

    assert all(map(torch.equal, first, strongest(trained_run, (0, 1, 2)))) and second is None


def failing_on(folder, config, failing, error, rank):
    """An analysis in which one rank fails in a pass: the error that this one meets."""
    if rank == failing:
        features._rows = partial(fail, error)
    try:
        answered(config(folder / str(rank)), folder / str(rank))
    except Exception as met:
        return f"{type(met).__name__}: {met}"
    return "none"


def fail(error, *_):
    raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnreadableImage("3.jpg cannot be read"), ["ValueError: 3.jpg cannot be read", "none"]),
        (KeyError("a bug"), ["MachineFault: rank 1: KeyError: 'a bug'", "KeyError: 'a bug'"]),
    ],
    ids=["a fault that a person can mend", "a bug"],
)
def test_where_another_process_fails_all_end_and_the_first_one_says_why(tmp_path, trained_run, error, expected):
    config = partial(config_of, "embedding", trained_run, trained_run.parent / "images")

    assert on_two_ranks(tmp_path, partial(failing_on, tmp_path, config, 1, error)) == expected


def test_where_the_first_process_fails_the_others_end_without_a_word(tmp_path, trained_run):
    config = partial(config_of, "embedding", trained_run, trained_run.parent / "images")

    met = on_two_ranks(tmp_path, partial(failing_on, tmp_path, config, 0, OSError("no room")))

    assert met == ["OSError: no room", "none"]
