"""Pairs per second of the overlap search, against one plain matrix product of the same size, which is its floor.

python benchmarks/overlap.py
"""

import argparse
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
    print(f"{pairs / search / 1e6:.0f} million pairs/s, {search / product:.2f} times the product alone")
    print(
        f"1,281,167 x {columns:,} pairs: {1_281_167 / rows * search / 60:.0f} minutes; {more / 1e3:.0f} MB more memory"
    )


if __name__ == "__main__":
    main()
