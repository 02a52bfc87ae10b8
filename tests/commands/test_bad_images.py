"""Images that cannot be read, in whole trainings and analyses: a few are left out, more stop them in one line."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import on_folders, write_folders
from zfscope.networks.checkpoints import read_checkpoint

QUICK = ("evaluate.enabled=false", "hydra.run.dir=run")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def rows(folder):
    with open(folder / "quarantine.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(err):
    return err.strip().splitlines()


def emptied(*paths):
    for path in paths:
        path.write_bytes(b"")


def weights(run):
    return read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]


def test_a_bad_image_in_each_part_leaves_the_training_its_pictures_and_its_numbers(command, folders, tiny, tmp_path):
    emptied(folders / "train/cat/0.jpg")
    last = sorted((folders / "val/owl").iterdir())[-1]  # the one that callbacks read first
    last.write_text("<html>")
    few = [f"callbacks.{name}=1" for name in ("occlusion_maps.images", "projections.maps", "feature_evolution.maps")]

    with pytest.warns(UserWarning, match="left out, as they cannot be read") as told:
        code, _, err = command(
            "train", *tiny, "callbacks=default", *few, "trainer.max_epochs=1", "hydra.run.dir=run", "logger=csv"
        )
    again, _, said = command(
        "analyze", "analysis=evaluate", "checkpoint=run", "device=cpu", "hydra.run.dir=ev", "logger=none"
    )

    assert (code, again) == (0, 0), err + said
    assert [str(line.message) for line in told if "pictures" in str(line.message)] == []
    assert {(row["part"], row["path"]) for row in rows(tmp_path / "run")} == {
        ("train", str(folders / "train/cat/0.jpg")),
        ("val", str(last)),
    }
    assert results(tmp_path / "run")["conditions"]["quarantined"] == {"train": 1, "val": 1}
    assert results(tmp_path / "ev")["conditions"]["quarantined"] == {"train": 0, "val": 1}
    assert [row["path"] for row in rows(tmp_path / "ev")] == [str(last)]
    for kind in ("projections", "feature_evolution", "occlusion"):
        assert list((tmp_path / "run/figures" / kind).rglob("*.png")), kind
    error = results(tmp_path / "run")["metrics"]["val/top1_error"]["value"]
    assert error == results(tmp_path / "ev")["metrics"]["val/top1_error"]["value"]
    assert (error * 11 / 100) == pytest.approx(round(error * 11 / 100))  # of 11 images, not of 12


def test_too_many_in_the_last_part_are_refused_before_the_first_step_with_their_names(command, tmp_path):
    images = write_folders(tmp_path / "images", {"train": 8, "val": 4, "test": 4})
    broken = sorted((images / "test").rglob("*.jpg"))[:5]
    emptied(*broken)

    code, out, err = command("train", *on_folders(images), *QUICK)

    assert code == 2 and len(lines(err)) == 1
    assert "5 of the 12 test images cannot be read, and at most 1 may be left out" in err
    assert all(f"{path} (it is empty (0 bytes))" in err for path in broken)
    assert "epoch" not in out and sorted(path.name for path in tmp_path.iterdir()) == ["cache", "images"]


def test_a_damaged_file_of_an_odd_name_is_left_out_and_listed_in_one_line(command, folders, tiny, tmp_path):
    Path(os.fsdecode(os.fsencode(folders / "train/cat") + b"/=a\nb\xff.jpg")).touch()

    with pytest.warns(
        UserWarning, match=r"1 of the 25 training images is left out, .*=a\\nb\\udcff\.jpg \(it is empty"
    ):
        code, _, err = command("train", *tiny, *QUICK, "trainer.max_epochs=1")

    assert code == 0, err
    (row,) = rows(tmp_path / "run")
    assert (
        row["path"].endswith(r"/cat/=a\nb\udcff.jpg")
        and len((tmp_path / "run/quarantine.csv").read_bytes().splitlines()) == 2
    )


@pytest.mark.filterwarnings("ignore:cannot read")
def test_without_the_check_a_run_stops_at_one_too_many_with_a_checkpoint_and_goes_on_when_they_are_mended(
    command, folders, tiny, tmp_path
):
    kept = shutil.copytree(folders, tmp_path / "kept")
    paths = [folders / "train" / f"{name}.jpg" for name in ("cat/0", "dog/1")]
    emptied(*paths)

    stopped, _, err = command("train", *tiny, *QUICK, "data.check=false", "data.batch_size=1", "data.mean_images=1")
    listed = rows(tmp_path / "run")
    for path in paths:
        shutil.copy(kept / path.relative_to(folders), path)
    goes_on, _, said = command("train", "resume=run")

    assert stopped == 2 and len(lines(err)) == 1, err
    assert re.search(
        r"2 of the 24 training images cannot be read, .*; put whole ones .* go on with resume=run$", err.strip()
    )
    assert {row["path"] for row in listed} == set(map(str, paths))
    assert goes_on == 0, said
    assert results(tmp_path / "run")["conditions"]["quarantined"]["train"] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot read|.*cannot be read")
@pytest.mark.parametrize("checks", ["true", "false"])
def test_weights_and_manifest_are_the_same_with_0_and_2_workers_and_in_a_run_that_goes_on(
    command, folders, tiny, tmp_path, checks
):
    emptied(folders / "train/cat/0.jpg", folders / "val/owl/8.jpg")
    options = [*tiny, "evaluate.enabled=false", f"data.check={checks}", "data.mean_images=3", "trainer.max_epochs=3"]

    for name, more in {"a": [], "b": ["data.num_workers=2"], "c": ["trainer.max_steps=4"]}.items():
        code, _, err = command("train", *options, *more, f"hydra.run.dir={name}")
        assert code == 0, err
    code, _, err = command("train", "resume=c", "trainer.max_steps=-1")
    assert code == 0, err

    texts = [(tmp_path / name / "quarantine.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1] == texts[2] and len(texts[0].splitlines()) == 3
    for name in "bc":
        torch.testing.assert_close(weights(tmp_path / name), weights(tmp_path / "a"), rtol=0, atol=0)
        own, other = (results(tmp_path / run)["metrics"] for run in ("a", name))
        assert own == other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot read|.*cannot be read|analysis|.*also stand among|.*of one grey")
def test_every_analysis_leaves_a_bad_image_out_and_lists_it(command, run_copy, trained_run, tmp_path):
    images = shutil.copytree(trained_run.parent / "images", tmp_path / "images")
    emptied(images / "train/cat/0.jpg", images / "val/owl/8.jpg")
    asked = {
        "evaluate": [],
        "projections": ["analysis.maps=2"],
        "atlas": ["analysis.pages=12"],
        "evolution": ["analysis.maps=2"],
        "occlusion": ["analysis.images=12", "analysis.shown=1"],
        "invariance": ["analysis.images=12"],
        "diagnostics": [],
        "ensemble": [],
        "embedding": ["analysis.images=11", "analysis.neighbours=3"],
        "transfer": ["analysis.images_per_class=[2]", "analysis.folds=2", "analysis.scratch_steps=3"],
        "probes": ["analysis.images_per_class=2", "analysis.folds=2"],
        "overlap": ["data@analysis.other=folder", f"analysis.other.root={images}", "analysis.parts=[val]"],
    }

    for name, options in asked.items():
        checkpoint = (
            [f"checkpoint={run_copy}"] if name != "overlap" else ["data=folder", "data.resize=32", "data.crop=28"]
        )
        few = [f"analysis={name}", f"data.root={images}", "device=cpu", "logger=none", "data.num_workers=0"]
        code, _, err = command("analyze", *few, *checkpoint, *options, f"hydra.run.dir={name}")

        assert code == 0, (name, err)
        left_out = results(tmp_path / name)["conditions"]["quarantined"]
        assert sum(left_out.values()) == len(rows(tmp_path / name)) >= 1, (name, left_out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:cannot read")
def test_an_analysis_refuses_too_many_in_one_line_and_writes_nothing(command, run_copy, trained_run, tmp_path):
    images = shutil.copytree(trained_run.parent / "images", tmp_path / "images")
    emptied(*(images / "val").rglob("*.jpg"))

    for name in ("evaluate", "occlusion", "transfer"):
        typed = ["data.num_workers=0", "device=cpu", "logger=none", f"hydra.run.dir={name}", f"data.root={images}"]
        code, _, err = command("analyze", f"analysis={name}", f"checkpoint={run_copy}", *typed)

        assert code == 2 and re.fullmatch(
            r"analyze\.py: \d+ of the 12 validation images cannot be read, .*; replace or remove them", err.strip()
        )
        assert not (tmp_path / name).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cannot read|.*cannot be read")
def test_two_ranks_train_where_all_of_one_ranks_batch_cannot_be_read(command, folders, tiny, tmp_path):
    emptied(folders / "train/cat/0.jpg", folders / "val/owl/8.jpg")
    ranks = ["trainer.devices=2", "trainer.strategy=ddp_spawn", "trainer.accelerator=cpu"]

    code, _, err = command("train", *tiny, *QUICK, *ranks, "data.batch_size=1", "trainer.max_epochs=2")

    assert code == 0, err
    assert results(tmp_path / "run")["conditions"]["quarantined"] == {"train": 1, "val": 1}
