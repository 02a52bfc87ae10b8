"""The paper's protocols as whole commands, on folders laid out as the real data sets are."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from zfscope import build_network
from zfscope.data.sources.voc import CLASSES as VOC_CLASSES
from zfscope.networks.checkpoints import load_network, save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols.linear_classifiers import standardise

MODEL = {
    "name": "tiny",
    "conv1": {"maps": 6, "kernel_size": 5, "stride": 2, "padding": 2, "pool": {}, "norm": "after_pool"},
    "conv2": {"maps": 6, "kernel_size": 3, "padding": 1},
    "fc6": {"units": 12},
    "fc7": {"units": 10},
    "fc8": {},
}
SMALL = ["logger=none", "device=cpu", "data.num_workers=0", "hydra.run.dir=found"]
FEW = ["analysis.images_per_class=[2,4]", "analysis.folds=3", "analysis.scratch_steps=3"]


@pytest.fixture(autouse=True)
def one_draw(monkeypatch):
    """C is chosen on one draw of held-out images, as on the real data sets, where a fifth is more than a hundred."""
    monkeypatch.setattr("zfscope.protocols.linear_classifiers.DRAWS", 1)


@pytest.fixture
def run(tmp_path):
    """A run folder with an untrained tiny network of five classes."""
    torch.manual_seed(0)
    network = build_network(MODEL, 5, 28)
    network.classes = tuple("vwxyz")
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    data, optim = {"name": "imagenet", "cache": str(tmp_path / "cache")}, {"epochs": 1}
    config = {"model": MODEL, "data": data, "optim": optim, "seed": 3}
    save_network(network, config, tmp_path / "run" / "checkpoints" / "best.ckpt")
    return tmp_path / "run"


def lay_out(folder, counts, side=40, tint=0):
    """Class folders whose classes differ in their brightest colour, so that even random features tell them apart."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            random = np.random.default_rng((number, image))
            picture = random.integers(0, 120, (side, side + 5, 3), dtype=np.uint8)
            picture += random.integers(0, tint + 1, 3, dtype=np.uint8)
            picture[:, :, number % 3] += 100 if not tint else 10
            Image.fromarray(picture).save(folder / name / f"image_{image + 1:04d}.jpg", quality=95)
    return folder


@pytest.fixture
def caltech101(tmp_path):
    lay_out(
        tmp_path / "c101" / "caltech101" / "101_ObjectCategories",
        {"BACKGROUND_Google": 5, "accordion": 8, "ant": 9, "zebra": 12},
    )
    return tmp_path / "c101"


def found(tmp_path, name="found"):
    return json.loads((tmp_path / name / "results.json").read_text())


def test_transfer_to_caltech_101_learns_frozen_features_and_from_scratch(command, run, caltech101, tmp_path):
    code, out, err = command(
        "analyze", "analysis=transfer", f"checkpoint={run}", "data=caltech101", f"data.root={caltech101}",
        *SMALL, *FEW, "analysis.scratch_folds=2",
    )  # fmt: skip

    results = found(tmp_path)
    assert (code, err) == (0, "")
    metrics = results["metrics"]
    for size in (2, 4):
        assert len(metrics[f"pretrained/{size}/accuracy"]["values"]) == 3
        assert len(metrics[f"scratch/{size}/accuracy"]["values"]) == 2
        before, after = (metrics[f"{way}/{size}/accuracy"]["values"][:2] for way in ("scratch", "pretrained"))
        assert metrics[f"gain/{size}/accuracy"]["values"] == pytest.approx(list(np.subtract(after, before)))
    assert metrics["pretrained/4/accuracy"]["value"] > 85  # colours are told apart by any features
    assert metrics["chance"]["value"] == pytest.approx(100 / 3)
    assert results["conditions"]["data"] == "caltech101" and results["conditions"]["run"]["seed"] == 3
    assert (tmp_path / "found/figures/transfer.png").is_file()
    arrays = np.load(tmp_path / "found/arrays.npz")
    assert arrays["pretrained"].shape == (2, 3) and arrays["scratch"].shape == (2, 2)


def test_caltech_256_is_transferred_to_and_probed_alike(command, run, tmp_path):
    folder = tmp_path / "c256" / "caltech256" / "256_ObjectCategories"
    lay_out(folder, {"001.ak47": 8, "002.flag": 9, "056.dog": 8, "257.clutter": 9})
    given = ["analyze", f"checkpoint={run}", "data=caltech256", f"data.root={tmp_path / 'c256'}", *SMALL]

    assert command(*given, "analysis=transfer", *FEW)[0] == 0
    metrics = found(tmp_path)["metrics"]
    assert metrics["pretrained/4/accuracy"]["value"] > 85 and "scratch/2/accuracy" in metrics
    code, _, err = command(
        *given, "analysis=probes", "analysis.images_per_class=5", "analysis.folds=2", "hydra.run.dir=probed"
    )  # fmt: skip
    assert code == 0, err
    assert found(tmp_path, "probed")["metrics"]["chance"]["value"] == pytest.approx(100 / 3)  # clutter is no class


def test_features_are_extracted_once_for_all_folds_sizes_and_analyses(command, run, caltech101, tmp_path, monkeypatch):
    import zfscope.protocols.features as features

    passes = []
    write = features.write_tables
    monkeypatch.setattr(features, "write_tables", lambda *given: passes.append(given) or write(*given))
    arguments = ["analyze", "analysis=transfer", f"checkpoint={run}", "data=caltech101", f"data.root={caltech101}"]

    for _ in range(2):
        code, _, _ = command(*arguments, *SMALL, *FEW, "analysis.scratch=false", "analysis.test_images=null")
        assert code == 0

    assert len(passes) == 1


def test_a_fold_by_hand_gives_the_same_accuracy(command, run, caltech101, tmp_path):
    from sklearn.linear_model import LogisticRegression

    from zfscope.data.sources.folders import open_caltech
    from zfscope.data.spec import DataConfig
    from zfscope.protocols.transfer import Target, draw_fold

    command(
        "analyze", "analysis=transfer", f"checkpoint={run}", "data=caltech101", f"data.root={caltech101}",
        *SMALL, "analysis.images_per_class=[4]", "analysis.folds=1", "analysis.scratch=false",
    )  # fmt: skip
    ours = found(tmp_path)["metrics"]["pretrained/4/accuracy"]["value"]

    target = Target.of(open_caltech(DataConfig(name="caltech101", root=str(caltech101))))
    fold = draw_fold(target, 4, 50, fold=0, seed=0)
    network = load_network(run)

    def features(positions):
        inputs = torch.stack([network.preprocess(target.images.read(int(i), short_side=32)) for i in positions])
        with torch.no_grad():
            return network.features(inputs, "fc7")

    train, test = standardise(features(fold.train), features(fold.test))
    labels = target.images.labels
    fits = [LogisticRegression(C=C, max_iter=5000).fit(train, labels[fold.train]) for C in (0.1, 1, 10, 100)]
    by_hand = [
        100 * np.mean([(fit.predict(test)[labels[fold.test] == k] == k).mean() for k in range(3)]) for fit in fits
    ]
    assert min(by_hand) - 1e-6 <= ours <= max(by_hand) + 1e-6


def test_probes_look_at_each_layer_with_both_classifiers(command, run, caltech101, tmp_path):
    code, _, _ = command(
        "analyze", "analysis=probes", f"checkpoint={run}", "data=caltech101", f"data.root={caltech101}",
        *SMALL, "analysis.images_per_class=5", "analysis.folds=2",
    )  # fmt: skip

    metrics = found(tmp_path)["metrics"]
    layers = ["conv1", "conv2", "fc7"]
    assert code == 0
    assert list(metrics) == [f"{kind}/{layer}/accuracy" for kind in ("svm", "softmax") for layer in layers] + ["chance"]
    assert all(metrics[name]["value"] > 85 for name in metrics if name != "chance")
    assert (tmp_path / "found/figures/probes.png").is_file()


@pytest.mark.parametrize("memory", ["1.0e-4", "10.0"])
def test_probes_need_no_more_memory_than_they_are_given(command, run, caltech101, tmp_path, memory):
    command(
        "analyze", "analysis=probes", f"checkpoint={run}", "data=caltech101", f"data.root={caltech101}",
        *SMALL, "analysis.images_per_class=5", "analysis.folds=1", f"analysis.memory_gb={memory}",
    )  # fmt: skip

    assert found(tmp_path)["metrics"]["svm/conv1/accuracy"]["value"] > 85


@pytest.mark.parametrize("analysis", ["transfer", "probes"])
def test_shuffled_labels_drive_accuracy_to_chance(command, run, tmp_path, analysis):
    lay_out(tmp_path / "many", {"red": 60, "green": 60, "blue": 60}, tint=120)
    sizes = "[30]" if analysis == "transfer" else "30"
    extra = ["analysis.scratch=false"] if analysis == "transfer" else ["analysis.layers=[fc7]"]

    command(
        "analyze", f"analysis={analysis}", f"checkpoint={run}", "data=folder", f"data.root={tmp_path / 'many'}",
        *SMALL, f"analysis.images_per_class={sizes}", "analysis.shuffle_labels=true", "analysis.folds=2", *extra,
    )  # fmt: skip

    metrics = found(tmp_path)["metrics"]
    accuracies = [metric["value"] for name, metric in metrics.items() if name.endswith("accuracy")]
    assert accuracies and all(abs(each - 100 / 3) < 12 for each in accuracies)


def lay_out_voc(folder):
    lists = folder / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "VOCdevkit" / "VOC2012" / "JPEGImages").mkdir()
    random = np.random.default_rng(0)
    flags = {}
    for part, count in (("train", 60), ("val", 40)):
        flags = random.random((count, 20)) < 0.15
        flags[np.arange(count), np.arange(count) % 20] = True
        for number, name in enumerate(VOC_CLASSES):
            rows = [f"{part}_{i:04d} {1 if flags[i, number] else -1:2d}\n" for i in range(count)]
            (lists / f"{name}_{part}.txt").write_text("".join(rows))
        for i in range(count):
            picture = np.zeros((40, 40, 3), np.uint8)
            picture[:, :, 0], picture[:, :, 1] = 200 * flags[i, 0], 200 * flags[i, 1]  # two classes can be seen
            Image.fromarray(picture).save(folder / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{part}_{i:04d}.jpg")
    return folder


def test_pascal_has_an_average_precision_for_each_class(command, run, tmp_path):
    lay_out_voc(tmp_path / "voc")

    code, _, _ = command(
        "analyze", "analysis=transfer", f"checkpoint={run}", "data=voc2012", f"data.root={tmp_path / 'voc'}",
        *SMALL, "analysis.scratch_steps=2",
    )  # fmt: skip

    metrics = found(tmp_path)["metrics"]
    assert code == 0
    assert metrics["pretrained/average_precision/aeroplane"]["value"] > 80
    assert metrics["pretrained/average_precision/aeroplane"]["paper"] == 96.0
    assert metrics["pretrained/average_precision/sofa"]["value"] < 60  # cannot be seen
    values = [metrics[f"pretrained/average_precision/{name}"]["value"] for name in VOC_CLASSES]
    assert metrics["pretrained/mean_average_precision"]["value"] == pytest.approx(np.mean(values))
    assert metrics["pretrained/mean_average_precision"]["paper"] == 79.0
    assert "scratch/mean_average_precision" in metrics


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis=transfer"], r"15 training images per class .* accordion \(8\), ant \(9\), zebra \(12\)"),
        (["analysis=probes"], r"30 training images per class .* accordion \(8\), ant \(9\), zebra \(12\)"),
        (
            ["analysis=transfer", "analysis.layer=conv9"],
            r"no layer 'conv9'; the layers are conv1, conv2, fc6",
        ),
        (["analysis=transfer", "data.classes=[ant,bee]"], r"there is no class 'bee' in this data set"),
        (["analysis=evaluate"], r"the network tells 5 classes apart, the data set has 3"),
        (["analysis=transfer", "checkpoint=runn"], r"no checkpoint at runn; there are .*run"),
        (["analysis=transfer", "checkpoint=null"], r"checkpoint is missing; give it as checkpoint=outputs/RUN"),
        (["analysis=transfer", "checkpoint=[a,b]"], r"several belong to analysis=ensemble"),
        (["analysis=ledger"], r"analysis=ledger looks at no network; leave checkpoint out"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(command, run, caltech101, tmp_path, overrides, message):
    given = ["data=caltech101", f"data.root={caltech101}"]

    code, _, err = command("analyze", f"checkpoint={run}", *given, *SMALL, *overrides)

    assert code == 2
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "found").exists()


def test_an_experiment_of_the_analyses_runs_both_of_them(command, run, tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.analyses.transfer.LEAST_STEPS", 1)
    lay_out(tmp_path / "c101" / "caltech101" / "101_ObjectCategories", {"accordion": 32, "ant": 33, "zebra": 32})

    code, out, err = command(
        "analyze", "experiment=caltech101_pretrained", f"checkpoint={run}", f"data.root={tmp_path / 'c101'}",
        "data.download=false", "data.num_workers=0", "device=cpu", "logger=none", "hydra.sweep.dir=both",
    )  # fmt: skip

    assert (code, err) == (0, "")
    metrics = {
        name: json.loads((tmp_path / "both" / name / "results.json").read_text())["metrics"]
        for name in ("transfer", "probes")
    }
    assert metrics["transfer"]["pretrained/30/accuracy"]["paper"] == 86.5
    assert metrics["transfer"]["scratch/15/accuracy"]["paper"] == 22.8
    assert metrics["probes"]["svm/conv1/accuracy"]["paper"] == 44.8
    assert len(metrics["probes"]["softmax/fc7/accuracy"]["values"]) == 5


def test_analyses_of_a_sweep_that_are_refused_are_lines_of_its_table(command, run, caltech101, tmp_path):
    code, out, _ = command(
        "analyze", "experiment=caltech101_pretrained", f"checkpoint={run}", f"data.root={caltech101}", "logger=none",
        "data.download=false", "data.num_workers=0", "device=cpu",
    )  # fmt: skip

    assert code == 1 and "2 jobs" in out and "15 training images per class" in out.replace("\n", " ")
    (sweep,) = (tmp_path / "outputs/analyses").iterdir()
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in sweep.glob("*/results.json")}
    assert states == {"transfer": "failed", "probes": "failed"}
