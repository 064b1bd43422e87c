import pytest
import torch

from hotlora.tests.trainer.tiny_sd import layer_paths, tiny_text_encoder, tiny_unet
from hotlora.trainer.lora_keys import (
    SDXL_LAYOUT,
    UNetLayout,
    diffusers_name,
    diffusers_path,
    key_prefix,
    layout_of,
    ldm_path,
    spellings,
    split_prefix,
    text_path,
)

# LDM spelling and diffusers spelling of the same layer, as the published conversion tables have them.
SD15 = [
    ("input_blocks.0.0", "conv_in"),
    ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
    ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
    ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
    ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
    ("middle_block.1.transformer_blocks.0.ff.net.0.proj", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"),
    ("middle_block.2.out_layers.3", "mid_block.resnets.1.conv2"),
    ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
    ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    ("output_blocks.11.1.transformer_blocks.0.attn2.to_out.0", "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"),
    ("output_blocks.11.0.emb_layers.1", "up_blocks.3.resnets.2.time_emb_proj"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("out.2", "conv_out"),
]
SDXL = [
    ("input_blocks.4.1.transformer_blocks.1.attn1.to_k", "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_k"),
    ("input_blocks.8.1.transformer_blocks.9.ff.net.2", "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2"),
    ("output_blocks.0.1.proj_out", "up_blocks.0.attentions.0.proj_out"),
    ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
    ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    ("label_emb.0.0", "add_embedding.linear_1"),
]


@pytest.mark.parametrize(
    "layout, ldm, diffusers", [(UNetLayout(), *pair) for pair in SD15] + [(SDXL_LAYOUT, *pair) for pair in SDXL]
)
def test_published_names_translate_both_ways(layout, ldm, diffusers):
    assert diffusers_path(ldm, layout) == diffusers
    assert ldm_path(diffusers, layout) == ldm


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_every_layer_translates_as_in_diffusers_own_reader_of_checkpoints(family):
    unet = tiny_unet(family)
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layout = layout_of(path for path, _ in unet.named_modules())
    expected = {
        f"{path}.{kind}": torch.tensor(number) for number, path in enumerate(layer_paths(unet)) for kind in ("weight", "bias")
    }
    checkpoint = {
        f"model.diffusion_model.{ldm_path(path, layout)}.{kind}": expected[f"{path}.{kind}"]
        for path, kind in (name.rsplit(".", 1) for name in expected)
    }
    assert len(checkpoint) == len(expected)
    assert convert_ldm_unet_checkpoint(checkpoint, dict(unet.config)) == expected
    for path in layer_paths(unet):
        assert diffusers_path(ldm_path(path, layout), layout) == path


@pytest.mark.parametrize("family, layout", [("sd15", UNetLayout()), ("sd2", UNetLayout()), ("sdxl", SDXL_LAYOUT)])
def test_the_layout_is_read_from_either_spelling(family, layout):
    paths = [path for path, _ in tiny_unet(family).named_modules()]
    assert layout_of(paths) == layout
    assert layout_of(ldm_path(path, layout) for path in paths) == layout


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_dots_of_a_kohya_key_come_back(family):
    unet = tiny_unet(family)
    layout = layout_of(path for path, _ in unet.named_modules())
    for path in layer_paths(unet):
        for spelled in (path, ldm_path(path, layout)):
            assert split_prefix(f"lora_unet_{spelled.replace('.', '_')}") == ("unet", spelled)
    for component, encoder in (("te", tiny_text_encoder()), ("te2", tiny_text_encoder(projection=True))):
        for path in layer_paths(encoder):
            spelled = text_path(path)
            assert split_prefix(f"lora_{component}_{spelled.replace('.', '_')}") == (component, spelled)


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        (
            "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
            "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
        ),
        ("base_model.model.down_blocks.0.attentions.0.proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder.text_model.encoder.layers.1.self_attn.q_proj", "lora_te_text_model_encoder_layers_1_self_attn_q_proj"),
        ("text_encoder.encoder.layers.1.self_attn.q_proj", "lora_te_text_model_encoder_layers_1_self_attn_q_proj"),
        (
            "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora",
            "lora_te_text_model_encoder_layers_1_self_attn_out_proj",
        ),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc2", "lora_te2_text_model_encoder_layers_31_mlp_fc2"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1", "lora_te2_text_model_encoder_layers_3_mlp_fc1"),
        ("clip_l.transformer.text_model.encoder.layers.3.mlp.fc1", "lora_te_text_model_encoder_layers_3_mlp_fc1"),
    ],
)
def test_every_way_to_write_a_layer_gives_one_key(name, prefix):
    assert key_prefix(name) == prefix


def test_a_key_of_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="lora_transformer_single_blocks_0.*not one of a UNet"):
        split_prefix("lora_transformer_single_blocks_0_linear1")


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_every_layer_of_the_sd_family_has_a_name_in_diffusers(family):
    unet = tiny_unet(family)
    layout = layout_of(path for path, _ in unet.named_modules())
    for path in layer_paths(unet):
        for spelled in (path, ldm_path(path, layout)):
            assert diffusers_name(f"lora_unet_{spelled.replace('.', '_')}") == ("unet", path)
    for component, encoder in (("te", tiny_text_encoder()), ("te1", tiny_text_encoder()), ("te2", tiny_text_encoder(projection=True))):
        for path in layer_paths(encoder):
            assert diffusers_name(f"lora_{component}_{text_path(path).replace('.', '_')}") == (component, text_path(path))


@pytest.mark.parametrize(
    "prefix",
    [
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "lora_unet_transformer_blocks_0_attn_to_q",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
    ],
)
def test_a_layer_of_another_model_has_no_name_in_diffusers(prefix):
    with pytest.raises(ValueError, match=f"'{prefix}' is not one of a Stable Diffusion UNet or its text encoders.*use the kohya form"):
        diffusers_name(prefix)


def test_spellings_of_a_layer_start_with_the_hosts_own():
    found = spellings("unet", "input_blocks.4.1.proj_in", SDXL_LAYOUT, lambda component, path: "own")
    assert found == ["own", "lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in"]
    assert spellings("te", "encoder.layers.0.mlp.fc1", UNetLayout()) == [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_encoder_layers_0_mlp_fc1",
    ]
