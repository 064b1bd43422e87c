"""Real loading and generation with small models of the real classes, saved as a user has them."""
from __future__ import annotations

import gc
import json
import weakref
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hotlora.tests.trainer.captions import small_models
from hotlora.trainer.captions import automatic
from hotlora.trainer.captions.automatic import CaptionWishes, caption_folder
from hotlora.trainer.captions.library import ModelChoice, kind_of, load_model
from hotlora.trainer.captions.models import Input

PICTURES = [Image.effect_noise((50 + 9 * i, 40), 90).convert("RGB") for i in range(3)] + [Image.new("RGB", (33, 60), "blue")]
needs_open_clip = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs open_clip_torch")


def describe(folder: Path, **choice):
    model = load_model(ModelChoice(str(folder), device="cpu", vocabulary=None, **choice))
    batch = np.stack([model.prepare(picture) for picture in PICTURES])
    together, alone = model.describe(batch), [model.describe(values[None])[0] for values in batch]
    model.close()
    return together, alone


@pytest.mark.parametrize("make", [small_models.blip_folder, small_models.blip2_folder])
def test_blip_says_the_same_alone_and_in_a_batch(make, tmp_path: Path) -> None:
    together, alone = describe(make(tmp_path / "model"))
    assert [said.sentence for said in together] == [said.sentence for said in alone]
    assert all(set(said.sentence.split()) <= set(small_models.WORDS) and len(said.sentence.split()) >= 3 for said in together)
    assert load_model(ModelChoice(str(tmp_path / "model"))).name == "model"


@pytest.mark.parametrize("make", [small_models.blip_folder, small_models.clip_folder])
@pytest.mark.parametrize("fails", [False, True])
def test_no_weight_of_the_model_stays_after_it(make, fails: bool, tmp_path: Path, monkeypatch) -> None:
    weights: list[weakref.ref] = []

    def loaded(choice):
        model = load_model(choice)
        owners = [one for one in (model, *vars(model).values()) if hasattr(one, "__dict__")]  # CLIP's is in what the tags are read from
        held = [part for owner in owners for part in vars(owner).values() if isinstance(part, torch.nn.Module)]
        weights.extend(weakref.ref(one) for part in held for one in part.parameters())
        return model

    def progress(done: int, total: int) -> None:
        if fails:
            raise RuntimeError("the page has gone")

    monkeypatch.setattr(automatic, "load_model", loaded)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, picture in enumerate(PICTURES):
        picture.save(pictures / f"{i}.png")
    with pytest.raises(RuntimeError, match="gone") if fails else nullcontext():
        caption_folder(pictures, ModelChoice(str(make(tmp_path / "model")), device="cpu"), CaptionWishes(), progress)
    gc.collect()
    assert len(weights) > 10 and not any(one() is not None for one in weights)


def test_blip_is_what_transformers_alone_gives(tmp_path: Path) -> None:
    import transformers

    folder = small_models.blip_folder(tmp_path / "model")
    processor = transformers.BlipImageProcessor.from_pretrained(folder) if not hasattr(transformers, "BlipImageProcessorPil") else transformers.BlipImageProcessorPil.from_pretrained(folder)
    model = load_model(ModelChoice(str(folder), device="cpu"))
    for picture in PICTURES:
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        assert np.abs(model.prepare(picture) - theirs).max() < 0.05


def test_clip_tags_come_from_the_list(tmp_path: Path) -> None:
    folder = small_models.clip_folder(tmp_path / "model")
    together, alone = describe(folder, own_tags=("red circle", "blue square"))
    assert [[tag.text for tag in said.tags] for said in together] == [[tag.text for tag in said.tags] for said in alone]
    assert all(tag.kind != "own" or tag.text in ("red circle", "blue square") for said in together for tag in said.tags)


@needs_open_clip
@pytest.mark.parametrize("as_bin", [False, True])
def test_coca_writes_and_tags(as_bin: bool, tmp_path: Path) -> None:
    folder = small_models.coca_folder(tmp_path / f"coca{as_bin}", as_bin=as_bin)
    together, alone = describe(folder, own_tags=("a cat", "a dog"))
    assert [said.sentence for said in together] == [said.sentence for said in alone] and all(said.sentence for said in together)


@needs_open_clip
def test_coca_words_are_the_likeliest_of_the_whole_model(tmp_path: Path) -> None:
    """Our loop chooses what the model's own forward over the whole sentence ranks first."""
    folder = small_models.coca_folder(tmp_path / "coca")
    encoder = load_model(ModelChoice(str(folder), device="cpu", vocabulary=None)).encoder
    batch = np.stack([encoder.input(picture) for picture in PICTURES])
    chosen = encoder.word_numbers(batch)
    x_B3HW = torch.from_numpy(batch)
    with torch.no_grad():
        out = encoder.module(x_B3HW, torch.tensor(chosen))
    logits_BLV = out["logits"] if isinstance(out, dict) else out[2]
    # position i of the logits foretells word i + 1; the first ones cannot repeat a triple yet
    foretold = logits_BLV[:, :3].argmax(-1)
    assert foretold[:, :2].tolist() == [row[1:3] for row in chosen]


@needs_open_clip
def test_open_clip_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = small_models.coca_folder(tmp_path / "coca")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit the model .*weights differ"):
        load_model(ModelChoice(str(folder)))
    (folder / "open_clip_model.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="has no weights"):
        load_model(ModelChoice(str(folder)))
    with pytest.raises(ValueError, match="begin it with the architecture"):
        load_model(ModelChoice(str(tmp_path / "mine.safetensors")))


def test_the_onnx_tagger(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = small_models.tagger_folder(tmp_path / "tagger")
    for path in (folder, folder / "model.onnx"):
        model = load_model(ModelChoice(str(path), device="cpu"))
        said = model.describe(np.stack([model.prepare(Image.new("RGB", (60, 30), colour)) for colour in ("blue", "lime", "black")]))
        # black bars would be black, white ones add a little of every colour
        assert [tag.text for tag in said[0].tags] == ["blue theme", "green theme", ">_<"] and said[0].tags[0].confidence > said[0].tags[1].confidence
        assert said[1].tags[0].text == "green theme" and said[1].tags[0].kind == "general"
        assert not any(tag.kind in ("rating", "character") for one in said for tag in one.tags)
        model.close()
    (folder / "selected_tags.csv").write_text("tag_id,name,category\n1,a,0\n")
    with pytest.raises(ValueError, match="has 5 tags and selected_tags.csv has 1"):
        load_model(ModelChoice(str(folder)))
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(ValueError, match="must lie beside the model"):
        load_model(ModelChoice(str(folder)))
    (folder / "model.onnx").write_bytes(b"no model")
    (folder / "selected_tags.csv").write_text("tag_id,name,category\n1,a,0\n")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(ModelChoice(str(folder)))


def test_a_whole_folder_with_blip(tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for i, picture in enumerate(PICTURES):
        picture.save(gallery / f"{i}.png")
    choice = ModelChoice(str(small_models.blip_folder(tmp_path / "model")), device="cpu")
    report = caption_folder(gallery, choice, CaptionWishes(trigger="sks", batch_size=3))
    assert len(report.captions) == 4 and all(text.startswith("sks, ") for text in report.captions.values())


def test_what_is_no_model(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "a.txt", "give an .onnx file"), (tmp_path / "folder", "a folder needs config.json")):
        path.mkdir() if path.name == "folder" else path.write_text("x")
        with pytest.raises(ValueError, match=words):
            kind_of(path)
    (tmp_path / "folder" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        kind_of(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama'; captions are made by blip, blip-2 and clip"):
        kind_of(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(ModelChoice(str(tmp_path / "folder")))


@pytest.mark.parametrize("fit, left, right", [("stretch", "red", "blue"), ("crop", "red", "blue"), ("pad", "red", "blue")])
def test_ways_to_fit(fit: str, left: str, right: str) -> None:
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    fitted = Input(64, 64, fit=fit).fitted(picture)
    assert fitted.size == (64, 64) and fitted.getpixel((8, 32)) == (255, 0, 0) and fitted.getpixel((56, 32)) == (0, 0, 255)
    assert (fitted.getpixel((32, 2)) == (255, 255, 255)) == (fit == "pad")


@pytest.mark.parametrize("make", [small_models.blip_folder, small_models.clip_folder])
def test_pickled_weights_say_the_same_and_run_no_code(make, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make(tmp_path / "model")
    before = describe(folder, own_tags=("red circle", "blue square"))[0]
    # older releases of transformers write pickles by themselves
    if (folder / "model.safetensors").exists():
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert describe(folder, own_tags=("red circle", "blue square"))[0] == before

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(ModelChoice(str(folder), device="cpu"))
    assert not (tmp_path / "ran").exists()
