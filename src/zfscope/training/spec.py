"""The keys of ``conf/train.yaml`` and of its groups optim, trainer, logger, checkpoints, callbacks and evaluate."""

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zfscope.data.spec import DataConfig
from zfscope.networks.devices import DeviceName, available_memory, has_gpu
from zfscope.networks.geometry import sizes_in_words, steps_of, values_of
from zfscope.networks.spec import CONV_LAYERS, ConvLayer, ModelConfig, check_weights_file
from zfscope.schema import Count, NotNegative, PathText, Positive, Share, Strict, Text, leaves, nearest


class EMAConfig(Strict):
    """Exponential moving average of the weights, which validation and checkpoints then use."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999  # of the running average of the weights, per step


class MixupConfig(Strict):
    """timm's mixup and cutmix; 0 switches one off."""

    mixup: NotNegative = 0.2  # alpha of the share that pairs of images are blended by; 0: none
    cutmix: NotNegative = 0.0  # alpha of the share of the area that is pasted from another image; 0: none

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.mixup == 0 and self.cutmix == 0:
            raise ValueError("mixup=0 and cutmix=0 mix nothing; optim.mixup=null switches them off")
        return self


class PlateauConfig(Strict):
    """Divide the rate when validation error stops improving (paper, Sec. 3, by hand; here automatic)."""

    name: Literal["plateau"] = "plateau"  # the rate falls when the monitored error stands still
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # what the rate is multiplied by
    patience: Annotated[int, Field(ge=0)] = 5  # epochs without a better error before it falls
    min_lr: NotNegative = 0.0  # the rate falls no further


class CosineConfig(Strict):
    """Cosine decay to ``final`` times the rate, after a linear warm-up."""

    name: Literal["cosine"] = "cosine"  # the rate falls along half a cosine
    warmup_epochs: NotNegative = 0.0  # in which the rate rises from near 0; may be a fraction
    final: NotNegative = 0.0  # rate at the end, as a share of the first


class ConstantConfig(Strict):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"  # the same rate throughout


class OptimConfig(Strict):
    """Optimiser, schedule and loss."""

    epochs: Count = 70  # what trainer.max_epochs takes
    name: Literal["sgd", "adamw", "muon"] = "sgd"  # the optimiser
    lr: Positive = 0.01  # learning rate
    momentum: Share = 0.9  # of sgd and muon
    nesterov: bool = False  # Nesterov's momentum
    weight_decay: NotNegative = 5e-4  # per step; of sgd added to the gradient, else taken off the weights
    schedule: Annotated[PlateauConfig | CosineConfig | ConstantConfig, Field(discriminator="name")] = PlateauConfig()
    label_smoothing: Share = 0.0  # share of the target that all classes share
    revive: NotNegative = 0.0
    ema: EMAConfig | None = None  # a running average of the weights; null: none
    mixup: MixupConfig | None = None  # images that are mixed from two; null: none
    channels_last: bool = True  # memory layout of the network: faster, the same up to rounding
    compile: bool = False  # torch.compile; slow to start


# Keywords of lightning.Trainer; held here so that a typo is refused before Lightning is imported.
TRAINER_KEYWORDS = (
    *("accelerator", "accumulate_grad_batches", "barebones", "benchmark", "callbacks", "check_val_every_n_epoch"),
    *("default_root_dir", "detect_anomaly", "deterministic", "devices", "enable_autolog_hparams"),
    *("enable_checkpointing", "enable_model_summary", "enable_progress_bar", "fast_dev_run"),
    *("gradient_clip_algorithm", "gradient_clip_val", "inference_mode", "limit_predict_batches", "limit_test_batches"),
    *("limit_train_batches", "limit_val_batches", "log_every_n_steps", "logger", "max_epochs", "max_steps", "max_time"),
    *("min_epochs", "min_steps", "model_registry", "num_nodes", "num_sanity_val_steps", "overfit_batches", "plugins"),
    *("precision", "profiler", "reload_dataloaders_every_n_epochs", "strategy", "sync_batchnorm"),
    *("use_distributed_sampler", "val_check_interval"),
)
RESERVED_TRAINER_KEYWORDS = frozenset(
    ["callbacks", "logger", "plugins", "default_root_dir", "enable_progress_bar", "enable_checkpointing"]
)


# What cannot change in the middle of a run.
FIXED_KEYS = re.compile(r"(model|data)\..*|optim\.name|optim\.schedule\.name|seed")


class TrainerConfig(BaseModel):
    """Keywords of ``lightning.Trainer``: the usual ones checked here, every other one passes through."""

    model_config = ConfigDict(extra="allow", frozen=True)

    accelerator: str | None = None
    devices: int | str | tuple[int, ...] | None = None
    num_nodes: Count = 1  # machines
    strategy: str | None = None  # Lightning's, such as ddp; null or auto: its choice
    max_epochs: Annotated[int, Field(ge=-1)] | None = None  # -1: no end
    max_steps: Annotated[int, Field(ge=-1)] = -1  # updates of the weights; -1: as many as max_epochs has
    max_time: str | dict[str, int] | None = None  # days:hours:minutes:seconds
    profiler: str | None = None  # simple or advanced
    precision: str | int | None = None
    accumulate_grad_batches: Count = 1
    gradient_clip_val: NotNegative | None = None  # largest norm of the gradient
    log_every_n_steps: Count = 50  # how often train/loss is logged
    check_val_every_n_epoch: Count | None = 1  # a validation every so many epochs

    @field_validator("max_time", mode="before")
    @classmethod
    def _is_a_time(cls, time: Any) -> Any:
        units = {"weeks", "days", "hours", "minutes", "seconds"}
        by_unit = isinstance(time, dict) and time and time.keys() <= units
        if time is None or by_unit or (isinstance(time, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time)):
            if time is not None and not re.search("[1-9]", str(time)):
                raise ValueError(f"max_time={time}: that leaves no time for a step; give more, or null for no limit")
            return time
        raise ValueError(
            f"max_time={time}: give days:hours:minutes:seconds, such as 00:12:00:00, or {{hours: 12, minutes: 30}}"
        )

    def keywords(self) -> dict[str, Any]:
        """What was set, for ``lightning.Trainer``; null leaves a keyword to Lightning, or to ``device``."""
        values = self.model_dump(exclude_unset=True)
        return {name: value for name, value in values.items() if value is not None or name == "check_val_every_n_epoch"}


class LoggerConfig(Strict):
    """Where curves and pictures go besides the run folder."""

    name: Literal["wandb", "csv", "tensorboard", "none"] = "wandb"  # where metrics and pictures go
    mode: Literal["offline", "online", "disabled"] | None = None
    project: Text | None = None
    entity: Text | None = None
    log_model: bool = False  # checkpoints as artifacts of W&B; needs an online run

    @model_validator(mode="after")
    def _takes_the_environments_values(self) -> Self:
        """What the config leaves open is W&B's own setting in the environment, else offline and zfscope."""
        defaults = {"mode": "offline", "project": "zfscope", "entity": None}
        for key, default in defaults.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, os.environ.get(f"WANDB_{key.upper()}") or default)
        if self.name == "wandb" and self.mode not in ("offline", "online", "disabled"):
            raise ValueError(f"WANDB_MODE={self.mode} must be offline, online or disabled; logger.mode goes before it")
        wrong = set(self.project) & set("/\\#?%:")
        if wrong or len(self.project) > 128:
            raise ValueError(f"project={self.project!r}: W&B takes names of 1 to 128 characters without / \\ # ? % :")
        return self

    @model_validator(mode="after")
    def _artifacts_need_a_server(self) -> Self:
        if self.log_model and (self.name != "wandb" or self.mode != "online"):
            raise ValueError("log_model=true sends checkpoints to a server: it needs logger=wandb logger.mode=online")
        return self


class CheckpointsConfig(Strict):
    """Which checkpoints a run keeps besides best and last."""

    epochs: tuple[Count, ...] = ()
    every_n_steps: Count | None = None


class EvaluateConfig(Strict):
    """The error of the best (or the last) checkpoint after training."""

    enabled: bool = True  # at the end of training
    ten_crops: bool = True  # also the mean over four corners, the centre and their mirror images
    checkpoint: Literal["best", "last"] = "best"  # which one is evaluated


# Spelling out what `_target_` may name keeps a config file from running foreign code.
TARGETS = (
    *(f"zfscope.callbacks.{name}" for name in ("Diagnostics", "FeatureEvolution", "FilterImages")),
    *(f"zfscope.callbacks.{name}" for name in ("OcclusionMaps", "Projections")),
    *(
        f"lightning.pytorch.callbacks.{name}"
        for name in (
            *("BackboneFinetuning", "BaseFinetuning", "BasePredictionWriter", "BatchSizeFinder", "Callback"),
            *("Checkpoint", "DeviceStatsMonitor", "EMAWeightAveraging", "EarlyStopping"),
            *("GradientAccumulationScheduler", "LambdaCallback", "LearningRateFinder", "LearningRateMonitor"),
            *("ModelCheckpoint", "ModelPruning", "ModelSummary", "OnExceptionCheckpoint", "ProgressBar"),
            *("RichModelSummary", "RichProgressBar", "SpikeDetection", "StochasticWeightAveraging"),
            *("TQDMProgressBar", "ThroughputMonitor", "Timer", "WeightAveraging"),
        )
    ),
)


# Lightning's callbacks that cannot do their work in a run of this project: why, and the way out.
BASE_CLASS = "is a base class and does nothing by itself; leave it out"
FUNCTIONS = (
    "takes functions, which a config cannot hold; write a class of your own: _target_=my.Class 'trust=[my.Class]'"
)
OWN_PROGRESS = "would be a second progress bar; a run has one in a terminal, and lines in a log; leave it out"
REFUSED_CALLBACKS = {
    "StochasticWeightAveraging": "leaves its averages out of all checkpoints; ++optim.ema.decay=0.999 averages weights",
    "LearningRateFinder": "cannot set optim.lr; a sweep compares rates: python train.py -m optim.lr=0.1,0.01",
    "BatchSizeFinder": "cannot set the size of batches; give it as data.batch_size=…",
    "BackboneFinetuning": "needs a module 'backbone', which no network here has; weights=… starts from trained weights",
    "SpikeDetection": "makes checkpoints that cannot be resumed; EarlyStopping has divergence_threshold",
    "OnExceptionCheckpoint": "lets a new run start from an earlier run's file; last.ckpt is written at a stop anyway",
    **dict.fromkeys(["LambdaCallback", "ThroughputMonitor"], FUNCTIONS),
    **dict.fromkeys(["BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"], BASE_CLASS),
    **dict.fromkeys(["RichProgressBar", "TQDMProgressBar"], OWN_PROGRESS),
}


class TrainConfig(Strict):
    """All that ``train.py`` reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of weights, order and views of images
    device: DeviceName = "auto"
    name: Text | None = None
    group: Text | None = None
    tags: tuple[Text, ...] = ()  # of the run in W&B
    resume: PathText | None = None
    weights: PathText | None = None
    weights_file: PathText | None = None
    trust: tuple[Text, ...] = ()
    paper: str | dict[str, float] | None = None
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    callbacks: dict[str, dict[str, Any] | None] = {}  # classes and arguments; callbacks.NAME=null leaves one out
    evaluate: EvaluateConfig = EvaluateConfig()

    @classmethod
    def place(cls, values: Mapping[str, Any], location: Sequence[str]) -> str:
        """The map sizes below the layer whose value is refused."""
        if len(location) < 3 or location[0] != "model" or location[1] not in CONV_LAYERS:
            return ""
        try:
            below = {name: values["model"][name] for name in CONV_LAYERS[: CONV_LAYERS.index(location[1])]}
            layers = {name: ConvLayer.model_validate(layer) for name, layer in below.items() if layer is not None}
            return f"; below {location[1]}: {sizes_in_words(list(steps_of(layers)), values['data']['crop'])}"
        except (KeyError, TypeError, ValueError):  # another value is wrong too
            return ""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.optim.mixup is not None and (self.data.batch_size % 2 or self.data.name == "voc2012"):
            raise ValueError("optim.mixup mixes pairs of images of one class each: it needs an even data.batch_size")
        if self.optim.nesterov and self.optim.name != "adamw" and self.optim.momentum == 0:
            raise ValueError("optim.nesterov=true needs a momentum above 0")
        if self.optim.schedule.name == "cosine" and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError("optim/schedule=cosine needs an end: give trainer.max_epochs or trainer.max_steps")
        return self

    @model_validator(mode="after")
    def _trainer_knows_its_keywords(self) -> Self:
        for name in self.trainer.model_dump(exclude_unset=True):
            if name in RESERVED_TRAINER_KEYWORDS:
                raise ValueError(
                    f"trainer.{name} is set by this project; see conf/callbacks, conf/logger, hydra.run.dir"
                )
            if name not in TRAINER_KEYWORDS:
                raise ValueError(
                    f"trainer.{name}: lightning.Trainer has no such keyword; {nearest(name, TRAINER_KEYWORDS)}"
                )
        return self

    @model_validator(mode="after")
    def _file_is_of_a_public_network(self) -> Self:
        check_weights_file(self.weights_file, "weights", self.weights)
        return self

    @model_validator(mode="after")
    def _trains(self) -> Self:
        for name in ("max_epochs", "max_steps"):
            if getattr(self.trainer, name) == 0:
                raise ValueError(
                    f"trainer.{name}=0 trains nothing; analyze.py analysis=evaluate looks at a trained network"
                )
        return self

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        """Refuse what cannot fit, by the least that it needs: a larger training may still end for want of memory."""
        needs = {"data.resize": 2 * 3 * self.data.resize**2 * 8}  # sums for the mean image, float64
        if self.model.source == "convnet":
            weights, activations = values_of(self.model.chain, self.data.crop, classes=2)
            on_host = self.device == "cpu" or not has_gpu()
            copies = (
                1 if not on_host else 3 if self.optim.name == "sgd" else 4
            )  # gradients and the optimiser's averages
            size = 2 if str(self.trainer.precision).startswith(("16", "bf16")) else 4
            needs |= {f"model.{name}": 4 * copies * count for name, count in weights.items()}
            if on_host:
                images = self.data.batch_size // self.trainer.accumulate_grad_batches
                needs["data.batch_size"] = size * images * sum(activations.values())
        total, free = sum(needs.values()), available_memory()
        if free is not None and total > free:
            key = max(needs, key=needs.get)
            raise ValueError(
                f"this training needs at least {total / 1e9:,.1f} GB of memory, most of it by {key}, "
                f"and {free / 1e9:,.1f} GB are free; make it smaller"
            )
        return self

    @model_validator(mode="after")
    def _callbacks_are_trusted(self) -> Self:
        for key, callback in self.callbacks.items():
            target = (callback or {}).get("_target_")
            if callback is not None and target is None:
                raise ValueError(f"callbacks.{key}: _target_ is missing; it names the callback's class")
            if target is not None and target not in TARGETS and target not in self.trust:
                raise ValueError(
                    f"callbacks.{key}._target_={target} is not a callback of this project; "
                    f"'trust=[{target}]' on the command line allows it"
                )
        return self

    @model_validator(mode="after")
    def _callbacks_look_at_layers_that_there_are(self) -> Self:
        if self.model.source == "convnet":
            for key, callback in self.callbacks.items():
                own = str((callback or {}).get("_target_")).startswith("zfscope.callbacks.")
                layers = callback.get("layers") if own else None
                names = layers if isinstance(layers, list | tuple) else ()
                wrong = [name for name in names if isinstance(name, str) and name not in self.model.chain]
                if wrong:
                    known = ", ".join(self.model.chain)
                    raise ValueError(f"callbacks.{key}.layers: no layer {wrong[0]!r}; the layers are {known}")
        return self

    @model_validator(mode="after")
    def _callbacks_stay_where_they_are(self) -> Self:
        """No class but a callback's own is named, and Lightning's write into the run folder alone."""
        for key, callback in self.callbacks.items():
            for name, _ in leaves(callback or {}):
                if name.rpartition(".")[2] == "_target_" and name != "_target_":
                    raise ValueError(f"callbacks.{key}.{name} names a class within a callback; leave it out")
            of_lightning = str((callback or {}).get("_target_")).startswith("lightning.")
            for name in ("dirpath", "filename") if of_lightning else ():
                place = str(callback.get(name) or "")
                if os.path.isabs(os.path.expanduser(place)) or ".." in place.split("/"):
                    raise ValueError(f"callbacks.{key}.{name}={place} must lie in the run folder, such as {name}=more")
        return self

    @model_validator(mode="after")
    def _callbacks_can_do_their_work(self) -> Self:
        for key, callback in self.callbacks.items():
            package, _, name = str((callback or {}).get("_target_")).rpartition(".")
            if package != "lightning.pytorch.callbacks":
                continue
            cause = REFUSED_CALLBACKS.get(name)
            if name in ("DeviceStatsMonitor", "LearningRateMonitor") and self.logger.name == "none":
                cause = "writes to a logger, and logger=none leaves none; logger=csv is one"
            elif name == "DeviceStatsMonitor" and callback.get("cpu_stats") is not False and not find_spec("psutil"):
                cause = "needs the package psutil: pip install psutil"
            elif name == "ModelPruning" and self.optim.channels_last:
                cause = "needs optim.channels_last=false"
            elif name == "ModelPruning" and self.resume is not None:
                cause = f"keeps its masks in no checkpoint, so no run goes on; weights={self.resume} starts a new one"
            elif (
                name == "ModelCheckpoint"
                and callback.get("dirpath") is None
                and (callback.get("save_last") or re.fullmatch(r"best|last|epoch_\d+", str(callback.get("filename"))))
            ):
                cause = f"would write over the run's own files; give it a folder: callbacks.{key}.dirpath=…"
            if cause is not None:
                raise ValueError(f"callbacks.{key}: {name} {cause}")
        return self

    @model_validator(mode="after")
    def _averages_its_weights_once(self) -> Self:
        of_lightning = ("lightning.pytorch.callbacks.WeightAveraging", "lightning.pytorch.callbacks.EMAWeightAveraging")
        averages = {key: it for key, it in self.callbacks.items() if it is not None and it["_target_"] in of_lightning}
        if len(averages) + (self.optim.ema is not None) > 1:
            both = [*(["optim.ema"] if self.optim.ema is not None else []), *(f"callbacks.{key}" for key in averages)]
            raise ValueError(f"{' and '.join(both)} each average the weights; leave one of them")
        for key, options in self.callbacks.items():
            if (averages or self.optim.ema is not None) and options is not None and options.get("save_weights_only"):
                raise ValueError(f"callbacks.{key}.save_weights_only=true would save weights that are not averaged")
        for key, options in averages.items():
            late = options.get("update_starting_at_epoch") is not None
            if late and options.get("update_starting_at_step") is None and options.get("update_every_n_steps", 1) != 0:
                raise ValueError(
                    f"callbacks.{key}.update_starting_at_epoch does not keep Lightning from averaging at every step; "
                    f"give callbacks.{key}.update_every_n_steps=0 too, to average at the ends of epochs alone"
                )
        return self
