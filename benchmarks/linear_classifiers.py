"""Linear classifiers on 3,000 x 9,216 features of 101 classes (conv5 of ZFNet on Caltech-101): ours and scikit-learn's.

    OMP_NUM_THREADS=1 python benchmarks/linear_classifiers.py [--rounds 1] [--c 1.0]

Rectified, sparse, correlated features whose scales differ a hundredfold, standardised alike for both. Ours includes
what replaces wide features by their inner products. LinearSVC with its defaults (dual coordinate descent) and
LogisticRegression (L-BFGS); CPU seconds of one thread, in turns, as medians, as JSON. At C=1 LinearSVC takes minutes.
"""

import argparse
import json
import statistics
import time
import warnings

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from zfscope.protocols.linear_classifiers import (
    fit_softmax,
    fit_svm,
    gram_features,
    mean_class_accuracy,
    standardise,
    standardise_gram,
)

CLASSES, WIDTH = 101, 9216


def features(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixtures of 60 causes, noise, rectified and raised, each feature and each image on a scale of its own."""
    fixed, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    mix = torch.randn(60, WIDTH, generator=fixed) * torch.arange(1, 61).float()[:, None] ** -0.7
    centres = torch.randn(CLASSES, 60, generator=fixed)
    scale, shift = torch.randn(WIDTH, generator=fixed).exp(), 0.3 * torch.randn(WIDTH, generator=fixed) - 0.6
    labels = torch.arange(per_class * CLASSES) % CLASSES
    causes = centres[labels] + 2.0 * torch.randn(len(labels), 60, generator=drawn)
    noise = 0.8 * torch.randn(len(labels), WIDTH, generator=drawn)
    values = (causes @ mix / 3**0.5 + noise + shift).clamp(min=0) ** 1.5 * scale
    return values * (0.5 * torch.randn(len(labels), 1, generator=drawn)).exp(), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--c", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # LinearSVC says that 1,000 rounds were too few; its result is what it is
    (train, labels), (test, truth) = features(30, 1), features(10, 2)
    near, far = standardise(train, test)

    def ours(fit):
        def run():
            products = train @ train.T, test @ train.T
            first, second = gram_features(*standardise_gram(*products))
            return fit(first, labels, CLASSES, options.c)(second).argmax(1)

        return run

    def theirs(model):
        def run():
            return torch.from_numpy(model.fit(near.numpy(), labels.numpy()).predict(far.numpy()))

        return run

    ways = {
        "svm": ours(fit_svm),
        "LinearSVC": theirs(LinearSVC(C=options.c)),
        "softmax": ours(fit_softmax),
        "LogisticRegression": theirs(LogisticRegression(C=options.c, max_iter=1000)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    accuracy = {}
    for _ in range(options.rounds):
        for name, run in ways.items():
            since = time.process_time()
            predicted = run()
            times[name].append(time.process_time() - since)
            accuracy[name] = mean_class_accuracy(predicted, truth, CLASSES)
    median = {name: statistics.median(each) for name, each in times.items()}
    print(
        json.dumps(
            {
                "seconds": {name: round(each, 2) for name, each in median.items()},
                "accuracy": {name: round(each, 2) for name, each in accuracy.items()},
                "ratios": {
                    f"{ours}, scikit-learn's {theirs}": [
                        other / own for other, own in zip(times[theirs], times[ours], strict=True)
                    ]
                    for ours, theirs in (("svm", "LinearSVC"), ("softmax", "LogisticRegression"))
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
