"""HotLoRA Gallery: a folder of pictures, looked at and checked before anything is loaded."""
from __future__ import annotations

from pathlib import Path

import comfy.utils
import torch
from comfy_api.latest import io, ui

from .images import as_images
from .places import cache_folder, gallery_folder
from ..trainer.caption_choices import PURPOSES

GALLERY = io.Custom("HOTLORA_GALLERY")
PREVIEW_SIDE, PREVIEW_COUNT = 192, 12
SIDE = 768


class HotLoRAGallery(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRAGallery", display_name="HotLoRA Gallery", category="HotLoRA",
            description="The pictures to learn from, and what in them would hurt the result. Captions come from metadata.csv or .jsonl, then .txt files, "
                        "then the trigger word. No picture is ever changed.",
            inputs=[
                io.String.Input("folder", default="", placeholder="C:\\pictures\\me", tooltip=(
                    "Folder with your pictures: a full path on the server, or a folder under ComfyUI's input folder. Sub-folders are read too.")),
                io.Int.Input("repeats", default=1, min=1, max=10000, advanced=True, tooltip=(
                    "How often each picture is seen in one epoch; a folder name such as 10_name multiplies it.")),
                io.Combo.Input("purpose", options=list(PURPOSES), default="any", optional=True, tooltip=(
                    "What is learned. The check counts by it, and captions that are made leave out the looks of a person, character or object, and the style of a style.")),
                io.Int.Input("check_resolution", default=512, min=32, max=4096, step=32, optional=True, advanced=True, tooltip=(
                    "The size that the pictures will be trained at, for the check: 512 for SD 1.5, 1024 for SDXL and later.")),
            ],
            outputs=[
                GALLERY.Output("gallery", display_name="gallery", tooltip="For HotLoRA Train."),
                io.String.Output("report", display_name="report", tooltip="How many pictures and captions were found, what was skipped and why, and what the check found."),
                io.Int.Output("score", display_name="score", tooltip="How good the gallery is for training, from 0 to 100."),
                io.Image.Output("pictures", display_name="pictures", is_output_list=True, tooltip=(
                    "The pictures one by one, for a captioner node of your choice; its captions go into HotLoRA Caption.")),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True)

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        """Turns a folder that is not there down before anything is loaded; None is a folder that another node will give."""
        try:
            return folder is None or bool(gallery_folder(folder))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, repeats: int = 1, purpose: str = "any", check_resolution: int = 512):
        """A picture or caption that was added, changed or removed makes the node run again; captions that HotLoRA itself has made do not."""
        if folder is None:
            return float("nan")  # another node will give it, so that its pictures cannot be looked at yet: the node runs each time
        try:
            return gallery_state(gallery_folder(folder))
        except ValueError:
            return folder

    @classmethod
    def execute(cls, folder: str, repeats: int = 1, purpose: str = "any", check_resolution: int = 512) -> io.NodeOutput:
        from ..trainer.checking import CheckSettings, cache_files, check_folder
        from ..trainer.gallery import read_gallery
        from ..trainer.known_pictures import KnownPictures

        path = gallery_folder(folder)
        looks, facts = cache_files(cache_folder() / "checks", path)
        known = KnownPictures(facts)
        # HotLoRA Train has a trigger word, which stands in for captions that are missing
        found = read_gallery(str(path), repeats=repeats, trigger="trigger", known=known)
        bar = comfy.utils.ProgressBar(len(found.examples), node_id=cls.hidden.unique_id)
        checked = check_folder(path, CheckSettings(check_resolution, purpose, token_limit=None), looks, known, progress=bar.update_absolute)
        report = f"{found.report()}\n{checked.text()}"
        gallery = {"train_data_dir": str(path), "repeats": repeats, **({"purpose": purpose} if purpose != "any" else {})}
        pictures = [as_images([small_picture(example.path)]) for example in found.examples] if _is_used(cls.hidden, 3) else []
        return io.NodeOutput(gallery, report, checked.score, pictures, ui={**ui.PreviewImage(_thumbnails(found), cls=cls).as_dict(), "text": [report]})


def gallery_state(root: Path) -> list:
    """Changes with the folder's content, apart from captions that a machine wrote and that can be undone."""
    from ..trainer.captions.marks import FILE as MARKS
    from ..trainer.captions.marks import Marks
    from ..trainer.galleries import captions_of
    from ..trainer.gallery_files import list_files, relative_name

    files, marks = list_files(root), Marks(root)
    places, _, _ = captions_of(root, files)
    texts = {*files.metadata, *files.sidecars.values(), root / MARKS}
    written = [(name, "" if marks.is_automatic(name, place.caption) else place.caption)
               for path, place in places.items() for name in [relative_name(path, root)]]
    return [written, sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")
                             if path.is_file() and path not in texts and files.apart.keys().isdisjoint(path.parents))]


def _is_used(hidden, slot: int) -> bool:
    """Whether another node of the graph takes this node's output of that number: pictures are read only for one that does."""
    links = [value for node in (hidden.prompt or {}).values() for value in node.get("inputs", {}).values()]
    return any(isinstance(value, list) and len(value) == 2 and str(value[0]) == str(hidden.unique_id) and value[1] == slot for value in links)


def small_picture(path: Path):
    """A picture that fits a square of `SIDE` pixels, which is more than a captioner sees."""
    from ..trainer.pictures import read_picture

    picture = read_picture(path)
    picture.thumbnail((SIDE, SIDE))
    return picture


def _thumbnails(gallery) -> torch.Tensor:
    """The first pictures as `(B, H, W, 3)` in [0, 1], each on a square."""
    from PIL import Image, ImageOps

    from ..trainer.pictures import read_picture

    squares = []
    for example in gallery.examples[:PREVIEW_COUNT]:
        small = ImageOps.pad(read_picture(example.path), (PREVIEW_SIDE, PREVIEW_SIDE), method=Image.LANCZOS, color=(40, 40, 40))
        squares.append(small)
    return as_images(squares)
