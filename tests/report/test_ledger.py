"""The ledger from planted results: means and intervals by hand, what fills what, and in which order."""

import pytest

from tests.report.planted import (
    ON_PHANTOM,
    analysis,
    cell,
    ensemble,
    lines_of,
    of_folds,
    training,
)
from zfscope.report.claims import measure
from zfscope.report.designs import NOT_RUN
from zfscope.report.ledger import count_numbers, fill
from zfscope.report.readings import Run


def test_a_cell_is_mean_deviation_and_t_interval_over_seeds():
    runs = [
        training(f"r{seed}", "table3_zfnet", seed=seed, values={"train/top1_error": 10.0 + 2 * seed})
        for seed in range(3)
    ]

    (line,) = lines_of(runs, 3, "zfnet", "train_top1")

    # t(0.975, 2 degrees of freedom) = 4.302653; 4.302653 * 2 / sqrt(3) = 4.968275
    assert (line.value, line.spread, line.n, line.seeds) == (12.0, 2.0, 3, (0, 1, 2))
    assert line.interval == pytest.approx((12 - 4.968275, 12 + 4.968275), abs=1e-5)
    assert line.over == "3 seeds" and line.runs == ("r0", "r1", "r2") and not line.stand_in


def test_two_runs_of_one_seed_count_as_one():
    runs = [training(name, "table3_zfnet", seed=seed, values={"train/top1_error": value}) for name, seed, value in
            (("a", 0, 10.0), ("b", 0, 20.0), ("c", 1, 40.0))]  # fmt: skip

    (line,) = lines_of(runs, 3, "zfnet", "train_top1")

    assert (line.value, line.n, line.runs) == (27.5, 2, ("a", "b", "c"))


def test_the_papers_own_condition_goes_first_and_anything_else_is_a_stand_in():
    small = [training(f"s{seed}", "table3_zfnet", *ON_PHANTOM, data="phantom", seed=seed) for seed in range(5)]
    mini = training("mini", "table3_zfnet", "model=zfnet_mini")
    few = training("few", "table3_zfnet", "data.classes=[a,b]")
    tuned = training("tuned", "table3_zfnet", "optim.lr=0.02")

    found = lines_of([*small, mini, few, tuned, training("own", "table3_zfnet")], 3, "zfnet", "val_top1")

    assert [(line.stand_in, line.n) for line in found] == [(False, 1), (False, 1), (True, 5), (True, 1), (True, 1)]
    assert {line.runs[0] for line in found if not line.stand_in} == {"own", "tuned"}
    assert found[2].condition == "phantom, 6,000 training images; zfnet_mini, scale=laptop; 70 epochs"


def test_validation_with_ten_crops_is_preferred_and_what_stands_for_it_is_said():
    names = ["val/top1_error_ten_crops", "test/top1_error_ten_crops", "test/top1_error", "val/top1_error"]
    said = ["val, ten crops", "test, ten crops", "test, one crop", "val, one crop"]

    for first, expected in enumerate(said):
        values = {name: float(10 + number) for number, name in enumerate(names) if number >= first}
        (line,) = lines_of([training("a", "table3_alexnet", values=values)], 3, "alexnet", "val_top1")
        assert (line.value, line.part) == (10 + first, expected)


def test_numbers_of_other_images_or_crops_are_not_averaged():
    values = [{"val/top1_error_ten_crops": 30.0}, {"test/top1_error_ten_crops": 31.0}, {"test/top1_error": 32.0}]
    runs = [training(f"r{seed}", "table3_zfnet", seed=seed, values=each) for seed, each in enumerate(values)]

    assert sorted(line.value for line in lines_of(runs, 3, "zfnet", "val_top1")) == [30.0, 31.0, 32.0]


def test_a_training_fills_the_row_that_its_config_names_in_both_tables_and_older_ones_that_of_their_experiment():
    runs = [training("replication", "table3_alexnet", paper="alexnet"), training("small", "table3_alexnet_fc2048")]
    runs += [training("wide", "ensemble_6", identity=None), training("fig3", "ensemble_3", identity=None)]
    runs += [training("else", "elpv"), training("none", "table3_nonsense", identity=None)]
    runs += [training("plain", "elpv", "paper=alexnet_fc8192"), training("wrong", "table3_zfnet", paper="resnet")]

    filled = {(cell.table, cell.row, cell.column): cell.ours[0].runs for cell in fill(runs) if cell.ours}

    assert {(table, row): folders for (table, row, _), folders in filled.items()} == {
        **{(table, row): (name,) for table in (2, 3) for row, name in
           (("alexnet", "replication"), ("zfnet", "fig3"), ("zfnet_wide", "wide"))},
        (3, "alexnet_fc2048"): ("small",),
        (3, "alexnet_fc8192"): ("plain",),
    }  # fmt: skip
    assert {column for table, _, column in filled if table == 3} == {"train_top1", "val_top1", "val_top5", "parameters"}
    assert filled.keys() & {(2, "zfnet_wide", "test_top5"), (2, "zfnet", "test_top5")} == set()


def test_public_weights_alone_are_evaluated_for_the_tables():
    values = {"val/top1_error_ten_crops": 37.0, "val/top5_error_ten_crops": 15.0}
    zoo = analysis("zoo", "evaluate", values, data="imagenet", checkpoint="zoo/zfnet")
    zoo = Run(zoo.folder, zoo.kind, zoo.metrics, zoo.conditions | {"run": None})
    ours = analysis("ours", "evaluate", values, data="imagenet", run={"data": "imagenet", "model": "zfnet"})

    (line,) = lines_of([zoo, ours], 2, "zfnet", "val_top1")

    assert (line.value, line.runs, line.stand_in, line.condition) == (37.0, ("zoo",), False, "imagenet; zoo/zfnet")


def test_an_ensemble_fills_a_and_a_with_b():
    own = fill([ensemble({"zfnet": 5, "zfnet_wide": 1})])
    small = fill([ensemble({"zfnet_mini": 3, "zfnet_mini_wide": 1}, data="phantom", model="zfnet_mini", part="test")])

    assert cell(own, 2, "zfnets", "val_top1").ours[0].value == 37.0
    assert cell(own, 2, "zfnets", "val_top5").ours[0].part == "5 nets, val, one crop"
    assert (cell(own, 2, "six", "val_top1").ours[0].value, cell(own, 2, "six", "val_top5").ours[0].value) == (36.0, 0.0)
    assert not cell(own, 2, "six", "val_top1").ours[0].stand_in and not cell(own, 2, "six", "test_top5").ours
    (line,) = cell(small, 2, "six", "test_top5").ours
    assert line.stand_in and line.part == "3 + 1 nets, test, ten crops"
    assert line.condition == "phantom; zfnet_mini and zfnet_mini_wide, 6 epochs"


@pytest.mark.parametrize(
    "groups",
    [{"zfnet": 1, "zfnet_wide": 1}, {"zfnet_wide": 3}, {"alexnet": 5}, {"zfnet conv3.maps=9": 2, "resnet18": 1}],
)
def test_other_ensembles_fill_nothing(groups):
    assert not [each for each in fill([ensemble(groups)]) if each.ours]


def test_a_with_b_takes_no_other_networks():
    cells = fill([ensemble({"zfnet": 5, "zfnet_wide": 1, "alexnet": 1}), ensemble({"zfnet": 4, "zfnet_wide": 2})])

    assert not cell(cells, 2, "six", "val_top1").ours
    assert [line.part for line in cell(cells, 2, "zfnets", "val_top1").ours] == [
        f"{count} nets, val, ten crops" for count in (4, 5)
    ]


@pytest.mark.parametrize("data", ["imagenet", None])
def test_table_1_is_filled_in_shares_and_never_comparable(data):
    values = {"right_eye/conv5": {"value": 31.0, "spread": 5.0, "unit": "%"}, "nose/fc7": 20.0, "mouth/conv5": 9.0}

    cells = fill([analysis("a", "correspondence", values, data=data, run={"data": "imagenet", "model": "zfnet"})])

    (line,) = cell(cells, 1, "right_eye", "conv5").ours
    assert (line.value, line.spread, line.over) == (0.31, 0.05, "pairs of images") and line.stand_in
    assert sum(bool(each.ours) for each in cells) == 2


@pytest.mark.parametrize(("data", "tables"), [("caltech101", {4}), ("caltech256", {5}), ("phantom", {4, 5})])
def test_transfer_fills_the_table_of_its_data_others_both(data, tables):
    values = {"pretrained/15/accuracy": of_folds(80.0, 84.0), "scratch/60/accuracy": of_folds(30.0, 31.0)}
    run = analysis("a", "transfer", values, data=data, run={"data": "imagenet", "model": "zfnet"})

    cells = [each for each in fill([run]) if each.ours]

    assert {each.table for each in cells} == tables
    first = cell(cells, min(tables), "pretrained", "15").ours[0]
    assert first.value == 82.0 and first.over == "2 folds" and first.stand_in == (data == "phantom")
    assert first.spread == pytest.approx(8**0.5) and first.how == "t over 2 folds of one network"
    assert any((each.row, each.column) == ("scratch", "60") for each in cells) == (5 in tables)


def test_voc_fills_table_6_alone():
    values = {"pretrained/average_precision/bird": 88.0, "pretrained/mean_average_precision": 79.0}
    values |= {"scratch/average_precision/bird": 11.0}

    cells = [each for each in fill([analysis("a", "transfer", values, data="voc2012")]) if each.ours]

    assert {(each.table, each.row): each.ours[0].value for each in cells} == {(6, "bird"): 88.0, (6, "mean"): 79.0}
    assert cells[0].ours[0].stand_in  # a network that ImageNet did not train


@pytest.mark.parametrize(
    ("data", "size", "column"),
    [
        ("caltech101", 30, "caltech101"),
        ("caltech256", None, "caltech256"),
        ("elpv", None, "caltech101"),
        ("elpv", 60, "caltech256"),
    ],
)
def test_probes_fill_the_column_of_their_data_or_size(data, size, column):
    run = analysis("a", "probes", {"svm/fc7/accuracy": of_folds(1.0, 3.0)}, data=data, images_per_class=size)

    (found,) = [each for each in fill([run]) if each.ours]

    assert (found.table, found.row, found.column) == (7, "svm/fc7", column)
    assert f"{size or (60 if data == 'caltech256' else 30)} training images per class" in found.ours[0].condition


def test_shuffled_labels_are_a_control_and_fill_nothing():
    values = {"pretrained/15/accuracy": 20.0, "gain/15/accuracy": of_folds(1.0, 1.1), "svm/fc7/accuracy": 20.0}
    runs = [analysis(name, name, values, shuffle_labels=True) for name in ("transfer", "probes")]

    assert not [filled for filled in fill(runs) if filled.ours]
    assert {result.verdict for result in measure(runs)} == {NOT_RUN}


def test_numbers_are_counted_once_and_references_never():
    runs = [training("a", "table3_alexnet"), training("b", "table3_zfnet", data="phantom")]
    runs += [training("c", "table3_alexnet", data="phantom")]  # beside one on the paper's own data
    counts = count_numbers(fill(runs))

    # Table 3: 3 + 3, Table 2: 2 + 2
    assert counts == {"all": 106, "papers_data": 5, "stand_in": 5, "blank": 96}


@pytest.mark.parametrize("value", [None, "high", True, float("nan"), [1.0]])
def test_what_is_no_number_fills_nothing(value):
    values = {"train/top1_error": {"value": value}, "svm/fc7/accuracy": {"value": 1.0, "values": [value, value]}}

    cells = fill([training("a", "table3_zfnet", values=values), analysis("b", "probes", values)])

    assert not cell(cells, 3, "zfnet", "train_top1").ours
    (line,) = cell(cells, 7, "svm/fc7", "caltech101").ours
    assert line.interval is None or value is True
