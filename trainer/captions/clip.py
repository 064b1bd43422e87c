"""Zero-shot tags and picture-text similarity by CLIP (2103.00020), and sentences by CoCa (2205.01917); through open_clip or transformers."""
from __future__ import annotations

import inspect
import json
import re
import tempfile
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from PIL import Image

from .blip import clean_sentence
from .models import CLIP_MEAN, CLIP_STD, Input, Said, Tag, choose_device, choose_dtype, give_memory_back, input_from_folder, load_from_folder
from .vocabulary import Section

PROMPTS = ("{}", "a photo of {}", "a picture of {}")
NOTHING = ("", "a photo", "a picture", "an image")
TEXT_BATCH = 128
MOST_TOKENS = 40
ARCHITECTURE = re.compile(r"(coca_)?(roberta-)?(xlm-roberta-base-)?ViT-[BLHg]{1,2}-?\d{0,2}(-quickgelu|-336|-plus-240|-378)?", re.IGNORECASE)


class TransformersClip:
    """A folder as transformers saves a CLIPModel."""

    def __init__(self, folder: Path, device: str | torch.device = "auto") -> None:
        self.name, self.device = folder.name, choose_device(device)
        module, self.tokenizer = load_from_folder("CLIPModel", folder, choose_dtype(self.device))
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.input = input_from_folder(folder, self.module.config.vision_config.image_size, "crop")
        self.scale = float(self.module.logit_scale.exp())

    @torch.no_grad()
    def pictures(self, batch: np.ndarray) -> torch.Tensor:
        x_B3HW = torch.from_numpy(batch).to(self.device, self.module.dtype)
        pooled = self.module.vision_model(pixel_values=x_B3HW).pooler_output
        return _unit(self.module.visual_projection(pooled))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        limit = self.module.config.text_config.max_position_embeddings
        taken = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(self.device)
        pooled = self.module.text_model(input_ids=taken["input_ids"], attention_mask=taken["attention_mask"]).pooler_output
        return _unit(self.module.text_projection(pooled))

    def close(self) -> None:
        self.module = None
        give_memory_back(self.device)


class OpenClip:
    """Weights in open_clip's form: a folder with open_clip_config.json, or a file whose name has the architecture in it."""

    def __init__(self, path: Path, device: str | torch.device = "auto") -> None:
        open_clip = _open_clip(path)
        self.device = choose_device(device)
        weights, name, config = _open_clip_parts(path)
        self.name = path.stem if path.is_file() else path.name
        with tempfile.TemporaryDirectory() as folder:
            if config is not None:
                # a name of its own, because the package has one table for all
                name = f"local-{self.name}"
                (Path(folder) / f"{name}.json").write_text(json.dumps(config["model_cfg"]), encoding="utf-8")
                open_clip.add_model_config(folder)
            if "hf_model_name" in (open_clip.get_model_config(name) or {}).get("text_cfg", {}):
                raise ValueError(f"{path} has a text encoder of another package, which would have to be downloaded; choose one of the ViT models")
            module = open_clip.create_model(name, pretrained=None, device="cpu")
            self.tokenizer = open_clip.get_tokenizer(name)
        module.load_state_dict(_fitting_state(weights, module))
        self.module = module.to(self.device, choose_dtype(self.device)).eval().requires_grad_(False)
        side = getattr(module.visual, "image_size", 224)
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        wanted = (config or {}).get("preprocess_cfg", {})
        self.input = Input(width, height, tuple(wanted.get("mean", CLIP_MEAN)), tuple(wanted.get("std", CLIP_STD)), "crop")
        self.context = int(getattr(module, "context_length", 0) or getattr(self.tokenizer, "context_length", 77))
        self.scale = float(module.logit_scale.exp())
        self.writes = hasattr(module, "text_decoder")

    @torch.no_grad()
    def pictures(self, batch: np.ndarray) -> torch.Tensor:
        dtype = next(self.module.parameters()).dtype
        return _unit(self.module.encode_image(torch.from_numpy(batch).to(self.device, dtype)))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        return _unit(self.module.encode_text(self.tokenizer(texts, context_length=self.context).to(self.device)))

    def sentences(self, batch: np.ndarray) -> list[str]:
        start, end = self._marks()
        rows = [[token for token in row if token not in (start, end)] for row in self.word_numbers(batch)]
        if hasattr(self.tokenizer, "decode"):
            return [clean_sentence(self.tokenizer.decode(row)) for row in rows]
        decode = _open_clip(Path(self.name)).decode
        return [clean_sentence(decode(torch.tensor(row))) for row in rows]

    @torch.no_grad()
    def word_numbers(self, batch: np.ndarray) -> list[list[int]]:
        """The likeliest next word each time. The package's own search needs classes that transformers has removed since."""
        dtype = next(self.module.parameters()).dtype
        _, embeddings = self.module._encode_image(torch.from_numpy(batch).to(self.device, dtype))
        # older releases drop the last word otherwise
        whole = {"embed_cls": False} if "embed_cls" in inspect.signature(self.module._encode_text).parameters else {}
        start, end = self._marks()
        ids_BL = torch.full((len(batch), 1), start, dtype=torch.long, device=self.device)
        finished = torch.zeros(len(batch), dtype=torch.bool, device=self.device)
        for length in range(min(MOST_TOKENS, self.context - 1)):
            _, words_BLD = self.module._encode_text(ids_BL, **whole)
            logits_BV = self.module.text_decoder(embeddings, words_BLD)[:, -1].float()
            if length < 4:
                logits_BV[:, end] = -torch.inf
            _forbid_repeated_triples(ids_BL, logits_BV)
            chosen = logits_BV.argmax(-1)
            chosen[finished] = end
            finished |= chosen == end
            ids_BL = torch.cat([ids_BL, chosen[:, None]], dim=1)
            if bool(finished.all()):
                break
        return ids_BL.tolist()

    def _marks(self) -> tuple[int, int]:
        """Numbers of the tokens that start and end a text."""
        start, end = self.tokenizer("", context_length=self.context)[0, :2].tolist()
        return start, end

    def close(self) -> None:
        self.module = None
        give_memory_back(self.device)


class ClipCaptions:
    """Tags against a vocabulary, after a sentence where the model can write one."""

    def __init__(self, encoder: Any, sections: list[Section], sentences: bool = True) -> None:
        self.encoder, self.name, self.sections = encoder, encoder.name, [section for section in sections if section.phrases]
        self.sentences = sentences and getattr(encoder, "writes", False)
        self.nothing_D = _mean(_encode(encoder, list(NOTHING[1:])))
        self.features: list[torch.Tensor] = []
        for section in self.sections:
            filled = [prompt.format(phrase) for phrase in section.phrases for prompt in PROMPTS]
            features = _encode(encoder, filled).reshape(len(section.phrases), len(PROMPTS), -1)
            self.features.append(_unit(features.mean(1)))

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return self.encoder.input(picture)

    def describe(self, batch: np.ndarray) -> list[Said]:
        sentences = self.encoder.sentences(batch) if self.sentences else [""] * len(batch)
        tags: list[list[Tag]] = [[] for _ in range(len(batch))]
        if self.sections:
            z_BD = self.encoder.pictures(batch)
            for section, features_ND in zip(self.sections, self.features):
                for row, chosen in zip(tags, self._chosen(z_BD, section, features_ND)):
                    row += chosen
        return [Said(sentence, tuple(row)) for sentence, row in zip(sentences, tags)]

    def _chosen(self, z_BD: torch.Tensor, section: Section, features_ND: torch.Tensor) -> list[list[Tag]]:
        """The likeliest phrases of a section, each likelier than saying nothing."""
        # what fits no picture better than any other says nothing: the empty captions take part
        everything = torch.cat([features_ND, self.nothing_D[None]])
        shares_BN = (self.encoder.scale * z_BD @ everything.T).float().softmax(-1)
        found = []
        for shares in shares_BN:
            best = shares[:-1].topk(min(section.most, len(section.phrases)))
            found.append([Tag(section.phrases[i], section.name, share) for share, i in zip(best.values.tolist(), best.indices.tolist())
                          if share >= section.least and share > float(shares[-1])])
        return found

    def close(self) -> None:
        self.features, self.nothing_D = [], None
        self.encoder.close()


def similarity(encoder: Any, open_picture: Callable[[str], Image.Image], batch: int = 8) -> Callable[[list[str], list[str]], np.ndarray]:
    """What `check_gallery` asks for: (names of pictures, captions) -> how well each picture fits each caption."""
    def compare(names: list[str], captions: list[str]) -> np.ndarray:
        pictures = [encoder.pictures(np.stack([encoder.input(open_picture(name)) for name in names[i:i + batch]])) for i in range(0, len(names), batch)]
        return (torch.cat(pictures) @ _encode(encoder, captions).T).float().cpu().numpy()
    return compare


def _unit(values: torch.Tensor) -> torch.Tensor:
    return values / values.float().norm(dim=-1, keepdim=True).clamp(min=1e-6).to(values.dtype)


def _mean(features_ND: torch.Tensor) -> torch.Tensor:
    return _unit(features_ND.mean(0))


def _encode(encoder: Any, texts: list[str]) -> torch.Tensor:
    return torch.cat([encoder.texts(texts[i:i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)])


def _forbid_repeated_triples(ids_BL: torch.Tensor, logits_BV: torch.Tensor) -> None:
    """No three words come twice in the same order: without it, models repeat themselves until the end."""
    for row, logits in zip(ids_BL.tolist(), logits_BV):
        last = row[-2:]
        for i in range(len(row) - 2):
            if row[i:i + 2] == last:
                logits[row[i + 2]] = -torch.inf


def _open_clip(path: Path) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"{path} needs the package open_clip, which {'is not installed' if error.name == 'open_clip' else f'lacks {error.name}'}; install it "
                         "with `pip install open_clip_torch`, or choose a BLIP model") from None
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        raise ValueError(f"the package open_clip cannot be used here ({str(error).splitlines()[0][:150]}); install a torchvision that belongs to "
                         "this torch, or choose a BLIP model") from error
    return open_clip


def _open_clip_parts(path: Path) -> tuple[Path, str, dict | None]:
    """The file with the weights, the architecture's name, and the folder's own config if it has one."""
    if path.is_dir():
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
        weights = next((path / name for name in names if (path / name).is_file()), None)
        if weights is None:
            raise ValueError(f"{path} has no weights; put open_clip_model.safetensors or open_clip_pytorch_model.bin there")
        try:
            return weights, "", json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path / 'open_clip_config.json'} cannot be read ({error}); copy it from where the model is from") from None
    found = ARCHITECTURE.search(path.stem)
    known = {name.lower(): name for name in _open_clip(path).list_models()}
    if not found or found.group().lower() not in known:
        raise ValueError(f"the name of {path.name} does not tell what model it is; begin it with the architecture, such as coca_ViT-L-14-mscoco.safetensors")
    return path, known[found.group().lower()], None


def _fitting_state(weights: Path, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    try:
        if weights.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(str(weights))
        else:
            state = torch.load(str(weights), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{weights} cannot be read as weights ({str(error).splitlines()[0][:150]}); copy it again, best as .safetensors") from error
    state = state.get("state_dict", state)
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    own = module.state_dict()
    # numbers of positions are stored by some releases and made anew by others
    state = {key: tensor for key, tensor in state.items() if key in own or not key.endswith("position_ids")}
    state.update({key: tensor for key, tensor in own.items() if key.endswith("position_ids") and key not in state})
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape] + [key for key in state if key not in own]
    if wrong:
        raise ValueError(f"{weights} does not fit the model that its name or its config says: {len(wrong)} weights differ, such as {wrong[0]}")
    return state
