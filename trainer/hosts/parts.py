"""What a Stable Diffusion base is made of, and the CLIP text encoders' tokens and outputs."""
from __future__ import annotations

import gzip
import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

MODELS_DIR = Path(__file__).parent / "diffusers_models"


@dataclass
class TextEncoder:
    """A CLIP text encoder with its tokenizer. `penultimate`: take the last but one layer, without the final norm (SDXL)."""

    module: nn.Module
    tokenizer: Any
    pad_id: int
    penultimate: bool = False

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.module.config.max_position_embeddings)

    def count(self, text: str) -> int:
        """Tokens of a text, start and end marks included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def ids(self, texts: list[str]) -> torch.Tensor:
        """Token numbers `(B, L)`, cut off and padded to the limit. Padded by hand: a vocabulary whose padding token is "!"
        would otherwise read every exclamation mark of a caption as padding."""
        limit = self.max_tokens
        rows = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        return torch.tensor([row + [self.pad_id] * (limit - len(row)) for row in rows])

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states `(B, L, D)` and, of an encoder with a projection, the pooled embedding `(B, P)`; float32."""
        ids_BL = self.ids(texts).to(next(self.module.parameters()).device)
        out = self.module(ids_BL, output_hidden_states=self.penultimate)
        hidden_BLD = out.hidden_states[-2] if self.penultimate else out.last_hidden_state
        pooled = getattr(out, "text_embeds", None)
        return hidden_BLD.float(), None if pooled is None else pooled.float()


@dataclass
class Parts:
    """A loaded base. `files` are what its hash is taken of."""

    family: str
    name: str
    resolution: int
    unet: nn.Module
    vae: nn.Module
    text_encoders: list[TextEncoder]
    scheduler: Any
    files: list[Path] = field(default_factory=list)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A `.safetensors` file, open for reading; raises ValueError for one that is damaged or none."""
    try:
        with safe_open(str(file), framework="pt") as reader:
            yield reader
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete .safetensors file ({error}); download or copy it again") from error


def fill(module: nn.Module, weight_of: Callable[[str], torch.Tensor | None], device: torch.device, dtype: torch.dtype,
         source: Path) -> nn.Module:
    """Give a module that was made on the meta device its weights; raises ValueError when one is missing or misshapen.

    A linear layer and a 1x1 convolution are the same thing, and which of them is stored differs between releases.
    """
    found, missing = {}, []
    for key, wanted in module.state_dict().items():
        if key.endswith("position_ids"):
            found[key] = torch.arange(wanted.shape[-1], device=device).expand(wanted.shape).clone()
            continue
        tensor = weight_of(key)
        if tensor is None:
            missing.append(key)
        elif [n for n in tensor.shape if n > 1] != [n for n in wanted.shape if n > 1]:
            raise ValueError(f"{source}: the weight for {key} has the shape {tuple(tensor.shape)} where {tuple(wanted.shape)} "
                             "is expected; only the published shapes of Stable Diffusion 1.x, 2.x and XL can be read")
        else:
            found[key] = tensor.to(device, dtype, copy=True).reshape(wanted.shape).contiguous()
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} weights of the {type(module).__name__}, such as {missing[0]}; "
                         "it must be a complete checkpoint with denoiser, autoencoder and text encoders")
    module.load_state_dict(found, assign=True)
    _make_position_ids(module, device)
    return module.requires_grad_(False).eval()


def _make_position_ids(module: nn.Module, device: torch.device) -> None:
    """Buffers that are not saved stay on the meta device; CLIP's position numbers are the only ones."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids", f"unknown buffer {name} in {type(part).__name__}"
                setattr(part, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone())


@lru_cache(maxsize=1)
def clip_tokenizer() -> Any:
    """CLIP's tokenizer, made of the vocabulary that ships with the project."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files().items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def tokenizer_files() -> dict[str, str]:
    """CLIP's vocabulary and settings in the files that `transformers` reads."""
    text = gzip.decompress((MODELS_DIR / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8")
    # 49,408 tokens: 256 bytes, 256 bytes that end a word, 48,894 merges and 2 marks. The file's first line is a heading.
    merges = text.split("\n")[1:1 + 48894]
    letters = _letters()
    tokens = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps({
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    }


def _letters() -> list[str]:
    """The printable characters that stand for the 256 bytes, in the order of the vocabulary (GPT-2, Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
