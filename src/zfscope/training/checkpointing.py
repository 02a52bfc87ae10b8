"""When checkpoints are written: the best, the last, and the epochs of Fig. 4; and how they reach the disk."""

import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from zfscope import stops
from zfscope.console import console
from zfscope.data.quarantine import TooManyUnreadable
from zfscope.data.readers import LoaderEnded
from zfscope.networks.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint
from zfscope.networks.finite import broken_state
from zfscope.networks.network import Network
from zfscope.training.optimisers import share_by_muon
from zfscope.training.spec import TrainConfig

# Says to CheckpointFiles that only what ``load_network`` needs is kept: half to a third of a whole checkpoint's size.
WEIGHTS_ALONE = {"weights_alone": True}
DRAWING = tuple(
    f"zfscope.callbacks.{name}" for name in ("FeatureEvolution", "FilterImages", "OcclusionMaps", "Projections")
)
OF_THE_TRAINING = frozenset(
    ["optimizer_states", "lr_schedulers", "loops", "callbacks", "progress", "gradients", "current_model_state"]
)


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the lowest value of ``monitor``; among equals the earliest."""

    def __init__(self, folder: str | Path, monitor: str) -> None:
        super().__init__(
            folder, "best", monitor, mode="min", auto_insert_metric_name=False, enable_version_counter=False
        )

    def _save_topk_checkpoint(self, trainer: lightning.Trainer, monitor_candidates: dict[str, Any]) -> None:
        # A run may end before its first validation; Lightning would warn that nobody logs the error.
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best error of a run whose folder was moved."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})
        self.current_score = state_dict.get("current_score")  # else in the next checkpoint it would be missing


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: before each validation, after each epoch or every few steps, and when a run is interrupted."""

    def __init__(self, folder: str | Path, every_n_steps: int | None = None) -> None:
        when: dict[str, Any] = (
            {"every_n_epochs": 1, "save_on_train_epoch_end": True}
            if every_n_steps is None
            else {"every_n_train_steps": every_n_steps}
        )
        super().__init__(folder, "last", auto_insert_metric_name=False, enable_version_counter=False, **when)
        self._step = -1  # of the last saving
        self._hook: str | None = None  # whose end this is, of a batch or an epoch: Lightning logs it only afterwards
        self._row: dict[str, Any] | None = None  # of that log
        self._in_step = False
        self._agreement: Agreement | None = None  # where the run has several ranks
        self._agreed = False

    def state_dict(self) -> dict[str, Any]:
        """With the row of metrics that a run would lose which is killed right after a saving."""
        return {**super().state_dict(), "row": self._row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in a run whose folder was not moved: there is no best score to lose, of which Lightning would warn."""
        self._row = state_dict.get("row")
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def on_sanity_check_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Signals stop the run in one way."""
        stops.listen_again()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Several ranks stop after the same step, or those that go on would wait for the others."""
        stops.listen_again()
        super().on_train_start(trainer, pl_module)
        self._agreement = Agreement() if trainer.world_size > 1 else None
        if self._row is not None:
            trainer._logger_connector.log_metrics(self._row["metrics"], step=self._row["step"])
            self._row = None

    def on_train_batch_start(self, *_: Any) -> None:
        """A stop waits for the end of the step."""
        if not self._in_step:
            self._in_step = True
            stops.hold()

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any, **more: Any) -> None:
        """Save every few steps, and before an end within an epoch; then a stop may come.

        After an epoch's last batch both wait for its validation, which a resumed run would leave out.
        """
        if _is_epoch_read(trainer):
            return
        with self._within("batch"):
            super().on_train_batch_end(trainer, *arguments, **more)
        # An end that is asked for may have to wait, for trainer.min_epochs.
        stops_early = trainer.should_stop and trainer.fit_loop._can_stop_early
        ends = stops_early or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps)
        if ends and not trainer.fast_dev_run:
            with self._within("batch"):
                self._save(trainer)
        if self._agreement is not None:
            self._agreed = self._agreement.reached() or self._agreed
            # The gradients of a window are not in checkpoints where each rank has its own.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            if not self._agreed or done % trainer.accumulate_grad_batches:
                return
        try:
            self._end_step()
        except stops.Stopped:
            trainer._logger_connector.update_train_step_metrics()  # Lightning logs a step after this hook
            raise

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save what was trained: a run that is stopped in its validation goes on with that validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run:
            self._save(trainer)
        self._end_step()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after all batches of an epoch: one that was cut is saved within it, for its rest to be trained."""
        if not trainer.fast_dev_run and (_is_epoch_read(trainer) or self._step != trainer.global_step):
            with self._within("epoch"):
                self._save(trainer)
        self._end_step()

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        logs = self._hook == "epoch" or (self._hook == "batch" and connector.should_update_logs)
        if logs and trainer.loggers:
            metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
            step = loop._batches_that_stepped - (self._hook == "epoch")
            self._row = {"metrics": {"epoch": trainer.current_epoch, **metrics}, "step": step}
        super()._save_checkpoint(trainer, filepath)
        self._row = None

    @contextmanager
    def _within(self, hook: str) -> Iterator[None]:
        self._hook = hook
        try:
            yield
        finally:
            self._hook = None

    def _end_step(self) -> None:
        if self._in_step:
            self._in_step = False
            stops.release()

    def _save(self, trainer: lightning.Trainer) -> None:
        self._step = trainer.global_step
        with stops.held():
            self._save_checkpoint(trainer, str(Path(self.dirpath) / f"{self.filename}.ckpt"))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save when the run is stopped or its images end; after another error the weights may be what is wrong."""
        if self._in_step:
            self._in_step = False
            stops.release(stop=False)
        # What was trained before a validation is saved; within it averaged weights may stand in for the trained ones.
        stopped = isinstance(exception, stops.Stopped | KeyboardInterrupt | LoaderEnded | TooManyUnreadable)
        begun = trainer.fit_loop.epoch_loop.batch_progress.total.processed > 0
        stopped &= self._agreement is None or self._agreed  # else the other ranks do not come to save
        if stopped and begun and trainer.training and not _is_epoch_read(trainer) and not trainer.fast_dev_run:
            self._save(trainer)


def announce_room(config: TrainConfig, network: Network, folder: Path) -> None:
    """Say what the checkpoints will take, and refuse where the disk has no room for all that the run will write.

    What is there of an earlier leg is replaced; the size of pictures is a rough guess.
    """
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if (size := re.fullmatch(r"(?:bf)?(16|64)-true", str(config.trainer.precision))) is not None:
        weights = weights * int(size[1]) // 32
    second = {"sgd": 0.0, "adamw": 1.0, "muon": 1 - share_by_muon(network)}[config.optim.name]  # moments of gradients
    whole = round(weights * (2 + second + (config.optim.ema is not None)))
    most = config.trainer.max_epochs
    epochs = [epoch for epoch in config.checkpoints.epochs if most in (None, -1) or epoch <= most]
    names = ["best.ckpt", "last.ckpt", *(f"epoch_{epoch:03d}.ckpt" for epoch in epochs)]
    files = (folder / "checkpoints" / name for name in names)
    there = sum(file.stat().st_size for file in files if file.is_file())
    # One more while it is written.
    total = max(0, 2 * whole + len(epochs) * weights - there) + whole
    pictures, free = _size_of_pictures(config), shutil.disk_usage(folder).free
    if free < total + pictures:
        about, none = (f" and pictures about {pictures / 1e6:,.0f} MB", ", callbacks=none") if pictures else ("", "")
        raise OSError(
            f"the checkpoints need {total / 1e6:,.0f} MB{about}, and {free / 1e6:,.0f} MB are free in {folder}; free "
            f"space, or keep fewer: checkpoints.epochs=[]{none}"
        )
    of_epochs = f", {len(epochs)} of epochs with {weights / 1e6:,.1f} MB each" if epochs else ""
    console.print(f"checkpoints: best and last with {whole / 1e6:,.1f} MB each{of_epochs}", highlight=False)


def _size_of_pictures(config: TrainConfig) -> int:
    """Bytes that the pictures of a run take in ``figures/``; W&B's folder links to them, TensorBoard has its own."""
    most = config.trainer.max_epochs
    drawing = [options for options in config.callbacks.values() if options and options["_target_"] in DRAWING]
    whens = [options.get("when", options.get("epochs", 1)) for options in drawing]
    if most in (None, -1) or not whens:
        return 0
    epochs = max(most // when if isinstance(when, int) else sum(epoch <= most for epoch in when) for when in whens)
    # Measured: 1 MB an epoch at 28 pixels, 3 MB at 112 and 224, whose tiles are shown in one size; 5 MB as PNG files.
    files = min(3_000_000, 1_000_000 + 200 * config.data.crop**2)
    return epochs * files * (8 if config.logger.name == "tensorboard" else 3) // 3


class Agreement:
    """What all ranks of a run know of a signal that may have come to one of them, one step later.

    It goes through their CPUs, so no GPU is waited for; a rank is never more than a step ahead of the others.
    """

    def __init__(self) -> None:
        self.group = distributed.new_group(backend="gloo")
        self.pending: tuple[distributed.Work, torch.Tensor] | None = None

    def reached(self) -> bool:
        """Whether a signal had come to any rank before its last step ended: the same answer on all of them."""
        earlier, number = self.pending, torch.tensor(stops.asked())
        work = distributed.all_reduce(number, distributed.ReduceOp.MAX, self.group, async_op=True)
        self.pending = work, number
        if earlier is None:
            return False
        work, number = earlier
        work.wait()
        if not number:
            return False
        stops.ask(int(number))
        return True


def _is_epoch_read(trainer: lightning.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches


class EpochCheckpoints(lightning.Callback):
    """``epoch_NNN.ckpt``, weights alone, at chosen epochs from 1 up; Source: Zeiler & Fergus (2014), Fig. 4."""

    def __init__(self, folder: str | Path, epochs: Sequence[int]) -> None:
        self.folder, self.epochs = Path(folder), frozenset(epochs)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save if this is one of the epochs."""
        epoch = trainer.current_epoch + 1
        if epoch in self.epochs and not trainer.fast_dev_run:
            trainer.save_checkpoint(self.folder / f"epoch_{epoch:03d}.ckpt", storage_options=WEIGHTS_ALONE)


class CheckpointFiles(CheckpointIO):
    """Checkpoints on this machine's disk, whole or not at all, and read with checksums and without pickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write beside the target, flush, rename."""
        left_out = OF_THE_TRAINING if storage_options == WEIGHTS_ALONE else ()
        write_checkpoint({name: value for name, value in checkpoint.items() if name not in left_out}, path)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain containers."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Delete the file if it is there."""
        Path(path).unlink(missing_ok=True)


def find_resumable(source: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a run goes on from, and its content: ``last.ckpt`` of a run folder, or a file by its path.

    Where ``last.ckpt`` is damaged or holds NaN, the run's newest whole checkpoint is taken with a warning.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If none can be read, or a file holds weights alone.
    """
    path = find_checkpoint(source if source.is_file() else source / "last")
    try:
        return path, _whole(path)
    except ValueError as error:
        if source.is_file():
            raise
        others: list[tuple[int, Path, dict[str, Any]]] = []
        for other in sorted(set(path.parent.glob("*.ckpt")) - {path}):
            with suppress(ValueError):
                content = _whole(other)
                others.append((content["global_step"], other, content))
        if not others:
            raise
        step, other, content = max(others, key=lambda found: found[0])
        warnings.warn(f"{error}; the run goes on from {other}, step {step}", stacklevel=2)
        return other, content


def _whole(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if "optimizer_states" not in content or "loops" not in content:
        raise ValueError(
            f"{path} holds weights alone; a run goes on from last.ckpt or best.ckpt, or use weights={path}"
        )
    if (name := broken_state(content)) is not None:
        raise ValueError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint of that run")
    return content
