"""The schema of train.py: what passes, and how a wrong value is told."""

import inspect

import lightning
import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

import zfscope.callbacks
from tests.conftest import composed
from zfscope.networks.build import build_network
from zfscope.schema import check
from zfscope.training.spec import RESERVED_TRAINER_KEYWORDS, TARGETS, TRAINER_KEYWORDS, TrainConfig


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
        ("device", "gpu7", r"device='gpu7': the devices are auto, cpu, mps, cuda and cuda:NUMBER"),
        ("trainer.max_epochs", 0, r"trainer\.max_epochs=0 trains nothing"),
        ("trainer.max_steps", 0, r"trainer\.max_steps=0 trains nothing"),
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


def test_the_trainers_keywords_and_lightnings_callbacks_are_those_that_lightning_has():
    keywords = [name for name in inspect.signature(lightning.Trainer.__init__).parameters if name != "self"]
    callbacks = {f"lightning.pytorch.callbacks.{name}" for name in lightning.pytorch.callbacks.__all__}

    assert sorted(TRAINER_KEYWORDS) == sorted(keywords)
    assert set(keywords) > RESERVED_TRAINER_KEYWORDS
    assert {target for target in TARGETS if target.startswith("lightning.")} == callbacks
    ours = {f"zfscope.callbacks.{name}" for name in zfscope.callbacks.__all__}
    assert {target for target in TARGETS if not target.startswith("lightning.")} <= ours


@pytest.mark.parametrize(
    "override",
    [
        "gradient_clip_val=0.5", "max_steps=7", "devices=2", "accelerator=cpu", "precision=bf16-mixed",
        "strategy=ddp", "num_nodes=2", "check_val_every_n_epoch=2", "accumulate_grad_batches=2",
    ],
)  # fmt: skip
def test_the_usual_keywords_of_the_trainer_need_no_plus(override):
    key, value = override.split("=")

    config = check(TrainConfig, composed(f"trainer.{override}"))

    assert str(config.trainer.keywords()[key]) == value


def test_a_keyword_that_is_null_is_left_to_lightning_or_to_the_device():
    keywords = check(TrainConfig, composed("trainer.max_epochs=null")).trainer.keywords()

    assert not keywords.keys() & {"accelerator", "devices", "precision", "gradient_clip_val", "max_epochs"}
    never = check(TrainConfig, composed("trainer.check_val_every_n_epoch=null")).trainer.keywords()
    assert never["check_val_every_n_epoch"] is None


def test_the_keys_of_a_callbacks_mapping_may_be_numbers():
    target = "lightning.pytorch.callbacks.GradientAccumulationScheduler"
    config = check(TrainConfig, composed(f"+callbacks.more={{_target_: {target}, scheduling: {{0: 2, 4: 1}}}}"))

    options = dict(config.callbacks["more"])
    options.pop("_target_")
    assert GradientAccumulationScheduler(**options).scheduling == {0: 2, 4: 1}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.fc6.units=1e11"], r"model\.fc6"),
        (["model.conv1.maps=1000000000"], r"data\.batch_size|model\.conv"),
        (["data.resize=1000000"], r"data\.resize"),
        (["data.batch_size=100000000"], r"data\.batch_size"),
        (["model=zfnet", "data.resize=256", "data.crop=224", "model.fc7.units=300000000"], r"model\.fc7"),
    ],
)
def test_what_does_not_fit_in_memory_is_refused_with_what_it_needs_and_what_is_free(overrides, key):
    with pytest.raises(
        ValueError, match=rf"at least [\d,.]+ GB of memory, most of it by ({key}), and [\d.]+ GB are free"
    ):
        check(TrainConfig, composed(*overrides, "device=cpu"))


def test_the_memory_that_a_network_is_known_to_need_is_what_it_holds(monkeypatch):
    values = composed("device=cpu", "data.batch_size=10")
    network = build_network(values["model"], 2, values["data"]["crop"])
    weights = sum(tensor.nbytes for tensor in network.parameters())
    maps = sum(
        maps * size**2 for maps, size in zip([32, 64, 96, 96, 64], [54, 12, 6, 6, 6], strict=True)
    ) + 512 + 512 + 2  # fmt: skip
    needs = 4 * weights + 10 * 4 * maps + 2 * 3 * 128**2 * 8

    monkeypatch.setattr("zfscope.training.spec.available_memory", lambda: needs)
    check(TrainConfig, values)
    monkeypatch.setattr("zfscope.training.spec.available_memory", lambda: needs - 1)
    with pytest.raises(ValueError, match="make it smaller"):
        check(TrainConfig, values)


def test_wandbs_own_settings_count_where_the_config_says_nothing(monkeypatch):
    for name, value in (("MODE", "online"), ("PROJECT", "mine"), ("ENTITY", "us")):
        monkeypatch.setenv(f"WANDB_{name}", value)

    logger = check(TrainConfig, composed()).logger
    assert (logger.mode, logger.project, logger.entity) == ("online", "mine", "us")
    said = check(TrainConfig, composed("logger.mode=offline", "logger.project=ours")).logger
    assert (said.mode, said.project, said.entity) == ("offline", "ours", "us")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match="WANDB_MODE=sometimes must be offline, online or disabled"):
        check(TrainConfig, composed())
    assert check(TrainConfig, composed("logger=none")).logger.name == "none"


@pytest.mark.parametrize("project", ["zf/net", "a:b", "50%", "x" * 129])
def test_a_project_that_wandb_would_not_take_is_refused(project):
    with pytest.raises(ValueError, match="logger: project=.*W&B takes names of 1 to 128 characters without"):
        check(TrainConfig, composed(f"logger.project='{project}'"))
