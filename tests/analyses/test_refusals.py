"""What an analysis cannot do is refused before its long work: no pass over the data, no other data set opened."""

import pytest

from tests.analyses.conftest import save
from tests.conftest import composed, write_folders
from zfscope.analyses import diagnostics, run
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import check


@pytest.fixture
def no_work(monkeypatch):
    """Neither a pass over the images nor opening a data set must begin."""

    def work(*_, **__):
        raise AssertionError("long work began before the refusal")

    monkeypatch.setattr(diagnostics, "diagnose", work)
    return lambda: monkeypatch.setattr(run, "open_data", work)


@pytest.fixture
def data(tmp_path):
    """Class folders of the eight classes of ``save``."""
    root = write_folders(tmp_path / "images", {"train": 2, "val": 2}, tuple("abcdefgh"), side=20)
    return ["data=folder", f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "data.num_workers=0"]


def ask(folder, *overrides):
    config = check(AnalyzeConfig, composed("device=cpu", "logger=none", *overrides, name="analyze"))
    analyze(config, folder)


def test_a_network_that_does_not_say_how_images_are_prepared_is_refused_before_data_are_opened(tmp_path, data, no_work):
    no_work()
    source = save(tmp_path / "run", preprocessing=False)

    with pytest.raises(ValueError, match="run does not tell how its images are prepared; use a checkpoint of a run"):
        ask(tmp_path, "analysis=evaluate", f"checkpoint={source}", *data)


def test_a_checkpoint_that_names_no_data_set_is_told_how_to_name_one(tmp_path):
    source = save(tmp_path / "run")

    with pytest.raises(ValueError, match="the checkpoint .*run names no data set; .* as data=imagenet data.root=DIR"):
        ask(tmp_path, "analysis=evaluate", f"checkpoint={source}")


def test_parts_that_nobody_knows_are_refused_before_the_part_of_the_data(tmp_path, data):
    source = save(tmp_path / "run")

    with pytest.raises(ValueError, match="the parts of these images are is not known; .* or .* with data=phantom"):
        ask(tmp_path, "analysis=correspondence", f"checkpoint={source}", *data)


def test_the_other_network_of_diagnostics_is_checked_before_the_first_is_looked_at(tmp_path, data, no_work):
    one, other = save(tmp_path / "one"), save(tmp_path / "other", preprocessing=False)

    with pytest.raises(ValueError, match="other does not tell how its images are prepared"):
        ask(tmp_path, "analysis=diagnostics", f"checkpoint={one}", f"analysis.other={other}", *data)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+analysis.other.rot=x", "analysis.other.rot='x': there is no such key; did you mean root"),
        ("analysis.other.resize=0", "analysis.other.resize=0: "),
    ],
)
def test_the_second_data_set_of_an_overlap_is_checked_before_the_first_is_opened(
    tmp_path, data, no_work, override, message
):
    no_work()

    with pytest.raises(ValueError, match=message):
        ask(tmp_path, "analysis=overlap", *data, "data@analysis.other=caltech101", override)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("transfer", "analysis.images_per_class=[]", r"analysis.images_per_class: give one .* such as \[15,30\]"),
        ("probes", "analysis.layers=[]", r"analysis.layers: name one .* such as \[conv5,fc7\]"),
    ],
)
def test_an_empty_list_does_not_mean_all_of_them(name, override, message):
    with pytest.raises(ValueError, match=message):
        check(AnalyzeConfig, composed(f"analysis={name}", "checkpoint=x", override, name="analyze"))
