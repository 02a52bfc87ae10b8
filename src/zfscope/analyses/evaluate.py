"""The error of a trained network with the centre crop and with ten crops.

Source: Zeiler & Fergus (2014), Sec. 3 and Table 2.
"""

from zfscope.analyses.question import Question, Result, percent
from zfscope.evaluation import check_classes, error_metrics, predict


def analyse(question: Question) -> Result:
    """Errors of one part of the data, in percent, by metric name (``test/top1_error`` …)."""
    options, network, images = question.options, question.network, question.images
    check_classes(network, images.classes)
    batches = question.data.canvases(images, options.batch_size)
    predictions = predict(network, batches, crops=options.ten_crops, device=question.device)
    return Result({name: percent(value) for name, value in error_metrics(predictions, question.part).items()})
