"""Tags of models that were trained here, in miniature, on the demo's drawings, are right for scenes that they never saw."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from hotlora.tests.trainer.captions.small_models import clip_folder, clip_shapes
from hotlora.trainer.captions.automatic import caption_folder
from hotlora.trainer.captions.clip import NOTHING, PROMPTS
from hotlora.trainer.captions.library import ModelChoice
from hotlora.trainer.captions.metadata import read_metadata
from hotlora.trainer.captions.models import Input
from hotlora.trainer.checking import CheckSettings, check_folder
from hotlora.trainer.demo import drawings
from hotlora.trainer.demo.drawings import BACKGROUNDS, COLOURS, SHAPES, Scene, draw_scene, random_scene
from hotlora.trainer.demo.scenes import is_held_out
from hotlora.trainer.hosts.parts import clip_tokenizer
from hotlora.trainer.known_pictures import KnownPictures

SIDE, CONTEXT, BATCH = 32, 16, 128
SECTIONS = {"colour": tuple(COLOURS), "shape": tuple(f"a {shape}" for shape in SHAPES), "background": tuple(f"a {name} background" for name in BACKGROUNDS)}
Embed = Callable[[torch.Tensor], torch.Tensor]


def tags_of(scene: Scene, sections: tuple[str, ...]) -> list[str]:
    said = {"colour": scene.colour, "shape": f"a {scene.shape}", "background": f"a {scene.background} background"}
    return [said[section] for section in sections]


def scenes(count: int, held_out: bool, rng: random.Random) -> list[Scene]:
    """Of one shape on a background that the caption names; a tenth of all such captions is held out."""
    found: list[Scene] = []
    while len(found) < count:
        scene = random_scene(rng)
        if scene.background and scene.count == "one" and is_held_out(scene) == held_out:
            found.append(scene)
    return found


def train(pictures: Embed, texts: Embed, scale: torch.Tensor, parameters: list, steps: int, sections: tuple[str, ...], examples: int = 6000) -> None:
    """Contrastive training (2103.00020, section 2.3): each picture against the phrases of each section and nothing, and against the captions of its batch."""
    rng = random.Random(0)
    shown, fit = scenes(examples, False, rng), Input(SIDE, SIDE, fit="crop")
    x_N3HW = torch.from_numpy(np.stack([fit(draw_scene(scene, rng)) for scene in shown]))
    ids_of = _tokens()
    phrases = [phrase for name in sections for phrase in SECTIONS[name]]
    ids_P = [ids_of([prompt.format(phrase) for phrase in phrases] + list(NOTHING[1:])) for prompt in PROMPTS]
    place = {phrase: i for i, phrase in enumerate(phrases)}
    labels_NS = torch.tensor([[place[tag] for tag in tags_of(scene, sections)] for scene in shown])
    captions_N = ids_of([scene.caption for scene in shown])
    bounds = np.cumsum([0] + [len(SECTIONS[name]) for name in sections]).tolist()
    optimizer = torch.optim.AdamW(parameters, 4e-3, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.2)
    chance = torch.Generator().manual_seed(0)
    for step in range(steps):
        i = torch.randint(examples, (BATCH,), generator=chance)
        z_BD, u_PD = pictures(x_N3HW[i]), texts(ids_P[step % len(PROMPTS)])
        logits_BP = scale.exp() * z_BD @ u_PD.T
        nothing_B3 = logits_BP[:, len(phrases):]
        loss = sum(functional.cross_entropy(torch.cat([logits_BP[:, first:end], nothing_B3], 1), labels_NS[i, k] - first)
                   for k, (first, end) in enumerate(zip(bounds, bounds[1:])))
        same_BB = (captions_N[i][:, None] == captions_N[i][None]).all(-1).float()
        logits_BB = scale.exp() * z_BD @ texts(captions_N[i]).T
        loss = loss + functional.cross_entropy(logits_BB, same_BB / same_BB.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


def _tokens() -> Callable[[list[str]], torch.Tensor]:
    tokenizer = clip_tokenizer()
    return lambda texts: tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")["input_ids"]


def trained_open_clip(folder: Path, steps: int, sections: tuple[str, ...]) -> Path:
    """A residual network beside a text transformer, in open_clip's form."""
    import open_clip
    from safetensors.torch import save_file

    config = {"embed_dim": 48, "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
              "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}}
    torch.manual_seed(0)
    module = open_clip.model.CLIP(**config)
    module.token_embedding.weight.requires_grad_(False)
    train(lambda x: module.encode_image(x, normalize=True), lambda ids: module.encode_text(ids, normalize=True), module.logit_scale,
          [p for p in module.parameters() if p.requires_grad], steps, sections)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def trained_clip(folder: Path, steps: int, sections: tuple[str, ...]) -> Path:
    """Two transformers, in the form of the package of that name."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    module = CLIPModel(CLIPConfig(**clip_shapes(SIDE)))
    module.text_model.embeddings.token_embedding.weight.requires_grad_(False)
    train(lambda x: functional.normalize(module.visual_projection(module.vision_model(pixel_values=x).pooler_output), dim=-1),
          lambda ids: functional.normalize(module.text_projection(module.text_model(input_ids=ids).pooler_output), dim=-1), module.logit_scale,
          [p for p in module.parameters() if p.requires_grad], steps, sections)
    return clip_folder(folder, module)


def write_held_out(folder: Path, count: int) -> list[Scene]:
    rng = random.Random(1)
    held_out = scenes(count, True, rng)
    folder.mkdir()
    for i, scene in enumerate(held_out):
        draw_scene(scene, rng).resize((256, 256)).save(folder / f"{i:03d}.png")
    return held_out


def right_captions(model: Path, folder: Path, held_out: list[Scene], sections: tuple[str, ...]) -> float:
    """Share of held-out scenes whose caption has the right phrase of every section and no wrong one."""
    vocabulary = folder.parent / "vocabulary.txt"
    vocabulary.write_text("\n".join(f"[{name} | content | 1 | 0.2]\n" + "\n".join(SECTIONS[name]) for name in sections))
    assert len(caption_folder(folder, ModelChoice(str(model), device="cpu", vocabulary=vocabulary)).captions) == len(held_out)
    captions = read_metadata(folder / "metadata.csv")
    return sum(captions[f"{i:03d}.png"] == ", ".join(tags_of(scene, sections)) for i, scene in enumerate(held_out)) / len(held_out)


def test_colour_and_background_of_unseen_scenes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sections = ("colour", "background")
    held_out = write_held_out(tmp_path / "pictures", 100)
    assert right_captions(trained_clip(tmp_path / "clip", 150, sections), tmp_path / "pictures", held_out, sections) >= 0.8


@pytest.mark.slow
def test_everything_of_unseen_scenes_and_captions_that_changed_places(tmp_path: Path) -> None:
    """In a residual network's tags the shape is right too, and it tells captions that stand beside a wrong picture."""
    pytest.importorskip("open_clip")
    model, folder = trained_open_clip(tmp_path / "clip", 340, tuple(SECTIONS)), tmp_path / "pictures"
    held_out = write_held_out(folder, 200)
    assert (right := right_captions(model, folder, held_out, tuple(SECTIONS))) >= 0.8
    (folder / "metadata.csv").unlink()
    planted = set()
    for i, scene in enumerate(held_out):
        caption = scene.caption
        # a person's caption of another thing
        other = held_out[(i + 1) % len(held_out)]
        if i % 16 == 0 and other.colour != scene.colour and other.shape != scene.shape:
            caption = other.caption
            planted.add(f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption)
    report = check_folder(folder, CheckSettings(256), None, KnownPictures(None), model)
    named = {name for finding in report.findings if finding.code == "wrong_caption" for name in finding.files}
    print(f"{right:.1%} of 200 right; {len(planted)} captions beside a wrong picture, {len(named & planted)} found, {len(named - planted)} others named")
    assert len(named & planted) >= 0.95 * len(planted) >= 5 and len(named - planted) <= 0.05 * (200 - len(planted)), (planted - named, named - planted)
