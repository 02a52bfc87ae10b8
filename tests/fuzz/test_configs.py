"""Configs that somebody else wrote: experiments, the config of a run that is resumed, and values without any file."""

import pytest
import yaml
from hypothesis import strategies as st

from tests.conftest import composed
from tests.fuzz.cases import counts, refusal, try_cases
from tests.fuzz.grammar import INTERPOLATIONS, NESTED, changed, keys
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import check
from zfscope.training.spec import TrainConfig

SCHEMAS = {"train": TrainConfig, "analyze": AnalyzeConfig}
HEADERS = [
    "# @package _global_\n",
    "# @package _global_\n",
    "# @package model\n",
    "",
    "# @package hydra.job\n",
    "%YAML 9\n",
]
PIECES = ["\t", ": ", "- ", "&a ", "*a", "!!python/object:os.abort ", "\x00", "<<: *b\n", "'", "%"]
HYDRA = ["run.dir", "sweep.dir", "sweep.subdir", "sweeper.params.seed", "mode", "job.name", "job.chdir", "x"]
HYDRA += [
    "launcher._target_",
    "callbacks.x._target_",
    "job_logging.version",
    "output_subdir",
    "searchpath",
    "verbose",
    "job.env_set.A",
]


@pytest.mark.parametrize("name", SCHEMAS)
@counts(40, 1000)
def test_values_of_any_kind_are_taken_or_refused_in_one_line(record_property, name, count):
    whole = composed(*(["checkpoint=x"] if name == "analyze" else ["callbacks=default"]), name=name)

    def check_case(values):
        if isinstance(values, dict):
            refusal(check, SCHEMAS[name], values)

    try_cases(record_property, count, changed(whole), check_case)


@st.composite
def experiments(draw) -> str:
    """The YAML of an experiment: real keys, with values that fit or do not, and a part for Hydra at times."""
    values: dict = {}
    for key in draw(st.lists(st.sampled_from(keys("train")), min_size=1, max_size=4, unique=True)):
        put(values, key, draw(st.one_of(NESTED, NESTED, INTERPOLATIONS)))
    for key in draw(st.lists(st.sampled_from(HYDRA), max_size=1)):
        put(values, f"hydra.{key}", draw(st.one_of(NESTED, INTERPOLATIONS, st.just("here"))))
    if draw(st.integers(0, 3)) == 0:
        choices = ["model: alexnet", "override /model: alexnet", "/optim: zfnet", "_self_", "no_such", "/data: 5"]
        values["defaults"] = draw(st.one_of(st.lists(st.sampled_from(choices).map(yaml.safe_load), max_size=3), NESTED))
    text = draw(st.sampled_from(HEADERS)) + yaml.safe_dump(values, allow_unicode=draw(st.booleans()))
    return broken(draw, text)


def put(values: dict, key: str, value) -> None:
    """Set a dotted key in nested mappings."""
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {}) if isinstance(values.get(part, {}), dict) else values
    values[last] = value


def broken(draw, text: str) -> str:
    """The text as it is, cut off, or with something put into it."""
    fault = draw(st.sampled_from(["none", "none", "none", "cut", "put", "deep"]))
    place = draw(st.integers(0, len(text)))
    if fault == "cut":
        return text[:place]
    if fault == "put":
        return text[:place] + draw(st.sampled_from(PIECES)) + text[place:]
    if fault == "deep":
        depth = draw(st.integers(1, 5000))
        kinds = ["[" * depth + "]" * depth, "{a: " * depth, "${a." * depth + "}" * depth]
        return f"{text}\nname: {draw(st.sampled_from(kinds))}"
    return text


@counts(5, 1200)
def test_an_experiment_is_taken_or_refused_in_one_line(typed, tmp_path, record_property, count):
    path = tmp_path / "mine/experiment/theirs.yaml"
    path.parent.mkdir(parents=True)

    def check_case(case):
        text, sweep = case
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        typed("train", f"--config-dir={tmp_path / 'mine'}", "experiment=theirs", *(["-m", "seed=0,1"] if sweep else []))

    try_cases(record_property, count, st.tuples(experiments(), st.booleans()), check_case)


@counts(5, 800)
def test_a_run_with_any_config_goes_on_or_is_refused_in_one_line(typed, run_copy, record_property, count):
    path = run_copy / ".hydra/config.yaml"
    whole = yaml.safe_load(path.read_text())

    def check_case(case):
        content, overrides = case
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        typed("train", f"resume={run_copy}", "trainer.max_epochs=3", *overrides)

    @st.composite
    def stored(draw):
        text = yaml.safe_dump(draw(changed(whole)))
        return broken(draw, text)

    typed_too = ["seed=3", "model=alexnet", "~seed", "+x=1", "data.batch_size=2", "optim.lr=x"]
    more = st.lists(st.sampled_from(typed_too), max_size=1)
    try_cases(record_property, count, st.tuples(stored(), more), check_case)
