"""What stands in for the paper's network, data or protocol: decided once, for the ledger and beside a single result."""

import pytest

from tests.report.planted import ON_PHANTOM, analysis, ensemble, finding, identity_of, lines_of, training
from zfscope.report.conditions import stand_in

PRETRAINED = {"pretrained/15/accuracy": 50.0}
OWN, MINI = "zfnet trained on imagenet, 70 epochs, on ", "zfnet_mini trained on phantom, 6 epochs, on "
UNKNOWN, NOT_THAT = ", training identity not recorded", ", not the network of paper="


def of_own(name="transfer", values=PRETRAINED, data="caltech101", **more):
    """An analysis of the paper's own network."""
    run = {"data": "imagenet", "model": "zfnet", "epochs": 70, "identity": identity_of("experiment=table3_zfnet")}
    return analysis("own", name, values, data=data, run=run, **more)


def test_the_papers_own_network_data_and_protocol_are_no_stand_in():
    assert stand_in(of_own()) is None
    assert stand_in(of_own("probes", {"svm/fc7/accuracy": 50.0}, "caltech256")) is None
    assert stand_in(of_own("evaluate", {"val/top1_error": 40.0}, "imagenet"), "zfnet") is None
    assert stand_in(training("a", "table3_zfnet_fc2048"), "zfnet_fc2048") is None
    assert stand_in(ensemble({"zfnet": 5, "zfnet_wide": 1})) is None
    assert stand_in(analysis("zoo", "transfer", PRETRAINED, data="voc2012", checkpoint="zoo/zfnet",
                             run={"identity": None})) is None  # fmt: skip


@pytest.mark.parametrize(
    ("run", "row", "expected"),
    [
        (analysis("a", "transfer", PRETRAINED, data="caltech101"), None, MINI + "caltech101"),
        (of_own(data="phantom"), None, OWN + "phantom"),
        (of_own(classes=["dog"]), None, OWN + "caltech101 (dog)"),
        (of_own(clutter=True), None, OWN + "caltech101 (with background)"),
        (of_own(test_images=5), None, OWN + "caltech101, test_images=5"),
        (of_own(layer="conv5"), None, OWN + "caltech101, layer=conv5"),
        (of_own(shuffle_labels=True), None, OWN + "caltech101, shuffle_labels=True"),
        (of_own("evaluate", data="imagenet"), "alexnet", "zfnet, 70 epochs, on imagenet" + NOT_THAT + "alexnet"),
        (training("a", "table3_zfnet", *ON_PHANTOM, data="phantom"), "zfnet", "zfnet_mini on phantom"),
        (training("a", "table3_zfnet", "model.fc7=null"), "zfnet", "zfnet on imagenet" + NOT_THAT + "zfnet"),
        (training("a", "table3_zfnet", "data.classes=[a,b]"), "zfnet", "zfnet on imagenet (a, b)" + NOT_THAT + "zfnet"),
        (training("a", "table3_zfnet"), {"val/top1_error": 38.4}, "zfnet on imagenet, for no row of Table 3"),
        (training("a", "table3_zfnet", identity=None), "zfnet", "a network on imagenet" + UNKNOWN),
        (of_own("correspondence", {"nose/fc7": 20.0}, None), None, OWN + "images of your own"),
    ],
)  # fmt: skip
def test_a_stand_in_is_told_by_network_data_and_protocol(run, row, expected):
    assert stand_in(run, row) == expected


def test_an_ablated_network_is_told_by_its_layers():
    run = of_own()
    run.conditions["run"]["identity"] = identity_of("experiment=table3_zfnet", "model.fc7=null")

    assert "model.fc7=null" in stand_in(run)


def overlap(other, data="imagenet", **more):
    run = analysis("a", "correspondence", {"overlap/other_duplicates": 40}, data=data, **more)
    run.conditions.update(name="overlap", run=None, checkpoint=None, question={"other": other})
    return type(run)("a", "overlap", run.metrics, run.conditions)


def test_an_overlap_is_of_two_whole_data_sets_and_of_no_network():
    assert stand_in(overlap({"name": "caltech101", "classes": None})) is None
    assert stand_in(overlap({"name": "caltech101", "classes": ["dog"]})) == "on imagenet"
    assert stand_in(overlap({"name": "caltech101"}, classes=["a", "b"])) == "on imagenet (a, b)"


def test_the_ledger_and_a_single_result_judge_alike():
    runs = [of_own(), of_own(test_images=5), of_own(classes=["dog"]), analysis("m", "transfer", PRETRAINED)]

    for run in runs:
        (line,) = lines_of([run], 4, "pretrained", "15")
        assert line.stand_in == (stand_in(run) is not None)


# Values that analyses do not record

PATIENCE = "+callbacks.stop={{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:{}}}"
UNRECORDED = [
    ("optim.nesterov=false", "optim.nesterov=true", "optim.nesterov=true"),
    (PATIENCE.format(3), PATIENCE.format(5), "patience=5"),
    ("data.augment.erase=0.0", "data.augment.erase=0.5", "data.augment.erase=0.5"),
    ("+trainer.gradient_clip_val=2.0", "+trainer.gradient_clip_val=1.0", "gradient_clip_val=1.0"),
]


@pytest.mark.parametrize(("one", "other", "difference"), UNRECORDED)
def test_networks_that_differ_in_a_value_that_analyses_do_not_record_are_kept_apart(one, other, difference):
    identities = [identity_of("experiment=table3_zfnet", *ON_PHANTOM, override) for override in (one, other)]
    values = {"svm/fc7/accuracy": {"value": 60.0}, "svm/conv1/accuracy": {"value": 50.0}}
    runs = [analysis(f"r{seed}", "probes", values, seed=seed, run={"identity": identities[seed % 2]})
            for seed in range(4)]  # fmt: skip

    in_ledger = lines_of(runs, 7, "svm/fc7", "caltech101")
    in_claim = finding(runs, "Probes").results[0][1]

    for lines in (in_ledger, in_claim):
        assert sorted(line.runs for line in lines) == [("r0", "r2"), ("r1", "r3")]
        assert [difference in line.condition for line in lines if line.runs == ("r1", "r3")] == [True]
        assert [difference in line.condition for line in lines if line.runs == ("r0", "r2")] == [False]


@pytest.mark.parametrize(("one", "other", "difference"), UNRECORDED)
def test_trainings_that_differ_in_it_are_kept_apart_too(one, other, difference):
    runs = [
        training(f"r{seed}", "table3_zfnet", *ON_PHANTOM, (one, other)[seed % 2], data="phantom", seed=seed)
        for seed in range(4)
    ]

    lines = lines_of(runs, 3, "zfnet", "val_top1")

    assert sorted(line.runs for line in lines) == [("r0", "r2"), ("r1", "r3")]


def test_networks_that_differ_in_it_are_no_twins_of_a_claim():
    held, free = (identity_of(*ON_PHANTOM, f"model.filter_rms={radius}") for radius in ("0.1", "null"))
    hasty = identity_of(*ON_PHANTOM, "model.filter_rms=null", "optim.nesterov=false")
    runs = {
        name: analysis(name, "diagnostics", {"conv1/filter_dominance": 3.0}, run={"identity": identity})
        for name, identity in (("held", held), ("free", free), ("hasty", hasty))
    }

    alike = finding([runs["held"], runs["free"]], "Renormalisation").results[0][1]
    apart = finding([runs["held"], runs["hasty"]], "Renormalisation").results[0][1]

    assert len(alike) == 1 and not apart


@pytest.mark.parametrize("data", ["imagenet", "phantom"])
@pytest.mark.parametrize("experiment", ["table3_zfnet_fc2048", "table3_alexnet", "table3_zfnet_wide"])
def test_probes_of_another_row_of_table_3_are_not_the_papers_table_7(experiment, data):
    values = {"svm/fc7/accuracy": 60.0}
    runs = [
        analysis(name, "probes", values, data="caltech101", run={"identity": identity_of(f"experiment={each}", *on)})
        for name, each, on in (
            ("own", "table3_zfnet", ["data=imagenet"]),
            ("ablated", experiment, [f"data={data}"]),
            ("small", "table3_zfnet", ON_PHANTOM),
        )
    ]

    lines = lines_of(runs, 7, "svm/fc7", "caltech101")

    assert {line.runs: line.stand_in for line in lines} == {("own",): False, ("ablated",): True, ("small",): True}


def test_views_of_training_from_scratch_that_were_typed_are_another_question():
    plain, typed = (of_own(values={"scratch/15/accuracy": 40.0}, **more) for more in
                    ({}, {"augment": {"brightness": 0.5}, "unusual": ["augment"]}))  # fmt: skip

    lines = lines_of([plain, typed], 4, "scratch", "15")

    assert [line.n for line in lines] == [1, 1]
    assert sum("augment.brightness=0.5" in line.condition for line in lines) == 1
