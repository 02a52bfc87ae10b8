"""Configs that cannot be: refused before any work, in one line with key, value and way out."""

import re

import pytest
from hydra._internal.utils import get_args_parser

from tests.commands.refusals import refused
from zfscope.commands.configs import prepare


def check_refused(command, folder, message, *overrides):
    err = refused(command, folder, "train", *overrides)

    assert re.search(message, err), err
    assert not (folder / "cache").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=nan", r"optim\.lr=nan: .*finite"),
        ("optim.weight_decay=nan", r"optim\.weight_decay=nan: .*finite"),
        ("+trainer.max_time=nan", r"trainer\.max_time=nan"),
        ("optim.momentum=5", r"optim\.momentum=5: .*less than 1"),
        ("data.augment.brightness=-1", r"data\.augment\.brightness=-1: .*greater than or equal to 0"),
        ("model.conv1.kernel_size=null", r"model\.conv1\.kernel_size=None: .*valid integer"),
        ("data.crop=", r"data\.crop='': .*valid integer"),
        ("+trainer.profiler={a: 1}", r"trainer\.profiler=.*valid string"),
        ("device=gpu", r"^train\.py: device='gpu': the devices are auto, cpu, mps, cuda and cuda:NUMBER"),
        ("trainer.precision=fp16", r"^train\.py: trainer\.precision=fp16: Precision 'fp16' is invalid"),
        (
            "data.classes=[cat,doog]",
            r"^train\.py: data\.classes=\[cat,doog\]: there is no class 'doog' .*; did you mean dog\?",
        ),
        ("+callbacks.x={_target_: zfscope.callbacks.FilterImages, when: 0}", r"callbacks\.x: .*when=0 must be a whole"),
        (
            "+callbacks.x={_target_: zfscope.callbacks.Projections, top: 0}",
            r"callbacks\.x: Projections: maps=",
        ),
        ("=3", r"^train\.py: =3: the key before = is missing"),
        ("+trainer.benchmark=x", r"^train\.py: trainer\.benchmark=x: .* expects a bool, but got str"),
    ],
)
def test_a_value_out_of_range_is_refused(command, tiny, tmp_path, override, message):
    check_refused(command, tmp_path, message, *tiny, override)


@pytest.mark.parametrize(("model", "name"), [("timm", "resnet18"), ("torchvision", "vgg11")])
@pytest.mark.parametrize("key", ["fc6.units", "conv1.kernel_size"])
def test_a_layer_of_a_foreign_model_is_refused_with_what_has_layers(command, tmp_path, model, name, key):
    told = rf"model\.{key}: a model of {model} is taken as it is; layers are changed in those of conf/model"
    check_refused(command, tmp_path, told, f"model={model}", f"model.name={name}", f"model.{key}=12")


@pytest.mark.parametrize("value", ["5", "true", "null", "{a: 1}", "[zfnet]"])
@pytest.mark.parametrize("group", ["model", "optim"])
def test_a_group_takes_the_name_of_an_option_alone(command, tiny, tmp_path, group, value):
    check_refused(command, tmp_path, f"{group}=.* the group {group} has no such option; .*zfnet", f"{group}={value}")


def test_a_group_within_a_group_takes_a_name_too(command, tmp_path):
    check_refused(command, tmp_path, r"model/stem=5: the group model/stem has no such option; .*7x7s2", "model/stem=5")
    check_refused(command, tmp_path, r"(analysis|data)=5: the group (analysis|data) has no such option", "data@data=5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~lr", r"lr: there is no key 'lr'; there are callbacks, .*optim|did you mean"),
        ("~lr=0.1", r"lr: there is no key 'lr'"),
        ("~optim.lr", r"~optim\.lr: a value cannot be removed, only changed: optim\.lr=…"),
        ("~seed", r"~seed: a value cannot be removed, only changed: seed=…"),
        ("~optim", r"~optim: a group cannot be removed, only chosen: optim=…; there are alexnet"),
        ("~model", r"~model: a group cannot be removed, only chosen: model=…; there are alexnet"),
    ],
)
def test_what_is_needed_cannot_be_removed(command, tiny, tmp_path, override, message):
    check_refused(command, tmp_path, message, *tiny, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.conv1.stride=0", r"model\.conv1\.stride=0: .* or equal to 1; below conv1: image 28$"),
        ("model.conv3.maps=0", r"conv3\.maps=0: .*; below conv3: image 28 -> conv1 12 -> .* -> conv2's pool 3$"),
        (
            "model.conv2.pool.stride=0",
            r"conv2\.pool\.stride=0: .*; below conv2: image 28 -> conv1 12 -> conv1's pool 6$",
        ),
        (
            "model.conv5.kernel_size=40",
            r"40x40 kernel of conv5 is larger .* image 28 -> conv1 12 -> .* -> conv4 3; use",
        ),
        ("model.fc6.units=0", r"model\.fc6\.units=0: .*greater than or equal to 1"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_with_the_sizes_below_it(command, tiny, tmp_path, override, message):
    check_refused(command, tmp_path, message, *tiny, override)


@pytest.mark.parametrize("key", ["name", "data.root", "hydra.run.dir", "+trainer.max_time"])
def test_an_environment_variable_that_is_not_set_is_named(command, tiny, tmp_path, key):
    message = rf"{re.escape(key.lstrip('+'))}: the environment variable ZFSCOPE_NOT_SET is not set; set it, or give"

    check_refused(command, tmp_path, message, *tiny, f"{key}=${{oc.env:ZFSCOPE_NOT_SET}}")


# --- foreign code ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["callbacks=default", "callbacks.filter_images._target_=os.makedirs"],
            r"_target_=os\.makedirs is not a callback of this project",
        ),
        (["+optim._target_=os.makedirs"], r"optim\._target_='os\.makedirs': there is no such key"),
        (
            ["+hydra.callbacks.x={_target_: os.makedirs, name: made}"],
            r"hydra\.callbacks\.x\._target_=os\.makedirs is no",
        ),
        (["hydra.launcher._target_=os.makedirs"], r"hydra\.launcher\._target_=os\.makedirs is no class of Hydra's own"),
        (["-m", "seed=0,1", "hydra.launcher._target_=os.makedirs"], r"hydra\.launcher\._target_=os\.makedirs is no"),
        (["+hydra.job_logging.handlers.x={class: os.makedirs, name: made}"], r"handlers\.x\.class=os\.makedirs is no"),
    ],
)
def test_foreign_code_is_refused_and_does_not_run(command, tiny, tmp_path, overrides, message):
    flags = [override for override in overrides if override == "-m"]

    check_refused(command, tmp_path, message, *flags, *tiny, *(one for one in overrides if one != "-m"))


@pytest.mark.parametrize(
    "lines",
    [
        "hydra: {callbacks: {x: {y: [{_target_: os.makedirs, name: made}]}}}",
        "group: os.makedirs\nhydra: {callbacks: {x: {_target_: '${group}', name: made}}}",
    ],
    ids=["nested", "interpolated"],
)
def test_a_config_file_cannot_bring_foreign_code_either(command, tiny, tmp_path, lines):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/evil.yaml").write_text(f"# @package _global_\n{lines}\n")

    message = r"_target_=os\.makedirs is no class of Hydra"
    check_refused(command, tmp_path, message, "--config-dir=mine", *tiny, "experiment=evil")


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_trust_is_typed_and_not_taken_from_a_config_file(command, tiny, tmp_path, flags):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/trusting.yaml").write_text(
        "# @package _global_\ntrust: [os.makedirs]\ncallbacks: {x: {_target_: os.makedirs, name: made}}\n"
    )

    check_refused(
        command, tmp_path, r"trust=\[os\.makedirs\] of a config is not taken; type 'trust=", *flags,
        "--config-dir=mine", *tiny, "experiment=trusting",
    )  # fmt: skip


def test_callbacks_can_be_removed_and_those_of_hydra_run(command, tiny):
    own = "+hydra.callbacks.log={_target_: hydra.experimental.callbacks.LogJobReturnCallback}"

    code, _, err = command("train", *tiny, "~callbacks", own, "trainer.max_epochs=1", "evaluate.enabled=false")

    assert code == 0, err


# --- folders ---


def test_a_job_folder_that_a_config_names_lies_below_the_working_directory(command, tiny, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/away.yaml").write_text(
        "# @package _global_\nhydra: {sweep: {subdir: ../../../../away}}\n"
    )

    check_refused(
        command, tmp_path, r"hydra\.sweep\.subdir=.*away of a config lies outside the working directory; type it",
        "-m", "--config-dir=mine", *tiny, "experiment=away", "seed=0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("train", ["hydra.run.dir=/proc/run"], r"hydra\.run\.dir=/proc/run cannot be written"),
        ("train", ["-m", "seed=0,1", "hydra.sweep.dir=/proc/run"], r"hydra\.sweep\.dir=/proc/run cannot be written"),
        ("train", ["hydra.run.dir=file/run"], r"hydra\.run\.dir=file/run cannot be written|a file is in the way"),
        ("train", ["data=phantom", "data.cache=/proc/cache"], r"data\.cache=/proc/cache cannot be written"),
        ("analyze", ["analysis=ledger", "hydra.run.dir=/proc/run"], r"hydra\.run\.dir=/proc/run cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, name, overrides, message):
    (tmp_path / "file").touch()

    err = refused(command, tmp_path, name, *overrides)

    assert re.search(message + ".*; choose another", err), err


def test_an_analysis_that_draws_its_data_into_a_cache_that_cannot_be_written_is_refused(command, trained_run, tmp_path):
    err = refused(
        command,
        tmp_path,
        "analyze",
        f"checkpoint={trained_run}",
        "data=phantom",
        "data.cache=/proc/cache",
        "device=cpu",
    )

    assert re.search(r"data\.cache=/proc/cache/phantom cannot be written .*; choose another folder", err), err


BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"), [(BOMB, r"its aliases make [\d,]+ values"), ("a: &a [*a]\n", "an alias contains itself")]
)
def test_a_config_whose_aliases_grow_without_end_is_refused_before_it_is_composed(
    command, tiny, tmp_path, run_copy, text, message
):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/bomb.yaml").write_text(f"# @package _global_\n{text}")
    check_refused(command, tmp_path, rf"bomb\.yaml: {message}", "--config-dir=mine", *tiny, "experiment=bomb")

    with open(run_copy / ".hydra/config.yaml", "a") as file:
        file.write(text)
    check_refused(command, tmp_path, rf"config\.yaml: {message}", "resume=outputs/run", "trainer.max_epochs=3")


def test_aliases_that_do_not_grow_are_taken(command, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    text = "# @package _global_\noptim: {lr: &rate 0.5, weight_decay: *rate}\n"
    (tmp_path / "mine/experiment/same.yaml").write_text(text)

    assert prepare("train", get_args_parser().parse_args(["--config-dir=mine", "experiment=same"])).kinds == [
        "training"
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--experimental-rerun=run.pickle", "unpickles a file, which may hold any code; resume=RUN"),
        ("--config-path=mine", "--config-path would replace conf/; a folder with options of your own is --config-dir"),
        ("--config-name=mine", "--config-name would replace conf/"),
    ],
)
def test_flags_of_hydra_that_go_past_the_checks_are_refused(command, tmp_path, flag, message):
    check_refused(command, tmp_path, message, flag)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-lr"],
            r"^train\.py: -lr: there is no such flag; there are --cfg, ",
        ),
        (["--cfg", "seed=1"], r"--cfg/-c: invalid choice: 'seed=1' .*; a value is typed as key=value"),
        (["optim.lr=-1", "-m", "seed=0"], r"the only job: optim\.lr=-1: "),  # overrides on both sides of a flag
        (["a\x1b\u2028b\n"], r"a\\x1b\\u2028b\\n: a value is typed as key=value"),
        (["seed=" + "x" * 5000], r"^train\.py: seed='x{100,} … x{100,}'.*valid integer"),
        (["--help", "name=" + "[" * 5000], r"name=\[.* nests brackets deeper than 30 levels; write it shorter"),
        (["--cfg=job", "name=" + "{a:" * 5000], r"name=.* nests brackets deeper than 30 levels; write it shorter"),
        (["name=" + "[" * 500], r"name=\[.* nests brackets deeper than 30 levels; write it shorter"),
        (["-m", "seed=range(0,3,0)"], r"seed=range\(0,3,0\): a range has finite ends, and a step that is not 0"),
        (["-m", "optim.lr=range(nan,3)"], r"optim\.lr=range\(nan,3\): a range has finite ends"),
        (["-m", "seed=range(0,1e9)"], r"this sweep has 1,000,000,000 jobs; at most 2,000 are composed in one"),
        (["-m", "seed=shuffle(range(50))", "name=range(50)"], r"this sweep has 2,500 jobs"),
    ],
    ids=[
        "flag",
        "its value",
        "both sides",
        "control",
        "long",
        "deep help",
        "deep config",
        "deep",
        "step",
        "nan",
        "endless",
        "product",
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_in_one_short_line(command, tmp_path, words, message):
    check_refused(command, tmp_path, message, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000 + "*b &c", r"nests deeper than 30 levels; mend or remove the file"),
        ("- " * 40 + "1", r"nests deeper than 30 levels"),
        ("name: " + "${a." * 40, r"nests brackets deeper than 30 levels"),
        ("name: [unfinished", r"while parsing a flow sequence .*theirs\.yaml"),
        ("name: \x00", r"unacceptable character #x0000"),
    ],
    ids=["brackets", "dashes", "interpolations", "unfinished", "control"],
)
def test_a_config_file_that_nests_without_end_or_is_no_yaml_is_refused(command, tmp_path, text, message):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/theirs.yaml").write_text(f"# @package _global_\n{text}")

    check_refused(command, tmp_path, message, "--config-dir=mine", "experiment=theirs")
