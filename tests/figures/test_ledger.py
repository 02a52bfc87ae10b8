"""Table 3 as bars, each as long as its number and in the colour of what it is; transfers as curves."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.report.planted import training
from tests.report.test_transfer import moved
from zfscope.figures import ablations_figure, ledger
from zfscope.report.ledger import fill
from zfscope.report.transfer import targets


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


def test_a_bar_of_the_paper_alone_stands_at_the_name_of_its_row(monkeypatch):
    places, barh = {}, Axes.barh

    def noted(self, place, *values, **more):
        places.setdefault(id(self), []).append(place)
        return barh(self, place, *values, **more)

    monkeypatch.setattr(Axes, "barh", noted)

    ablations_figure(fill([training("a", "table3_zfnet", values={"train/top1_error": 60.0})]))

    first, *others = places.values()  # a column for each error; only the first has one of ours
    row = [place for place in first if place % 1 not in (0, 0.5)]
    assert len(row) == 2 and row[1] - row[0] == pytest.approx(0.4)
    assert all(place % 0.5 == 0 for column in others for place in column)


def test_a_transfer_has_a_panel_for_each_data_set_and_a_curve_for_each_network_and_way(monkeypatch):
    panels = []
    monkeypatch.setattr(ledger, "drawn", lambda figure: panels.extend(figure.axes))
    ways = {"pretrained": {5: (50, 52, 54), 15: (60, 62, 64)}, "scratch": {5: (40, 41, 42)}}
    runs = [
        moved("a", ways),
        moved("b", ways, data="phantom"),
        moved("c", {"pretrained": {5: (70, 71, 72)}}, public=True),
    ]

    ledger.transfers_figure(targets(runs))

    assert [panel.get_title(loc="left").split(";")[0] for panel in panels] == ["to elpv", "to phantom"]
    names = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert names == [
        "zoo/squeezenet1_1, pretrained and frozen",
        "zfnet_mini trained on phantom, 6 epochs, pretrained and frozen",
        "zfnet_mini, from scratch",
    ]
    curves = [container.lines[0] for container in panels[0].containers]
    assert [list(curve.get_ydata()) for curve in curves] == [[71.0], [52.0, 62.0], [41.0]]
    assert curves[1].get_color() == curves[2].get_color() != curves[0].get_color()
    assert curves[1].get_linestyle() != curves[2].get_linestyle()
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["5", "15"]
