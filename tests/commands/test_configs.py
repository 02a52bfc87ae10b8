"""Configs are composed and checked before anything heavy is imported."""

import subprocess
import sys

import pytest
from hydra._internal.utils import get_args_parser

from benchmarks.refusals import CASES, HEAVY
from tests.conftest import ROOT, quick_first
from zfscope.commands import guard
from zfscope.commands.configs import prepare
from zfscope.commands.guard import _usual


@pytest.mark.parametrize("case", quick_first([name for name in CASES if not name.startswith("-")], 2))
def test_what_needs_no_data_is_refused_before_torch_is_imported(tmp_path, case):
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *CASES[case]],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip

    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("import time:")]
    assert "hydra" in imported and not imported & set(HEAVY)
    if case != "TAB":
        assert answer.returncode == 2
        assert len(lines) == 1 and lines[0].startswith("train.py: ")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_composed_by_a_process_that_composed_nothing_before(monkeypatch):
    guard._usual.cache_clear()  # composed in the middle of another composition
    monkeypatch.setattr(sys, "argv", ["train.py"])

    plan = prepare("train", get_args_parser().parse_args(["-m", "seed=0,1", "logger=none"]))

    assert plan.overrides == [["seed=0", "logger=none"], ["seed=1", "logger=none"]]


@pytest.mark.parametrize(
    ("typed", "kinds"),
    [
        ([], ["transfer", "probes"]),
        (["analysis=transfer", "analysis.scratch=false"], ["transfer"]),
        (["analysis.folds=2", "analysis.test_images=4"], ["transfer", "probes"]),  # which the default analysis has not
        (["-m", "analysis=frozen,probes", "analysis.folds=2"], ["transfer", "probes"]),
    ],
)
def test_a_typed_value_replaces_what_an_experiment_sweeps(tmp_path, monkeypatch, typed, kinds):
    monkeypatch.chdir(tmp_path)
    words = [*typed, "experiment=caltech101_pretrained", "checkpoint=zoo/efficientnet_lite0"]
    monkeypatch.setattr(sys, "argv", ["analyze.py", *words])

    plan = prepare("analyze", get_args_parser().parse_args(words))

    assert plan.kinds == kinds and plan.in_sweep
    options = {word for word in typed if word.startswith("analysis.")}
    assert all(options <= {word.lower() for word in job} for job in plan.overrides)
    assert [path.name for path in plan.jobs] == kinds


def test_a_key_that_some_jobs_of_a_sweep_have_not_is_told_with_the_job(command):
    code, _, err = command("analyze", "experiment=caltech101_pretrained", "analysis.scratch=false")

    assert code == 2 and err.startswith("analyze.py: analysis.scratch: the job analysis=probes has no such key")


JOBLIB = "defaults: [{override /hydra/launcher: joblib}]"
OF_HYDRA = {
    "plain": "seed: 3",
    "joblib": JOBLIB,
    "two": f"{JOBLIB}\nhydra: {{launcher: {{n_jobs: 2}}}}",
    "params": "hydra: {sweeper: {params: {seed: '0,1'}}}",
    "log": "hydra: {callbacks: {log: {_target_: hydra.experimental.callbacks.LogJobReturnCallback}}}",
    "evil": "hydra: {job_logging: {handlers: {x: {class: os.makedirs, name: made}}}}",
    "chdir": "hydra: {job: {chdir: true}}",
}


@pytest.fixture
def plan_sweep(tmp_path, monkeypatch):
    """What ``train.py -m`` plans for these overrides, where the experiments of ``OF_HYDRA`` are there too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/experiment").mkdir(parents=True)
    for name, lines in OF_HYDRA.items():
        (tmp_path / f"mine/experiment/{name}.yaml").write_text(f"# @package _global_\n{lines}\n")
    return lambda *overrides: prepare(
        "train", get_args_parser().parse_args(["-m", "--config-dir=mine", "logger=none", *overrides])
    )


def test_a_sweep_is_planned_also_by_the_first_command_of_a_process(plan_sweep):
    _usual.cache_clear()

    plan = plan_sweep("seed=0,1")

    assert plan.overrides == [["logger=none", "seed=0"], ["logger=none", "seed=1"]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=plain,joblib"], r"experiment=joblib sets hydra/launcher, .* type hydra/launcher=joblib beside"),
        (["experiment=joblib,two"], r"experiment=joblib sets hydra/launcher, .* type hydra/launcher=joblib beside"),
        (["experiment=glob(job*)"], r"experiment=joblib sets hydra/launcher, .* type hydra/launcher=joblib beside"),
        (
            ["experiment=plain,two", "hydra/launcher=joblib"],
            r"experiment=two sets hydra\.launcher\.n_jobs, .* type hydra\.launcher\.n_jobs=2 beside it",
        ),
        (
            ["experiment=plain,params"],
            r"experiment=params sets hydra\.sweeper\.params\.seed, .* type seed=0,1 beside it",
        ),
        (["experiment=plain,log"], r"experiment=log sets hydra\.callbacks\.log\._target_, .* type \+hydra\.callbacks"),
        (
            ["experiment=joblib"],
            r"hydra\.launcher\._target_=.* of a config is not taken; type hydra/launcher",
        ),
        (["experiment=plain,evil"], r"hydra\.job_logging\.handlers\.x\.class=os\.makedirs is no class of Hydra's own"),
        (["experiment=plain,chdir"], r"hydra\.job\.chdir=true would change what the typed paths mean"),
    ],
)
def test_what_a_swept_experiment_says_to_hydra_in_vain_is_refused_with_what_to_type(plan_sweep, overrides, message):
    with pytest.raises(ValueError, match=message):
        plan_sweep(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=joblib", "hydra/launcher=joblib", "seed=0,1"],
        ["experiment=params"],
        ["experiment=plain,two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    ],
)
def test_what_hydra_reads_of_an_experiment_is_taken(plan_sweep, overrides):
    assert len(plan_sweep(*overrides).jobs) == 2
