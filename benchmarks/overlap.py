"""Pairs per second of the overlap search, against one plain matrix product of the same size, which is its floor.

python benchmarks/overlap.py
"""

import argparse
import json
import resource
import time

import torch

from zfscope.protocols.overlap import correlate, description_size


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # --help; there are no options
    generator = torch.Generator().manual_seed(0)
    rows, columns = 16_384, 30_607  # of the larger set a part; as many others as Caltech-256 has images
    first, second = (
        torch.nn.functional.normalize(torch.randn(count, description_size(), generator=generator))
        for count in (rows, columns)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    start = time.perf_counter()
    correlate(first.split(1024), second.numpy(), columns=20_000)
    search = time.perf_counter() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    start = time.perf_counter()
    for block in first.split(1024):
        block @ second.T
    product = time.perf_counter() - start

    pairs = rows * columns
    found = {
        "costs": {"overlap search over the matrix product alone": [search / product]},
        "million pairs a second": round(pairs / search / 1e6),
        "minutes for ImageNet and Caltech-256": round(1_281_167 / rows * search / 60),
        "more memory, MB": round(more / 1e3),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
