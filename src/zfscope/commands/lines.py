"""How errors and warnings are told: in one line, without values from the environment."""

import re
import sys
import threading
import traceback
from typing import Any

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import ValidationError

from zfscope.files import FULL
from zfscope.schema import shown
from zfscope.secrets import masked


def refusals() -> tuple[type[BaseException], ...]:
    """The errors that a person can mend: told in one line, without a traceback."""
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # not loaded: it has raised nothing yet
    errors = (ValueError, TypeError, OSError, ImportError, HydraException, OmegaConfBaseException, yaml.YAMLError)
    return (*errors, lightning.MisconfigurationException) if lightning else errors


def one_line(error: BaseException) -> str:
    """An error as one line that a terminal shows, its middle left out where it is very long."""
    return shown(masked(_told_by(error)))


def _told_by(error: BaseException) -> str:
    """The line of an error that tells most; what a loader's process raised is found at the end of its report."""
    lines = [line.strip() for line in masked(str(error)).split("\n") if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return lines[-1].partition(": ")[2] or lines[-1]
    unset = re.search(r"Environment variable '(.+)' not found", lines[0])
    if isinstance(error, InterpolationResolutionError) and unset:
        return f"{error.full_key}: the environment variable {unset[1]} is not set; set it, or give the value itself"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"{error.override}: a value is typed as key=value"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {lines[0]}; a value with such characters is put in quotes: 'key=\"value\"'"
    if isinstance(error, HydraException | OmegaConfBaseException | ValidationError | yaml.YAMLError):
        return " ".join(lines)
    return lines[0]


def warning_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as one line, without the place in the code that it comes from."""
    return f"warning: {' '.join(masked(str(message)).split())}\n"


def tell_traceback(error: BaseException) -> None:
    """Print an error with its traceback and leave, where the traceback would show values from the environment."""
    text = "".join(traceback.format_exception(error))
    if masked(text) != text:
        print(masked(text), end="", file=sys.stderr)
        sys.exit(1)


def thread_line(arguments: threading.ExceptHookArgs) -> None:
    """A thread that met a full disk (TensorBoard's) is silent: whoever waits for it raises the same error."""
    if not isinstance(arguments.exc_value, OSError) or arguments.exc_value.errno not in FULL:
        threading.__excepthook__(arguments)
