"""Whether a network is the paper's own: the facts of the twelve experiments, and all that makes it another one."""

import pytest

from tests.conftest import quick_first
from tests.report.planted import identity_of
from zfscope.report.architectures import NETWORKS, flatten, row_of
from zfscope.report.paper import TABLES


def facts_of(*overrides):
    return identity_of(*overrides)["facts"]


@pytest.mark.parametrize("row", quick_first(TABLES[2].rows, 4))
def test_every_experiment_of_table_3_trains_the_network_of_its_row(row):
    assert row_of(facts_of(f"experiment=table3_{row}")) == row


def test_every_row_has_its_network():
    assert set(NETWORKS) == set(TABLES[2].rows)
    assert len({str(flatten({"model": network})) for network in NETWORKS.values()}) == 12


def test_names_rates_and_places_make_no_other_network():
    overrides = ["model.name=mine", "optim.lr=0.02", "optim.epochs=3", "data.root=/x", "data.exclude=null", "seed=5"]

    assert row_of(facts_of("experiment=table3_zfnet", *overrides)) == "zfnet"


@pytest.mark.parametrize(
    "override",
    [
        "model=zfnet_mini",
        "model/stem=11x11s4",
        "model.conv4.groups=2",
        "model.fc6.dropout=0.4",
        "model.conv5.pool.kernel_size=2",
        "model.contrast.k=1.0",
        "model.init.std=0.02",
        "model.filter_rms=null",
        "model.input_scale=unit",
        "data=phantom",
        "data.classes=[a,b]",
        "data.resize=280",
        "weights=zoo/zfnet",
        "+trainer.limit_train_batches=100",
        "+trainer.overfit_batches=2",
    ],
)
def test_another_network_start_or_other_images_are_not_the_papers(override):
    assert row_of(facts_of("experiment=table3_zfnet", override)) is None


def test_public_weights_are_the_papers_by_their_name_as_they_are():
    assert row_of({"weights": "zoo/zfnet"}) == "zfnet" and row_of({"weights": "zoo/zfnetb"}) == "zfnet_wide"
    assert row_of({"weights": "torchvision/alexnet"}) is None and row_of({}) is None


def test_nested_values_are_flattened_by_dotted_key():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": {}, "f": [2]}) == {"a.b.c": 1, "a.d": None, "f": [2]}
