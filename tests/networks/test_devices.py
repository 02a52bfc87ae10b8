import pytest
import torch

from zfscope.networks.devices import find_device, trainer_device


def test_auto_is_the_first_accelerator_or_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)


def test_a_device_that_this_machine_has_not_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    for take in (find_device, trainer_device):
        with pytest.raises(ValueError, match=r"device=cuda:1: this machine has none; use device=auto or device=cpu"):
            take("cuda:1")


def test_the_trainer_gets_one_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert trainer_device("auto") == {"accelerator": "auto", "devices": 1}
    assert trainer_device("cpu") == {"accelerator": "cpu", "devices": 1}
    assert trainer_device("cuda:1") == {"accelerator": "cuda", "devices": [1]}
