import json
import subprocess
import sys

import numpy as np
import pytest

from zfscope.runs import (
    RunFolderLocked,
    code_version,
    environment,
    lock,
    read_overrides,
    read_results,
    remove_unused,
    replacing,
    run_id,
    write_arrays,
    write_overrides,
    write_results,
)


def test_results_come_back_with_null_for_what_is_no_number(tmp_path):
    metrics = {"val/top1_error": {"value": float("nan"), "unit": "%"}}

    write_results(tmp_path, metrics, {"name": "grün", "sizes": (1, float("inf"))}, state="failed", cause="no room")

    content = read_results(tmp_path)
    assert content["metrics"]["val/top1_error"] == {"value": None, "unit": "%"}
    assert content["conditions"] == {"name": "grün", "sizes": [1, None]}
    assert (content["state"], content["cause"]) == ("failed", "no room")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_without_results_and_a_damaged_file(tmp_path):
    assert read_results(tmp_path) is None

    (tmp_path / "results.json").write_text('{"metrics": {\n')
    with pytest.raises(ValueError, match=r"results\.json is not JSON \(line 2\); remove it"):
        read_results(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    with pytest.raises(RuntimeError, match="half"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1

    with replacing(path, sync=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_arrays_are_read_without_pickle(tmp_path):
    write_arrays(tmp_path / "arrays.npz", {"a": np.arange(3)})

    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def test_a_run_keeps_its_id(tmp_path):
    assert run_id(tmp_path / "a") == run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_overrides_are_kept_as_typed(tmp_path):
    (tmp_path / ".hydra").mkdir()
    write_overrides(tmp_path, ["name=${oc.env:NAME}", "data.classes=[Käfer,2]"])

    assert read_overrides(tmp_path) == ["name=${oc.env:NAME}", "data.classes=[Käfer,2]"]
    with pytest.raises(FileNotFoundError, match=r"resume=nowhere: no run there .* give the folder of a run"):
        read_overrides("nowhere")


def test_a_folder_is_held_by_one_alone_and_free_afterwards_also_after_an_error(tmp_path):
    with lock(tmp_path):
        with pytest.raises(RunFolderLocked, match="is locked by another process"), lock(tmp_path):
            pass
        code = f"from zfscope.runs import lock\nwith lock({str(tmp_path)!r}): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode == 1 and "RunFolderLocked" in other.stderr

    with pytest.raises(RuntimeError, match="mine"), lock(tmp_path):
        raise RuntimeError("mine")
    with lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_was_done_goes_with_the_empty_ones_above(tmp_path):
    run = tmp_path / "outputs/sweeps/one/0"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra/config.yaml").touch()
    (run / ".lock").touch()

    remove_unused(run)

    assert not run.exists() and (tmp_path / "outputs/sweeps/one").is_dir()
    run = tmp_path / "outputs/run"
    run.mkdir()
    (tmp_path / "outputs/sweeps/one").rmdir()
    (tmp_path / "outputs/sweeps").rmdir()
    remove_unused(run)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_something_was_done_stays(tmp_path):
    run = tmp_path / "outputs/run"
    (run / "checkpoints").mkdir(parents=True)

    remove_unused(run)

    assert (run / "checkpoints").is_dir()


def test_the_environment_is_plain_and_names_code_libraries_and_threads():
    facts = environment("cpu", 32)

    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"].keys() >= {"python", "torch", "numpy", "timm", "lightning", "torchvision", "zfscope"}
    assert facts["versions"]["numpy"] == np.__version__
    assert (facts["device"], facts["precision"]) == ("cpu", "32")
    assert (facts["commit"], facts["dirty"]) == code_version()
    assert facts["threads"] >= 1
