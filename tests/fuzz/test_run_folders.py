"""Run folders of any content: results, overrides, and what checkpoints say of themselves."""

import json
import warnings
from copy import deepcopy

import pytest
import torch
import yaml
from hypothesis import strategies as st

from tests.conftest import composed, on_folders
from tests.fuzz.cases import check_message, counts, refusal, try_cases
from tests.fuzz.grammar import NESTED, ODD, changed
from tests.report.planted import analysis, ensemble, identity_of, training
from zfscope.analyses.run import ask, conditions_of, tell_unfinished
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.commands.nesting import check_yaml
from zfscope.commands.resumption import overrides_of
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import network_state, read_checkpoint, start_from, write_checkpoint
from zfscope.networks.preprocessing import Preprocessing
from zfscope.report.claims import measure
from zfscope.report.ledger import fill
from zfscope.report.page import pages
from zfscope.report.readings import read_runs
from zfscope.runs import finished_conditions, kind_of_run, read_overrides, read_results

# --- results.json ---


def results() -> list[dict]:
    """What runs of several kinds leave."""
    runs = [
        training("a", "table3_zfnet"),
        training("b", "table3_alexnet", data="phantom", evaluated="last"),
        analysis("c", "transfer", {"pretrained/30": {"value": 80.0, "spread": 1.0, "values": [79.0, 81.0]}}),
        analysis("d", "correspondence", {"conv5/nose": 0.1, "fc7/nose": 0.2}, data="phantom"),
        analysis("e", "probes", {"svm/conv5": 60.0}),
        ensemble({"zfnet": 3, "zfnet_wide": 1}),
    ]
    return [{"metrics": run.metrics, "conditions": run.conditions, "state": "finished", "cause": None} for run in runs]


@st.composite
def written(draw, whole, dump) -> bytes:
    """A file whose content is nearly ``whole``, or of any kind, and which may be cut off."""
    kind = draw(st.sampled_from(["changed", "changed", "changed", "cut", "any", "bytes", "deep"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "deep":
        depth = draw(st.integers(1, 20_000))
        return draw(st.sampled_from([b"[" * depth, b'{"metrics":' * depth, b"[" * depth + b"]" * depth]))
    text = dump(draw(NESTED) if kind == "any" else draw(changed(draw(whole)))).encode("utf-8", "surrogatepass")
    return text[: draw(st.integers(0, len(text)))] if kind == "cut" else text


def as_json(content) -> str:
    return json.dumps(content, ensure_ascii=False, default=str)


@counts(8, 600)
def test_results_of_any_content_are_read_or_left_out_of_the_ledger_with_their_cause(tmp_path, record_property, count):
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs/two/results.json").write_text(as_json(results()[0]))
    path = tmp_path / "runs/one/results.json"

    def check_case(content):
        path.write_bytes(content)
        for read in (read_results, kind_of_run, finished_conditions):
            told = refusal(read, path.parent)
            assert told is None or str(path) in told
        runs, causes = read_runs([str(tmp_path / "runs")])
        for cause in causes.values():
            check_message(cause)
        assert len(runs) + len(causes) == 2 or json.loads(content)["conditions"]["name"] == "ledger"
        text = "".join(pages(fill(runs), measure(runs), runs, causes, b"png").values())
        assert str(path.parent) in text or not runs[1:]

    whole = st.deferred(lambda: st.sampled_from(WHOLE))
    try_cases(record_property, count, written(whole, as_json), check_case)


# --- overrides.yaml ---


@counts(20, 500)
def test_overrides_of_any_content_are_read_as_a_list_of_texts(tmp_path, record_property, count):
    path = tmp_path / ".hydra/overrides.yaml"
    path.parent.mkdir()

    def check_case(content):
        path.write_bytes(content)
        if refusal(check_yaml, path) is not None:
            return
        assert all(isinstance(text, str) for text in read_overrides(tmp_path))
        assert "seed=3" in overrides_of(tmp_path, ["seed=3"])

    whole = st.lists(st.one_of(st.sampled_from(["seed=1", "+a.b=2", "~x", "optim.lr=0.1"]), ODD), max_size=4)
    try_cases(record_property, count, written(whole, yaml.dump), check_case)


# --- checkpoints ---


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory):
    """A checkpoint of a tiny network as a training writes it, and the folder of its images."""
    from tests.conftest import write_folders

    images = write_folders(tmp_path_factory.mktemp("checkpoints") / "images", {"train": 2, "val": 2})
    overrides = [*on_folders(images), *(f"model.conv{number}.maps=2" for number in range(1, 6))]
    config = composed(*overrides, "model.fc6.units=4", "model.fc7.units=4")
    network = build_network(config["model"], 3, 28)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(32, 28, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    identity = identity_of("model=zfnet_mini")
    contents = {"train": torch.zeros(6, 8, dtype=torch.uint8)}
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    about = network_state(network, config, "of the images", identity, contents)
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": True}}}
    return {"state_dict": state, "zfscope": about, "epoch": 1, "global_step": 6, "loops": loops}, network


@counts(8, 600)
def test_a_checkpoint_that_says_anything_of_itself_is_taken_or_refused_in_one_line(
    whole_checkpoint, tmp_path, monkeypatch, record_property, count
):
    content, network = whole_checkpoint
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run/checkpoints/last.ckpt"

    def look():
        config = AnalyzeConfig(checkpoint=str(path), device="cpu", analysis={"name": "evaluate", "part": "val"})
        question = ask(config, tmp_path)
        conditions = conditions_of(config, question)
        json.dumps(conditions)
        tell_unfinished(conditions)

    def check_case(case):
        write_checkpoint(case, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refusal(read_checkpoint, path)
            refusal(look)
            refusal(start_from, deepcopy(network), str(path))

    cases = st.one_of(changed(content), changed(content), changed({"zfscope": content["zfscope"]}).map(content.__or__))
    try_cases(record_property, count, cases.filter(lambda case: isinstance(case, dict)), check_case)


WHOLE = results()
