"""A data set decoded once, before any training: what ``data.cache_images=true`` reads.

Source: the paper resizes and crops its images to squares of 256 px (Sec. 3), so that this can be done once.
"""

from zfscope.analyses.question import Question, Result
from zfscope.console import console
from zfscope.data.cache import fill, refresh
from zfscope.data.datamodule import workers_for
from zfscope.data.imageset import FileImages
from zfscope.data.quarantine import collecting, counts
from zfscope.networks.preprocessing import CanvasKind
from zfscope.schema import printable


def analyse(question: Question) -> Result:
    """How many images are decoded in ``data.cache``, and the bytes that they take there.

    With ``analysis.check`` all files are read again and compared with their hashes, and all canvases with theirs; what
    differs is decoded anew.
    """
    config, splits = question.data.config, question.data.splits
    if not isinstance(splits.train, FileImages):
        raise ValueError(f"data={config.name} is in memory already; a cache is for images that are files")
    kind, workers = CanvasKind(config.resize, resizer=config.resizer), workers_for(splits.train, config)
    if question.options.check:
        for path in refresh(splits, config.cache, kind):
            console.print(f"damaged, made again: {printable(path)}", markup=False, soft_wrap=True)
    with collecting(splits):
        canvases = fill(splits, config.cache, kind, workers)
    metrics = {
        f"{part}/images": {"value": int((images.stored.rows >= 0).sum()), "unit": "images"}
        for part, images in splits.parts.items()
        if isinstance(images, FileImages)
    }
    metrics["size"] = {"value": sum(path.stat().st_size for path in canvases.files) / 1e9, "unit": "GB"}
    metrics["left_out"] = {"value": sum(counts(splits).values()), "unit": "images"}
    notes = [f"{printable(canvases.folder)}; a training reads it with data.cache_images=true"]
    return Result(metrics, notes=notes)
