"""Files of tensors that torch wrote: read without running anything in them, refused in words of our own.

torch's own messages advise to load the file with ``weights_only=False``, which runs whatever it holds.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zfscope.schema import printable


def read_tensors(path: str | Path, holders: Sequence[type] = ()) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers; nothing else is loaded, whatever the environment says.

    ``holders`` are further classes that only hold values, such as ``argparse.Namespace``.

    Raises:
        ValueError: Naming the file, and the first class or function in it that is neither.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*holders]):
            warnings.simplefilter("ignore")  # of what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # torch raises pickle, runtime and key errors for malformed files
        raise ValueError(f"{path} {cause_of(error)}") from None


def cause_of(error: Exception) -> str:
    """What is wrong with a file, told from the error of ``torch.load``; a sentence about the file, without its name."""
    message, way = str(error), "save only its state_dict()"
    if "TorchScript" in message:
        return f"is a TorchScript archive, which holds code, and was not loaded; {way}"
    foreign = re.search(r"GLOBAL (\S+)", message)
    if foreign:
        name = printable(foreign[1])
        return f"holds more than tensors and plain containers and was not loaded: there is a {name} in it; {way}"
    if message.startswith("Weights only load failed"):
        return f"holds more than tensors and plain containers and was not loaded; {way}"
    return "was not written by torch.save, or is damaged; use another file"
