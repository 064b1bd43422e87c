"""Which layers of a model are trained: names from a settings file to module paths."""
from __future__ import annotations

from torch import nn

from .frozen import is_conv2d, is_linear

# One layer, several names: transformers calls the attention's query q_proj, diffusers and the original code to_q.
ALIASES = (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out.0", "to_out", "out_proj"))
# Attention and MLP of Stable Diffusion's denoisers (diffusers and original code share these names) and of CLIP.
ATTENTION_AND_MLP = ("to_q", "to_k", "to_v", "to_out", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "fc1", "fc2")
# Convolutions between latents and features, in diffusers' names and in the original ones: LoCon leaves them alone.
EDGES = ("conv_in", "conv_out", "input_blocks.0.0", "out.2")
ALL_LINEAR = "all-linear"


def find_targets(model: nn.Module, entries: list[str] | None, convs: bool = False) -> dict[str, nn.Module]:
    """The layers to train, by module path, in the model's own order.

    `entries` are ends of paths (`to_q`, `attn1.to_q`, `ff.net.2`), whatever the model calls the attention's projections, or
    `all-linear`; None means the linear layers of attention and MLP. `convs` adds the convolutions, except at the two
    ends of the denoiser. Raises ValueError for an entry that matches no layer.
    """
    layers = trainable_layers(model)
    found = set()
    for entry in ATTENTION_AND_MLP if entries is None else entries:
        matched = {path for path, layer in layers.items() if _matches(path, layer, entry, by_name=entries is not None)}
        if entries is not None and not matched:
            known = ", ".join(sorted({_tail(path) for path in layers}))
            raise ValueError(f"no layer of {type(model).__name__} is called {entry!r}; its layers end in: {known}")
        found |= matched
    if convs:
        found |= {path for path, layer in layers.items() if is_conv2d(layer) and not _ends_in(path, EDGES)}
    return {path: layer for path, layer in layers.items() if path in found}


def trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear and ungrouped 2D convolution layer whose own forward runs, by module path."""
    layers = {}
    for path, layer in model.named_modules():
        parent = model.get_submodule(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            continue  # it reads the weight of its out_proj and never calls it
        if is_linear(layer) or is_conv2d(layer) and getattr(layer, "groups", 1) == 1:
            layers[path] = layer
    return layers


def _matches(path: str, layer: nn.Module, entry: str, by_name: bool) -> bool:
    if entry == ALL_LINEAR:
        return is_linear(layer)
    return _ends_in(path, _other_names(entry)) and (by_name or is_linear(layer))


def _ends_in(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.endswith("." + name) for name in names)


def _other_names(entry: str) -> tuple[str, ...]:
    for names in ALIASES:
        for name in names:
            if entry == name or entry.endswith("." + name):
                head = entry[:len(entry) - len(name)]
                return tuple(head + other for other in names)
    return (entry,)


def _tail(path: str) -> str:
    """The end of a path that names the kind of layer: from the last part that is not a number."""
    parts = path.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])
