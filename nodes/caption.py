"""HotLoRA Caption: captions for the pictures of a gallery that have none, by a model or by any other captioner node."""
from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from server import PromptServer

from .gallery import GALLERY
from ..trainer.caption_choices import FORMS, KNOWN, PURPOSES

log = logging.getLogger("hotlora")
FOUND = "the one that is here"
ROOM = 1.2
"""Memory to make free, in relation to the size of a model's files."""


class HotLoRACaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRACaption", display_name="HotLoRA Caption", category="HotLoRA", is_input_list=True, is_output_node=True,
            description="Writes captions for the pictures that have none, into metadata.csv or text files. What a person wrote is never changed; what is "
                        "written here is marked and can be taken out again. Cancel keeps what is done, and Run again does the rest.",
            inputs=[
                GALLERY.Input("gallery", tooltip="The pictures, from HotLoRA Gallery."),
                io.Combo.Input("model", options=[FOUND, *KNOWN], default=FOUND, tooltip=(
                    "The captioning model: blip and coca write sentences, clip and wd tags. It is looked for in models/captioners and where other programs "
                    "keep downloads. Not used when captions are connected.")),
                io.String.Input("trigger", default="", tooltip="Put this word first; HotLoRA Train does so by itself with its own trigger."),
                io.String.Input("subject", default="", tooltip="The word for what is learned, such as dog, which captions leave out too."),
                io.Combo.Input("into", options=list(FORMS), default="auto", tooltip=(
                    "metadata is a metadata.csv, sidecars are text files; auto does as the folder does already, else metadata.csv.")),
                io.Boolean.Input("again", default=False, tooltip="Also replace captions that a model wrote and nobody has changed since."),
                io.Boolean.Input("download", default=False, tooltip=(
                    "Download the model into models/captioners when it is not on this machine; its size is said first.")),
                io.Boolean.Input("undo", default=False, tooltip="Write nothing, and take out what a model wrote and nobody has changed since."),
                io.String.Input("captions", optional=True, force_input=True, tooltip=(
                    "Captions of another captioner node, for the pictures of HotLoRA Gallery in their order: a list, or one text with a line for each.")),
            ],
            outputs=[
                GALLERY.Output("gallery_out", display_name="gallery", tooltip="For HotLoRA Train."),
                io.String.Output("captions_out", display_name="captions", is_output_list=True, tooltip="The caption of each picture as it is now, also those of a person."),
                io.String.Output("report", display_name="report", tooltip="How many captions were written, by what, and what was skipped and why."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, gallery, model, trigger, subject, into, again, download, undo, captions=None) -> io.NodeOutput:
        from ..trainer.captions.automatic import CaptionWishes
        from ..trainer.captions.automatic import undo as take_out
        from ..trainer.gallery_edit import captions_now
        from ..trainer.gallery_files import list_files, relative_name

        [gallery], root = gallery, Path(gallery[0]["train_data_dir"])
        with torch.inference_mode(False):
            if undo[0]:
                report = f"{len(take_out(root))} captions taken out"
            else:
                wishes = CaptionWishes(gallery.get("purpose", PURPOSES[0]), trigger[0], subject[0], into=into[0], again=again[0])
                report = _written(root, wishes, captions) if captions else _made(root, wishes, model[0], download[0], cls.hidden.unique_id)
        log.info("%s: %s", root, report)
        names = [relative_name(path, root) for path in list_files(root).pictures]
        now = captions_now(root, names)
        texts = [now[name]["caption"] for name in names]
        # what is still missing then was not wanted
        return io.NodeOutput({**gallery, "auto_caption": False}, texts, report, ui={"text": [report]})


def _written(root: Path, wishes, captions: list[str]) -> str:
    """Write the captions of another node. ValueError when there is not one for each picture."""
    from ..trainer.captions.given import write_given

    return write_given(root, captions, wishes).text()


def _made(root: Path, wishes, model: str, may_download: bool, node_id: str) -> str:
    """Caption with a model on ComfyUI's device. Cancelling ends it with ComfyUI's own exception, after what is done was written."""
    from ..trainer.captions.automatic import caption_folder, pictures_without
    from ..trainer.captions.download import find_local, first_local
    from ..trainer.captions.library import ModelChoice

    _, missing, kept = pictures_without(root, wishes.again, wishes.only)
    if not missing:
        return f"no caption is missing, {kept} kept"
    folders = [Path(folder_paths.models_dir)]
    name = str(first_local(folders) or "") if model == FOUND else model
    if not name:
        raise ValueError(f"there is no captioning model on this machine; choose one and switch download on (blip-base takes {KNOWN['blip-base'].gigabytes:g} GB), "
                         f"put one into {folders[0] / 'captioners'}, or connect the captions of another node")
    bar = comfy.utils.ProgressBar(len(missing), node_id=node_id)

    def fetched(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done // 1_000_000, total // 1_000_000)

    def announced(text: str) -> None:
        log.info("%s", text)
        PromptServer.instance.send_progress_text(text, node_id)

    place, device = find_local(name, folders), mm.get_torch_device()
    if place is not None:
        files = [place] if place.is_file() else place.glob("*")
        mm.free_memory(ROOM * sum(path.stat().st_size for path in files if path.is_file()), device)
    choice = ModelChoice(name, tuple(folders), str(device), may_download, announce=announced, progress=fetched)

    def progress(done: int, total: int) -> None:
        bar.update_absolute(done, total)
        mm.throw_exception_if_processing_interrupted()

    report = caption_folder(root, choice, wishes, progress)
    return report.text()
