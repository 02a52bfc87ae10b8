"""The keys of ``conf/data``: where the images are and how they become a batch."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from zfscope.schema import Count, NotNegative, PathText, Positive, Share, Strict, Text

# What data=torchvision reads, by torchvision's names; how is said in zfscope.data.sources.torchvision.
TORCHVISION = ("MNIST", "SVHN", "CelebA", "CIFAR10", "CIFAR100", "Flowers102", "OxfordIIITPet", "Food101")


class AugmentConfig(Strict):
    """What is done to a training image: ``standard`` (crop, flips, jitter) or timm's recipe."""

    policy: Literal["standard", "timm"] = "standard"  # timm: crops, jitter and auto_augment of its recipes
    flip: bool = True  # mirror half of the images
    flip_vertical: bool = False  # turn half of the images upside down
    rotate90: bool = False  # turn by a random multiple of 90 degrees
    scale: tuple[Positive, Positive] | None = None  # smallest and largest share of the area in a view; null: one size
    brightness: Share = 0.0  # times a random factor of 1 ± this
    erase: Share = 0.0  # probability that a rectangle becomes grey
    pca_colour: NotNegative = 0.0  # deviation of a shift along the principal colours; 0.1 in AlexNet
    auto_augment: str | None = None  # of policy=timm, such as rand-m7-mstd0.5-inc1

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

    name: Literal[  # which data set (docs/data.md)
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
    dataset: Literal[TORCHVISION] | None = None  # of data=torchvision
    target: Text | None = None
    root: PathText | None = None  # folder of the data set
    cache: PathText = "data_cache"  # folder for what is made once: drawn images, means, decoded images
    resize: Count = 256  # side of the square canvas, pixels
    crop: Count = 224  # side of the network's input, pixels
    resizer: Literal["pil", "torch"] = "pil"  # torch is four times as fast, equal to within one grey level
    batch_size: Count = 128  # images of a step, over all ranks and accumulated batches
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # processes that decode; auto: by the cores
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the training images, where no other are there
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of all images, where a set has no test part
    split_seed: Annotated[int, Field(ge=0)] = 0  # of these random parts
    download: bool = False  # fetch what is missing into root
    clutter: bool = False  # of Caltech: with the class of background images
    classes: tuple[Text, ...] | None = None
    cells: Literal["mono", "poly"] | None = None
    exclude: PathText | None = None
    mean_images: Count | None = None  # training images that the mean image is of; null: all
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
