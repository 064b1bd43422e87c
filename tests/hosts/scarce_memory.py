"""What ComfyUI does on a device with little memory, made to happen on a CPU: its own code for it, entered by hand.

On a CPU ComfyUI loads every model in full. A device with little memory gets a part of a model, has the other part streamed layer
by layer through one buffer with the patches added on the way, and loses parts of it whenever another model needs room.
"""
from __future__ import annotations

CALLS = {"streamed": 0, "overwritten": 0, "evicted": 0}


def load_partially(bytes_to_load: int) -> None:
    """Every model is loaded as on a device that has room for so many bytes of it."""
    import comfy.model_management as mm

    from hotlora.trainer.hosts import comfy_layers

    original, is_lent = mm.LoadedModel.model_load, comfy_layers.is_lent

    def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
        return original(self, bytes_to_load, force_patch_weights)

    def is_lent_or_elsewhere(module, device=None):
        # what is not loaded lies on another device, elsewhere than here
        return is_lent(module, device) or device is not None and hasattr(module, "prev_comfy_cast_weights")

    mm.LoadedModel.model_load, comfy_layers.is_lent = model_load, is_lent_or_elsewhere


def hand_out_in_one_buffer() -> None:
    """A streamed weight lies in a buffer that is made in inference mode, filled again for each layer, and spoilt when it is given back."""
    import comfy.ops
    import torch

    cast, uncast, token = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight, object()
    buffers = {}

    def into_buffer(name, x):
        if x is None:
            return None
        place = (name, x.dtype)
        if place not in buffers or buffers[place].numel() < x.numel():
            buffers[place] = torch.empty(x.numel(), dtype=x.dtype)
        shared = buffers[place][:x.numel()].view(x.shape)
        shared.copy_(x)
        return shared

    def cast_bias_weight(s, *args, **kwargs):
        found = cast(s, *args, **kwargs)
        if len(found) < 3 or not hasattr(s, "prev_comfy_cast_weights") or not isinstance(found[0], torch.Tensor) or type(found[0]) not in (torch.Tensor, torch.nn.Parameter):
            return found
        CALLS["streamed"] += 1
        return into_buffer("weight", found[0]), into_buffer("bias", found[1]), token

    def uncast_bias_weight(s, weight, bias, stream):
        if stream is not token:
            return uncast(s, weight, bias, stream)
        CALLS["overwritten"] += 1
        with torch.inference_mode():
            for x in (weight, bias):
                if x is not None:
                    x.fill_(float("nan"))

    comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = cast_bias_weight, uncast_bias_weight


def evict_when_encoding(clip, model) -> None:
    """Each use of the text encoder takes a part of the model's memory, as `free_memory` does where there is not room for both."""
    import torch

    original = clip.load_model

    def load_model(*args, **kwargs):
        if model.model.model_loaded_weight_memory:
            model.partially_unload(torch.device("cpu"), 200 << 20)
            CALLS["evicted"] += 1
        return original(*args, **kwargs)

    clip.load_model = load_model
