"""A training that only notes how it was started."""

import os

import pytest

from zfscope.runs import write_results


@pytest.fixture
def starts(monkeypatch):
    """A training that notes its seed and whether it goes on: 1 fails the first time, 2 is as if it had been killed."""
    noted = []

    def train(config, folder, overrides=(), group=None, accepted=None):
        noted.append((config.seed, config.name, config.resume is not None))
        if config.resume:
            accepted()
        first = not (folder / "checkpoints").exists()
        (folder / "checkpoints").mkdir(exist_ok=True)
        if "KILLED" in os.environ:
            return 1.0
        if config.seed == 1 and first:
            raise RuntimeError("out of memory")
        (folder / "checkpoints/last.ckpt").touch()
        if config.seed != 2 or not first:
            write_results(folder, {"val/top1_error": {"value": 5.0, "unit": "%"}}, {"overrides": list(overrides)})
        return 1.0

    monkeypatch.setattr("zfscope.training.run.train", train)
    return noted
