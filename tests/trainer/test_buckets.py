import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotlora.trainer.buckets import choose_bucket, cover_size, crop_box, lost_share


@pytest.mark.parametrize("size, resolution, bucket", [
    ((512, 512), 512, (512, 512)),
    ((4000, 4000), 512, (512, 512)),
    ((1920, 1080), 512, (640, 384)),
    ((1080, 1920), 512, (384, 640)),
    ((64, 64), 64, (64, 64)),
    ((300, 300), 512, (256, 256)),
    ((40, 40), 512, (64, 64)),
    ((3000, 300), 512, (1600, 128)),
])
def test_bucket_of_usual_pictures(size, resolution, bucket):
    assert choose_bucket(*size, resolution) == bucket


def test_upscale_fills_the_resolution():
    assert choose_bucket(300, 300, 512, upscale=True) == (512, 512)


def test_without_bucketing_everything_is_square():
    assert choose_bucket(1920, 1080, 512, bucketing=False) == (512, 512)
    assert choose_bucket(200, 900, 512, bucketing=False) == (192, 192)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(64, 1536), st.sampled_from([32, 64, 128]), st.booleans())
def test_rules_hold_for_any_picture(width, height, resolution, step, upscale):
    w, h = choose_bucket(width, height, resolution, step, upscale)
    assert w % step == h % step == 0 and w >= step and h >= step
    if not upscale:
        assert (w <= width or w == step) and (h <= height or h == step)
    # A side of one step cannot get smaller, so only very long pictures may exceed the area.
    assert w * h <= max(resolution, step) ** 2 * 1.0001 or step in (w, h)
    covered = cover_size(width, height, (w, h))
    box = crop_box(*covered, (w, h), random.Random(width))
    assert box[2] - box[0] == w and box[3] - box[1] == h and min(box) >= 0 and box[2] <= covered[0] and box[3] <= covered[1]


def test_little_is_lost_of_usual_photographs():
    for size in ((1920, 1080), (1080, 1350), (4032, 3024), (3000, 2000), (1000, 1000)):
        for resolution in (512, 768, 1024):
            assert lost_share(*size, *choose_bucket(*size, resolution)) < 0.12
