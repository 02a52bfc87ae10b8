"""Questions that cannot be answered, or only in part: refused in one line, or answered with a warning."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.commands.refusals import refused

HEADER = "image,part,x0,y0,x1,y1\n"
EYES = "a.jpg,eye,5,5,12,12\nb.jpg,eye,5,5,12,12\n"
FORMULAS = "a.jpg,=1+1,15,15,30,30\nb.jpg,=1+1,15,15,30,30\n"


@pytest.fixture
def asked(trained_run):
    """Overrides of any analysis of the trained run."""
    return [f"checkpoint={trained_run}", "device=cpu", "logger=none", "hydra.run.dir=found"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["analysis=projections", "analysis.layers=[conv9]"],
        ["analysis=occlusion", "analysis.layer=conv9"],
        ["analysis=invariance", "analysis.layers=[conv1,conv9]"],
        ["analysis=evolution", "analysis.layers=[conv9]"],
        ["analysis=transfer", "analysis.layer=conv9"],
        ["analysis=probes", "analysis.layers=[conv9]"],
        ["analysis=embedding", "analysis.layer=conv9"],
        ["analysis=embedding", "analysis.layers=[conv9]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_an_unknown_layer_is_refused_with_the_layers_that_there_are(command, asked, tmp_path, overrides):
    err = refused(command, tmp_path, "analyze", *asked, *overrides)

    key = overrides[1].partition("=")[0]
    which = " with feature maps are" if overrides[0] == "analysis=projections" else " are"
    layers = "conv1, conv2, conv3, conv4, conv5" + (", fc6, fc7, fc8" if which == " are" else "")
    assert err == f"analyze.py: {key}: no layer 'conv9'; the layers{which} {layers}\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "analysis.size=500",
            r"^analyze\.py: analysis\.size=500 is larger than the image of 28x28 pixels; take a",
        ),
        ("analysis.stride=0", r"analysis\.stride=0: .*greater than or equal to 1"),
        ("analysis.size=0", r"analysis\.size=0: .*greater than or equal to 1"),
        ("analysis.fill=nan", r"analysis\.fill=nan: .*finite"),
        ("analysis.indices=[999]", r"analysis\.indices: there is no image 999; they are numbered 0 to 11"),
        ("analysis.target=77", r"analysis\.target=77: the network has no such class; .* the classes are cat, dog, owl"),
    ],
)
def test_an_occluder_that_cannot_be_is_refused(command, asked, tmp_path, override, message):
    err = refused(command, tmp_path, "analyze", *asked, "analysis=occlusion", override)

    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis=projections", "analysis.top=40", "analysis.layers=[conv5]", "analysis.controls=0"], "top=40"),
        (["analysis=occlusion", "analysis.top=40", "analysis.images=1", "analysis.shown=1"], "top=40"),
        (["analysis=invariance", "analysis.images=40"], "images=40"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_where_there_are_fewer_images_than_asked_for_all_are_taken_with_a_warning(
    command, asked, tmp_path, overrides, message
):
    with pytest.warns(UserWarning, match=f"analysis.{message}, but there are 12 images: all of them are taken"):
        code, _, err = command("analyze", *asked, *overrides)

    assert code == 0, err
    assert (tmp_path / "found/results.json").is_file()


def test_the_top_of_a_few_images_is_those_few(command, asked, tmp_path):
    few = ["analysis=projections", "analysis.top=20", "analysis.layers=[conv1]", "analysis.controls=0"]

    with pytest.warns(UserWarning, match="analysis.top=20, but there are 12 images"):
        command("analyze", *asked, *few)

    with np.load(tmp_path / "found/arrays.npz") as arrays:
        indices = arrays["conv1/indices"]
    assert all(sorted(row[row >= 0]) == list(range(12)) for row in indices)


# --- CSV ---


def boxes(folder, images, text, encoding="utf-8"):
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(next((images / "train/cat").iterdir()), folder / name)
    (folder / "boxes.csv").write_text(text, encoding=encoding)
    return ["analysis=correspondence", "analysis.boxes=boxes.csv", "analysis.masks=3", "analysis.layers=[fc7]"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("y1", "z") + EYES, r"boxes\.csv, line 1: no column y1; the header must name image,part"),
        (HEADER + EYES.replace("12", "99"), r"boxes\.csv, line 2: the box .* outside the image of 40x40 px; give 0 <="),
        (HEADER + EYES.replace("5,5", "nan,5"), r"boxes\.csv, line 2: x0=nan is no number; give pixels"),
        (HEADER + EYES.replace("eye", "../eye"), r"boxes\.csv, line 2: a part cannot be called '\.\./eye'"),
        (HEADER + EYES + EYES, r"boxes\.csv, line 4: eye of a\.jpg stands in line 2 already; remove one"),
    ],
    ids=["column", "outside", "nan", "label", "duplicate"],
)
def test_a_csv_that_does_not_fit_is_refused_with_its_line(command, asked, folders, tmp_path, text, message):
    overrides = boxes(tmp_path, folders, text)

    err = refused(command, tmp_path, "analyze", *asked, *overrides)

    assert re.search(message, err), err


def test_a_csv_with_a_bom_and_formulas_is_read_and_they_stay_text(command, asked, folders, tmp_path):
    overrides = boxes(tmp_path, folders, HEADER + EYES + FORMULAS, encoding="utf-8-sig")

    code, _, err = command("analyze", *asked, *overrides)  # whose data has no test part: the CSV needs none

    assert code == 0, err
    metrics = json.loads((tmp_path / "found/results.json").read_text())["metrics"]
    assert {"=1+1/fc7", "eye/fc7"} <= metrics.keys()
