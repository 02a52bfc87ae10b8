"""Typed schemas of ``conf/``: every key that may be set, its type and its range.

One check at the start of a command turns a mistyped key or an impossible value into one line that
names the key, the value and the way out, before any work is done.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

CONV_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
DENSE_LAYERS = ("fc6", "fc7", "fc8")


class Strict(BaseModel):
    """A group of keys that knows all its names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolConfig(Strict):
    """Max pooling; ceil mode as in cuda-convnet (paper, Fig. 3: 110 -> 55 -> 26 -> 13)."""

    kernel_size: Count = 3
    stride: Count = 2
    ceil_mode: bool = True


class ConvLayer(Strict):
    """conv -> ReLU -> [pool] -> [contrast norm]; the norm may stand before the pool (AlexNet)."""

    maps: Count
    kernel_size: Count
    stride: Count = 1
    padding: Annotated[int, Field(ge=0)] = 0
    groups: Count = 1
    pool: PoolConfig | None = None
    norm: Literal["after_pool", "before_pool"] | None = None


class DenseLayer(Strict):
    """Fully connected -> ReLU -> dropout; the last one has neither, and its units are the classes."""

    units: Count | None = None
    dropout: Share = 0.0


class ContrastConfig(Strict):
    """Constants of the contrast normalisation; ``alpha`` is averaged over ``size``, as PyTorch does."""

    size: Count = 5
    alpha: NotNegative = 1e-4
    beta: Positive = 0.75
    k: Positive = 2.0


class InitConfig(Strict):
    """``normal``: N(0, std^2) for all weights (the paper, std 0.01); ``he``: N(0, 2 / fan in). Biases are 0.

    ``first`` scales the first layer's start: what it starts with stays in its filters as noise.
    """

    scheme: Literal["normal", "he"] = "he"
    std: Positive = 0.01
    first: Positive = 1.0


class ModelConfig(Strict):
    """The network: either the paper's named layers, or a model of torchvision or timm by name."""

    source: Literal["convnet", "torchvision", "timm"] = "convnet"
    name: str
    conv1: ConvLayer | None = None
    conv2: ConvLayer | None = None
    conv3: ConvLayer | None = None
    conv4: ConvLayer | None = None
    conv5: ConvLayer | None = None
    fc6: DenseLayer | None = None
    fc7: DenseLayer | None = None
    fc8: DenseLayer | None = None
    contrast: ContrastConfig = ContrastConfig()
    init: InitConfig = InitConfig()
    input_scale: Positive | Literal["unit"] = "unit"
    filter_rms: Positive | None = None
    layers: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _has_layers(self) -> ModelConfig:
        if self.source == "convnet":
            if self.fc8 is None:
                raise ValueError("fc8 gives the classes' logits and cannot be removed")
            for name in ("fc6", "fc7"):
                layer = getattr(self, name)
                if layer is not None and layer.units is None:
                    raise ValueError(f"{name}.units is missing; {name}=null removes the layer")
            if self.layers is not None:
                raise ValueError("layers belongs to source=timm; a convnet's layers are conv1, …, fc8")
        return self

    @property
    def chain(self) -> dict[str, ConvLayer | DenseLayer]:
        """The layers that are there, in order."""
        layers = {name: getattr(self, name) for name in CONV_LAYERS + DENSE_LAYERS}
        return {name: layer for name, layer in layers.items() if layer is not None}


class AugmentConfig(Strict):
    """What is done to a training image: ``standard`` (crop, flips, jitter) or timm's recipe."""

    policy: Literal["standard", "timm"] = "standard"
    flip: bool = True
    flip_vertical: bool = False
    rotate90: bool = False
    scale: tuple[Positive, Positive] | None = None
    brightness: Share = 0.0
    erase: Share = 0.0
    pca_colour: NotNegative = 0.0
    auto_augment: str | None = None

    @model_validator(mode="after")
    def _policy_knows(self) -> AugmentConfig:
        if self.policy == "standard" and self.auto_augment is not None:
            raise ValueError("auto_augment belongs to policy=timm")
        if self.policy == "timm" and (self.pca_colour or self.rotate90):
            raise ValueError("pca_colour and rotate90 belong to policy=standard")
        return self

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not scale[0] <= scale[1] <= 1:
            raise ValueError("scale is (smallest, largest) share of the image's area, at most 1")
        return scale


class DataConfig(Strict):
    """Where the images are and how they become a batch."""

    name: Literal["phantom", "elpv", "folder", "imagenet", "caltech101", "caltech256", "voc2012", "fashion_mnist"]
    root: str | None = None
    cache: str = "data_cache"
    resize: Count = 256
    crop: Count = 224
    batch_size: Count = 128
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Annotated[int, Field(ge=0)] = 0
    download: bool = False
    clutter: bool = False
    classes: tuple[str, ...] | None = None
    cells: Literal["mono", "poly"] | None = None
    exclude: str | None = None
    mean_images: Count | None = None
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _crop_fits(self) -> DataConfig:
        if self.crop > self.resize:
            raise ValueError(
                f"crop={self.crop} is larger than resize={self.resize}; crops are cut from the resized image"
            )
        if self.cells is not None and self.name != "elpv":
            raise ValueError(f"cells={self.cells} belongs to name=elpv; classes=[…] chooses classes of any data set")
        if self.classes is not None and len(set(self.classes)) < 2:
            raise ValueError("classes names the classes to keep, two or more different ones")
        return self


class EMAConfig(Strict):
    """Exponential moving average of the weights, which validation and checkpoints then use."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999


class MixupConfig(Strict):
    """timm's mixup and cutmix; 0 switches one off."""

    mixup: NotNegative = 0.2
    cutmix: NotNegative = 0.0

    @model_validator(mode="after")
    def _one_of_them(self) -> MixupConfig:
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
    def _artifacts_need_a_server(self) -> LoggerConfig:
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


class TrainConfig(Strict):
    """All that ``train.py`` reads."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    resume: str | None = None
    weights: str | None = None
    trust: tuple[str, ...] = ()
    paper: dict[str, float] = {}
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    callbacks: dict[str, dict[str, Any] | None] = {}
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> TrainConfig:
        if self.optim.mixup is not None and (self.data.batch_size % 2 or self.data.name == "voc2012"):
            raise ValueError("optim.mixup mixes pairs of images of one class each: it needs an even data.batch_size")
        if self.optim.nesterov and self.optim.name == "sgd" and self.optim.momentum == 0:
            raise ValueError("optim.nesterov=true needs a momentum above 0")
        if self.optim.schedule.name == "cosine" and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError("optim/schedule=cosine needs an end: give trainer.max_epochs or trainer.max_steps")
        return self


class EvaluateAnalysis(Strict):
    """``analysis=evaluate``: error with the centre crop and with ten crops."""

    name: Literal["evaluate"] = "evaluate"
    part: Literal["train", "val", "test"] | None = None
    ten_crops: bool = True
    batch_size: Count = 64


class ProjectionsAnalysis(Strict):
    """``analysis=projections``: the top activations of all feature maps, projected."""

    name: Literal["projections"] = "projections"
    part: Literal["train", "val", "test"] = "val"
    layers: tuple[str, ...] | None = None
    maps: Count | None = None
    top: Count = 9
    unpooling: Literal["sum", "overwrite"] = "sum"
    controls: Annotated[int, Field(ge=0)] = 64
    batch_size: Count = 16
    seed: Annotated[int, Field(ge=0)] = 0


class EvolutionAnalysis(Strict):
    """``analysis=evolution``: how projections change over the epochs that a run kept."""

    name: Literal["evolution"] = "evolution"
    part: Literal["train", "val", "test"] = "train"
    layers: tuple[str, ...] | None = None
    maps: Count = 6
    images: Count = 1000
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0


class OcclusionAnalysis(Strict):
    """``analysis=occlusion``: what the network says while a grey square slides over an image (Fig. 7)."""

    name: Literal["occlusion"] = "occlusion"
    part: Literal["train", "val", "test"] = "val"
    images: Count = 6
    indices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    shown: Annotated[int, Field(ge=0)] = 12
    target: Annotated[str | None, BeforeValidator(lambda given: None if given is None else str(given))] = None
    size: Count | None = None
    stride: Count | None = None
    fill: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    layer: str | None = None
    top: Annotated[int, Field(ge=0)] = 9
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0


class InvarianceAnalysis(Strict):
    """``analysis=invariance``: how far features move when an image is shifted, scaled or turned (Fig. 5)."""

    name: Literal["invariance"] = "invariance"
    part: Literal["train", "val", "test"] = "val"
    images: Annotated[int, Field(ge=2)] = 64
    shown: Annotated[int, Field(ge=1, le=10)] = 5
    layers: tuple[str, ...] | None = None
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("layers")
    @classmethod
    def _two(cls, layers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if layers is not None and len(set(layers)) != 2:
            raise ValueError("layers names a low and a high layer, such as [conv1,fc7]")
        return layers


class CorrespondenceAnalysis(Strict):
    """``analysis=correspondence``: does hiding one part change features alike in all images (Table 1, Fig. 8)."""

    name: Literal["correspondence"] = "correspondence"
    boxes: str | None = None
    part: Literal["train", "val", "test"] = "test"
    images: Annotated[int, Field(ge=2)] = 5
    layers: tuple[str, ...] | None = None
    masks: Count = 100
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0


class DiagnosticsAnalysis(Strict):
    """``analysis=diagnostics``: dead maps, frequencies of filters, aliasing; two checkpoints side by side (Fig. 6)."""

    name: Literal["diagnostics"] = "diagnostics"
    part: Literal["train", "val", "test"] = "val"
    other: str | None = None
    images: Count | None = None
    maps: Count = 64
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0)] = 0


class EnsembleAnalysis(Strict):
    """``analysis=ensemble``: softmax averaged over several networks and ten crops (Table 2)."""

    name: Literal["ensemble"] = "ensemble"
    part: Literal["train", "val", "test"] | None = None
    ten_crops: bool = True
    members: Count | None = None
    partial: bool = False
    batch_size: Count = 64


class TransferAnalysis(Strict):
    """``analysis=transfer``: a new softmax on frozen features against training from scratch (Tables 4 to 6, Fig. 9)."""

    name: Literal["transfer"] = "transfer"
    images_per_class: tuple[Count, ...] | None = None
    test_images: Count | None = 50
    folds: Count = 5
    layer: str | None = None
    scratch: bool = True
    scratch_steps: Count | None = None
    scratch_folds: Count | None = None
    shuffle_labels: bool = False
    batch_size: Count = 64
    seed: Annotated[int, Field(ge=0)] = 0


class ProbesAnalysis(Strict):
    """``analysis=probes``: linear SVM and softmax on the features of each layer (Table 7)."""

    name: Literal["probes"] = "probes"
    layers: tuple[str, ...] | None = None
    classifiers: tuple[Literal["svm", "softmax"], ...] = ("svm", "softmax")
    images_per_class: Count | None = None
    test_images: Count | None = 50
    folds: Count = 5
    shuffle_labels: bool = False
    memory_gb: Positive = 2.0
    batch_size: Count = 64
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("classifiers")
    @classmethod
    def _some(cls, classifiers: tuple[str, ...]) -> tuple[str, ...]:
        if not classifiers:
            raise ValueError("classifiers names svm, softmax or both")
        return tuple(dict.fromkeys(classifiers))


class OverlapAnalysis(Strict):
    """``analysis=overlap``: images of one set that also stand in another one (Sec. 5.2)."""

    name: Literal["overlap"] = "overlap"
    other: dict[str, Any]
    parts: tuple[Literal["train", "val", "test"], ...] = ("train",)
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    mirrored: bool = False
    shown: Annotated[int, Field(ge=0)] = 12
    memory_gb: Positive = 1.0


class LedgerAnalysis(Strict):
    """``analysis=ledger``: every number of Tables 1 to 7 beside ours, and the paper's claims as measured."""

    name: Literal["ledger"] = "ledger"
    runs: tuple[str, ...] = ("outputs",)


Analysis = Annotated[
    EvaluateAnalysis
    | ProjectionsAnalysis
    | EvolutionAnalysis
    | OcclusionAnalysis
    | InvarianceAnalysis
    | CorrespondenceAnalysis
    | DiagnosticsAnalysis
    | EnsembleAnalysis
    | TransferAnalysis
    | ProbesAnalysis
    | OverlapAnalysis
    | LedgerAnalysis,
    Field(discriminator="name"),
]


class AnalyzeConfig(Strict):
    """All that ``analyze.py`` reads; ``data`` changes single values of the checkpoint's own data config."""

    checkpoint: str | tuple[str, ...] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    data: dict[str, Any] = {}
    image: str | None = None
    analysis: Analysis

    @model_validator(mode="after")
    def _checkpoint_is_given(self) -> AnalyzeConfig:
        name, given = self.analysis.name, self.checkpoint
        if name in ("overlap", "ledger"):
            if given is not None:
                raise ValueError(f"analysis={name} looks at no network; leave checkpoint out")
        elif not given:
            raise ValueError("checkpoint is missing; give it as checkpoint=outputs/RUN")
        elif not isinstance(given, str) and name != "ensemble":
            raise ValueError(f"analysis={name} looks at one checkpoint; several belong to analysis=ensemble")
        return self

    @model_validator(mode="after")
    def _image_is_looked_at(self) -> AnalyzeConfig:
        if self.image is not None and self.analysis.name != "occlusion":
            raise ValueError(f"image={self.image} belongs to analysis=occlusion, not to analysis={self.analysis.name}")
        if self.image is not None and self.analysis.indices is not None:
            raise ValueError("image=FILE and analysis.indices name different images; give one of them")
        return self


Config = TypeVar("Config", bound=BaseModel)

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


def check(schema: type[Config], values: Mapping[str, Any], group: str = "") -> Config:
    """Read a composed config into its schema.

    Args:
        schema: One of the classes of this module.
        values: The composed config; mappings of any kind, nested.
        group: Where the values stand in the whole config, for messages: ``data``.

    Returns:
        The typed, immutable config.

    Raises:
        ValueError: For the first key that is unknown, of the wrong type or out of range: one line.
    """
    values = plain(values)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # A misspelt key is the cause of a missing one, so it is told first.
        problem = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        prefix = f"{group}." if group else ""
        sentence = _sentence(schema, values, problem).replace("give it as ", f"give it as {prefix}")
        raise ValueError(prefix + sentence + more) from None


def check_targets(callbacks: Mapping[str, Mapping[str, Any] | None], trust: Sequence[str] = ()) -> None:
    """Refuse a ``_target_`` that is neither held in code nor trusted by name on the command line.

    Raises:
        ValueError: With the offending name and the way to trust it.
    """
    for key, callback in callbacks.items():
        if callback is None:
            continue
        target = callback.get("_target_")
        if target is None:
            raise ValueError(f"callbacks.{key}: _target_ is missing; it names the callback's class")
        if target not in TARGETS and target not in trust:
            raise ValueError(
                f"callbacks.{key}._target_={target} is not a callback of this project; "
                f"'trust=[{target}]' on the command line allows it"
            )


def nearest(name: str, names: Sequence[str]) -> str:
    """``; did you mean …?`` for a misspelt name, or the names there are."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "there are " + ", ".join(sorted(names)) if names else "nothing can be set there"


def plain(value: Any) -> Any:
    """Nested mappings and sequences of any kind (OmegaConf's among them) as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def _sentence(schema: type[BaseModel], values: Any, problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    # pydantic names the branch of a union in the location; people know only the keys that they wrote.
    path: list[str] = []
    here = values
    for part in location:
        if isinstance(here, Mapping) and part in here:
            here = here[part]
            path.append(part)
        elif isinstance(here, Sequence) and part.isdigit():
            here = here[int(part)] if int(part) < len(here) else None
            path.append(part)
        elif part == location[-1] and problem["type"] == "missing":
            path.append(part)
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _fields(schema, values, path[:-1])
        return f"{key}={here!r}: there is no such key; {nearest(path[-1], known)}"
    if problem["type"] == "missing":
        return f"{key} is missing; give it as {key}=…"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message[:2] != message[:2].upper() else message
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key or 'config'}={here!r}: {message}"


def _fields(schema: type[BaseModel], values: Any, path: Sequence[str]) -> list[str]:
    """The names that are allowed where ``path`` leads, found by following the annotations."""
    from typing import get_args

    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in get_args(annotation) for model in models(argument)]

    candidates: list[type[BaseModel]] = [schema]
    for part in path:
        candidates = [
            model
            for candidate in candidates
            if part in candidate.model_fields
            for model in models(candidate.model_fields[part].annotation)
        ]
    return sorted({name for candidate in candidates for name in candidate.model_fields})
