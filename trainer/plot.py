"""A loss curve as a picture."""
from __future__ import annotations

from typing import Sequence

from PIL import Image, ImageDraw

SIZE = (640, 360)
MARGIN = 44
INK, FAINT, LINE, PAPER = (60, 60, 60), (200, 214, 235), (37, 99, 235), (255, 255, 255)


def smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, without the pull towards zero at its start (Adam's bias correction, 1412.6980)."""
    average, result = 0.0, []
    for i, value in enumerate(values, start=1):
        average = keep * average + (1 - keep) * value
        result.append(average / (1 - keep**i))
    return result


def draw_curve(points: Sequence[tuple[int, float]], title: str = "loss") -> Image.Image:
    """(step, value) pairs as a faint line, and smoothed as a strong one; an empty plot without points."""
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = MARGIN, MARGIN // 2, SIZE[0] - MARGIN // 2, SIZE[1] - MARGIN // 2
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    draw.text((left + 6, top - 12), title, fill=INK)
    if not points:
        return picture
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    wide, tall = max(1, steps[-1] - steps[0]), (high - low) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        return left + (step - steps[0]) / wide * (right - left), bottom - (value - low) / tall * (bottom - top)

    for line, colour, width in ((values, FAINT, 1), (smoothed(values), LINE, 2)):
        draw.line([place(*point) for point in zip(steps, line)], fill=colour, width=width)
    draw.text((4, top), f"{high:.3g}", fill=INK)
    draw.text((4, bottom - 10), f"{low:.3g}", fill=INK)
    draw.text((left, bottom + 3), f"{steps[0]}", fill=INK)
    draw.text((right - 30, bottom + 3), f"{steps[-1]}", fill=INK)
    return picture
