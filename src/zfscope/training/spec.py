"""The keys of ``conf/train.yaml`` and of its groups optim, trainer, logger, checkpoints, callbacks and evaluate."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zfscope.data.spec import DataConfig
from zfscope.networks.devices import DeviceName
from zfscope.networks.spec import ModelConfig
from zfscope.schema import Count, NotNegative, Positive, Share, Strict


class EMAConfig(Strict):
    """Exponential moving average of the weights, which validation and checkpoints then use."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999


class MixupConfig(Strict):
    """timm's mixup and cutmix; 0 switches one off."""

    mixup: NotNegative = 0.2
    cutmix: NotNegative = 0.0

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.mixup == 0 and self.cutmix == 0:
            raise ValueError("mixup=0 and cutmix=0 mix nothing; optim.mixup=null switches them off")
        return self


class PlateauConfig(Strict):
    """Divide the rate when validation error stops improving (paper, Sec. 3, by hand; here automatic)."""

    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 5
    min_lr: NotNegative = 0.0


class CosineConfig(Strict):
    """Cosine decay to ``final`` times the rate, after a linear warm-up."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    final: NotNegative = 0.0


class ConstantConfig(Strict):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"


class OptimConfig(Strict):
    """Optimiser, schedule and loss."""

    epochs: Count = 70
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    schedule: Annotated[PlateauConfig | CosineConfig | ConstantConfig, Field(discriminator="name")] = PlateauConfig()
    label_smoothing: Share = 0.0
    ema: EMAConfig | None = None
    mixup: MixupConfig | None = None
    channels_last: bool = True
    compile: bool = False


class TrainerConfig(BaseModel):
    """Keywords of ``lightning.Trainer``: the usual ones checked here, every other one passes through."""

    model_config = ConfigDict(extra="allow", frozen=True)

    max_epochs: Annotated[int, Field(ge=-1)] | None = None
    max_steps: Annotated[int, Field(ge=-1)] = -1
    precision: str | int | None = None
    accumulate_grad_batches: Count = 1
    gradient_clip_val: NotNegative | None = None
    log_every_n_steps: Count = 50
    check_val_every_n_epoch: Count | None = 1


class LoggerConfig(Strict):
    """Where curves and pictures go besides the run folder."""

    name: Literal["wandb", "csv", "tensorboard", "none"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "zfscope"
    entity: str | None = None
    log_model: bool = False

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

    enabled: bool = True
    ten_crops: bool = True
    checkpoint: Literal["best", "last"] = "best"


# Spelling out what `_target_` may name keeps a config file from running foreign code.
TARGETS = (
    "zfscope.callbacks.Diagnostics",
    "zfscope.callbacks.FeatureEvolution",
    "zfscope.callbacks.FilterImages",
    "zfscope.callbacks.OcclusionMaps",
    "zfscope.callbacks.Projections",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.GradientAccumulationScheduler",
    "lightning.pytorch.callbacks.Timer",
)


class TrainConfig(Strict):
    """All that ``train.py`` reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: DeviceName = "auto"
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    resume: str | None = None
    weights: str | None = None
    trust: tuple[str, ...] = ()
    paper: str | dict[str, float] | None = None
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    callbacks: dict[str, dict[str, Any] | None] = {}
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.optim.mixup is not None and (self.data.batch_size % 2 or self.data.name == "voc2012"):
            raise ValueError("optim.mixup mixes pairs of images of one class each: it needs an even data.batch_size")
        if self.optim.nesterov and self.optim.name == "sgd" and self.optim.momentum == 0:
            raise ValueError("optim.nesterov=true needs a momentum above 0")
        if self.optim.schedule.name == "cosine" and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError("optim/schedule=cosine needs an end: give trainer.max_epochs or trainer.max_steps")
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
