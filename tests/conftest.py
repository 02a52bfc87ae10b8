"""What tests share: composed configs, a tiny data set that can be learned, the two commands, a trained mini network."""

import gc
import importlib
import io
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from copy import deepcopy
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hypothesis import HealthCheck, configuration, settings
from omegaconf import OmegaConf
from PIL import Image
from torch import distributed, multiprocessing

from zfscope.commands import run_command

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where train.py and analyze.py are
configuration.set_hypothesis_home_dir(ROOT / ".hypothesis")  # not wherever a test is
settings.register_profile("same", derandomize=True, database=None, deadline=None, suppress_health_check=HealthCheck)
settings.register_profile("other", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")  # `--hypothesis-profile=other`: cases that nobody has seen
torch.set_num_threads(1)  # on networks this small a second thread is waited for longer than it helps


def pytest_collection_finish() -> None:
    """The million objects of the imports stay: none of the tests' collections need look at them again."""
    gc.collect()
    gc.freeze()


def quick_first(values: Iterable, quick: int) -> list:
    """Values of a parametrised test: the first few by default, the others in `make test-all`."""
    values = list(values)
    return [*values[:quick], *(pytest.param(value, marks=pytest.mark.slow) for value in values[quick:])]


def seeds(count: int, quick: int = 5) -> list:
    """As many seeds, ``quick`` of them by default."""
    return quick_first(range(count), quick)


# Hydra reads, lists and joins the files of conf/ once a test run, not once for each of two thousand compositions.
_made: dict[str, bytes] = {}
_list, _join = defaults_list._create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
_load = ConfigRepository.load_config


def _once(repo: IConfigRepository, make: Callable[[], Any], *about: Any) -> Any:
    places = [source.path for source in repo.get_sources()]
    if any(place.startswith("/") and not place.startswith(str(ROOT / "conf")) for place in places):
        return make()  # what lies in other folders may change within a test run
    key = repr((places, about))
    if key not in _made:
        _made[key] = pickle.dumps(make())
    return pickle.loads(_made[key])


def _list_once(repo: IConfigRepository, config_name: str, overrides: Any, **flags: bool) -> tuple:
    own = overrides.config_overrides

    def make() -> tuple:
        answer = _list(repo, config_name, overrides, **flags)
        return answer, vars(overrides) | {"config_overrides": None}

    about = overrides.override_choices, overrides.append_group_defaults, overrides.deletions
    answer, state = _once(repo, make, config_name, *map(repr, about), flags)
    vars(overrides).update(state | {"config_overrides": own})
    return answer


defaults_list._create_defaults_list = _list_once
ConfigLoaderImpl._compose_config_from_defaults_list = lambda loader, defaults, repo: _once(
    repo, lambda: _join(loader, defaults, repo), [vars(default) for default in defaults]
)
ConfigRepository.load_config = lambda repo, config_path: _once(repo, lambda: _load(repo, config_path), config_path)


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)


def composed(*overrides: str, name: str = "train") -> dict:
    """A config as Hydra composes it from conf/, resolved, as plain containers; the like is composed once."""
    return deepcopy(_composed(name, overrides))


def tiny_images(count: int, side: int = 24, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright colour channel by class: ``(N, side, side, 3)`` uint8 and labels; easy to learn."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.integers(0, 120, size=(count, side, side, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels % 3] += 100
    return images, labels


def write_folders(root: Path, parts: dict[str, int], classes: tuple[str, ...] = ("cat", "dog", "owl"), side: int = 40):
    """Class folders of JPEG files, ``root/part/class/0.jpg`` …, as ImageNet is laid out."""
    for part, count in parts.items():
        images, labels = tiny_images(count * len(classes), side, len(classes))
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.jpg")
    return root


def fit(
    folder: Path, module: lightning.LightningModule, *callbacks: lightning.Callback, **options
) -> lightning.Trainer:
    """Train for an epoch on the CPU, seeded, without logger and checkpoints; options are the Trainer's."""
    lightning.seed_everything(7, verbose=False)
    trainer = lightning.Trainer(
        **({"max_epochs": 1, "devices": 1, "log_every_n_steps": 1} | options),
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return trainer


# Two processes start in half a second when forked, which CUDA does not allow.
START = "spawn" if torch.cuda.is_available() else "fork"


def _one_rank(rank: int, folder: Path, task):
    torch.set_num_threads(1)  # a forked process has not the threads of its parent
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save(task(rank), folder / f"{rank}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()


def on_two_ranks(folder: Path, task) -> list:
    """What ``task(rank)``, a function of a module, returns in each of two processes that gloo joins."""
    multiprocessing.start_processes(_one_rank, (folder, task), nprocs=2, start_method=START)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


# A network and a schedule of a second or two, on class folders of small images.
TINY = (
    "data=folder",
    "data.resize=32",
    "data.crop=28",
    "data.batch_size=8",
    "data.num_workers=0",
    "logger=none",
    "device=cpu",
    *(f"model.conv{number}.maps=8" for number in range(1, 6)),
    "model.conv2.stride=1",
    "model.conv2.padding=2",
    "model.fc6.units=16",
    "model.fc7.units=16",
    "trainer.max_epochs=2",
    "callbacks=none",  # pictures take twice as long as all the rest
)


def on_folders(images: Path) -> list[str]:
    """``TINY`` on these class folders, with the cache beside them."""
    return [*TINY, f"data.root={images}", f"data.cache={images.parent / 'cache'}"]


def type_command(patch: pytest.MonkeyPatch, name: str, *overrides: str) -> int:
    """Run ``train`` or ``analyze`` in this process as if typed in the working directory; returns its exit code."""
    patch.setattr(sys, "argv", [f"{name}.py", *overrides])
    patch.delenv("HYDRA_FULL_ERROR", raising=False)
    try:
        return run_command(name, importlib.import_module(name).main)
    except SystemExit as stop:
        return stop.code
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # after a stop Ctrl-C is not the command's to restore


@pytest.fixture
def folders(tmp_path):
    """A small data set laid out as class folders: 8 training and 4 validation images in each of three classes."""
    return write_folders(tmp_path / "images", {"train": 8, "val": 4})


@pytest.fixture
def tiny(folders):
    """Overrides of a training of a second or two, on ``folders``."""
    return on_folders(folders)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Type a command: ``command("train", overrides…) -> (exit code, stdout, stderr)``, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(name, *overrides):
        code = type_command(monkeypatch, name, *overrides)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The run folder of one tiny training by the real command, made once; only read it (see ``run_copy``).

    Its images are ``trained_run.parent / "images"`` (three classes), what it printed is in ``stdout.txt`` there.
    """
    home = tmp_path_factory.mktemp("trained")
    images = write_folders(home / "images", {"train": 8, "val": 4})
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(home)
        own = ["callbacks=default", *(f"callbacks.{name}=null" for name in ("projections", "feature_evolution"))]
        own += ["callbacks.occlusion_maps=null", "++paper={val/top1_error:38.4}", "hydra.run.dir=run"]
        code = type_command(patch, "train", *on_folders(images), *own)
    assert code == 0
    (home / "stdout.txt").write_text(printed.getvalue())
    return home / "run"


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of ``trained_run`` to be changed: ``outputs/run`` in the test's folder."""
    return Path(shutil.copytree(trained_run, tmp_path / "outputs" / "run"))
