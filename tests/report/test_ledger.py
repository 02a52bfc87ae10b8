"""The ledger from planted results: means and intervals by hand, what fills what, verdicts, pages that escape all."""

import json
import re
import sys
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT, composed
from zfscope.figures import ablations_figure
from zfscope.report.claims import CLAIMS, DOES_NOT, HOLDS, NOT_RUN, UNDECIDED, measure
from zfscope.report.ledger import count_numbers, fill
from zfscope.report.page import markdown, page
from zfscope.report.readings import TRAINING, Run, read_runs, t_interval
from zfscope.runs import write_results

ON_PHANTOM = ("data=phantom", "scale=laptop", "callbacks=none", "logger=none", "model=zfnet_mini")
ERRORS = {"train/top1_error": 30.0, "val/top1_error": 40.0, "val/top1_error_ten_crops": 38.0}
ERRORS |= {"val/top5_error_ten_crops": 16.0}


def metrics_of(values):
    return {name: each if isinstance(each, dict) else {"value": each, "unit": "%"} for name, each in values.items()}


def training(folder, experiment, *overrides, seed=0, data="imagenet", epochs=70, values=ERRORS, **more):
    conditions = {"overrides": [f"experiment={experiment}", *overrides], "data": data, "seed": seed, "epochs": epochs}
    conditions |= {"images": {"train": 6000, "val": 1000}, "parameters": 62_357_608} | more
    return Run(folder, TRAINING, metrics_of(values), conditions)


@cache
def options_of(name):
    return composed(f"analysis={name}", name="analyze")["analysis"]


def analysis(folder, name, values, *, seed=0, data="phantom", run=None, checkpoint="outputs/RUN", **options):
    """A result of analyze.py, with its options as conf/analysis gives them."""
    trained = {"seed": seed, "epochs": 6, "model": "zfnet_mini", "data": "phantom", "stem": "7x7/2", "filter_rms": 0.1}
    conditions = {"checkpoint": checkpoint, "data": data, "run": trained if run is None else trained | run or None}
    return Run(folder, name, metrics_of(values), conditions | options_of(name) | options)


def of_folds(*values):
    return {"value": float(np.mean(values)), "spread": float(np.std(values, ddof=1)), "values": list(values)}


def cell(cells, table, row, column):
    (found,) = [each for each in cells if (each.table, each.row, each.column) == (table, row, column)]
    return found


def lines_of(runs, table, row, column):
    return cell(fill(runs), table, row, column).ours


def finding(runs, word):
    (found,) = [each for each in measure(runs) if word in each.claim.statement]
    return found


# Numbers


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


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_the_interval_is_that_of_scipys_t_distribution(count):
    values = np.random.default_rng(count).normal(3, 2, count)

    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))

    assert t_interval(values.tolist()) == pytest.approx(expected, rel=1e-9)


def test_two_runs_of_one_seed_count_as_one():
    runs = [training(name, "table3_zfnet", seed=seed, values={"train/top1_error": value}) for name, seed, value in
            (("a", 0, 10.0), ("b", 0, 20.0), ("c", 1, 40.0))]  # fmt: skip

    (line,) = lines_of(runs, 3, "zfnet", "train_top1")

    assert (line.value, line.n, line.runs) == (27.5, 2, ("a", "b", "c"))


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 8},
        {"overrides": ["experiment=table3_zfnet", "optim.lr=0.1"]},
        {"overrides": ["experiment=table3_zfnet", "model.fc6.units=256"]},
        {"images": {"train": 500}},
        {"data": "phantom"},
    ],
)
def test_runs_under_other_conditions_are_not_averaged(other):
    runs = [training("a", "table3_zfnet", seed=0), training("b", "table3_zfnet", seed=1, **other)]

    found = lines_of(runs, 3, "zfnet", "train_top1")

    assert sorted(line.runs for line in found) == [("a",), ("b",)]
    assert all(line.n == 1 and line.interval is None and line.spread is None for line in found)


def test_where_data_lie_and_what_is_drawn_or_logged_makes_no_other_condition():
    quiet = ["data.root=/x", "data=imagenet", "logger=none", "callbacks.projections=null", "trainer=gpu", "seed=1"]
    quiet += ["hydra.run.dir=x", "data.num_workers=2", "tags=[a]", "optim.epochs=70", "checkpoints.epochs=[1]"]
    runs = [training("a", "table3_zfnet", seed=0), training("b", "ensemble_2", *quiet, seed=1)]

    (line,) = lines_of(runs, 3, "zfnet", "train_top1")

    assert line.n == 2 and line.condition == "imagenet, 6,000 training images; 70 epochs"


def test_how_an_analysis_was_run_and_what_it_drew_makes_no_other_condition():
    values = {"pretrained/15/accuracy": 50.0}
    runs = [analysis("a", "transfer", values, seed=10), analysis("b", "transfer", values, seed=2, batch_size=3)]

    (line,) = lines_of(runs, 4, "pretrained", "15")

    assert line.seeds == (2, 10)


def test_two_ensembles_are_two_repetitions():
    runs = [ensemble({"zfnet": 5, "zfnet_wide": 1}, checkpoint=name) for name in ("outputs/a/*", "outputs/b/*")]

    (line,) = lines_of(runs, 2, "six", "val_top1")

    assert line.n == 2 and line.over == "2 repetitions"


def test_the_papers_own_condition_goes_first_and_anything_else_is_a_stand_in():
    small = [training(f"s{seed}", "ensemble_1", *ON_PHANTOM, data="phantom", seed=seed) for seed in range(5)]
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


def test_experiments_fill_their_rows_in_both_tables():
    runs = [training("replication", "table3_alexnet"), training("wide", "ensemble_6"), training("fig3", "ensemble_3")]
    runs += [training("small", "table3_alexnet_fc2048"), training("else", "elpv"), training("none", "table3_nonsense")]
    filled = {(each.table, each.row, each.column): each.ours[0].runs for each in fill(runs) if each.ours}

    rows = {(table, row): folders for (table, row, _), folders in filled.items()}

    assert rows == {
        **{(table, row): (name,) for table in (2, 3) for row, name in
           (("alexnet", "replication"), ("zfnet", "fig3"), ("zfnet_wide", "wide"))},
        (3, "alexnet_fc2048"): ("small",),
    }  # fmt: skip
    assert {column for table, _, column in filled if table == 3} == {"train_top1", "val_top1", "val_top5", "parameters"}
    assert filled.keys() & {(2, "zfnet_wide", "test_top5"), (2, "zfnet", "test_top5")} == set()


def test_public_weights_alone_are_evaluated_for_the_tables():
    values = {"val/top1_error_ten_crops": 37.0, "val/top5_error_ten_crops": 15.0}
    zoo = analysis("zoo", "evaluate", values, data="imagenet", run={}, checkpoint="zoo/zfnet")
    zoo = Run(zoo.folder, zoo.kind, zoo.metrics, zoo.conditions | {"run": None})
    ours = analysis("ours", "evaluate", values, data="imagenet", run={"data": "imagenet", "model": "zfnet"})

    (line,) = lines_of([zoo, ours], 2, "zfnet", "val_top1")

    assert (line.value, line.runs, line.stand_in, line.condition) == (37.0, ("zoo",), False, "imagenet; zoo/zfnet")


def ensemble(groups, *, data="imagenet", model="zfnet", part="val", **options):
    values = {f"{part}/top1_error_ten_crops": 36.0, f"{part}/top5_error_ten_crops": 0.0, "gain/top1_error": 9.0}
    for number, (name, count) in enumerate(groups.items()):
        for row, value in (("one_net", 38.0), *(((f"{count}_nets", 37.0 + number),) if count > 1 else ())):
            values |= {f"group/{name}/{row}/top1_error_ten_crops": value, f"group/{name}/{row}/top5_error": value / 2}
    values["gain/top1_error_ten_crops"] = {"value": 1.5, "interval": [1.0, 2.0]}
    return analysis("six", "ensemble", values, data=data, run={"data": data, "model": model}, **options)


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


def test_the_claim_about_parts_rests_on_stand_ins_too():
    values = {f"{part}/conv5": 30.0 for part in ("right_eye", "left_eye", "nose", "random")}
    run = analysis("a", "correspondence", values, data="imagenet", run={"data": "imagenet", "model": "zfnet"})

    (line,) = finding([run], "Parts").found[0][1]

    assert line.stand_in


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

    assert not [each for each in fill(runs) if each.ours]
    assert {each.verdict for each in measure(runs)} == {NOT_RUN}


def test_a_smaller_set_of_classes_is_told_and_is_another_condition():
    values = {"pretrained/15/accuracy": 50.0}
    some = {"classes": ["dog", "owl"], "run": {"classes": ["cat", "car"]}}
    runs = [analysis("a", "transfer", values, seed=0, **some), analysis("b", "transfer", values, seed=1)]

    found = lines_of(runs, 4, "pretrained", "15")

    assert len(found) == 2
    assert any(
        line.condition.startswith("phantom (dog, owl); zfnet_mini trained on phantom (cat, car)") for line in found
    )


def test_numbers_are_counted_once_and_references_never():
    runs = [training("a", "table3_alexnet"), training("b", "table3_zfnet", data="phantom")]
    runs += [training("c", "table3_alexnet", data="phantom")]  # beside one on the paper's own data
    counts = count_numbers(fill(runs))

    # Table 3: 3 + 3, Table 2: 2 + 2
    assert counts == {"all": 106, "papers_data": 5, "stand_in": 5, "blank": 96}


# Claims


def renormalised(seed, without, with_it, **run):
    return [
        analysis(
            f"free{seed}",
            "diagnostics",
            {"conv1/filter_dominance": without},
            seed=seed,
            run={"filter_rms": None, **run},
        ),
        analysis(f"held{seed}", "diagnostics", {"conv1/filter_dominance": with_it}, seed=seed, run=run),
    ]


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ((2.0, 2.1, 2.2), HOLDS),
        ((-2.0, -2.1, -2.2), DOES_NOT),
        ((2.0, -1.0, 0.5), UNDECIDED),
        ((2.0,), UNDECIDED),
        ((0.0, 0.0), UNDECIDED),
        ((), NOT_RUN),
    ],
)
def test_a_claim_is_judged_by_the_side_on_which_its_whole_interval_lies(effects, expected):
    runs = [run for seed, effect in enumerate(effects) for run in renormalised(seed, 3 + effect, 3.0)]

    found = finding(runs, "Renormalisation")

    assert found.verdict == expected
    if effects:
        (line,) = found.found[0][1]
        assert line.value == pytest.approx(np.mean(effects)) and line.n == len(effects)
        assert (line.interval is None) == (len(effects) < 2)


def test_networks_are_compared_with_their_twin_of_one_seed_alone():
    runs = renormalised(0, 10.0, 1.0) + renormalised(1, 30.0, 2.0)
    lonely = [renormalised(2, 500.0, 0.0)[0], renormalised(3, 0.0, 500.0)[1]]
    strangers = [renormalised(4, 700.0, 0.0, model="other")[0], renormalised(4, 0.0, 700.0)[1]]

    (line,) = finding(runs + lonely + strangers, "Renormalisation").found[0][1]

    assert (line.value, line.n, line.seeds) == ((9 + 28) / 2, 2, (0, 1))
    assert set(line.runs) == {"free0", "held0", "free1", "held1"}


def test_stems_are_compared_by_shares_of_dead_maps_and_energy():
    def stem(seed, kind, dead, beyond, middle):
        counts = {f"conv{i}/dead_maps": {"value": n, "unit": f"of {of}"} for i, (n, of) in enumerate(dead, 1)}
        more = {"fc6/dead_maps": {"value": 99, "unit": "of 100"}, "conv1/energy_beyond_stride": beyond}
        values = counts | more | {"conv1/middle_frequency_energy": middle}
        return analysis(f"{kind}{seed}", "diagnostics", values, seed=seed, run={"stem": kind})

    small = [stem(seed, "7x7/2", [(0, 10), (3, 30)], 25.0, 40.0) for seed in (0, 1)]
    large = [stem(seed, "11x11/4", [(1, 10), (7 + 2 * seed, 30)], 50.0, 28.0) for seed in (0, 1)]
    other = [stem(0, kind, [(9, 10), (9, 30)], 99.0, 0.0) for kind in ("7x7/4", None)]

    dead, aliased = (finding(small + large + other, word) for word in ("dead", "aliased"))

    # (1 + 7) / 40 and (1 + 9) / 40 against 3 / 40; conv1 alone 1 / 10 against 0
    assert [line.value for _, (line,) in dead.found] == pytest.approx([(12.5 + 17.5) / 2, 10.0])
    # Of white noise 1 - 1 / 16 and 1 - 1 / 4 lie beyond strides 4 and 2.
    assert [line.value for _, (line,) in aliased.found] == pytest.approx([50 / 0.9375 - 25 / 0.75, 25.0, 12.0])


def test_a_single_network_is_judged_over_its_folds_and_that_is_said():
    values = {"svm/fc7/accuracy": of_folds(70.0, 72.0, 71.0), "svm/conv1/accuracy": of_folds(60.0, 61.0, 62.0)}

    found = finding([analysis("a", "probes", values)], "Probes")

    (line,) = found.found[0][1]
    assert found.verdict == HOLDS and line.n == 1 and line.how == "t over 3 folds of one network"
    assert line.interval == pytest.approx(t_interval([10.0, 11.0, 9.0]))


def test_folds_that_do_not_match_leave_no_interval():
    values = {"svm/fc7/accuracy": of_folds(70.0, 72.0, 71.0), "svm/conv1/accuracy": of_folds(60.0, 61.0)}

    found = finding([analysis("a", "probes", values)], "Probes")

    assert found.verdict == UNDECIDED and found.found[0][1][0].interval is None


def test_over_several_networks_the_folds_count_no_more():
    runs = [
        analysis(
            f"r{seed}",
            "transfer",
            {f"gain/{size}/accuracy": of_folds(*gain) for size, gain in ((6, (9.9, 10.1)), (15, (7, 8)), (30, (4, 6)))},
            seed=seed,
        )
        for seed in range(2)
    ] + [
        analysis(
            "r2",
            "transfer",
            {"gain/6/accuracy": of_folds(-80.0, -82.0), "gain/15/accuracy": -40.0, "gain/30/accuracy": 1.0},
            seed=2,
        )
    ]

    found = finding(runs, "Pretrained")

    (line,) = found.found[0][1]
    assert line.value == pytest.approx((7.5 + 7.5 - 40.0) / 3) and line.how == "t over 3 seeds"
    assert found.verdict == UNDECIDED
    assert [each[0].value for _, each in found.found[1:3]] == pytest.approx([(20 - 81) / 3, (10 + 1) / 3])


def test_an_ensemble_is_judged_over_its_images_with_ten_crops():
    found = finding([ensemble({"zfnet": 5, "zfnet_wide": 1})], "ensemble")

    (line,) = found.found[0][1]
    assert (found.verdict, line.value, line.interval) == (HOLDS, 1.5, (1.0, 2.0))
    assert "bootstrap over the images" in line.how


def test_every_other_claim_is_its_difference_of_metrics():
    parts = {"right_eye": 30.0, "left_eye": 28.0, "nose": 35.0, "mouth": 99.0, "random": 36.0, "same_place": 30.5}
    runs = []
    for seed in range(2):
        runs.append(
            analysis(
                "e",
                "evolution",
                {"conv1/settled": 2.0, "conv5/settled": 5.5, "conv1/unsettled": 4.0, "conv5/unsettled": 10.0},
                seed=seed,
            )
        )
        moves = {
            f"{kind}/{layer}": value
            for kind in ("translation", "scale", "rotation")
            for layer, value in (("conv1", 0.75), ("fc7", 0.5))
        }
        runs.append(analysis("i", "invariance", moves, seed=seed))
        drops = {"largest_drop_in_mask": 80.0, "largest_drop_in_mask_by_chance": 30.0, "drop_larger_on_object": 95.0}
        runs.append(analysis("o", "occlusion", drops, seed=seed))
        runs.append(
            analysis(
                "c",
                "correspondence",
                {f"{part}/{layer}": value for part, value in parts.items() for layer in ("conv5", "fc7")},
                seed=seed,
            )
        )

    effects = {
        word: [each[0].value for _, each in finding(runs, word).found]
        for word in ("converge", "Invariance", "Covering", "Parts")
    }

    assert effects == {
        "converge": [3.5, 6.0],
        "Invariance": [0.25] * 3,
        "Covering": [50.0, 45.0],
        "Parts": pytest.approx([5.0, 5.0, -0.5, -0.5]),
    }


def test_conditions_that_disagree_decide_nothing_unless_one_is_the_papers_own():
    def gains(name, data, gain, run=None):
        return [
            analysis(
                f"{name}{seed}", "transfer", {"gain/15/accuracy": gain + 0.1 * seed}, data=data, seed=seed, run=run
            )
            for seed in range(3)
        ]

    phantom, elpv = gains("p", "phantom", 5.0), gains("e", "elpv", -5.0)
    alone = [analysis("alone", "transfer", {"gain/15/accuracy": -3.0}, data="fashion_mnist")]
    own = gains("own", "caltech101", 60.0, {"data": "imagenet", "model": "zfnet"})

    assert finding(phantom, "Pretrained").verdict == HOLDS
    assert finding(phantom + alone, "Pretrained").verdict == HOLDS  # one number without an interval says nothing
    assert finding(phantom + elpv, "Pretrained").verdict == UNDECIDED
    assert finding(phantom + elpv + own, "Pretrained").verdict == HOLDS
    assert not finding(phantom + elpv + own, "Pretrained").found[0][1][0].stand_in


def test_the_papers_claims_are_all_there():
    words = (
        "converge",
        "Invariance",
        "Covering",
        "Parts",
        "Probes",
        "dead",
        "aliased",
        "Renormal",
        "Pretrained",
        "ensemble",
    )

    assert [word in claim.statement for word, claim in zip(words, CLAIMS, strict=True)] == [True] * 10
    assert all(claim.paper.startswith(("Sec. ", "Table ")) and claim.caveat for claim in CLAIMS)


# Reading


def test_every_result_below_the_folders_is_read_once_and_what_is_no_result_is_listed_with_its_cause(tmp_path):
    write_results(tmp_path / _made(tmp_path, "runs/10"), metrics_of(ERRORS), {"overrides": ["experiment=table3_zfnet"]})
    write_results(tmp_path / _made(tmp_path, "runs/2"), {}, {"overrides": []}, state="failed", cause="no kernel fits")
    (tmp_path / _made(tmp_path, "runs/3") / "results.json").write_text('{"metrics": ')
    (tmp_path / _made(tmp_path, "runs/4") / "results.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / _made(tmp_path, "runs/5") / "results.json").write_text("[1, 2]")
    (tmp_path / _made(tmp_path, "runs/6") / "results.json").write_text(
        '{"metrics": {}, "conditions": {"name": "magic"}}'
    )
    write_results(tmp_path / _made(tmp_path, "runs/7\nx"), metrics_of(ERRORS), {"name": "evaluate", "run": None})
    write_results(tmp_path / _made(tmp_path, "runs/ledger"), {}, {"name": "ledger"})
    (tmp_path / "runs/9").symlink_to(tmp_path / "runs/10")

    runs, causes = read_runs([str(tmp_path / "runs"), str(tmp_path / "runs/../runs/10")])

    names = [run.folder.removeprefix(f"{tmp_path}/runs/") for run in runs]
    assert names == ["7\\nx", "10"] and [run.kind for run in runs] == ["evaluate", TRAINING]
    found = {name.removeprefix(f"{tmp_path}/runs/"): cause for name, cause in causes.items()}
    assert list(found) == ["2", "3", "4", "5", "6"]
    assert found["2"] == "failed: no kernel fits" and "is not JSON" in found["3"]
    assert "no metrics and conditions" in found["5"] and "neither from train.py nor" in found["6"]


def _made(folder, name):
    (folder / name).mkdir(parents=True)
    return name


def test_a_folder_that_is_not_there_is_refused_with_the_one_that_was_meant(tmp_path):
    (tmp_path / "paper").mkdir()

    with pytest.raises(FileNotFoundError, match=r"no folder .*/papr; in .*: did you mean paper\?"):
        read_runs([str(tmp_path / "papr")])
    with pytest.raises(FileNotFoundError, match=r"no folder .*/zzz/deeper; in .*: there are paper"):
        read_runs([str(tmp_path / "zzz/deeper")])
    with pytest.raises(FileNotFoundError, match="no results.json below .*paper; train something first"):
        read_runs([str(tmp_path / "paper")])


@pytest.mark.parametrize("value", [None, "high", True, float("nan"), [1.0]])
def test_what_is_no_number_fills_nothing(value):
    values = {"train/top1_error": {"value": value}, "svm/fc7/accuracy": {"value": 1.0, "values": [value, value]}}

    cells = fill([training("a", "table3_zfnet", values=values), analysis("b", "probes", values)])

    assert not cell(cells, 3, "zfnet", "train_top1").ours
    (line,) = cell(cells, 7, "svm/fc7", "caltech101").ours
    assert line.interval is None or value is True


def test_results_of_odd_shapes_end_nothing():
    odd = [
        Run(
            "a",
            TRAINING,
            {"train/top1_error": 3, "val/top1_error": {"value": 1.0}},
            {"overrides": ["experiment=table3_zfnet", 7], "images": 5},
        ),
        Run("b", "transfer", {"gain/x/accuracy": {"value": 1}, "gain/5/accuracy": None}, {"name": "transfer"}),
        Run("c", "probes", {"svm/fc7/accuracy": {"value": 1.0, "values": 3}}, {"images_per_class": [1], "data": None}),
        Run("d", "diagnostics", {"conv1/dead_maps": {"value": 1}}, {"run": {"stem": "7x7/2"}}),
        Run("e", "ensemble", {"gain/top1_error": {"value": 1.0, "interval": [None, 2]}}, {"checkpoint": ["a", "b"]}),
    ]

    cells, findings = fill(odd), measure(odd)

    assert sum(bool(each.ours) for each in cells) == 3
    assert finding(odd, "ensemble").verdict == UNDECIDED
    assert page(cells, findings, odd, {}, b"") and markdown(cells, findings, odd, {})


# Pages


class Shape(HTMLParser):
    """Tags that open and what they point to, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


EVIL = "<script>alert(1)</script>|`x`"


def written(runs, causes=None):
    cells, findings = fill(runs), measure(runs)
    return page(cells, findings, runs, causes or {}, b"png"), markdown(cells, findings, runs, causes or {})


def test_names_from_runs_stay_text_on_both_pages():
    run = training(EVIL, "table3_zfnet", f"model.name={EVIL}", data=EVIL)
    named = analysis(
        EVIL, "transfer", {"gain/5/accuracy": of_folds(1, 2), "pretrained/15/accuracy": 3.0}, classes=[EVIL]
    )

    web, text = written([run, named], {EVIL: EVIL})

    assert "<script" not in web and "<script" not in text
    assert "script" not in Shape(web).tags and sum(EVIL in each for each in Shape(web).words) >= 6
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5, 7) for row in rows)


def test_a_condition_is_one_line_whatever_a_run_wrote():
    (line,) = lines_of([training("a", "table3_zfnet", "model.name='a\n\nb\udcff'")], 3, "zfnet", "train_top1")

    assert line.condition.isprintable() and "a\\n\\nb" in line.condition
    line.condition.encode()


def test_the_web_page_stands_alone():
    web, _ = written([training("a", "table3_zfnet")])

    shape = Shape(web)
    assert not shape.tags & {"script", "link", "iframe", "object"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in shape.links) and "http" not in web
    assert {"#claim-10", "data:image/png;base64,cG5n"} <= set(shape.links)


def test_both_pages_show_every_number_and_mark_stand_ins():
    runs = [training(f"s{seed}", "ensemble_1", *ON_PHANTOM, data="phantom", seed=seed) for seed in (0, 1)]
    runs += [training("own", "table3_zfnet", values={"val/top1_error_ten_crops": 37.25})]

    web, text = written(runs)

    words = " ".join(Shape(web).words)
    for number in ("0.067 ± 0.007", "81.4 ± 0.33", "38.4", "91.2", "72.6 ± 0.1"):
        assert number in words and number in text
    row = next(line for line in text.splitlines() if line.startswith("| Our model (Fig. 3) |"))
    assert "38.4<br>**37.2** val, ten crops [b]<br>*stand-in* **38.0 ± 0.0** val, ten crops, 2 seeds [a]" in row
    assert (
        "- [a] *stand-in* phantom, 6,000 training images; zfnet_mini, scale=laptop; 70 epochs; seeds 0, 1; from" in text
    )
    assert "seeds 0, 1; from {s0, s1}" in text
    assert web.count("<span class=mark>stand-in</span>") > 8


def test_runs_are_listed_with_what_they_fill_and_failures_with_their_cause():
    web, text = written([training("a", "table3_zfnet"), training("idle", "elpv")], {"gone": "failed: no memory"})

    assert "| a | training | Table 2, Table 3 |" in text and "| idle | training |  |" in text
    assert "| gone | failed: no memory |" in text and "failed: no memory" in web


def test_bars_are_there_for_what_was_run_and_stand_ins_have_their_own_colour():
    def pixels(runs):
        picture = np.asarray(ablations_figure(fill(runs))).astype(int)
        return {
            name: int((np.abs(picture - colour).sum(-1) < 6).sum())
            for name, colour in (("ours", (11, 95, 165)), ("stand-in", (224, 138, 46)), ("paper", (201, 206, 214)))
        }

    nothing = pixels([])
    own = pixels([training("a", "table3_zfnet", values={"train/top1_error": 60.0})])
    twice = pixels([training("a", "table3_zfnet", values={"train/top1_error": 30.0})])
    small = pixels([training("a", "table3_zfnet", data="phantom", values={"train/top1_error": 60.0})])

    assert nothing["ours"] == nothing["stand-in"] == 0 < nothing["paper"]
    assert own["stand-in"] == 0 < own["ours"] and small["ours"] == 0 < small["stand-in"]
    legend = 2 * twice["ours"] - own["ours"]  # bar of 60 is twice the bar of 30; the patch in the legend stays
    assert 0 < legend < 0.25 * own["ours"]


def test_the_command_writes_three_pages_alike_each_time(tmp_path):
    sys.path.insert(0, str(ROOT))
    import analyze

    for seed in range(3):
        run = training("", "table3_zfnet", *ON_PHANTOM, data="phantom", seed=seed)
        write_results(tmp_path / _made(tmp_path, f"runs/{seed}"), run.metrics, run.conditions)
    write_results(tmp_path / _made(tmp_path, "runs/broken"), {}, {"overrides": []}, state="failed", cause="why")
    values = composed("analysis=ledger", f"analysis.runs=[{tmp_path / 'runs'}]", "device=cpu", name="analyze")
    config = analyze.check(analyze.AnalyzeConfig, values)

    for name in ("one", "two"):
        analyze.analyze(config, tmp_path / _made(tmp_path, name))

    for name in ("ledger.md", "ledger.json", "ledger.html", "figures/table3.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    content = json.loads((tmp_path / "one/ledger.json").read_text())
    found = [
        each for each in content["cells"] if (each["table"], each["row"], each["column"]) == (3, "zfnet", "val_top1")
    ]
    assert found[0]["paper"] == 38.4 and found[0]["ours"][0]["n"] == 3 and found[0]["ours"][0]["stand_in"]
    assert len(content["cells"]) == 170 + 1 and content["numbers"]["stand_in"] == 5
    assert content["left_out"] == {str(tmp_path / "runs/broken"): "failed: why"}
    metrics = json.loads((tmp_path / "one/results.json").read_text())["metrics"]
    assert metrics["numbers/stand_in"]["value"] == 5 and metrics["claims/not run"]["value"] == 10


def test_conditions_carry_what_pairs_are_made_by():
    sys.path.insert(0, str(ROOT))
    import analyze

    run = composed(
        "model=zfnet_mini", "model/stem=11x11s4", "model.filter_rms=null", "data.classes=[cat,car]", "seed=3"
    )
    values = composed("analysis=diagnostics", "checkpoint=outputs/RUN", name="analyze")

    found = analyze.conditions_of(analyze.check(analyze.AnalyzeConfig, values), run, None)

    about = {"seed": 3, "epochs": 22, "model": "zfnet_mini", "data": "phantom", "classes": ["cat", "car"]}
    assert found["run"] == about | {"stem": "11x11/4", "filter_rms": None}
