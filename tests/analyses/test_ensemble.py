"""What an ensemble's members tell together, against each of them alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.analyses.conftest import CLASSES, save
from tests.conftest import composed, write_folders
from zfscope.analyses import evaluate
from zfscope.analyses.ensemble import analyse
from zfscope.analyses.members import open_members
from zfscope.analyses.question import Question
from zfscope.analyses.run import analyze
from zfscope.analyses.run import save as save_result
from zfscope.analyses.spec import AnalyzeConfig, EnsembleAnalysis, EvaluateAnalysis
from zfscope.data.datamodule import ImageData
from zfscope.data.imageset import ArrayImages
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.evaluation import subsets, top_error
from zfscope.figures import ensemble_figure
from zfscope.networks.checkpoints import load_network
from zfscope.networks.spec import ModelConfig
from zfscope.report.paper import numbers_of
from zfscope.report.readings import Run
from zfscope.schema import check


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    sets = [
        ArrayImages(random.integers(0, 256, (count, 26, 30, 3), dtype=np.uint8), np.arange(count) % 8, CLASSES, "noise")
        for count in (16, 24, 40)
    ]
    config = check(DataConfig, {"name": "phantom", "num_workers": 0, "batch_size": 1})
    return ImageData(Splits(*sets), config, None)


def run(networks, data, folder, checkpoint, **options):
    folder.mkdir(exist_ok=True)
    options = EnsembleAnalysis(batch_size=16, **options)
    result = analyse(Question(options, torch.device("cpu"), folder, checkpoint, members=networks, data=data))
    save_result(result, folder)
    return result.metrics


# --- what they tell together ---


def test_the_numbers_follow_from_the_probabilities_of_the_members(six, data, tmp_path):
    metrics = run(open_members(f"{six}/*"), data, tmp_path / "out", f"{six}/*")

    arrays = np.load(tmp_path / "out" / "arrays.npz")
    each, labels = torch.from_numpy(arrays["probabilities"]).double(), torch.from_numpy(arrays["labels"])
    assert each.shape == (6, 40, 8) and each.sum(2).numpy() == pytest.approx(1, abs=1e-5)
    assert arrays["members"].tolist() == ["0", "1", "2", "3", "4", "5"]
    assert labels.tolist() == data.splits.test.labels.tolist()
    for name, k in (("top1_error_ten_crops", 1), ("top5_error_ten_crops", 5)):
        singles = [top_error(one.float(), labels, k) for one in each]
        pairs = [top_error(((each[i] + each[j]) / 2).float(), labels, k) for j in range(6) for i in range(j)]
        whole = top_error(each.mean(0).float(), labels, k)
        found = {key.removesuffix(f"/{name}"): metric for key, metric in metrics.items() if key.endswith(f"/{name}")}
        assert found["test"]["value"] == found["size_6"]["value"] == whole
        assert [found[f"member/{number}"]["value"] for number in range(6)] == singles
        assert found["size_1"]["value"] == pytest.approx(np.mean(singles))
        assert found["size_2"]["value"] == pytest.approx(np.mean(pairs))
        assert found["size_2"]["spread"] == pytest.approx(np.std(pairs))
        assert found["size_2"]["subsets"] == 15
        assert found["group/tiny/one_net"]["value"] == pytest.approx(np.mean(singles[:5]))
        assert found["group/tiny/one_net"]["spread"] == pytest.approx(np.std(singles[:5], ddof=1))
        assert found["group/tiny/5_nets"]["value"] == top_error(each[:5].mean(0).float(), labels, k)
        assert found["group/tiny_wide/one_net"]["value"] == singles[5]
        assert found["group/tiny_wide/one_net"]["spread"] is None
        assert "group/tiny_wide/1_nets" not in found
        assert found["gain"]["value"] == pytest.approx(min(singles) - whole)
        assert found["gain"]["best"] == str(np.argmin(singles))
        low, high = found["gain"]["interval"]
        assert low <= found["gain"]["value"] <= high
    assert metrics["members"] == {"value": 6, "unit": "of 6", "absent": []}
    assert all(metric["paper"] is None for name, metric in metrics.items() if name != "members")
    json.dumps(metrics)


def test_table_2s_rows_are_there_where_the_subsets_are_a_sample_without_them(six, data, tmp_path, monkeypatch):
    members = open_members(f"{six}/*")
    full = run(members, data, tmp_path / "out", f"{six}/*")

    def one_of_each_size(count, size):
        return subsets(count, size) if size == 1 else subsets(count, size)[-1:]

    monkeypatch.setattr("zfscope.analyses.ensemble.subsets", one_of_each_size)
    sampled = run(members, data, tmp_path / "out", f"{six}/*")

    assert {name: full[name] for name in full if name.startswith("group/")} == {
        name: sampled[name] for name in sampled if name.startswith("group/")
    }
    assert sampled["size_5/top1_error"]["subsets"] == 1


def test_every_member_has_the_errors_of_its_own_evaluation(six, data, tmp_path):
    metrics = run(open_members(f"{six}/*"), data, tmp_path / "out", f"{six}/*")

    for number in range(6):
        network = load_network(six / str(number))
        own = ImageData(data.splits, data.config, network.preprocessing)
        question = Question(EvaluateAnalysis(batch_size=16), torch.device("cpu"), tmp_path, "RUN", network, data=own)
        expected = evaluate.analyse(question).metrics
        assert len(expected) == 6
        for name, metric in expected.items():
            assert metrics[f"member/{number}/{name.removeprefix('test/')}"]["value"] == metric["value"], name


def test_without_ten_crops_there_are_the_centre_s_numbers_alone(six, data, tmp_path):
    members = open_members(f"{six}/*")
    full = run(members, data, tmp_path / "full", f"{six}/*", part="val")

    metrics = run(members, data, tmp_path / "out", f"{six}/*", part="val", ten_crops=False)

    assert {name: full[name] for name in metrics} == metrics
    assert set(full) - set(metrics) == {f"{name}_ten_crops" for name in metrics if name != "members"}
    first = np.load(tmp_path / "out" / "arrays.npz")["probabilities"]
    assert not np.allclose(first, np.load(tmp_path / "full" / "arrays.npz")["probabilities"])


def test_a_number_of_members_that_was_asked_for_is_insisted_on(six, data, tmp_path):
    members = open_members(f"{six}/[0-4]")

    assert run(members, data, tmp_path / "out", f"{six}/[0-4]", members=5)["members"]["value"] == 5
    with pytest.raises(ValueError, match=r"analysis.members=6, but checkpoint=\S+ gives 5: 0, 1, 2, 3, 4; train the"):
        run(members, data, tmp_path / "out", f"{six}/[0-4]", members=6)


def test_images_of_other_classes_than_the_members_are_refused_with_a_members_name(six, data, tmp_path):
    for images in data.splits.parts.values():
        images.classes = (*CLASSES[:7], "z")

    with pytest.raises(ValueError, match=f"{six}/0: the data set's classes are not the network's: it lacks h"):
        run(open_members(f"{six}/*"), data, tmp_path / "out", f"{six}/*")


def test_images_with_several_labels_are_scored_by_mean_average_precision(six, data, tmp_path):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (30, 24, 24, 3), dtype=np.uint8)
    several = ArrayImages(pixels, (random.random((30, 8)) < 0.4).astype(np.float32), CLASSES, "noise")
    data = ImageData(Splits(several, several), data.config, None)

    metrics = run(open_members(f"{six}/*"), data, tmp_path / "out", f"{six}/*")

    scores = [metrics[f"member/{number}/mean_average_precision"]["value"] for number in range(6)]
    assert metrics["size_1/mean_average_precision"]["value"] == pytest.approx(np.mean(scores))
    gain = metrics["gain/mean_average_precision"]
    assert gain["value"] == pytest.approx(metrics["val/mean_average_precision"]["value"] - max(scores))
    assert gain["best"] == str(np.argmax(scores))
    assert not any("error" in name for name in metrics)


def test_the_papers_numbers_stand_beside_those_of_its_own_six_networks_on_imagenets_validation(data, tmp_path):
    for number in range(6):
        save(tmp_path / "six" / str(number), number, name="zfnet" if number < 5 else "zfnet_wide")
    imagenet = data.config.model_copy(update={"name": "imagenet", "root": "DIR"})
    data = ImageData(data.splits, imagenet, None)
    members = open_members(f"{tmp_path}/six/*")

    found = run(members, data, tmp_path / "out", f"{tmp_path}/six/*", part="val")

    paper = {name: metric["paper"] for name, metric in found.items() if metric.get("paper") is not None}
    assert paper == {
        "val/top1_error_ten_crops": 36.0,
        "val/top5_error_ten_crops": 14.7,
        "group/zfnet/one_net/top1_error_ten_crops": 38.4,
        "group/zfnet/one_net/top5_error_ten_crops": 16.5,
        "group/zfnet/5_nets/top1_error_ten_crops": 36.7,
        "group/zfnet/5_nets/top5_error_ten_crops": 15.3,
        "group/zfnet_wide/one_net/top1_error_ten_crops": 37.5,
        "group/zfnet_wide/one_net/top5_error_ten_crops": 16.0,
    }
    elsewhere = run(members, data, tmp_path / "out", f"{tmp_path}/six/*", part="test")
    on_phantom = ImageData(data.splits, data.config.model_copy(update={"name": "phantom"}), None)
    other = run(members, on_phantom, tmp_path / "out", f"{tmp_path}/six/*", part="val")
    assert not any(metric.get("paper") for metric in [*elsewhere.values(), *other.values()])
    fewer = run(members[1:], data, tmp_path / "out", f"{tmp_path}/six/*", part="val")
    assert fewer["val/top1_error_ten_crops"]["paper"] is None
    assert fewer["members"] == {"value": 5, "unit": "of 6", "absent": [f"{tmp_path}/six/0"]}


def test_the_command_averages_five_of_six_where_that_is_asked_for(tmp_path):
    folders = write_folders(tmp_path / "images", {"train": 4, "val": 4}, side=26)
    for number in range(3):
        save(tmp_path / "six" / str(number), number, classes=("cat", "dog", "owl"))
    shutil.rmtree(tmp_path / "six" / "1" / "checkpoints")
    given = [
        "analysis=ensemble",
        f"checkpoint='{tmp_path}/six/*'",
        "data=folder",
        f"data.root={folders}",
        "logger=none",
    ]
    values = composed(*given, "device=cpu", "data.num_workers=0", "analysis.partial=true", name="analyze")
    (tmp_path / "out").mkdir()

    analyze(check(AnalyzeConfig, values), tmp_path / "out")

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"]["members"]["unit"] == "of 3" and results["metrics"]["members"]["value"] == 2
    assert results["metrics"]["members"]["absent"] == [f"{tmp_path}/six/1"]
    assert 0 <= results["metrics"]["val/top1_error_ten_crops"]["value"] <= 100
    assert Image.open(tmp_path / "out" / "figures" / "ensemble.png").width > 500


# --- the picture, the configs ---


def test_the_picture_shows_every_subset_at_its_error_and_names_that_are_no_markup():
    chosen = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    errors = {"top1_error_ten_crops": np.array([40.0, 41, 42, 39, 39.5, 40, 38])}

    one, same, other = (
        np.asarray(ensemble_figure(chosen, {name: values}, names, title="$x$"))
        for name, values, names in (
            ("top1_error", errors["top1_error_ten_crops"], ("$a$", "b_2", "c")),
            ("top1_error_ten_crops", errors["top1_error_ten_crops"], ("$a$", "b_2", "c")),
            ("top1_error", np.array([40.0, 41, 42, 39, 39.5, 40, 39]), ("$a$", "b_2", "c")),
        )
    )

    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_six_members_are_five_networks_of_fig_3_and_a_wide_one():
    for experiment, maps, error in (
        ("table3_zfnet", [384, 384, 256], 38.4),
        ("table3_zfnet_wide", [512, 1024, 512], 37.5),
    ):
        config = composed(f"experiment={experiment}", "data.root=DIR", "seed=4")

        assert config["seed"] == 4 and config["data"]["name"] == "imagenet"
        chain = check(ModelConfig, config["model"]).chain
        assert [chain[f"conv{layer}"].maps for layer in (3, 4, 5)] == maps
        assert numbers_of(config["paper"])["val/top1_error_ten_crops"] == error


@pytest.mark.parametrize("asked", [[], ["analysis.members=2"]])
def test_the_results_hold_the_members_whatever_number_of_them_was_asked_for(command, trained_run, tmp_path, asked):
    members = [f"{trained_run}/epoch_001", f"{trained_run}/last"]

    code, _, err = command(
        "analyze", "analysis=ensemble", f"checkpoint=[{','.join(members)}]", "analysis.part=val", "device=cpu",
        "analysis.ten_crops=false", "logger=none", "hydra.run.dir=both", *asked,
    )  # fmt: skip

    assert code == 0, err
    conditions = json.loads((tmp_path / "both/results.json").read_text())["conditions"]
    assert [member["checkpoint"] for member in conditions["members"]] == members
    networks = Run("both", "ensemble", {}, conditions).networks
    assert [network.checkpoint for network in networks] == ["epoch_001", "last"]
    assert all(network.digest for network in networks)
