import io

import pytest
from rich.console import Console

from zfscope.console import network_table, progress, results_table, sweep_table
from zfscope.networks.build import build_network
from zfscope.networks.network import count_parameters


def printed(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def job(stem, error, **more):
    return {
        "metrics": {"train/top1_error": {"value": 1.0}, "val/top1_error": {"value": error}},
        "conditions": {"overrides": ["seed=0", f"model/stem={stem}"], "map_sizes": [54, 27], "parameters": 813002},
        "state": "finished",
        **more,
    }


def test_a_sweeps_rows_tell_what_sets_jobs_apart_and_the_validation_error():
    text = printed(sweep_table([job("7x7s2", 12.5), job("11x11s4", 14.25)], width=120))

    assert "model/stem=7x7s2" in text and "12.50" in text
    assert "model/stem=11x11s4" in text and "14.25" in text
    assert "seed=0" not in text
    assert "813,002" in text and "54/27" in text


def test_a_column_that_all_jobs_leave_empty_is_left_out():
    jobs = [job("7x7s2", 12.5), job("11x11s4", 14.25)]
    for one in jobs:
        del one["metrics"], one["conditions"]["parameters"]
    jobs[1]["conditions"]["seconds"] = 90.0

    text = printed(sweep_table(jobs, width=120))

    assert "error %" not in text and "parameters" not in text
    assert all(heading in text for heading in ("overrides", "map sizes", "minutes", "state"))


def test_the_test_error_goes_before_the_validation_error():
    known = job("7x7s2", 12.5)
    known["metrics"]["test/top1_error"] = {"value": 9.75}

    text = printed(sweep_table([known]))

    assert "9.75" in text and "12.50" not in text


def test_a_failed_job_has_its_cause_and_one_without_results_is_listed():
    text = printed(sweep_table([job("7x7s2", 1.0), {"state": "failed", "cause": "no room", "conditions": {}}, {}]))

    assert "failed: no room" in text
    assert "no results" in text


def test_in_80_columns_a_sweeps_overrides_and_causes_stay_whole():
    jobs = [job("7x7s2", 12.5), job("11x11s4", 14.25), job("7x7s4", 0.0, state="failed", cause=" ".join(30 * ["why"]))]
    for number in range(2):
        jobs[number]["conditions"] |= {"seconds": 90.0, "map_sizes": [54, 27, 27, 13, 13, 13, 13, 6]}
    for one in jobs:
        one["conditions"]["overrides"].append(f"optim.schedule.patience={len(one)}")

    text = printed(sweep_table(jobs, width=80), width=80)

    for words in (
        "model/stem=7x7s2 ",
        "model/stem=11x11s4 ",
        "optim.schedule.patience=4 ",
        " 12.50 ",
        " 813,002 ",
        " 1.5 ",
    ):
        assert words in text
    assert "54/27" not in text
    assert " ".join(text.partition("job 2 failed: ")[2].split()) == " ".join(30 * ["why"])


def test_the_papers_number_stands_beside_ours_where_it_has_one():
    metrics = {
        "val/top1_error": {"value": 40.0, "unit": "%", "paper": 38.4},
        "val/loss": {"value": 1.5, "unit": "nats", "paper": None},
    }

    text = printed(results_table(metrics, "RUN"))

    assert "38.4 %" in text and "40.00 %" in text and "1.50 nats" in text


def test_a_stand_in_is_marked_beside_each_of_the_papers_numbers_and_explained_below():
    metrics = {
        "pretrained/15/accuracy": {"value": 40.0, "unit": "%", "paper": 83.8},
        "pretrained/30/accuracy": {"value": 50.0, "unit": "%", "paper": 86.5},
        "chance": {"value": 1.0, "unit": "%", "paper": None},
    }

    marked = printed(results_table(metrics, "RUN", "zfnet_mini trained on phantom [a], on caltech101"))
    own = printed(results_table(metrics, "RUN"))
    without = printed(results_table({"chance": metrics["chance"]}, "RUN", "zfnet_mini on phantom"))

    assert "83.8 % (stand-in)" in marked and "86.5 % (stand-in)" in marked and marked.count("(stand-in)") == 2
    assert "ours are by zfnet_mini trained on phantom [a], on caltech101; the paper's numbers" in marked
    assert "stand-in" not in own and "83.8 %" in own and "stand-in" not in without


def test_the_network_table_has_the_papers_sizes_and_fields():
    layer = {"maps": 4, "kernel_size": 7, "stride": 2, "padding": 1, "pool": {}}
    network = build_network({"name": "n", "conv1": layer, "fc6": {"units": 5}, "fc8": {}}, 3, 224)

    text = printed(network_table(network.summary(), count_parameters(network), network.image_size))

    assert "input 224x224 px" in text and f"{count_parameters(network):,} parameters" in text
    assert "110 -> 55" in text
    assert "7 / 2, pooled 11 / 4" in text
    assert f"{4 * 148:,}" in text


def test_columns_of_which_nothing_is_known_are_left_out_of_the_network_table():
    text = printed(network_table([("layer1", "", "", "", "1,000"), ("fc", "", "", "", "20")], 1020, 64))

    assert "layer1" in text and "1,000" in text and "parameters" in text
    assert "filters" not in text and "map sizes" not in text and "receptive field" not in text


def test_a_bar_hands_the_items_on():
    assert list(progress((number for number in range(3)), "counting", total=3)) == [0, 1, 2]


def test_square_brackets_of_overrides_and_folders_are_shown_as_they_are():
    jobs = [{"conditions": {"overrides": [override]}} for override in ("data.classes=[disc,bar]", "name='a[/]b'")]

    assert all(override in printed(sweep_table(jobs)) for override in ("data.classes=[disc,bar]", "name='a[/]b'"))
    assert "outputs/[red]run" in printed(results_table({"error": {"value": 1.0, "unit": "%"}}, "outputs/[red]run"))


@pytest.mark.parametrize(("value", "shown"), [(-0.001, "0.00 r"), (-0.006, "-0.01 r"), (0, "0 r"), (-3, "-3 r")])
def test_a_value_that_rounds_to_zero_has_no_minus(value, shown):
    text = printed(results_table({"difference": {"value": value, "unit": "r", "paper": None}}, "RUN"))

    assert f" {shown} " in text and f"-{shown}" not in text
