"""Transfers side by side: which numbers make a row, which row is the best from scratch, and who is ahead of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.report.planted import analysis, lines_of, of_folds
from zfscope.report.claims import measure
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.report.sections import standing, told
from zfscope.report.transfer import targets

ZFNET = {"network": "zfnet_mini", "parameters": 645_058, "image_size": 80}
PUBLIC = {"network": "zoo/squeezenet1_1", "parameters": 723_522, "image_size": 227}
SGD = {"optimiser": "sgd", "lr": 0.01, "batch_size": 32, "steps": {"5": 500, "15": 900}}


def folds_of(numbers):
    return of_folds(*numbers) if len(numbers) > 1 else {"value": float(numbers[0]), "values": list(numbers)}


def moved(folder, ways, *, fold_seed=0, public=False, data="elpv", folds=3, target="images", about=None, **more):
    """A transfer with its folds by way and size: ``{"pretrained": {5: (60, 62, 64)}}``."""
    values = {f"{way}/{size}/accuracy": folds_of(numbers) for way, own in ways.items() for size, numbers in own.items()}
    options = {"test_images": None, "folds": folds} | more
    run = analysis(
        folder, "transfer", values, data=data, checkpoint="zoo/squeezenet1_1" if public else "RUN", **options
    )
    network = PUBLIC if public else ZFNET
    described = {
        way: {**network, **(SGD if way == "scratch" else {"optimiser": "logistic regression"}), **(about or {})}
        for way in ways
    }
    sizes = {size for own in ways.values() for size in own}
    conditions = {
        "seed": fold_seed,
        "ways": described,
        "target_images": target,
        "same_folds": {str(size): [f"{target} {fold_seed} {size} {n}" for n in range(folds)] for size in sizes},
    }
    if public:
        conditions["run"] = {"identity": {"digest": "zoo/squeezenet1_1", "facts": {"weights": "zoo/squeezenet1_1"}}}
    return replace(run, conditions=run.conditions | conditions)


def row(table, network, way):
    (found,) = [one for one in table.rows if one.network.startswith(network) and one.way == way]
    return found


# Rows


def test_each_network_and_way_is_a_row_and_public_ones_are_averaged_with_none_of_ours():
    ours = [
        moved(f"ours{n}", {"pretrained": {5: (50, 52, 54)}, "scratch": {5: (40, 41, 42)}}, seed=n, fold_seed=n)
        for n in (0, 1)
    ]
    public = moved("public", {"pretrained": {5: (70, 71, 72)}, "random_weights": {5: (48, 49, 50)}}, public=True)

    (table,) = targets([*ours, public])

    assert [(one.network.split()[0], one.way) for one in table.rows] == [
        ("zoo/squeezenet1_1", "pretrained"), ("zfnet_mini", "pretrained"), ("zfnet_mini", "scratch"),
        ("zoo/squeezenet1_1", "random_weights"),
    ]  # fmt: skip
    frozen = row(table, "zfnet_mini", "pretrained")
    assert frozen.network == "zfnet_mini trained on phantom, 6 epochs"
    assert frozen.cells[5].over == "2 seeds" and frozen.cells[5].runs == ("ours0", "ours1")
    assert row(table, "zoo/", "pretrained").cells[5].runs == ("public",)
    assert all(one.stand_in for one in table.rows)
    assert (table.data, table.protocol, table.sizes) == ("elpv", "3 folds, all test images", (5,))


def test_a_number_is_the_mean_over_folds_with_their_deviation_and_over_seeds_where_there_are_several():
    runs = [moved(f"r{n}", {"pretrained": {5: (50 + n, 52 + n, 54 + n)}}, seed=n, fold_seed=n) for n in range(3)]

    alone = targets(runs[:1])[0].rows[0].cells[5]
    several = targets(runs)[0].rows[0].cells[5]

    assert (alone.value, alone.spread, alone.over) == (52.0, 2.0, "3 folds")
    assert (several.value, several.spread, several.over, several.n) == (53.0, 1.0, "3 seeds", 3)


def test_repetitions_of_one_row_and_seed_count_once_and_that_with_most_folds():
    whole = moved("whole", {"scratch": {5: (40, 41, 42)}})
    part = moved("part", {"scratch": {5: (80,), 15: (60,)}})

    (table,) = targets([part, whole])

    assert {size: line.value for size, line in table.rows[0].cells.items()} == {5: 41.0, 15: 60.0}


@pytest.mark.parametrize(
    "other",
    [
        {"about": {"image_size": 96}},
        {"about": {"lr": 0.1}},
        {"scratch_steps": 7},
        {"about": {"recipe": "other 12ab"}},
    ],
    ids=str,
)
def test_another_recipe_from_scratch_is_another_row(other):
    runs = [moved("a", {"scratch": {5: (40, 41, 42)}}), moved("b", {"scratch": {5: (50, 51, 52)}}, **other)]

    (table,) = targets(runs)

    assert [one.cells[5].value for one in table.rows] == [51.0, 41.0]


@pytest.mark.parametrize(
    "other", [{"data": "phantom"}, {"target": "others"}, {"folds": 2}, {"test_images": 50}], ids=str
)
def test_another_target_or_protocol_is_another_table(other):
    numbers = (40, 41, 42)[: other.get("folds", 3)]

    tables = targets([moved("a", {"scratch": {5: (40, 41, 42)}}), moved("b", {"scratch": {5: numbers}}, **other)])

    assert len(tables) == 2


def test_results_of_older_versions_voc_and_controls_stand_in_no_row():
    old = analysis("old", "transfer", {"pretrained/5/accuracy": of_folds(50, 51)}, data="elpv")
    control = moved("control", {"pretrained": {5: (50, 51, 52)}}, shuffle_labels=True)

    assert targets([old, control]) == []


@pytest.mark.parametrize("broken", [None, 5, [], {"pretrained": 5}, {"other": {}}, {"scratch": {"steps": 5}}], ids=str)
def test_conditions_of_another_form_are_no_harm(broken):
    run = moved("a", {"pretrained": {5: (50, 51, 52)}, "scratch": {5: (50, 51, 52)}})

    for name in ("ways", "same_folds", "seed", "target_images"):
        targets([replace(run, conditions=run.conditions | {name: broken})])


# Ahead of the best from scratch


def test_pretrained_is_set_against_the_best_of_all_from_scratch_fold_by_fold():
    frozen = moved("frozen", {"pretrained": {5: (60, 70, 80)}, "scratch": {5: (30, 30, 30)}})
    best = moved("best", {"scratch": {5: (51, 62, 73)}}, about={"image_size": 96})

    (table,) = targets([frozen, best])

    line = row(table, "zfnet_mini trained", "pretrained").ahead[5]
    # Differences 9, 8, 7: mean 8, t(0.975, 2) = 4.302653 times 1 / sqrt(3)
    assert line.value == 8.0
    assert line.interval == pytest.approx((8 - 4.302653 / 3**0.5, 8 + 4.302653 / 3**0.5), abs=1e-5)
    assert [one.best for one in table.rows if one.way == "scratch"] == [{5}, set()]
    assert standing(line) == "ahead"


def test_only_the_same_folds_are_compared():
    frozen = moved("frozen", {"pretrained": {5: (60, 70, 80)}})
    other_seed = moved("other", {"scratch": {5: (90, 90, 90)}}, fold_seed=1)
    two_folds = moved("two", {"scratch": {5: (50, 50)}}, about={"lr": 0.1})

    (table,) = targets([frozen, other_seed, two_folds])

    assert row(table, "zfnet_mini trained", "pretrained").ahead[5].value == 15.0  # 60 and 70 against 50 and 50


def test_standings_are_told_by_size():
    frozen = moved(
        "frozen",
        {"pretrained": {5: (60, 61, 62), 15: (50, 60, 70), 30: (50, 51, 52), 60: (80, 81, 82)},
         "scratch": {5: (40, 41, 42), 15: (45, 70, 60), 30: (70, 71, 72.5)}},
    )  # fmt: skip

    (table,) = targets([frozen])

    (line,) = told(table)
    assert line == (
        "zfnet_mini trained on phantom, 6 epochs: ahead of the best from scratch at 5; behind it at 30; "
        "undecided at 15; nothing from scratch to compare with at 60 images per class."
    )


def test_the_claim_has_a_measure_against_the_best_from_scratch_of_any_run():
    frozen = moved("frozen", {"pretrained": {5: (60, 70, 80), 15: (60, 70, 80)}, "scratch": {5: (30, 30, 30)}})
    best = moved("best", {"scratch": {5: (51, 62, 73), 15: (59, 69, 79)}}, public=True)

    (claim,) = [one for one in measure([frozen, best]) if "scratch" in one.claim.statement]
    by_name = {measure.name: lines for measure, lines in claim.results}

    (line,) = by_name["pretrained minus the best of all from scratch, mean over sizes"]
    # (9 + 1) / 2, (8 + 1) / 2, (7 + 1) / 2
    assert line.value == 4.5 and line.runs == ("frozen",)
    assert line.interval == pytest.approx((4.5 - 4.302653 * 0.5 / 3**0.5, 4.5 + 4.302653 * 0.5 / 3**0.5), abs=1e-5)


# Stand-ins


def test_another_network_from_scratch_never_stands_as_the_papers():
    own = {"data": "imagenet", "model": "zfnet"}
    ways = {"pretrained": {15: (80, 81, 82)}, "scratch": {15: (20, 21, 22)}, "random_weights": {15: (9, 10, 11)}}
    plain = moved("plain", ways, data="caltech101", test_images=50, run=own)
    other = moved("other", ways, data="caltech101", test_images=50, run=own, scratch_model="zoo/squeezenet1_1")

    for way in ("pretrained", "scratch"):
        found = {line.runs: line.stand_in for line in lines_of([plain, other], 4, way, "15")}
        assert found == {("plain",): False, ("other",): way == "scratch"}
    rows = {
        (one.way, line.runs): line.stand_in for one in targets([plain, other])[0].rows for line in one.cells.values()
    }
    assert {way for (way, _), stand_in in rows.items() if stand_in} == {"scratch", "random_weights"}


# The pages


def test_both_pages_show_every_row_with_its_recipe_and_standing():
    runs = [
        moved("frozen", {"pretrained": {5: (60, 70, 80)}, "scratch": {5: (51, 62, 73), 15: (70, 71, 72)}}),
        moved("public", {"pretrained": {5: (81, 82, 83.5)}}, public=True),
    ]

    written = pages(fill(runs), measure(runs), runs, {}, b"png", b"chart")

    web, text = written["ledger.html"], written["ledger.md"]
    (scratch,) = [line for line in text.splitlines() if line.startswith("| *stand-in* zfnet_mini, from scratch")]
    assert "645,058 | 80 px | sgd, rate 0.01, batch 32 | 500 to 900" in scratch
    assert scratch.count("*best from scratch*") == 2
    frozen = next(line for line in text.splitlines() if "6 epochs, pretrained and frozen |" in line)
    assert "**70.0 ± 10.0** 3 folds<br>+8.0 (+5.5 to +10.5) ahead" in frozen and frozen.count("|") == 8
    assert "| public | transfer | claim 9, Transfer |" in text
    assert "![Accuracy by training images per class](figures/transfer.png)" in text
    for part in (
        "+8.0 ahead</small><small>(+5.5 to +10.5)",
        "sgd, rate 0.01, batch 32",
        "best from scratch",
        "data:image/png;base64,Y2hhcnQ=",
    ):
        assert part in web
    assert web.count("<table") == web.count("</table>") and web.count("<article") == web.count("</article>")


def test_without_a_transfer_there_is_no_such_section():
    written = pages(fill([]), measure([]), [], {}, b"png")

    assert "<h2>Transfer" not in written["ledger.html"] and "## Public networks" not in written["ledger.md"]


def test_the_command_writes_tables_and_chart(command, tmp_path):
    run = moved("", {"pretrained": {5: (60, 70, 80)}, "scratch": {5: (51, 62, 73)}})
    (tmp_path / "runs/a").mkdir(parents=True)
    content = {"metrics": run.metrics, "conditions": run.conditions, "state": "finished"}
    (tmp_path / "runs/a/results.json").write_text(json.dumps(content))

    code, _, err = command("analyze", "analysis=ledger", "analysis.runs=[runs]", "logger=none", "hydra.run.dir=led")

    assert code == 0, err
    assert (tmp_path / "led/figures/transfer.png").is_file()
    (target,) = json.loads((tmp_path / "led/ledger.json").read_text())["transfer"]
    assert [(one["way"], one["cells"]["5"]["value"], one["best"]) for one in target["rows"]] == [
        ("pretrained", 70.0, []), ("scratch", 62.0, [5])
    ]  # fmt: skip
    assert np.isclose(target["rows"][0]["ahead"]["5"]["value"], 8.0)
