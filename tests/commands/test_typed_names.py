"""Paths, names and flags that were typed: a refusal begins with the key and its value, and says the way out."""

import re

import pytest

from tests.commands.refusals import refused
from tests.conftest import TINY
from zfscope.commands.flags import read_flags
from zfscope.data.sources import phantom

DATA = [override for override in TINY if not override.startswith("model.")]
WRONG = {  # what is typed, and what its refusal begins with and ends with
    "data=folder data.root=/nope": r"data\.root=/nope: .*; give one that holds train/<class>",
    "data=imagenet data.root=/nope": r"data\.root=/nope: .*; get ILSVRC2012",
    "data=caltech101 data.root=/nope": r"data\.root=/nope: no 101_ObjectCategories .*; get caltech101",
    "data=voc2012 data.root=/nope": r"data\.root=/nope: no PASCAL VOC 2012 .*; get VOCtrainval",
    "data=fashion_mnist data.root=/nope": r"data\.root=/nope: no Fashion-MNIST .*; get its four",
    "data.exclude=nofile": r"data\.exclude=nofile: there is no list .*; analysis=overlap writes one",
    "data.classes=[cat,doog]": r"data\.classes=\[cat,doog\]: .*; did you mean dog\?",
    "weights=zoo/x": r"weights=zoo/x: there are no public weights .*; there are torchvision/alexnet",
    "weights=nofile.ckpt": r"weights=nofile\.ckpt: no checkpoint .*; give a run folder",
}
SIZES = ("data.resize=128", "data.crop=112")  # of the default model
OF_LIGHTNING_AND_TIMM = {
    "trainer.accelerator=tpu": r"trainer\.accelerator=tpu: .*; train on the CPU with trainer=default device=cpu",
    "trainer.accelerator=gpux": r"trainer\.accelerator=gpux: .* Available names are: ",
    "trainer.devices=abc": r"trainer\.devices=abc: .* should be an int > 0",
    "trainer.profiler=x": r"trainer\.profiler=x: .*'simple'",
    "trainer.max_time=12": r"trainer\.max_time=12: give days:hours:minutes:seconds, such as 00:12:00:00",
    "trainer.max_time=00:00:00:00": r"trainer\.max_time=00:00:00:00: that leaves no time for a step; give more",
    "+trainer.max_time=00:12": r"trainer\.max_time=00:12: give days:hours:minutes:seconds",
    "trainer.max_time={hour:1}": r"trainer\.max_time=\{'hour': 1\}: give days:hours:minutes:seconds",
    "model=timm model.name=resnet19": r"model\.name=resnet19: timm has no .*; did you mean resnet18\?",
    "model=timm model.name=qqqq": r"model\.name=qqqq: timm has no model 'qqqq'; there are .* and \d+ more$",
    "model=timm model.layers=[layer9]": r"model\.layers=\[layer9\]: resnet18 has no .*; did you mean layer4\?",
    "model=torchvision model.name=resnet181": r"model\.name=resnet181: torchvision has no .*; did you mean resnet18\?",
}
WRONG_OF_ANALYSES = {
    "analysis=diagnostics analysis.other=nope": r"analysis\.other=nope: no checkpoint .*; give a run folder",
    "analysis=diagnostics analysis.other=zoo/x": r"analysis\.other=zoo/x: there are no public weights",
    "checkpoint=nope": r"checkpoint=nope: no checkpoint .*; give a run folder",
    "checkpoint=zoo/x": r"checkpoint=zoo/x: there are no public weights",
    "analysis=ensemble checkpoint=[nope,neither]": r"checkpoint=\['nope', 'neither'\]: 2 of 2 members cannot be read",
    "data.root=/nope": r"data\.root=/nope: there is no folder",
    "data.exclude=nofile": r"data\.exclude=nofile: there is no list",
    "analysis=occlusion image=nope.png": r"image=nope\.png: there is no such file; give an image file",
    "analysis=correspondence analysis.boxes=nope.csv": r"analysis\.boxes=nope\.csv: there is no such file",
    "analysis=overlap checkpoint=null data=folder data.root=images data@analysis.other=folder "
    "analysis.other.root=/nope": r"analysis\.other\.root=/nope: there is no folder",
}


def test_a_path_or_name_that_is_wrong_is_told_with_its_key_and_the_way_out(command, tiny, tmp_path, record_property):
    for typed, message in WRONG.items():
        told = refused(command, tmp_path, "train", *tiny, *typed.split())
        assert re.match(rf"train\.py: {message}", told.strip()), told
    record_property("cases", len(WRONG))


@pytest.mark.slow  # Lightning's Trainer is made several times, timm has a thousand models
def test_so_is_what_lightning_and_timm_do_not_take(command, folders, tmp_path, record_property):
    for typed, message in OF_LIGHTNING_AND_TIMM.items():
        told = refused(command, tmp_path, "train", *DATA, *SIZES, f"data.root={folders}", *typed.split())
        assert re.match(rf"train\.py: {message}", told.strip()), told
    record_property("cases", len(OF_LIGHTNING_AND_TIMM))


def test_so_is_one_of_an_analysis(command, tiny, trained_run, tmp_path, record_property):
    for typed, message in WRONG_OF_ANALYSES.items():
        own = [f"checkpoint={trained_run}", "device=cpu", "logger=none", *typed.split()]
        told = refused(command, tmp_path, "analyze", *own)
        assert re.match(rf"analyze\.py: {message}", told.strip()), told
    record_property("cases", len(WRONG_OF_ANALYSES))


def test_a_folder_that_is_no_training_is_told_for_what_it_is(command, tiny, run_copy, tmp_path):
    (tmp_path / "outputs" / "multirun.yaml").touch()
    analysis = ["analysis=evaluate", "device=cpu", "logger=none", "analysis.ten_crops=false"]
    command("analyze", "checkpoint=outputs/run", *analysis, "hydra.run.dir=found")
    why = {
        "found": "it is the result of analysis=evaluate, not a training; it looked at outputs/run",
        "outputs": "it is a sweep: outputs/run; give one of them",
    }

    for folder, cause in why.items():
        for name, typed in (
            ("analyze", [*analysis, f"checkpoint={folder}"]),
            ("train", [*tiny, f"weights={folder}"]),
            ("train", [f"resume={folder}"]),
        ):
            if typed == ["resume=outputs"]:
                cause = "outputs/multirun.yaml is no record of a sweep; restore it"
            told = refused(command, tmp_path, name, *typed)

            assert told.startswith(f"{name}.py: {typed[-1]}: ") and told.endswith(f"{cause}\n"), told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--resume=x", "--resume=x: there is no such flag; did you mean resume=x?"),
        ("--trainer.max_epochs", "--trainer.max_epochs: there is no such flag; did you mean trainer.max_epochs=…?"),
        ("--multirum", "--multirum: there is no such flag; did you mean --multirun?"),
        ("-seed=3", "-seed=3: there is no such flag; did you mean seed=3?"),
        (
            "--config-dir",
            "--config-dir/-cd: expected one argument; a value is typed as key=value, and python train.py --hydra-help "
            "lists the flags",
        ),
    ],
)
def test_a_flag_that_is_none_is_told_in_one_line(command, tmp_path, typed, message):
    assert refused(command, tmp_path, "train", "seed=1", typed) == f"train.py: {message}\n"


def test_flags_may_stand_between_overrides(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "model=alexnet", "-m", "seed=0,1"])

    flags = read_flags("train")

    assert flags.multirun and flags.overrides == ["model=alexnet", "seed=0,1"]


def test_what_the_phantom_cannot_be_asked_is_refused_before_it_is_drawn(
    command, trained_run, tmp_path, monkeypatch, record_property
):
    monkeypatch.setattr(phantom, "_draw_into", lambda *work: pytest.fail("drawn"))
    monkeypatch.setattr(phantom, "check_writable", lambda *_, **__: None)  # this machine's disk may be nearly full
    own = [f"checkpoint={trained_run}", "device=cpu", "logger=none", "data=phantom", "data.cache=cache"]
    classes, layer = r"3 classes|classes", r"no layer 'conv9'"
    asked = {
        "analysis=evaluate": classes,
        "analysis=occlusion": classes,
        "analysis=invariance": classes,
        "analysis=ensemble": classes,
        "analysis=projections analysis.layers=[conv9]": layer,
        "analysis=evolution analysis.layers=[conv9]": layer,
        "analysis=probes analysis.layers=[conv9]": layer,
        "analysis=transfer analysis.layer=conv9": layer,
        "analysis=embedding analysis.layer=conv9": layer,
        "analysis=transfer analysis.images_per_class=[9000]": r"9000",
        "analysis=diagnostics analysis.other=nope": r"analysis\.other=nope",
    }

    for typed, message in asked.items():
        assert re.search(message, refused(command, tmp_path, "analyze", *own, *typed.split()))
    for typed in ("model=timm model.name=resnet19", "weights=zoo/x"):
        assert "; " in refused(command, tmp_path, "train", "logger=none", "data.cache=cache", *typed.split())
    record_property("cases", len(asked) + 2)
