"""The schema of train.py: what passes, and how a wrong value is told."""

import pytest

from tests.conftest import composed
from zfscope.schema import check
from zfscope.training.spec import TrainConfig


def test_the_papers_recipe_comes_with_the_papers_network():
    config = check(TrainConfig, composed("model=zfnet", "data=imagenet", "data.root=DIR"))

    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.schedule.name, optim.schedule.factor, config.trainer.max_epochs) == ("plateau", 0.1, 70)
    assert (config.data.resize, config.data.crop, config.data.batch_size) == (256, 224, 128)
    model = config.model
    assert (model.init.scheme, model.init.std, model.input_scale, model.filter_rms) == ("normal", 0.01, 1.0, 0.1)
    assert (model.contrast.size, model.contrast.alpha, model.contrast.beta, model.contrast.k) == (5, 1e-4, 0.75, 2.0)
    assert (model.fc6.dropout, model.fc7.dropout, model.fc8.dropout) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", "abc", r"optim\.lr='abc': .*valid number"),
        ("optim.lr", float("nan"), r"optim\.lr=nan: .*"),
        ("optim.lr", float("inf"), r"optim\.lr=inf: .*finite"),
        ("optim.lr", -3, r"optim\.lr=-3: .*greater than 0"),
        ("optim.momentum", 5, r"optim\.momentum=5: .*less than 1"),
        ("model", 5, r"model=5: .*"),
        ("model.conv1.kernel_size", None, r"model\.conv1\.kernel_size=None: .*valid integer"),
        ("model.conv1.stride", 0, r"model\.conv1\.stride=0: .*greater than or equal to 1"),
        ("model.conv1.maps", 0, r"model\.conv1\.maps=0: .*greater than or equal to 1"),
        ("model.fc8", None, r"model: fc8 .*cannot be removed"),
        ("data.crop", 1000, r"data: crop=1000 is larger than resize=128"),
        ("data.batch_size", 0, r"data\.batch_size=0: .*"),
        ("optim.momentun", 0.9, r"optim\.momentun=0\.9: there is no such key; did you mean momentum\?"),
        ("model.conv1.kernel_sise", 3, r"model\.conv1\.kernel_sise=3: .*did you mean kernel_size\?"),
        ("modle", 3, r"modle=3: there is no such key; did you mean model\?"),
        ("device", "gpu7", r"device='gpu7': .*"),
        ("logger.log_model", True, r"logger: log_model=true .*logger=wandb logger\.mode=online"),
        ("optim.schedule", {"name": "cosine", "patience": 3}, r"optim\.schedule.*patience=3: there is no such key"),
        ("optim.schedule", {"name": "steps"}, r"optim\.schedule.*'plateau', 'cosine', 'constant'"),
        ("optim.mixup", {"mixup": 0.0}, r"optim\.mixup: mixup=0 and cutmix=0 mix nothing"),
        ("callbacks", {"mine": {"_target_": "os.system"}}, r"callbacks\.mine\._target_=os\.system .*'trust=\[os\.sys"),
        ("callbacks", {"mine": {"every": 1}}, r"callbacks\.mine: _target_ is missing"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_key_value_and_way_out(key, value, message):
    values = composed()
    node = values
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value

    with pytest.raises(ValueError, match=message) as error:
        check(TrainConfig, values)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim=modern", "data.batch_size=31"], "it needs an even data.batch_size"),
        (["++optim.mixup={mixup: 0.2}", "data=voc2012"], "images of one class"),
        (["optim.nesterov=true", "optim.momentum=0"], "needs a momentum above 0"),
        (["optim/schedule=cosine", "trainer.max_epochs=-1"], "give trainer.max_epochs or trainer.max_steps"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(TrainConfig, composed(*overrides))


def test_a_foreign_target_is_allowed_where_the_command_line_trusts_it():
    callbacks = {"mine": {"_target_": "os.system", "command": "true"}, "filter_images": None}

    config = check(TrainConfig, {**composed(), "callbacks": callbacks, "trust": ["os.system"]})

    assert config.callbacks == callbacks


def test_any_keyword_of_the_trainer_passes_the_schema():
    config = check(TrainConfig, composed("trainer.max_steps=3", "+trainer.limit_train_batches=0.5"))

    assert config.trainer.model_dump()["limit_train_batches"] == 0.5
