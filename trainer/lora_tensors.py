"""LoRA weights as the tensors of a file: every common way to write a LoRA is read, the kohya way is written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Collection

import torch

from .lora_keys import key_prefix, split_dotted

LoraWeights = dict[str, dict[str, Any]]
"""Key prefix (kohya) -> `down` (r, in[, kh, kw]), `up` (out, r[, 1, 1]), `alpha` (float; the layer adds up @ down * alpha / r)
and, with DoRA, `dora_scale`: (out, 1[, 1, 1]) when the norm is taken per output, (1, in[, 1, 1]) when per input."""

_PARTS = (  # the end of a tensor's name -> what it is
    (r"\.lora_(?:down|A)(?:\.[^.]+)?\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight|\.lora_A", "down"),
    (r"\.lora_(?:up|B)(?:\.[^.]+)?\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight|\.lora_B", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "magnitude"),
)
_PART = re.compile("|".join(f"(?P<{part}>(?:{pattern})$)" for pattern, part in _PARTS))
_OTHER_METHODS = (
    (r"\.hada_w", "LoHa"),
    (r"\.lokr_w", "LoKr"),
    (r"\.(oft_blocks|oft_diag|oft_r)", "OFT"),
    (r"\.boft", "BOFT"),
    (r"\.on_input$", "IA3"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight)$", "full weight differences"),
    (r"lora_(B|up).*\.bias$", "LoRA with biases"),
    (r"lora_embedding_", "LoRA of an embedding"),
    (r"^bundle_emb\.|^(clip_[gl]|emp_params|string_to_param)", "textual inversion"),
)


def fit_dora_scale(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """DoRA's magnitudes as a weight of that shape has them, `(out, 1[, 1, 1])` or `(1, in[, 1, 1])`; None when they are neither."""
    ones = [1] * (len(shape) - 2)
    if scale.shape[:1] == shape[:1] and scale.numel() == shape[0]:
        return scale.reshape(shape[0], 1, *ones)
    if scale.ndim > 1 and scale.numel() == scale.shape[1] == shape[1]:
        return scale.reshape(1, shape[1], *ones)
    return None


def weights_from_tensors(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], peft_config: dict | None = None
) -> LoraWeights:
    """Read the tensors of a LoRA file in kohya, diffusers, PEFT or ComfyUI form; everything comes back in float32.

    A layer's alpha is its own `.alpha`, else what PEFT's configuration says (`lora_adapter_metadata` in the metadata, written by
    diffusers, or `peft_config`, the content of `adapter_config.json`), else its rank, as all readers have it. A LoCon's
    `lora_mid` (Tucker form) is multiplied into `down`, which is exact. Raises ValueError for other methods than LoRA and
    DoRA, and for layers that are not whole.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    names: dict[str, str] = {}
    check_names(tensors)
    for key, tensor in tensors.items():
        match = _PART.search(key)
        prefix = key_prefix(key[: match.start()])
        parts.setdefault(prefix, {})[match.lastgroup] = tensor
        names.setdefault(prefix, key[: match.start()])
    configs = _peft_configs(metadata, peft_config)
    weights = {prefix: _layer(prefix, found, _peft_alpha(names[prefix], found, configs)) for prefix, found in parts.items()}
    if any(prefix.startswith("lora_te2_") for prefix in weights):
        weights = {re.sub(r"^lora_te_", "lora_te1_", prefix): layer for prefix, layer in weights.items()}
    return weights


def check_names(names: Collection[str]) -> None:
    """ValueError, which says what it is instead, for a file whose tensors of these names are no LoRA."""
    for name in names:
        if not _PART.search(name):
            raise _not_lora(name, names)
    if not names:
        raise ValueError("it holds no tensors at all")


def kohya_tensors(weights: LoraWeights, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a kohya file. The scalar alpha stays float32: readers take it as a number, and rsLoRA's is a root.

    Raises ValueError when a number does not fit into `dtype` or is not finite.
    """
    tensors = {}
    for prefix, layer in weights.items():
        tensors[f"{prefix}.alpha"] = torch.tensor(float(layer["alpha"]), dtype=torch.float32)
        tensors[f"{prefix}.lora_down.weight"] = cast(prefix, layer["down"], dtype)
        tensors[f"{prefix}.lora_up.weight"] = cast(prefix, layer["up"], dtype)
        if layer.get("dora_scale") is not None:
            tensors[f"{prefix}.dora_scale"] = cast(prefix, layer["dora_scale"], dtype)
    return tensors


def cast(prefix: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy on the CPU in the type of the file; ValueError when a number would be lost on the way."""
    tensor = tensor.detach().to("cpu")
    result = tensor.to(dtype).contiguous().clone()
    if not torch.isfinite(result).all():
        if torch.isfinite(tensor).all():
            largest = f"{tensor.abs().max():.3g}"
            raise ValueError(f"layer {prefix} has numbers up to {largest}, too large for {dtype}; set save_dtype to bf16 or fp32")
        raise ValueError(
            f"layer {prefix} has NaN or infinite numbers and is not saved; lower learning_rate or go on from an earlier save"
        )
    return result


def _layer(prefix: str, parts: dict[str, torch.Tensor], peft_alpha: float | None) -> dict[str, Any]:
    if "down" not in parts or "up" not in parts:
        missing = "lora_up" if "down" in parts else "lora_down"
        raise ValueError(f"layer {prefix} has no {missing}; the file is incomplete, get or export it again")
    for part, tensor in parts.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"layer {prefix} has NaN or infinite numbers in {part}; the file is damaged, use an earlier save")
    down, up = parts["down"].float(), parts["up"].float()
    if "mid" in parts:
        down = _fold_mid(prefix, down, parts["mid"].float())
    rank = down.shape[0] if down.ndim else 0
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or rank == 0 or up.shape[1] != rank or up.shape[2:].numel() != 1:
        raise ValueError(
            f"layer {prefix} has shapes {tuple(down.shape)} and {tuple(up.shape)} that are no LoRA pair; the file is damaged"
        )
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ValueError(f"layer {prefix} has an alpha of {parts['alpha'].numel()} numbers instead of one; the file is damaged")
    alpha = parts["alpha"].item() if "alpha" in parts else peft_alpha
    layer = {"down": down, "up": up, "alpha": float(rank if alpha is None else alpha)}
    if "dora_scale" in parts:
        layer["dora_scale"] = parts["dora_scale"].float()
    elif "magnitude" in parts:  # PEFT: (out,) for linear and (1, out, 1, 1) for conv layers
        layer["dora_scale"] = parts["magnitude"].float().reshape(-1, *[1] * (down.ndim - 1))
    return layer


def _fold_mid(prefix: str, down: torch.Tensor, mid: torch.Tensor) -> torch.Tensor:
    """1x1 to rank, k x k within the rank, 1x1 out: the first two are one k x k convolution."""
    if mid.ndim != 4 or down.ndim not in (2, 4) or mid.shape[1] != down.shape[0] or down.shape[2:].numel() != 1:
        raise ValueError(
            f"layer {prefix} has a lora_mid of shape {tuple(mid.shape)} that does not fit its lora_down; the file is damaged"
        )
    return torch.einsum("rskl,si->rikl", mid, down.flatten(1))


def _not_lora(key: str, tensors: Collection[str]) -> ValueError:
    for pattern, method in _OTHER_METHODS:
        if re.search(pattern, key):
            return ValueError(f"it holds {method} ({key}), and only LoRA, LoCon and DoRA are supported")
    if not any(_PART.search(name) for name in tensors):
        return ValueError(f"it is not a LoRA: {len(tensors)} tensors such as {key}")
    return ValueError(f"the tensor {key} is not part of a LoRA layer")


def _peft_configs(metadata: dict[str, str], peft_config: dict | None) -> dict[str, dict]:
    """PEFT's settings per component (`unet`, `te`, `te2`); `""` stands for the only one of a file that PEFT wrote itself."""
    if peft_config is not None:
        return {"": peft_config}
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        raise ValueError("its lora_adapter_metadata is not JSON; the file is damaged") from None
    configs: dict[str, dict] = {}
    for key, value in flat.items() if isinstance(flat, dict) else ():
        component, _, setting = key.partition(".")
        component = {"unet": "unet", "transformer": "unet", "text_encoder": "te", "text_encoder_2": "te2"}.get(component)
        if component:
            configs.setdefault(component, {})[setting] = value
    return configs


def _peft_alpha(name: str, parts: dict[str, torch.Tensor], configs: dict[str, dict]) -> float | None:
    """Alpha as the files define it (scale = alpha / rank) from PEFT's settings; patterns are taken as ends of a path."""
    component, path = split_dotted(name)
    config = configs.get(component, configs.get(""))
    if not config or "down" not in parts or parts["down"].ndim == 0:
        return None
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        ending = pattern.lstrip("^")
        if path == ending or path.endswith(f".{ending}"):
            alpha = value
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ValueError(f"PEFT's settings give {alpha!r} as the alpha of {name}, which is not a number")
    rank = parts["down"].shape[0]
    return float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def read_peft_config(path: Path) -> dict | None:
    """The `adapter_config.json` that PEFT writes beside its file, if there is one. ValueError when it is damaged."""
    config_path = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not config_path.is_file():
        return None
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{config_path} is not a JSON object; it holds alpha, so get it again")
    return config
