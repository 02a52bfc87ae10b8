"""Whole trainings by the command, on a tiny data set."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import composed, quick_first, write_folders
from zfscope import load_network
from zfscope.networks.checkpoints import read_checkpoint, run_identity
from zfscope.schema import check
from zfscope.training.run import run_name
from zfscope.training.spec import TrainConfig
from zfscope.training.trainer import check_trainer


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def read_back(run):
    """What W&B's own tool finds in an offline run: its records."""
    tool = Path(sys.executable).with_name("wandb")
    answer = subprocess.run(
        [tool, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_a_run_leaves_checkpoints_results_and_pictures(trained_run):
    content = results(trained_run)

    names = sorted(path.name for path in (trained_run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_001.ckpt", "epoch_002.ckpt", "last.ckpt"]
    assert (trained_run / "figures/filter_images/conv1/epoch_002.png").is_file()
    assert content["state"] == "finished"
    assert content["metrics"]["val/top1_error"]["unit"] == "%"
    assert content["metrics"]["val/top1_error"]["paper"] == 38.4
    assert 0 <= content["metrics"]["val/top1_error_ten_crops"]["value"] <= 100
    assert content["conditions"]["images"] == {"train": 24, "val": 12}
    assert content["conditions"]["map_sizes"][0] == 12
    assert "receptive field" in (trained_run.parent / "stdout.txt").read_text()
    network = load_network(trained_run)
    assert network.classes == ("cat", "dog", "owl")
    assert not network.training


def test_the_papers_numbers_beside_a_training_on_other_images_are_marked(trained_run):
    printed = (trained_run.parent / "stdout.txt").read_text()

    assert results(trained_run)["conditions"]["stand_in"] == "zfnet_mini on folder"
    assert "38.4 % (stand-in)" in printed and "ours are by zfnet_mini on folder" in printed


def test_a_run_records_its_identity_and_its_environment(trained_run):
    conditions = results(trained_run)["conditions"]

    environment = conditions["environment"]
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (environment["device"], environment["precision"]) == ("cpu", "32-true")
    assert environment["threads"] == torch.get_num_threads()
    assert conditions["identity"]["digest"]
    assert conditions["identity"]["legs"] == []
    assert run_identity(trained_run) == conditions["identity"]


def test_the_validation_error_is_that_of_the_best_checkpoint_by_hand(trained_run):
    error = results(trained_run)["metrics"]["val/top1_error"]["value"]

    network = load_network(trained_run)
    wrong = []
    with torch.no_grad():
        for path in (trained_run.parent / "images/val").rglob("*.jpg"):
            logits = network(network.preprocess(Image.open(path))[None])
            wrong.append(network.classes[int(logits.argmax())] != path.parent.name)

    assert error == pytest.approx(100 * np.mean(wrong))


def test_analyze_finds_the_error_that_training_found(command, trained_run, tmp_path):
    code, _, _ = command("analyze", "analysis=evaluate", f"checkpoint={trained_run}", "device=cpu")

    (analysed,) = (tmp_path / "outputs/analyses").iterdir()
    assert code == 0
    for name in ("val/top1_error", "val/top1_error_ten_crops", "val/macro_f1"):
        assert results(analysed)["metrics"][name]["value"] == results(trained_run)["metrics"][name]["value"]


def test_a_run_goes_on_in_its_folder(command, run_copy):
    number = (run_copy / ".hydra/run_id").read_text()

    code, _, _ = command("train", "resume=outputs/run", "trainer.max_epochs=4")

    assert code == 0
    assert [path.name for path in run_copy.parent.iterdir()] == ["run"]
    assert (run_copy / ".hydra/run_id").read_text() == number
    assert results(run_copy)["conditions"]["epochs"] == 4
    assert (run_copy / "figures/filter_images/conv1/epoch_004.png").is_file()


def test_a_finished_run_that_is_resumed_to_the_same_end_is_left_as_it_is(command, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}

    code, out, err = command("train", "resume=outputs/run")

    assert (code, err) == (0, "")
    assert "has finished after 6 steps" in " ".join(out.split())
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_what_a_leg_changes_is_part_of_the_identity_and_later_legs_keep_it(command, run_copy):
    short = ["evaluate.enabled=false", "callbacks.filter_images=null", "~callbacks.diagnostics"]
    before = run_identity(run_copy)

    command("train", "resume=outputs/run", "optim.weight_decay=0.01", "trainer.max_epochs=3", *short)
    changed = run_identity(run_copy / "last")
    command("train", "resume=outputs/run", "trainer.max_epochs=4")
    later = run_identity(run_copy / "last")

    (leg,) = changed["legs"]
    assert leg["step"] == 6
    assert leg["changed"]["optim.weight_decay"] == [2.0, 0.01]
    assert changed["digest"] != before["digest"]
    assert later["legs"][0] == leg and later["legs"][1]["step"] == 9
    assert "optim.weight_decay" not in later["legs"][1]["changed"]
    assert results(run_copy)["conditions"]["identity"] == later


def test_a_refused_resume_leaves_the_run_as_it_was(command, run_copy):
    overrides = (run_copy / ".hydra/overrides.yaml").read_text()

    refused, _, err = command("train", "resume=outputs/run", "optim.lr=-1")
    assert (run_copy / ".hydra/overrides.yaml").read_text() == overrides
    code, _, _ = command("train", "resume=outputs/run", "trainer.max_epochs=3")

    assert (refused, code) == (2, 0), err
    assert results(run_copy)["conditions"]["epochs"] == 3
    assert "trainer.max_epochs=3" in (run_copy / ".hydra/overrides.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("model.fc6.units=8", r"model\.fc6\.units=8: this run has 16"),
        ("data.batch_size=4", r"data\.batch_size=4: this run has 8"),
        ("seed=5", r"seed=5: this run has 0"),
        ("optim.name=adamw", r"optim\.name=adamw: this run has muon"),
        (
            "weights=x.ckpt",
            r"weights=x\.ckpt: a run that goes on has weights of its own \(this one began with weights=null\)",
        ),
    ],
)
def test_what_cannot_change_within_a_run_is_refused(command, run_copy, override, refusal):
    before = (run_copy / ".hydra/overrides.yaml").read_text()

    code, _, err = command("train", "resume=outputs/run", "trainer.max_epochs=3", override)

    assert (run_copy / ".hydra/overrides.yaml").read_text() == before
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert re.search(refusal, err), err


def test_other_images_than_the_run_has_seen_are_refused(command, run_copy, tmp_path):
    others = write_folders(tmp_path / "others", {"train": 6, "val": 4})

    code, _, err = command("train", "resume=outputs/run", f"data.root={others}", "trainer.max_epochs=3")

    assert code == 2
    assert "the training images changed since" in err


def test_a_run_goes_on_in_a_copy_of_its_images_and_a_repeated_image_is_a_warning(command, run_copy, trained_run):
    copy = shutil.copytree(trained_run.parent / "images", run_copy.parent / "copy")

    with pytest.warns(UserWarning, match="12 of the 12 validation images also stand among the training images"):
        code, _, err = command("train", "resume=outputs/run", f"data.root={copy}", "trainer.max_epochs=3")

    assert code == 0, err
    assert results(run_copy)["conditions"]["epochs"] == 3


@pytest.mark.parametrize(("part", "called"), [("train", "training"), ("val", "validation")])
def test_an_image_that_changed_under_its_name_and_size_is_refused(command, run_copy, trained_run, part, called):
    images = shutil.copytree(trained_run.parent / "images", run_copy.parent / "copy")
    changed = images / part / "dog/1.jpg"
    content = bytearray(changed.read_bytes())
    content[-10] ^= 1
    changed.write_bytes(content)
    before = (run_copy / ".hydra/overrides.yaml").read_text()

    code, _, err = command("train", "resume=outputs/run", f"data.root={images}", "trainer.max_epochs=3")

    assert code == 2 and (run_copy / ".hydra/overrides.yaml").read_text() == before
    refusal = rf"the {called} images changed since .*last\.ckpt was written, 1 of \d+: {changed}; put the old ones back"
    assert re.search(refusal, err.strip().splitlines()[-1]), err


def test_a_run_whose_data_was_measured_before_repeats_the_one_that_measured_it(command, trained_run, tmp_path):
    images, cache = trained_run.parent / "images", trained_run.parent / "cache"
    stored = [line[2:] for line in (trained_run / ".hydra/overrides.yaml").read_text().splitlines()]
    assert any(cache.iterdir()) and images.is_dir()  # the second run finds the statistics in the cache

    code, _, error = command("train", *stored[: stored.index("trainer.max_epochs=2") + 3], "hydra.run.dir=second")

    assert code == 0, error
    first, second = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (trained_run, tmp_path / "second"))
    assert all(torch.equal(second["state_dict"][name], value) for name, value in first["state_dict"].items())


def test_a_sweep_of_stems_is_separate_wandb_runs_of_one_group_that_can_be_read_back(command, tiny, tmp_path):
    other = ("model.conv2.stride", "model.conv2.padding", "logger", "data.resize", "data.crop")
    own = [override for override in tiny if not override.startswith(other)]
    own += [
        "callbacks=default",
        "data.resize=72",
        "data.crop=64",
        "~callbacks.occlusion_maps",
        "~callbacks.feature_evolution",
        "~callbacks.projections",
    ]
    stems = ["7x7s2", "11x11s4"]

    code, out, _ = command("train", "-m", *own, f"model/stem={','.join(stems)}")

    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    assert code == 0
    for job, stem in enumerate(stems):
        (run,) = (sweep / str(job) / "wandb").glob("offline-run-*")
        records = read_back(run)
        history = [record["history"]["item"] for record in records if record["type"] == "history"]
        assert stem in out
        (about,) = (record["run"] for record in records if record["type"] == "run")
        assert about["run_group"] == sweep.name
        assert f"model/stem={stem}" in about["tags"]
        assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]
        kernel, stride = map(int, re.match(r"(\d+)x\d+s(\d)", stem).groups())
        assert about["config"]["update"]["model.conv1.kernel_size"] == kernel
        assert about["config"]["update"]["model.conv1.stride"] == stride
        epochs = [row["epoch"] for row in history if "val/top1_error" in row]
        assert epochs == [0, 1]
        pictures = [row for row in history if "filter_images/conv1.filenames" in row]
        assert len(pictures) == 2
        assert len(list((run / "files/media/images/filter_images").glob("conv1_*.png"))) == 2
        assert f"wandb sync {sweep}/{job}/wandb/{run.name}".split("/")[-1] in out.replace("\n", "")


@pytest.mark.parametrize("preset", quick_first(["profile", "fast", "overfit"], 2))
def test_every_debug_preset_runs(command, tiny, preset):
    fewer = [override for override in tiny if not override.startswith(("trainer.max_epochs", "logger", "callbacks"))]
    short = ["trainer.max_epochs=2", "callbacks=none"] if preset == "overfit" else []

    code, out, err = command("train", *fewer, f"debug={preset}", *short, "hydra.run.dir=run")

    assert code == 0, err
    if preset == "profile":
        profile = Path("run/profile.txt").read_text()
        assert "run_training_batch" in profile
        shown, kept = ({" ".join(line.split()) for line in text.splitlines()} for text in (out, profile))
        assert kept <= shown  # lines are unbroken, though longer than a terminal is wide


@pytest.mark.slow
def test_the_papers_network_trains_at_224_px_on_folders_laid_out_like_imagenet(command, tmp_path):
    classes = ("n01440764", "n01443537", "n01484850")
    root = write_folders(tmp_path / "imagenet", {"train": 8, "val": 2}, classes=classes, side=270)

    code, _, err = command(
        "train", "model=zfnet", "data=folder", f"data.root={root}", "data.batch_size=8", "+trainer.max_steps=3",
        f"data.cache={tmp_path / 'cache'}", "logger=csv", "device=cpu",
    )  # fmt: skip

    assert code == 0, err
    (folder,) = (tmp_path / "outputs").iterdir()
    conditions = results(folder)["conditions"]
    assert conditions["map_sizes"] == [110, 55, 26, 13, 13, 13, 13, 6]
    assert conditions["parameters"] == 62_357_608 - 997 * 4097
    assert "val/top1_error_ten_crops" in results(folder)["metrics"]


def test_any_timm_model_trains(command, tiny):
    fewer = [override for override in tiny if not override.startswith("model.")]

    code, _, err = command(
        "train", *fewer, "model=timm", "model.name=test_resnet", "trainer.max_epochs=1", "evaluate.ten_crops=false"
    )

    assert code == 0, err


def test_analyze_refuses_other_classes(command, trained_run, tmp_path):
    others = write_folders(tmp_path / "others", {"train": 4, "val": 4}, classes=("cat", "dog", "pig"))

    code, _, err = command("analyze", f"checkpoint={trained_run}", f"data.root={others}")

    assert code == 2
    assert "it lacks owl, it adds pig" in err
    assert not (tmp_path / "outputs/analyses").exists()


def test_analyze_names_the_checkpoints_to_choose_from(command, trained_run):
    code, _, err = command("analyze", f"checkpoint={trained_run}/epoch_077")

    assert code == 2
    assert f"no checkpoint at {trained_run}/epoch_077; there are" in err
    assert "best.ckpt" in err


def test_a_row_that_the_paper_has_not_is_refused_before_any_work(command, tiny, tmp_path):
    code, _, err = command("train", *tiny, "paper=zfnet_fc2049")

    assert code == 2
    assert "paper=zfnet_fc2049: Table 3 has no such row; did you mean zfnet_fc2048?" in err
    assert not (tmp_path / "outputs").exists()


def test_keywords_of_the_trainer_are_those_that_lightning_has_and_this_project_does_not_set():
    check_trainer(check(TrainConfig, composed("+trainer.limit_train_batches=0.5")))

    with pytest.raises(ValueError, match=r"trainer\.max_stepz: .* no such keyword; did you mean max_steps\?"):
        check_trainer(check(TrainConfig, composed("+trainer.max_stepz=3")))
    with pytest.raises(ValueError, match=r"trainer\.callbacks is set by this project"):
        check_trainer(check(TrainConfig, composed("+trainer.callbacks=[]")))


def test_a_run_is_named_by_its_overrides_or_by_what_it_trains_on_what():
    config = check(TrainConfig, composed())

    assert run_name(["seed=1", "logger=none", "hydra.run.dir=x"], config) == "seed=1"
    assert run_name([], config) == "zfnet_mini phantom"
