"""Where a command works: each run has its folder alone, and what was reached stays."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from tests.conftest import ROOT, quick_first, type_command
from zfscope.runs import lock

QUICK = ("callbacks=none", "evaluate.enabled=false", "hydra.run.dir=run", "hydra.sweep.dir=sweep")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def typed(folder, name, *arguments, starter=None):
    """Type a command in a process of its own, or with torchrun in two."""
    python = (
        [sys.executable]
        if starter != "torchrun"
        else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    )
    command = [*python, str(ROOT / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def stand_in(monkeypatch):
    """A training that only notes its seed, so that many can be started."""

    def train(config, folder, overrides=(), group=None, accepted=None):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/seed").write_text(str(config.seed))
        time.sleep(float(os.environ.get("SECONDS", "0")))
        return 1.0

    monkeypatch.setattr("zfscope.training.run.train", train)


def start_together(monkeypatch, count, overrides):
    """Type a training in ``count`` processes at once, each with another seed; their exit codes."""
    children = []
    begin = time.time() + 0.3
    for seed in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(max(0.0, begin - time.time()))
                code = type_command(monkeypatch, "train", *overrides, f"seed={seed}")
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def seeds_of(folder):
    """The seed that trained in a folder, and the one that its record tells."""
    trained = (folder / "checkpoints/seed").read_text()
    return trained, str(yaml.safe_load((folder / ".hydra/config.yaml").read_text())["seed"])


def test_runs_that_start_within_a_second_have_folders_of_their_own(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    codes = start_together(monkeypatch, 10, [])

    folders = list((tmp_path / "outputs").iterdir())
    assert codes == [0] * 10
    assert len(folders) == 10
    assert sorted(seeds_of(folder)[0] for folder in folders) == list("0123456789")
    assert all(len(set(seeds_of(folder))) == 1 for folder in folders)


def test_of_runs_that_start_in_one_folder_one_runs_and_its_record_stays(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECONDS", "1.5")

    codes = start_together(monkeypatch, 10, ["hydra.run.dir=one"])

    assert sorted(codes) == [0] + [2] * 9
    trained, recorded = seeds_of(tmp_path / "one")
    assert trained == recorded == str(codes.index(0))
    overrides = yaml.safe_load((tmp_path / "one/.hydra/overrides.yaml").read_text())
    assert overrides == [f"seed={trained}"]


def test_two_sweeps_that_start_at_once_have_folders_of_their_own(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zfscope.commands.sweeps.read_results", lambda folder: {"state": "finished"})

    codes = start_together(monkeypatch, 2, ["-m", "optim.lr=0.1,0.2"])

    assert codes == [0, 0]
    assert len(list((tmp_path / "outputs/sweeps").iterdir())) == 2


@pytest.mark.parametrize("variable", quick_first(["LOCAL_RANK", "RANK", "SLURM_PROCID"], 1))
def test_another_rank_of_a_run_neither_holds_its_folder_nor_refuses_nor_records(
    command, stand_in, tmp_path, monkeypatch, variable
):
    monkeypatch.setenv(variable, "1")
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run"):
        code, _, err = command("train", "hydra.run.dir=run")

    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "checkpoints"]


def test_a_busy_folder_is_refused_and_its_record_stays(command, stand_in, tmp_path):
    command("train", "seed=1", "hydra.run.dir=busy")
    before = (tmp_path / "busy/.hydra/overrides.yaml").read_text()
    with lock(tmp_path / "busy"):
        for spelling in ("hydra.run.dir=busy", "hydra.run.dir='busy'", "hydra.run.dir= busy", "resume=busy"):
            code, _, err = command("train", "seed=2", spelling)

            assert code == 2
            assert "the run folder busy is locked by another process" in err
    assert (tmp_path / "busy/.hydra/overrides.yaml").read_text() == before


@pytest.mark.parametrize(
    "spelling",
    quick_first(['"RUN"', " RUN", "${oc.env:FOLDER}", "'RUN'", "./RUN", "x/../RUN", "${hydra:job.name}/../RUN"], 3),
)
def test_a_folder_that_holds_a_run_is_not_overwritten(command, stand_in, tmp_path, monkeypatch, spelling):
    monkeypatch.setenv("FOLDER", "RUN")
    command("train", "seed=1", "hydra.run.dir=RUN")
    (tmp_path / "x").mkdir()
    (tmp_path / "train").mkdir()

    code, _, err = command("train", "seed=2", f"hydra.run.dir={spelling}")

    assert code == 2
    assert "RUN holds a run; go on with resume=" in err and len(err.strip().splitlines()) == 1
    assert seeds_of(tmp_path / "RUN") == ("1", "1")


@pytest.mark.parametrize("spelling", quick_first(["${oc.env:FOLDER}", "six", "'six'"], 1))
def test_a_sweep_whose_jobs_would_overwrite_runs_is_refused_whole(command, stand_in, tmp_path, monkeypatch, spelling):
    monkeypatch.setenv("FOLDER", "six")
    command("train", "-m", "seed=1,2", "hydra.sweep.dir=six", "hydra.sweep.subdir=${seed}")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "six").rglob("*") if path.is_file()}

    others = ["seed=0,1", "optim.lr=0.5", f"hydra.sweep.dir={spelling}", "hydra.sweep.subdir=${seed}"]
    code, _, err = command("train", "-m", *others)

    assert code == 2
    assert err.startswith("train.py: six/1 holds a job that was started with other values (none that this one has not;")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "six").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }
    assert after.keys() == before.keys()


def test_other_jobs_of_a_sweep_may_join_its_folder(command, stand_in, tmp_path):
    names = ["hydra.sweep.dir=six", "hydra.sweep.subdir=${seed}"]
    command("train", "-m", "seed=1,2", *names)
    command("train", "-m", "seed=3", *names)

    assert [seeds_of(tmp_path / "six" / seed)[0] for seed in "123"] == list("123")


def test_jobs_that_would_share_a_folder_are_refused(command, tmp_path):
    code, _, err = command("train", "-m", "seed=1,2", "hydra.sweep.subdir=same")

    assert code == 2 and "two jobs of the sweep would have the folder" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_config_names_lies_below_the_working_directory(command, stand_in, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/away.yaml").write_text(
        "# @package _global_\nhydra: {run: {dir: /tmp/zfscope-away}, sweep: {dir: ../away}}\n"
    )
    for flags, place in (([], "hydra.run.dir=/tmp/zfscope-away"), (["-m"], "hydra.sweep.dir=../away")):
        code, _, err = command("train", *flags, "--config-dir=mine", "experiment=away")

        assert code == 2
        assert f"{place} of a config lies outside the working directory; type it" in err
    code, _, _ = command("train", f"hydra.run.dir={tmp_path.parent}/{tmp_path.name}-typed")
    assert code == 0


# --- analyses ---


def evaluate(command, run, *more, part="val"):
    return command(
        "analyze", *more, f"checkpoint={run}", f"analysis.part={part}", "analysis.ten_crops=false", "logger=none",
        "device=cpu",
    )  # fmt: skip


def test_an_analysis_does_not_write_into_the_folder_of_a_training(command, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file() and path.name != ".lock"}

    code, _, err = evaluate(command, run_copy, f"hydra.run.dir={run_copy}")

    assert code == 2 and f"{run_copy} holds a training, which would be lost" in err
    assert {
        path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file() and path.name != ".lock"
    } == before


def test_a_training_does_not_write_into_the_folder_of_an_analysis(command, tiny, trained_run, tmp_path):
    evaluate(command, trained_run, "hydra.run.dir=found")
    before = results(tmp_path / "found")

    code, _, err = command("train", *tiny, "hydra.run.dir=found")
    other, _, _ = command("analyze", "analysis=ledger", f"analysis.runs=[{trained_run}]", "hydra.run.dir=found")

    assert (code, other) == (2, 2)
    assert "found holds the result of analysis=evaluate, which would be lost" in err
    assert results(tmp_path / "found") == before


def test_an_analysis_replaces_its_own_earlier_result_once_it_has_a_new_one(command, trained_run, tmp_path):
    found = tmp_path / "found"
    evaluate(command, trained_run, "hydra.run.dir=found")
    (found / "figures").mkdir()
    (found / "figures/old.png").touch()
    record = (found / ".hydra/overrides.yaml").read_text()

    refused, _, _ = evaluate(command, trained_run, "hydra.run.dir=found", "data.root=nowhere")
    assert (results(found)["conditions"]["part"], (found / ".hydra/overrides.yaml").read_text()) == ("val", record)
    assert (found / "figures/old.png").is_file()
    code, _, err = evaluate(command, trained_run, "hydra.run.dir=found", part="train")

    assert (refused, code) == (2, 0), err
    assert results(found)["conditions"]["part"] == "train"
    assert "analysis.part=train" in (found / ".hydra/overrides.yaml").read_text()
    assert sorted(path.name for path in found.iterdir()) == [".hydra", ".lock", "results.json"]


def test_a_job_that_fails_leaves_the_earlier_result_of_its_analysis_and_is_told(command, trained_run, tmp_path):
    evaluate(
        command, trained_run, "-m", "hydra.sweep.dir=both", "hydra.sweep.subdir=${analysis.part}", part="train,val"
    )
    before = results(tmp_path / "both/val")

    folder = ["hydra.sweep.dir=both", "hydra.sweep.subdir=${analysis.part}_${hydra:job.num}"]
    code, out, _ = evaluate(command, f"{trained_run},nowhere", "-m", *folder)
    again, _, err = evaluate(
        command, "nowhere", "-m", "hydra.sweep.dir=both", "hydra.sweep.subdir=${analysis.part}", part="train,val"
    )

    assert (code, again) == (1, 2)
    assert results(tmp_path / "both/val") == before
    assert out.rpartition("2 jobs")[2].count("failed: checkpoint=nowhere: no checkpoint at nowhere") == 1
    assert "both/train holds a job that was started with other values (checkpoint=" in err


# --- other processes ---


@pytest.mark.slow
def test_jobs_that_joblib_runs_side_by_side_read_class_folders_with_processes_of_their_own(tmp_path, tiny):
    more = [override for override in tiny if not override.startswith("data.num_workers")]

    answer = typed(tmp_path, "train", "-m", "hydra/launcher=joblib", *more, "data.num_workers=2", "seed=0,1", *QUICK)

    assert answer.returncode == 0, answer.stderr
    assert [results(tmp_path / "sweep" / job)["state"] for job in "01"] == ["finished"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["lightning", "torchrun"])
def test_two_ranks_share_one_folder_and_one_record(tmp_path, tiny, starter):
    ranks = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "data.batch_size=4"]

    answer = typed(tmp_path, "train", *tiny, *QUICK, *ranks, starter=starter)
    more = typed(tmp_path, "train", "resume=run", "trainer.max_epochs=3", starter=starter)

    assert answer.returncode == 0, answer.stderr
    assert more.returncode == 0, more.stderr
    assert results(tmp_path / "run")["conditions"]["epochs"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "images", "run"]
    assert "trainer.max_epochs=3" in (tmp_path / "run/.hydra/overrides.yaml").read_text()
