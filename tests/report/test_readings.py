"""Results read back: what counts as a run, whose networks it is of, and what to say where there is nothing to use."""

import numpy as np
import pytest
from scipy import stats

from tests.report.planted import ERRORS, analysis, ensemble, identity_of, metrics_of, training
from zfscope.report.readings import TRAINING, Run, is_number, read_runs, t_interval
from zfscope.runs import write_results


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (0.5, True), (-(10**300), True), (10**400, False), (float("nan"), False), (True, False), ("1", False)],
)
def test_a_number_is_finite_and_fits_in_a_float(value, expected):
    assert is_number(value) is expected


def made(folder, name):
    (folder / name).mkdir(parents=True)
    return folder / name


def test_every_result_below_the_folders_is_read_once_and_what_is_no_result_is_listed_with_its_cause(tmp_path):
    runs = tmp_path / "runs"
    write_results(made(runs, "10"), metrics_of(ERRORS), {"overrides": ["experiment=table3_zfnet"]})
    write_results(made(runs, "2"), {}, {"overrides": []}, state="failed", cause="no kernel fits")
    for name, content in {
        "3": b'{"metrics": ',
        "4": b"\xff\xfe{}",
        "5": b"[1, 2]",
        "6": b'{"metrics": {}, "conditions": {"name": 7}}',
        "8": b'{"metrics": {}, "conditions": {"name": "probes", "run": 3}}',
    }.items():
        (made(runs, name) / "results.json").write_bytes(content)
    write_results(made(runs, "7\nx"), metrics_of(ERRORS), {"name": "evaluate", "run": None})
    write_results(made(runs, "ledger"), {}, {"name": "ledger"})
    (runs / "9").symlink_to(runs / "10")

    read, causes = read_runs([str(runs), str(tmp_path / "runs/../runs/10")])

    names = [run.folder.removeprefix(f"{tmp_path}/runs/") for run in read]
    assert names == ["7\\nx", "10"] and [run.kind for run in read] == ["evaluate", TRAINING]
    causes = {name.removeprefix(f"{tmp_path}/runs/"): cause for name, cause in causes.items()}
    assert list(causes) == ["2", "3", "4", "5", "6", "8"]
    assert causes["2"] == "failed: no kernel fits" and "is not JSON" in causes["3"]
    assert "no metrics and conditions" in causes["5"] and "neither from train.py nor" in causes["6"]
    assert "conditions of another form" in causes["8"]


@pytest.mark.parametrize("conditions", [{"data": []}, {"data": {"name": "x"}}, {"data": 3}, {"run": {"data": ["x"]}}])
def test_conditions_that_are_no_texts_leave_the_result_out_with_its_cause(tmp_path, conditions):
    write_results(made(tmp_path, "1"), metrics_of(ERRORS), {"name": "probes", "run": None} | conditions)
    write_results(made(tmp_path, "2"), metrics_of(ERRORS), {"name": "probes", "run": None, "data": "caltech101"})

    read, causes = read_runs([str(tmp_path)])

    assert len(read) == 1
    (cause,) = causes.values()
    assert "data is a " in cause and cause.endswith("not a text; run again")


def test_a_folder_that_is_not_there_is_refused_with_the_one_that_was_meant(tmp_path):
    (tmp_path / "paper").mkdir()

    with pytest.raises(FileNotFoundError, match=r"no folder .*/papr; in .*: did you mean paper\?"):
        read_runs([str(tmp_path / "papr")])
    with pytest.raises(FileNotFoundError, match=r"no folder .*/zzz/deeper; in .*: there are paper"):
        read_runs([str(tmp_path / "zzz/deeper")])
    with pytest.raises(FileNotFoundError, match="no results.json below .*paper; train something first"):
        read_runs([str(tmp_path / "paper")])


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_the_interval_is_that_of_scipys_t_distribution(count):
    values = np.random.default_rng(count).normal(3, 2, count)

    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))

    assert t_interval(values.tolist()) == pytest.approx(expected, rel=1e-9)


def test_a_run_says_which_networks_it_is_of():
    own = training("a", "table3_zfnet", seed=3)
    look = analysis("b", "probes", {}, seed=4, checkpoint="outputs/RUN/last")
    early = analysis("c", "probes", {}, checkpoint="outputs/RUN/checkpoints/epoch_010.ckpt")
    six = ensemble({"zfnet": 2, "zfnet_wide": 1})
    zoo = Run("z", "evaluate", {}, {"name": "evaluate", "checkpoint": "zoo/zfnet", "run": None, "question": {}})

    assert [(network.seed, network.checkpoint) for network in own.networks] == [(3, "best")]
    assert (
        own.networks[0].digest == identity_of("data=imagenet", "experiment=table3_zfnet", "optim.epochs=70")["digest"]
    )
    assert [(network.seed, network.checkpoint) for network in look.networks] == [(4, "last")]
    assert early.networks[0].checkpoint == "epoch_010"
    assert [network.seed for network in six.networks] == [0, 1, 2]
    assert len({network.digest for network in six.networks}) == 2
    assert zoo.networks[0].digest == "zoo/zfnet" and zoo.identified


@pytest.mark.parametrize(
    "conditions",
    [
        {"overrides": []},
        {"overrides": [], "identity": {"digest": 3, "facts": []}},
        {"overrides": [], "identity": {"digest": "", "facts": {}}},
        {"name": "probes", "run": {"identity": {"digest": "a", "facts": {}}}},
        {"name": "probes", "run": {"identity": None}, "question": {}},
        {"name": "ensemble", "members": [{"identity": {"digest": "a"}}, {"seed": 1}], "question": {}},
    ],
)
def test_what_says_not_how_its_networks_were_trained_or_what_was_asked_has_no_identity(conditions):
    assert not Run("a", conditions.get("name", TRAINING), {}, conditions).identified
