"""What was fixed before the runs: power against simulation, verdicts with a margin, and which runs decide."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.report.planted import ON_PHANTOM, analysis, finding, identity_of
from zfscope.report import claims
from zfscope.report.claims import CLAIMS, measure
from zfscope.report.designs import DOES_NOT, HOLDS, NO_EFFECT, UNDECIDED, power, verdict
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.report.readings import t_interval

(INVARIANCE,) = [claim for claim in CLAIMS if claim.statement.startswith("Invariance")]


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ((0.5, 2.0), 1.0, HOLDS),
        ((0.2, 0.9), 1.0, NO_EFFECT),  # above 0, and too little to matter
        ((-0.9, -0.2), 1.0, NO_EFFECT),
        ((-0.9, 0.9), 1.0, NO_EFFECT),
        ((-0.9, 1.0), 1.0, UNDECIDED),
        ((-2.0, -0.5), 1.0, DOES_NOT),
        ((-0.1, 0.1), 0.0, UNDECIDED),
        (None, 1.0, UNDECIDED),
    ],
)
def test_the_verdict_is_by_where_the_interval_lies(interval, margin, expected):
    assert verdict(interval, margin) == expected


@pytest.mark.parametrize(("effect", "spread", "n"), [(1.2, 0.7, 5), (0.5, 0.5, 7), (4.0, 1.5, 3), (0.0, 1.0, 4)])
def test_the_power_is_how_often_simulated_intervals_lie_above_0(effect, spread, n):
    drawn = np.random.default_rng(0).normal(effect, spread, (4000, n))

    above = np.mean([t_interval(list(values))[0] > 0 for values in drawn])

    assert power(effect, spread, n) == pytest.approx(above, abs=0.025)


def test_the_repetitions_needed_are_the_least_that_reach_four_fifths():
    design = replace(INVARIANCE.design, margin=0.5, spread=0.5)

    assert power(0.5, 0.5, design.needed) >= 0.8 > power(0.5, 0.5, design.needed - 1)
    assert design.power == power(0.5, 0.5, len(design.seeds)) and replace(design, n=40).power == power(0.5, 0.5, 40)
    assert power(0.5, 0.0, 3) == 1.0


def moved(seed, effect, *more, folder="run"):
    """A network of the design's condition, unless ``more`` says otherwise."""
    identity = identity_of(*ON_PHANTOM, "optim.epochs=6", *more)
    values = {"translation/conv1": 1.0, "translation/fc7": 1.0 - effect}
    return analysis(f"{folder}{seed}", "invariance", values, seed=seed, run={"identity": identity})


def test_the_seeds_of_the_design_decide_and_those_that_chose_it_stand_apart():
    chose = [moved(seed, -0.5 - 0.01 * seed) for seed in (0, 1, 2)]
    decide = [moved(seed, 0.3 + 0.001 * seed) for seed in INVARIANCE.design.seeds]
    elsewhere = [moved(seed, 0.01 + 0.001 * seed, "data.crop=64", folder="small") for seed in (0, 1, 2)]

    found = finding(chose + decide + elsewhere, "Invariance")

    assert found.verdict == HOLDS
    assert [line.seeds for line in found.deciding] == [INVARIANCE.design.seeds]
    told = {found.verdict_of(line): line.condition for line in found.told[1:]}
    assert set(told) == {DOES_NOT, NO_EFFECT} and len(found.told) == 3
    assert "seeds that do not decide" in told[DOES_NOT] and "do not decide" not in told[NO_EFFECT]


def test_nothing_is_decided_before_all_seeds_of_the_design_are_run():
    runs = [moved(seed, 0.3 + 0.001 * seed) for seed in INVARIANCE.design.seeds[:-1]]

    found = finding(runs, "Invariance")

    assert (found.verdict, found.missing) == (UNDECIDED, INVARIANCE.design.seeds[-1:])
    page = pages(fill(runs), measure(runs), runs, {}, b"")["ledger.md"]
    assert f"Not all seeds of the design were run: {found.missing[0]} are missing" in page


def test_a_condition_without_an_interval_says_nothing_else():
    runs = [moved(seed, 0.3 + 0.001 * seed) for seed in INVARIANCE.design.seeds]

    found = finding([*runs, moved(0, -9.0, "data.crop=64", folder="small")], "Invariance")

    assert found.verdict == HOLDS and found.told == found.deciding


def test_seeds_that_chose_the_design_decide_where_no_others_were_run():
    found = finding([moved(seed, 0.3 + 0.01 * seed) for seed in (0, 1, 2)], "Invariance")

    assert found.verdict == HOLDS and "seeds that do not decide" in found.deciding[0].condition


def test_the_papers_own_data_go_before_any_design():
    network = identity_of("model=zfnet", "data=imagenet")
    own = [
        analysis(
            f"own{seed}",
            "invariance",
            {"translation/conv1": 1.0, "translation/fc7": 1.4 + 0.01 * seed},
            seed=seed,
            data="imagenet",
            run={"identity": network, "model": "zfnet", "data": "imagenet"},
        )
        for seed in (0, 1)
    ]

    found = finding(own + [moved(seed, 0.3 + 0.001 * seed) for seed in INVARIANCE.design.seeds], "Invariance")

    assert found.verdict == DOES_NOT and not found.deciding[0].stand_in


def test_pages_show_every_condition_that_disagrees_and_what_was_fixed():
    runs = [moved(seed, 0.3 + 0.001 * seed) for seed in INVARIANCE.design.seeds]
    runs += [moved(seed, -0.5 - 0.01 * seed, "data.crop=64", folder="small") for seed in (0, 1, 2)]
    agree = [moved(seed, 0.4 + 0.001 * seed, "data.crop=72", folder="middle") for seed in (0, 1, 2)]

    made = pages(fill(runs + agree), measure(runs + agree), runs + agree, {}, b"")

    table = made["ledger.md"].partition("## Claims")[2].partition("### 1.")[0]
    rows = [row.split(" | ") for row in table.splitlines() if "invariance" in row.lower() or row.startswith("|  | (")]
    assert [row[1] for row in rows] == ["**holds**", "(there: does not hold)"]
    assert rows[1][2].startswith("-0.51")
    assert f"a margin of 0.1 of the distance to another image ({INVARIANCE.design.because})" in made["ledger.md"]
    assert re.search(r"<small>there</small>\s*<span class=\"badge does-not-hold\">", made["ledger.html"])
    assert all(earlier in made["ledger.md"] for earlier in INVARIANCE.design.before)


def test_every_claim_has_a_design_whose_condition_its_runs_can_meet():
    assert set(claims.DESIGNS) >= set(claims.MEASURES)
    assert all(name in claims.MEASURES or name.startswith("_") for name in claims.DESIGNS)
    for claim in CLAIMS:
        design = claim.design
        assert design.margin > 0 and design.because and len(set(design.seeds)) == len(design.seeds) >= 3
        assert design.before and design.where["data.name"] == "phantom"
        assert not {0, 1, 2} & set(design.seeds)  # they were looked at while the claims were designed
