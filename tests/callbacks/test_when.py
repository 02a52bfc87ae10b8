"""Which epochs a callback looks at."""

import pytest

from zfscope.callbacks import When


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), ([1, 2, 5], [1, 2, 5]), (range(2, 4), [2, 3])]
)
def test_epochs_to_look_at_count_from_one(epochs, expected):
    assert [epoch for epoch in range(1, 7) if epoch in When(epochs)] == expected


@pytest.mark.parametrize("epochs", [0, -2, [], [1, 0], [1.5], True, ["2"]], ids=str)
def test_epochs_that_are_none_are_refused(epochs):
    with pytest.raises(ValueError, match=r"must be a whole number n .* or a list of epochs, all 1 or more"):
        When(epochs)
