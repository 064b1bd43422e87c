"""The trained part: LoRA layers for the layers of a base, attached to it without changing its module tree."""
from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Iterator

import torch
from torch import nn

from .frozen import FrozenForward, has_plain_weight, is_conv2d, is_linear
from .lora_layer import LoRALayer, new_layer
from .lora_tensors import fit_dora_scale
from .targets import find_targets, trainable_layers

Key = tuple[str, str]
"""Component ("unet", "te", "te1", ...) and module path of a layer."""


class LoRAForward:
    """The forward of an attached layer. `before` is the instance's own forward that it covers, None for that of the class."""

    def __init__(self, module: nn.Module, lora: LoRALayer) -> None:
        self.module, self.lora = module, lora
        self.before = module.__dict__.get("forward")
        self.fusable = isinstance(self.before, FrozenForward) and has_plain_weight(module) or self.before is None and FrozenForward.fits(module)

    def __call__(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        lora = self.lora
        if lora.multiplier == 0:
            return self.base(x, *args, **kwargs)
        if self.fusable and lora.dora_scale is None and not (lora.training and lora.dropout) and self._weight_at_hand(x.device):
            return lora.fused(x, self.module)
        y = self.base(x, *args, **kwargs)
        return y + lora.delta(x, self.module).to(y.dtype)

    def _weight_at_hand(self, device: torch.device) -> bool:
        return self.before is None or self.before.has_weight_at_hand(device)

    def base(self, *args, **kwargs) -> torch.Tensor:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def attach(self) -> None:
        self.module.__dict__["forward"] = self

    def detach(self) -> None:
        """Take this out of the layer's chain of forwards; adapters attached later stay on top."""
        top = self.module.__dict__.get("forward")
        if top is self:
            if self.before is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.before
            return
        while isinstance(top, LoRAForward) and top.before is not self:
            top = top.before
        if not isinstance(top, LoRAForward):
            raise RuntimeError(f"cannot detach: something else has replaced the forward of a {type(self.module).__name__} since")
        top.before = self.before


class Adapter(nn.Module):
    """LoRA layers by (component, module path), in float32. `train()` and `eval()` switch the dropout alone.

    Make one with `create` or `from_weights`, then `attach` it to the components that it was made for. Several adapters on one
    base add up. Sessions, previews and prompts use the same object.
    """

    def __init__(self, layers: dict[Key, LoRALayer]) -> None:
        super().__init__()
        self.layers = layers
        for (component, path), layer in layers.items():
            self.add_module(f"{component}/{path}".replace(".", "/"), layer)
        self._attached: list[LoRAForward] = []

    @classmethod
    def create(cls, components: dict[str, nn.Module], targets: dict[str, list[str] | None], *, rank: int, alpha: float,
               dropout: float = 0.0, rslora: bool = False, dora: bool = False, conv_rank: int = 0,
               conv_alpha: float | None = None, seed: int = 0) -> Adapter:
        """A new adapter that changes nothing yet.

        `targets` has the entries of `find_targets` per component: None for attention and MLP, an empty list (or no entry)
        for a component that is not trained. `conv_rank` > 0 adds the convolutions (LoCon), with `conv_alpha` (default:
        conv_rank); without it a convolution that an entry names gets `rank` and `alpha`. Raises ValueError for an entry that
        matches nothing and when nothing is trained.
        """
        layers = {}
        for component, model in components.items():
            entries = targets.get(component, [])
            if entries is not None and not entries:
                continue
            for path, layer in find_targets(model, entries, convs=conv_rank > 0).items():
                conv = is_conv2d(layer) and conv_rank > 0
                layer_rank = conv_rank if conv else rank
                layer_alpha = (conv_rank if conv_alpha is None else conv_alpha) if conv else alpha
                seed_text = f"{seed}/{component}/{path}"
                layers[component, path] = new_layer(layer, layer_rank, layer_alpha, seed_text, rslora, dora, dropout)
        if not layers:
            raise ValueError("no layer to train: name layers in unet_target_modules or text_encoder_target_modules")
        return cls(layers)

    @classmethod
    def from_weights(cls, components: dict[str, nn.Module], weights: dict[Key, dict], dropout: float = 0.0) -> Adapter:
        """An adapter from the layers of a LoRA file: `down`, `up`, `alpha` (default: rank) and, for DoRA, `dora_scale`; in the base's order.

        Ranks and alphas may differ from layer to layer. Raises ValueError for a layer that the base does not have and for
        shapes that do not fit it.
        """
        known = {name: trainable_layers(model) for name, model in components.items()}
        unknown = [f"{component}: {path}" for component, path in weights if path not in known.get(component, {})]
        if unknown:
            raise ValueError(f"the base has no layer for {len(unknown)} of {len(weights)} LoRA layers, "
                             f"e.g. {', '.join(unknown[:3])}; this LoRA was made for another base")
        # safetensors gives the tensors of a file in another order each time, and states and processes know parameters by their place
        ordered = [(name, path) for name, layers in known.items() for path in layers if (name, path) in weights]
        return cls({key: _layer_from(known[key[0]][key[1]], key, weights[key], dropout) for key in ordered})

    def attach(self, components: dict[str, nn.Module]) -> None:
        """Put the LoRA layers over the forwards of the components' layers. Module tree and weights stay as they are."""
        assert not self._attached, "the adapter is attached already"
        modules = {name: dict(model.named_modules()) for name, model in components.items()}
        forwards = [LoRAForward(modules[component][path], layer) for (component, path), layer in self.layers.items()]
        for forward in forwards:
            forward.attach()
        self._attached = forwards

    def detach(self) -> None:
        """Undo `attach`; the base computes bit for bit what it did before. Does nothing when not attached."""
        while self._attached:
            self._attached[-1].detach()
            self._attached.pop()

    @contextmanager
    def attached(self, components: dict[str, nn.Module]) -> Iterator[Adapter]:
        self.attach(components)
        try:
            yield self
        finally:
            self.detach()

    def set_multiplier(self, te: float = 1.0, unet: float = 1.0) -> None:
        """Weight of the change, as in `<lora:name:te:unet>`: `te` for every text encoder, `unet` for the denoiser."""
        for (component, _), layer in self.layers.items():
            layer.multiplier = float(te if component.startswith("te") else unet)

    def parameter_groups(self, learning_rate: float, text_encoder_lr: float | None = None,
                         lora_plus_ratio: float = 1.0) -> list[dict]:
        """Groups for an optimizer, as dictionaries of `params`, `lr` and `name`, one per component.

        With LoRA+ (2402.12354) `up` has a group of its own, `<component>_up`, at `lora_plus_ratio` times the rate.
        """
        groups: dict[str, dict] = {}
        for (component, _), layer in self.layers.items():
            lr = text_encoder_lr if component.startswith("te") and text_encoder_lr is not None else learning_rate
            for name, parameter in layer.named_parameters():
                plus = name == "up" and lora_plus_ratio != 1
                group = f"{component}_up" if plus else component
                rate = lr * lora_plus_ratio if plus else lr
                groups.setdefault(group, {"params": [], "lr": rate, "name": group})["params"].append(parameter)
        return list(groups.values())

    def weights(self) -> dict[Key, dict]:
        """What a LoRA file holds, per layer: `down`, `up`, `alpha` and, for DoRA, `dora_scale`. The tensors are not copied."""
        found = {}
        for key, layer in self.layers.items():
            found[key] = {"down": layer.down.detach(), "up": layer.up.detach(), "alpha": layer.alpha}
            if layer.dora_scale is not None:
                found[key]["dora_scale"] = layer.dora_scale.detach()
        return found


def _layer_from(layer: nn.Module, key: Key, entry: dict, dropout: float) -> LoRALayer:
    if is_linear(layer):
        inputs, outputs, sides = layer.in_features, layer.out_features, ()
    else:
        inputs, outputs, sides = layer.in_channels, layer.out_channels, tuple(layer.kernel_size)
    down, up, magnitude = entry["down"], entry["up"], entry.get("dora_scale")
    rank = down.shape[0]
    down_shape = (rank, inputs, *sides)
    up_shape = (outputs, rank, *[1] * len(sides))
    # a 1x1 convolution in one code is a linear layer in another: the numbers are the same
    fits = (down.shape[1:2] == (inputs,) and down.numel() == math.prod(down_shape)
            and up.shape[:2] == (outputs, rank) and up.numel() == outputs * rank)
    if not fits:
        raise ValueError(f"the LoRA layer {key[0]}: {key[1]} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, "
                         f"the base needs {down_shape} and {up_shape}; this LoRA was made for another base")
    if magnitude is not None:
        magnitude = fit_dora_scale(magnitude, (outputs, inputs, *sides))
        if magnitude is None:
            raise ValueError(f"the DoRA magnitude of {key[0]}: {key[1]} has the shape {tuple(entry['dora_scale'].shape)}; "
                             f"it must be one per input, (1, {inputs}), or one per output, ({outputs}, 1)")
    device = layer.weight.device if isinstance(layer.weight, torch.Tensor) else down.device
    alpha = rank if entry.get("alpha") is None else float(entry["alpha"])
    return LoRALayer(down.reshape(down_shape), up.reshape(up_shape), alpha, magnitude, dropout).to(device)
