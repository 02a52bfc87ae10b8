"""Whole runs of the two commands, in a folder of their own, on a tiny data set."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, write_folders

sys.path.insert(0, str(ROOT))
import train
from zfscope import load_network

TINY = [
    "data=folder",
    "data.resize=32",
    "data.crop=28",
    "data.batch_size=8",
    "data.num_workers=0",
    "logger=none",
    "device=cpu",
    "model.conv1.maps=8",
    "model.conv2.maps=8",
    "model.conv2.stride=1",
    "model.conv2.padding=2",
    "model.conv3.maps=8",
    "model.conv4.maps=8",
    "model.conv5.maps=8",
    "model.fc6.units=16",
    "model.fc7.units=16",
    "trainer.max_epochs=2",
]

SHORT = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"]


@pytest.fixture
def tiny(folders):
    return [*TINY, f"data.root={folders}", f"data.cache={folders.parent / 'cache'}"]


def read_back(run, *options):
    """What W&B's own tool finds in an offline run: its summary, or its records."""
    tool = Path(sys.executable).with_name("wandb")
    answer = subprocess.run(
        [tool, "leet", "inspect", "--json", *options, run], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(answer.stdout) if options else [json.loads(line) for line in answer.stdout.splitlines()]


def runs(folder):
    return sorted(path.parent for path in folder.glob("outputs/**/checkpoints"))


def test_a_run_leaves_checkpoints_results_and_pictures(command, tiny, tmp_path):
    code, out, _ = command("train", *tiny, "++paper={val/top1_error:38.4}")

    (folder,) = runs(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert code == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "epoch_001.ckpt",
        "epoch_002.ckpt",
        "last.ckpt",
    ]
    assert (folder / "figures/filter_images/conv1/epoch_002.png").is_file()
    assert results["state"] == "finished"
    assert results["metrics"]["val/top1_error"]["unit"] == "%"
    assert results["metrics"]["val/top1_error"]["paper"] == 38.4
    assert 0 <= results["metrics"]["val/top1_error_ten_crops"]["value"] <= 100
    assert results["conditions"]["images"] == {"train": 24, "val": 12}
    assert results["conditions"]["map_sizes"][0] == 12
    assert "receptive field" in out
    network = load_network(folder)
    assert network.classes == ("cat", "dog", "owl")
    assert not network.training


def test_analyze_finds_the_error_that_training_found(command, tiny, tmp_path):
    command("train", *tiny)
    (folder,) = runs(tmp_path)
    trained = json.loads((folder / "results.json").read_text())["metrics"]

    code, out, _ = command("analyze", "analysis=evaluate", f"checkpoint={folder}", "device=cpu")

    (analysed,) = (tmp_path / "outputs/analyses").glob("*/results.json")
    found = json.loads(analysed.read_text())["metrics"]
    assert code == 0
    for name in ("val/top1_error", "val/top1_error_ten_crops", "val/macro_f1"):
        assert found[name]["value"] == trained[name]["value"]


def test_the_validation_error_is_that_of_the_best_checkpoint_by_hand(command, tiny, tmp_path, folders):
    command("train", *tiny)
    (folder,) = runs(tmp_path)
    error = json.loads((folder / "results.json").read_text())["metrics"]["val/top1_error"]["value"]

    network = load_network(folder)
    wrong = []
    with torch.no_grad():
        for path in (folders / "val").rglob("*.jpg"):
            logits = network(network.preprocess(Image.open(path))[None])
            wrong.append(network.classes[int(logits.argmax())] != path.parent.name)

    assert error == pytest.approx(100 * np.mean(wrong))


def test_a_run_goes_on_in_its_folder(command, tiny, tmp_path):
    command("train", *tiny, "trainer.max_epochs=4", "hydra.run.dir=outputs/whole")
    command("train", *tiny, "hydra.run.dir=outputs/run")
    identity = (tmp_path / "outputs/run/.hydra/run_id").read_text()

    code, _, _ = command("train", "resume=outputs/run", "trainer.max_epochs=4")

    assert code == 0
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["run", "whole"]
    assert (tmp_path / "outputs/run/.hydra/run_id").read_text() == identity
    assert json.loads((tmp_path / "outputs/run/results.json").read_text())["conditions"]["epochs"] == 4
    assert (tmp_path / "outputs/run/figures/filter_images/conv1/epoch_004.png").is_file()


def test_a_sweep_goes_on_after_a_job_that_fails_and_ends_with_a_table(command, tiny, tmp_path):
    code, out, _ = command(
        "train", "-m", *tiny, "trainer.max_epochs=1", "evaluate.enabled=false", "model.conv1.kernel_size=5,99,7"
    )

    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    states = [json.loads((sweep / str(job) / "results.json").read_text()) for job in range(3)]
    assert code == 1
    assert [state["state"] for state in states] == ["finished", "failed", "finished"]
    assert "99x99 kernel of conv1 is larger than its map of 28x28" in states[1]["cause"]
    assert "3 jobs" in out
    assert states[0]["conditions"]["overrides"][-1] == "model.conv1.kernel_size=5"


def test_a_sweep_of_stems_is_separate_wandb_runs_of_one_group_that_can_be_read_back(command, tiny, tmp_path):
    own = [each for each in tiny if not each.startswith(("model.", "logger", "data.resize", "data.crop"))]
    stems = ["7x7s2", "7x7s4", "11x11s2", "11x11s4"]

    code, out, _ = command("train", "-m", *own, "data.resize=72", "data.crop=64", f"model/stem={','.join(stems)}")

    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    assert code == 0
    for job, stem in enumerate(stems):
        (run,) = (sweep / str(job) / "wandb").glob("offline-run-*")
        summary, records = read_back(run, "--summary"), read_back(run)
        history = [record["history"]["item"] for record in records if record["type"] == "history"]
        assert stem in out
        group = next(record["run"]["run_group"] for record in records if record["type"] == "run")
        assert group == sweep.name
        assert f"model/stem={stem}" in summary["tags"]
        assert (summary["state"], summary["exit_code"]) == ("finished", 0)
        kernel, stride = map(int, re.match(r"(\d+)x\d+s(\d)", stem).groups())
        assert summary["config"]["model.conv1.kernel_size"] == kernel
        assert summary["config"]["model.conv1.stride"] == stride
        epochs = [row["epoch"] for row in history if "val/top1_error" in row]
        assert epochs == [0, 1]
        pictures = [row for row in history if "filter_images/conv1.filenames" in row]
        assert len(pictures) == 2
        assert len(list((run / "files/media/images/filter_images").glob("conv1_*.png"))) == 2
        assert f"wandb sync {sweep}/{job}/wandb/{run.name}".split("/")[-1] in out.replace("\n", "")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=0.1", r"optim\.lrr: there is no key 'lrr'; did you mean lr\?"),
        ("modle=zfnet", r"modle.*did you mean.*model"),
        ("model=zfnett", r"zfnett.*zfnet"),
        ("optim.lr=abc", r"optim\.lr='abc'"),
        ("optim.lr=-3", r"optim\.lr=-3.*greater than 0"),
        ("optim.lr=1e400", r"optim\.lr=inf.*finite"),
        ("+optim.typo=1", r"optim\.typo=1: there is no such key"),
        ("model.conv1.stride=0", r"model\.conv1\.stride=0"),
        ("model.conv5.kernel_size=40", r"40x40 kernel of conv5 is larger than its map.*conv4 \d+"),
        ("data.root=nowhere", r"nowhere"),
        ("data.batch_size=1000", r"data\.batch_size=1000.*larger than the 24 training images"),
        ("+trainer.max_stepz=3", r"trainer\.max_stepz.*did you mean max_steps"),
        ("+trainer.precision=7bit", r"7bit"),
        ("+trainer.callbacks=[]", r"trainer\.callbacks is set by this project"),
        ("callbacks.filter_images._target_=os.system", r"os\.system.*trust"),
        ("trainer.max_epochs=-5", r"trainer\.max_epochs=-5"),
        ("weights=nothing.ckpt", r"no checkpoint at nothing\.ckpt"),
        ("name=${oc.env:ZFSCOPE_NOT_SET}", r"ZFSCOPE_NOT_SET"),
        ("resume=outputs/none", r"resume=outputs/none: no run there"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing_behind(command, tiny, tmp_path, override, message):
    code, _, err = command("train", *tiny, override)

    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


def test_an_image_that_cannot_be_read_is_named(command, tiny, tmp_path, folders):
    broken = next((folders / "train" / "dog").iterdir())
    broken.write_bytes(broken.read_bytes()[:300])

    code, _, err = command("train", *tiny, "data.num_workers=2")

    assert code == 2
    assert str(broken) in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("preset", ["fast", "overfit", "profile"])
def test_every_debug_preset_runs(command, tiny, preset):
    fewer = [each for each in tiny if not each.startswith(("trainer.max_epochs", "logger"))]

    code, out, err = command("train", *fewer, f"debug={preset}", *(SHORT * (preset == "overfit")))

    assert code == 0, err


@pytest.mark.slow
def test_the_papers_network_trains_at_224_px_on_folders_laid_out_like_imagenet(command, tmp_path):
    root = write_folders(
        tmp_path / "imagenet", {"train": 8, "val": 2}, classes=("n01440764", "n01443537", "n01484850"), side=270
    )

    code, out, err = command(
        "train", "model=zfnet", "data=folder", f"data.root={root}", "data.batch_size=8", "+trainer.max_steps=3",
        f"data.cache={tmp_path / 'cache'}", "logger=csv", "device=cpu",
    )  # fmt: skip

    assert code == 0, err
    (folder,) = runs(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["conditions"]["map_sizes"] == [110, 55, 26, 13, 13, 13, 13, 6]
    assert results["conditions"]["parameters"] == 62_357_608 - 997 * 4097
    assert "val/top1_error_ten_crops" in results["metrics"]


def test_any_timm_model_trains(command, tiny):
    fewer = [each for each in tiny if not each.startswith("model.")]

    code, _, err = command(
        "train", *fewer, "model=timm", "model.name=resnet18", "trainer.max_epochs=1", "evaluate.ten_crops=false"
    )

    assert code == 0, err


def test_analyze_refuses_other_classes(command, tiny, tmp_path):
    command("train", *tiny, "trainer.max_epochs=1")
    (folder,) = runs(tmp_path)
    others = write_folders(tmp_path / "others", {"train": 4, "val": 4}, classes=("cat", "dog", "pig"))

    code, _, err = command("analyze", f"checkpoint={folder}", f"data.root={others}")

    assert code == 2
    assert "it lacks owl, it adds pig" in err
    assert not (tmp_path / "outputs/analyses").exists()


def test_analyze_names_the_checkpoints_that_are_there(command, tiny, tmp_path):
    command("train", *tiny, "trainer.max_epochs=1", "hydra.run.dir=outputs/run")

    code, _, err = command("analyze", "checkpoint=outputs/run/epoch_077")

    assert code == 2
    assert "no checkpoint at outputs/run/epoch_077; there are" in err
    assert "best.ckpt" in err


def test_a_second_run_in_a_busy_folder_is_refused(command, tiny, tmp_path):
    from zfscope.runs import lock

    (tmp_path / "busy").mkdir()
    with lock(tmp_path / "busy"):
        code, _, err = command("train", *tiny, "hydra.run.dir=busy")

    assert code == 2
    assert "another process works in" in err
    assert (tmp_path / "busy").is_dir()


def test_a_folder_that_holds_a_run_is_not_overwritten(command, tiny, tmp_path):
    command("train", *tiny, "trainer.max_epochs=1", "hydra.run.dir=outputs/run")
    before = (tmp_path / "outputs/run/.hydra/overrides.yaml").read_text()

    code, _, err = command("train", *tiny, "hydra.run.dir=outputs/run")

    assert code == 2
    assert "holds a run; go on with resume=outputs/run" in err
    assert (tmp_path / "outputs/run/.hydra/overrides.yaml").read_text() == before


def test_a_refused_resume_leaves_the_run_as_it_was(command, tiny, tmp_path):
    command("train", *tiny, "trainer.max_epochs=1", "hydra.run.dir=outputs/run")

    refused, _, err = command("train", "resume=outputs/run", "optim.lr=-1")
    code, _, _ = command("train", "resume=outputs/run", "trainer.max_epochs=2")

    assert (refused, code) == (2, 0), err
    assert json.loads((tmp_path / "outputs/run/results.json").read_text())["conditions"]["epochs"] == 2


def test_any_error_of_a_sweeps_job_is_its_own(command, tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train, "build_network", broken)

    code, out, _ = command("train", "-m", *tiny, "seed=0,1")

    assert code == 1
    assert out.count("failed: out of memory") == 2
    for job in ("0", "1"):
        (results,) = tmp_path.glob(f"outputs/sweeps/*/{job}/results.json")
        assert json.loads(results.read_text())["cause"] == "out of memory"


def test_two_mistakes_at_once_are_still_one_line(command, tiny):
    code, _, err = command("train", *tiny, "optim.lrr=0.1", "optim.foo=1")

    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_help_explains_the_groups_and_shows_examples():
    answer = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, timeout=120
    )

    assert answer.returncode == 0
    for words in ("model: ", "zfnet_mini", "python train.py -m model/stem=", "experiment=elpv"):
        assert words in answer.stdout


def test_a_run_whose_data_was_measured_before_repeats_the_one_that_measured_it(command, tiny, tmp_path):
    weights = []
    for name in ("first", "second"):  # the second finds the statistics in the cache
        code, _, error = command("train", *tiny, "evaluate.enabled=false", f"hydra.run.dir={tmp_path / name}")
        assert code == 0, error
        weights.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])

    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_an_experiment_of_the_other_command_is_told_which_one_it_belongs_to(command, tmp_path):
    code, _, err = command("train", "experiment=caltech101_pretrained", "data.root=DIR")

    assert code == 2
    assert "experiment=caltech101_pretrained asks a trained network: python analyze.py" in err
    assert list(tmp_path.iterdir()) == []
