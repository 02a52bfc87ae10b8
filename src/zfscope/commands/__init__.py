"""The command line: every job is composed, checked and given its folder before Hydra runs it.

``overrides`` reads what was typed, ``configs`` composes and checks it, ``resumption`` goes on with a run, ``jobs``
runs them.
"""

from zfscope.commands.jobs import run_command, run_job
from zfscope.schema import CONF

__all__ = ["CONF", "run_command", "run_job"]
