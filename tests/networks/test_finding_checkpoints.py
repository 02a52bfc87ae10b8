"""Which file a name means, and starting from trained weights."""

import warnings

import pytest
import torch
from torch import nn

from tests.conftest import composed
from tests.networks.saved import SIZE, fresh, run, same
from zfscope import load_network
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import find_checkpoint, start_from


def test_run_folder_means_its_best_checkpoint_else_its_last(tmp_path):
    both = run(tmp_path / "both", "best", "last", "epoch_001")
    last = run(tmp_path / "last", "last", "epoch_001")

    assert find_checkpoint(both) == both / "checkpoints" / "best.ckpt"
    with pytest.warns(UserWarning, match=r"holds no best\.ckpt; last\.ckpt is taken"):
        taken = find_checkpoint(str(last))
    assert taken == last / "checkpoints" / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        find_checkpoint(str(last))  # told once


@pytest.mark.parametrize("name", ["last", "best", "epoch_010"])
def test_name_after_the_run_folder_means_that_checkpoint(name, tmp_path):
    folder = run(tmp_path / "run", "best", "last", "epoch_010")

    expected = folder / "checkpoints" / f"{name}.ckpt"

    assert find_checkpoint(folder / name) == expected
    assert find_checkpoint(folder / "checkpoints" / name) == expected
    assert find_checkpoint(expected) == expected


def test_missing_checkpoint_is_refused_with_the_candidates(tmp_path):
    folder = run(tmp_path / "outputs" / "monday", "best", "epoch_010")
    (tmp_path / "outputs" / "notes").mkdir()

    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*epoch_020; there are .*best.ckpt, .*epoch_010"):
        find_checkpoint(folder / "epoch_020")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*tuesday; there are \S*monday; give a run folder"):
        find_checkpoint(tmp_path / "outputs" / "tuesday")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere/run; give a run folder, a .ckpt file"):
        find_checkpoint("nowhere/run")


def test_run_without_a_finished_epoch_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no best.ckpt or last.ckpt; the run had not finished an epoch"):
        load_network(run(tmp_path / "run"))


@pytest.mark.parametrize("source", ["https://example.org/a.ckpt", "http://example.org/a.ckpt", "s3://bucket/a.ckpt"])
def test_url_is_refused(source):
    with pytest.raises(ValueError, match=f"{source} is a URL; download the file first"):
        load_network(source)


def test_start_from_a_run_takes_all_weights(saved, network, config):
    start = fresh(config, seed=9)

    fresh_names = start_from(start, str(saved.parent.parent))

    assert fresh_names == []
    assert same(network, start)


def test_start_from_a_bare_state_dict_of_the_right_shapes(network, config, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    start = fresh(config, seed=9)

    fresh_names = start_from(start, str(tmp_path / "bare.pth"))

    assert fresh_names == []
    assert same(network, start)


def test_classes_layer_of_another_size_stays_fresh(saved, network, config):
    start, untouched = fresh(config, num_classes=7, seed=9), fresh(config, num_classes=7, seed=9)

    fresh_names = start_from(start, str(saved))

    assert fresh_names == ["fc8.linear.weight", "fc8.linear.bias"]
    assert torch.equal(start.fc8.linear.weight, untouched.fc8.linear.weight)
    assert torch.equal(start.conv1.conv.weight, network.conv1.conv.weight)
    assert torch.equal(start.fc7.linear.weight, network.fc7.linear.weight)
    assert not torch.equal(start.fc7.linear.weight, untouched.fc7.linear.weight)


def test_any_other_layer_of_another_size_is_refused(saved, config):
    other = build_network(composed("model=zfnet_mini")["model"], 3, SIZE)

    with pytest.raises(ValueError, match=r"conv1.conv.weight has shape \(8, 3, 7, 7\), but this network's is \(32, 3"):
        start_from(other, str(saved))


def test_a_file_without_weights_is_refused(config, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "notes.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")

    for name in ("notes.pth", "linear.pth"):
        with pytest.raises(ValueError, match=f"{name} has no weights for conv1.conv.weight"):
            start_from(fresh(config), str(tmp_path / name))


def test_entries_that_are_no_tensors_are_refused(network, config, tmp_path):
    torch.save({**network.state_dict(), "conv1.conv.weight": 3}, tmp_path / "odd.pth")

    with pytest.raises(ValueError, match="odd.pth.*conv1.conv.weight"):
        start_from(fresh(config), str(tmp_path / "odd.pth"))
