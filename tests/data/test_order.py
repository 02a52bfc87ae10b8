"""The order of training images: a function of seed, epoch and index."""

import pytest

from zfscope.data.order import TrainBatches, share_of


def batches(size=23, batch_size=4, seed=0, position=0, only=0, **ranks):
    order = TrainBatches(size, batch_size, seed, lambda: position, **ranks)
    order.only = only
    return list(order)


def test_an_epoch_holds_each_image_at_most_once_and_all_but_the_last_few():
    order = [index for batch in batches() for _, index in batch]

    assert len(order) == len(set(order)) == 20
    assert set(order) <= set(range(23))


def test_epochs_and_seeds_have_their_own_order_and_repeat_it():
    assert batches() == batches()
    assert batches(position=5) != batches()
    assert batches(seed=1) != batches()
    assert {epoch for batch in batches(position=5) for epoch, _ in batch} == {1}


def test_a_run_that_goes_on_in_the_middle_meets_the_batches_that_are_left():
    whole = batches() + batches(position=5)

    rest = batches(position=3)

    assert rest == whole[3:8]


@pytest.mark.parametrize(("ranks", "accumulated"), [(2, 1), (1, 3), (3, 2), (2, 6), (12, 1)])
def test_the_images_of_a_step_are_the_same_on_any_number_of_ranks_and_accumulated_batches(ranks, accumulated):
    alone = batches(size=50, batch_size=12)

    shared = [
        batches(size=50, batch_size=12, rank=rank, world_size=ranks, accumulated=accumulated) for rank in range(ranks)
    ]

    assert {len(batch) for own in shared for batch in own} == {12 // ranks // accumulated}
    in_turn = [key for parts in zip(*shared, strict=True) for part in parts for key in part]
    assert in_turn == [key for batch in alone for key in batch]
    later = batches(size=50, batch_size=12, position=5 * accumulated, world_size=ranks, accumulated=accumulated)
    assert later[0] == batches(size=50, batch_size=12, position=5)[0][: 12 // ranks // accumulated]


@pytest.mark.parametrize(
    ("size", "ranks", "accumulated", "told"),
    [
        (10, 4, 1, "cannot be divided by 4, for 4 devices; use data.batch_size=12"),  # as near as 8
        (10, 1, 3, "cannot be divided by 3, for trainer.accumulate_grad_batches=3; use data.batch_size=9"),
        (1, 2, 2, "by 4, for 2 devices and trainer.accumulate_grad_batches=2; use data.batch_size=4"),
    ],
)
def test_a_batch_that_cannot_be_spread_is_refused_with_the_nearest_that_can(size, ranks, accumulated, told):
    with pytest.raises(ValueError, match=rf"^data\.batch_size={size} is the whole batch of a step and .*{told}$"):
        share_of(size, ranks, accumulated)


def test_overfitting_goes_round_the_first_batches_only():
    first = batches(only=2)

    assert first == [first[0], first[1]] * 2 + [first[0]]
    assert batches(only=2, position=5)[0] == first[1]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size=30 is larger than the 23 training images"):
        TrainBatches(23, 30, 0, lambda: 0)
