"""A network whose training has not come to its end: an analysis tells of its own epochs, not of those to come."""

import json
import re

from tests.report.planted import analysis, ensemble, identity_of, lines_of
from zfscope.networks.checkpoints import read_checkpoint, run_progress, write_checkpoint


def digest_of(path, digest):
    """Give a checkpoint another identity."""
    content = read_checkpoint(path)
    content["zfscope"]["identity"]["digest"] = digest
    write_checkpoint(content, path)


def test_a_run_has_finished_where_its_results_are_those_of_its_last_leg(run_copy):
    last = run_copy / "checkpoints/last.ckpt"

    def told(name="last"):
        progress = run_progress(run_copy / name)
        return progress["epoch"], progress["epochs"], progress["finished"]

    assert told() == (2, 2, True) and told("epoch_001") == (1, 2, True)
    digest_of(run_copy / "checkpoints/epoch_001.ckpt", "of an earlier leg")
    assert told("epoch_001") == (1, 2, True)
    digest_of(last, "of a later leg")  # the run goes on: its results are those of its earlier end
    assert told() == (2, 2, False)
    (run_copy / "results.json").unlink()
    assert told() == (2, 2, False) and told("epoch_001") == (1, 1, False)


def test_an_analysis_of_a_run_that_trains_tells_its_own_epochs(command, run_copy, tmp_path):
    (run_copy / "results.json").unlink()

    code, out, err = command(
        "analyze", "checkpoint=outputs/run/epoch_001", "analysis.part=val", "analysis.ten_crops=false", "device=cpu",
        "logger=none", "hydra.run.dir=seen",
    )  # fmt: skip

    assert code == 0, err
    assert "the training of outputs/run/epoch_001 has not finished: the network is that after 1 epoch, 3 steps\n" in out
    run = json.loads((tmp_path / "seen/results.json").read_text())["conditions"]["run"]
    assert (run["epoch"], run["epochs"], run["steps"], run["finished"]) == (1, 1, 3, False)


def test_unfinished_networks_are_told_kept_apart_and_never_the_papers():
    trained = {"data": "imagenet", "model": "zfnet", "identity": identity_of("experiment=table3_zfnet")}
    runs = [
        analysis(
            name, "transfer", {"pretrained/15/accuracy": 50.0}, seed=seed, data="caltech101", run=trained | progress
        )
        for seed, (name, progress) in enumerate(
            {
                "whole": {},
                "told": {"epoch": 66, "epochs": 70, "finished": True},
                "cut": {"epoch": 30, "epochs": 30, "finished": False},
                "earlier": {"epoch": 12, "epochs": 12, "finished": False},
            }.items()
        )
    ]

    lines = {line.runs: line for line in lines_of(runs, 4, "pretrained", "15")}

    assert lines.keys() == {("whole", "told"), ("cut",), ("earlier",)}
    assert [line.stand_in for line in lines.values()] == [False, True, True]
    assert ", 70 epochs" in lines["whole", "told"].condition
    assert "unfinished: 30 of 70 epochs" in lines["cut",].condition


def test_an_ensemble_with_an_unfinished_member_says_so():
    run = ensemble({"zfnet": 5, "zfnet_wide": 1})
    run.conditions["members"][2] |= {"epoch": 4, "epochs": 4, "finished": False}

    (line,) = lines_of([run], 2, "six", "val_top1")

    assert line.stand_in and re.search(r"unfinished: 4 of 6 epochs in 1 of 6 networks", line.condition)
