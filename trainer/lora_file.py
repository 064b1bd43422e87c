"""The LoRA file: safetensors in kohya form out; kohya, diffusers, PEFT and ComfyUI form in."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from .lora_keys import layout_of, spellings
from .lora_metadata import build_metadata
from .lora_tensors import LoraWeights, check_names, fit_dora_scale, kohya_tensors, read_peft_config, weights_from_tensors
from .output_files import OutputError, write_atomically

__all__ = [
    "LoraWeights",
    "OutputError",
    "build_metadata",
    "check_lora",
    "load_lora",
    "read_safetensors",
    "save_lora",
    "to_file_weights",
    "to_layers",
    "write_safetensors",
]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_PICKLES = (".pt", ".ckpt", ".bin", ".pth")
_Place = tuple[tuple[str, str], tuple[int, ...]]  # (component, module path) and the shape of the weight there


def save_lora(
    path: str | Path, weights: LoraWeights, metadata: dict[str, str], dtype: str = "fp16", keep_old: bool = True
) -> Path | None:
    """Write a kohya file in one step; a reader sees the old file or the new one.

    With `keep_old` a file of that name is kept as `name-v1`, `name-v2`, ... and its path is returned. `ss_output_name` is set to
    the file's stem, `sshs_model_hash` to the SHA-256 of the tensors. Raises OutputError when the file cannot be written and
    ValueError for weights that are not finite in `dtype` ("fp16", "bf16", "fp32").
    """
    path = Path(path)
    assert path.suffix == ".safetensors", path
    assert weights, "a LoRA without layers"
    if dtype not in DTYPES:
        raise ValueError(f"save_dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return write_safetensors(path, kohya_tensors(weights, DTYPES[dtype]), {**metadata, "ss_output_name": path.stem}, keep_old)


def load_lora(path: str | Path) -> tuple[LoraWeights, dict[str, str]]:
    """Weights (float32, on the CPU) and metadata of a LoRA file in any common form.

    Raises ValueError with the reason when the file is missing, a pickle, damaged, no LoRA, or of a method that is not
    supported (LoHa, LoKr, OFT, ...).
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    try:
        return weights_from_tensors(tensors, metadata, read_peft_config(path)), metadata
    except ValueError as error:
        raise _unusable(path, error) from None


def check_lora(path: str | Path) -> None:
    """What `load_lora` would say of the names in a file, in the same words; its numbers, which may be gigabytes, are not read."""
    path = Path(path)
    try:
        with _told(path), path.open("rb"), safe_open(path, "pt") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise _damaged(path, error) from None
    try:
        check_names(names)
    except ValueError as error:
        raise _unusable(path, error) from None


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read as a whole, so that the file stays free to be replaced on Windows."""
    path = Path(path)
    with _told(path):
        data = path.read_bytes()
    try:
        tensors = load(data)
        metadata = _header(data).get("__metadata__") or {}
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return tensors, metadata


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Inside, the file is read. ValueError, with what to do, for one that cannot be, and for a kind that is not."""
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path} is a pickle, which can run any program when it is opened; convert it to .safetensors first")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the .safetensors file in it")
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or no safetensors file ({error}); get or save it again")


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be used as a LoRA: {error}")


def write_safetensors(
    path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], keep_old: bool = True
) -> Path | None:
    """Write tensors and metadata atomically; the same input gives the same bytes. Returns where an old file was kept, or None."""
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()), "metadata is text to text"
    plain = save(tensors)
    header = _header(plain)
    content = plain[8 + int.from_bytes(plain[:8], "little") :]
    metadata = {**metadata, "sshs_model_hash": hashlib.sha256(content).hexdigest()}
    # The library keeps metadata in the order of a hash table, another one in every process: put in here, sorted.
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **header}, ensure_ascii=False, separators=(",", ":")
    ).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return write_atomically(path, len(text).to_bytes(8, "little") + text + content, keep_old)


def to_file_weights(layers: dict[tuple[str, str], dict[str, Any]], lora_key: Callable[[str, str], str]) -> LoraWeights:
    """An adapter's weights, keyed by (component, path), as a file keys them."""
    weights = {lora_key(component, path): layer for (component, path), layer in layers.items()}
    assert len(weights) == len(layers), "two layers share one key"
    return weights


def to_layers(
    weights: LoraWeights, lora_key: Callable[[str, str], str], components: dict[str, nn.Module], base_name: str = "this base"
) -> dict[tuple[str, str], dict[str, Any]]:
    """Find the layer of the base that each part of a LoRA is for: (component, module path) -> weights.

    `lora_key` is the backend's; layers are also found under the names that other programs give them (diffusers, LDM). Weights of
    1x1 convolutions and linear layers are reshaped to what the base has. Raises ValueError when a key matches no layer or a
    shape does not fit, which is what a LoRA for another kind of base looks like.
    """
    places = _places(lora_key, components)
    unknown = [prefix for prefix in weights if prefix not in places]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(weights)} layers of the LoRA are not in {base_name}, for example {', '.join(unknown[:3])}; "
            "it was made for another kind of base, so choose one that fits"
        )
    layers: dict[tuple[str, str], dict[str, Any]] = {}
    for prefix, layer in weights.items():
        place, shape = places[prefix]
        if place in layers:
            raise ValueError(f"the LoRA has layer {'.'.join(place)} twice, once as {prefix}; remove one of the two")
        layers[place] = _fit(prefix, layer, shape, base_name)
    return layers


def _places(lora_key: Callable[[str, str], str], components: dict[str, nn.Module]) -> dict[str, _Place]:
    """Every key prefix that means a layer -> that layer and the shape of its weight. The host's own names win."""
    places: dict[str, _Place] = {}
    others: dict[str, _Place] = {}
    for component, root in components.items():
        shapes = {path: weight_shape(module) for path, module in root.named_modules()}
        layout = layout_of(shapes)
        for path, shape in shapes.items():
            if shape is not None:
                own, *more = spellings(component, path, layout, lora_key)
                places[own] = (component, path), shape
                for prefix in more:
                    others.setdefault(prefix, ((component, path), shape))
    return {**others, **places}


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of the weight of a linear (out, in) or conv (out, in, kh, kw) layer, by features and not by class; else None."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, tuple) and len(kernel) == 2 and hasattr(module, "in_channels"):
        return module.out_channels, module.in_channels // getattr(module, "groups", 1), *kernel
    return None


def _fit(prefix: str, layer: dict[str, Any], shape: tuple[int, ...], base_name: str) -> dict[str, Any]:
    down, up = layer["down"], layer["up"]
    rank = down.shape[0]
    same_sizes = up.shape[0] == shape[0] and down[0].numel() == torch.Size(shape[1:]).numel()
    same_kernel = down.ndim == 2 or tuple(down.shape[2:]) == (*shape[2:], 1, 1)[:2]
    if not (same_sizes and same_kernel):
        raise ValueError(
            f"layer {prefix} of the LoRA maps {tuple(down.shape[1:])} to {up.shape[0]}, in {base_name} it maps {shape[1:]} to "
            f"{shape[0]}; it was made for another kind of base, so choose one that fits"
        )
    fitted = {**layer, "down": down.reshape(rank, *shape[1:]), "up": up.reshape(shape[0], rank, *[1] * (len(shape) - 2))}
    if layer.get("dora_scale") is not None:
        fitted["dora_scale"] = fit_dora_scale(layer["dora_scale"], shape)
        if fitted["dora_scale"] is None:
            raise ValueError(
                f"layer {prefix} has a dora_scale of shape {tuple(layer['dora_scale'].shape)} for a weight of shape {shape}; the file is damaged"
            )
    return fitted


def _header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
