"""Configs and run folders of strangers: nothing of theirs runs, and nothing is written outside."""

import re
import shutil

import pytest
import yaml
from omegaconf import OmegaConf

from tests.commands.refusals import refused
from zfscope.commands.guard import check_interpolations

MADE = "{_target_: os.makedirs, name: made}"
EXPERIMENTS = {
    "a callback of Hydra": (f"hydra: {{callbacks: {{x: {MADE}}}}}", r"hydra\.callbacks\.x\._target_=os\.makedirs"),
    "one of Hydra's own that pickles": (
        "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.PickleJobInfoCallback}}}",
        r"hydra\.callbacks\.x\._target_=.* of a config is not taken",
    ),
    "a launcher": ("hydra: {launcher: {_target_: os.abort}}", r"hydra\.launcher\._target_=os\.abort is no class of"),
    "a sweeper": ("hydra: {sweeper: {_target_: os.abort}}", r"hydra\.sweeper\._target_=os\.abort is no class of"),
    "a factory of logging": (
        "hydra: {job_logging: {handlers: {x: {(): os.makedirs, name: made}}}}",
        r"hydra\.job_logging\.handlers\.x\.\(\)=os\.makedirs is no class of Hydra's own",
    ),
    "a log file elsewhere": (
        "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: made}}}}",
        r"hydra\.job_logging\.handlers\.x\.class=.* of a config is not taken",
    ),
    "another log": (
        "hydra: {hydra_logging: {root: {level: DEBUG}}}",
        r"hydra\.hydra_logging\.root\.level='DEBUG' of",
    ),
    "environment variables": ("hydra: {job: {env_set: {PATH: made}}}", r"hydra\.job\.env_set\.PATH='made' of a config"),
    "a copied environment": ("hydra: {job: {env_copy: [HOME]}}", r"hydra\.job\.env_copy=\['HOME'\] of a config"),
    "a search path": ("hydra: {searchpath: [pkg://made]}", r"searchpath"),
    "another record": ("hydra: {output_subdir: ../made}", r"hydra\.output_subdir='\.\./made' of a config is not taken"),
    "a folder elsewhere": (
        "hydra: {run: {dir: ../made}, sweep: {dir: ../made}}",
        r"hydra\.(run|sweep)\.dir=\.\./made of a config lies outside",
    ),
    "a cache elsewhere": ("data: {cache: ../made}", r"data\.cache=\.\./made of a config lies outside"),
    "trust in itself": (
        f"trust: [os.makedirs]\ncallbacks: {{x: {MADE}}}",
        r"trust=\[os\.makedirs\] of a config is",
    ),
    "a class": (f"callbacks: {{x: {MADE}}}", r"callbacks\.x\._target_=os\.makedirs is not a callback of this project"),
    "a class within a callback": (
        f"callbacks: {{x: {{_target_: zfscope.callbacks.FilterImages, when: {MADE}}}}}",
        r"callbacks\.x\.when\._target_ names a class within a callback",
    ),
    "a class in a list within a callback": (
        f"callbacks: {{x: {{_target_: zfscope.callbacks.Projections, layers: [{MADE}]}}}}",
        r"callbacks\.x\.layers\.0\._target_ names a class within a callback",
    ),
    "a class of the optimiser": (
        "optim: {_target_: os.makedirs}",
        r"optim\._target_='os\.makedirs': there is no",
    ),
    "a checkpoint elsewhere": (
        "callbacks: {x: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: /tmp/made}}",
        r"callbacks\.x\.dirpath=/tmp/made must lie in the run folder",
    ),
    "a file name that climbs": (
        "callbacks: {x: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: a/../../made}}",
        r"callbacks\.x\.filename=a/\.\./\.\./made must lie in the run folder",
    ),
    "text without end": (
        "tags: [x]\nname: ${a.b0}\na: {b40: xx, "
        + ", ".join(f"b{n}: '${{.b{n + 1}}}${{a.b{n + 1}}}'" for n in range(40))
        + "}",
        r"its interpolations make [\d,]+ characters; write the value itself|there is no such key",
    ),
    "lists without end": (
        "a: {b40: [x, x], " + ", ".join(f"b{n}: ['${{a.b{n + 1}}}', '${{a.b{n + 1}}}']" for n in range(40)) + "}",
        r"its interpolations make [\d,]+ characters",
    ),
    "places of a list": (
        "a: [" + ", ".join(f"'${{a[{n + 1}]}}${{a.{n + 1}}}'" for n in range(40)) + ", x]",
        r"its interpolations make [\d,]+ characters",
    ),
    "keys that are looked up": (
        "a: {b40: x, " + ", ".join(f"b{n}: '${{oc.select:a.b{n + 1}}}${{a.b{n + 1}}}'" for n in range(40)) + "}",
        r"its interpolations make [\d,]+ characters",
    ),
    "names that are made": (
        "a: {b1: x}\nname: '${a.${oc.decode:b1}}'",
        r"the name in an interpolation is made",
    ),
    "steps without end": (
        "name: ${a.b0}\na: {b999: x, " + ", ".join(f"b{n}: '${{.b{n + 1}}}'" for n in range(999)) + "}",
        r"interpolations lead further than 50 steps",
    ),
}


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_runs_nothing_and_writes_nothing_outside(command, tiny, tmp_path, case, sweep):
    lines, message = EXPERIMENTS[case]
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/evil.yaml").write_text(f"# @package _global_\n{lines}\n")
    own = [override for override in tiny if "data.cache" not in override]
    flags = ["-m", "seed=0,1"] if sweep else []

    err = refused(command, tmp_path, "train", "--config-dir=mine", *flags, *own, "experiment=evil")

    assert re.search(message, err), err
    assert not (tmp_path.parent / "made").exists()


def test_control_without_the_guard_what_a_stranger_wrote_is_called(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.commands.configs.check_composed", lambda *_: None)
    (tmp_path / "mine/experiment").mkdir(parents=True)
    lines, _ = EXPERIMENTS["a callback of Hydra"]
    (tmp_path / "mine/experiment/evil.yaml").write_text(f"# @package _global_\n{lines}\n")

    command("train", "--config-dir=mine", *tiny, "experiment=evil", "hydra.run.dir=run")

    assert (tmp_path / "made").is_dir()


STORED = {
    "a part for Hydra": (f"hydra: {{callbacks: {{x: {MADE}}}}}\n", "has a part 'hydra', which no run"),
    "defaults": ("defaults: [/hydra/launcher: evil]\n", "has a part 'defaults', which no run"),
    "a package": (f"# @package hydra\ncallbacks: {{x: {MADE}}}\n", "has a line '# @package', which no run"),
    "trust in itself": ("trust: [os.makedirs]\n", "trust=[os.makedirs] of a config is not taken"),
    "a class": (f"callbacks: {{x: {MADE}}}\n", "callbacks.x._target_=os.makedirs is not a callback of this project"),
    "text without end": (
        "name: ${a.b0}\na: {b40: xx, "
        + ", ".join(f"b{n}: '${{a.b{n + 1}}}${{a.b{n + 1}}}'" for n in range(40))
        + "}\n",
        "characters; write the value itself",
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_a_run_folder_of_a_stranger_runs_nothing(command, run_copy, tmp_path, case):
    text, message = STORED[case]
    path = run_copy / ".hydra/config.yaml"
    values = yaml.safe_load(path.read_text())
    values = {key: value for key, value in values.items() if f"\n{key}:" not in f"\n{text}"}
    path.write_text(text + yaml.safe_dump(values))

    err = refused(command, tmp_path, "train", "resume=outputs/run", "trainer.max_epochs=3")

    assert message in err


def test_a_run_that_trusts_foreign_code_says_what_to_type_again(command, run_copy, tmp_path):
    path = run_copy / ".hydra/config.yaml"
    values = yaml.safe_load(path.read_text()) | {"trust": ["tests.callbacks.foreign.Counter"]}
    path.write_text(yaml.safe_dump(values))

    err = refused(command, tmp_path, "train", "resume=outputs/run", "trainer.max_epochs=3")

    assert "type 'trust=[tests.callbacks.foreign.Counter]', if it is meant" in err


def test_a_cache_elsewhere_of_a_run_is_left_alone_unless_it_is_typed(command, run_copy, tmp_path):
    cache = yaml.safe_load((run_copy / ".hydra/config.yaml").read_text())["data"]["cache"]
    assert not cache.startswith(str(tmp_path))  # where the run was made

    code, out, err = command("train", "resume=outputs/run", "trainer.max_epochs=3")

    assert code == 0, err
    assert f"data.cache={cache} of this run lies outside the working directory; unless typed, data_cache is used" in out
    assert (tmp_path / "data_cache").is_dir()
    shutil.rmtree(tmp_path / "data_cache")
    assert command("train", "resume=outputs/run", "trainer.max_epochs=4", f"data.cache={cache}")[0] == 0
    assert not (tmp_path / "data_cache").exists()


@pytest.mark.parametrize("text", ["${p.${host}}", "${oc.env:${variable}}", "${p[a]}-${.host}", "${now:%Y}_${p.a}"])
def test_interpolations_as_people_write_them_are_taken(text):
    check_interpolations(OmegaConf.create({"p": {"a": 1}, "host": "a", "variable": "HOME", "value": text, "l": [text]}))


def test_an_analysis_leaves_a_cache_elsewhere_of_a_run_alone_and_says_so(command, trained_run, tmp_path):
    code, out, err = command("analyze", f"checkpoint={trained_run}", "device=cpu", "logger=none", "hydra.run.dir=found")

    assert code == 0, err
    assert "/cache of the run lies outside the working directory; unless typed, data_cache is used" in out
    code, out, err = command(
        "analyze", f"checkpoint={trained_run}", "device=cpu", "logger=none", "hydra.run.dir=again", "data.cache=other"
    )
    assert code == 0 and "outside the working directory" not in out
