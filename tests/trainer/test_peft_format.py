"""Files that diffusers and peft write are read, files that we write are read by diffusers, and the numbers are equal."""

import copy
import json
from importlib.metadata import version

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hotlora.tests.trainer.tiny_sd import (
    draw,
    kohya_key,
    layer_paths,
    merge,
    random_lora,
    sdxl_key,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_unet,
)
from hotlora.trainer.lora_file import load_lora, save_lora, to_layers
from hotlora.trainer.lora_keys import text_path
from hotlora.trainer.peft_format import export_file, from_peft, is_sdxl, kohya_names, to_peft

pytest.importorskip("peft")
pytest.importorskip("diffusers")

recent_diffusers = pytest.mark.skipif(
    tuple(map(int, version("diffusers").split(".")[:2])) < (0, 35),
    reason="what is compared with: older diffusers writes no settings and reads fewer layers of kohya files",
)
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.2"]
TEXT_TARGETS = ["q_proj", "v_proj", "out_proj", "fc1"]


def adapted(module, targets, **settings):
    """The module with a peft adapter of random weights, as a diffusers training script makes it."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(4)
    config = LoraConfig(target_modules=targets, init_lora_weights=False, **settings)
    module = inject_adapter_in_model(config, copy.deepcopy(module))
    module.peft_config = {"default": config}
    return module


def peft_changes(module) -> dict[str, torch.Tensor]:
    """What peft itself adds to each weight."""
    return {
        path: layer.get_delta_weight("default").detach()
        for path, layer in module.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def assert_changes(layers, component, expected):
    found = {path: layer for (name, path), layer in layers.items() if name == component}
    assert found.keys() == expected.keys()
    for path, layer in found.items():
        change = (layer["up"].flatten(1) @ layer["down"].flatten(1)) * (layer["alpha"] / layer["down"].shape[0])
        torch.testing.assert_close(change.view(expected[path].shape), expected[path], rtol=1e-4, atol=1e-5)


def save_as_a_diffusers_script_does(folder, unet, text, with_settings):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    modules = {"unet": unet, "text_encoder": text}
    settings = _collate_lora_metadata(modules) if with_settings else {}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(text)),
        **settings,
    )
    return folder / "pytorch_lora_weights.safetensors"


@recent_diffusers
@pytest.mark.parametrize(
    "settings, with_settings",
    [
        (dict(r=4, lora_alpha=4), False),
        (dict(r=4, lora_alpha=10), True),
        (dict(r=8, lora_alpha=4, use_rslora=True), True),
        (dict(r=4, lora_alpha=2, rank_pattern={"to_q": 6, "conv1": 2}, alpha_pattern={"to_q": 5, "conv1": 8}), True),
    ],
)
def test_a_file_of_diffusers_training_scripts_has_peft_s_own_numbers(tmp_path, settings, with_settings):
    unet, text = tiny_unet(), tiny_text_encoder()
    peft_unet = adapted(unet, UNET_TARGETS, **settings)
    peft_text = adapted(text, TEXT_TARGETS, **{key: settings[key] for key in settings if "pattern" not in key})
    path = save_as_a_diffusers_script_does(tmp_path, peft_unet, peft_text, with_settings)
    layers = to_layers(load_lora(path)[0], kohya_key, {"unet": unet, "te": text})
    assert_changes(layers, "unet", peft_changes(peft_unet))
    assert_changes(layers, "te", peft_changes(peft_text))


@recent_diffusers
def test_a_dora_of_peft_keeps_its_magnitudes(tmp_path):
    unet, text = tiny_unet(), tiny_text_encoder()
    peft_unet = adapted(unet, ["to_q", "conv1"], r=4, lora_alpha=4, use_dora=True)
    path = save_as_a_diffusers_script_does(tmp_path, peft_unet, adapted(text, TEXT_TARGETS, r=4, lora_alpha=4), False)
    layers = to_layers(load_lora(path)[0], kohya_key, {"unet": unet, "te": text})
    merge({"unet": unet, "te": text}, {key: layer for key, layer in layers.items() if key[0] == "unet"})
    for name, layer in peft_unet.named_modules():
        if hasattr(layer, "get_delta_weight"):
            layer.merge()
    for (component, name), layer in layers.items():
        if component == "unet":
            assert layer["dora_scale"].shape[0] == layer["up"].shape[0] and layer["dora_scale"].numel() == layer["up"].shape[0]
            merged = peft_unet.get_submodule(name).base_layer.weight
            torch.testing.assert_close(unet.get_submodule(name).weight, merged, rtol=1e-4, atol=1e-5)


def test_what_peft_itself_saves_is_read_with_its_settings(tmp_path):
    from peft import LoraConfig, get_peft_model

    for component, module, targets in (("unet", tiny_unet(), UNET_TARGETS), ("te", tiny_text_encoder(), TEXT_TARGETS)):
        torch.manual_seed(4)
        config = LoraConfig(target_modules=targets, r=4, lora_alpha=6, alpha_pattern={targets[0]: 3}, init_lora_weights=False)
        model = get_peft_model(copy.deepcopy(module), config)
        model.save_pretrained(tmp_path / component)
        layers = to_layers(load_lora(tmp_path / component / "adapter_model.safetensors")[0], kohya_key, {component: module})
        assert_changes(layers, component, peft_changes(model.base_model.model))
    (tmp_path / "te" / "adapter_config.json").write_text("[1")
    with pytest.raises(ValueError, match="adapter_config.json is not a JSON object"):
        load_lora(tmp_path / "te" / "adapter_model.safetensors")


def test_the_old_forms_of_diffusers_are_read():
    unet, text = tiny_unet(), tiny_text_encoder()
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    pairs = {
        f"unet.{block}.processor.to_q_lora.": ("unet", f"{block}.to_q"),
        f"unet.{block}.processor.to_out_lora.": ("unet", f"{block}.to_out.0"),
        "unet.mid_block.attentions.0.proj_out.lora.": ("unet", "mid_block.attentions.0.proj_out"),
        "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.": ("te", "encoder.layers.1.self_attn.q_proj"),
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.": ("te", "encoder.layers.1.self_attn.out_proj"),
        "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.": ("te", "encoder.layers.1.mlp.fc1"),
    }
    shapes = {"unet": layer_paths(unet), "te": {text_path(path): shape for path, shape in layer_paths(text).items()}}
    tensors = {}
    for key, (component, path) in pairs.items():
        out, inner, *kernel = shapes[component][text_path(path) if component == "te" else path]
        tensors |= {f"{key}down.weight": torch.randn(2, inner, *kernel), f"{key}up.weight": torch.randn(out, 2, *kernel)}
    layers = to_layers(from_peft(tensors), kohya_key, {"unet": unet, "te": text})
    assert {(component, text_path(path) if component == "te" else path) for component, path in layers} == {
        (component, text_path(path) if component == "te" else path) for component, path in pairs.values()
    }
    assert all(layer["alpha"] == 2.0 for layer in layers.values())


def test_comfyui_s_form_is_read():
    unet, text = tiny_unet(), tiny_text_encoder()
    weights = random_lora({"unet": unet, "te": text})
    from hotlora.trainer.lora_keys import ldm_path, split_prefix

    tensors = {}
    for prefix, layer in weights.items():
        component, path = split_prefix(prefix)
        name = f"diffusion_model.{ldm_path(path)}" if component == "unet" else f"text_encoders.clip_l.transformer.{path}"
        tensors |= {
            f"{name}.lora_down.weight": layer["down"],
            f"{name}.lora_up.weight": layer["up"],
            f"{name}.alpha": torch.tensor(layer["alpha"]),
        }
    layers = to_layers(from_peft(tensors), kohya_key, {"unet": unet, "te": text})
    expected = to_layers(weights, kohya_key, {"unet": unet, "te": text})
    assert layers.keys() == expected.keys()
    assert all(torch.equal(layers[key]["up"], expected[key]["up"]) and layers[key]["alpha"] == 2.0 for key in expected)


def test_damaged_peft_settings_are_an_error():
    tensors = {"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(16, 2, 1, 1)}
    with pytest.raises(ValueError, match="lora_adapter_metadata is not JSON"):
        from_peft(tensors, {"lora_adapter_metadata": "{"})
    with pytest.raises(ValueError, match="'big' as the alpha"):
        from_peft(tensors, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "big"})})
    assert (
        from_peft(tensors, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": None})})["lora_unet_conv_in"]["alpha"] == 2.0
    )


PLAIN, LOCON, ALPHA, DORA = {}, {"conv_rank": 2}, {"alpha": 4.0}, {"dora": True}


@recent_diffusers
@pytest.mark.parametrize(  # diffusers says that it leaves DoRA's magnitudes out of a kohya file
    "form, settings", [(form, settings) for form in ("kohya", "peft") for settings in (PLAIN, LOCON, ALPHA)] + [("peft", DORA)], ids=str
)
def test_diffusers_draws_the_same_picture_from_our_files(tmp_path, form, settings):
    components = {"unet": tiny_unet(), "te": tiny_text_encoder()}
    bare = draw(tiny_pipeline(components["unet"], components["te"]))
    weights = random_lora(components, **settings)
    if settings.get("dora"):  # with transformers 5, diffusers 0.42 leaves the magnitudes of a text encoder out, and says so
        weights = {key: layer for key, layer in weights.items() if key.startswith("lora_unet_")}
    if form == "kohya":  # diffusers' own reader of kohya files knows fewer of the convolutions than the LoRA has
        weights = {
            key: layer
            for key, layer in weights.items()
            if layer["down"].ndim == 2 or "_resnets_" in key and "conv_shortcut" not in key
        }
    save_lora(tmp_path / "x.safetensors", weights, {}, dtype="fp32")
    file = export_file(tmp_path / "x.safetensors", "peft", tmp_path) if form == "peft" else tmp_path / "x.safetensors"

    pipe = tiny_pipeline(copy.deepcopy(components["unet"]), copy.deepcopy(components["te"]))
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    loaded = {
        component: sum(hasattr(layer, "lora_A") for layer in module.modules())
        for component, module in (("unet", pipe.unet), ("te", pipe.text_encoder))
    }
    assert loaded == {component: sum(key.startswith(f"lora_{component}_") for key in weights) for component in loaded}

    merge(components, to_layers(load_lora(file)[0], kohya_key, components))
    ours = draw(tiny_pipeline(components["unet"], components["te"]))
    assert (ours - bare).abs().max() > 0.01
    torch.testing.assert_close(draw(pipe), ours, rtol=0, atol=1e-4)


def test_the_product_survives_the_way_there_and_back(tmp_path):
    components = {"unet": tiny_unet(), "te": tiny_text_encoder()}
    weights = random_lora(components, rank=4, conv_rank=2, alpha=3.0)
    save_lora(tmp_path / "face.safetensors", weights, {"ss_sd_model_name": "base"}, dtype="fp32")
    there = export_file(tmp_path / "face.safetensors", "peft")
    assert there == tmp_path / "face-peft.safetensors"
    back = export_file(there, "kohya", tmp_path / "back" / "face.safetensors")
    found, metadata = load_lora(back)
    assert metadata["ss_sd_model_name"] == "base" and metadata["ss_output_name"] == "face"
    assert found.keys() == weights.keys()
    for key, layer in found.items():
        assert layer["down"].shape[0] == layer["alpha"] == 4  # diffusers before 0.33 takes one rank for all layers
        expected = weights[key]["up"].flatten(1) @ weights[key]["down"].flatten(1) * (3.0 / weights[key]["down"].shape[0])
        torch.testing.assert_close(layer["up"].flatten(1) @ layer["down"].flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_exports_keep_the_type_and_lie_where_they_are_looked_for(tmp_path):
    save_lora(tmp_path / "face.safetensors", random_lora({"unet": tiny_unet()}), {"a": "b"}, dtype="bf16")
    file = export_file(tmp_path / "face.safetensors", "peft", tmp_path / "out")
    assert file == tmp_path / "out" / "pytorch_lora_weights.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["a"] == "b" and opened.metadata()["format"] == "pt"
    assert export_file(file, "kohya", tmp_path / "out") == tmp_path / "out" / "pytorch_lora_weights.safetensors"
    assert (tmp_path / "out" / "pytorch_lora_weights-v1.safetensors").exists()
    with pytest.raises(ValueError, match="the format is 'onnx'; it must be one of kohya, peft"):
        export_file(file, "onnx")
    with pytest.raises(ValueError, match="must end with .safetensors"):
        export_file(file, "kohya", tmp_path / "x.pt")


def test_sdxl_goes_from_the_original_names_to_diffusers_and_back():
    components = {"unet": tiny_unet("sdxl"), "te1": tiny_text_encoder(), "te2": tiny_text_encoder(projection=True)}
    weights = random_lora(components, sdxl_key, conv_rank=2)
    assert is_sdxl(weights) and not is_sdxl(random_lora({"unet": tiny_unet()}))
    tensors = to_peft(weights)
    names = {key.split(".lora_")[0] for key in tensors}
    assert names >= {"unet." + path for path in layer_paths(components["unet"])}
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder", "text_encoder_2"}
    back = kohya_names(from_peft(tensors))
    assert back.keys() == weights.keys()
    assert to_layers(back, sdxl_key, components).keys() == to_layers(weights, sdxl_key, components).keys()


def test_a_dora_per_input_has_no_peft_form():
    weights = {
        "lora_unet_conv_in": {"down": torch.ones(2, 3), "up": torch.ones(4, 2), "alpha": 2.0, "dora_scale": torch.ones(1, 3)}
    }
    with pytest.raises(ValueError, match="DoRA per input"):
        to_peft(weights)


def test_only_names_of_the_sd_family_are_exported():
    for key in ("lora_transformer_x", "lora_unet_double_blocks_0_img_attn_qkv"):
        with pytest.raises(ValueError, match=key):
            to_peft({key: {"down": torch.ones(2, 3), "up": torch.ones(4, 2), "alpha": 2.0}})
