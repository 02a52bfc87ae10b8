"""Training a network to classify: loss, metrics, optimiser and schedule as a LightningModule.

Source: Zeiler & Fergus (2014), Sec. 3: SGD, momentum 0.9, dropout; Krizhevsky et al. (2012): weight decay.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import timm.data
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from zfscope.data.datamodule import ImageData, accumulated_batches
from zfscope.networks.checkpoints import network_state
from zfscope.networks.finite import broken_entry, broken_state, first_broken_module
from zfscope.networks.network import Network
from zfscope.training.identity import end_of
from zfscope.training.optimisers import cosine_share, optimizer_of, retune, revive_
from zfscope.training.spec import CosineConfig, OptimConfig, PlateauConfig
from zfscope.training.watch import Watch


class Classifier(lightning.LightningModule):
    """A network, with ``classes`` and ``preprocessing`` set, that learns to tell classes apart.

    Dropout and mixup follow from ``seed`` and the number of the batch. Every checkpoint holds ``config`` (of the run,
    as it may be recorded), ``model`` (what the network is built from), ``data`` (fingerprint of the training set),
    ``contents`` (hashes of its images and of those that validate), ``unread`` (see ``training.images``) and
    ``identity`` (see ``training_identity``). With ``multilabel`` labels are ``(N, classes)`` of 0 and 1.
    """

    def __init__(
        self,
        network: Network,
        optim: OptimConfig,
        *,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        data: str | None = None,
        identity: Mapping[str, Any] | None = None,
        contents: Mapping[str, Tensor] | None = None,
        unread: Mapping[str, Mapping[int, int]] | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.optim, self.seed = network, optim, seed
        self.config, self.model, self.data, self.identity, self.contents = config, model, data, identity, contents
        self.unread = unread or {}
        self.multilabel = multilabel
        classes = network.num_classes
        if multilabel:
            scores: dict[str, Any] = {"mean_average_precision": MultilabelAveragePrecision(classes)}
        else:
            scores = {"top1_error": MulticlassAccuracy(classes, average="micro")}
            if classes >= 6:
                scores["top5_error"] = MulticlassAccuracy(classes, average="micro", top_k=5)
        self.train_scores = MetricCollection(dict(scores), prefix="train/", compute_groups=False)
        self.val_scores = self.train_scores.clone(prefix="val/")
        self.train_loss = MeanLoss(nan_strategy="disable")  # looking for NaN at every step would wait for a GPU
        self.val_loss = MeanLoss(nan_strategy="disable")
        self.watch = Watch()
        self.seconds_before = 0.0  # of the legs before this one
        self.train_errors: Mapping[str, float] = {}  # of the last epoch of the legs before this one
        self._started, self._images, self._since, self._until, self._validated = 0.0, 0, 0.0, 0.0, False
        self._restored: Mapping[str, Any] = {}  # the checkpoint that a run goes on from, until its first step
        self.mixup = None
        if optim.mixup is not None:
            self.mixup = timm.data.Mixup(
                optim.mixup.mixup, optim.mixup.cutmix, label_smoothing=optim.label_smoothing, num_classes=classes
            )
        if optim.channels_last:
            network.to(memory_format=torch.channels_last)
        if optim.compile:
            network.compile()

    @property
    def monitor(self) -> str:
        """What the best checkpoint and the plateau go by; lower is better."""
        return "val/loss" if self.multilabel else "val/top1_error"

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of preprocessed images ``(N, 3, H, W)``."""
        if self.optim.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch ``(images, labels, indices)``; gradients of 0 of a batch without any image."""
        images, labels, _ = batch
        self._reseed()
        if not len(images):  # none could be read; other ranks wait for this one's gradients
            self._log_loss(torch.zeros((), device=self.device), 0)
            return torch.stack([(weight * 0).sum() for weight in self.parameters() if weight.requires_grad]).sum()
        targets = labels
        if self.mixup is not None and not self.multilabel:
            images, targets = mixed(self.mixup, images, labels)
        logits = self(images)
        loss = self._loss(logits, targets)
        # Asking a GPU for the value waits for it; there, and where other ranks would wait, the gradients tell.
        if loss.device.type == "cpu" and self.trainer.world_size == 1 and not bool(torch.isfinite(loss)):
            where = first_broken_module(self.network, images)
            first = f", first in the output of {where}" if where else ""
            first = ", because its images hold NaN or infinity" if broken_entry(images) is not None else first
            raise ValueError(self._refusal(f"the training loss became {loss.item()}", first))
        self._log_loss(loss, len(images))
        share = self._share(len(images))
        self.train_loss.update(loss.detach(), share)
        self.train_scores.update(logits.detach(), labels.long() if self.multilabel else labels)
        self._images += len(images) * self.trainer.world_size
        self._until = time.perf_counter()
        return loss * (share * self._missing_share(batch_idx))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse gradients that are not finite before they reach the weights; a scaler of float16 leaves them out.

        Maps that no image of the step has activated are helped to come back.
        """
        if self.optim.revive:
            revive_(self.network, self.optim.revive * optimizer.param_groups[0]["lr"])
        gradients = {name: weight.grad for name, weight in self.named_parameters() if weight.grad is not None}
        if self.trainer.precision == "16-mixed" or not gradients or not self.watch.finds(gradients.values()):
            return
        name = broken_entry(gradients)
        of = "of an earlier step" if name is None else f"of {name.removeprefix('network.')}"
        raise ValueError(self._refusal(f"the gradient {of} became NaN or infinite"))

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_start(self) -> None:
        """Go on from where the run stood, with the rates of this config; start counting images and seconds."""
        self.on_train_epoch_start()  # a run that goes on in the middle of an epoch starts none
        # With weights of 16 bits Lightning makes the mean one of 16 bits too, which forgets what is added late.
        for loss in (self.train_loss, self.val_loss):
            loss.set_dtype(torch.promote_types(loss.dtype, torch.float32))
        for callback in self.trainer.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(self.trainer)
        restored, self._restored = self._restored, {}
        if isinstance(self.trainer.datamodule, ImageData):
            self.trainer.datamodule.done = 0  # from here on the Trainer knows
        for name, gradient in restored.get("gradients", {}).items():
            weight = self.get_parameter(name)
            weight.grad = gradient.to(weight)
        for name, (count, state) in restored.get("progress", {}).get("metrics", {}).items():
            metric = self._train_metrics()[name]  # of all ranks together
            restore_metric(metric, count, state if self.trainer.is_global_zero else metric.metric_state)
        before = restored.get("zfscope", {}).get("config", {}).get("optim")
        if before is not None:
            recorded = (self.config or {}).get("optim")
            retune(self.trainer.optimizers[0], self.lr_schedulers(), before, self.optim, recorded)

    def on_train_epoch_start(self) -> None:
        """Start counting images and seconds."""
        self._images, self._since = 0, time.perf_counter()
        self._until = self._since

    def on_train_epoch_end(self) -> None:
        """Log training error, rate and speed; the speed counts training alone, not validation or pictures."""
        self._log_scores(self.train_scores)
        self.log("train/epoch_loss", self.train_loss.compute())
        self.train_loss.reset()
        seconds = max(self._until - self._since, 1e-9)
        self.log("images_per_second", self._images / seconds, sync_dist=False)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self._validated:
            scheduler.step(self.trainer.callback_metrics[self.monitor])
        self._validated = False

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Loss and errors of the middle crops of one batch."""
        images, labels, _ = batch
        if not len(images):  # none could be read
            return
        logits = self(images)
        self.val_loss.update(self._loss(logits, labels, smoothing=0.0), len(images))
        self.val_scores.update(logits, labels.long() if self.multilabel else labels)

    def on_validation_epoch_end(self) -> None:
        """Log the errors of this validation, in percent."""
        # Not by sync_dist: Lightning then divides by the images of the ranks as a mean without its fraction.
        self.log("val/loss", self.val_loss.compute())
        self.val_loss.reset()
        self._log_scores(self.val_scores, prog_bar=True)
        self._validated = not self.trainer.sanity_checking

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD or AdamW over all weights, and the schedule."""
        optimizer, schedule = optimizer_of(self.parameters(), self.optim), self.optim.schedule
        if isinstance(schedule, PlateauConfig):
            if self.trainer.limit_val_batches == 0:
                raise ValueError(
                    "optim.schedule=plateau goes by validation, and trainer.limit_val_batches=0 leaves none; "
                    "use optim/schedule=cosine"
                )
            rates = schedule.factor, schedule.patience
            plateau = ReduceLROnPlateau(optimizer, "min", *rates, min_lr=schedule.min_lr)
            # Lightning keeps its state; on_train_epoch_end takes its steps, so that last.ckpt, written after, has them.
            scheduler = {"scheduler": plateau, "monitor": self.monitor, "frequency": sys.maxsize}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        if isinstance(schedule, CosineConfig):
            steps = self.trainer.estimated_stepping_batches
            if not np.isfinite(steps):
                raise ValueError("optim.schedule=cosine needs an end: give trainer.max_epochs or trainer.max_steps")
            warmup = schedule.warmup_epochs * self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            cosine = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_share(step, int(steps), warmup, schedule.final)
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        return {"optimizer": optimizer}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that ``load_network`` needs, and what a run needs to go on within an epoch: its metrics so far, and
        within a window of accumulated batches their gradients.
        """
        if (name := broken_state(checkpoint)) is not None:
            raise ValueError(self._refusal(f"{name} became NaN or infinite and was not saved"))
        if self.config is not None:
            about = self.data, self.identity, self.contents, self.unread, self.model
            checkpoint["zfscope"] = network_state(self.network, self.config, *about)
        trainer = self.trainer
        seconds = self.seconds_before + (time.monotonic() - self._started if self._started else 0.0)
        checkpoint["progress"] = {"seconds": seconds, "should_stop": bool(trainer.should_stop), "metrics": {}}
        checkpoint["progress"]["batches_of_a_step"] = accumulated_batches(trainer)
        for name, metric in self._train_metrics().items():
            if metric.update_called:
                with metric.sync_context(should_sync=trainer.world_size > 1):
                    checkpoint["progress"]["metrics"][name] = [metric.update_count, dict(metric.metric_state)]
        checkpoint["progress"]["train"] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/top")
        }
        validation = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        if trainer.validating and validation.current.ready == 0:
            # Before a validation: as if in its first batch, or a resumed run would take it for done.
            loops = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                begun = loops[part]["completed"]
                loops[part] = {"ready": begun + 1, "started": begun + 1, "processed": begun, "completed": begun}
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        if done % trainer.accumulate_grad_batches and done < trainer.num_training_batches and trainer.world_size == 1:
            named = self.named_parameters()
            checkpoint["gradients"] = {name: weight.grad for name, weight in named if weight.grad is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tell the data where the run stands: a schedule asks for the number of steps, which opens the loaders, before
        the Trainer has restored its progress.
        """
        self._restored = checkpoint
        self.trainer.precision_plugin.convert_module(self)  # Lightning does it after the weights were restored
        self.seconds_before = checkpoint.get("progress", {}).get("seconds", 0.0)
        self.train_errors = checkpoint.get("progress", {}).get("train", {})
        # Lightning forgets that a callback has asked for the end, which min_epochs may have put off.
        before = checkpoint.get("zfscope", {}).get("config")
        if before and self.config and end_of(before) == end_of(self.config):
            self.trainer.should_stop |= checkpoint["progress"].get("should_stop", False)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if before is not None:
            window = checkpoint.get("progress", {}).get("batches_of_a_step", 1)
            rescale(progress, window, accumulated_batches(self.trainer), "gradients" in checkpoint)
        if isinstance(self.trainer.datamodule, ImageData):
            self.trainer.datamodule.done = progress["total"]["processed"]
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        if self.trainer.max_steps != -1 and epochs["current"]["processed"] == epochs["current"]["ready"]:
            # With max_steps Lightning takes the end of an epoch for its middle, and would run an epoch of no batch.
            for part in ("total", "current"):
                epochs[part]["completed"] = epochs[part]["processed"]
            progress["current"], progress["is_last_batch"] = dict.fromkeys(progress["current"], 0), False

    def _refusal(self, told: str, more: str = "") -> str:
        folder, batches = Path(self.trainer.default_root_dir), self.trainer.fit_loop.epoch_loop.batch_progress.current
        last = (folder / "checkpoints" / "last.ckpt").is_file()
        back = f", or go on from the last checkpoint with resume={folder} optim.lr=…" if last else ""
        place = f"in epoch {self.current_epoch + 1}, batch {batches.ready}"
        return f"{told} {place}{more}; lower optim.lr or set trainer.gradient_clip_val=1{back}"

    def _share(self, count: int) -> float:
        """How much ``count`` images are of a batch, which is smaller where some cannot be read.

        With it in the loss every image counts alike in a step, whichever batch and rank it is in.
        """
        data = self.trainer.datamodule
        return count / data.images_at_a_time if isinstance(data, ImageData) else 1.0

    def _log_loss(self, loss: Tensor, count: int) -> None:
        """The mean over the images of all ranks; all of them come here, also for a batch without images."""
        if self.trainer.world_size > 1:
            sums = torch.stack([loss.detach().double() * count, loss.new_tensor(count, dtype=torch.float64)])
            distributed.all_reduce(sums)
            loss, count = (sums[0] / sums[1].clamp(min=1)).to(loss.dtype), count or 1
        if count:
            self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True, batch_size=count)

    def _missing_share(self, batch_idx: int) -> float:
        """What makes the step of an epoch's last, shorter window that of a mean: Lightning divides by whole windows."""
        window, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        rest = int(batches % window) if np.isfinite(batches) else 0
        return window / rest if rest and batch_idx >= batches - rest else 1.0

    def _train_metrics(self) -> dict[str, Metric]:
        return {"loss": self.train_loss, **dict(self.train_scores.items(keep_base=True))}

    def _loss(self, logits: Tensor, labels: Tensor, smoothing: float | None = None) -> Tensor:
        smoothing = self.optim.label_smoothing if smoothing is None else smoothing
        if self.multilabel:
            labels = shared_targets(labels)
        elif labels.ndim == 2:
            smoothing = 0.0  # timm's mixup has smoothed them already
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _log_scores(self, scores: MetricCollection, **options: Any) -> None:
        for name, value in scores.compute().items():
            error = name.endswith("_error")
            self.log(name, 100.0 * (1.0 - value if error else value), **options)
        scores.reset()

    def _reseed(self) -> None:
        # What dropout and mixup draw is a function of (seed, batch), so a resumed run repeats an uninterrupted one.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        words = np.random.SeedSequence((self.seed, done, self.global_rank)).generate_state(2)
        torch.manual_seed(int(words[0]))
        np.random.seed(int(words[1]))


class MeanLoss(MeanMetric):
    """The mean of losses, each with its weight: torchmetrics 1.9 forgets weights where it does not look for NaN."""

    def update(self, value: Tensor, weight: float = 1.0) -> None:
        """Add the loss of a batch."""
        self.mean_value += value.to(self.dtype) * weight
        self.weight += weight


def metric_names(classes: int, multilabel: bool) -> tuple[str, ...]:
    """What a training logs of itself, by which callbacks may go."""
    scores = ["mean_average_precision"] if multilabel else ["top1_error", *(["top5_error"] if classes >= 6 else [])]
    own = ("train/loss", "train/epoch_loss", "val/loss", "lr", "images_per_second")
    return (*own, *(f"{part}/{score}" for part in ("train", "val") for score in scores))


def mixed(mixup: timm.data.Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch mixed by timm, which wants an even number of images; of an odd one the first stands in it twice."""
    count = len(images)
    if count % 2:
        images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
    images, targets = mixup(images, labels)
    return images[:count], targets[:count]


def rescale(progress: dict[str, Any], before: int, now: int, within: bool) -> None:
    """Count a run's progress in batches of which ``now`` make a step, where ``before`` did; not ``within`` a step."""
    for counts in (progress["total"], progress["current"]) if before != now else ():
        done = counts["processed"]
        if within or done * now % before:
            raise ValueError(
                f"this run stands within a step of {before} batches; let it go on with "
                f"trainer.accumulate_grad_batches={before}"
            )
        for name, count in counts.items():
            counts[name] = done * now // before + count - done


def restore_metric(metric: Metric, count: int, state: Mapping[str, Any]) -> None:
    """Put back what a metric held after ``count`` updates."""
    for name, value in state.items():
        value = [part.to(metric.device) for part in value] if isinstance(value, list) else value.to(metric.device)
        setattr(metric, name, value)
    metric._update_count, metric._computed = count, None


def shared_targets(labels: Tensor) -> Tensor:
    """Targets of a softmax: labels ``(N,)`` as they are; an image's several labels ``(N, K)`` share its target.

    Source: Zeiler & Fergus (2014), Sec. 5.2, train PASCAL with a 20-way softmax; sharing is our reading.
    """
    return labels if labels.ndim == 1 else labels / labels.sum(1, keepdim=True).clamp(min=1)
