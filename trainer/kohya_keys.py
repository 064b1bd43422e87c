"""The settings of kohya sd-scripts and SD-Trainer, in one table: from their key to what becomes of it here."""
from __future__ import annotations

from typing import Any

from .config import SETTINGS
from .kohya_rules import (NOT_GIVEN, Draft, Rule, alpha, caption_extension, dtype, eight_bit, instead, needless, network_module,
                          no_upscale, note_other_defaults, optimizer_args, optimizer_name, pairs, resolution, sample_prompts,
                          save_as, scheduler, settle_learning_rates, settle_length, settle_optimizer, text_encoder_lr, to,
                          v_parameterization, warmup)
from .settings import unknown_key


def translate(values: dict[str, Any], whole_file: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Settings under our own names, and warnings; ValueError for an unknown key, a wrong value or a contradiction.

    A file that holds only our own keys passes through, apart from the forms of `resolution`, `optimizer_args` and
    `lr_warmup_steps` that sd-scripts knows. Without `whole_file`, nothing is said about keys that are not given.
    """
    for key in values:
        if key not in SETTINGS and key not in KOHYA_KEYS:
            raise unknown_key(key, SETTINGS, KOHYA_KEYS)
    draft = Draft(values)
    foreign = any(key not in SETTINGS for key in values)
    for key, value in values.items():
        if not foreign or value not in NOT_GIVEN:
            KOHYA_KEYS.get(key, to(key))(draft, key, value)
    if foreign:
        settle_length(draft)
        settle_optimizer(draft)
        settle_learning_rates(draft)
    if foreign and whole_file:
        note_other_defaults(draft)
    return draft.settings, draft.warnings()


def _network_args(draft: Draft, key: str, value: Any) -> None:
    for name, argument in pairs(key, value).items():
        NETWORK_ARGS.get(name, instead("no equivalent"))(draft, f"{name} in {key}", argument)


def _settled_later(draft: Draft, key: str, value: Any) -> None:
    """Keys whose meaning depends on others: `settle_learning_rates` looks at them when all are known."""


ALGORITHM = instead("HotLoRA trains LoRA, LoCon and DoRA", "lora", "locon")
BLOCKS = instead("name the layers in unet_target_modules")
BY_BASE = needless("read from the base model")
LOGS = instead("logs are written into output_dir, for TensorBoard")
MEMORY = instead("use gradient_checkpointing")
NO_PART = instead("no equivalent")
OFFSET = instead("use noise_offset")
SAVES = instead("use save_steps")
SIZES = instead("use resolution, bucket_step and upscale")
TEXT = instead("write it into a file beside the LoRA; the trigger word and the settings are stored in it")
WORKERS = needless("pictures are prepared before the training")

NETWORK_ARGS: dict[str, Rule] = {
    "conv_dim": to("conv_rank"), "conv_alpha": to("conv_alpha", alpha), "algo": ALGORITHM,
    "dropout": to("lora_dropout"), "dora_wd": to("dora"), "rs_lora": to("rslora"),
    "loraplus_lr_ratio": to("lora_plus_ratio"), "loraplus_unet_lr_ratio": to("lora_plus_ratio"),
    "loraplus_text_encoder_lr_ratio": instead("lora_plus_ratio holds for both"),
    "preset": BLOCKS, "block_dims": BLOCKS, "block_alphas": BLOCKS, "conv_block_dims": BLOCKS, "conv_block_alphas": BLOCKS,
    "block_lr_zero_threshold": BLOCKS, "down_lr_weight": BLOCKS, "mid_lr_weight": BLOCKS, "up_lr_weight": BLOCKS,
    "rank_dropout": instead("use lora_dropout"), "module_dropout": instead("use lora_dropout"),
    "train_norm": NO_PART, "use_tucker": NO_PART, "use_scalar": NO_PART, "factor": ALGORITHM, "decompose_both": ALGORITHM,
    "constraint": ALGORITHM, "rescaled": ALGORITHM,
}

KOHYA_KEYS: dict[str, Rule] = {
    # Base and adapter
    "pretrained_model_name_or_path": to("base_model"), "output_name": to("name"), "network_dim": to("lora_rank"),
    "network_alpha": to("lora_alpha", alpha), "network_dropout": to("lora_dropout"), "network_weights": to("init_lora"),
    "network_module": network_module, "network_args": _network_args, "conv_dim": to("conv_rank"), "dropout": to("lora_dropout"),
    "lycoris_algo": ALGORITHM, "dim_from_weights": needless("init_lora keeps its own rank"), "model_train_type": instead(
        "the kind of the base model is read from its file", "sd-lora", "sdxl-lora"),
    "network_train_unet_only": _settled_later, "network_train_text_encoder_only": instead("the image model is always trained"),
    "stop_text_encoder_training": instead("leave out text_encoder_lr to train the image model alone"),
    "v2": BY_BASE, "v_parameterization": v_parameterization, "sdxl": BY_BASE, "vae": instead("the VAE of the base model is used"),
    "clip_skip": instead("the last text layer that the base model was made for is used", 1, "1"),
    "max_token_length": instead("the base model's own length is used", 75, "75"),
    "tokenizer_cache_dir": needless("the vocabulary comes with HotLoRA"), "no_token_padding": NO_PART,
    "base_weights": instead("use init_lora"), "base_weights_multiplier": instead("use init_lora"),
    "enable_base_weight": instead("use init_lora"), "scale_weight_norms": instead("use weight_decay"),
    "enable_block_weights": BLOCKS, "down_lr_weight": BLOCKS, "mid_lr_weight": BLOCKS, "up_lr_weight": BLOCKS,
    "block_lr_zero_threshold": BLOCKS, "weighted_captions": instead("all words of a caption count the same"),
    # Pictures and captions
    "resolution": resolution, "train_batch_size": to("batch_size"), "enable_bucket": to("bucketing"),
    "bucket_reso_steps": to("bucket_step"), "bucket_no_upscale": no_upscale, "min_bucket_reso": SIZES, "max_bucket_reso": SIZES,
    "num_repeats": to("repeats"), "dataset_repeats": to("repeats"), "flip_aug": to("flip"),
    "color_aug": instead("write an augmentation function"), "face_crop_aug_range": instead("use crops"),
    "random_crop": instead("use crops: 4"), "debug_dataset": instead("use --dry-run"), "shuffle_caption": to("shuffle_tags"),
    "keep_tokens": to("keep_tags"), "keep_tokens_separator": instead("use keep_tags"), "caption_separator": instead(
        "tags are separated by commas", ",", ", "), "secondary_separator": NO_PART, "enable_wildcard": NO_PART,
    "caption_prefix": instead("use trigger"), "caption_suffix": instead("write it into the captions"),
    "caption_extension": caption_extension, "caption_extention": caption_extension, "caption_dropout_rate": to("caption_dropout"),
    "caption_dropout_every_n_epochs": instead("use caption_dropout"), "caption_tag_dropout_rate": instead("use caption_dropout"),
    "token_warmup_min": NO_PART, "token_warmup_step": NO_PART, "in_json": instead("use metadata_path with .csv or .jsonl"),
    "dataset_config": instead("give the folder itself as train_data_dir"), "dataset_class": NO_PART,
    "datasets": instead("give the folder itself as train_data_dir"), "conditioning_data_dir": instead(
        "put name_mask.png beside name.png and set masks"), "masked_loss": to("masks"), "alpha_mask": to("masks"),
    "cache_latents": needless("always on"), "cache_latents_to_disk": needless("always on"), "skip_cache_check": needless("quick"),
    "cache_text_encoder_outputs": needless("on unless the text encoder is trained"), "cache_info": needless("always on"),
    "cache_text_encoder_outputs_to_disk": needless("on unless the text encoder is trained"), "vae_batch_size": needless("chosen"),
    "no_half_vae": needless("chosen by the base model"), "persistent_data_loader_workers": WORKERS,
    "max_data_loader_n_workers": WORKERS,
    # Training
    "max_train_steps": to("steps"), "max_train_epochs": to("epochs"), "unet_lr": _settled_later,
    "text_encoder_lr": text_encoder_lr,
    "optimizer_type": to("optimizer", optimizer_name), "optimizer_args": optimizer_args, "use_8bit_adam": eight_bit,
    "use_lion_optimizer": instead("use optimizer: lion"), "lr_scheduler": to("lr_scheduler", scheduler),
    "lr_warmup_steps": warmup, "lr_scheduler_num_cycles": to("lr_cycles"), "lr_scheduler_power": NO_PART,
    "lr_scheduler_type": instead("use lr_scheduler"), "lr_scheduler_args": instead("use lr_scheduler and lr_cycles"),
    "lr_decay_steps": NO_PART, "lr_scheduler_min_lr_ratio": NO_PART, "lr_scheduler_timescale": NO_PART,
    "prodigy_d0": instead("use optimizer_args: {d0: ...}"), "prodigy_d_coef": instead("use optimizer_args: {d_coef: ...}"),
    "fused_backward_pass": MEMORY, "blocks_to_swap": MEMORY, "fp8_base": MEMORY, "fp8_base_unet": MEMORY, "full_fp16": instead(
        "use mixed_precision: fp16"), "full_bf16": instead("use mixed_precision: bf16"), "deepspeed": MEMORY,
    "cpu_offload_checkpointing": MEMORY, "lowram": MEMORY, "highvram": NO_PART, "lowvram": MEMORY,
    "xformers": needless("the attention of PyTorch is used"), "sdpa": needless("the attention of PyTorch is used"),
    "mem_eff_attn": needless("the attention of PyTorch is used"), "split_attn": needless("the attention of PyTorch is used"),
    "torch_compile": NO_PART, "dynamo_backend": NO_PART, "gpu_ids": instead("use device: cuda:0, cuda:1, ..."),
    "num_cpu_threads_per_process": NO_PART, "multi_gpu": NO_PART, "ddp_timeout": NO_PART,
    "initial_epoch": instead("use --resume"),
    "initial_step": instead("use --resume"), "skip_until_initial_step": instead("use --resume"), "resume": instead(
        "use --resume on the command line"), "validation_split": NO_PART, "validation_seed": NO_PART,
    # Objective
    "debiased_estimation_loss": to("debiased"), "huber_c": to("huber_delta"), "huber_schedule": instead(
        "huber_delta is the same at all noise levels", "constant"), "huber_scale": instead("use huber_delta"),
    "multires_noise_iterations": OFFSET, "multires_noise_discount": OFFSET, "multires_noise": OFFSET,
    "adaptive_noise_scale": OFFSET, "noise_offset_random_strength": OFFSET, "noise_offset_type": instead("use noise_offset", "original"),
    "ip_noise_gamma": NO_PART, "ip_noise_gamma_random_strength": NO_PART, "scale_v_pred_loss_like_noise_pred": instead(
        "use min_snr_gamma"), "v_pred_like_loss": NO_PART, "weighting_scheme": instead("use timestep_sampling"),
    # Output
    "save_every_n_steps": to("save_steps"), "save_every_n_epochs": SAVES, "save_n_epoch_ratio": SAVES,
    "save_last_n_epochs": SAVES,
    "save_last_n_epochs_state": SAVES, "save_last_n_steps": SAVES, "save_last_n_steps_state": SAVES,
    "save_precision": to("save_dtype", dtype), "save_model_as": save_as, "save_state": needless("saved every save_steps"),
    "save_state_on_train_end": needless("always on"), "save_state_to_huggingface": NO_PART, "no_metadata": NO_PART,
    "sample_prompts": sample_prompts, "sample_every_n_steps": to("preview_steps"), "sample_every_n_epochs": instead(
        "use preview_steps"), "sample_at_first": instead("use preview_steps"), "sample_sampler": instead(
        "previews use the sampler of the base model"), "enable_preview": instead("use preview_steps"),
    "positive_prompts": to("preview_prompts"), "negative_prompts": NO_PART, "randomly_choice_prompt": NO_PART,
    "sample_width": NO_PART, "sample_height": NO_PART, "sample_cfg": to("preview_guidance"), "sample_seed": to("preview_seed"),
    "sample_steps": NO_PART, "logging_dir": LOGS, "log_prefix": LOGS, "log_tracker_name": LOGS, "log_tracker_config": LOGS,
    "log_with": instead("logs are written for TensorBoard", "tensorboard"), "log_config": LOGS, "wandb_api_key": LOGS,
    "wandb_run_name": LOGS, "console_log_level": NO_PART, "console_log_file": LOGS, "console_log_simple": NO_PART,
    "training_comment": TEXT, "metadata_title": TEXT, "metadata_author": TEXT, "metadata_description": TEXT,
    "metadata_license": TEXT, "metadata_tags": TEXT, "huggingface_repo_id": NO_PART, "huggingface_token": NO_PART,
    "async_upload": NO_PART, "ui_custom_params": NO_PART, "output_config": NO_PART, "config_file": NO_PART,
}
"""The rule for every key that is known from those trainers; five of the keys are also ours, with more forms of their value."""
