"""What may be averaged: equal identity, question and data; and what the text of a condition says."""

import pytest

from tests.report.planted import ON_PHANTOM, analysis, ensemble, identity_of, lines_of, training
from zfscope.report.readings import TRAINING, Run

GAINS = {"pretrained/15/accuracy": 50.0}


def gained(folder, **more):
    return analysis(folder, "transfer", GAINS, **more)


def on_caltech(folder, *overrides, seed=0, **more):
    """A transfer to Caltech-101 from a network that these overrides trained."""
    run = {"data": "imagenet", "model": "zfnet", "identity": identity_of(*overrides)}
    return gained(folder, seed=seed, data="caltech101", run=run, **more)


# Trainings


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (["optim.lr=0.1"], "optim.lr=0.1"),
        (["model.fc6.units=256"], "model.fc6.units=256"),
        (["data.batch_size=64"], "data.batch_size=64"),
        (["data=phantom"], "phantom"),
        (["data.classes=[a,b]"], "data.classes=[a,b]"),
        (["+trainer.overfit_batches=2"], "trainer.overfit_batches=2"),
    ],
)
def test_trainings_that_differ_are_kept_apart_and_say_by_what(other, difference):
    data = "phantom" if other == ["data=phantom"] else "imagenet"
    runs = [training("a", "table3_zfnet", seed=0), training("b", "table3_zfnet", *other, data=data, seed=1)]

    lines = lines_of(runs, 3, "zfnet", "train_top1")

    assert sorted(line.runs for line in lines) == [("a",), ("b",)]
    assert all(line.n == 1 and line.interval is None and line.spread is None for line in lines)
    assert [difference in line.condition for line in lines if line.runs == ("b",)] == [True]


def test_two_learning_rates_whose_conditions_read_alike_say_what_tells_them_apart():
    slow, fast = (identity_of("experiment=table3_zfnet", f"optim.lr={rate}") for rate in (0.01, 0.1))
    runs = [training(f"r{seed}", "table3_zfnet", seed=seed, identity=(slow, fast)[seed % 2]) for seed in range(4)]

    lines = lines_of(runs, 3, "zfnet", "train_top1")

    assert {line.runs: line.condition for line in lines} == {
        ("r0", "r2"): "imagenet, 6,000 training images; 70 epochs; optim.lr=0.01",
        ("r1", "r3"): "imagenet, 6,000 training images; 70 epochs; optim.lr=0.1",
    }
    assert all(line.n == 2 and line.interval for line in lines)


def test_two_folders_of_different_images_are_kept_apart():
    runs = [
        training(f"r{seed}", "table3_zfnet", *ON_PHANTOM[1:], data="folder", seed=seed, images=images)
        for seed, images in enumerate(("0123456789abcdef" * 4, "fedcba9876543210" * 4))
    ]

    lines = lines_of(runs, 3, "zfnet", "train_top1")

    assert [line.n for line in lines] == [1, 1]
    assert [line.condition.rpartition("; ")[2] for line in lines] == ["data.images=01234567…", "data.images=fedcba98…"]


def test_where_data_lie_what_is_drawn_or_logged_and_on_which_device_makes_no_other_condition():
    quiet = ["data.root=/x", "data=imagenet", "logger=none", "callbacks.projections=null", "seed=1", "device=cpu"]
    quiet += ["hydra.run.dir=x", "data.num_workers=2", "tags=[a]", "optim.epochs=70", "checkpoints.epochs=[1]"]
    runs = [training("a", "table3_zfnet", seed=0), training("b", "table3_zfnet", *quiet, seed=1)]

    (line,) = lines_of(runs, 3, "zfnet", "train_top1")

    assert line.n == 2 and line.condition == "imagenet, 6,000 training images; 70 epochs"


@pytest.mark.parametrize("last", [{"evaluated": "last"}, {"overrides": ["paper=zfnet", "evaluate.checkpoint=last"]}])
def test_the_last_checkpoint_is_not_averaged_with_the_best_one(last):
    runs = [training(name, "table3_zfnet", seed=seed, paper="zfnet") for seed, name in enumerate("ab")]
    runs[1].conditions.update(last)

    lines = lines_of(runs, 3, "zfnet", "val_top1")

    assert [line.runs for line in lines] == [("a",), ("b",)]
    assert [line.condition.endswith("70 epochs; last checkpoint") for line in lines] == [False, True]


def test_runs_without_identity_are_listed_and_never_averaged():
    old = [training(f"old{seed}", "table3_zfnet", seed=seed, identity=None) for seed in range(2)]
    looks = [gained(f"old{seed}", seed=seed, run={"identity": None}) for seed in range(2)]
    unasked = [gained(f"new{seed}", seed=seed) for seed in range(2)]
    for run in unasked:
        run.conditions.pop("question")

    trained = lines_of([*old, training("new", "table3_zfnet")], 3, "zfnet", "train_top1")
    looked = lines_of(looks + unasked, 4, "pretrained", "15")

    assert [(line.runs, line.stand_in) for line in trained] == [(("new",), False), (("old0",), True), (("old1",), True)]
    assert trained[1].condition == "imagenet, 6,000 training images; 70 epochs; training identity not recorded"
    assert sorted(line.runs for line in looked) == [("new0",), ("new1",), ("old0",), ("old1",)]
    assert all(line.n == 1 and "not recorded" in line.condition for line in looked)


# Analyses


def test_an_ablated_network_passes_for_the_papers_own_in_no_analysis():
    own = on_caltech("own", "experiment=table3_zfnet")
    ablated = [
        on_caltech("fc2048", "experiment=table3_zfnet_fc2048"),
        on_caltech("seven", "experiment=table3_zfnet", "model.fc7=null"),
        on_caltech("wide", "experiment=table3_zfnet_wide"),
        on_caltech("some", "experiment=table3_zfnet", "data.classes=[a,b]"),
        on_caltech("short", "experiment=table3_zfnet", "+trainer.limit_train_batches=0.5"),
        on_caltech("small", "experiment=table3_zfnet", "data.crop=200"),
        on_caltech("tuned", "experiment=table3_zfnet", "weights=zoo/zfnet"),
    ]

    lines = lines_of([own, *ablated], 4, "pretrained", "15")

    assert [line.runs for line in lines if not line.stand_in] == [("own",)]
    assert len(lines) == 1 + len(ablated)
    said = {line.runs[0]: line.condition for line in lines}
    assert "model.fc6.units=2048, model.fc7.units=2048" in said["fc2048"] and "model.fc7=null" in said["seven"]


def test_an_analysis_of_some_classes_is_a_stand_in_and_another_condition():
    runs = [
        on_caltech("all", "experiment=table3_zfnet"),
        on_caltech("some", "experiment=table3_zfnet", classes=["dog", "owl"]),
    ]

    lines = lines_of(runs, 4, "pretrained", "15")

    assert [(line.runs, line.stand_in) for line in lines] == [(("all",), False), (("some",), True)]
    assert lines[1].condition.startswith("caltech101 (dog, owl); zfnet trained on imagenet")


def test_a_smaller_set_of_classes_is_told_of_data_and_training():
    some = {"classes": ["dog", "owl"], "run": {"classes": ["cat", "car"]}}
    runs = [gained("a", seed=0, **some), gained("b", seed=1)]

    lines = lines_of(runs, 4, "pretrained", "15")

    assert len(lines) == 2
    assert any(
        line.condition.startswith("phantom (dog, owl); zfnet_mini trained on phantom (cat, car)") for line in lines
    )


@pytest.mark.parametrize(
    "other",
    [
        {"folds": 3},
        {"data": "elpv"},
        {"data_fingerprint": "of other images"},
        {"files": {"exclude": "0" * 64}},
        {"checkpoint": "outputs/RUN/last"},
        {"checkpoint": "outputs/RUN/checkpoints/epoch_010.ckpt"},
        {"run": {"filter_rms": 0.2}},
    ],
)
def test_analyses_are_averaged_only_with_the_same_question_images_and_network(other):
    runs = [gained("a", seed=0), gained("b", seed=1), gained("c", seed=2, **other)]

    lines = lines_of(runs, 4, "pretrained", "15")

    assert sorted(line.runs for line in lines) == [("a", "b"), ("c",)]
    assert len({line.condition for line in lines}) == 2


def test_two_files_of_one_content_are_one_question():
    values = {"nose/fc7": 20.0}
    runs = [
        analysis(name, "correspondence", values, seed=seed, boxes=f"{name}.csv", files={"boxes": digest})
        for seed, (name, digest) in enumerate((("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)))
    ]

    lines = lines_of(runs, 1, "nose", "fc7")

    assert sorted(line.runs for line in lines) == [("a", "b"), ("c",)]


def test_how_an_analysis_was_run_and_what_it_drew_makes_no_other_condition():
    runs = [gained("a", seed=10), gained("b", seed=2, batch_size=3)]

    (line,) = lines_of(runs, 4, "pretrained", "15")

    assert line.seeds == (2, 10)
    assert line.condition == (
        "phantom; zfnet_mini trained on phantom, 6 epochs; at most 50 test images per class, 5 folds"
    )


def test_an_option_that_differs_from_its_default_is_told():
    run = analysis("a", "probes", {"svm/fc7/accuracy": 50.0}, layers=["fc7"], unusual=["layers"], run={"stem": "7x7/4"})

    (line,) = lines_of([run], 7, "svm/fc7", "caltech101")

    assert line.condition.startswith("phantom; zfnet_mini trained on phantom, 6 epochs, conv1 7x7/4; ")
    assert line.condition.endswith("5 folds, layers=[fc7]")


def test_filters_without_a_radius_are_told():
    (line,) = lines_of([gained("a", run={"filter_rms": None})], 4, "pretrained", "15")

    assert "6 epochs, filters without a radius;" in line.condition


def test_a_condition_is_one_line_whatever_a_run_wrote():
    run = training("a", "table3_zfnet", "model.name='a\n\nb\udcff'", identity=None)

    (line,) = lines_of([run], 3, "zfnet", "train_top1")

    assert line.condition.isprintable() and "a\\n\\nb" in line.condition
    line.condition.encode()


# Ensembles


def test_ensembles_of_alike_members_are_repetitions_by_their_seeds():
    groups = {"zfnet": 5, "zfnet_wide": 1}
    runs = [ensemble(groups, folder="a"), ensemble(groups, folder="b", first_seed=10), ensemble(groups, folder="c")]

    (line,) = lines_of(runs, 2, "six", "val_top1")

    assert line.n == 2 and line.over == "2 repetitions" and line.runs == ("a", "b", "c")
    assert not line.stand_in


def test_ensembles_of_other_members_are_kept_apart():
    runs = [ensemble({"zfnet": 5, "zfnet_wide": 1}, folder="a")]
    strangers = [dict(member) for member in runs[0].conditions["members"]]
    strangers[2] |= {"identity": identity_of("model=zfnet", "data=imagenet", "optim.lr=0.1")}
    ablated = [dict(member) for member in runs[0].conditions["members"]]
    ablated[2] |= {"identity": identity_of("model=zfnet", "data=imagenet", "model.fc7=null")}
    unknown = [dict(member) for member in runs[0].conditions["members"]]
    unknown[5] |= {"identity": None}
    for name, members in (("b", strangers), ("c", ablated), ("d", unknown)):
        runs.append(ensemble({"zfnet": 5, "zfnet_wide": 1}, folder=name, members=members))

    lines = lines_of(runs, 2, "six", "val_top1")

    assert {line.runs: line.stand_in for line in lines} == {("a",): False, ("b",): False, ("c",): True, ("d",): True}
    assert len({line.condition for line in lines}) == 4


def test_facts_of_odd_shapes_end_nothing():
    conditions = {"name": "transfer", "run": {"identity": {"digest": "a", "facts": 3}}, "question": {}, "files": 7}

    (line,) = lines_of([Run("a", "transfer", {"scratch/15/accuracy": {"value": 1}}, conditions)], 4, "scratch", "15")
    (own,) = lines_of(
        [Run("b", TRAINING, {"train/top1_error": {"value": 1}}, {"overrides": [], "paper": "zfnet", "members": "x"})],
        *(3, "zfnet", "train_top1"),
    )

    assert line.stand_in and own.stand_in
