"""Callbacks by name: what each of Lightning's gives here, and how wrong ones are told."""

import pytest

from tests.conftest import composed
from zfscope.schema import check
from zfscope.training.callbacks import check_monitors
from zfscope.training.classifier import metric_names
from zfscope.training.spec import REFUSED_CALLBACKS, TARGETS, TrainConfig
from zfscope.training.trainer import check_trainer

LIGHTNING = "lightning.pytorch.callbacks."
# What those that work need, and how else a run must be set.
ARGUMENTS = {
    "DeviceStatsMonitor": (", cpu_stats: false", ["logger=csv"]),
    "EMAWeightAveraging": ("", []),
    "EarlyStopping": (", monitor: val/loss", []),
    "GradientAccumulationScheduler": (", scheduling: {1: 2}", []),
    "LearningRateMonitor": ("", ["logger=csv"]),
    "ModelCheckpoint": (", monitor: val/loss", []),
    "ModelPruning": (", pruning_fn: l1_unstructured", ["optim.channels_last=false"]),
    "ModelSummary": ("", []),
    "RichModelSummary": ("", []),
    "Timer": (", duration: '00:01:00:00'", []),
    "WeightAveraging": ("", []),
}


def typed(name, arguments="", key="x"):
    return f"+callbacks.{key}={{_target_: {LIGHTNING}{name}{arguments}}}"


def checked(*overrides):
    config = check(TrainConfig, composed("callbacks=none", *overrides))
    check_trainer(config)
    check_monitors(config, metric_names(classes=10, multilabel=False))
    return config


def test_every_callback_of_lightning_is_refused_or_works():
    names = {target.removeprefix(LIGHTNING) for target in TARGETS if target.startswith(LIGHTNING)}

    assert names == REFUSED_CALLBACKS.keys() | ARGUMENTS.keys()
    assert not REFUSED_CALLBACKS.keys() & ARGUMENTS.keys()
    for name, (arguments, more) in ARGUMENTS.items():
        checked(typed(name, arguments), *more)


@pytest.mark.slow  # twenty trainings, 20 s
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_callback_of_lightning_trains_and_goes_on(command, tiny, name):
    arguments, more = ARGUMENTS[name]
    fewer = [override for override in tiny if not override.startswith(tuple(one.split("=")[0] for one in more))]

    code, _, err = command(
        "train", *fewer, *more, "callbacks=none", "evaluate.enabled=false", typed(name, arguments), "hydra.run.dir=run"
    )
    later, _, why = command("train", "resume=run", "trainer.max_epochs=3")

    assert code == 0, err
    assert later == (2 if name == "ModelPruning" else 0), why


@pytest.mark.parametrize("name", REFUSED_CALLBACKS)
def test_a_callback_that_cannot_do_its_work_is_refused_with_the_way_out(name):
    with pytest.raises(ValueError, match=rf"callbacks\.x: {name} \w+ .*; ") as error:
        checked(typed(name))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([typed("EarlyStopping")], r"callbacks\.x\.monitor is missing; EarlyStopping needs it"),
        (
            [typed("EarlyStopping", ", monitor: val/los")],
            r"callbacks\.x\.monitor=val/los: there is no such metric; did you mean val/loss\?",
        ),
        ([typed("ModelCheckpoint", ", monitor: val/los")], r"callbacks\.x\.monitor=val/los: .*did you mean val/loss\?"),
        (
            [typed("EarlyStopping", ", monitor: val/loss, patiance: 3")],
            r"callbacks\.x\.patiance: EarlyStopping has no such argument; did you mean patience\?",
        ),
        ([typed("EarlyStopping", ", monitor: val/loss, mode: least")], r"callbacks\.x: EarlyStopping .*got least"),
        ([typed("WeightAveraging", ", decay: 0.9")], r"callbacks\.x\.decay: WeightAveraging has no such argument"),
        (
            ["+callbacks.x={_target_: zfscope.callbacks.FilterImages, layr: conv1}"],
            r"callbacks\.x\.layr: FilterImages has no such argument; did you mean layer\?",
        ),
        (
            [typed("EarlyStopping", ", monitor: val/loss, check_on_train_epoch_end: true"),
             "trainer.check_val_every_n_epoch=2"],
            r"monitor=val/loss is not measured every epoch; leave out callbacks\.x\.check_on_train_epoch_end",
        ),
        (
            [typed("EarlyStopping", ", monitor: lr"), "+trainer.val_check_interval=0.5"],
            r"monitor=lr is known at ends of epochs alone; give callbacks\.x\.check_on_train_epoch_end=true",
        ),
        (
            [typed("EarlyStopping", ", monitor: val/loss"), typed("EarlyStopping", ", monitor: val/loss", key="y")],
            r"more than one stateful callback of type `EarlyStopping`",
        ),
        ([typed("EarlyStopping", ", monitor: val/loss, patience: a")], r"callbacks\.x\.patience='a': .*valid integer"),
        ([typed("EMAWeightAveraging", ", device: cuda:99")], r"callbacks\.x: EMAWeightAveraging does not take these"),
        ([typed("EarlyStopping", ", monitor: diagnostics/dead")], r"callbacks\.x\.monitor=.*there is no such metric"),
        ([typed("ModelCheckpoint", ", filename: best")], r"write over the run's own files; .* callbacks\.x\.dirpath=…"),
        ([typed("ModelCheckpoint", ", save_last: true")], r"write over the run's own files; .*callbacks\.x\.dirpath=…"),
        (
            [typed("ModelCheckpoint", ", save_weights_only: true"), "++optim.ema.decay=0.9"],
            r"callbacks\.x\.save_weights_only=true would save weights that are not averaged",
        ),
        (
            [typed("LearningRateMonitor"), "logger=none"],
            r"callbacks\.x: LearningRateMonitor writes to a logger, and logger=none leaves none; logger=csv",
        ),
        (
            [typed("ModelPruning", ", pruning_fn: l1_unstructured")],
            r"callbacks\.x: ModelPruning needs optim\.channels_last=false",
        ),
        (
            [typed("ModelPruning", ", pruning_fn: l1_unstructured"), "optim.channels_last=false", "resume=RUN"],
            r"ModelPruning keeps its masks in no checkpoint, so no run goes on; weights=RUN starts a new one",
        ),
        (
            [typed("EMAWeightAveraging"), "++optim.ema.decay=0.9"],
            r"optim\.ema and callbacks\.x each average the weights; leave one of them",
        ),
        (
            [typed("EMAWeightAveraging", ", update_starting_at_epoch: 3")],
            r"callbacks\.x\.update_starting_at_epoch does not keep .* give callbacks\.x\.update_every_n_steps=0 too",
        ),
    ],
)  # fmt: skip
def test_a_callback_with_wrong_arguments_is_refused_with_its_key(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        checked(*overrides)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [typed("EarlyStopping", ", monitor: val/los, strict: false")],
        [typed("EarlyStopping", ", monitor: filter_rms/conv1")],
        [typed("EarlyStopping", ", monitor: val/top5_error"), "trainer.check_val_every_n_epoch=2"],
        [typed("ModelCheckpoint"), "+trainer.val_check_interval=0.5"],
        [typed("ModelCheckpoint", ", save_last: true, dirpath: mine, save_weights_only: true")],
        [typed("EarlyStopping", ", monitor: val/loss, min_delta: 1, patience: 2, stopping_threshold: null")],
        [typed("EMAWeightAveraging", ", update_starting_at_epoch: 3, update_every_n_steps: 0")],
        ["+callbacks.x={_target_: zfscope.callbacks.FilterImages, layer: conv1}"],
    ],
)
def test_what_can_be_is_not_refused(overrides):
    checked(*overrides)


def test_the_arguments_of_a_config_stay_as_they_were():
    config = checked(typed("GradientAccumulationScheduler", ", scheduling: {4: 2}"))

    assert config.callbacks["x"]["scheduling"] == {4: 2}  # Lightning's callback writes {0: 1} into what it gets


def test_a_metric_that_no_training_has_is_refused_before_the_images_are_measured(command, tiny, tmp_path):
    code, _, err = command("train", *tiny, typed("EarlyStopping", ", monitor: val/top5_error"))

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert "callbacks.x.monitor=val/top5_error: there is no such metric" in err  # of three classes
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_callback_of_ones_own_has_its_own_rules_for_layers_and_folders():
    checked(
        "+callbacks.x={_target_: my.Own, layers: [network.conv1], dirpath: /data, filename: ../x}", "trust=[my.Own]"
    )


def test_a_further_checkpoint_lies_in_the_run_folder(command, tiny, tmp_path):
    more = typed("ModelCheckpoint", ", dirpath: more, filename: weights, save_weights_only: true")

    code, _, err = command("train", *tiny, "evaluate.enabled=false", more, "hydra.run.dir=run")

    assert code == 0, err
    assert (tmp_path / "run/more/weights.ckpt").is_file() and not (tmp_path / "more").exists()
