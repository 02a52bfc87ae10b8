"""The command line: what is refused before any work, sweeps and their table, resume=, experiments."""

import gc
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.conftest import ROOT
from zfscope.commands.configs import SCHEMAS
from zfscope.commands.jobs import _loading
from zfscope.commands.lines import one_line
from zfscope.training.spec import OptimConfig


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def typed(*arguments, **environment):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=0.1", r"optim\.lrr: there is no key 'lrr'; did you mean lr\?"),
        ("modle=zfnet", r"modle.*did you mean.*model"),
        ("model=zfnett", r"zfnett.*zfnet"),
        ("optim.lr=abc", r"optim\.lr='abc'"),
        ("optim.lr=-3", r"optim\.lr=-3.*greater than 0"),
        ("optim.lr=1e400", r"optim\.lr=inf.*finite"),
        ("optim.lr=1,2", r"Ambiguous value.*--multirun"),
        ("foo", r"foo: a value is typed as key=value"),
        ("optim.lr=[", r"optim\.lr=\[: no viable alternative"),
        ("+optim.typo=1", r"optim\.typo=1: there is no such key"),
        ("model.conv1.stride=0", r"model\.conv1\.stride=0"),
        ("model.conv5.kernel_size=40", r"40x40 kernel of conv5 is larger than its map.*conv4 \d+"),
        ("data.root=nowhere", r"nowhere"),
        ("data.batch_size=1000", r"data\.batch_size=1000.*larger than the 24 training images"),
        ("+trainer.max_stepz=3", r"trainer\.max_stepz.*did you mean max_steps"),
        ("trainer.max_stepz=3", r"there is no key 'max_stepz'; did you mean max_steps\?"),
        ("+trainer.precision=7bit", r"7bit"),
        ("+trainer.callbacks=[]", r"trainer\.callbacks is set by this project"),
        ("+callbacks.mine={_target_: os.system}", r"os\.system.*trust"),
        ("trainer.max_epochs=-5", r"trainer\.max_epochs=-5"),
        ("weights=nothing.ckpt", r"no checkpoint at nothing\.ckpt"),
        ("name=${oc.env:ZFSCOPE_NOT_SET}", r"ZFSCOPE_NOT_SET"),
        ("~optim.lr", r"~optim\.lr: a value cannot be removed"),
        ("~model.conv1.maps", r"~model\.conv1\.maps: a value cannot be removed"),
        ("resume=outputs/none", r"resume=outputs/none: no run there"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing_behind(command, tiny, tmp_path, override, message):
    code, _, err = command("train", *tiny, override)

    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("train.py: ")
    assert re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=RUN", "analysis.maps=3"], r"analysis\.maps: there is no key 'maps'"),
        (["analysis=evaluat"], r"evaluat.*evaluate"),
        ([], r"checkpoint is missing; give it as checkpoint=outputs/RUN"),
        (["checkpoint=outputs/none"], r"no checkpoint at outputs/none"),
        (["checkpoint=RUN", "device=gpu7"], r"device='gpu7'"),
    ],
)
def test_analyze_refuses_alike(command, tmp_path, overrides, message):
    code, _, err = command("analyze", *overrides)

    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("analyze.py: ") and re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.strategy=x", r"strategy='x'"),
        ("trainer.max_time=x", r"trainer\.max_time=x: give days:hours:minutes:seconds, such as 00:12:00:00"),
        ("+trainer.val_check_interval=1.5", r"1\.5"),
    ],
)
def test_what_the_trainer_refuses_is_refused_before_the_images_are_measured(command, tiny, tmp_path, override, message):
    code, _, err = command("train", *tiny, override)

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("trainer", ["gpu", "gpus"])
def test_a_gpu_that_is_not_there_is_refused_with_the_key_and_the_way_to_the_cpu(command, tiny, monkeypatch, trainer):
    monkeypatch.setattr("zfscope.training.trainer.has_device", lambda kind: kind == "cpu")

    code, _, err = command("train", *tiny, f"trainer={trainer}")

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert re.search(r"trainer\.accelerator=gpu: torch finds no GPU .* with trainer=default device=cpu$", err.strip())


def test_that_torch_is_loaded_is_said_once_before_it_is(monkeypatch, capsys):
    with _loading():
        assert capsys.readouterr().out == ""  # it is there already
    monkeypatch.delitem(sys.modules, "torch")
    with _loading():
        assert capsys.readouterr().out == "loading torch and Lightning\n"


def test_a_warning_is_one_line_without_source_in_a_command_alone(command, tiny, monkeypatch):
    told = []
    monkeypatch.setattr(
        "zfscope.training.run.train",
        lambda *_, **__: told.append(warnings.formatwarning(UserWarning("two\n  lines"), UserWarning, "a.py", 3)),
    )
    before = warnings.formatwarning

    command("train", *tiny)

    assert told == ["warning: two lines\n"] and warnings.formatwarning is before
    with _loading():  # as Lightning does when it is imported
        warnings.formatwarning = print
    assert warnings.formatwarning is before


def test_a_sweep_of_one_batch_each_succeeds(command, tiny, tmp_path):
    code, out, err = command("train", "-m", *tiny, "debug=fast", "seed=0,1")

    assert code == 0, err
    assert out.count("finished") == 2


def test_images_that_cannot_be_read_are_named(command, tiny, tmp_path, folders, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # s; the loader that failed waits it
    broken = list((folders / "train" / "dog").iterdir())[:2]  # one may be left out
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])

    code, _, err = command("train", *tiny, "data.num_workers=1")
    gc.collect()  # the loader goes now, not in another test

    assert code == 2
    assert all(str(path) in err for path in broken)
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_two_mistakes_at_once_are_still_one_line(command, tiny):
    code, _, err = command("train", *tiny, "optim.lrr=0.1", "optim.foo=1")

    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_a_traceback_is_shown_to_who_wants_it():
    answer = typed("train.py", "optim.lr=-1", HYDRA_FULL_ERROR="1")

    assert answer.returncode == 1
    assert "Traceback" in answer.stderr and "optim.lr=-1" in answer.stderr


@pytest.mark.parametrize(("name", "other"), [("train", "analyze"), ("analyze", "train")])
def test_help_lists_the_groups_of_its_own_command_and_shows_examples(name, other):
    answer = typed(f"{name}.py", "--help")

    assert answer.returncode == 0
    assert f"== Examples ==\n\n  python {name}.py " in answer.stdout and f"{other}.py" not in answer.stdout
    groups = dict(re.findall(r"^([\w/]+): (.+)$", answer.stdout, re.M))
    model = SCHEMAS[name].model_fields
    assert {group for group in groups if "/" not in group} - {"experiment", "debug", "scale"} <= model.keys()
    assert groups["data/augment"] == "any_orientation, standard" and "unset" not in groups["data"]
    own, others = (
        {path.stem for path in ROOT.glob(f"conf/{folder}/*.yaml")} for folder in ("experiment", "analyze/experiment")
    )
    assert set(groups["experiment"].split(", ")) == (own if name == "train" else others)


def test_at_the_end_of_a_command_files_are_flushed_and_exit_handlers_run(tmp_path):
    code = """
import atexit, sys
from zfscope.commands.jobs import _leave_quickly
atexit.register(print, "earlier")
_leave_quickly()
atexit.register(print, "later")
class Loop: pass
loop = Loop()
loop.itself, loop.file = loop, open(sys.argv[1], "w", encoding="utf-8")
loop.file.write("all of it")
"""

    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True)

    assert (answer.returncode, answer.stdout.split(), answer.stderr) == (0, ["later", "earlier"], "")
    assert (tmp_path / "file").read_text() == "all of it"


def test_a_config_is_shown_without_a_run(tmp_path):
    answer = typed("analyze.py", "experiment=caltech101_pretrained", "--cfg", "job", "--package", "checkpoint")

    assert (answer.returncode, answer.stdout.strip()) == (0, "zoo/zfnet")


def test_shell_completion_goes_to_hydra():
    answer = typed("train.py", "-sc", "query=bash", COMP_LINE="train.py optim=pap", COMP_POINT="18")

    assert (answer.returncode, answer.stdout.split()) == (0, ["optim=paper"])


def test_an_error_of_a_loaders_process_is_told_by_its_last_line():
    report = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  …\nValueError: a.jpg is cut off"

    assert one_line(ValueError(report)) == "a.jpg is cut off"
    assert one_line(ValueError("first\nsecond")) == "first"
    with pytest.raises(ValidationError, match="lr") as refusal:  # as W&B checks its settings
        OptimConfig(lr="abc")
    assert re.search(r"1 validation error for OptimConfig lr Input should be a valid number", one_line(refusal.value))
    assert one_line(ValueError()) == "ValueError"


def test_a_key_that_only_the_jobs_of_a_sweep_have_reaches_them(command, tmp_path):
    # Hydra applies what is not swept to the config of the sweep too, whose phantom has no root.
    code, _, err = command("train", "-m", "data=folder,imagenet", "data.root=nowhere", "hydra.sweep.dir=sweep")

    assert code == 1, err
    for number in (0, 1):
        job = results(tmp_path / f"sweep/{number}")
        assert "nowhere" in job["cause"]
        assert "data.root=nowhere" in job["conditions"]["overrides"]


def test_a_key_that_no_job_of_a_sweep_has_refuses_it(command, tmp_path):
    code, _, err = command("train", "-m", "seed=1,2", "data.rot=DIR", "hydra.sweep.dir=sweep")

    assert code == 2 and err.startswith("train.py: data.rot: there is no key 'rot'")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_of_ones_own_comes_from_config_dir(command, tiny, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/fast.yaml").write_text("# @package _global_\nseed: 7\nevaluate: {enabled: false}\n")

    code, _, err = command(
        "train", "--config-dir=mine", *tiny, "experiment=fast", "callbacks=none", "hydra.run.dir=run"
    )

    assert code == 0, err
    assert results(tmp_path / "run")["conditions"]["seed"] == 7


# --- sweeps ---


def test_a_sweep_goes_on_after_a_job_that_is_refused_and_ends_with_a_table(command, tiny, tmp_path):
    code, out, _ = command(
        "train", "-m", *tiny, "trainer.max_epochs=1", "evaluate.enabled=false", "callbacks=none",
        "model.conv1.kernel_size=5,99,-1,7",
    )  # fmt: skip

    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    states = [results(sweep / str(job)) for job in range(4)]
    assert code == 1
    assert [state["state"] for state in states] == ["finished", "failed", "failed", "finished"]
    assert "99x99 kernel of conv1 is larger than its map of 28x28" in states[1]["cause"]
    assert "model.conv1.kernel_size=-1" in states[2]["cause"]
    assert "4 jobs" in out
    assert states[0]["conditions"]["overrides"][-1] == "model.conv1.kernel_size=5"


def test_the_table_is_of_the_jobs_wherever_their_folders_are(command, tiny, tmp_path):
    folders = ["hydra.sweep.dir='a b'", "hydra.sweep.subdir=x_${seed}_${hydra:job.num}"]

    code, out, _ = command("train", "-m", *tiny, "data.root=nowhere", "seed=0,0", *folders)

    assert code == 1
    assert "2 jobs" in out
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == [".lock", "multirun.yaml", "x_0_0", "x_0_1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=range(3,3)", r"seed=range\(3,3\) is empty"),
        ("data.resize=40,48", r"data\.resize=40,48: a sweep takes data\.resize once"),
        ("experiment=glob(no_such_*)", r"no_such_\*\) is empty"),
        ("model=zfnet,zfnett", r"zfnett"),
        ("seed=interval(0,1)", r"BasicSweeper does not support sweep type"),
        ("optim.lrr=1,2", r"optim\.lrr: there is no key 'lrr'; did you mean lr\?"),
    ],
)
def test_a_sweep_that_does_not_compose_is_refused_whole(command, tiny, tmp_path, override, message):
    code, _, err = command("train", "-m", *tiny, override)

    assert code == 2
    assert len(err.strip().splitlines()) == 1 and re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_whose_jobs_are_all_refused_is_refused_whole(command, tiny, tmp_path):
    for override in ("model.conv1.kernel_size=98,99", "optim.momentum=5,6", "+optim.typo=1,2"):
        code, _, err = command("train", "-m", *tiny, override)

        assert code == 2, err
        assert "all 2 jobs of the sweep are refused, the first one: " in err and len(err.strip().splitlines()) == 1
        assert not (tmp_path / "outputs").exists()


def test_a_sweep_by_its_config_ends_with_a_table_and_one_where_a_job_failed(command, tiny, tmp_path):
    code, out, _ = command(
        "train", "hydra.mode=MULTIRUN", *tiny, "data.root=nowhere", "hydra.sweep.dir='a'", "seed=0,1"
    )

    assert code == 1
    assert "2 jobs" in out and out.count("failed: ") >= 2


def test_any_error_of_a_sweeps_job_is_its_own(command, tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("zfscope.training.run.build_network", broken)

    code, out, _ = command("train", "-m", *tiny, "seed=0,1")

    assert code == 1
    assert out.count("job 0 failed: out of memory") == out.count("job 1 failed: out of memory") == 2
    for job in ("0", "1"):
        (folder,) = tmp_path.glob(f"outputs/sweeps/*/{job}")
        assert results(folder)["cause"] == "out of memory"


def test_an_analysis_that_is_refused_does_not_end_its_sweep(command, trained_run, tmp_path):
    code, out, _ = command(
        "analyze", "-m", f"checkpoint={trained_run}", "device=cpu", "analysis.part=test,val", "hydra.sweep.dir=both"
    )

    assert code == 1
    assert "2 jobs" in out
    assert [results(tmp_path / "both" / job)["state"] for job in "01"] == ["failed", "finished"]


def test_ddp_in_a_sweep_is_refused_job_by_job(command, tiny):
    code, out, _ = command("train", "-m", *tiny, "+trainer.strategy=ddp", "seed=0,1")

    assert code == 1
    for job in (0, 1):  # when it fails and below the table
        assert out.count(f"job {job} failed: DDP starts the whole sweep anew on each rank") == 2
