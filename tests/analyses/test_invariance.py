"""analysis=invariance: its figure, arrays and metrics."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import composed, write_folders
from tests.examples.invariance import NOTHING
from zfscope import build_network, load_network
from zfscope.analyses.invariance import of_different_classes
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.invariance import KINDS, default_amounts, moved
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing, centre_crop
from zfscope.runs import read_results
from zfscope.schema import check


def test_images_shown_are_the_first_of_each_class_then_others():
    labels = torch.tensor([2, 2, 0, 2, 1, 0])

    assert of_different_classes(labels, 2).tolist() == [0, 2]
    assert of_different_classes(labels, 3).tolist() == [0, 2, 4]
    assert of_different_classes(labels, 4).tolist() == [0, 1, 2, 4]
    assert of_different_classes(labels, 10).tolist() == list(range(6))


SMALL = [
    *("model.conv1.maps=8", "model.conv2.maps=8", "model.conv2.stride=1", "model.conv2.padding=2"),
    *("model.conv3.maps=8", "model.conv4.maps=8", "model.conv5.maps=8", "model.fc6.units=16", "model.fc7.units=16"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained zfnet_mini on small class folders."""
    folder = tmp_path_factory.mktemp("run")
    root = write_folders(folder / "images", {"train": 8, "val": 4})
    data = ["data=folder", f"data.root={root}", "data.resize=32", "data.crop=28"]
    config = composed("model=zfnet_mini", *SMALL, *data)
    torch.manual_seed(0)
    network = build_network(config["model"], num_classes=3, image_size=28)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 32, 32), 90.0), torch.full((3, 1, 1), 1 / 60))
    (folder / "checkpoints").mkdir()
    save_network(network, config, folder / "checkpoints" / "best.ckpt")
    return folder


def ask(run, folder, *overrides):
    overrides = ["analysis=invariance", f"checkpoint={run}", "device=cpu", "logger=none", *overrides]
    analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), folder)


def test_the_analysis_writes_figure_arrays_and_metrics_that_follow_from_them(run, tmp_path):
    ask(run, tmp_path, "analysis.images=9", "analysis.shown=3")

    network = load_network(run)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    metrics = {name: each["value"] for name, each in read_results(tmp_path)["metrics"].items()}
    assert torch.equal(arrays["labels"], arrays["indices"] // 4)
    assert len(arrays["indices"]) == 9 and arrays["labels"][arrays["shown"]].tolist() == [0, 1, 2]
    for kind in KINDS:
        amounts = default_amounts(kind, 28)
        assert torch.equal(arrays[f"{kind}/amounts"], amounts)
        chosen = amounts != NOTHING[kind]
        low, high = (arrays[f"{kind}/{layer}"][:, chosen] / arrays[f"another/{layer}"] for layer in ("conv1", "fc7"))
        assert low.shape == (9, int(chosen.sum()))
        assert metrics[f"{kind}/conv1"] == pytest.approx(float(low.mean()))
        assert metrics[f"{kind}/fc7"] == pytest.approx(float(high.mean()))
        below = (high.mean(0) < low.mean(0)).double()
        assert metrics[f"{kind}/curve_below"] == pytest.approx(100 * float(below.mean()))
        assert metrics[f"{kind}/images_below"] == pytest.approx(100 * float((high < low).double().mean()))
        assert metrics[f"{kind}/probability"] == pytest.approx(float(arrays[f"{kind}/probability"][:, chosen].mean()))
    near = [1, 2, 34, 35]  # 10, 20, 340 and 350 degrees
    expected = (arrays["rotation/fc7"][:, near] / arrays["another/fc7"]).mean()
    assert metrics["rotation_within_20/fc7"] == pytest.approx(float(expected))
    assert (tmp_path / "figures" / "invariance.png").is_file()

    # The second image of the arrays, read and moved without the analysis.
    index = int(arrays["indices"][1])
    path = sorted((run / "images" / "val").rglob("*.jpg"))[index]
    canvas = network.preprocessing.normalise(network.preprocessing.canvas(Image.open(path)))[None]
    turned, label = moved(canvas, "rotation", 40, 28), arrays["labels"][1]
    with torch.no_grad():
        apart = network.features(turned, "fc7") - network.features(centre_crop(canvas, 28), "fc7")
        probability = network(turned).softmax(1)[0, label]
    assert arrays["rotation/fc7"][1, 4].item() == pytest.approx(float(apart.norm()), rel=1e-4)
    assert arrays["rotation/probability"][1, 4].item() == pytest.approx(float(probability), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.layers=[conv1,conv9]", "no layer 'conv9'; the layers are conv1"),
        ("analysis.layers=[fc7,fc7]", "analysis.layers: layers names a low and a high layer"),
        ("analysis.layers=[conv5]", "analysis.layers: layers names a low and a high layer"),
        ("analysis.part=test", "analysis.part=test: this data set has no labelled test images"),
    ],
)
def test_what_is_not_there_is_refused_before_images_are_read(run, tmp_path, monkeypatch, override, message):
    monkeypatch.setattr("zfscope.analyses.question.Examples", None)

    with pytest.raises(ValueError, match=message):
        ask(run, tmp_path, override)

    assert not list(tmp_path.iterdir())


def test_a_public_network_on_other_classes_gives_distances_without_a_probability(tmp_path, run):
    root = run / "images"
    overrides = [
        "analysis=invariance",
        "checkpoint=zoo/squeezenet1_1",
        "device=cpu",
        "logger=none",
        "analysis.images=2",
    ]
    overrides += ["data=folder", f"data.root={root}", f"data.cache={tmp_path / 'cache'}"]

    analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), tmp_path)

    metrics = read_results(tmp_path)["metrics"]
    assert {"translation/features.3", "translation/features.12", "rotation/images_below"} <= metrics.keys()
    assert not [name for name in metrics if name.endswith("probability")]
