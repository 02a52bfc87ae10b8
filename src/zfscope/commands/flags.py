"""Flags and overrides as they were typed, and which process of a run reads them."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from zfscope.commands.configs import SCHEMAS
from zfscope.commands.nesting import check_brackets, check_yaml
from zfscope.schema import CONF, nearest

# Other ranks of one run, by who started them (torchrun and Lightning, srun, jsrun), share its folder.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def read_flags(name: str) -> argparse.Namespace:
    """Hydra's flags and the overrides, in any order; Hydra, which wants the overrides in one row, gets them so.

    Raises:
        ValueError: For a flag that is none, or lacks its value: one line instead of a page.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        told = message.removeprefix("argument ")
        raise ValueError(f"{told}; a value is typed as key=value, and python {name}.py --hydra-help lists the flags")

    parser.error = refuse
    arguments, unknown = parser.parse_known_intermixed_args()
    if unknown:
        flag, equals, value = unknown[0].partition("=")
        key = flag.lstrip("-").replace("-", "_")
        flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        if key.partition(".")[0] in {*SCHEMAS[name].model_fields, "experiment", "hydra", "debug"}:
            way_out = f"did you mean {key}={value if equals else '…'}?"
        else:
            way_out = nearest(flag, flags)
        raise ValueError(f"{unknown[0]}: there is no such flag; {way_out}")
    waiting, flags = list(arguments.overrides), []
    for word in sys.argv[1:]:
        if waiting and word == waiting[0]:
            waiting.pop(0)
        elif word != "--":
            flags.append(word)
    sys.argv[1:] = [*arguments.overrides, *flags]
    return arguments


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that would go past the checks of ``prepare``, and files that would not let Hydra end."""
    for folder in (CONF, *([arguments.config_dir] if arguments.config_dir else [])):
        for path in sorted(Path(folder).rglob("*.yaml")):
            check_yaml(path)
    for override in arguments.overrides:  # also of --help and --cfg, which Hydra answers without ``prepare``
        check_brackets(override, override)
    if is_other_rank():  # started by the first one, with the folder of the run's config
        return
    if arguments.experimental_rerun:
        raise ValueError(
            "--experimental-rerun unpickles a file, which may hold any code; resume=RUN goes on with a run"
        )
    for flag in ("config_path", "config_name"):
        if getattr(arguments, flag) is not None:
            name = flag.replace("_", "-")
            raise ValueError(f"--{name} would replace conf/; a folder with options of your own is --config-dir=DIR")


def is_hydras_own(arguments: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: help, a config, completion."""
    asks = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    return bool(asks)


def is_other_rank() -> bool:
    """Whether this process is another rank of a run than the first: it neither holds nor records the run's folder."""
    ranks = (os.environ.get(name) for name in RANKS)
    return next((rank for rank in ranks if rank is not None), "0") != "0"
