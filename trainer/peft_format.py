"""diffusers / PEFT form of a LoRA (`pytorch_lora_weights.safetensors`), both ways, and the export of files."""

from __future__ import annotations

from pathlib import Path

import torch

from .lora_file import DTYPES, load_lora, read_safetensors, save_lora, write_safetensors
from .lora_keys import SDXL_LAYOUT, diffusers_name, diffusers_path, ldm_path, split_prefix
from .lora_tensors import LoraWeights, cast, weights_from_tensors

FORMATS = ("kohya", "peft")
_DIFFUSERS_NAMES = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}


def to_peft(weights: LoraWeights, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The tensors of a diffusers file, `unet.<path>.lora_A.weight` and so on, that every version of diffusers reads the same way.

    diffusers takes alpha = rank for a file without PEFT settings, so alpha / rank is multiplied into `lora_B`. Versions before
    0.33 take one rank for all layers of a model, so smaller ranks are filled up with zeros: the product stays the same. Only
    layers of SD UNets and CLIP text encoders have a name there; ValueError for others and for a DoRA per input.
    """
    ranks: dict[str, int] = {}
    for prefix, layer in weights.items():
        component = split_prefix(prefix)[0]
        ranks[component] = max(ranks.get(component, 0), layer["down"].shape[0])
    tensors = {}
    for prefix, layer in weights.items():
        component, path = diffusers_name(prefix)
        name = f"{_DIFFUSERS_NAMES[component]}.{path}"
        down, up = layer["down"].float(), layer["up"].float() * (layer["alpha"] / layer["down"].shape[0])
        missing = ranks[component] - down.shape[0]
        if missing:
            down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
            up = torch.cat([up, up.new_zeros(up.shape[0], missing, *up.shape[2:])], dim=1)
        tensors[f"{name}.lora_A.weight"] = cast(prefix, down, dtype)
        tensors[f"{name}.lora_B.weight"] = cast(prefix, up, dtype)
        if layer.get("dora_scale") is not None:
            tensors[f"{name}.lora_magnitude_vector"] = cast(prefix, _magnitude(prefix, layer), dtype)
    return tensors


def from_peft(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, peft_config: dict | None = None
) -> LoraWeights:
    """Weights from the tensors of a diffusers or PEFT file; see `weights_from_tensors`, which reads every form."""
    return weights_from_tensors(tensors, metadata or {}, peft_config)


def export_file(source: str | Path, file_format: str, out: str | Path | None = None) -> Path:
    """Write `source`, a LoRA in any readable form, as "kohya" or "peft" and return the path of the new file.

    Without `out` it lies beside the source, as `name-peft.safetensors` or `name-kohya.safetensors`; when `out` is a folder, under
    the name that diffusers looks for (peft) or the name of the source (kohya). The metadata goes along, the type of the
    numbers stays. An existing file is kept as `name-v1`. Raises ValueError for a source or format that cannot be used,
    OutputError when the new file cannot be written.
    """
    source = Path(source)
    if file_format not in FORMATS:
        raise ValueError(f"the format is {file_format!r}; it must be one of {', '.join(FORMATS)}")
    weights, metadata = load_lora(source)
    metadata = {key: value for key, value in metadata.items() if key not in ("lora_adapter_metadata", "format")}
    target = _target(source, file_format, Path(out) if out is not None else None)
    dtype = _dtype_of(source)
    if file_format == "kohya":
        save_lora(target, kohya_names(weights), metadata, dtype)
        return target
    write_safetensors(target, to_peft(weights, DTYPES[dtype]), {**metadata, "format": "pt"})
    return target


def kohya_names(weights: LoraWeights) -> LoraWeights:
    """The same weights under the keys that sd-scripts gives them: SDXL's UNet in LDM's spelling, all others in diffusers'."""
    if not is_sdxl(weights):
        return weights
    renamed = {}
    for prefix, layer in weights.items():
        component, path = split_prefix(prefix)
        if component == "unet":
            prefix = f"lora_unet_{ldm_path(diffusers_path(path), SDXL_LAYOUT).replace('.', '_')}"
        renamed[prefix] = layer
    return renamed


def is_sdxl(weights: LoraWeights) -> bool:
    """Two text encoders, or attention to captions that are 2048 wide."""
    return any(
        prefix.startswith("lora_te2_") or "_attn2_to_" in prefix and layer["down"].shape[1] == 2048
        for prefix, layer in weights.items()
    )


def _magnitude(prefix: str, layer: dict) -> torch.Tensor:
    """DoRA's magnitudes as PEFT has them: (out,) for linear and (1, out, 1, 1) for conv layers."""
    scale, outputs = layer["dora_scale"], layer["up"].shape[0]
    if scale.shape[0] != outputs or scale.numel() != outputs:
        raise ValueError(
            f"layer {prefix} has a DoRA per input, and PEFT knows only DoRA per output; it cannot be written in that form"
        )
    return scale.reshape(-1) if layer["down"].ndim == 2 else scale.reshape(1, -1, 1, 1)


def _dtype_of(path: Path) -> str:
    """The type of the file's numbers, by its widest; what has no name among ours (float8, float64) becomes fp32."""
    kinds = {tensor.dtype for key, tensor in read_safetensors(path)[0].items() if not key.endswith(".alpha")}
    names = [name for name, dtype in DTYPES.items() if kinds == {dtype}]
    return names[0] if names else "fp32"


def _target(source: Path, file_format: str, out: Path | None) -> Path:
    if out is None:
        return source.with_name(f"{source.stem}-{file_format}.safetensors")
    if out.suffix == ".safetensors":
        return out
    if out.suffix and not out.is_dir():
        raise ValueError(f"the output is {out}; its name must end with .safetensors, or be a folder")
    return out / ("pytorch_lora_weights.safetensors" if file_format == "peft" else f"{source.stem}.safetensors")
