"""Train a network: compose -> check -> seed -> build -> fit -> evaluate (python train.py --help)."""

import sys

from zfscope.commands import run_command
from zfscope.commands.train import main

if __name__ == "__main__":
    sys.exit(run_command("train", main))
