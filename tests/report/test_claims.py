"""Claims from planted results: effects by hand, what is compared with what, and verdicts by the side of 0."""

import numpy as np
import pytest

from tests.report.planted import analysis, ensemble, finding, of_folds
from zfscope.report.claims import CLAIMS, measure
from zfscope.report.designs import DOES_NOT, HOLDS, NO_EFFECT, NOT_RUN, UNDECIDED
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.report.readings import TRAINING, Run, t_interval


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
        ((0.0, 0.0), NO_EFFECT),
        ((0.2, 0.21, 0.22), NO_EFFECT),
        ((), NOT_RUN),
    ],
)
def test_a_claim_is_judged_by_the_side_on_which_its_whole_interval_lies(effects, expected):
    runs = [run for seed, effect in enumerate(effects) for run in renormalised(seed, 3 + effect, 3.0)]

    result = finding(runs, "Renormalisation")

    assert result.verdict == expected
    if effects:
        (line,) = result.results[0][1]
        assert line.value == pytest.approx(np.mean(effects)) and line.n == len(effects)
        assert (line.interval is None) == (len(effects) < 2)


def test_networks_are_compared_with_their_twin_of_one_seed_alone():
    runs = renormalised(0, 10.0, 1.0) + renormalised(1, 30.0, 2.0)
    lonely = [renormalised(2, 500.0, 0.0)[0], renormalised(3, 0.0, 500.0)[1]]
    strangers = [renormalised(4, 700.0, 0.0, model="zfnet_mini_wide")[0], renormalised(4, 0.0, 700.0)[1]]
    strangers += [renormalised(5, 700.0, 0.0, identity=None)[0], renormalised(5, 0.0, 700.0)[1]]

    (line,) = finding(runs + lonely + strangers, "Renormalisation").results[0][1]

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
    other = [stem(0, kind, [(9, 10), (9, 30)], 99.0, 0.0) for kind in ("7x7/4", "11x11/2")]

    dead, aliased = (finding(small + large + other, word) for word in ("dead", "aliased"))

    # (1 + 7) / 40 and (1 + 9) / 40 against 3 / 40; conv1 alone 1 / 10 against 0
    assert [line.value for _, (line,) in dead.results] == pytest.approx([(12.5 + 17.5) / 2, 10.0])
    # Of white noise 1 - 1 / 16 and 1 - 1 / 4 lie beyond strides 4 and 2.
    assert [line.value for _, (line,) in aliased.results] == pytest.approx([50 / 0.9375 - 25 / 0.75, 25.0, 12.0])


def test_a_single_network_is_judged_over_its_folds_and_that_is_said():
    values = {"svm/fc7/accuracy": of_folds(70.0, 72.0, 71.0), "svm/conv1/accuracy": of_folds(60.0, 61.0, 62.0)}

    result = finding([analysis("a", "probes", values)], "Probes")

    (line,) = result.results[0][1]
    assert result.verdict == HOLDS and line.n == 1 and line.how == "t over 3 folds of one network"
    assert line.interval == pytest.approx(t_interval([10.0, 11.0, 9.0]))


def test_folds_that_do_not_match_leave_no_interval():
    values = {"svm/fc7/accuracy": of_folds(70.0, 72.0, 71.0), "svm/conv1/accuracy": of_folds(60.0, 61.0)}

    result = finding([analysis("a", "probes", values)], "Probes")

    assert result.verdict == UNDECIDED and result.results[0][1][0].interval is None


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

    result = finding(runs, "Pretrained")

    (line,) = result.results[0][1]
    assert line.value == pytest.approx((7.5 + 7.5 - 40.0) / 3) and line.how == "t over 3 seeds"
    assert result.verdict == UNDECIDED
    assert [lines[0].value for _, lines in result.results[1:3]] == pytest.approx([(20 - 81) / 3, (10 + 1) / 3])


def test_an_ensemble_is_judged_over_its_images_with_ten_crops():
    result = finding([ensemble({"zfnet": 5, "zfnet_wide": 1})], "ensemble")

    (line,) = result.results[0][1]
    assert (result.verdict, line.value, line.interval) == (HOLDS, 1.5, (1.0, 2.0))
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
        word: [lines[0].value for _, lines in finding(runs, word).results]
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
    assert not finding(phantom + elpv + own, "Pretrained").results[0][1][0].stand_in


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


def test_the_claim_about_parts_rests_on_stand_ins_too():
    values = {f"{part}/conv5": 30.0 for part in ("right_eye", "left_eye", "nose", "random")}
    run = analysis("a", "correspondence", values, data="imagenet", run={"data": "imagenet", "model": "zfnet"})

    (line,) = finding([run], "Parts").results[0][1]

    assert line.stand_in


def test_two_radii_are_two_claims_of_their_own():
    runs = [run for seed in range(2) for run in renormalised(seed, 5.0 + seed, 3.0)]
    tight = {"filter_rms": 0.05}
    runs += [analysis(f"tight{seed}", "diagnostics", {"conv1/filter_dominance": 1.0}, seed=seed, run=tight)
             for seed in range(2)]  # fmt: skip

    lines = finding(runs, "Renormalisation").results[0][1]

    assert {line.runs: line.value for line in lines} == {
        ("free0", "held0", "free1", "held1"): 2.5,
        ("free0", "tight0", "free1", "tight1"): 4.5,
    }
    assert sorted(line.condition.rpartition("; ")[2] for line in lines) == [
        "model.filter_rms=0.05", "model.filter_rms=0.1",
    ]  # fmt: skip


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

    assert sum(bool(cell.ours) for cell in cells) == 3
    assert finding(odd, "ensemble").verdict == UNDECIDED
    assert all(pages(cells, findings, odd, {}, b"").values())
