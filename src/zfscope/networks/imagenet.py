"""ImageNet's classes in words, and by the wnids that its folders are called by: the 1,000 of ILSVRC 2012, and more.

Which lists there are timm knows: 12k and 21k or 22k, of these several, told apart by their number of classes.
"""

from collections import Counter
from functools import cache

from timm.data import ImageNetInfo, infer_imagenet_subset

NUM_CLASSES = 1000


@cache
def wnids(count: int = NUM_CLASSES) -> tuple[str, ...]:
    """The synsets, such as ``n01440764``, in the order of the classes; the names of ImageNet's folders.

    Empty where there is no list of so many classes.
    """
    subset = infer_imagenet_subset({"num_classes": count})
    return () if subset is None else tuple(ImageNetInfo(subset).label_names())


@cache
def class_names(count: int = NUM_CLASSES) -> tuple[str, ...]:
    """The classes in words, each once: the first of a synset's names; of names that two share, with the second one.

    Where a synset has no second name, or two share that too, its wnid stands behind: ``crane (n02012849)`` is the bird.
    Empty where there is no list of so many classes.
    """
    if not wnids(count):
        return ()
    info = ImageNetInfo(infer_imagenet_subset({"num_classes": count}))
    synsets = [description.split(", ") for description in info.label_descriptions()]
    firsts = Counter(names[0] for names in synsets)
    pairs = Counter(tuple(names[:2]) for names in synsets)

    def told(names: list[str], wnid: str) -> str:
        if firsts[names[0]] == 1:
            return names[0]
        return f"{names[0]} ({names[1] if len(names) > 1 and pairs[tuple(names[:2])] == 1 else wnid})"

    return tuple(told(names, wnid) for names, wnid in zip(synsets, wnids(count), strict=True))


def same_classes(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two lists of classes are the same, in the same order; ImageNet's in words are those of its folders."""
    names = (class_names(len(one)), wnids(len(one)))
    return one == other or (one in names and other in names)
