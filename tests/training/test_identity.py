"""What makes another training and what does not, one override at a time."""

import copy
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch

from tests.conftest import composed
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import network_state, save_network, write_checkpoint
from zfscope.schema import check
from zfscope.training.identity import check_batches, training_identity
from zfscope.training.spec import TrainConfig

LIGHTNING = "lightning.pytorch.callbacks"


@cache
def usual() -> dict:
    return check(TrainConfig, composed()).model_dump()


def config_of(values: dict[str, Any]) -> dict:
    """The usual config with other values, by dotted key."""
    config = copy.deepcopy(usual())
    for key, value in values.items():
        *groups, name = key.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value
    return config


def digest_of(values: dict[str, Any] | None = None, *, images="images", **more):
    return training_identity(config_of(values or {}), images, **more)["digest"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 3),
        ("device", "cpu"),
        ("name", "mine"),
        ("group", "g"),
        ("tags", ("a",)),
        ("trust", ("my.Class",)),
        ("paper", "zfnet"),
        ("data.root", "/elsewhere"),
        ("data.cache", "/elsewhere"),
        ("data.num_workers", 3),
        ("data.download", True),
        ("logger.name", "csv"),
        ("callbacks", {}),
        ("callbacks.projections", None),
        ("callbacks.rate", {"_target_": f"{LIGHTNING}.LearningRateMonitor"}),
        ("checkpoints.epochs", (3,)),
        ("evaluate.ten_crops", False),
        ("trainer.log_every_n_steps", 1),
        ("trainer.accelerator", "cpu"),
        ("trainer.devices", 1),
        ("trainer.benchmark", True),
        ("trainer.profiler", "simple"),
        ("trainer.enable_progress_bar", False),
        ("trainer.precision", 32),
        ("trainer.precision", "32-true"),
        ("trainer.accumulate_grad_batches", 3),  # a step has the same images
        ("trainer.sync_batchnorm", False),
        ("trainer.num_nodes", 2),
        ("trainer.devices", 2),
        ("trainer.limit_train_batches", 1.0),
        ("trainer.limit_train_batches", None),
        ("trainer.gradient_clip_algorithm", "value"),  # nothing is clipped
        ("trainer.strategy", "ddp"),
    ],
)
def test_what_changes_no_weight_makes_no_other_training(key, value):
    assert digest_of({key: value}) == digest_of()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.conv1.maps", 17),
        ("model.fc7.dropout", 0.75),
        ("model.conv3", None),
        ("model.filter_rms", None),
        ("model.init.first", 0.5),
        ("optim.lr", 0.5),
        ("optim.epochs", 3),
        ("optim.weight_decay", 0.5),
        ("optim.schedule", {"name": "constant"}),
        ("optim.label_smoothing", 0.25),
        ("optim.revive", 0.5),
        ("optim.ema", {"decay": 0.5}),
        ("optim.mixup", {"mixup": 0.25, "cutmix": 0.0}),
        ("data.name", "fashion_mnist"),
        ("data.batch_size", 10),
        ("data.crop", 60),
        ("data.val_fraction", 0.25),
        ("data.split_seed", 7),
        ("data.classes", ("cat", "car")),
        ("data.mean_images", 7),
        ("data.augment.flip_vertical", True),
        ("trainer.max_epochs", 3),
        ("trainer.max_steps", 7),
        ("trainer.precision", 16),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.gradient_clip_val", 0.5),
        ("trainer.limit_train_batches", 1),  # one batch, where 1.0 is all
        ("trainer.limit_val_batches", 0.5),
        ("trainer.overfit_batches", 2),
        ("trainer.check_val_every_n_epoch", 2),
        ("trainer.val_check_interval", 0.5),
        ("trainer.strategy", "fsdp"),
        ("trainer.max_time", "01:00:00:00"),
        ("weights", "zoo/zfnet"),
        ("callbacks.stop", {"_target_": f"{LIGHTNING}.EarlyStopping", "monitor": "val/loss"}),
        ("callbacks.more", {"_target_": f"{LIGHTNING}.GradientAccumulationScheduler", "scheduling": {4: 2}}),
    ],
)
def test_what_may_change_a_weight_makes_another_training(key, value):
    assert digest_of({key: value}) != digest_of()


def test_how_gradients_are_clipped_counts_where_they_are():
    clipped = {"trainer.gradient_clip_val": 0.5}

    by_norm, by_value = (digest_of(clipped | {"trainer.gradient_clip_algorithm": way}) for way in ("norm", "value"))

    assert by_norm == digest_of(clipped) != by_value


def test_values_that_differ_are_kept_apart_by_their_facts():
    slow, fast = (training_identity(config_of({"optim.lr": rate}), "images")["facts"] for rate in (0.01, 0.1))

    assert {key: (slow[key], fast[key]) for key in slow if slow[key] != fast[key]} == {"optim.lr": (0.01, 0.1)}


def test_other_images_or_legs_make_another_training():
    leg = {"step": 12, "changed": {"optim.lr": [0.1, 0.01]}}

    digests = [
        digest_of(),
        digest_of(images="others"),
        digest_of(val_fingerprint="held out"),
        digest_of(legs=[leg]),
        digest_of(legs=[leg, leg]),
        digest_of(legs=[leg | {"step": 13}]),
    ]

    assert len(set(digests)) == 6
    assert training_identity(usual(), "images", legs=[leg])["facts"]["legs.1.changed.optim.lr"] == [0.1, 0.01]


def test_a_foreign_callback_counts_by_its_class_and_options_not_by_its_name():
    def callback(name, **options):
        return digest_of({"callbacks": {name: {"_target_": "my.Class", **options}}})

    assert callback("a") == callback("b") != callback("a", rate=1)
    assert callback("a", rate=1) != callback("a", rate=2)
    assert callback("a") != digest_of()


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), (3, 3), ("2", 2), ("0,3", 2), ([1, 2, 5], 3), ("auto", 1)])
def test_a_network_with_batch_norm_is_another_where_it_sees_fewer_images_together(devices, ranks, monkeypatch):
    trainer = {"devices": devices, "num_nodes": 2, "accelerator": "cpu", "accumulate_grad_batches": 2}
    config = usual() | {"trainer": trainer}
    config["data"] = config["data"] | {"batch_size": 120}
    ours, theirs = (config | {"model": config["model"] | {"source": source}} for source in ("convnet", "timm"))

    def together(config, **trainer):
        facts = training_identity(config | {"trainer": config["trainer"] | trainer}, "")["facts"]
        return facts.get("trainer.images_normalised_together")

    assert together(ours) is None
    assert together(theirs) == 120 // (2 * ranks * 2)
    assert together(theirs, accelerator="gpu") == 60  # synchronised
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert together(theirs, accelerator="gpu", sync_batchnorm=False) == 120 // (2 * ranks * 2)


def test_where_batches_are_counted_it_matters_how_many_make_a_step():
    limited, all_of_them = {"trainer.limit_train_batches": 6}, {"trainer.limit_train_batches": 0.5}
    twice = {"trainer.accumulate_grad_batches": 2}

    assert digest_of(limited) != digest_of(limited | twice)
    assert digest_of(all_of_them) == digest_of(all_of_them | twice)


@pytest.mark.parametrize(
    ("state", "times"),
    [
        ({"config": {}, "identity": {"facts": {"trainer.ranks": 1}}}, 1),
        ({"config": {}, "identity": {"facts": {"trainer.ranks": 2}}}, 2),
        ({"config": {}, "identity": {"facts": {"trainer.ranks": 2, "trainer.accumulate_grad_batches": 4}}}, 8),
        ({"config": {"trainer": {"devices": 2, "accelerator": "cpu"}}}, 2),  # an early one, without facts
        ({"config": {"trainer": {"accumulate_grad_batches": 3}}}, 3),
        ({"config": {"trainer": {"devices": 2}}, "identity": {"facts": {"trainer.ranks": 1}}}, 1),
    ],
)
def test_a_run_whose_steps_took_several_batches_does_not_go_on_with_one(state, times):
    with nullcontext() if times == 1 else pytest.raises(ValueError, match=f"took {times} times data.batch_size"):
        check_batches({"zfscope": state}, "last.ckpt")


def test_a_list_of_images_to_leave_out_counts_by_its_content(tmp_path):
    for name, text in (("a", "cat/1.jpg\n"), ("b", "cat/1.jpg\n"), ("c", "cat/2.jpg\n")):
        (tmp_path / name).write_text(text)

    same, copied, other = (digest_of({"data.exclude": str(tmp_path / name)}) for name in "abc")

    assert same == copied != other and digest_of() not in (same, other)


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint of a small network, with an identity where one is given."""
    small = {f"model.conv{number}.maps": 2 for number in range(1, 6)} | {"model.fc6": None, "model.fc7": None}
    values = config_of(small)
    torch.manual_seed(0)
    network = build_network(values["model"], 2, 64)

    def call(name, identity=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if identity is None:
            save_network(network, values, path)
        else:
            weights = {f"network.{key}": value for key, value in network.state_dict().items()}
            state = network_state(network, values, identity={"digest": identity, "facts": {}})
            write_checkpoint({"state_dict": weights, "zfscope": state}, path)
        return tmp_path

    return call


def weights_fact(source):
    return training_identity(config_of({"weights": str(source)}), "")["facts"]["weights"]


def test_weights_of_a_run_count_by_its_identity_and_which_of_its_checkpoints(save):
    for folder, identity in (("one", "alike"), ("two", "alike"), ("three", "another")):
        for name in ("best", "last", "epoch_010"):
            root = save(f"{folder}/checkpoints/{name}.ckpt", identity)

    assert weights_fact(root / "one") == weights_fact(root / "two") == "alike"
    assert weights_fact(root / "three/checkpoints/best.ckpt") == "another"
    assert weights_fact(root / "one/last") == "alike, last"
    assert weights_fact(root / "one/epoch_010") == "alike, epoch_010"


def test_weights_without_an_identity_count_by_their_content_and_public_ones_by_name(save, tmp_path):
    root = save("a.ckpt")
    (root / "b.ckpt").write_bytes((root / "a.ckpt").read_bytes())
    torch.save({"weight": torch.zeros(1)}, root / "c.ckpt")

    same, copied, bare = (weights_fact(root / name) for name in ("a.ckpt", "b.ckpt", "c.ckpt"))

    assert same == copied != bare and len(same) == len(bare) == 64
    assert weights_fact("zoo/zfnet") == "zoo/zfnet"


def test_weights_that_are_gone_when_a_run_is_resumed_do_not_stop_it(tmp_path):
    assert "not there any more" in weights_fact(tmp_path / "gone.ckpt")
