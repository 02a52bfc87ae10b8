import json
import subprocess
import sys

import numpy as np
import pytest

from zfscope.files import check_writable
from zfscope.runs import (
    RunFolderLocked,
    claim,
    code_version,
    environment,
    finished_conditions,
    kind_of_run,
    lock,
    read_overrides,
    read_results,
    run_id,
    write_record,
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


def test_a_run_keeps_its_id(tmp_path):
    assert run_id(tmp_path / "a") == run_id(tmp_path / "a") != run_id(tmp_path / "b")


def test_what_a_run_was_started_with_is_kept_and_a_damaged_list_of_overrides_is_empty(tmp_path):
    write_record(tmp_path, {"overrides.yaml": "- name=${oc.env:NAME}\n- data.classes=[Käfer,2]\n"})
    assert read_overrides(tmp_path) == ["name=${oc.env:NAME}", "data.classes=[Käfer,2]"]

    for damaged in ("- [unfinished", "a: mapping", "7"):
        write_record(tmp_path, {"overrides.yaml": damaged})
        assert read_overrides(tmp_path) == []
    assert read_overrides("nowhere") == []


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[0]",
        b'{"metrics": {}}',
        b'{"metrics": 1, "conditions": {}}',
        b"[1" + b"0" * 5000,
    ],
    ids=["cut off", "bytes", "deep", "list", "half", "number", "digits"],
)
def test_results_that_hold_something_else_are_refused_by_name(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)

    for read in (read_results, kind_of_run):
        with pytest.raises(
            ValueError, match=r"results\.json (is not JSON|holds no metrics and conditions).*; remove it"
        ):
            read(tmp_path)
    assert finished_conditions(tmp_path) is None


def test_a_result_of_an_unknown_kind_is_one_that_would_be_lost(tmp_path):
    write_results(tmp_path, {}, {"name": [3]})

    assert kind_of_run(tmp_path) == "unknown"


def test_the_kind_of_a_run_is_read_from_what_it_left(tmp_path):
    assert kind_of_run(tmp_path) is None
    write_results(tmp_path, {}, {"name": "probes"}, state="failed")
    assert kind_of_run(tmp_path) is None
    write_results(tmp_path, {}, {"name": "probes"})
    assert kind_of_run(tmp_path) == "probes"
    (tmp_path / "checkpoints").mkdir()
    assert kind_of_run(tmp_path) == "training"


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
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_in_which_nothing_was_done_goes_with_those_made_above_it(tmp_path):
    (tmp_path / "outputs").mkdir()

    with pytest.raises(ValueError, match="refused"), claim(tmp_path / "outputs/a/b") as folder:
        write_record(folder, {"config.yaml": "seed: 1"})
        raise ValueError("refused")

    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"]


def test_a_folder_in_which_something_was_done_stays(tmp_path):
    with pytest.raises(ValueError, match="late"), claim(tmp_path / "a/run") as folder:
        (folder / "figures").mkdir()
        raise ValueError("late")

    assert (tmp_path / "a/run/figures").is_dir()


def test_a_folder_that_was_there_is_taken_as_it_is_or_left_alone_for_a_numbered_one(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")

    with pytest.raises(ValueError, match="refused"), claim(tmp_path / "run"):
        raise ValueError("refused")
    with claim(tmp_path / "run", numbered=True) as second, claim(tmp_path / "run", numbered=True) as third:
        names = (second.name, third.name)

    assert names == ("run_2", "run_3")
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_a_folder_that_is_held_or_whose_content_must_stay_is_refused(tmp_path):
    def refuse(folder):
        raise ValueError(f"{folder.name} holds a run")

    locked = pytest.raises(RunFolderLocked, match="run is locked by another process")
    with claim(tmp_path / "run"), locked, claim(tmp_path / "run"):
        pass
    with pytest.raises(ValueError, match="run holds a run"), claim(tmp_path / "run", check=refuse):
        pass


@pytest.mark.parametrize("place", ["/proc/here", "file/run", "file"])
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    with (
        pytest.raises(OSError, match=f"{place}( cannot be written|: a file is in the way).*; choose another"),
        claim(place),
    ):
        pass
    if place != "file":
        with pytest.raises(OSError, match=f"data.cache={place} cannot be written .*; choose another folder"):
            check_writable(place, "data.cache")
    check_writable(tmp_path / "new/below", "data.cache")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_environment_is_plain_and_names_code_libraries_and_threads():
    facts = environment("cpu", 32)

    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"].keys() >= {"python", "torch", "numpy", "timm", "lightning", "torchvision", "zfscope"}
    assert facts["versions"]["numpy"] == np.__version__
    assert (facts["device"], facts["precision"]) == ("cpu", "32")
    assert (facts["commit"], facts["dirty"]) == code_version()
    assert facts["threads"] >= 1
