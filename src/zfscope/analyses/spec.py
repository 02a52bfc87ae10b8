"""The keys of ``conf/analyze.yaml`` and of each analysis."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from zfscope.data.spec import DataConfig
from zfscope.networks.devices import DeviceName
from zfscope.networks.spec import check_weights_file
from zfscope.schema import Count, PathText, Positive, Strict, check
from zfscope.training.spec import LoggerConfig

Part = Literal["train", "val", "test"]
Seed = Annotated[int, Field(ge=0)]
Rule = Literal["auto", "deconvnet", "guided", "gradient"]  # as Choice in deconvnet.choice, which loads torch


def _of_some(layers: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if layers == ():
        raise ValueError("name one layer or more, such as [conv5,fc7]")
    return layers


SomeLayers = Annotated[tuple[str, ...] | None, AfterValidator(_of_some)]


class AnalysisOptions(Strict):
    """Options of an analysis."""

    # Those that change how it runs or what it draws, not the numbers.
    irrelevant: ClassVar[frozenset[str]] = frozenset(
        ["name", "batch_size", "memory_gb", "shown", "top", "maps", "members", "partial", "rule", "seed", "runs"]
        + ["random_weights"]  # further numbers; the others stay
    )


class SampledOptions(AnalysisOptions):
    """Options of an analysis that draws images, maps or masks at random."""

    batch_size: Count = 32  # images that go forward together
    seed: Seed = 0  # of what is drawn at random


class EvaluateAnalysis(AnalysisOptions):
    """``analysis=evaluate``: error with the centre crop and with ten crops."""

    name: Literal["evaluate"] = "evaluate"
    part: Part | None = None
    ten_crops: bool = True  # also the mean over four corners, the centre and their mirror images
    batch_size: Count = 64  # images that go forward together


class ProjectionsAnalysis(SampledOptions):
    """``analysis=projections``: the top activations of all feature maps, projected."""

    name: Literal["projections"] = "projections"
    part: Part = "val"
    layers: tuple[str, ...] | None = None
    maps: Count | None = None
    top: Count = 9  # strongest activations of each map
    unpooling: Literal["sum", "overwrite"] = "sum"
    rule: Rule = "auto"
    controls: Annotated[int, Field(ge=0)] = 64
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    batch_size: Count = 16  # images that go forward together


class AtlasAnalysis(SampledOptions):
    """``analysis=atlas``: all feature maps, their winners and some images as pages to walk through."""

    irrelevant: ClassVar[frozenset[str]] = AnalysisOptions.irrelevant | {"pages"}

    name: Literal["atlas"] = "atlas"
    part: Part | None = None
    layers: tuple[str, ...] | None = None
    top: Count = 9  # strongest activations of each map
    pages: Annotated[int, Field(ge=0)] = 24
    rule: Rule = "auto"
    controls: Annotated[int, Field(ge=0)] = 64
    memory_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    batch_size: Count = 16


class EvolutionAnalysis(SampledOptions):
    """``analysis=evolution``: how projections change over the epochs that a run kept."""

    name: Literal["evolution"] = "evolution"
    part: Part = "train"  # whose images are looked through
    layers: tuple[str, ...] | None = None  # null: all that have maps
    maps: Count = 6
    rule: Rule = "auto"
    images: Count = 1000


class OcclusionAnalysis(SampledOptions):
    """``analysis=occlusion``: what the network says while a grey square slides over an image (Fig. 7)."""

    name: Literal["occlusion"] = "occlusion"
    part: Part = "val"
    images: Count = 6
    indices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    shown: Annotated[int, Field(ge=0)] = 12
    target: Annotated[str | None, BeforeValidator(lambda value: None if value is None else str(value))] = None
    size: Count | None = None
    stride: Count | None = None
    fill: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    layer: str | None = None
    rule: Rule = "auto"
    top: Annotated[int, Field(ge=0)] = 9
    random_weights: bool = False


class InvarianceAnalysis(SampledOptions):
    """``analysis=invariance``: how far features move when an image is shifted, scaled or turned (Fig. 5)."""

    name: Literal["invariance"] = "invariance"
    part: Part = "val"
    images: Annotated[int, Field(ge=2)] = 64
    shown: Annotated[int, Field(ge=1, le=10)] = 5
    layers: tuple[str, ...] | None = None
    random_weights: bool = False

    @field_validator("layers")
    @classmethod
    def _two(cls, layers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if layers is not None and len(set(layers)) != 2:
            raise ValueError("layers names a low and a high layer, such as [conv1,fc7]")
        return layers


class CorrespondenceAnalysis(SampledOptions):
    """``analysis=correspondence``: does hiding one part change features alike in all images (Table 1, Fig. 8)."""

    name: Literal["correspondence"] = "correspondence"
    boxes: PathText | None = None
    part: Part = "test"
    images: Annotated[int, Field(ge=2)] = 5
    layers: tuple[str, ...] | None = None
    masks: Count = 100
    random_weights: bool = False


class DiagnosticsAnalysis(SampledOptions):
    """``analysis=diagnostics``: dead maps, frequencies of filters, aliasing; two checkpoints side by side (Fig. 6)."""

    name: Literal["diagnostics"] = "diagnostics"
    part: Part = "val"
    other: PathText | None = None
    images: Count | None = None
    maps: Count = 64


class EmbeddingAnalysis(SampledOptions):
    """``analysis=embedding``: a map of images by t-SNE; whose nearest neighbours share their class, by layer."""

    name: Literal["embedding"] = "embedding"
    part: Part | None = None
    images: Annotated[int, Field(ge=2, le=10_000)] = 2500
    layer: str | None = None
    layers: SomeLayers = None
    neighbours: Count = 10  # nearest ones that are counted
    draws: Count = 5
    batch_size: Count = 64  # images that go forward together


class EnsembleAnalysis(AnalysisOptions):
    """``analysis=ensemble``: softmax averaged over several networks and ten crops (Table 2)."""

    name: Literal["ensemble"] = "ensemble"
    part: Part | None = None
    ten_crops: bool = True  # also the mean over four corners, the centre and their mirror images
    members: Count | None = None
    partial: bool = False
    batch_size: Count = 64  # images that go forward together


class TransferAnalysis(SampledOptions):
    """``analysis=transfer``: a new softmax on frozen features against training from scratch (Tables 4 to 6, Fig. 9)."""

    name: Literal["transfer"] = "transfer"
    images_per_class: tuple[Count, ...] | None = None
    test_images: Count | None = 50
    folds: Count = 5  # random choices of training images
    layer: str | None = None
    random_weights: bool = False
    scratch: bool = True  # also train from scratch
    scratch_model: PathText | None = None
    scratch_image_size: Count | None = None
    scratch_steps: Count | None = None
    scratch_folds: Count | None = None
    shuffle_labels: bool = False
    batch_size: Count = 64  # images that go forward together

    @field_validator("images_per_class")
    @classmethod
    def _some(cls, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if sizes == ():
            raise ValueError("give one number of images or more, such as [15,30]")
        return sizes

    @model_validator(mode="after")
    def _scratch_is_trained(self) -> Self:
        for name in ("scratch_model", "scratch_image_size"):
            if not self.scratch and getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)} is of training from scratch, which scratch=false omits")
        return self


class ProbesAnalysis(SampledOptions):
    """``analysis=probes``: linear SVM and softmax on the features of each layer (Table 7)."""

    name: Literal["probes"] = "probes"
    layers: SomeLayers = None
    classifiers: tuple[Literal["svm", "softmax"], ...] = ("svm", "softmax")  # which ones are trained
    images_per_class: Count | None = None
    test_images: Count | None = 50
    folds: Count = 5  # random choices of training images
    random_weights: bool = False
    shuffle_labels: bool = False
    memory_gb: Positive = 2.0
    batch_size: Count = 64  # images that go forward together

    @field_validator("classifiers")
    @classmethod
    def _some(cls, classifiers: tuple[str, ...]) -> tuple[str, ...]:
        if not classifiers:
            raise ValueError("classifiers names svm, softmax or both")
        return tuple(dict.fromkeys(classifiers))


class OverlapAnalysis(AnalysisOptions):
    """``analysis=overlap``: images of one set that also stand in another one (Sec. 5.2)."""

    name: Literal["overlap"] = "overlap"
    other: dict[str, Any]  # the second data set, as data@analysis.other=NAME says
    parts: tuple[Part, ...] = ("train",)
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    mirrored: bool = False
    shown: Annotated[int, Field(ge=0)] = 12
    memory_gb: Positive = 1.0  # for filtered thumbnails


class CacheAnalysis(AnalysisOptions):
    """``analysis=cache``: a data set decoded once, for ``data.cache_images=true``."""

    name: Literal["cache"] = "cache"
    check: bool = False


class LedgerAnalysis(AnalysisOptions):
    """``analysis=ledger``: every number of Tables 1 to 7 beside ours, and the paper's claims as measured."""

    name: Literal["ledger"] = "ledger"
    runs: tuple[PathText, ...] = ("outputs",)


Analysis = Annotated[
    EvaluateAnalysis
    | ProjectionsAnalysis
    | AtlasAnalysis
    | EvolutionAnalysis
    | OcclusionAnalysis
    | InvarianceAnalysis
    | CorrespondenceAnalysis
    | DiagnosticsAnalysis
    | EmbeddingAnalysis
    | EnsembleAnalysis
    | TransferAnalysis
    | ProbesAnalysis
    | OverlapAnalysis
    | CacheAnalysis
    | LedgerAnalysis,
    Field(discriminator="name"),
]


class AnalyzeConfig(Strict):
    """All that ``analyze.py`` reads; ``data`` changes single values of the checkpoint's own data config."""

    checkpoint: PathText | tuple[PathText, ...] | None = None
    weights_file: PathText | None = None
    device: DeviceName = "auto"
    data: dict[str, Any] = {}  # another data set than that of the training, or single values of it
    logger: LoggerConfig = LoggerConfig()
    image: PathText | None = None
    analysis: Analysis

    @model_validator(mode="after")
    def _checkpoint_is_given(self) -> Self:
        name, checkpoint = self.analysis.name, self.checkpoint
        if name in ("overlap", "cache", "ledger"):
            if checkpoint is not None:
                raise ValueError(f"analysis={name} looks at no network; leave checkpoint out")
        elif not checkpoint:
            raise ValueError("checkpoint is missing; give it as checkpoint=outputs/RUN")
        elif not isinstance(checkpoint, str) and name != "ensemble":
            raise ValueError(f"analysis={name} looks at one checkpoint; several belong to analysis=ensemble")
        return self

    @model_validator(mode="after")
    def _file_is_of_a_public_network(self) -> Self:
        check_weights_file(self.weights_file, "checkpoint", self.checkpoint)
        if self.weights_file is not None and self.analysis.name in ("ensemble", "evolution"):
            name = self.analysis.name
            raise ValueError(f"weights_file={self.weights_file} is one network's; analysis={name} looks at several")
        return self

    @model_validator(mode="after")
    def _cache_is_of_files(self) -> Self:
        if self.analysis.name == "cache" and (name := self.data.get("name")) in ("phantom", "elpv", "fashion_mnist"):
            raise ValueError(f"data={name} is in memory already; a cache is for images that are files")
        return self

    @model_validator(mode="after")
    def _other_is_a_data_set(self) -> Self:
        if self.analysis.name == "overlap" and self.analysis.other.get("name"):
            # Said here, before the first data set is opened, which may take minutes.
            named = {name: value for name, value in self.analysis.other.items() if value is not None}
            check(DataConfig, named, "analysis.other")
        return self

    @model_validator(mode="after")
    def _image_is_looked_at(self) -> Self:
        if self.image is not None and self.analysis.name != "occlusion":
            raise ValueError(f"image={self.image} belongs to analysis=occlusion, not to analysis={self.analysis.name}")
        if self.image is not None and self.analysis.indices is not None:
            raise ValueError("image=FILE and analysis.indices name different images; give one of them")
        return self
