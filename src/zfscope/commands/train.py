"""Train a network: compose -> check -> seed -> build -> fit -> evaluate (zfscope train --help)."""

import sys

import hydra
from omegaconf import DictConfig

from zfscope.commands import CONF, run_command, run_job


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(values: DictConfig) -> float:
    """One run, or one job of a sweep; returns the best validation error in percent."""
    return run_job("train", values)


if __name__ == "__main__":
    sys.exit(run_command("train", main))
