"""Captioning models of the real classes, small and with random weights, saved as a user would have them."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

WORDS = ("a cat dog red blue green circle square star heart on the white black gray beige background photo of picture sitting standing table "
         "striped dotted checkered plain two three ring cross diamond triangle yellow orange purple pink cyan").split()


def blip_folder(folder: Path, seed: int = 0, image_size: int = 32) -> Path:
    """A BLIP captioner with config, tokenizer, preprocessing and safetensors."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    tokenizer = _bert_tokenizer(folder)
    config = BlipConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "max_position_embeddings": 64, "projection_dim": 16, "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
                     "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
                     "encoder_hidden_size": 32},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": image_size, "patch_size": 8},
        projection_dim=16)
    torch.manual_seed(seed)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    _preprocessor(folder, image_size, "BlipImageProcessor")
    return folder


def blip2_folder(folder: Path, seed: int = 0, image_size: int = 32) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    tokenizer = _bert_tokenizer(folder)
    config = Blip2Config(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": image_size, "patch_size": 8},
        qformer_config={"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "encoder_hidden_size": 32},
        text_config={"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "max_position_embeddings": 128, "word_embed_proj_dim": 32, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
        num_query_tokens=4, image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(seed)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    _preprocessor(folder, image_size, "BlipImageProcessor")
    return folder


def clip_shapes(image_size: int = 32, width: int = 64, layers: int = 2, project: int = 48) -> dict:
    """Both towers as transformers' CLIPConfig takes them."""
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    return {"projection_dim": project, "vision_config": {**tower, "image_size": image_size, "patch_size": 8},
            "text_config": {**tower, "vocab_size": 49408, "max_position_embeddings": 24, "bos_token_id": 49406, "eos_token_id": 49407}}


def clip_folder(folder: Path, module=None, seed: int = 0, **shapes) -> Path:
    """A CLIPModel with CLIP's own tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    from hotlora.trainer.hosts.parts import clip_tokenizer

    torch.manual_seed(seed)
    module = module or CLIPModel(CLIPConfig(**clip_shapes(**shapes)))
    module.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    size = module.config.vision_config.image_size
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": size, "do_center_crop": True, "size": {"shortest_edge": size}}))
    return folder


def coca_config(image_size: int = 32) -> dict:
    return {"model_cfg": {
        "embed_dim": 32, "vision_cfg": {"image_size": image_size, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "attentional_pool": True,
                                        "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2, "attn_pooler_heads": 4}, "custom_text": True},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}


def coca_folder(folder: Path, seed: int = 0, as_bin: bool = False) -> Path:
    """A CoCa as open_clip publishes it: config and weights in its own form."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = coca_config()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "configs").mkdir(exist_ok=True)
    name = f"small-coca-{folder.name}"
    (folder / "configs" / f"{name}.json").write_text(json.dumps(config["model_cfg"]))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(seed)
    state = open_clip.create_model(name, pretrained=None).state_dict()
    # some layers begin as zeros, and a decoder of zeros finds every word equally likely
    state = {key: torch.randn(value.shape) * 0.2 if value.is_floating_point() and value.ndim > 1 else value for key, value in state.items()}
    if as_bin:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file({key: value.contiguous().clone() for key, value in state.items()}, str(folder / "open_clip_model.safetensors"))
    return folder


def tagger_folder(folder: Path, side: int = 32) -> Path:
    """An ONNX tagger that answers for what it sees: the mean of blue, green and red as the scores of three tags, and two constants."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    weights = np.zeros((3, 5), dtype=np.float32)
    weights[0, 2], weights[1, 3], weights[2, 4] = 1 / 255, 1 / 255, 1 / 255
    bias = np.array([0.9, 0.2, 0, 0, 0], dtype=np.float32)
    nodes = [helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0), helper.make_node("MatMul", ["mean", "weights"], ["sum"]),
             helper.make_node("Add", ["sum", "bias"], ["output"])]
    graph = helper.make_graph(nodes, "tagger", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", side, side, 3])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 5])],
                              [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias"),
                               numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(folder / "model.onnx"))
    with (folder / "selected_tags.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("tag_id", "name", "category", "count"))
        writer.writerows((i, name, category, 100) for i, (name, category) in enumerate((("safe", 9), ("some_one", 4), ("blue_theme", 0), ("green_theme", 0), (">_<", 0))))
    return folder


def _bert_tokenizer(folder: Path):
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab_file=str(folder / "vocab.txt")) if _takes_file() else BertTokenizer(vocab={w: i for i, w in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]", "<image>"]})
    tokenizer.save_pretrained(folder)
    return tokenizer


def _takes_file() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5


def _preprocessor(folder: Path, size: int, kind: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": kind, "do_resize": True, "size": {"height": size, "width": size}, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]}))
