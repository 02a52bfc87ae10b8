"""What tests share: composed configs, a tiny data set that can be learned, tiny class folders."""

import os
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where train.py and analyze.py are


def composed(*overrides: str, name: str = "train") -> dict:
    """A config as Hydra composes it from conf/, resolved, as plain containers."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)


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


@pytest.fixture
def folders(tmp_path):
    """A small data set laid out as class folders: 8 training and 4 validation images in each of three classes."""
    return write_folders(tmp_path / "images", {"train": 8, "val": 4})


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Type a command: ``command("train", overrides…) -> (exit code, stdout, stderr)``, in an empty folder."""
    import analyze
    import train

    monkeypatch.chdir(tmp_path)

    def call(name, *overrides):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        job, config_name = (train.run_training, "train") if name == "train" else (analyze.main, "analyze")
        try:
            code = train.run_command(job, config_name) or 0
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call
