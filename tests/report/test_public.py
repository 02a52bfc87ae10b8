"""Public networks: lines of their own, by layer, beside their random weights, averaged with none of ours."""

import pytest

from tests.report.planted import analysis, of_folds
from zfscope.report.claims import measure
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.report.public import public_tables

PROBES = {
    "svm/features.3/accuracy": of_folds(50, 52),
    "svm/features.12/accuracy": of_folds(60, 62),
    "svm/features.3/accuracy_random_weights": of_folds(40, 42),
    "svm/features.12/accuracy_random_weights": of_folds(30, 32),
    "chance": 10.0,
}
MEASURED = {
    "invariance": {
        **{"translation/a": 0.8, "translation/b": 0.5, "translation/curve_below": 90.0, "scale/a": 0.7},
        **{"translation/a_random_weights": 0.9, "translation/curve_below_random_weights": 40.0},
    },
    "occlusion": {"mean_drop": 0.7, "largest_drop": 26.2, "other_class": 36.1, "mean_drop_random_weights": 0.1},
    "correspondence": {
        **{"nose/a": 9.0, "nose/a/changed": 1.0, "nose/a/random_above": 90.0, "random/a": 11.0},
        **{"nose/a_random_weights": 19.0, "nose/a_random_weights/random_above": 50.0},
    },
    "embedding": {"pixels/same_class": 11.0, "a/same_class": 13.0, "a/same_class_random_weights": 12.0},
    "probes": PROBES,
}
SHOWN = {
    "invariance": {
        "translation": {"a": 0.8, "b": 0.5},
        "translation, random weights": {"a": 0.9},
        "scale": {"a": 0.7},
    },
    "occlusion": {
        "drop of the class's probability, % points": {"mean": 0.7, "largest": 26.2},
        "drop of the class's probability, % points, random weights": {"mean": 0.1},
        "another class is the most probable, % of positions": {"": 36.1},
    },
    "correspondence": {"nose": {"a": 9.0}, "nose, random weights": {"a": 19.0}, "random masks": {"a": 11.0}},
    "embedding": {"pixels": {"": 11.0}, "trained": {"a": 13.0}, "random weights": {"a": 12.0}},
    "probes": {
        "linear SVM": {"features.3": 51.0, "features.12": 61.0},
        "linear SVM, random weights": {"features.3": 41.0, "features.12": 31.0},
    },
}


def looked(kind, folder="a", values=None, name="zoo/squeezenet1_1", **more):
    identity = {"digest": name, "facts": {"weights": name}}
    run = analysis(folder, kind, values or MEASURED[kind], data="elpv", checkpoint=name, **more)
    return type(run)(run.folder, run.kind, run.metrics, run.conditions | {"run": {"identity": identity}})


def shown(table):
    return {row.measure: {place: line.value for place, line in row.cells} for row in table.rows}


@pytest.mark.parametrize("kind", MEASURED)
def test_each_measure_is_shown_layer_by_layer_and_beside_random_weights(kind):
    (table,) = public_tables([looked(kind)])

    assert shown(table) == SHOWN[kind]
    assert {row.network for row in table.rows} == {"zoo/squeezenet1_1"}
    assert all(line.stand_in for row in table.rows for _, line in row.cells)


def test_ours_have_no_line_among_them_and_controls_neither():
    ours = analysis("ours", "probes", PROBES, data="elpv")
    control = looked("probes", shuffle_labels=True)

    assert public_tables([ours, control]) == []


def test_networks_and_conditions_have_lines_of_their_own():
    runs = [
        looked("probes", "a"),
        looked("probes", "b", name="zoo/efficientnet_lite0"),
        looked("probes", "c", images_per_class=60),
    ]

    (table,) = public_tables(runs)

    svm = [row for row in table.rows if row.measure == "linear SVM"]
    assert [(row.network, row.cells[0][1].runs) for row in svm] == [
        ("zoo/efficientnet_lite0", ("b",)), ("zoo/squeezenet1_1", ("a",)), ("zoo/squeezenet1_1", ("c",)),
    ]  # fmt: skip


def test_public_networks_are_averaged_with_none_of_ours_in_any_cell():
    transferred = {"pretrained/15/accuracy": of_folds(80, 82), "gain/15/accuracy": of_folds(10, 12)}
    runs = [looked("transfer", "public", transferred), analysis("ours", "transfer", transferred, data="elpv")]
    runs += [looked("probes", "probes"), analysis("own probes", "probes", PROBES, data="elpv")]

    filled = [line for cell in fill(runs) for line in cell.ours]
    effects = [line for finding in measure(runs) for _, lines in finding.results for line in lines]

    assert filled and effects
    assert all(len(line.runs) == 1 for line in filled + effects)


def test_both_pages_mark_them_as_stand_ins_and_name_their_condition():
    runs = [looked("probes"), looked("occlusion", "cat")]

    written = pages(fill(runs), measure(runs), runs, {}, b"png")

    web, text = written["ledger.html"], written["ledger.md"]
    assert (
        "| *stand-in* zoo/squeezenet1_1 [a] | linear SVM | features.3 **51 ± 1.4**, features.12 **61 ± 1.4** |" in text
    )
    assert "- [a] *stand-in* elpv; zoo/squeezenet1_1; 30 training images per class" in text
    assert "| cat | occlusion | Public networks |" in text
    assert "<h2>Public networks</h2>" in web and "61 ± 1.4<small>features.12</small>" in web


def test_an_image_of_the_users_own_is_named():
    run = looked("occlusion", images=None)
    run = type(run)(run.folder, run.kind, run.metrics, run.conditions | {"data": None, "image": "docs/cat.jpg"})

    (table,) = public_tables([run])

    assert table.rows[0].cells[0][1].condition == "docs/cat.jpg; zoo/squeezenet1_1"
