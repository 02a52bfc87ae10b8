import torch

from zfscope.networks.build import build_network

SIZE = 64


def fresh(config, num_classes=3, seed=0):
    torch.manual_seed(seed)
    return build_network(config["model"], num_classes, SIZE)


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def run(folder, *names):
    """A run folder with empty checkpoints of these names."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    return folder
