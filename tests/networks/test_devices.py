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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)


def test_a_device_that_this_machine_has_not_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    for take in (find_device, trainer_device):
        with pytest.raises(ValueError, match=r"device=cuda:1: this machine has none; use device=auto or device=cpu"):
            take("cuda:1")


def test_the_trainer_gets_one_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert trainer_device("auto") == {"accelerator": "auto", "devices": 1}
    assert trainer_device("cpu") == {"accelerator": "cpu", "devices": 1}
    assert trainer_device("cuda:1") == {"accelerator": "cuda", "devices": [1]}


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("take", [find_device, trainer_device])
@pytest.mark.parametrize("name", ["cuda:2", "cuda:9", "cuda:-1", "cuda:one", "cuda:"])
def test_a_number_that_no_gpu_has_is_refused_with_those_that_are_there(take, name, two_gpus):
    with pytest.raises(
        ValueError, match=f"^device={name}: this machine has cuda:0, cuda:1; use one of them or device=a"
    ):
        take(name)

    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert trainer_device("cuda:0") == {"accelerator": "cuda", "devices": [0]}


@pytest.mark.parametrize("take", [find_device, trainer_device])
@pytest.mark.parametrize("name", ["mps", "mps:0", "tpu", "auto:1", ""])
def test_a_kind_of_device_that_is_not_there_is_refused(take, name, two_gpus):
    with pytest.raises(ValueError, match=f"^device={name}: this machine has none; use device=auto or device=cpu"):
        take(name)


def test_the_cpu_has_no_numbers(two_gpus):
    with pytest.raises(ValueError, match="^device=cpu:3: this machine has cpu; use one of them or device=auto"):
        find_device("cpu:3")
