"""analysis=embedding: its figures, arrays and metrics, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from tests.conftest import composed
from zfscope import build_network, load_network
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.callbacks import loggers
from zfscope.data.datamodule import open_data
from zfscope.data.spec import DataConfig
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.runs import read_results
from zfscope.schema import check

MODEL = {
    "name": "tiny",
    "conv1": {"maps": 6, "kernel_size": 3, "stride": 2, "padding": 1},
    "fc6": {"units": 5},
    "fc8": {},
}
CLASSES = ("cat", "dog", "owl")


def write_images(root, parts):
    """Class folders of noise, a little brighter in one channel by class: neighbours are often of another one."""
    random = np.random.RandomState(0)
    for part, count in parts.items():
        for number in range(3 * count):
            pixels = random.randint(0, 200, (20, 20, 3))
            pixels[..., number % 3] += 12
            folder = root / part / CLASSES[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


def save(folder, root, change=None):
    torch.manual_seed(0)
    network = build_network(MODEL, num_classes=3, image_size=16)
    network.classes = CLASSES
    network.preprocessing = Preprocessing(20, 16, torch.full((3, 1, 1), 90.0), torch.full((3, 1, 1), 1 / 60))
    if change is not None:
        change(network)
    data = composed("data=folder", f"data.root={root}", "data.resize=20", "data.crop=16", "data.num_workers=0")["data"]
    save_network(network, {"model": MODEL, "data": data | {"cache": "data_cache"}}, folder / "checkpoints/best.ckpt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network on class folders, 12 validation images in each."""
    folder = tmp_path_factory.mktemp("run")
    return save(folder, write_images(folder / "images", {"train": 2, "val": 12}))


def ask(run, folder, *overrides):
    overrides = ["analysis=embedding", f"checkpoint={run}", "device=cpu", "logger=none", *overrides]
    folder.mkdir(exist_ok=True)
    analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), folder)


@pytest.fixture(scope="module")
def answer(run, tmp_path_factory):
    """Its run folder: all 36 images in two draws."""
    folder = tmp_path_factory.mktemp("answer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ask(run, folder, "analysis.images=36", "analysis.draws=2", "analysis.neighbours=4", "analysis.batch_size=7")
    return folder


def arrays_of(folder):
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def pictures(run, indices):
    paths = sorted((run / "images/val").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    network = load_network(run)
    return torch.stack([network.preprocess(Image.open(paths[index])) for index in indices]), paths


def share(values, labels, neighbours):
    values = values.flatten(1).double().numpy()
    near = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(values).kneighbors(return_distance=False)
    return 100 * (labels[near] == labels[:, None]).mean()


def test_shares_are_those_of_brute_force_in_float64(run, answer):
    arrays, network = arrays_of(answer), load_network(run).double()
    inputs, paths = pictures(run, arrays["indices"])
    metrics = read_results(answer)["metrics"]

    assert sorted(arrays["indices"]) == list(range(36))
    assert [CLASSES[label] for label in arrays["labels"]] == [paths[i].parent.name for i in arrays["indices"]]
    assert arrays["layers"].tolist() == ["conv1", "fc6", "fc8"] and np.bincount(arrays["draws"]).tolist() == [18, 18]
    expected = {"network": np.zeros((3, 2)), "random_weights": np.zeros((3, 2))}
    for draw in range(2):
        chosen = torch.from_numpy(arrays["draws"] == draw)
        own, labels = inputs[chosen].double(), arrays["labels"][chosen]
        torch.manual_seed(draw)
        random = build_network(MODEL, num_classes=3, image_size=16).double().eval()
        with torch.no_grad():
            for way, model in (("network", network), ("random_weights", random)):
                maps = model.trace(own).maps
                expected[way][:, draw] = [share(maps[layer], labels, 4) for layer in arrays["layers"]]
        assert arrays["pixels"][draw] == pytest.approx(share(own, labels, 4))
    for way, shares in expected.items():
        np.testing.assert_allclose(arrays[way], shares)
    for row, layer in enumerate(arrays["layers"]):
        assert metrics[f"{layer}/same_class"]["value"] == pytest.approx(expected["network"][row].mean())
        assert metrics[f"{layer}/same_class"]["spread"] == pytest.approx(expected["network"][row].std(ddof=1))
        random = metrics[f"{layer}/same_class_random_weights"]
        assert random["values"] == pytest.approx(expected["random_weights"][row].tolist())
    assert metrics["pixels/same_class"]["value"] == pytest.approx(arrays["pixels"].mean())
    over = expected["network"][-1] - expected["random_weights"][-1]
    assert metrics["fc8/over_random_weights"]["values"] == pytest.approx(over.tolist())
    assert metrics["fc8/over_pixels"]["unit"] == "points"
    assert metrics.keys() == {
        *(f"{layer}/same_class{way}" for layer in ("conv1", "fc6", "fc8") for way in ("", "_random_weights")),
        *("pixels/same_class", "fc8/over_pixels", "fc8/over_random_weights", "chance"),
    }


def test_the_map_has_a_place_and_at_most_one_cell_for_each_image(run, answer):
    arrays = arrays_of(answer)

    assert arrays["places"].shape == (36, 2) and np.isfinite(arrays["places"]).all()
    assert sorted(arrays["grid"].ravel()) == list(range(36)) and arrays["grid"].shape == (6, 6)
    # fc6, below the classes, has five units: its components are those of the features of all draws.
    inputs, _ = pictures(run, arrays["indices"])
    with torch.no_grad():
        features = load_network(run).features(inputs, "fc6").double().numpy()
    features -= features.mean(0)
    components = arrays["components"]
    assert components.shape[1] <= 5
    np.testing.assert_allclose(components @ components.T, features @ features.T, atol=1e-4 * (features**2).sum(1).max())
    assert {path.name for path in (answer / "figures").iterdir()} == {
        *("embedding.png", "embedding_grid.png", "neighbours.png"),
        *("embedding.pdf", "neighbours.pdf"),  # what is drawn by lines and letters
    }
    assert not list(answer.glob(".embedding*"))


def test_a_seed_gives_one_picture(run, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("analysis.images=36", "analysis.draws=2", "analysis.neighbours=4", "analysis.batch_size=7")

    ask(run, tmp_path / "again", *options)
    ask(run, tmp_path / "other", *options, "analysis.seed=1")

    for name in ("figures/embedding.png", "figures/embedding_grid.png", "figures/neighbours.png"):
        assert (tmp_path / "again" / name).read_bytes() == (answer / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (answer / name).read_bytes()
    assert read_results(tmp_path / "again")["metrics"] == read_results(answer)["metrics"]


def test_the_curve_is_printed_with_standard_errors(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    with pytest.warns(UserWarning, match="analysis.images=50, but there are 36 images: all of them are taken"):
        ask(run, tmp_path, "analysis.images=50", "analysis.layers=[conv1,fc8]", "analysis.layer=conv1")

    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if "standard error" in line)
    assert lines[start].endswith("(10 nearest neighbours, 3 draws of 12):")
    assert [line.split()[0] for line in lines[start + 2 : start + 5]] == ["pixels", "conv1", "fc8"]
    assert lines[start + 3].count("±") == 2 and "points above pixels" in lines[start + 5]
    assert "principal components of conv1" in lines[start + 6]


@pytest.mark.slow
def test_weights_and_biases_get_the_three_pictures_as_panels(run, tmp_path, monkeypatch):
    sent = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loggers.WandbLogger, "log_metrics", lambda self, metrics, step=None: sent.update(metrics))

    ask(run, tmp_path, "analysis.images=36", "analysis.draws=1", "logger=wandb", "logger.mode=offline")

    assert {"figures/embedding", "figures/embedding_grid", "figures/neighbours"} <= sent.keys()
    assert sent["fc8/same_class"] == read_results(tmp_path)["metrics"]["fc8/same_class"]["value"]


def dead_fc6(network):
    for name, weight in network.named_parameters():
        if "fc6" in name:
            weight.data.zero_()


def test_a_dead_layer_is_said_and_cannot_be_the_map(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dead = save(tmp_path / "dead", run / "images", dead_fc6)

    with pytest.raises(ValueError, match="layer 'fc6' gives the same features for all images; name another"):
        ask(dead, tmp_path / "first", "analysis.images=36", "analysis.draws=2")
    assert [path.name for path in (tmp_path / "first").iterdir()] == []
    ask(dead, tmp_path / "second", "analysis.images=36", "analysis.draws=2", "analysis.layer=conv1")

    metrics = read_results(tmp_path / "second")["metrics"]
    assert metrics["fc6/same_class"]["value"] is None and metrics["fc6/same_class"]["values"] == []
    assert metrics["fc6/same_class_random_weights"]["value"] > 0
    assert any(line.split()[:2] == ["fc6", "dead"] for line in capsys.readouterr().out.splitlines())


def test_a_part_with_images_of_one_class_has_a_map_in_one_draw(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = open_data(DataConfig(name="folder", root=str(run / "images"), cache="cache", resize=20, crop=16))
    one = replace(splits, val=splits.val.subset(splits.val.labels == 1))
    monkeypatch.setattr("zfscope.analyses.run.open_data", lambda *_: one)

    with pytest.warns(UserWarning, match="analysis.draws=5, but 12 images make 1 draw of 11 or more"):
        ask(run, tmp_path / "answer", "analysis.images=12")

    metrics = read_results(tmp_path / "answer")["metrics"]
    assert metrics["conv1/same_class"]["value"] == metrics["chance"]["value"] == 100
    assert metrics["conv1/same_class"]["spread"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis.layers=[conv1,conv9]"], "analysis.layers: no layer 'conv9'; the layers are conv1, fc6, fc8"),
        (["analysis.layer=fc9"], "analysis.layer: no layer 'fc9'; the layers are conv1"),
        (["analysis.layers=[]"], "analysis.layers: name one layer or more"),
        (["analysis.part=test"], "analysis.part=test: this data set has no labelled test images"),
        (["analysis.images=1"], "analysis.images"),
        (["analysis.images=10001"], "analysis.images"),
        (["analysis.neighbours=36"], "analysis.neighbours=36 needs 37 images or more, but there are 36 of val"),
        (["analysis.images=8"], "analysis.neighbours=10 needs 11 images or more, but there are 8 of val"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(run, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as refusal:
        ask(run, tmp_path / "answer", "analysis.images=36", *overrides)

    assert "\n" not in str(refusal.value).strip()
    assert not list((tmp_path / "answer").iterdir())


def test_weights_that_are_not_finite_are_refused_by_name(run, tmp_path, monkeypatch):
    network = load_network(run)
    next(network.parameters()).data[0] = torch.nan
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zfscope.analyses.run.load_network", lambda *_: network)

    with pytest.raises(ValueError, match="holds NaN or infinity; load finite weights"):
        ask(run, tmp_path / "answer", "analysis.images=36")
