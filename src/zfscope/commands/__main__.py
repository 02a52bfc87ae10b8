"""``zfscope train …`` and ``zfscope analyze …``: what ``train.py`` and ``analyze.py`` are in a clone."""

import runpy
import sys

USAGE = """zfscope {train,analyze} [--help] [-m] [key=value …]

  zfscope train      train a network, or sweep over several
  zfscope analyze    ask a trained network a question
"""


def main() -> int:
    """Run the command that was typed; returns the exit code."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command not in ("train", "analyze"):
        print(f"zfscope: there is no command {command!r}; there are train and analyze", file=sys.stderr)
        return 2
    del sys.argv[1]
    # As ``python -m`` runs a module: so Lightning can start the processes of other GPUs.
    runpy.run_module(f"zfscope.commands.{command}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
