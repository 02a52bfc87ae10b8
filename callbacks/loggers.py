"""Where metrics go: W&B (offline by default), CSV files, TensorBoard or nowhere."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from zfscope import stops
from zfscope.callbacks.wandb_runs import SteadyWandbLogger, finish_run, start_run
from zfscope.console import console
from zfscope.runs import code_version, run_id
from zfscope.schema import flatten

KINDS = ("wandb", "csv", "tensorboard", "none")
PER_STEP = ("train/loss",)  # everything else has the epoch as its axis
BEST_IS_LEAST = ("val/loss", *(f"{part}/top{k}_error" for part in ("train", "val", "test") for k in (1, 5)))
SECRET = re.compile(r"api_?key|token|secret|passw(or)?d|credential", re.IGNORECASE)
REDACTED = "(redacted)"
MOST_IMAGES = 49  # W&B shows fewer than 50 images of a key at one step
LEAST_FREE = 2**20  # bytes


def build_logger(
    kind: str,
    run_folder: str | Path,
    *,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    mode: str = "offline",
    project: str = "zfscope",
    run_id: str | None = None,
    entity: str | None = None,
    log_model: bool | str = False,
) -> Logger | bool:
    """Make the logger of one run, apart from any other run of this process; close it with ``finish``.

    ``kind`` is ``wandb``, ``csv``, ``tensorboard`` or ``none`` (False, as ``Trainer(logger=False)`` takes it);
    everything is written below ``run_folder``. ``config`` is what the run was started with: nested groups become dotted
    keys, secrets are redacted, and the git commit of this code is added. The rest is for W&B: ``mode`` is ``offline``,
    ``online`` or ``disabled`` (as ``none``), and without a key or a server an online run warns and goes on offline, or
    with CSV files where W&B cannot start at all; the
    same ``run_id`` continues a run, but a ``wandb agent`` gives its own; ``log_model`` (True or ``all``) makes
    checkpoints artifacts, online.

    Raises:
        ValueError: If ``kind`` or ``mode`` is unknown.
        ModuleNotFoundError: If TensorBoard is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"logger={kind} is unknown; the loggers are {', '.join(KINDS)}")
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"logger.mode={mode} must be offline, online or disabled")
    if kind == "none" or (kind == "wandb" and mode == "disabled"):
        return False
    values = redact(flatten(config or {}))
    commit, _ = code_version()
    if commit:
        values["git.commit"] = commit
    if kind == "wandb":
        about = {"name": name, "group": group, "project": project, "entity": entity, "id": run_id}
        tags = sorted({_redact_tag(tag)[:64] for tag in tags if tag})  # W&B refuses longer ones
        started = _wandb_logger(Path(run_folder), mode, log_model, {**about, "tags": tags, "config": values})
        if started is not None:
            return started
    if kind != "tensorboard":
        logger: Logger = CSVLogger(run_folder, name="csv")
    else:
        logger = OpenTensorBoard(run_folder, name="tensorboard", default_hp_metric=False)
    logger.log_hyperparams(values)
    return logger


class OpenTensorBoard(TensorBoardLogger):
    """Stays open when a fit ends, so that what is logged after it goes into the same file; ``finish`` closes it."""

    def finalize(self, status: str) -> None:
        """Write what was logged so far."""
        self.save()
        self.experiment.flush()


def log_result(logger: Logger | bool | None, metrics: Mapping[str, float | None], pictures: Mapping[str, Path]) -> None:
    """Log an analysis: its metrics (None is left out) as one row, its pictures to loggers that take images."""
    if not logger:
        return
    logger.log_metrics({name: float(value) for name, value in metrics.items() if value is not None}, step=0)
    if isinstance(logger, WandbLogger):
        import wandb

        groups: dict[str, list[tuple[str, Path]]] = {}
        for name, path in pictures.items():  # one key with a list of images, not a key for each
            groups.setdefault(name.partition("/")[0], []).append((name, path))
        for key, group in groups.items():
            named = zip(_of_one_size([path for _, path in group[:MOST_IMAGES]]), group, strict=False)
            images = [wandb.Image(image, caption=name) for image, (name, _) in named]
            logger.log_metrics({f"figures/{key}": images})
    logger.save()


def _of_one_size(paths: Sequence[Path]) -> list[Any]:
    """Pictures as W&B's galleries want them: the files, or with white right of and below the smaller ones."""
    images = [Image.open(path) for path in paths]
    size = tuple(max(sides) for sides in zip(*(image.size for image in images), strict=True))
    if all(image.size == size for image in images):
        return [str(path) for path in paths]
    sheets = [Image.new("RGB", size, "white") for _ in images]
    for sheet, image in zip(sheets, images, strict=True):
        sheet.paste(image.convert("RGB"))
    return sheets


@contextmanager
def run_logger(options: Mapping[str, Any], folder: Path, **about: Any) -> Iterator[Logger | bool]:
    """The logger of the run in a folder, closed at the end; W&B shows a run that raised as failed.

    ``options`` are those of ``conf/logger``; ``about`` goes to ``build_logger``.
    """
    kind = options["name"]
    where = {name: options[name] for name in ("mode", "project", "entity", "log_model")}
    logger, code = None, 1
    try:
        with stops.held():  # a stop within W&B's start would leave its run open, which then writes on
            logger = build_logger(kind, folder, run_id=run_id(folder), **where, **about)
        yield logger
        code = 0
    finally:
        command = finish(logger, code)
        nothing = stops.asked() and not (folder / "checkpoints").is_dir()  # then the folder is removed
        if command and not nothing:
            console.print(command, soft_wrap=True, markup=False)


def finish(logger: Logger | bool | None, exit_code: int = 0) -> str | None:
    """Close the logger of a run, in a ``finally``, so that the next run of the process is its own.

    W&B shows the run as finished where ``exit_code`` is 0, else as failed. Returns the command that sends an offline
    W&B run to the server, else None.
    """
    if isinstance(logger, OpenTensorBoard) and rank_zero_only.rank == 0:
        TensorBoardLogger.finalize(logger, "success" if exit_code == 0 else "failed")
    if not isinstance(logger, SteadyWandbLogger) or rank_zero_only.rank != 0:
        return None
    finish_run(logger, exit_code)
    run = logger.experiment
    folder = run.settings.sync_dir
    if shutil.disk_usage(Path(folder).parent).free < LEAST_FREE:  # its own process says nothing
        rank_zero_warn(f"the disk of {Path(folder).parent} is full: W&B may have lost what it logged last")
    return f"wandb sync {shlex.quote(str(folder))}" if run.offline else None


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values whose key speaks of a secret, or that hold the value of such an environment variable."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8]
    return {
        key: REDACTED
        if value is not None and (SECRET.search(key) or any(secret in str(value) for secret in secrets))
        else value
        for key, value in config.items()
    }


def _redact_tag(tag: str) -> str:
    """Redact the value of a ``key=value`` tag."""
    key, equals, value = tag.partition("=")
    return f"{key}={redact({key: value})[key]}" if equals else tag


def _wandb_logger(folder: Path, mode: str, log_model: bool | str, about: dict[str, Any]) -> WandbLogger | None:
    """Start a W&B run of its own and wrap it; None where W&B cannot start."""
    if "WANDB_SWEEP_ID" in os.environ:
        about["id"] = None  # the agent sets the run's id
    if rank_zero_only.rank != 0:
        return WandbLogger(save_dir=folder, **about)  # a stand-in: Lightning gives other ranks no run
    run = start_run(folder, mode, about, bool(log_model))
    if run is None:
        return None
    if log_model and run.offline:
        rank_zero_warn("logger.log_model needs an online run; the checkpoints stay in the run folder only")
    run.define_metric("epoch")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="epoch")
    for name in PER_STEP:
        run.define_metric(name, step_metric="trainer/global_step")
    for name in BEST_IS_LEAST:
        run.define_metric(name, step_metric="epoch", summary="min")
    return SteadyWandbLogger(
        save_dir=folder,
        name=about["name"],
        project=about["project"],
        version=run.id,
        offline=run.offline,
        log_model=False if run.offline else log_model,
        experiment=run,
    )
