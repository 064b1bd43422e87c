import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hotlora.tests.trainer.tiny_sd import kohya_key, layer_paths, random_lora, sdxl_key, tiny_text_encoder, tiny_unet
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.lora_file import build_metadata, load_lora, save_lora, to_file_weights, to_layers
from hotlora.trainer.lora_keys import SDXL_LAYOUT, diffusers_path, layout_of, ldm_path

Q, CONV = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", "lora_unet_mid_block_resnets_0_conv1"


def small(value: float = 0.5) -> dict[str, dict]:
    torch.manual_seed(0)
    return {
        Q: {"down": torch.randn(4, 6) * value, "up": torch.randn(8, 4), "alpha": 4 * 2**0.5},
        CONV: {
            "down": torch.randn(2, 3, 3, 3),
            "up": torch.randn(5, 2, 1, 1),
            "alpha": 1.0,
            "dora_scale": torch.rand(5, 1, 1, 1),
        },
    }


def assert_same(first: dict, second: dict, tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for prefix, layer in first.items():
        assert layer.keys() == second[prefix].keys()
        for part, value in layer.items():
            torch.testing.assert_close(
                torch.as_tensor(second[prefix][part]).float(), torch.as_tensor(value).float(), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 0.0), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_what_is_saved_comes_back(tmp_path, dtype, tolerance):
    path = tmp_path / "new folder" / "我的 face.safetensors"
    assert save_lora(path, small(), {"ss_tag_frequency": '{"脸": {"a": 1}}'}, dtype) is None
    weights, metadata = load_lora(path)
    assert_same(small(), weights, tolerance)
    assert weights[Q]["alpha"] == pytest.approx(4 * 2**0.5, abs=1e-6)
    assert metadata["ss_tag_frequency"] == '{"脸": {"a": 1}}'
    assert metadata["ss_output_name"] == "我的 face"
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_the_safetensors_library_reads_the_file_as_kohya_writes_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_lora(path, small(), {"a": "b"})
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {
            f"{Q}.lora_down.weight",
            f"{Q}.lora_up.weight",
            f"{Q}.alpha",
            f"{CONV}.lora_down.weight",
            f"{CONV}.lora_up.weight",
            f"{CONV}.alpha",
            f"{CONV}.dora_scale",
        }
        assert file.get_tensor(f"{Q}.lora_down.weight").dtype == torch.float16
        assert file.get_tensor(f"{Q}.alpha").shape == ()
        stated = file.metadata()["sshs_model_hash"]
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert (8 + header) % 8 == 0
    assert stated == hashlib.sha256(data[8 + header :]).hexdigest()


def test_equal_input_gives_equal_bytes(tmp_path):
    metadata = {f"key{number}": str(number) for number in range(30)}
    save_lora(tmp_path / "a" / "x.safetensors", small(), metadata)
    save_lora(tmp_path / "b" / "x.safetensors", small(), dict(reversed(metadata.items())))
    assert (tmp_path / "a" / "x.safetensors").read_bytes() == (tmp_path / "b" / "x.safetensors").read_bytes()


def test_an_existing_file_is_kept_under_a_new_name(tmp_path):
    path = tmp_path / "face.safetensors"
    kept = [save_lora(path, small(value), {"value": str(value)}) for value in (0.1, 0.2, 0.3)]
    assert kept == [None, tmp_path / "face-v1.safetensors", tmp_path / "face-v2.safetensors"]
    values = {path.stem: load_lora(path)[1]["value"] for path in tmp_path.iterdir()}
    assert values == {"face-v1": "0.1", "face-v2": "0.2", "face": "0.3"}
    assert save_lora(path, small(), {}, keep_old=False) is None
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_that_do_not_fit_are_not_written(tmp_path):
    weights = small()
    weights[Q]["up"] = weights[Q]["up"] * 1e6
    with pytest.raises(ValueError, match=f"{Q} has numbers up to .* too large for torch.float16; set save_dtype to bf16 or fp32"):
        save_lora(tmp_path / "x.safetensors", weights, {})
    save_lora(tmp_path / "wide.safetensors", weights, {}, "bf16")
    weights[Q]["up"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{Q} has NaN or infinite numbers and is not saved"):
        save_lora(tmp_path / "x.safetensors", weights, {}, "fp32")
    with pytest.raises(ValueError, match="save_dtype is 'int8'; it must be one of fp16, bf16, fp32"):
        save_lora(tmp_path / "x.safetensors", small(), {}, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


# --- what cannot be used is refused with the reason ---


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.bin", "x.PTH"])
def test_pickles_are_refused_unopened(tmp_path, name):
    with pytest.raises(ValueError, match="is a pickle, which can run any program"):
        load_lora(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*x.safetensors"):
        load_lora(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is a folder; name the .safetensors file in it"):
        load_lora(tmp_path)


@pytest.mark.parametrize(
    "key, reason",
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.diff", "full weight differences"),
        ("unet.conv_in.lora_B.bias", "LoRA with biases"),
        ("bundle_emb.a.string_to_param.*", "textual inversion"),
        ("model.diffusion_model.input_blocks.0.0.weight", "it is not a LoRA: 1 tensors such as model.diffusion_model"),
        ("lora_unet_x.lora_down.weight", "lora_unet_x has no lora_up"),
        ("lora_unet_x.alpha", "lora_unet_x has no lora_down"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(tmp_path, key, reason):
    save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors cannot be used as a LoRA") as error:
        load_lora(tmp_path / "x.safetensors")
    assert reason in str(error.value)


def test_pairs_that_are_none_are_refused(tmp_path):
    def loaded(**parts):
        save_file(
            {f"lora_unet_x.{name.replace('__', '.')}": tensor for name, tensor in parts.items()}, tmp_path / "x.safetensors"
        )
        return load_lora(tmp_path / "x.safetensors")

    pair = dict(lora_down__weight=torch.ones(2, 3), lora_up__weight=torch.ones(4, 2))
    assert loaded(**pair)[0]["lora_unet_x"]["alpha"] == 2.0
    for change, reason in [
        (dict(lora_up__weight=torch.ones(4, 3)), "are no LoRA pair"),
        (dict(lora_down__weight=torch.ones(2)), "are no LoRA pair"),
        (dict(lora_down__weight=torch.ones(0, 3), lora_up__weight=torch.ones(4, 0)), "are no LoRA pair|is damaged"),
        (dict(alpha=torch.ones(2)), "an alpha of 2 numbers"),
        (dict(lora_up__weight=torch.full((4, 2), float("nan"))), "NaN or infinite numbers in up"),
        (dict(lora_mid__weight=torch.ones(2, 2)), "lora_mid of shape"),
    ]:
        with pytest.raises(ValueError, match=reason):
            loaded(**{**pair, **change})


def test_a_damaged_file_never_gives_anything_but_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_lora(path, small(), {"a": "b"})
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="x.safetensors is damaged"):
            load_lora(path)


@settings(max_examples=300, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), garbage=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path_factory, position, flip, garbage):
    folder = tmp_path_factory.mktemp("bytes")
    save_lora(folder / "x.safetensors", small(), {})
    data = bytearray((folder / "x.safetensors").read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[int(position * header)] ^= flip
    for content in (bytes(data), garbage, len(garbage).to_bytes(8, "little") + garbage):
        (folder / "y.safetensors").write_bytes(content)
        try:
            weights, _ = load_lora(folder / "y.safetensors")
        except ValueError as error:
            assert "y.safetensors" in str(error)
        else:
            assert weights


def test_a_locon_in_tucker_form_is_the_same_convolution(tmp_path):
    torch.manual_seed(0)
    down, mid, up = torch.randn(3, 6, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(8, 3, 1, 1)
    save_file(
        {f"{CONV}.lora_down.weight": down, f"{CONV}.lora_mid.weight": mid, f"{CONV}.lora_up.weight": up},
        tmp_path / "x.safetensors",
    )
    layer = load_lora(tmp_path / "x.safetensors")[0][CONV]
    x = torch.randn(1, 6, 5, 5)
    conv = nn.functional.conv2d
    torch.testing.assert_close(
        conv(conv(x, layer["down"], padding=1), layer["up"]), conv(conv(conv(x, down), mid, padding=1), up), rtol=1e-4, atol=1e-4
    )


# --- from keys to layers ---


def ldm_tree(unet: nn.Module) -> nn.Module:
    """The same layers as modules with the original code's names, as A1111 and ComfyUI hold them."""
    layout = layout_of(path for path, _ in unet.named_modules())
    root = nn.Module()
    for path in layer_paths(unet):
        place = root
        *parents, name = ldm_path(path, layout).split(".")
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, nn.Module())
            place = place._modules[parent]
        place.add_module(name, unet.get_submodule(path))
    return root


@pytest.mark.parametrize("family, lora_key", [("sd15", kohya_key), ("sd2", kohya_key), ("sdxl", sdxl_key)])
def test_every_layer_is_found_in_either_kind_of_tree_under_either_name(family, lora_key):
    unet = tiny_unet(family)
    layout = layout_of(path for path, _ in unet.named_modules())
    texts = (
        {"te1": tiny_text_encoder(), "te2": tiny_text_encoder(projection=True)}
        if family == "sdxl"
        else {"te": tiny_text_encoder()}
    )
    paths = {
        (name, path)
        for name, module in {"unet": unet, **texts}.items()
        for path in layer_paths(module)
        if not path.endswith("text_projection")
    }
    for tree, native in ((unet, lambda path: path), (ldm_tree(unet), lambda path: ldm_path(path, layout))):
        for file_key in (
            kohya_key,
            lambda component, path: kohya_key(component, ldm_path(path, layout) if component == "unet" else path),
        ):
            weights = random_lora({"unet": unet, **texts}, file_key, conv_rank=2)
            layers = to_layers(weights, lora_key, {"unet": tree, **texts})
            assert set(layers) == {(name, native(path) if name == "unet" else path) for name, path in paths}
            for component, path in paths:
                found = layers[component, native(path) if component == "unet" else path]
                assert torch.equal(found["down"], weights[file_key(component, path)]["down"])
    assert (
        to_file_weights(layers, lambda component, path: kohya_key(component, diffusers_path(path, layout))).keys()
        == random_lora({"unet": unet, **texts}, conv_rank=2).keys()
    )


def test_a_lora_for_another_base_is_refused_with_examples():
    sdxl = random_lora({"unet": tiny_unet("sdxl")}, sdxl_key)
    with pytest.raises(
        ValueError, match=r"\d+ of \d+ layers of the LoRA are not in my base, for example lora_unet_\w+, .*another kind of base"
    ):
        to_layers(sdxl, kohya_key, {"unet": tiny_unet("sd15")}, "my base")
    wide = {"lora_unet_conv_in": {"down": torch.ones(2, 9, 3, 3), "up": torch.ones(16, 2, 1, 1), "alpha": 2.0}}
    with pytest.raises(
        ValueError, match=r"lora_unet_conv_in of the LoRA maps \(9, 3, 3\) to 16, in my base it maps \(4, 3, 3\) to 16"
    ):
        to_layers(wide, kohya_key, {"unet": tiny_unet("sd15")}, "my base")


def test_one_layer_under_two_names_is_refused():
    unet = tiny_unet("sd15")
    weights = random_lora({"unet": unet})
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights["lora_unet_" + ldm_path(path).replace(".", "_")] = weights[kohya_key("unet", path)]
    with pytest.raises(ValueError, match=f"has layer unet.{path} twice"):
        to_layers(weights, kohya_key, {"unet": unet})


def test_linear_and_1x1_weights_fit_each_other():
    sd15, sd2 = tiny_unet("sd15"), tiny_unet("sd2")
    path = "mid_block.attentions.0.proj_in"
    for source, target, shape in ((sd15, sd2, (3, 32)), (sd2, sd15, (3, 32, 1, 1))):
        weights = {
            key: layer
            for key, layer in random_lora({"unet": source}, rank=3, conv_rank=3, dora=True).items()
            if key == kohya_key("unet", path)
        }
        layer = to_layers(weights, kohya_key, {"unet": target})["unet", path]
        assert layer["down"].shape == shape
        assert layer["up"].flatten(1).shape == (32, 3) and layer["up"].ndim == len(shape)
        assert layer["dora_scale"].shape == (32, 1, *shape[2:])


def test_dora_per_input_stays_per_input():
    unet = tiny_unet("sd15")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    inside = layer_paths(unet)[path][1]
    weights = {
        kohya_key("unet", path): {
            "down": torch.ones(2, inside),
            "up": torch.ones(16, 2),
            "alpha": 1.0,
            "dora_scale": torch.ones(1, inside),
        }
    }
    assert to_layers(weights, kohya_key, {"unet": unet})["unet", path]["dora_scale"].shape == (1, inside)
    weights[kohya_key("unet", path)]["dora_scale"] = torch.ones(7)
    with pytest.raises(ValueError, match="dora_scale of shape"):
        to_layers(weights, kohya_key, {"unet": unet})


def test_layers_are_known_by_their_features_and_not_by_their_class():
    class LinearOfAHost(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features, self.weight = 6, 8, None

    root = nn.Module()
    root.add_module("to_q", LinearOfAHost())
    layers = to_layers(
        {"lora_unet_to_q": {"down": torch.ones(2, 6), "up": torch.ones(8, 2), "alpha": 2.0}}, kohya_key, {"unet": root}
    )
    assert list(layers) == [("unet", "to_q")]


# --- metadata ---


@pytest.mark.parametrize(
    "family, prediction, version, is_v2",
    [
        ("sd15", "eps", "sd_v1", "False"),
        ("sd2", "eps", "sd_v2", "True"),
        ("sd2", "v", "sd_v2_768_v", "True"),
        ("sdxl", "eps", "sdxl_base_v1-0", "False"),
        ("demo", "eps", "hotlora_demo", "False"),
        ("sdxlrefiner", "eps", "sdxlrefiner", "False"),
    ],
)
def test_metadata_says_what_hosts_look_for(tmp_path, family, prediction, version, is_v2):
    config = TrainConfig.from_dict(
        {
            "train_data_dir": "/home/anna/pictures of me",
            "base_model": "C:\\models\\base.safetensors",
            "lora_rank": 8,
            "conv_rank": 4,
            "steps": 300,
            "rslora": True,
        }
    )
    metadata = build_metadata(
        config,
        name="face",
        family=family,
        prediction=prediction,
        base_hash="ab" * 32,
        base_name="base",
        trigger="sks 脸",
        tag_counts={"sks 脸": 12, "smile": 3},
        steps=300,
        epochs=25,
        pictures=12,
        resolution=512,
        started_at=0.0,
        finished_at=60.0,
    )
    save_lora(tmp_path / "face.safetensors", small(), metadata)
    metadata = load_lora(tmp_path / "face.safetensors")[1]
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, is_v2)
    assert (metadata["ss_network_module"], metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (
        "networks.lora",
        "8",
        "8",
    )
    assert json.loads(metadata["ss_tag_frequency"]) == {"face": {"sks 脸": 12, "smile": 3}}
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4", "rs_lora": "True"}
    assert (metadata["ss_steps"], metadata["ss_epoch"], metadata["ss_num_train_images"], metadata["ss_new_sd_model_hash"]) == (
        "300",
        "25",
        "12",
        "ab" * 32,
    )
    assert metadata["modelspec.trigger_phrase"] == metadata["hotlora.trigger"] == "sks 脸"
    assert metadata["modelspec.date"] == "1970-01-01T00:01:00"
    assert metadata["modelspec.architecture"].endswith("/lora")
    config_kept = json.loads(metadata["hotlora.config"])
    assert (config_kept["train_data_dir"], config_kept["base_model"], config_kept["lora_rank"]) == (
        "pictures of me",
        "base.safetensors",
        8,
    )
    assert not any("anna" in value or "models" in value for value in metadata.values())


def test_metadata_leaves_out_what_is_not_known():
    metadata = build_metadata(TrainConfig.from_dict({"train_data_dir": "x"}), name="face", family="demo")
    assert not {"ss_epoch", "ss_resolution", "hotlora.trigger", "ss_network_args", "ss_sd_model_name"} & metadata.keys()
    assert "None" not in metadata.values()


def test_sdxl_layout_of_the_real_model():
    assert layout_of(path for path, _ in tiny_unet("sdxl").named_modules()) == SDXL_LAYOUT
