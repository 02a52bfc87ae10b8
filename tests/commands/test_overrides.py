"""What was typed: paths and numbers that are meant as text, earlier spellings, experiments of the other command."""

import os

import pytest

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.commands.overrides import check_experiments, parse, quoted, read_typed
from zfscope.training.spec import TrainConfig


def values(*overrides, name="train"):
    """What Hydra reads in the overrides once they were read here, as text."""
    schema = {"train": TrainConfig, "analyze": AnalyzeConfig}[name]
    return [override.value() for override in parse(read_typed(name, overrides, schema))]


@pytest.mark.parametrize(
    ("name", "override", "value"),
    [
        ("train", "name=20261125", "20261125"),
        ("train", "group=1e5", "1e5"),
        ("train", "tags=[1,2.50,x]", ["1", "2.50", "x"]),
        ("train", "data.root=2024", "2024"),
        ("train", "data.classes=[2,10]", ["2", "10"]),
        ("train", "logger.entity=007", "007"),
        ("train", "name=Käfer = Χρυσόμηλα #1", "Käfer = Χρυσόμηλα #1"),
        ("train", "seed=7", 7),
        ("train", "+trainer.precision=16", 16),
        ("train", "name=null", None),
        ("analyze", "image=12", "12"),
        ("analyze", "analysis.layers=[1,2]", ["1", "2"]),
    ],
)
def test_a_number_where_text_is_meant_stays_as_it_was_typed(name, override, value):
    (read,) = values(override, name=name)

    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "path", ["outputs/lr=0.1", "a#b", "a(b)", "x[1]", "a@b%c", "/has space/in it", "${odd}/x", "it's", 'a"b', "a,b"]
)
def test_a_path_may_hold_what_hydras_grammar_does_not_know(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / path.lstrip("/")
    place.mkdir(parents=True)
    for key in ("data.root", "weights", "hydra.run.dir", "+resume"):
        for spelling in (path.lstrip("/"), str(place), quoted(place)):
            (read,) = values(f"{key}={spelling}")
            assert (tmp_path / read.replace("\\${", "${")).samefile(place), spelling


def test_a_home_folder_is_expanded_in_paths_alone():
    home = os.path.expanduser("~")

    assert values("data.root=~/images", 'data.cache="~/cache"') == [f"{home}/images", f"{home}/cache"]
    assert values("checkpoint=~/runs/best.ckpt", name="analyze") == [f"{home}/runs/best.ckpt"]
    assert values("name=a~b".replace("~", "-")) == ["a-b"]
    assert values("data.root=~nobody-of-this-name/x") == ["~nobody-of-this-name/x"]


def test_an_interpolation_and_a_list_of_paths_stay_what_they_are():
    assert values("data.root=${oc.env:HOME}/x") == ["${oc.env:HOME}/x"]
    assert values("checkpoint=[a,b]", name="analyze") == [["a", "b"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=4", "model=4: the group model has no such option; there are alexnet"),
        (
            "data/augment=1.5",
            r"data/augment=1\.5: the group data/augment has no such option; there are any_orientation",
        ),
        ("logger=wandbb", r"logger=wandbb: .* did you mean wandb\?"),
        ("optim/schedule=cosine,plato", "optim/schedule=plato: the group optim/schedule has no such option"),
        ("model=resnet18", r"model=resnet18: .*; a model of timm is model=timm model\.name=resnet18"),
    ],
)
def test_an_option_that_a_group_has_not_is_refused_with_those_that_it_has(override, message):
    with pytest.raises(ValueError, match=message):
        read_typed("train", [override], TrainConfig)


def test_groups_may_have_options_elsewhere(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").touch()

    assert read_typed("train", ["model=mine"], TrainConfig, str(tmp_path)) == ["model=mine"]
    analyze = ["data=unset", "data@analysis.other=elpv", "experiment=caltech101_pretrained"]
    assert read_typed("analyze", analyze, AnalyzeConfig) == analyze


@pytest.mark.parametrize(
    ("name", "experiment", "other"),
    [("train", "caltech101_pretrained", "analyze"), ("analyze", "table3_zfnet", "train")],
)
def test_an_experiment_of_the_other_command_is_told_which_one_it_belongs_to(command, tmp_path, name, experiment, other):
    code, _, err = command(name, f"experiment={experiment}", "data.root=DIR")

    assert code == 2
    message = f"experiment={experiment} belongs to {other}.py: python {other}.py experiment={experiment} …"
    assert err.strip() == f"{name}.py: {message}"
    assert list(tmp_path.iterdir()) == []


def test_each_experiment_of_a_sweep_is_checked():
    check_experiments("train", parse(["experiment=table3_zfnet,table3_alexnet", "~experiment"]))
    for sweep in ("elpv,caltech101_pretrained", "[caltech101_pretrained]", "choice(elpv,caltech101_pretrained)"):
        with pytest.raises(ValueError, match=r"experiment=caltech101_pretrained belongs to analyze\.py"):
            check_experiments("train", parse([f"experiment={sweep}"]))


def test_the_old_spelling_of_the_members_is_refused_with_the_new_one(command):
    for spelling in ("experiment=ensemble_3", "experiment=glob(ensemble_*)"):
        code, _, err = command("train", "-m", spelling)

        assert code == 2
        assert "train.py -m experiment=table3_zfnet seed=0,1,2,3,4 " in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.name=caltech101", "data=caltech101"),
        ("analysis.other.name=elpv", "data@analysis.other=elpv"),
    ],
)
def test_the_old_spelling_of_a_data_set_is_refused_with_the_new_one(command, old, new):
    code, _, err = command("analyze", "analysis=overlap", old)

    assert (code, err) == (2, f"analyze.py: {old} is spelt otherwise now: {new}\n")
