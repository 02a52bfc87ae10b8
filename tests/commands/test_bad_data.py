"""Data sets as they should not be: refused by name before any work, or read by one policy with a warning."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.refusals import refused
from tests.conftest import on_folders, write_folders

QUICK = ("callbacks=none", "trainer.max_epochs=1", "evaluate.enabled=false", "hydra.run.dir=run")


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def rename(root, name):
    """Call the class cat otherwise, in both parts."""
    for part in ("train", "val"):
        (root / part / "cat").rename(Path(os.fsdecode(os.fsencode(root / part) + b"/" + name)))


REFUSALS = {
    "no folder": (lambda root: shutil.rmtree(root), r"there is no folder .*images; give one that holds train/<class>"),
    "no parts": (
        lambda root: [shutil.rmtree(part) for part in root.iterdir()],
        r"no class folders in .*images, and no",
    ),
    "no images": (
        lambda root: [empty(folder) for folder in (root / "train").iterdir()],
        r"no images in the folders of ",
    ),
    "an empty class": (lambda root: empty(root / "train/owl"), r"no images in class folder owl of .*train; add some"),
    "an empty class of val": (
        lambda root: empty(root / "val/owl"),
        r"no images in class folder owl of .*val; add some",
    ),
    "a single class": (
        lambda root: [shutil.rmtree(root / part / name) for part in ("train", "val") for name in ("dog", "owl")],
        r"only one class, cat, in .*train; a classifier needs two",
    ),
    "other classes": (
        lambda root: (root / "val/owl").rename(root / "val/owls"),
        r"different classes; only in .*train: owl; only in .*val: owls; give both the same",
    ),
    "a loop": (
        lambda root: (root / "train/cat/loop").symlink_to(".."),
        r"the link .*cat/loop leads back .*; remove it",
    ),
    "a link to itself": (
        lambda root: (root / "train/loop").symlink_to("loop"),
        r"the link .*train/loop leads to itself",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_that_is_no_data_set_is_refused(command, folders, tmp_path, case):
    make, message = REFUSALS[case]
    make(folders)

    err = refused(command, tmp_path, "train", *on_folders(folders))

    assert re.search(message, err), err


def test_a_batch_larger_than_the_training_set_is_refused_before_the_images_are_measured(command, tiny, tmp_path):
    err = refused(command, tmp_path, "train", *tiny, "data.batch_size=25")

    assert "data.batch_size=25 is larger than the 24 training images; use a smaller" in err


def test_a_hidden_or_junk_folder_is_no_class_and_is_told(command, folders, tiny):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(folders / "train/cat", folders / "train" / name)

    with pytest.warns(UserWarning, match=r"left out 2 hidden or junk .*train: \.ipynb_checkpoints, __MACOSX"):
        code, out, err = command("train", *tiny, *QUICK)

    assert code == 0, err
    assert re.search(r"fc8 +│ +3 ", out)


def exif():
    values = Image.Exif()
    values[0x0112] = 6
    return values


def test_pictures_of_all_kinds_train_and_of_an_animation_the_first_frame_with_a_warning(command, folders, tiny):
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    odd = {
        "cmyk": (Image.new("CMYK", (40, 40), (10, 200, 30, 40)), {"format": "JPEG"}),
        "grey": (Image.new("L", (40, 40), 77), {"format": "JPEG"}),
        "palette": (Image.new("P", (40, 40), 7), {"format": "PNG"}),
        "alpha": (Image.new("RGBA", (40, 40), (9, 9, 9, 0)), {"format": "PNG"}),
        "deep": (Image.fromarray(np.full((40, 40), 40_000, np.uint16)), {"format": "PNG"}),
        "turned": (Image.new("RGB", (60, 40)), {"format": "JPEG", "exif": exif()}),
        "moving": (red, {"format": "GIF", "save_all": True, "append_images": [blue]}),
    }
    for name, (image, options) in odd.items():
        image.save(folders / f"train/cat/{name}.jpg", **options)

    with pytest.warns(UserWarning, match="animated images: only the first frame of each is read"):
        code, _, err = command("train", *tiny, *QUICK)

    assert code == 0, err


# --- names ---

ODD = b"c\na\xfft<script>=1+1"


def test_names_with_line_breaks_and_undecodable_bytes_train_and_are_escaped(command, folders, tiny, tmp_path):
    rename(folders, ODD)
    cat = os.fsencode(folders / "train") + b"/" + ODD
    shutil.copy(folders / "train/dog/1.jpg", os.fsdecode(cat + b"/a\nb\xff.jpg"))

    code, _, err = command("train", *tiny, *QUICK, "logger=csv")
    assert code == 0, err
    seen = ["checkpoint=run", "device=cpu", "logger=csv"]
    for analysis in ("invariance", "occlusion"):
        few = [f"analysis={analysis}", "analysis.images=2", f"hydra.run.dir={analysis}"]
        code, _, err = command("analyze", *seen, *few)
        assert code == 0, err
        assert list((tmp_path / analysis / "figures").rglob("*.png"))
    err = refused(command, tmp_path, "analyze", *seen, "analysis=occlusion", "analysis.target=x")
    assert r"the classes are c\na\udcfft<script>=1+1, dog, owl" in err


def test_a_class_that_would_lead_out_of_the_folder_stays_inside(command, run_copy, tmp_path):
    # Folders cannot be called so; a checkpoint of another person can say it.
    from zfscope.networks.checkpoints import read_checkpoint, write_checkpoint

    path = run_copy / "checkpoints/best.ckpt"
    content = read_checkpoint(path)
    content["zfscope"]["classes"] = ["../../../../away", "/away", "<script>"]
    write_checkpoint(content, path)
    picture = tmp_path / "..away.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    before = set(tmp_path.rglob("*"))

    code, _, err = command(
        "analyze", f"checkpoint={run_copy}", "analysis=occlusion", f"image={picture}",
        "analysis.target=../../../../away", "device=cpu", "logger=csv", "hydra.run.dir=out/seen",
    )  # fmt: skip

    assert code == 0, err
    made = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert made <= {"out", "cache"}
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {"occlusion", "strongest"}


def test_fewer_images_of_a_class_than_a_fold_wants_are_refused(command, trained_run, tmp_path):
    other = write_folders(tmp_path / "other", {"": 6})
    seen = [f"checkpoint={trained_run}", "device=cpu", "logger=none", "data=folder", f"data.root={other}"]

    for analysis, wanted in (("transfer", "images_per_class=[7]"), ("probes", "images_per_class=7")):
        err = refused(command, tmp_path, "analyze", *seen, f"analysis={analysis}", f"analysis.{wanted}")
        assert re.search(r"7 training images per class .* more than there are of cat \(6.*ask for fewer", err), err
