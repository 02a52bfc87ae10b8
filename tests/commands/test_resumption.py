"""``resume=RUN``: a run goes on from its own config."""

import re

import pytest
import yaml

from tests.conftest import quick_first
from zfscope.commands.overrides import quoted
from zfscope.commands.resumption import overrides_of
from zfscope.runs import write_record


@pytest.fixture
def resumed(monkeypatch):
    """The configs and folders of trainings that only make their checkpoints' folder."""
    calls = []

    def train(config, folder, overrides=(), group=None, accepted=None):
        (folder / "checkpoints").mkdir(exist_ok=True)
        if accepted is not None:
            accepted()
        calls.append((config, folder, list(overrides)))
        return 1.0

    monkeypatch.setattr("zfscope.training.run.train", train)
    return calls


@pytest.mark.parametrize(
    "name",
    quick_first(
        ["lr=0.1,seed=1", "${seed}", "a@b%c#d", "a b", "it's", 'say "so"', "f(x)", "[1]", "a,b", "~x", " lead"], 2
    ),
)
def test_a_run_goes_on_whatever_its_folder_is_called(command, resumed, tmp_path, name):
    code, _, err = command("train", "seed=3", f"hydra.run.dir={quoted(name)}")
    assert code == 0, err
    for spelling in (name, quoted(tmp_path / name), str(tmp_path / name)):
        code, _, err = command("train", f"resume={spelling}", "optim.lr=0.02")

        config, folder, _ = resumed[-1]
        assert code == 0, err
        assert (config.seed, config.optim.lr) == (3, 0.02)
        assert folder.samefile(tmp_path / name) and (tmp_path / config.resume).samefile(folder)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_of_a_config_dir_goes_on_without_it(command, resumed, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/mine.yaml").write_text("# @package _global_\noptim: {weight_decay: 0.25}\n")
    command("train", "--config-dir=mine", "experiment=mine", "hydra.run.dir=run")
    (tmp_path / "mine/experiment/mine.yaml").unlink()

    code, out, err = command("train", "resume=run")

    assert code == 0, err
    assert resumed[-1][0].optim.weight_decay == 0.25
    assert "conf/ has not all that this run was started with; it goes on with its own config" in out


def test_a_run_keeps_the_values_that_conf_had_and_one_line_says_where_it_differs_today(command, resumed, tmp_path):
    command("train", "hydra.run.dir=run")
    path = tmp_path / "run/.hydra/config.yaml"
    path.write_text(re.sub("weight_decay: .*", "weight_decay: 0.125", path.read_text()))

    code, out, _ = command("train", "resume=run")

    assert code == 0
    assert resumed[-1][0].optim.weight_decay == 0.125
    assert out.strip() == "this run goes on with its own optim.weight_decay=0.125 (conf/ has 2.0 now)"


def test_nothing_is_said_where_conf_has_not_changed(command, resumed):
    command("train", "model=alexnet_mini", "+trainer.max_time=00:00:01:00", "hydra.run.dir=run")

    code, out, err = command("train", "resume=run")

    assert (code, out, err) == (0, "", "")


def test_a_damaged_list_of_overrides_does_not_stop_a_run(command, resumed, tmp_path):
    command("train", "seed=5", "hydra.run.dir=run")
    (tmp_path / "run/.hydra/overrides.yaml").write_text("- [unfinished")

    code, _, err = command("train", "resume=run")

    assert code == 0, err
    assert resumed[-1][0].seed == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, r"resume=run: no run there \(.*config\.yaml is missing\); give the folder of a run"),
        ("seed: [", r"resume=run: .*config\.yaml cannot be read"),
        ("seed: abc", r"seed='abc'"),
        ("sede: 1", r"sede=1: there is no such key; did you mean seed\?"),
    ],
)
def test_a_damaged_config_is_refused_in_one_line(command, resumed, tmp_path, damage, message):
    command("train", "hydra.run.dir=run")
    path = tmp_path / "run/.hydra/config.yaml"
    text = path.read_text()
    path.unlink()
    if damage is not None:
        path.write_text(text.replace("\nseed: 0\n", f"\n{damage}\n", 1))

    code, _, err = command("train", "resume=run")

    assert code == 2 and len(err.strip().splitlines()) == 1
    assert re.search(message, err), err


def test_typed_values_stand_on_top_and_the_next_leg_keeps_them(command, resumed, tmp_path):
    command("train", "seed=4", "trainer.max_steps=7", "hydra.run.dir=run")
    command("train", "resume=run", "optim.lr=0.125", "+trainer.max_steps=9", "~callbacks.projections")

    code, _, _ = command("train", "resume=run", "+trainer.limit_train_batches=0.5")

    config, _, overrides = resumed[-1]
    assert code == 0
    assert (config.seed, config.optim.lr, config.trainer.max_steps) == (4, 0.125, 9)
    assert config.trainer.limit_train_batches == 0.5
    assert "projections" not in config.callbacks and "filter_images" in config.callbacks
    assert overrides == [
        "seed=4", "optim.lr=0.125", "++trainer.max_steps=9", "~callbacks.projections",
        "++trainer.limit_train_batches=0.5",
    ]  # fmt: skip
    assert yaml.safe_load((tmp_path / "run/.hydra/overrides.yaml").read_text()) == overrides


def test_what_a_job_of_a_sweep_alone_knew_is_kept(command, resumed, tmp_path):
    command("train", "-m", "seed=${hydra:job.num}", "optim.lr=0.1,0.2", "hydra.sweep.dir=sweep")

    code, _, err = command("train", "resume=sweep/1")

    assert code == 0, err
    assert (resumed[-1][0].seed, resumed[-1][0].optim.lr) == (1, 0.2)


@pytest.mark.parametrize(
    ("typed", "has"),
    [
        ("model=timm", "model.name=zfnet_mini"),
        ("model/stem=11x11s4", "model.conv1.kernel_size=7"),
        ("data=folder", "data.name=phantom"),
        ("optim/schedule=constant", "optim.schedule.name=cosine"),
        ("experiment=elpv", "data.name=phantom"),
    ],
)
def test_a_group_that_cannot_change_within_a_run_is_refused_with_the_way_to_a_new_one(command, resumed, typed, has):
    command("train", "optim/schedule=cosine", "hydra.run.dir=run")

    code, _, err = command("train", "resume=run", typed)

    told = f"{typed}: the {typed.partition('=')[0]} of a run cannot change in its middle (this one has {has}); "
    told += f"start a new run with weights=run {typed}"
    assert (code, err) == (2, f"train.py: {told}\n") and len(resumed) == 1


@pytest.mark.parametrize(
    "own",
    [
        ["model=alexnet_mini"],
        ["model=alexnet_mini", "model.conv1.maps=8"],
        ["model/stem=7x7s2"],
        ["data=folder", "data.root=images"],
        ["data/augment=any_orientation"],
        ["experiment=table3_zfnet_wide", "data.root=images"],
        ["optim=mini", "optim.lr=0.125"],
        ["optim/schedule=cosine", "logger=csv", "callbacks=none", "trainer=default"],
        ["debug=overfit"],
    ],
    ids=" ".join,
)
def test_the_line_that_started_a_run_goes_on_with_it(command, resumed, own):
    command("train", *own, "hydra.run.dir=run")

    code, _, err = command("train", *own, "resume=run")
    again, _, _ = command("train", "resume=run")

    assert (code, again) == (0, 0), err
    (first, *_), (second, *_), (third, *_) = resumed
    assert second == first.model_copy(update={"resume": "run"}) == third


def test_an_option_that_a_later_leg_changed_is_not_taken_for_the_runs_own(command, resumed):
    command("train", "logger=csv", "hydra.run.dir=run")
    command("train", "resume=run", "logger.name=none")

    code, _, err = command("train", "resume=run", "logger=csv")

    assert code == 2 and err.strip().endswith("type its keys instead: logger.name=csv")


def test_a_run_goes_on_in_its_own_folder_alone(command, resumed, tmp_path):
    command("train", "hydra.run.dir=run")

    code, _, err = command("train", "resume=run", "hydra.run.dir=other")
    same, _, _ = command("train", "resume=run", f"hydra.run.dir={tmp_path / 'run'}")

    told = "hydra.run.dir=other: resume=run goes on in its own folder; leave hydra.run.dir out"
    assert (code, err) == (2, f"train.py: {told}\n")
    assert same == 0 and not (tmp_path / "other").exists()


def test_the_result_of_an_analysis_is_no_run(command, resumed, run_copy):
    analysis = ["checkpoint=outputs/run", "analysis=diagnostics", "analysis.images=3"]
    assert command("analyze", *analysis, "logger=none", "hydra.run.dir=maps")[0] == 0

    code, _, err = command("train", "resume=maps")

    told = "resume=maps: it is the result of analysis=diagnostics, not a training; it looked at outputs/run"
    assert (code, err) == (2, f"train.py: {told}\n")


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("logger=none", "logger.name=none"),
        ("debug=fast", "trainer.fast_dev_run=True"),
        ("callbacks=none", "callbacks.filter_images=null callbacks.projections=null"),
        ("optim=modern", "optim.epochs=120"),
    ],
)
def test_a_group_is_refused_with_the_keys_to_type_instead(command, resumed, typed, instead):
    command("train", "optim.name=sgd", "hydra.run.dir=run")

    code, _, err = command("train", "resume=run", typed)

    assert code == 2 and len(resumed) == 1
    assert f"{typed} chooses a whole group, but the run goes on from its own config; type" in err
    assert instead in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("overrides", [["-m", "resume=run"], ["resume=run,other"], ["resume=run", "optim.lrr=1"]])
def test_what_cannot_be_resumed_is_refused(command, resumed, overrides):
    command("train", "hydra.run.dir=run")

    code, _, err = command("train", *overrides)

    assert code == 2 and len(resumed) == 1 and len(err.strip().splitlines()) == 1


def test_the_overrides_of_a_run_are_the_old_ones_and_over_them_the_new(tmp_path):
    write_record(tmp_path, {"overrides.yaml": "- model=alexnet\n- +trainer.max_steps=3\n- optim.lr=0.1\n"})

    overrides = overrides_of(tmp_path, ["resume=RUN", "optim.lr=0.2", "++trainer.max_steps=9"])

    assert overrides == ["model=alexnet", "optim.lr=0.2", "++trainer.max_steps=9"]
