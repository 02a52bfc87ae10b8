"""Checkpoints as they should not be, as ``checkpoint=``, ``weights=`` and ``resume=`` meet them."""

import json
import os
import re
import shutil

import pytest
import torch

from tests.commands.refusals import refused
from zfscope.networks.checkpoints import read_checkpoint, write_checkpoint

QUICK = ("callbacks=none", "trainer.max_epochs=1", "evaluate.enabled=false", "hydra.run.dir=new")
EVALUATE = ("device=cpu", "logger=none", "analysis.part=val", "analysis.ten_crops=false")
NAN = float("nan")


def changed(path, change):
    """Change a checkpoint's content in place."""
    content = read_checkpoint(path)
    change(content)
    write_checkpoint(content, path)


def both_refuse(command, folder, tiny, source, message):
    """``analyze.py checkpoint=`` and ``train.py weights=`` refuse it alike."""
    for name, overrides in (("analyze", [f"checkpoint={source}", *EVALUATE]), ("train", [*tiny, f"weights={source}"])):
        err = refused(command, folder, name, *overrides)
        assert re.search(message, err), err


def test_a_missing_checkpoint_is_refused_with_those_that_are_there(command, tiny, tmp_path, trained_run):
    both_refuse(
        command, tmp_path, tiny, f"{trained_run}/epoch_077", r"no checkpoint at .*epoch_077; there are .*best\.ckpt"
    )
    err = refused(command, tmp_path, "train", f"resume={trained_run.parent}/no")
    assert re.search(r"resume=.*/no: no run there", err), err


@pytest.mark.parametrize("url", ["https://example.org/a.ckpt", "s3://bucket/a.ckpt"])
def test_a_url_is_refused_wherever_a_path_is_meant(command, tiny, tmp_path, url):
    both_refuse(command, tmp_path, tiny, url, rf"(weights|checkpoint).*: {url} is a URL; download it first")
    err = refused(command, tmp_path, "train", f"resume={url}")
    assert f"resume={url} is a URL; download the run first" in err
    err = refused(command, tmp_path, "train", *tiny, f"data.root={url}")
    assert f"data.root: {url} is a URL" in err


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.makedirs, (str(self.folder),)


@pytest.mark.parametrize("forced", [False, True], ids=["", "forced"])
def test_a_pickle_payload_is_refused_and_does_not_run(command, tiny, tmp_path, run_copy, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = run_copy / "checkpoints/last.ckpt"
    torch.save({**read_checkpoint(path), "x": Payload(tmp_path / "made")}, path)

    both_refuse(
        command, tmp_path, tiny, f"{run_copy}/last", r"last\.ckpt holds more than tensors .* a os\.makedirs in it"
    )
    assert not (tmp_path / "made").exists()


def test_a_bare_state_dict_of_the_right_shapes_starts_a_training(command, tiny, tmp_path, trained_run):
    state = read_checkpoint(trained_run / "checkpoints/last.ckpt")["state_dict"]
    bare = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    torch.save(bare, tmp_path / "bare.pth")

    code, out, err = command("train", *tiny, *QUICK, "weights=bare.pth", "optim.lr=1e-30")

    assert code == 0, err
    assert "weights from bare.pth\n" in out
    new = read_checkpoint(tmp_path / "new/checkpoints/last.ckpt")["state_dict"]
    torch.testing.assert_close(new["network.conv2.conv.weight"], bare["conv2.conv.weight"])


def test_weights_of_another_shape_are_refused_by_their_first_tensor(command, tiny, tmp_path, trained_run):
    err = refused(command, tmp_path, "train", *tiny, "model.conv2.maps=4", f"weights={trained_run}")

    assert re.search(r"conv2\.conv\.weight has shape \(8, 8, 5, 5\), but this network's is \(4, 8, 5, 5\); use", err), (
        err
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["owl", "dog", "cat"], r"the classes come in another order: number 0 is 'owl' for the network, 'cat' in"),
        (["cat", "dog", "pig"], r"the data set's classes are not the network's: it lacks pig, it adds owl"),
    ],
)
def test_classes_in_another_order_or_of_other_names_are_refused(command, tmp_path, run_copy, classes, message):
    changed(run_copy / "checkpoints/best.ckpt", lambda content: content["zfscope"].update(classes=classes))

    for analysis in ("evaluate", "occlusion", "invariance"):
        overrides = EVALUATE if analysis == "evaluate" else EVALUATE[:2]
        err = refused(command, tmp_path, "analyze", f"checkpoint={run_copy}", f"analysis={analysis}", *overrides)
        assert re.search(message, err), err


def test_a_data_set_of_fewer_classes_is_refused(command, tmp_path, folders, trained_run):
    for part in ("train", "val"):
        shutil.rmtree(folders / part / "owl")

    err = refused(command, tmp_path, "analyze", f"checkpoint={trained_run}", f"data.root={folders}", *EVALUATE)

    assert "the network tells 3 classes apart, the data set has 2" in err


# --- NaN ---


def spoil(content):
    content["state_dict"]["network.conv1.conv.weight"][0, 0, 0, 0] = NAN


def spoil_momentum(content):
    state = content["optimizer_states"][0]["state"]
    next(iter(state.values()))["momentum_buffer"][0] = NAN


def test_weights_that_are_nan_are_refused_by_tensor(command, tiny, tmp_path, run_copy):
    changed(run_copy / "checkpoints/last.ckpt", spoil)

    both_refuse(
        command, tmp_path, tiny, f"{run_copy}/last", r"last(\.ckpt)?: conv1\.conv\.weight holds NaN or infinity; use"
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [(spoil, r"conv1\.conv\.weight"), (spoil_momentum, r"optimizer_states\.0\.state\.0\.momentum_buffer")],
    ids=["weights", "momentum"],
)
def test_a_run_does_not_go_on_from_nan(command, tmp_path, run_copy, change, name):
    for path in (run_copy / "checkpoints").glob("[bl]*.ckpt"):
        changed(path, change)
    before = (run_copy / "results.json").read_bytes()

    err = refused(command, tmp_path, "train", "resume=outputs/run", "trainer.max_epochs=3")

    assert re.search(rf"last\.ckpt: {name} holds NaN or infinity; use an earlier checkpoint", err), err
    assert (run_copy / "results.json").read_bytes() == before


def test_a_run_goes_on_from_its_best_checkpoint_with_a_warning_where_the_last_is_nan(command, run_copy):
    changed(run_copy / "checkpoints/last.ckpt", spoil)

    with pytest.warns(UserWarning, match=r"last\.ckpt: conv1\.conv\.weight holds NaN .*; the run goes on from .*best"):
        code, _, err = command("train", "resume=outputs/run", "trainer.max_epochs=3")

    assert code == 0, err
    assert json.loads((run_copy / "results.json").read_text())["conditions"]["epochs"] == 3


# --- members ---


def ensemble(folder):
    return ["analysis=ensemble", f"checkpoint='{folder}/*'", *EVALUATE, "hydra.run.dir=found"]


def test_a_member_that_is_missing_or_comes_twice_is_refused_and_left_out_on_request(command, tmp_path, run_copy):
    six = run_copy.parent
    (six / "none").mkdir()
    err = refused(command, tmp_path, "analyze", *ensemble(six))
    assert re.search(r"1 of 2 members cannot be read: \S+/none .*; analysis\.partial=true goes on without", err), err

    code, _, err = command("analyze", *ensemble(six), "analysis.partial=true")
    assert code == 0, err
    metrics = json.loads((tmp_path / "found/results.json").read_text())["metrics"]
    assert (metrics["members"]["value"], metrics["members"]["unit"]) == (1, "of 2")

    shutil.copytree(run_copy, six / "twin")
    shutil.rmtree(six / "none")
    err = refused(command, tmp_path, "analyze", *ensemble(six))
    assert re.search(r"outputs/run and \S+/twin are the same network; a member counts once", err), err
