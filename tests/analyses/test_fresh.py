"""What trains from scratch beside a frozen network, by which recipe, on which images; random weights as a control."""

import numpy as np
import pytest
import torch

from tests.analyses import test_transfer
from tests.analyses.test_transfer import SMALL, on_caltech, save_run
from tests.commands.refusals import refused
from tests.conftest import composed, tiny_images, write_folders
from zfscope.analyses import probes, question, transfer
from zfscope.analyses.fresh import MODERN, recipe_of, resized
from zfscope.data.imageset import ArrayImages
from zfscope.data.sources.elpv import ElpvImages
from zfscope.data.splits import Splits
from zfscope.networks.checkpoints import load_network, read_checkpoint, run_config, save_network, write_checkpoint
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols.transfer import Target, draw_fold

FEW = ["analysis.folds=2", "analysis.test_images=4"]
QUICK = [*FEW, "analysis.images_per_class=[4]", "analysis.scratch_steps=2"]
PARTS = """image,part,x0,y0,x1,y1
{0}/cat/0.jpg,nose,8,8,16,16
{0}/cat/0.jpg,ear,14,4,20,10
{0}/dog/1.jpg,nose,8,9,16,17
{0}/dog/1.jpg,ear,14,5,20,11
{0}/owl/2.jpg,nose,9,8,17,16
{0}/owl/2.jpg,ear,15,4,21,10
"""
OWN = {"optim.name": "adamw", "optim.lr": 0.002, "optim.epochs": 7, "data.batch_size": 5, "data.augment.erase": 0.25}


def ask(folder, *about, **more):
    folder.mkdir(exist_ok=True)
    return test_transfer.ask(folder, *about, **more)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of 20 images as ``101_ObjectCategories``, and the like as ``train`` and ``val``."""
    root = tmp_path_factory.mktemp("images")
    return write_folders(root, {"101_ObjectCategories": 20, "train": 8, "val": 4}, side=32)


@pytest.fixture
def runs(tmp_path, images):
    """A frozen network of 28 px, and a run with a recipe of its own, of 24 px."""
    own = [f"{key}={value}" for key, value in OWN.items()]
    other = save_run(tmp_path / "other", images, *own, "model.name=other")
    network = load_network(other)
    network.preprocessing = Preprocessing(27, 24, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 1 / 60))
    return save_run(tmp_path / "run", images), other


@pytest.fixture
def trained(monkeypatch):
    """What training from scratch is called with: network, optimiser, batch size, steps, a batch of its inputs."""
    calls, train = [], transfer.train_from_scratch

    def note(network, loader, count, optim, **how):
        inputs, *_ = next(iter(loader([[(0, 0), (0, 1)]])))
        calls.append({"network": network, "optim": optim, "inputs": inputs, **how})
        return train(network, loader, count, optim, **how)

    monkeypatch.setattr(transfer, "train_from_scratch", note)
    return calls


# Which recipe


def test_the_checkpoints_own_recipe_trains_unless_another_is_named(tmp_path, images, runs, trained):
    _, other = runs

    content = ask(tmp_path, other, *on_caltech(images), *QUICK)

    call = trained[0]
    assert (call["optim"].name, call["optim"].lr, call["batch_size"]) == ("adamw", 0.002, 5)
    way = content["conditions"]["ways"]["scratch"]
    assert (way["network"], way["image_size"], way["optimiser"], way["lr"]) == ("other", 28, "adamw", 0.002)
    assert (way["batch_size"], way["steps"], way["recipe"]) == (5, {"4": 2}, str(other))
    assert content["conditions"]["question"]["scratch_model"] is None


def test_another_runs_network_optimiser_batch_and_views_train_instead(tmp_path, images, runs, trained, capsys):
    frozen, other = runs

    content = ask(tmp_path, frozen, *on_caltech(images), *QUICK, f"analysis.scratch_model={other}")

    call, conditions = trained[0], content["conditions"]
    assert (call["optim"].lr, call["batch_size"]) == (0.002, 5)
    assert conditions["ways"]["scratch"]["network"] == "other"
    assert conditions["ways"]["pretrained"]["network"] == "zfnet_mini"
    assert "augment" not in conditions["question"]  # its own views, not those of the frozen network's run
    assert "from scratch with data.augment" not in capsys.readouterr().out


def test_a_public_network_trains_by_adamw_at_inputs_of_unit_variance_and_the_size_that_is_typed(
    tmp_path, images, runs, trained
):
    frozen, _ = runs

    content = ask(
        tmp_path, frozen, *on_caltech(images), *QUICK, "analysis.folds=1",
        "analysis.scratch_model=zoo/squeezenet1_1", "analysis.scratch_image_size=40",
    )  # fmt: skip

    call, way = trained[0], content["conditions"]["ways"]["scratch"]
    assert call["inputs"].shape == (2, 3, 40, 40) and 0.3 < float(call["inputs"].std()) < 3
    assert call["network"].preprocessing.resize == 45  # 256 / 227 * 40
    assert (call["optim"].name, call["optim"].lr, call["optim"].weight_decay) == ("adamw", 1e-3, 0.05)
    # 1,235,496 of torchvision's SqueezeNet 1.1, less 997 of its 1,000 classes of 512 weights and a bias
    assert way["parameters"] == sum(p.numel() for p in call["network"].parameters()) == 1_235_496 - 997 * 513
    assert (way["network"], way["image_size"], way["batch_size"]) == ("zoo/squeezenet1_1", 40, 32)
    assert content["conditions"]["question"]["scratch_model"] == "zoo/squeezenet1_1"
    assert way["steps"] == {"4": 2}


def test_the_papers_own_network_keeps_the_papers_recipe_and_a_run_its_epochs():
    papers, modern = recipe_of("zoo/zfnet"), recipe_of("zoo/efficientnet_lite0")

    assert (papers.optim.name, papers.optim.lr, papers.batch_size) == ("sgd", 0.01, 128)
    assert ({"name": modern.optim.name, "lr": modern.optim.lr}, modern.batch_size) == (
        {name: MODERN[0][name] for name in ("name", "lr")},
        32,
    )


def test_a_mean_image_is_resized_with_the_canvas():
    ramp = torch.arange(32.0).expand(3, 32, 32).contiguous()

    half = resized(Preprocessing(32, 28, ramp, torch.ones(3, 1, 1)), 14)

    assert (half.resize, half.crop, half.mean.shape) == (16, 14, (3, 16, 16))
    # Pairs of 0, 1, 2, … average to 0.5, 2.5, …
    torch.testing.assert_close(half.mean[0, 0, 1:-1], torch.arange(2.5, 30, 2)[:14])


# Which images


def test_images_from_scratch_are_opened_at_their_own_size(tmp_path, images, runs, trained, monkeypatch):
    opened, open_data = [], question.open_data
    monkeypatch.setattr(question, "open_data", lambda config: opened.append(config) or open_data(config))

    ask(tmp_path, runs[0], *on_caltech(images), *QUICK, "analysis.scratch_image_size=56")

    assert [(config.resize, config.crop) for config in opened] == [(64, 56)]
    assert trained[0]["inputs"].shape[-1] == 56


def cells(side):
    pixels = np.random.default_rng(0).integers(0, 255, (24, side, side), dtype=np.uint8)
    return ElpvImages(pixels, np.arange(24) % 2 / 1.0, np.array(["mono"] * 24))


def test_a_fold_has_one_digest_at_every_size_of_its_images_and_another_for_other_images():
    def digest(images, fold=0):
        target = Target.of(Splits(images.subset(range(16)), images.subset(range(16, 24)), None, carved=False))
        return target.digest(draw_fold(target, 3, None, fold=fold, seed=0))

    assert digest(cells(20)) == digest(cells(30))
    assert digest(cells(20)) != digest(cells(20), fold=1)
    assert digest(cells(20)) != digest(cells(20).subset(range(23, -1, -1)))
    one, other = (ArrayImages(*tiny_images(24, seed=seed), tuple("abc"), "tiny") for seed in (0, 1))
    assert digest(one) == digest(one) != digest(other)


def test_the_conditions_tell_the_same_folds_for_two_networks(tmp_path, images, runs):
    first, second = (
        ask(tmp_path / str(number), run, *on_caltech(images), *QUICK, "analysis.scratch=false")["conditions"]
        for number, run in enumerate(runs)
    )
    other_seed = ask(tmp_path / "seed", runs[0], *on_caltech(images), *QUICK, "analysis.seed=1")["conditions"]

    assert first["same_folds"] == second["same_folds"] and len(set(first["same_folds"]["4"])) == 2
    assert not set(first["same_folds"]["4"]) & set(other_seed["same_folds"]["4"])


# Random weights


def test_random_weights_are_a_way_of_their_own_and_change_no_other_number(tmp_path, images, runs):
    plain, with_control = (
        ask(tmp_path / str(control), runs[0], *on_caltech(images), *QUICK, f"analysis.random_weights={control}")
        for control in (False, True)
    )

    both = plain["metrics"].keys()
    assert {name: with_control["metrics"][name] for name in both} == plain["metrics"]
    assert with_control["metrics"].keys() - both == {"random_weights/4/accuracy"}
    assert with_control["conditions"]["question"] == plain["conditions"]["question"]
    assert with_control["conditions"]["ways"]["random_weights"]["network"] == "zfnet_mini"


@pytest.mark.parametrize("name", ["invariance", "occlusion", "correspondence", "probes"])
def test_the_control_is_what_the_analysis_finds_in_an_untrained_network(tmp_path, images, runs, name):
    untrained, trained = runs[0], tmp_path / "trained"
    network = load_network(untrained)
    for weight in network.parameters():
        weight.data.mul_(0.9).add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    save_network(network, run_config(untrained), trained / "checkpoints" / "best.ckpt")
    (tmp_path / "parts.csv").write_text(PARTS.format(images / "val"))
    own = {
        "invariance": ["analysis.images=5"],
        "occlusion": ["analysis.images=2", "analysis.top=0", "analysis.shown=0"],
        "correspondence": [f"analysis.boxes={tmp_path}/parts.csv", "analysis.masks=8"],
        "probes": [*on_caltech(images), *FEW, "analysis.images_per_class=4", "analysis.layers=[conv1,fc7]"],
    }[name]

    control = "analysis.random_weights=true"
    expected, plain, both = (
        ask(tmp_path / str(number), checkpoint, *own, *more, name=name)["metrics"]
        for number, (checkpoint, *more) in enumerate([(untrained,), (trained,), (trained, control)])
    )

    assert {metric: both[metric] for metric in plain} == plain
    found = {metric.replace("_random_weights", ""): each for metric, each in both.items() if metric not in plain}
    assert found and found == {metric: expected[metric] | {"paper": None} for metric in found}
    assert any(found[metric] != plain[metric] for metric in found)


def test_an_architecture_that_is_not_told_has_no_random_weights(tmp_path, images, runs):
    content = read_checkpoint(runs[0] / "checkpoints" / "best.ckpt")
    content["zfscope"]["config"] = None
    write_checkpoint(content, tmp_path / "bare.ckpt")
    data = ["data=folder", f"data.root={images}", "data.resize=32", "data.crop=28", "analysis.random_weights=true"]

    with pytest.raises(ValueError, match="bare.ckpt does not tell its architecture, so there is none to give random"):
        ask(tmp_path, tmp_path / "bare.ckpt", *data, name="invariance")


@pytest.mark.parametrize(("name", "prefix"), [("transfer", "random_weights/4/"), ("probes", "svm/fc7/")])
def test_random_weights_are_drawn_by_the_seed(tmp_path, images, runs, name, prefix, monkeypatch):
    drawn = []
    module = {"transfer": transfer, "probes": question}[name]
    fresh = module.fresh_network

    def note(*about):
        drawn.append(fresh(*about))
        return drawn[-1]

    monkeypatch.setattr(module, "fresh_network", note)
    own = [*FEW, "analysis.images_per_class=4", "analysis.layers=[fc7]"] if name == "probes" else QUICK
    for folder in ("one", "two"):
        content = ask(
            tmp_path / folder,
            runs[0],
            *on_caltech(images),
            *own,
            "analysis.random_weights=true",
            "analysis.seed=5",
            name=name,
        )

    one, two = (network.conv1.conv.weight for network in drawn)
    assert torch.equal(one, two) and not torch.equal(one, load_network(runs[0]).conv1.conv.weight)
    assert any(metric.startswith(prefix) and "random_weights" in metric for metric in content["metrics"])


def test_probes_of_random_weights_have_no_number_of_the_papers(tmp_path, images, runs, monkeypatch):
    monkeypatch.setitem(probes.TABLE_7, ("caltech101", 4), {("svm", "fc7"): 85.5})
    own = [*FEW, "analysis.images_per_class=4", "analysis.layers=[conv1,fc7]", "analysis.classifiers=[svm]"]

    content = ask(tmp_path, runs[0], *on_caltech(images), *own, "analysis.random_weights=true", name="probes")

    metrics = content["metrics"]
    assert metrics["svm/fc7/accuracy"]["paper"] == 85.5
    assert metrics["svm/fc7/accuracy_random_weights"]["paper"] is None
    assert set(metrics) == {
        "chance", *(f"svm/{layer}/accuracy{way}" for layer in ("conv1", "fc7") for way in ("", "_random_weights"))
    }  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("analysis.scratch_model=nope", "analysis.scratch_model=nope: no checkpoint "),
        (
            "analysis.scratch_model=zoo/squeezenet",
            "analysis.scratch_model=zoo/squeezenet: there are no public weights ",
        ),
        ("analysis.scratch_model=images", "analysis.scratch_model=images: no checkpoint at images: "),
        ("analysis.scratch_model=images/train/cat/0.jpg", "analysis.scratch_model=images/train/cat/0.jpg: "),
        ("analysis.scratch_image_size=2", "analysis.scratch_image_size=2: "),
        ("analysis.scratch_image_size=0", "analysis.scratch_image_size=0: "),
        (
            "analysis.scratch=false analysis.scratch_model=zoo/squeezenet1_1",
            "analysis: scratch_model=zoo/squeezenet1_1",
        ),
    ],
)
def test_what_cannot_train_from_scratch_is_refused_in_one_line(
    command, run_copy, folders, tmp_path, typed, message, monkeypatch
):
    monkeypatch.setattr("zfscope.analyses.run.find_data", lambda *_: pytest.fail("the data were opened"))

    told = refused(
        command, tmp_path, "analyze", "analysis=transfer", f"checkpoint={run_copy}", "logger=none", *typed.split()
    )

    assert told.startswith(f"analyze.py: {message}")


def test_a_checkpoint_without_its_run_is_no_recipe_and_has_none(tmp_path, images, runs):
    network = load_network(runs[0])
    save_network(network, {"model": composed("model=zfnet_mini", *SMALL)["model"]}, tmp_path / "bare.ckpt")
    content = read_checkpoint(tmp_path / "bare.ckpt")
    content["zfscope"]["config"] = None
    write_checkpoint(content, tmp_path / "bare.ckpt")

    with pytest.raises(ValueError, match="it does not tell how its network was trained; give the folder of a run"):
        recipe_of(str(tmp_path / "bare.ckpt"))
    with pytest.raises(ValueError, match="bare.ckpt does not tell how .* trained; give analysis.scratch_model, or "):
        ask(tmp_path, tmp_path / "bare.ckpt", *on_caltech(images), *QUICK)
