"""Ask a trained network a question: compose -> check -> load -> one analysis -> save (python analyze.py --help)."""

import sys

from zfscope.commands import run_command
from zfscope.commands.analyze import main

if __name__ == "__main__":
    sys.exit(run_command("analyze", main))
