"""What `make bench` makes of its figures: who fell behind, and the page."""

import importlib.util
import json
import re

import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks/bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "before", "now", "falls"),
    [
        ("ratios", [10.0, 11.0, 12.0], [8.0, 9.0, 9.5], True),
        ("ratios", [10.0, 11.0, 12.0], [10.5, 9.0, 8.0], False),  # within the spread
        ("ratios", [10.0], [9.5], False),  # less than a tenth
        ("ratios", [10.0], [20.0], False),
        ("costs", [1.1, 1.2], [1.5, 1.6], True),
        ("costs", [1.1, 1.2], [1.15, 1.6], False),
        ("costs", [1.5], [1.1], False),
    ],
)
def test_a_figure_that_falls_a_tenth_behind_beyond_both_spreads_is_named(bench, kind, before, now, falls):
    told = bench.fallen({"step": {kind: {"a step": before}}}, {"step": {kind: {"a step": now}}})

    assert [line.partition(":")[0] for line in told] == (["step, a step"] if falls else [])


def test_what_was_not_measured_before_falls_behind_nothing(bench):
    assert not bench.fallen({}, {"step": {"ratios": {"a step": [0.1]}}})


def test_the_page_has_every_figure_and_a_plot_of_growth(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PLOT", tmp_path / "growth.png")
    law = {"x": [8, 16, 32], "seconds": [0.1, 0.2, 0.4], "exponent": 1.0}
    found = {"step": {"ratios": {"a step": [2.0, 3.0, 4.0]}}, "growth": {"growth": {"a step, images": law}}}

    text = bench.tables({"machine": {"processor": "one", "cores": 2}, "benchmarks": found})

    assert "Processor one, cores 2." in text
    assert "| a step | 3 | 2 to 4 |" in text and "| a step, images | 1.00 |" in text
    assert text.startswith(bench.BEGIN) and text.endswith(bench.END)
    assert Image.open(tmp_path / "growth.png").width > 300


def test_the_page_stands_where_the_benchmarks_write_it(bench):
    page = bench.PAGE.read_text(encoding="utf-8")

    assert page.count(bench.BEGIN) == page.count(bench.END) == 1 and page.index(bench.BEGIN) < page.index(bench.END)


def test_the_page_is_that_of_the_results(bench, monkeypatch):
    monkeypatch.setattr(bench, "draw", lambda growth: None)
    report = json.loads(bench.RESULTS.read_text(encoding="utf-8")) if bench.RESULTS.exists() else None

    assert report is None or bench.tables(report) in bench.PAGE.read_text(encoding="utf-8")
    assert report is None or report["benchmarks"].keys() <= bench.CASES.keys()


def test_every_benchmark_that_is_named_is_there(bench):
    for name in bench.CASES:
        text = (ROOT / "benchmarks" / f"{name.partition(' ')[0]}.py").read_text(encoding="utf-8")
        assert re.search(r'"(ratios|costs|growth)"', text), name
