"""The paper's numbers as data: against what the configs and the analyses hold, and against themselves."""

import pytest
import yaml

from tests.conftest import ROOT
from zfscope.analyses import correspondence
from zfscope.report.paper import TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLES, numbers_of


def paper_of(experiment):
    return yaml.safe_load((ROOT / f"conf/experiment/{experiment}.yaml").read_text())["paper"]


def test_the_twelve_experiments_of_table_3_name_their_rows():
    experiments = sorted(path.stem for path in (ROOT / "conf/experiment").glob("table3_*.yaml"))

    assert len(experiments) == 12
    assert {paper_of(experiment): experiment for experiment in experiments} == {
        row: f"table3_{row}" for row in TABLES[2].rows
    }


def test_a_training_has_the_numbers_of_its_row_in_tables_2_and_3():
    assert numbers_of("zfnet") == {
        "train/top1_error": 33.1,
        "val/top1_error_ten_crops": 38.4,
        "val/top5_error_ten_crops": 16.5,
    }
    assert numbers_of("alexnet_without_3_4_6_7")["val/top5_error_ten_crops"] == 50.1
    assert numbers_of(None) == {} and numbers_of({"val/top1_error": 1.5}) == {"val/top1_error": 1.5}


def test_a_row_that_is_not_there_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"paper=zfnet_fc2408: .* did you mean zfnet_fc2048\?"):
        numbers_of("zfnet_fc2408")


def test_table_1_is_what_the_correspondence_analysis_shows_beside_ours_in_percent():
    assert correspondence.PAPER == {
        "conv5": {"right_eye": 6.7, "left_eye": 6.9, "nose": 7.9, "random": 10.7},
        "fc7": {"right_eye": 6.9, "left_eye": 6.8, "nose": 6.9, "random": 7.3},
    }


def test_single_nets_stand_alike_in_tables_2_and_3():
    for row in ("alexnet", "zfnet", "zfnet_wide"):
        for column in ("val_top1", "val_top5"):
            assert TABLES[1].value(row, column) == TABLES[2].value(row, column)


@pytest.mark.parametrize(("column", "slack"), [("pretrained", 0.05), ("yan", 0.2), ("sande", 0.3)])
def test_the_means_of_table_6_are_the_means_of_its_classes(column, slack):
    # The references' own means are up to 0.3 off: the paper prints their numbers for cow and table alike.
    table = TABLES[5]
    values = [table.value(row, column) for row in table.rows if row != "mean"]

    assert len(values) == 20
    assert sum(values) / 20 == pytest.approx(table.value("mean", column), abs=slack)


def test_every_number_is_there_with_its_spread():
    cells = [(table, row, column) for table in TABLES for row, column in table.cells()]
    own = [sum(table.own(row, column) for row, column in table.cells()) for table in TABLES]
    spread = [sum(table.spread(row, column) is not None for row, column in table.cells()) for table in TABLES]

    assert own == [8, 13, 36, 4, 8, 21, 16]
    assert spread == [8, 0, 0, 5, 12, 0, 16]
    assert len(cells) == 106 + 11 + 3 + 8 + 42
    assert all(0 < table.value(row, column) < 100 for table, row, column in cells)
    assert sum(table.value(row, column) for table, row, column in cells) == pytest.approx(8965.801, abs=1e-6)


def test_what_analyses_look_up_are_numbers_of_the_tables():
    assert TABLE_4["pretrained"] == {15: 83.8, 30: 86.5} and TABLE_4["scratch"] == {15: 22.8, 30: 46.5}
    assert TABLE_5["scratch"] == {15: 9.0, 30: 22.5, 45: 31.2, 60: 38.8} and TABLE_5["pretrained"][60] == 74.2
    assert TABLE_6["bird"] == 88.4 and TABLE_6["tvmonitor"] == 76.1 and TABLE_6["mean"] == 79.0
    assert TABLE_7["caltech101", 30]["svm", "conv1"] == 44.8 and TABLE_7["caltech256", 60]["softmax", "fc7"] == 72.6
