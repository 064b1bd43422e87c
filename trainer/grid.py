"""A labelled sheet of pictures: rows are prompts, columns are weights."""
from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8


def draw_grid(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str], scale: int = 1) -> Image.Image:
    """Put pictures of one size on a white sheet, labels above the columns and the rows; `scale` enlarges without smoothing."""
    assert len(rows) == len(row_labels) and all(len(row) == len(column_labels) for row in rows)
    width, height = (side * scale for side in rows[0][0].size)
    font = _font(max(11, width // 14))
    line = _text_size(font, "Ag")[1] + MARGIN
    sheet = Image.new("RGB", (len(column_labels) * (width + MARGIN) + MARGIN, line + len(rows) * (height + line + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for j, label in enumerate(column_labels):
        draw.text((MARGIN + j * (width + MARGIN), MARGIN // 2), label, fill="black", font=font)
    for i, (row, label) in enumerate(zip(rows, row_labels)):
        top = line + i * (height + line + MARGIN)
        draw.text((MARGIN, top + MARGIN // 2), label, fill="dimgray", font=font)
        for j, picture in enumerate(row):
            sheet.paste(picture.resize((width, height), Image.NEAREST), (MARGIN + j * (width + MARGIN), top + line))
    return sheet


def _font(size: int):
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def _text_size(font, text: str) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return right - left, bottom
