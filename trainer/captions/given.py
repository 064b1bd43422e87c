"""Captions that another program has made, written as automatic ones: into what is missing, marked, and undoable."""
from __future__ import annotations

import time
from pathlib import Path

from .automatic import CaptionReport, CaptionWishes, pictures_without
from .models import Said
from .templates import compose
from .writing import write_new
from ..gallery import read_gallery
from ..gallery_files import relative_name

NAME = "another captioner"


def write_given(root: Path, captions: list[str], wishes: CaptionWishes = CaptionWishes()) -> CaptionReport:
    """Write captions for the pictures of a gallery in its order: a list, or one text with a line for each picture.

    There must be one for each picture that is trained, which are those that a captioner gets to see, or one for each of them whose caption
    is missing. ValueError for any other number, and for a folder without a picture that can be used.
    """
    began = time.monotonic()
    # a picture that cannot be read has no caption among these, so that counting it would shift those of the pictures after it
    everything = [example.path for example in read_gallery(root, trigger="trigger").examples]
    _, missing, kept = pictures_without(root, wishes.again, wishes.only)
    wanted = set(missing)
    missing = [path for path in everything if path in wanted]
    if len(captions) == 1 and len(everything) != 1:
        captions = [line for line in captions[0].splitlines() if line.strip()]
    if len(captions) not in (len(everything), len(missing)):
        raise ValueError(f"there are {len(captions)} captions for {len(everything)} pictures, of which {len(missing)} have none; give one for each picture in the "
                         "order of their names, as a list or one a line")
    pictures = everything if len(captions) == len(everything) else missing
    texts = {path: compose(Said(caption), wishes.purpose, wishes.trigger, wishes.subject) for path, caption in zip(pictures, captions) if path in wanted}
    written = write_new(root, texts, NAME, wishes.purpose, wishes.into, wishes.again, wishes.trigger)
    report = CaptionReport({relative_name(path, root): text for path, text in written.items()}, kept, len(missing) - len(written), {}, NAME)
    report.seconds = time.monotonic() - began
    return report
