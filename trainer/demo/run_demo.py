"""`python train.py demo`: train a LoRA on the gallery and the base that come with the project, and judge it by its pictures."""
from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path

from PIL import Image

from . import drawings
from .judge import concept_score, prompt_accuracy
from .scenes import is_held_out, training_scene
from ..backend import Backend, SampleRequest
from ..config_files import load_config
from ..generate import loras_applied
from ..grid import draw_grid
from ..hosts.standalone import load_base
from ..listeners import usual_listeners
from ..live import LoraTag, Registry
from ..output_files import write_atomically
from ..run import make_session, read_material
from ..pixels import write_png

log = logging.getLogger(__name__)
CONFIG = Path(__file__).parent / "demo.yaml"
GALLERY_DIR = Path(__file__).parent / "gallery"
WEIGHTS = (0.4, 0.8, 1.2)
TRIGGER_PROMPTS = tuple(f"a photo of {drawings.TRIGGER}{place}" for place in ("", *(f" on a {b} background" for b in drawings.BACKGROUNDS)))
GRID_PROMPTS = (f"a photo of {drawings.TRIGGER} on a white background", f"a photo of {drawings.TRIGGER} on a striped gray background",
                "a red star on a beige background")


def run_demo(folder: Path) -> dict:
    """Train, draw and judge; returns what it also writes to `<folder>/result.json`."""
    began = time.monotonic()
    backend = load_base("demo")
    log.info("drawing pictures of what the base knows, so that it does not forget ...")
    write_prior(backend, folder / "prior")
    config, _ = load_config(CONFIG, [f"train_data_dir={GALLERY_DIR}", f"reg_data_dir={folder / 'prior'}", f"output_dir={folder}"])
    session = make_session(read_material(config), backend, usual_listeners(config))
    outcome = session.train()
    registry = Registry([folder])
    log.info("drawing and judging pictures of the base and of the LoRA ...")
    result = {**measure(backend, registry, session.name), "lora": str(outcome.lora), "grid": str(folder / "grid.png")}
    write_png(folder / "grid.png", grid(backend, registry, session.name))
    result["seconds"] = round(time.monotonic() - began, 1)
    write_atomically(folder / "result.json", json.dumps(result, indent=2).encode())
    print(f"LoRA: {result['lora']}\ngrid: {result['grid']}\nconcept score: {result['base_score']:.2f} without, {result['lora_score']:.2f} with the LoRA\n"
          f"try next: python train.py generate --base demo --lora-dir {folder} --prompt \"a photo of {drawings.TRIGGER} on a dotted white background "
          f"<lora:{session.name}:1>\" --seed 7 --out {folder / 'next.png'}")
    return result


def write_prior(backend: Backend, folder: Path, count: int = 192) -> None:
    """Pictures that the base draws itself, for prior preservation (2208.12242): what it knows already is shown beside the new."""
    rng = random.Random("prior")
    captions = [training_scene(rng).caption for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(draw(backend, captions, first_seed=9000)):
        write_png(folder / f"{i:03d}.png", picture)
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": caption}) for i, caption in enumerate(captions)]
    write_atomically(folder / "metadata.jsonl", ("\n".join(lines) + "\n").encode())


def measure(backend: Backend, registry: Registry, name: str, pictures: int = 50, prompts: int = 80) -> dict[str, float]:
    """Concept score of `pictures` pictures for the trigger, and share of colours and shapes that are right for `prompts` other prompts,
    both without and with the LoRA at weight 1."""
    scenes = held_out_scenes(prompts)
    measured = {}
    for label, tags in (("base", []), ("lora", [LoraTag(name, 1.0, 1.0)])):
        with loras_applied(backend, tags, registry):
            concept = draw(backend, [TRIGGER_PROMPTS[i % len(TRIGGER_PROMPTS)] for i in range(pictures)], first_seed=1000)
            others = draw(backend, [scene.caption for scene in scenes], first_seed=2000)
        measured[f"{label}_score"] = round(concept_score(concept), 4)
        measured[f"prompt_accuracy_{label}"] = round(sum(prompt_accuracy(others, [(s.colour, s.shape) for s in scenes])) / 2, 4)
    return measured


def held_out_scenes(count: int) -> list[drawings.Scene]:
    """Scenes whose captions the base was never trained on, each with another caption."""
    rng, found = random.Random("held out"), {}
    while len(found) < count:
        scene = drawings.random_scene(rng)
        if is_held_out(scene):
            found.setdefault(scene.caption, scene)
    return list(found.values())


def draw(backend: Backend, prompts: list[str], first_seed: int) -> list[Image.Image]:
    """One picture per prompt, each with its own seed."""
    seeds = tuple(range(first_seed, first_seed + len(prompts)))
    return backend.sample(SampleRequest(prompts=tuple(prompts), seeds=seeds, batch=25))


def grid(backend: Backend, registry: Registry, name: str, seed: int = 3) -> Image.Image:
    """Rows: three prompts. Columns: the base, then the LoRA at three weights. All pictures start from one noise."""
    columns = []
    for weight in (None, *WEIGHTS):
        with loras_applied(backend, [] if weight is None else [LoraTag(name, weight, weight)], registry):
            columns.append(backend.sample(SampleRequest(prompts=GRID_PROMPTS, seed=seed, batch=25)))
    labels = ["base", *(f"<lora:{name}:{weight:g}>" for weight in WEIGHTS)]
    return draw_grid([list(row) for row in zip(*columns)], list(GRID_PROMPTS), labels, scale=3)


def write_gallery(folder: Path, count: int = 12) -> None:
    """Draw the demo's gallery: the mascot on several backgrounds, with captions in metadata.csv."""
    rng = random.Random("gallery")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,text"]
    backgrounds = list(drawings.BACKGROUNDS)
    for i in range(count):
        background, texture = backgrounds[i % len(backgrounds)], drawings.TEXTURES[(i // len(backgrounds)) % 2 * rng.randint(1, 3)]
        picture = drawings.draw_mascot(rng, background, texture)
        file = f"mascot-{i + 1:02d}.png"
        write_png(folder / file, picture)
        lines.append(f"{file},a photo of {drawings.TRIGGER} on a {'' if texture == 'plain' else texture + ' '}{background} background")
    write_atomically(folder / "metadata.csv", ("\n".join(lines) + "\n").encode())
