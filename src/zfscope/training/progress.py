"""How a run shows that it is alive: a bar in a terminal, one line an epoch in a log."""

import sys
import time

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar, Timer


def build_progress() -> Callback:
    """A rich bar with ETA and the current error where someone watches; plain lines where output goes to a file."""
    return EpochBar(leave=False) if sys.stdout.isatty() else EpochLines()


def why_stopped(trainer: lightning.Trainer) -> str | None:
    """Why a training ended before its last epoch; None where no callback has ended it."""
    if not trainer.should_stop or trainer.current_epoch == trainer.max_epochs:
        return None
    told = []
    for callback in trainer.early_stopping_callbacks:
        if callback.stopping_reason_message:
            asked = callback.stopped_epoch + 1  # counted from 1
            later = f"asked for in epoch {asked}: " if asked < trainer.current_epoch else ""
            told.append(later + callback.stopping_reason_message.partition(" Signaling")[0])
    over = any(isinstance(one, Timer) and (one.time_remaining() or 1) <= 0 for one in trainer.callbacks)
    reason = told[0] if told else "its time is over" if over else "a callback has asked for it"
    return f"stopped after epoch {trainer.current_epoch}, step {trainer.global_step}: {reason}"


class EpochBar(RichProgressBar):
    """Lightning's bar counts epochs from 0; here they count from 1, as in the names of checkpoints and pictures."""

    def _get_train_description(self, current_epoch: int) -> str:
        most = self.trainer.max_epochs
        of = f"/{most}" if most is not None and most > 0 else ""
        # As wide as the bar below it, which would jump otherwise.
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))


class EpochLines(Callback):
    """One line an epoch: errors, loss, speed, and how long the rest will take."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._since, self._first, self._done, self._validated = time.monotonic(), trainer.current_epoch, 0, False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that this epoch has errors of its own: a line does not repeat those of an earlier one."""
        self._validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the epoch; its training error is logged only after the callbacks had their turn."""
        self._done = trainer.current_epoch + 1

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the line of the epoch before."""
        self._tell(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the last line."""
        self._tell(trainer)

    def _tell(self, trainer: lightning.Trainer) -> None:
        if not trainer.is_global_zero or not self._done:
            return
        done, self._done = self._done, 0
        validated, self._validated = self._validated, False
        seconds = time.monotonic() - self._since
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        left = "" if total is None else f", {(total - done) * seconds / (done - self._first) / 60:.1f} min left"
        metrics = trainer.callback_metrics
        shown = [
            f"{name} {form % float(metrics[name])}"
            for name, form in (
                ("train/epoch_loss", "%.3f"),
                ("train/top1_error", "%.1f %%"),
                ("val/loss", "%.3f"),
                ("val/top1_error", "%.1f %%"),
            )
            if name in metrics and (validated or not name.startswith("val/"))
        ]
        epoch = f"{done}" if total is None else f"{done}/{total}"
        print(f"epoch {epoch}: {', '.join(shown)}, {seconds / 60:.1f} min{left}", flush=True)
