"""``resume=SWEEP``: what is taken from a sweep's folder, what may be typed beside it, and what must be typed again."""

import pytest
import yaml

from tests.commands.refusals import refused
from tests.commands.sweeping import SIX
from zfscope.runs import lock


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["seed=4"], "seed=4: resume=six repeats a sweep, which was typed without that; leave it out"),
        (["optim.lr=0.1"], "optim.lr=0.1: resume=six repeats a sweep, which was typed without that"),
        (["hydra.sweep.dir=seven"], "hydra.sweep.dir=seven: resume=six repeats a sweep, which was typed without that"),
    ],
)
def test_what_is_typed_beside_resume_must_be_of_the_sweep(command, starts, tmp_path, typed, message):
    command("train", *SIX)

    assert refused(command, tmp_path, "train", "resume=six", *typed).startswith(f"train.py: {message}")


def test_another_launcher_may_be_typed_and_what_was_typed_before(command, starts):
    command("train", *SIX, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    starts.clear()

    code, _, err = command("train", "resume=six", "hydra/launcher=basic", "name=number_${hydra:job.num}")

    assert code == 0, err
    assert [seed for seed, *_ in starts] == [1, 2]


def test_a_sweep_is_launched_again_as_it_was(command, starts):
    command("train", *SIX, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.subdir=${seed}")
    starts.clear()

    code, _, err = command("train", "resume=six")

    assert code == 0, err
    assert [seed for seed, *_ in starts] == [1, 2]


STRANGERS = {
    "trust=[os.abort]": "'trust=[os.abort]'",
    "name=${oc.env:HOME}": "'name=${oc.env:HOME}'",
    "hydra.launcher._target_=os.abort": "hydra.launcher._target_=os.abort",
    "hydra.launcher.setup=[rm]": "'hydra.launcher.setup=[rm]'",
    "+hydra.job.env_set.A=b": "+hydra.job.env_set.A=b",
    "hydra/job_logging=evil": "hydra/job_logging=evil",
    "hydra.launcher.partition=[a]": "'hydra.launcher.partition=[a]'",
}


@pytest.mark.parametrize("override", STRANGERS)
def test_what_a_strangers_sweep_could_do_must_be_typed_again(command, starts, tmp_path, override):
    command("train", *SIX)
    path = tmp_path / "six/multirun.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["hydra"]["overrides"]["hydra" if "hydra" in override else "task"].append(override)
    path.write_text(yaml.safe_dump(saved))

    told = refused(command, tmp_path, "train", "resume=six")

    assert told == f"train.py: resume=six: of this sweep must be typed again: {STRANGERS[override]}\n"


@pytest.mark.parametrize("text", ["", "hydra: 3", "hydra: {overrides: {hydra: [], task: [3]}}", "{", "\x00"])
def test_a_sweep_whose_record_is_broken_is_refused_in_one_line(command, starts, tmp_path, text):
    command("train", *SIX)
    (tmp_path / "six/multirun.yaml").write_text(text)

    told = refused(command, tmp_path, "train", "resume=six")

    assert "six/multirun.yaml cannot be read (" in told or "six/multirun.yaml is no record of a sweep" in told


def test_an_environment_variable_that_is_typed_again_is_taken(command, starts, tmp_path, monkeypatch):
    monkeypatch.setenv("ITS_NAME", "something else")
    typed = "name=${oc.env:ITS_NAME}"
    command("train", "-m", "seed=1,2", typed, "hydra.sweep.dir=six")
    starts.clear()

    refused(command, tmp_path, "train", "resume=six")
    code, _, err = command("train", "resume=six", typed)

    assert code == 0, err
    assert [seed for seed, *_ in starts] == [1, 2]


def test_a_value_with_a_comma_in_quotes_is_one_value_and_is_found_again(command, starts):
    command("train", "-m", "seed=0,3", "name='a,b'", "hydra.sweep.dir=six")
    starts.clear()

    code, out, err = command("train", "-m", "seed=0,3", "name='a,b'", "hydra.sweep.dir=six")
    resumed, _, _ = command("train", "resume=six")

    assert (code, resumed, starts) == (0, 0, []), err


def test_damaged_results_of_a_job_are_told_and_made_again(command, starts, tmp_path):
    command("train", *SIX)
    command("train", "resume=six")
    (tmp_path / "six/0/results.json").write_text("{")
    with lock(tmp_path / "six"):
        _, out, _ = command("train", "resume=six")
    starts.clear()

    code, _, err = command("train", "resume=six")

    assert "job 0 failed: six/0/results.json is not JSON (line 1); remove it" in out
    assert (code, starts) == (0, [(0, "number_0", True)]), err
