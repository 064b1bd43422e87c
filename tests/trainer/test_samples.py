from collections import Counter

import pytest

from hotlora.trainer.samples import SampleOrder, default_steps


def test_an_epoch_shows_every_picture_as_often_as_its_repeats():
    order = SampleOrder([(64, 64)] * 3 + [(128, 64)] * 2, [1, 2, 3, 4, 2], group=4, seed=5)
    shown = Counter(i for step in range(order.steps_per_epoch) for i in order.of_step(step))
    assert order.steps_per_epoch == 3 and shown == {0: 1, 1: 2, 2: 3, 3: 4, 4: 2}


def test_the_order_is_a_function_of_seed_and_step():
    make = lambda seed: SampleOrder([(64, 64)] * 9, [1] * 9, 2, seed)
    forward = [make(1).of_step(i) for i in range(30)]
    one = make(1)
    assert [one.of_step(i) for i in reversed(range(30))] == forward[::-1]
    assert forward != [make(2).of_step(i) for i in range(30)]
    assert forward[:5] != forward[5:10], "epochs come in different orders"


def test_pictures_that_take_turns_are_all_shown_and_each_as_often():
    order = SampleOrder([(64, 64)] * 7 + [(128, 64)] * 6, [1, 2] + [0] * 11, group=2, seed=5, turns=3)
    assert order.steps_per_epoch == 3
    epochs = [Counter(i for step in range(3 * epoch, 3 * epoch + 3) for i in order.of_step(step)) for epoch in range(11)]
    assert all(shown[0] == 1 and shown[1] == 2 and sum(shown.values()) == 6 for shown in epochs)
    assert sum(epochs, Counter()) == {0: 11, 1: 22, **{i: 3 for i in range(2, 13)}}
    for steps in (1, 3, 4, 12, 30):
        shown = order.shown_within(steps)
        assert shown == sorted({0, 1}.union(*epochs[:-(-steps // 3)])) and len(shown) == min(13, 2 + 3 * -(-steps // 3))
    assert SampleOrder([(64, 64)] * 3, [1] * 3, 2, 0).shown_within(1) == [0, 1, 2]


def test_the_order_stays_that_of_earlier_versions():
    order = SampleOrder([(64, 64)] * 3 + [(128, 64)] * 2, [1, 2, 3, 4, 2], group=4, seed=5)
    assert [order.of_step(step) for step in range(6)] == [[3, 2, 1, 3], [1, 2, 2, 0], [3, 4, 4, 3], [2, 0, 1, 2], [2, 4, 1, 3], [4, 3, 3, 3]]


def test_batches_hold_one_size_and_every_sample_once():
    sizes = [(64, 64), (128, 64), (64, 64), (64, 128), (128, 64)]
    order = SampleOrder(sizes, [1] * 5, group=4, seed=0)
    for step in range(10):
        batches = order.batches(step, 2)
        assert all(len({sizes[i] for _, i in batch}) == 1 and len(batch) <= 2 for batch in batches)
        samples = sorted(pair for batch in batches for pair in batch)
        assert [number for number, _ in samples] == [0, 1, 2, 3] and [i for _, i in samples] == order.of_step(step)


def test_pictures_of_one_size_fill_whole_groups():
    order = SampleOrder([(64, 64)] * 8 + [(128, 64)] * 8, [1] * 16, group=4, seed=3)
    assert all(len(order.batches(step, 4)) == 1 for step in range(order.steps_per_epoch))


@pytest.mark.parametrize("pictures, group, steps", [(1, 1, 800), (18, 1, 1440), (12, 4, 240), (500, 1, 4000)])
def test_default_length(pictures, group, steps):
    assert default_steps(pictures, group) == steps
