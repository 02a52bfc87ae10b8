"""Our contrast normalisation against ``torch.nn.LocalResponseNorm``: forward and backward pass, float32, on the CPU.

python benchmarks/contrast_norm.py [--threads 2] [--runs 7]        prints JSON; a ratio of 5 means five times faster
The two take turns, so that other work on the machine touches both.
"""

import argparse
import json
import time

import torch
from torch import nn

from zfscope.networks.layers import ContrastNorm

SHAPES = [(128, 96, 55, 55), (128, 256, 13, 13), (64, 48, 27, 27)]  # ZFNet's conv1 and conv2, the mini network's conv1
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def seconds(norm: nn.Module, maps: torch.Tensor, above: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(norm(maps), maps, above)
    return time.perf_counter() - start


def compare(shape: tuple[int, ...], memory: str, runs: int) -> list[float]:
    """How many times as fast ours is, in each run."""
    maps, above = (torch.randn(shape).to(memory_format=FORMATS[memory]) for _ in range(2))
    maps.requires_grad_()
    norms = {"theirs": nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), "ours": ContrastNorm(5, 1e-4, 0.75, 2.0)}
    times = {name: [] for name in norms}
    for run in range(runs + 1):
        for name, norm in norms.items():
            took = seconds(norm, maps, above)
            if run:  # the first warms up
                times[name].append(took)
    return [theirs / ours for theirs, ours in zip(times["theirs"], times["ours"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    ratios = {
        f"contrast norm, {'x'.join(map(str, shape))}, {memory.replace('_', ' ')}": compare(
            shape, memory, arguments.runs
        )
        for shape in SHAPES
        for memory in FORMATS
    }
    print(json.dumps({"ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
