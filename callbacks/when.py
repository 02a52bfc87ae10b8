"""Which epochs are looked at. Epochs are counted from 1, as people do; Lightning's ``current_epoch`` counts from 0."""

from collections.abc import Iterable

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def epoch_number(trainer: Trainer) -> int:
    """The epoch that is running, counted from 1."""
    return trainer.current_epoch + 1


def batch_number(trainer: Trainer) -> int | None:
    """The training batch of the epoch, counted from 1, after which a validation inside it runs; else None.

    None at the end of an epoch, too. Batches, not optimiser steps, tell two validations apart: gradients may be
    accumulated over several batches.
    """
    if not (in_training(trainer) and trainer.validating):
        return None
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return None if batches.is_last_batch else batches.current.ready


def moment(trainer: Trainer) -> str:
    """When a picture is drawn, for its title: ``epoch 3``, or ``epoch 3, batch 20`` inside an epoch."""
    batch = batch_number(trainer)
    return f"epoch {epoch_number(trainer)}" + ("" if batch is None else f", batch {batch}")


def in_training(trainer: Trainer) -> bool:
    """Whether a validation pass belongs to a training: it is neither its sanity check nor ``trainer.validate``."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


class When:
    """The epochs that something is done in.

    Args:
        epochs: A number n for every n-th epoch (1 is all), or the epochs themselves, counted from 1, such as
            ``[1, 2, 5, 10, 20, 30, 40, 64]`` (Fig. 4).

    Raises:
        ValueError: If an epoch is no whole number from 1 up, or there is none.
    """

    def __init__(self, epochs: int | Iterable[int] = 1) -> None:
        self._every = isinstance(epochs, int)
        self._epochs = frozenset([epochs] if isinstance(epochs, int) else epochs)
        wrong = [epoch for epoch in self._epochs if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1]
        if wrong or not self._epochs:
            raise ValueError(
                f"when={epochs!r} must be a whole number n (every n-th epoch) or a list of epochs, all 1 or more"
            )

    def __contains__(self, epoch: int) -> bool:
        """Whether ``epoch``, counted from 1, is one of them."""
        return epoch % min(self._epochs) == 0 if self._every else epoch in self._epochs

    def is_now(self, trainer: Trainer) -> bool:
        """Whether the validation pass that is running belongs to a training and to one of these epochs."""
        return in_training(trainer) and epoch_number(trainer) in self
