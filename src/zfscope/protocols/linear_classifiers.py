"""Linear classifiers on fixed features: an SVM and a softmax, at the minimum of their objectives, all classes at once.

With scores ``f = X w + b`` of N images both minimise ``|w|^2 / 2 + b^2 / 2 + C * sum of losses``; b is penalised like
the weights, as LIBLINEAR does it. The SVM of each class against the rest has the squared hinge ``max(0, 1 - y f)^2``,
y = 1 or -1; the softmax the cross-entropy of all classes together.

Features wider than there are images are replaced by the Cholesky factor of their inner products: to any classifier
with this penalty it is the same, and only N wide; folds and values of C share the products. Why our own: on 3,030
images of 101 classes (widths 4,096 and 9,216, C from 0.01 to 10) the SVM is 15 times as fast as scikit-learn's
LinearSVC, and the softmax takes 0.75 to 1.0 of its LogisticRegression's time on the same products.
Source: Zeiler & Fergus (2014), Sec. 5.2 and 5.3, Tables 4 to 7: a softmax on frozen layers, linear SVMs on each. Solver
and choice of C, of which the paper says nothing, are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zfscope.console import progress
from zfscope.data.splits import stratified_split

CANDIDATES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # of C, for features of mean squared norm 1
HELD_OUT = 0.2  # share of the training images on which C is chosen, drawn anew until
ENOUGH, DRAWS = 100, 10  # so many images were held out, or so many times
STEPS_KEPT = 10  # what L-BFGS remembers
TOLERANCE = 0.02  # gradient at the end by the norm of the weights: it bounds how far they are from the minimum
MOST_STEPS = 500


@dataclass(frozen=True)
class Linear:
    """A linear classifier: call it on features ``(M, D)`` for scores ``(M, classes)``."""

    weight: Tensor  # ``(classes, D)``
    bias: Tensor  # ``(classes,)``
    C: float  # what it was fitted with

    def __call__(self, features: Tensor) -> Tensor:
        """Scores, ``(M, classes)``."""
        return features.to(self.weight) @ self.weight.T + self.bias


Fit = Callable[..., Linear]


def fit_svm(features: Tensor, labels: Tensor, classes: int, C: float, start: Linear | None = None) -> Linear:
    """A linear SVM of each class against the rest, squared hinge: the objective of scikit-learn's ``LinearSVC``.

    Features are ``(N, D)`` floating point, labels ``(N,)`` int64, 0 to ``classes`` - 1; a class without an image is
    never predicted. ``C`` is the weight of the losses against the penalty. The minimum is the same from any ``start``.
    """
    _check(features, labels, classes, C)
    sides = 2.0 * F.one_hot(labels, classes).to(features) - 1.0

    def slope(scores: Tensor) -> Tensor:
        return -2.0 * C * sides * (1 - sides * scores).clamp_min(0)

    def curve(scores: Tensor, change: Tensor) -> Tensor:
        return (2.0 * C * (sides * scores < 1) * change.square()).sum(0, keepdim=True)

    return _minimise(features, classes, C, slope, curve, separate=True, start=start)


def fit_softmax(features: Tensor, targets: Tensor, classes: int, C: float, start: Linear | None = None) -> Linear:
    """Multinomial logistic regression: the objective of scikit-learn's ``LogisticRegression``, the bias penalised too.

    As ``fit_svm``; ``targets`` are labels ``(N,)``, or ``(N, classes)`` where an image with several labels shares its
    target among them (a row's sum is its weight).
    """
    _check(features, targets, classes, C)
    targets = (F.one_hot(targets, classes) if targets.ndim == 1 else targets).to(features)
    weights = targets.sum(1, keepdim=True)

    def slope(scores: Tensor) -> Tensor:
        return C * (weights * scores.softmax(1) - targets)

    def curve(scores: Tensor, change: Tensor) -> Tensor:
        shares = scores.softmax(1)
        spread = (shares * change.square()).sum(1) - (shares * change).sum(1).square()
        return C * (weights[:, 0] * spread).sum().view(1, 1)

    return _minimise(features, classes, C, slope, curve, separate=False, start=start)


def choose_c(
    features: Tensor, labels: Tensor, classes: int, fit: Fit, candidates: Sequence[float] = CANDIDATES, seed: int = 0
) -> Linear:
    """Fit with the C that does best on held-out fifths of the training images, then on all of them.

    Of each class with two images or more at least one is held out and one stays; where no class has two, the middle
    candidate is taken. A fifth of few images says little, so fifths are drawn until a hundred images were held out in
    all, at most ten times. Of equally good candidates the smallest, which regularises most, is taken.

    ``fit`` is `fit_svm` or `fit_softmax`, labels as it takes them: labels are judged by mean accuracy per class, shared
    targets by cross-entropy. ``seed`` is that of what is held out.
    """
    candidates = sorted(candidates)
    strata = (labels if labels.ndim == 1 else labels.argmax(1)).cpu().numpy()
    quality, judged = [0.0] * len(candidates), 0
    for draw in range(DRAWS):
        stay, held = map(torch.from_numpy, stratified_split(strata, HELD_OUT, seed + draw))
        classifier = None
        for number, C in enumerate(progress(candidates, "Choosing C")) if len(held) else ():
            classifier = fit(features[stay], labels[stay], classes, C, classifier)
            scores = classifier(features[held])
            if labels.ndim == 1:
                quality[number] += mean_class_accuracy(scores.argmax(1), labels[held], classes)
            else:
                quality[number] += float((labels[held] * scores.log_softmax(1)).sum())
        judged += len(held)
        if judged >= ENOUGH or not len(held):
            break
    chosen = quality.index(max(quality)) if judged else (len(candidates) - 1) // 2
    return fit(features, labels, classes, candidates[chosen])


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of the training images ``(N, D)``, then divide by one number: their mean squared norm is 1.

    The test images, ``(M, D)``, have no say in mean and scale.
    """
    mean = train.mean(0)
    train = train - mean
    scale = train.square().sum(1).mean().sqrt().clamp_min(torch.finfo(train.dtype).tiny)
    return train / scale, (test - mean) / scale


def standardise_gram(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """What `standardise` does, done to inner products ``(N, N)`` of the training images with each other and ``(M, N)``
    of the test images with them; float64.
    """
    train, test = train.double(), test.double()
    rows, whole = train.mean(0), train.mean()
    test = test - test.mean(1, keepdim=True) - rows + whole
    train = train - rows - rows[:, None] + whole
    scale = train.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return train / scale, test / scale


def gram_features(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Features that have these inner products, N wide, whatever the width of those that they stand for.

    With ``train = L L'`` a training image's features are its row of L, a test image's the solution of ``L z = k``. The
    products, of the training images ``(N, N)`` and of the test images with them ``(M, N)``, are standardised. Float32,
    computed in float64.
    """
    # Centred products have no full rank, and float32 ones of wide features carry errors of about 1e-6 of their size.
    factor, failed, jitter = train, 1, 1e-8
    while int(failed):
        shifted = train.double().clone()
        shifted.diagonal().add_(jitter * float(train.diagonal().mean().clamp_min(1e-300)))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        jitter *= 10
    solved = torch.linalg.solve_triangular(factor, test.double().T, upper=False).T
    return factor.float(), solved.float().contiguous()


def mean_class_accuracy(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Share of a class's images that are told right, in percent, mean over the classes that have images."""
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    count = torch.bincount(labels, minlength=classes)
    return 100 * float((right[count > 0].double() / count[count > 0]).mean())


def _minimise(
    features: Tensor,
    classes: int,
    C: float,
    slope: Callable[[Tensor], Tensor],
    curve: Callable[[Tensor, Tensor], Tensor],
    *,
    separate: bool,
    start: Linear | None,
) -> Linear:
    """L-BFGS with an exact line search: along a line scores change linearly, so searching it takes no matrix product.

    ``slope`` is the gradient of the losses by the scores, ``(N, classes)``; ``curve`` their second derivative along a
    change of scores, ``(1, classes)`` or ``(1, 1)``; ``separate`` says that each class is a problem with steps of its
    own.
    """
    features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)

    def dot(one: Tensor, other: Tensor) -> Tensor:
        products = (one * other).sum(0, keepdim=True)
        return products if separate else products.sum().view(1, 1)

    weights = features.new_zeros(features.shape[1], classes)
    if start is not None:
        weights = torch.cat([start.weight, start.bias[:, None]], dim=1).T.contiguous()
    scores = features @ weights
    gradient = weights + features.T @ slope(scores)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(MOST_STEPS):
        # The objective is at least as curved as |w|^2 / 2, so the minimum is no farther than the gradient is long.
        if bool((dot(gradient, gradient) <= TOLERANCE**2 * dot(weights, weights)).all()):
            break
        direction = _direction(gradient, steps, dot)
        direction = torch.where(dot(direction, gradient) < 0, direction, -gradient)
        change = features @ direction
        length = _length(weights, direction, scores, change, slope, curve, dot)
        weights, scores = weights + length * direction, scores + length * change
        following = weights + features.T @ slope(scores)
        moved, turned = length * direction, following - gradient
        steps = [*steps, (moved, turned, dot(moved, turned).clamp_min(1e-30))][-STEPS_KEPT:]
        gradient = following
    return Linear(weights[:-1].T.contiguous(), weights[-1].clone(), C)


def _direction(
    gradient: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]], dot: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Minus the gradient times the inverse curvature that past steps tell. Source: Nocedal & Wright, Algorithm 7.4."""
    direction, shares = -gradient, []
    for moved, turned, product in reversed(steps):
        share = dot(moved, direction) / product
        direction = direction - share * turned
        shares.append(share)
    if steps:
        _, turned, product = steps[-1]
        direction = direction * (product / dot(turned, turned).clamp_min(1e-30))
    for (moved, turned, product), share in zip(steps, reversed(shares), strict=True):
        direction = direction + (share - dot(turned, direction) / product) * moved
    return direction


def _length(
    weights: Tensor,
    direction: Tensor,
    scores: Tensor,
    change: Tensor,
    slope: Callable[[Tensor], Tensor],
    curve: Callable[[Tensor, Tensor], Tensor],
    dot: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """How far to go: where the derivative along the direction is 0, by Newton's method kept within a bracket."""
    along, norm = dot(weights, direction), dot(direction, direction)
    length = torch.ones_like(along)
    low, high = torch.zeros_like(along), torch.full_like(along, torch.inf)
    at_first = (along + dot(slope(scores), change)).abs()
    for _ in range(10):
        here = scores + length * change
        rise = along + length * norm + dot(slope(here), change)
        if bool((rise.abs() <= 1e-2 * at_first).all()):
            break
        low, high = torch.where(rise < 0, length, low), torch.where(rise < 0, high, length)
        newton = length - rise / (norm + curve(here, change)).clamp_min(1e-30)
        middle = torch.where(high.isfinite(), (low + high) / 2, 2 * length)
        length = torch.where((newton > low) & (newton < high), newton, middle)
    return length


def _check(features: Tensor, labels: Tensor, classes: int, C: float) -> None:
    if features.ndim != 2 or not features.is_floating_point() or len(features) != len(labels) or not len(labels):
        raise ValueError(
            f"features must be floating point, (N, D), with N labels, but are {features.dtype} of shape "
            f"{tuple(features.shape)} with {len(labels)} labels"
        )
    if not (np.isfinite(C) and C > 0):
        raise ValueError(f"C must be a finite number above 0, but is {C}")
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise ValueError(f"targets must be (N, {classes}), but are {tuple(labels.shape)}")
    if labels.ndim == 1 and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(f"labels must be 0 to {classes - 1}, but are {int(labels.min())} to {int(labels.max())}")
    broken = int((~features.isfinite().all(1)).sum())
    if broken:
        raise ValueError(f"the features of {broken} of {len(features)} images hold NaN or infinity; use other weights")
