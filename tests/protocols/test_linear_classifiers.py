import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import zfscope.protocols.linear_classifiers as linear
from zfscope.data.splits import stratified_split
from zfscope.protocols.linear_classifiers import (
    choose_c,
    fit_softmax,
    fit_svm,
    gram_features,
    mean_class_accuracy,
    standardise,
    standardise_gram,
)

CLASSES = 7


def examples(count=140, width=40, seed=0, noise=2.5):
    """Rectified, sparse features of seven classes that overlap, some hundred times as large as others."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    features = (centres[labels] + noise * torch.randn(count, width, generator=generator)).relu()
    return features * torch.logspace(-1, 1, width), labels


def sets(width=40, dtype=torch.float64, count=140):
    (train, labels), (test, truth) = examples(count, width), examples(300, width, seed=1)
    return *standardise(train.to(dtype), test.to(dtype)), labels, truth


def objective(classifier, features, labels, C, kind):
    scores = classifier(features).double()
    penalty = (classifier.weight.square().sum() + classifier.bias.square().sum()) / 2
    if kind is fit_svm:
        sides = 2 * torch.nn.functional.one_hot(labels, CLASSES) - 1
        return float(penalty + C * (1 - sides * scores).clamp(min=0).square().sum())
    return float(penalty + C * torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))


@pytest.mark.parametrize("C", [0.03, 1.0, 30.0])
def test_the_svm_is_at_the_minimum_of_linear_svc(C):
    train, test, labels, truth = sets()

    ours = fit_svm(train, labels, CLASSES, C)

    theirs = LinearSVC(C=C, dual=False, tol=1e-9, max_iter=100_000).fit(train.numpy(), labels.numpy())
    known = linear.Linear(torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_), C)
    assert objective(ours, train, labels, C, fit_svm) == pytest.approx(
        objective(known, train, labels, C, fit_svm), rel=1e-4
    )
    assert (ours.weight - known.weight).norm() < linear.TOLERANCE * known.weight.norm()
    accuracy = mean_class_accuracy(ours(test).argmax(1), truth, CLASSES)
    assert accuracy > 100 * theirs.score(test.numpy(), truth.numpy()) - 0.4  # 300 images: one is 0.33


@pytest.mark.parametrize("C", [0.03, 1.0, 30.0])
def test_the_softmax_is_at_the_minimum_of_its_objective(C):
    train, test, labels, truth = sets()

    ours = fit_softmax(train, labels, CLASSES, C)

    # scikit-learn leaves the bias free of the penalty; a constant feature and no bias is our objective.
    constant = np.hstack([train.numpy(), np.ones((len(train), 1))])
    theirs = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(constant, labels.numpy())
    known = linear.Linear(torch.from_numpy(theirs.coef_[:, :-1]), torch.from_numpy(theirs.coef_[:, -1]), C)
    assert objective(ours, train, labels, C, fit_softmax) == pytest.approx(
        objective(known, train, labels, C, fit_softmax), rel=1e-4
    )
    assert (ours.weight - known.weight).norm() < linear.TOLERANCE * known.weight.norm()
    score = 100 * float((known(test).argmax(1) == truth).double().mean())
    assert abs(mean_class_accuracy(ours(test).argmax(1), truth, CLASSES) - score) < 1


@pytest.mark.parametrize("kind", [fit_svm, fit_softmax])
def test_the_gradient_at_the_end_is_small_by_autograd(kind, monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-5)
    train, _, labels, _ = sets()

    found = kind(train, labels, CLASSES, 3.0)

    weight, bias = (each.clone().requires_grad_() for each in (found.weight, found.bias))
    scores = train @ weight.T + bias
    sides = 2.0 * torch.nn.functional.one_hot(labels, CLASSES) - 1
    losses = (
        (1 - sides * scores).clamp(min=0).square().sum()
        if kind is fit_svm
        else torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    )
    value = (weight.square().sum() + bias.square().sum()) / 2 + 3.0 * losses
    gradients = torch.autograd.grad(value, [weight, bias])
    assert float(torch.cat([each.flatten() for each in gradients]).norm()) < 1e-4 * float(found.weight.norm())


@pytest.mark.parametrize("kind", [fit_svm, fit_softmax])
def test_a_start_changes_where_it_begins_and_not_where_it_ends(kind, monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-6)
    train, _, labels, _ = sets()

    fresh, warm = (
        kind(train, labels, CLASSES, 1.0),
        kind(train, labels, CLASSES, 1.0, kind(train, labels, CLASSES, 9.0)),
    )

    torch.testing.assert_close(fresh.weight, warm.weight, rtol=1e-4, atol=1e-6)


def test_shared_targets_of_single_labels_are_those_labels_and_a_target_of_zero_counts_for_nothing(monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-6)
    train, _, labels, _ = sets()
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()
    more, none = torch.cat([train, 10 * train[:3]]), torch.cat([targets, torch.zeros(3, CLASSES).double()])

    by_label, by_target = fit_softmax(train, labels, CLASSES, 1.0), fit_softmax(train, targets, CLASSES, 1.0)
    with_unlabelled = fit_softmax(more, none, CLASSES, 1.0)

    torch.testing.assert_close(by_label.weight, by_target.weight)
    torch.testing.assert_close(by_label.weight, with_unlabelled.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [fit_svm, fit_softmax])
def test_inner_products_alone_give_the_same_classifier(kind, monkeypatch):
    monkeypatch.setattr(linear, "TOLERANCE", 1e-5)
    (train, labels), (test, _) = examples(60, 400), examples(50, 400, seed=1)
    train, test = train.double(), test.double()

    direct = kind(standardise(train, test)[0], labels, CLASSES, 5.0)(standardise(train, test)[1])
    near, far = gram_features(*standardise_gram(train @ train.T, test @ train.T))
    by_products = kind(near, labels, CLASSES, 5.0)(far)

    torch.testing.assert_close(by_products.double(), direct, rtol=1e-3, atol=2e-3)


def test_standardised_products_are_products_of_standardised_features():
    (train, _), (test, _) = examples(30, 200), examples(20, 200, seed=1)
    train, test = train.double(), test.double()
    near, far = standardise(train, test)

    products, across = standardise_gram(train @ train.T, test @ train.T)

    torch.testing.assert_close(products, near @ near.T)
    torch.testing.assert_close(across, far @ near.T)
    assert float(near.square().sum(1).mean()) == pytest.approx(1)
    torch.testing.assert_close(near.mean(0), torch.zeros(200).double(), atol=1e-12, rtol=0)


def test_products_with_the_errors_of_float32_have_features_too():
    train, _ = examples(80, 5000)
    products = (1000 * train) @ (1000 * train).T

    near, far = gram_features(*standardise_gram(products, products[:5]))

    expected, _ = standardise_gram(products, products[:5])
    torch.testing.assert_close((near @ near.T).double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((far @ near.T).double(), expected[:5], rtol=1e-3, atol=1e-3)


def test_test_images_have_no_say_in_mean_and_scale():
    train, _ = examples(30)
    first, _ = standardise(train, train[:3])
    again, _ = standardise(train, 100 * train + 7)

    assert torch.equal(first, again)


@pytest.mark.parametrize("count", [70, 700])
def test_the_c_that_is_chosen_is_the_best_on_what_is_held_out_by_hand(count):
    train, _, labels, _ = sets(count=count)
    grid, draws = (0.001, 0.1, 10.0), {70: 8, 700: 1}[count]  # until 100 images, 14 or 140 at a time
    scores = dict.fromkeys(grid, 0.0)
    for draw in range(4, 4 + draws):
        stay, held = stratified_split(labels.numpy(), linear.HELD_OUT, draw)
        for C in grid:
            said = fit_svm(train[stay], labels[stay], CLASSES, C)(train[held]).argmax(1)
            scores[C] += mean_class_accuracy(said, labels[held], CLASSES)

    chosen = choose_c(train, labels, CLASSES, fit_svm, grid, seed=4)

    assert min(C for C in grid if scores[C] == max(scores.values())) == chosen.C
    torch.testing.assert_close(chosen.weight, fit_svm(train, labels, CLASSES, chosen.C).weight)


def test_labels_of_test_images_cannot_be_looked_at_and_single_images_leave_the_middle_c():
    train, labels = torch.eye(CLASSES), torch.arange(CLASSES)

    assert choose_c(train, labels, CLASSES, fit_svm, (0.1, 1.0, 10.0)).C == 1.0


def test_mean_accuracy_counts_classes_alike_and_those_without_images_not():
    labels = torch.tensor([0, 0, 0, 0, 1, 3])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0])

    assert mean_class_accuracy(predicted, labels, 5) == pytest.approx(100 * (0.75 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"C": 0.0}, r"C must be a finite number above 0, but is 0\.0"),
        ({"C": float("nan")}, r"C must be a finite number above 0"),
        ({"labels": torch.full((140,), 7)}, r"labels must be 0 to 6, but are 7 to 7"),
        ({"labels": torch.zeros(140, 3)}, r"targets must be \(N, 7\), but are \(140, 3\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"with 3 labels"),
        ({"features": torch.zeros(140, 2, dtype=torch.int64)}, r"must be floating point"),
        ({"features": torch.full((140, 2), torch.nan)}, r"the features of 140 of 140 images hold NaN"),
    ],
)
@pytest.mark.parametrize("kind", [fit_svm, fit_softmax])
def test_what_cannot_be_fitted_is_refused(kind, change, message):
    features, labels = examples()
    given = {"features": features, "labels": labels, "classes": CLASSES, "C": 1.0} | change

    with pytest.raises(ValueError, match=message):
        kind(*given.values())


def test_the_line_search_halves_its_bracket_where_newtons_method_leaves_it():
    jump = 0.45  # of the derivative, from far below 0 to far above: no slope tells where it is
    one = torch.ones(1, 1, dtype=torch.float64)

    length = linear._length(
        0 * one,
        one,
        0 * one,
        one,
        slope=lambda scores: 100 * (scores - jump).sign(),
        curve=lambda scores, change: 0 * change,
        dot=lambda first, second: (first * second).sum().view(1, 1),
    )

    assert abs(float(length) - jump) < 2**-9
