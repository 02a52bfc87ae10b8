"""The keys of ``conf/model``: layers by name, constants of the contrast normalisation, initial weights."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from zfscope.schema import Count, NotNegative, Positive, Share, Strict

PUBLIC = ("zoo", "torchvision", "timm")  # what the names of public weights begin with: timm/resnet18
CONV_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
DENSE_LAYERS = ("fc6", "fc7", "fc8")


def check_weights_file(file: str | None, key: str, source: Any) -> None:
    """Refuse ``weights_file`` where ``source``, the value of ``key``, does not name the public network it is of."""
    named = isinstance(source, str) and source.partition("/")[0] in PUBLIC
    if file is not None and not named:
        raise ValueError(
            f"weights_file={file} holds the weights of a public network: name that too, such as {key}=timm/resnet18"
        )


class PoolConfig(Strict):
    """Max pooling; ceil mode as in cuda-convnet (paper, Fig. 3: 110 -> 55 -> 26 -> 13)."""

    kernel_size: Count = 3  # side of a window, map cells
    stride: Count = 2  # step of the windows
    ceil_mode: bool = True  # a last window may overhang the map


class ConvLayer(Strict):
    """conv -> ReLU -> [pool] -> [contrast norm]; the norm may stand before the pool (AlexNet)."""

    maps: Count  # number of feature maps
    kernel_size: Count  # side of a filter
    stride: Count = 1  # step of the filters
    padding: Annotated[int, Field(ge=0)] = 0  # zeros around the map below
    groups: Count = 1  # parts that the maps are divided into; a filter sees its own part
    pool: PoolConfig | None = None  # max pooling; null: none
    norm: Literal["after_pool", "before_pool"] | None = None  # where the contrast normalisation stands; null: none


class DenseLayer(Strict):
    """Fully connected -> ReLU -> dropout; the last one has neither, and its units are the classes."""

    units: Count | None = None  # null in the last layer: the number of classes
    dropout: Share = 0.0  # probability


class ContrastConfig(Strict):
    """Constants of the contrast normalisation; ``alpha`` is averaged over ``size``, as PyTorch does."""

    size: Count = 5  # adjacent maps in a window
    alpha: NotNegative = 1e-4  # weight of their mean square
    beta: Positive = 0.75  # exponent
    k: Positive = 2.0  # constant that is added


class InitConfig(Strict):
    """``normal``: N(0, std^2) for all weights (the paper, std 0.01); ``he``: N(0, 2 / fan in). Biases are 0.

    ``first`` scales the first layer's initial weights, which stay visible in its filters as noise.
    """

    scheme: Literal["normal", "he"] = "he"  # normal: N(0, std²), the paper's; he: N(0, 2 / fan in)
    std: Positive = 0.01  # of scheme=normal
    first: Positive = 1.0  # factor of the first layer's weights


class ModelConfig(Strict):
    """The network: either the paper's named layers, or a model of torchvision or timm by name."""

    source: Literal["convnet", "torchvision", "timm"] = "convnet"  # the layers below, or whose model name is
    name: str  # of timm's or torchvision's model; of a convnet a word for people
    conv1: ConvLayer | None = None  # null removes the layer
    conv2: ConvLayer | None = None  # null removes the layer
    conv3: ConvLayer | None = None  # null removes the layer
    conv4: ConvLayer | None = None  # null removes the layer
    conv5: ConvLayer | None = None  # null removes the layer
    fc6: DenseLayer | None = None  # null removes the layer
    fc7: DenseLayer | None = None  # null removes the layer
    fc8: DenseLayer | None = None  # gives the classes' logits
    contrast: ContrastConfig = ContrastConfig()
    init: InitConfig = InitConfig()
    input_scale: Positive | Literal["unit"] = "unit"
    filter_rms: Positive | None = None
    layers: tuple[str, ...] | None = None  # of timm and torchvision: submodules to look into; null: its stages

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
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
    def name_is_free(self) -> bool:
        """Whether the name is a word for people; else the network is looked up by it."""
        return self.source == "convnet"

    @property
    def chain(self) -> dict[str, ConvLayer | DenseLayer]:
        """The layers that are not null, bottom to top."""
        layers = {name: getattr(self, name) for name in CONV_LAYERS + DENSE_LAYERS}
        return {name: layer for name, layer in layers.items() if layer is not None}
