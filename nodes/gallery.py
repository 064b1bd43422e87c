"""HotLoRA Gallery: a folder of pictures, looked at before anything is loaded."""
from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from .places import gallery_folder

GALLERY = io.Custom("HOTLORA_GALLERY")
PREVIEW_SIDE, PREVIEW_COUNT = 192, 12


class HotLoRAGallery(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRAGallery", display_name="HotLoRA Gallery", category="HotLoRA",
            description="The pictures to learn from. Captions come from metadata.csv or .jsonl, then .txt files, then the trigger word. "
                        "Nothing in the folder is ever changed.",
            inputs=[
                io.String.Input("folder", default="", placeholder="C:\\pictures\\me", tooltip=(
                    "Folder with your pictures: a full path on the server, or a folder under ComfyUI's input folder. Sub-folders are read too.")),
                io.Int.Input("repeats", default=1, min=1, max=10000, advanced=True, tooltip=(
                    "How often each picture is seen in one epoch; a folder name such as 10_name multiplies it.")),
            ],
            outputs=[
                GALLERY.Output("gallery", display_name="gallery", tooltip="For HotLoRA Train."),
                io.String.Output("report", display_name="report", tooltip="How many pictures and captions were found, and what was skipped and why."),
            ],
            is_output_node=True)

    @classmethod
    def fingerprint_inputs(cls, folder: str, repeats: int = 1):
        """A picture or caption that was added, changed or removed makes the node run again."""
        try:
            files = sorted(p for p in gallery_folder(folder).rglob("*") if p.is_file())
        except ValueError:
            return folder
        return [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files]

    @classmethod
    def execute(cls, folder: str, repeats: int = 1) -> io.NodeOutput:
        from ..trainer.gallery import read_gallery

        path = gallery_folder(folder)
        # HotLoRA Train has a trigger word, which stands in for captions that are missing
        found = read_gallery(str(path), repeats=repeats, trigger="trigger")
        report = found.report()
        return io.NodeOutput({"train_data_dir": str(path), "repeats": repeats}, report,
                             ui={**ui.PreviewImage(_thumbnails(found), cls=cls).as_dict(), "text": [report]})


def _thumbnails(gallery) -> torch.Tensor:
    """The first pictures as `(B, H, W, 3)` in [0, 1], each on a square."""
    from PIL import Image, ImageOps

    from .images import as_images
    from ..trainer.pictures import read_picture

    squares = []
    for example in gallery.examples[:PREVIEW_COUNT]:
        small = ImageOps.pad(read_picture(example.path), (PREVIEW_SIDE, PREVIEW_SIDE), method=Image.LANCZOS, color=(40, 40, 40))
        squares.append(small)
    return as_images(squares)
