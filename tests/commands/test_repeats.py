"""The same command twice, in another folder, with another number of loading processes: the same bytes."""

import hashlib
import json

import numpy as np
import pytest

from tests.commands.test_kills import digest
from tests.conftest import on_folders, quick_first, type_command, write_folders
from zfscope.networks.checkpoints import read_checkpoint

TIMES = {"seconds", "environment", "overrides"}  # the last one holds paths and the number of processes
BOXES = "image,part,x0,y0,x1,y1\n" + "".join(
    f"images/val/{image},{part},{x0},10,{x0 + 12},24\n"
    for image in ("cat/0.jpg", "cat/3.jpg", "dog/1.jpg")
    for part, x0 in (("left", 4), ("right", 22))
)
ANALYSES = {
    "projections": ("analysis.layers=[conv2,conv5]", "analysis.controls=4"),
    "atlas": ("analysis.pages=3", "analysis.controls=4"),
    "occlusion": ("analysis.images=2", "analysis.size=8", "analysis.stride=8"),
    "invariance": ("analysis.images=4",),
    "evaluate": (),
    "diagnostics": (),
    "evolution": ("analysis.maps=2",),
    "ensemble": (),
    "embedding": ("analysis.images=12", "analysis.neighbours=3"),
    "correspondence": ("analysis.boxes=boxes.csv", "analysis.masks=8"),
    "overlap": ("data=folder", "data.root=images", "data@analysis.other=folder", "analysis.other.root=images"),
    "probes": ("analysis.images_per_class=4", "analysis.folds=2", "analysis.layers=[conv5]"),
    "transfer": ("analysis.images_per_class=[4]", "analysis.folds=2", "analysis.scratch_steps=4"),
}


def train(home, workers, patch):
    """A training with all pictures in a folder of its own, with its own copy of the images."""
    images = write_folders(home / "images", {"train": 8, "val": 4})
    patch.chdir(home)
    own = [override for override in on_images(images) if not override.startswith("data.num_workers")]
    code = type_command(patch, "train", *own, "callbacks=default", f"data.num_workers={workers}", "hydra.run.dir=run")
    assert code == 0


def on_images(images):
    return [*on_folders(images), "checkpoints.epochs=[1,2]"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Two folders in which the same was trained: without loading processes, and with two."""
    made = []
    for workers in (0, 2):
        made.append(tmp_path_factory.mktemp(f"workers_{workers}"))
        with pytest.MonkeyPatch.context() as patch:
            train(made[-1], workers, patch)
    return made


def content(run):
    """SHA-256 of each picture and array of a run, and its results; times and paths left out."""
    results = json.loads((run / "results.json").read_text())
    text = json.dumps(without_times(results), sort_keys=True)
    found = {"results": text.replace(str(run.parent), "HOME")}
    for path in sorted(run.rglob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays}
    for path in sorted(path for kind in ("png", "csv", "txt", "webp", "js") for path in run.rglob(f"*.{kind}")):
        found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_a_training_gives_the_same_bytes_elsewhere_and_with_other_processes(homes):
    one, other = (content(home / "run") for home in homes)

    assert one == other
    assert sum(name.endswith(".png") for name in one) > 10
    for name in ("best", "last", "epoch_001"):
        first, second = (read_checkpoint(home / f"run/checkpoints/{name}.ckpt") for home in homes)
        assert digest(first["state_dict"]) == digest(second["state_dict"])


@pytest.mark.parametrize("name", quick_first(ANALYSES, 1))
def test_an_analysis_gives_the_same_bytes_elsewhere_and_with_other_processes(homes, monkeypatch, name):
    source = {"ensemble": ["checkpoint=[run,run/checkpoints/last.ckpt]"], "overlap": []}.get(name, ["checkpoint=run"])
    for workers, home in zip((0, 2), homes, strict=True):
        monkeypatch.chdir(home)
        (home / "boxes.csv").write_text(BOXES)
        own = [f"analysis={name}", *source, "device=cpu", "logger=none", f"data.num_workers={workers}", *ANALYSES[name]]
        assert type_command(monkeypatch, "analyze", *own, f"hydra.run.dir={name}") == 0

    one, other = (content(home / name) for home in homes)

    assert one == other
    assert len(one) > 1 or name in ("evaluate", "ensemble")


@pytest.mark.slow
def test_control_another_seed_gives_other_bytes(homes, monkeypatch):
    monkeypatch.chdir(homes[0])
    images = homes[0] / "images"
    own = [*on_images(images), "callbacks=default", "seed=1", "hydra.run.dir=other"]
    assert type_command(monkeypatch, "train", *own) == 0

    assert content(homes[0] / "other") != content(homes[0] / "run")
