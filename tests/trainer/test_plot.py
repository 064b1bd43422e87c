"""The loss curve: what is drawn lies where the numbers are."""
import numpy as np
import pytest

from hotlora.trainer.plot import LINE, MARGIN, SIZE, draw_curve, smoothed


def test_smoothing_of_equal_numbers_changes_nothing_and_of_a_jump_follows_slowly():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    after = smoothed([0.0] * 10 + [1.0] * 30)
    assert after[9] == 0 and 0 < after[10] < 0.2 and 0.9 < after[-1] < 1
    assert smoothed([]) == []


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, 0.5), (2, 0.5)]])
def test_few_or_equal_points_are_drawn_too(points):
    assert draw_curve(points).size == SIZE


def test_a_falling_loss_falls_in_the_picture():
    picture = np.asarray(draw_curve([(step, 1.0 - step / 100) for step in range(100)]))
    rows, columns = np.nonzero((picture == LINE).all(axis=2))
    left, right = rows[columns < MARGIN + 40].mean(), rows[columns > columns.max() - 40].mean()
    assert right > left + 100
