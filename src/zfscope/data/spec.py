"""The keys of ``conf/data``: where the images are and how they become a batch."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from zfscope.schema import Count, NotNegative, PathText, Positive, Share, Strict, Text

# What data=torchvision reads, by torchvision's names; how is said in zfscope.data.sources.torchvision.
TORCHVISION = ("MNIST", "SVHN", "CelebA", "CIFAR10", "CIFAR100", "Flowers102", "OxfordIIITPet", "Food101")


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
    def _policy_knows(self) -> Self:
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

    name: Literal[
        *(
            "phantom",
            "elpv",
            "folder",
            "imagenet",
            "caltech101",
            "caltech256",
            "voc2012",
            "fashion_mnist",
            "torchvision",
        )
    ]
    dataset: Literal[TORCHVISION] | None = None
    target: Text | None = None
    root: PathText | None = None
    cache: PathText = "data_cache"
    resize: Count = 256
    crop: Count = 224
    resizer: Literal["pil", "torch"] = "pil"
    batch_size: Count = 128
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Annotated[int, Field(ge=0)] = 0
    download: bool = False
    clutter: bool = False
    classes: tuple[Text, ...] | None = None
    cells: Literal["mono", "poly"] | None = None
    exclude: PathText | None = None
    mean_images: Count | None = None
    check: bool = True
    cache_images: bool = False
    augment: AugmentConfig = AugmentConfig()

    @property
    def title(self) -> str:
        """What a figure calls it: of torchvision's data sets their own name, with the target that was chosen."""
        return " ".join(filter(None, [self.dataset or self.name, self.target]))

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(
                f"crop={self.crop} is larger than resize={self.resize}; crops are cut from the resized image"
            )
        if self.cache_images and self.augment.policy == "timm":
            raise ValueError(
                "cache_images=true keeps the middle square of each image, and augment.policy=timm takes its views from "
                "the whole; leave one of them out"
            )
        if self.cells is not None and self.name != "elpv":
            raise ValueError(f"cells={self.cells} belongs to name=elpv; classes=[…] chooses classes of any data set")
        if self.dataset is not None and self.name != "torchvision":
            raise ValueError(f"dataset={self.dataset} belongs to name=torchvision, and the data set is {self.name}")
        if self.target is not None and self.dataset != "CelebA":
            raise ValueError(f"target={self.target} belongs to dataset=CelebA; other data sets have one target")
        if self.classes is not None and len(set(self.classes)) < 2:
            raise ValueError("classes names the classes to keep, two or more different ones")
        return self
