"""What comes from the environment is seen by the program alone: everything else has its interpolation."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.commands.refusals import refused
from tests.conftest import ROOT, quick_first
from zfscope import secrets
from zfscope.commands import jobs
from zfscope.networks.checkpoints import read_checkpoint, write_checkpoint

SECRET = "hunter2-s3cr3t"
TEXT = "${oc.env:MY_API_KEY}"


@pytest.fixture(autouse=True)
def environment(monkeypatch, folders):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("IMAGES", str(folders))
    monkeypatch.setenv("RATE", "0.0123")
    monkeypatch.setenv("PLACE", "placed-elsewhere")
    yield
    secrets.forget()


def holders(folder, value=SECRET):
    """Files and folders below ``folder`` that hold a value, in their content or their name."""
    paths = [path for path in folder.rglob("*") if "images" not in path.parts and not path.is_symlink()]
    named = [path for path in paths if value in path.name]
    return named + [path for path in paths if path.is_file() and value.encode() in path.read_bytes()]


def without(tiny, *keys):
    return [one for one in tiny if not one.startswith(keys)]


def stored_config(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["zfscope"]["config"]


@pytest.mark.parametrize("logger", ["wandb", "csv"])
def test_values_from_the_environment_stand_nowhere_but_in_the_program(
    command, tiny, tmp_path, monkeypatch, record_property, logger
):
    monkeypatch.setenv("WHICH", "MY_API_KEY")
    typed = [
        *without(tiny, "data.root", "logger"),
        "data.root=${oc.env:IMAGES}",
        f"name=a_{TEXT}_b",
        "group=${name}",
        f"tags=[x,'{TEXT}','${{oc.env:${{oc.env:WHICH}}}}']",
        f"model.name={TEXT}",
        "optim.lr=${oc.env:RATE}",
        '+trainer.max_time="${oc.env:UNSET,00:01:00:00}"',
        f"logger={logger}",
    ]

    code, out, err = command("train", *typed)

    assert code == 0, err
    (run,) = (tmp_path / "outputs").iterdir()
    assert TEXT in run.name
    assert holders(tmp_path) == [] and SECRET not in out + err
    assert (
        holders(tmp_path / "outputs", "0.0123") == [] and holders(run / "checkpoints", str(tmp_path / "images")) == []
    )
    config = stored_config(run)
    assert (config["name"], config["group"], config["tags"][1:]) == (
        f"a_{TEXT}_b",
        f"a_{TEXT}_b",
        [TEXT, "${oc.env:${oc.env:WHICH}}"],
    )
    assert (config["data"]["root"], config["optim"]["lr"]) == ("${oc.env:IMAGES}", "${oc.env:RATE}")
    assert config["trainer"]["max_time"] == "${oc.env:UNSET,00:01:00:00}"
    assert yaml.safe_load((run / ".hydra/config.yaml").read_text())["data"]["root"] == "${oc.env:IMAGES}"
    results = json.loads((run / "results.json").read_text())
    assert results["conditions"]["overrides"][-6] == "group=${name}"
    assert results["conditions"]["identity"]["facts"]["optim.lr"] == "${oc.env:RATE}"
    record_property("cases", 8)


def test_control_without_interpolations_in_the_records_the_value_stands_in_files(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "read", lambda values: (OmegaConf.to_container(values, resolve=True), {}))
    monkeypatch.setattr("zfscope.commands.environment._State.open", re.compile(".*"))
    monkeypatch.setattr("zfscope.commands.environment.hide", lambda *_: None)

    code, _, err = command("train", *tiny, f"tags=['{TEXT}']", "hydra.run.dir=run")

    assert code == 0, err
    assert tmp_path / "run/checkpoints/last.ckpt" in holders(tmp_path)


def test_the_digest_of_a_training_is_of_the_values_and_its_facts_are_of_the_texts(command, tiny, tmp_path, monkeypatch):
    digests = []
    for rate in ("0.0123", "0.0124"):
        monkeypatch.setenv("RATE", rate)
        assert command("train", *tiny, "optim.lr=${oc.env:RATE}", f"hydra.run.dir={rate}")[0] == 0
        digests.append(json.loads((tmp_path / rate / "results.json").read_text())["conditions"]["identity"]["digest"])

    assert digests[0] != digests[1]


@pytest.mark.parametrize("where", quick_first(["typed", "in conf", "in an experiment", "a default", "another key"], 3))
def test_a_folder_of_images_that_the_environment_names_is_used(command, tiny, tmp_path, folders, monkeypatch, where):
    typed = without(tiny, "data.root", "trainer.max_epochs")
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/data").mkdir(parents=True)
    monkeypatch.setenv("IMAGES_ABOVE", str(folders.parent))
    text = (ROOT / "conf/data/folder.yaml").read_text()
    (tmp_path / "mine/data/own.yaml").write_text(re.sub(r"(?m)^root:.*$", "", text) + "\nroot: ${oc.env:IMAGES}\n")
    (tmp_path / "mine/experiment/own.yaml").write_text("# @package _global_\ndata: {root: '${oc.env:IMAGES}'}\n")
    typed += {
        "typed": ["data.root=${oc.env:IMAGES}"],
        "in conf": ["--config-dir=mine", "data=own"],
        "in an experiment": ["--config-dir=mine", "experiment=own"],
        "a default": [f"data.root='${{oc.env:NOT_SET,{folders}}}'"],
        "another key": ["group='${oc.env:IMAGES_ABOVE}'", "data.root='${group}/images'"],
    }[where]
    flags = [one for one in typed if one.startswith("--")]

    code, _, err = command("train", *flags, *(one for one in typed if one not in flags), "trainer.max_epochs=1")

    assert code == 0, err
    (run,) = (tmp_path / "outputs").iterdir()
    assert stored_config(run)["data"]["root"].startswith("${oc.env:")


@pytest.mark.parametrize(
    "typed",
    [
        [f"data.root=nowhere/{TEXT}"],
        [f"optim.lr={TEXT}"],
        [f"device={TEXT}"],
        [f"data={TEXT}"],
        ["callbacks=none", f"+callbacks.x={{_target_: {TEXT}}}"],
        [f"weights={TEXT}.ckpt"],
        [f"hydra.run.dir=/proc/{TEXT}"],
        ["optim.lr=${oc.env:LINES}"],
        ["optim.lr=${oc.env:QUOTED}"],
    ],
)
def test_a_refusal_shows_the_interpolation(command, tiny, tmp_path, monkeypatch, typed):
    monkeypatch.setenv("LINES", f"{SECRET}\nsecond {SECRET}")
    monkeypatch.setenv("QUOTED", f"it's\\{SECRET}")

    code, out, err = command("train", *tiny, *typed)

    assert code == 2, err
    assert SECRET not in out + err and "${oc.env:" in err
    assert len(err.strip().splitlines()) == 1


def test_a_failed_job_and_its_sweeps_table_show_the_interpolation(command, tiny, tmp_path):
    typed = [
        *without(tiny, "data.root"),
        f"name={TEXT}",
        f"data.root='{TEXT}',images",
        "hydra.sweep.subdir=${name}_${hydra:job.num}",
    ]

    code, out, err = command("train", "-m", *typed, "hydra.sweep.dir=${oc.env:PLACE}")

    assert code == 1, err
    assert (tmp_path / "placed-elsewhere").is_dir()
    assert SECRET not in out + err and TEXT in out
    assert holders(tmp_path) == []
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("placed-elsewhere/**/results.json")]
    assert sorted(states) == ["failed", "finished"]


def test_a_typed_folder_may_lie_where_the_environment_says(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ABOVE", str(tmp_path))
    typed = [*without(tiny, "data.root"), "data.root=${oc.env:ABOVE}/images"]

    assert command("train", *typed, "hydra.run.dir=${data.root}/../runs/1")[0] == 0
    code, out, err = command("train", *typed, "hydra.run.dir=${oc.env:PLACE}")

    assert code == 0, err
    assert (tmp_path / "runs/1/results.json").is_file() and (tmp_path / "placed-elsewhere/results.json").is_file()
    assert "placed-elsewhere" not in out and "saved in ${oc.env:PLACE}" in out


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"])
def test_a_folder_of_an_experiment_takes_nothing_from_the_environment(command, tiny, tmp_path, key):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    _, part, name = key.split(".")
    (tmp_path / "mine/experiment/evil.yaml").write_text(
        f"# @package _global_\nhydra: {{{part}: {{{name}: 'outputs/{TEXT}'}}}}\n"
    )

    err = refused(command, tmp_path, "train", "--config-dir=mine", *tiny, "experiment=evil")

    assert f"{key}='outputs/{TEXT}' of a config is not taken; type {key}=" in err


def test_variables_that_hydra_would_copy_into_files_are_refused(command, tiny, tmp_path):
    err = refused(command, tmp_path, "train", "-m", *tiny, "seed=0,1", "hydra.job.env_copy=[MY_API_KEY]")

    assert f"type +hydra.job.env_set.MY_API_KEY='{TEXT}'" in err


def test_variables_that_are_set_for_a_job_have_the_values(command, tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "_train", lambda *_: seen.append(jobs.os.environ["ANOTHER"]) or 0.0)

    code, _, err = command("train", *tiny, f"+hydra.job.env_set.ANOTHER=x{TEXT}")

    assert code == 0, err
    assert seen == [f"x{SECRET}"]


@pytest.mark.parametrize("shows_all", [False, True])
def test_the_traceback_of_an_unexpected_error_shows_the_interpolation(command, tiny, monkeypatch, capsys, shows_all):
    def fail(config, *_):
        raise (ValueError if shows_all else ZeroDivisionError)(f"within {config.name}")

    monkeypatch.setattr(jobs, "_train", fail)
    if shows_all:
        monkeypatch.setattr(monkeypatch, "delenv", lambda *_, **__: None)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    code, out, err = command("train", *tiny, f"name={TEXT}")

    assert code == 1
    assert SECRET not in out + err
    assert "Traceback" in err and f"within {TEXT}" in err


# --- what runs and checkpoints hold ---


def test_a_run_goes_on_with_what_it_took_from_the_environment_typed_again(command, tiny, tmp_path, monkeypatch):
    own = [*without(tiny, "data.root"), "data.root=${oc.env:IMAGES}", f"tags=[x,'{TEXT}']", "hydra.run.dir=run"]
    assert command("train", *own, "optim.lr=${oc.env:RATE}")[0] == 0
    again = ["data.root=${oc.env:IMAGES}", f"tags=[x,{TEXT}]", "optim.lr=${oc.env:RATE}"]

    err = refused(command, tmp_path, "train", "resume=run", "trainer.max_epochs=3", again[1])
    code, _, told = command("train", "resume=run", "trainer.max_epochs=3", *again)

    assert "type 'data.root=${oc.env:IMAGES}' 'optim.lr=${oc.env:RATE}'" in err
    assert code == 0, told
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert state["zfscope"]["identity"]["legs"] == [{"step": 6, "changed": {"trainer.max_epochs": [2, 3]}}]
    monkeypatch.setenv("RATE", "0.5")
    err = refused(command, tmp_path, "train", "resume=run", "trainer.max_epochs=4", *again)
    assert "optim.lr: the environment gives another value than this run had" in err
    assert command("train", "resume=run", "trainer.max_epochs=4", *again[:2], "optim.lr=0.5")[0] == 0
    assert holders(tmp_path / "run") == []


@pytest.mark.parametrize("key", ["data.root", "name", "weights", "data.cache"])
@pytest.mark.parametrize("text", [TEXT, f"a{TEXT}b", "${oc.decode:${oc.env:MY_API_KEY}}", "${oc.env:MY_API_KEY,x}"])
def test_a_run_folder_of_a_stranger_learns_nothing(command, run_copy, tmp_path, key, text):
    path = run_copy / ".hydra/config.yaml"
    values = yaml.safe_load(path.read_text())
    group = values if "." not in key else values["data"]
    group[key.removeprefix("data.")] = text
    path.write_text(yaml.safe_dump(values))

    err = refused(command, tmp_path, "train", "resume=outputs/run", "trainer.max_epochs=3")

    assert f"type '{key}={text}'" in err and SECRET not in err
    assert holders(tmp_path) == []


def test_an_interpolation_that_a_strangers_run_makes_of_parts_is_not_resolved_either(command, run_copy, tmp_path):
    path = run_copy / ".hydra/config.yaml"
    values = yaml.safe_load(path.read_text())
    values |= {"group": "${", "tags": ["oc.en", "v:MY_API_KEY}"], "name": "${oc.decode:${group}${tags[0]}${tags[1]}}"}
    path.write_text(yaml.safe_dump(values))

    err = refused(command, tmp_path, "train", "resume=outputs/run", "trainer.max_epochs=3")

    assert SECRET not in err
    assert holders(tmp_path) == []


@pytest.mark.parametrize("key", ["root", "exclude", "cache"])
def test_an_analysis_of_a_strangers_checkpoint_asks_for_the_key(command, run_copy, folders, tmp_path, key):
    path = run_copy / "checkpoints/best.ckpt"
    content = read_checkpoint(path)
    content["zfscope"]["config"]["data"][key] = TEXT
    write_checkpoint(content, path)
    typed = ["checkpoint=outputs/run", "device=cpu", "logger=none", "hydra.run.dir=found"]

    code, out, err = command("analyze", *typed)

    assert code == 2, err
    assert err.splitlines()[-1].startswith(f"analyze.py: data.{key}={TEXT} of the checkpoint's run is not resolved")
    assert SECRET not in out + err and not Path("found").exists()
    if key == "root":
        code, _, err = command("analyze", *typed, "data.root=${oc.env:IMAGES}", "data.cache=data_cache")
        assert code == 0, err
        assert holders(tmp_path / "found", str(folders)) == []


def test_an_analysis_records_its_checkpoint_by_the_interpolation(command, run_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_OF_MINE", str(run_copy))
    typed = ["checkpoint=${oc.env:RUN_OF_MINE}", "device=cpu", "logger=wandb", "hydra.run.dir=found", "data.cache=c"]

    code, out, err = command("analyze", *typed)

    assert code == 0, err
    assert holders(tmp_path / "found", str(run_copy)) == [] and str(run_copy) not in out
    conditions = json.loads((tmp_path / "found/results.json").read_text())["conditions"]
    assert conditions["checkpoint"] == "${oc.env:RUN_OF_MINE}"


# --- the mask ---


@pytest.mark.parametrize(
    ("value", "text", "told"),
    [
        ("abc", "it says abc", "it says abc"),
        ("word", "a word, swords and word_1", "a X, swords and X_1"),
        ("long-enough", "xlong-enoughx", "xXx"),
        ("it's", 'value="it\'s"', 'value="X"'),
        ("a\nlong line", "a long line; long line", "a X; X"),
        ("back\\slash", "'back\\\\slash'", "'X'"),
        ("", "nothing", "nothing"),
        ("    ", "a    b", "a    b"),
    ],
)
def test_what_is_hidden_is_masked_however_it_is_written(value, text, told):
    secrets.hide(value, "X")

    assert secrets.masked(text) == told


def test_a_word_of_conf_is_no_secret(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", "zfnet_mini")

    err = refused(command, tmp_path, "train", *tiny, "optim.lr=${oc.env:MODEL}")

    assert err.startswith("train.py: optim.lr='zfnet_mini': ")
