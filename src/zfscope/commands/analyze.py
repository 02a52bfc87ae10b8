"""Ask a trained network a question: compose -> check -> load -> one analysis -> save (zfscope analyze --help)."""

import sys

import hydra
from omegaconf import DictConfig

from zfscope.commands import CONF, run_command, run_job


@hydra.main(version_base="1.3", config_path=CONF, config_name="analyze")
def main(values: DictConfig) -> None:
    """One analysis, or one job of a sweep."""
    run_job("analyze", values)


if __name__ == "__main__":
    sys.exit(run_command("analyze", main))
