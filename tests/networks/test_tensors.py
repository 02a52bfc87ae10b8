"""Files that hold more than tensors are refused in words of our own."""

import functools
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks.saved import fresh
from zfscope import load_network
from zfscope.networks.checkpoints import read_checkpoint, start_from
from zfscope.networks.public import open_zoo
from zfscope.networks.tensors import read_tensors


class Settings:
    """A class of somebody else."""


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("folder/notes.txt", "no tensors")


HOLDS = "holds more than tensors and plain containers and was not loaded"
# What was saved, and what the message says of it.
FILES = {
    "module": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        rf"{HOLDS}: there is a torch\.nn\.modules\.linear\.Linear",
    ),
    "settings": (
        lambda path: torch.save({"state_dict": {}, "args": Settings()}, path),
        rf"{HOLDS}: .*\.Settings in it",
    ),
    "numpy": (lambda path: torch.save({"step": np.float64(3)}, path), rf"{HOLDS}: there is a numpy\..*scalar in it"),
    "function": (
        lambda path: torch.save({"f": functools.partial(print)}, path),
        rf"{HOLDS}: .* functools\.partial in it",
    ),
    "payload": (lambda path: torch.save(Payload(), path), rf"{HOLDS}: there is a \S+ in it; save only its state_dict"),
    "protocol": (
        lambda path: torch.save({"step": 3}, path, pickle_protocol=4),
        rf"{HOLDS}; save only its state_dict\(\)",
    ),
    "script": (
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
        "(is a TorchScript archive, which|is no checkpoint: .* is compressed, as in a TorchScript archive)",
    ),
    "archive": (archive, r"was not written by torch\.save, or is damaged; use another file"),
}


def check_words(refusal, path):
    """One line that names the file, and nothing of torch's advice."""
    message = str(refusal.value)
    assert str(path) in message and "\n" not in message and "\033" not in message
    assert not re.search("weights_only|likely succeed|trust|allowlist|safe_globals|issue|enhancement", message)


@pytest.mark.filterwarnings("error:.*(TorchScript|pickle protocol).*:UserWarning")
@pytest.mark.parametrize("read", [load_network, read_checkpoint, read_tensors, "start_from"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_holds_more_than_tensors_is_refused_without_torchs_advice(
    kind, read, config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (save, message), path = FILES[kind], tmp_path / "model.ckpt"
    save(path)
    read = functools.partial(start_from, fresh(config)) if read == "start_from" else read

    with pytest.raises(ValueError, match=f"model.ckpt {message}") as refusal:
        read(str(path))

    check_words(refusal, path)
    assert not Path("pwned").exists()


def test_a_pickle_is_refused_without_torchs_advice(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"step": 3}))

    with pytest.raises(ValueError, match=f"model.pth {HOLDS}; save only its state_dict") as refusal:
        read_tensors(path)

    check_words(refusal, path)


def test_a_file_in_the_cache_of_torchvision_is_refused_without_torchs_advice(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir()
    torch.save({"features.0.weight": Settings()}, cached)

    with pytest.raises(
        ConnectionError, match=rf"torchvision/alexnet: .*the file {HOLDS}: there is a \S+Settings"
    ) as refusal:
        open_zoo("torchvision/alexnet")

    check_words(refusal, cached.parent)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_tensors(tmp_path / "model.pth")
