"""Pictures of the page for the READMEs, written only when HOTLORA_SCREENSHOTS is set."""
from __future__ import annotations

import io
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / "web" / "screenshots"
MOST = 120_000
"""Bytes of a picture."""


def shot(page, name: str, width: int = 1280, folder: Path = FOLDER, **options) -> None:
    """Write what the page shows as `<folder>/<name>.jpg`, at most `width` pixels wide, as good as MOST allows."""
    if not os.environ.get("HOTLORA_SCREENSHOTS"):
        return
    from PIL import Image

    page.wait_for_timeout(600)   # for what moves to its place
    picture = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.LANCZOS)
    for quality in range(90, 30, -6):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True, progressive=True)
        if data.tell() <= MOST:
            break
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(data.getvalue())
