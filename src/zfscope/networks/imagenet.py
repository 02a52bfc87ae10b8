"""ImageNet's 1,000 classes (ILSVRC 2012): in words, and by the wnids that its folders are called by."""

from collections import Counter
from functools import cache

from timm.data import ImageNetInfo

NUM_CLASSES = 1000


@cache
def wnids() -> tuple[str, ...]:
    """The synsets, such as ``n01440764``, in the order of the classes; the names of ImageNet's folders."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_names() -> tuple[str, ...]:
    """The classes in words, each once: the first of a synset's names; of names that two share, with the second one.

    Where a synset has no second name its wnid stands behind: ``crane (n02012849)`` is the bird.
    """
    synsets = [description.split(", ") for description in ImageNetInfo("imagenet-1k").label_descriptions()]
    counts = Counter(names[0] for names in synsets)
    return tuple(
        names[0] if counts[names[0]] == 1 else f"{names[0]} ({names[1] if len(names) > 1 else wnid})"
        for names, wnid in zip(synsets, wnids(), strict=True)
    )


def same_classes(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two lists of classes are the same, in the same order; ImageNet's in words are those of its folders."""
    names = (class_names(), wnids()) if len(one) == NUM_CLASSES else ()
    return one == other or (one in names and other in names)
