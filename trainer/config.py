"""TrainConfig: every setting of a training run, each defined once with its default, range, unit and one help sentence.

The field metadata is the one source for validation, `--help`, the tooltips and the table in the README. Reading a file
(YAML, TOML, JSON, keys of other trainers) is the work of `config_files.py`.
"""
from __future__ import annotations

from dataclasses import dataclass

from .caption_choices import PURPOSES
from .names import check_name
from .settings import CheckedSettings, Setting, setting

LR_SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion")
PATH = r"(?s).*\S.*"
FUNCTION = r".+:[^\W\d]\w*"
FUNCTION_FORM = "package.module:function or path/to/file.py:function"


@dataclass
class TrainConfig(CheckedSettings):
    """Every setting of one run. Making one (also by `dataclasses.replace`) checks it: ValueError names what is wrong."""

    EXAMPLES = {"train_data_dir": "path/to/my/pictures"}

    # Pictures and captions
    train_data_dir: str = setting(pattern=PATH, form="a path", help=(
        "Folder with your pictures; sub-folders are read too and nothing in it is ever changed, except for captions that auto_caption adds."))
    metadata_path: str | None = setting(None, form="a path", help=(
        "A metadata.csv or metadata.jsonl file with the captions; empty means the one in the picture folder, if there is one."))
    trigger: str = setting("", help="The word that calls up what was learned; it is put first in every caption that lacks it.")
    purpose: str = setting("any", choices=PURPOSES, help=(
        "What is learned; captions that are made leave out the looks of a person, character or object, and the style of a style."))
    auto_caption: bool = setting(True, help=(
        "Make captions for pictures that have none before training, if a captioning model is on this machine; they are marked and can be undone."))
    caption_model: str | None = setting(None, form="a name or a path", help=(
        "The model for captions: blip-base, blip-large, coca, ..., a folder or a file; empty takes one that is on this machine already."))
    leave_out: list[str] = setting([], help="Pictures that are not used, by their names in the folder, such as [blurred.jpg, sub/copy.png].")
    resolution: int | None = setting(None, minimum=32, maximum=4096, unit="pixels", help=(
        "Side of the square whose area the training pictures get; empty means the base model's own size."))
    bucketing: bool = setting(True, help=(
        "Keep each picture's shape by sorting pictures into groups of similar shape; off cuts all of them to squares."))
    bucket_step: int = setting(64, minimum=8, maximum=512, multiple=8, unit="pixels", help=(
        "Width and height of training pictures are multiples of this number."))
    upscale: bool = setting(False, help=(
        "Enlarge pictures that are smaller than the resolution instead of training them at their own size."))
    crops: int = setting(1, minimum=1, maximum=64, unit="cuts", help=(
        "How many cuts of each picture are prepared; more adds variety."))
    flip: bool = setting(False, help=(
        "Also train on mirrored pictures; leave it off for faces, text and anything with a left and a right."))
    repeats: int = setting(1, minimum=1, maximum=10000, unit="times per epoch", help=(
        "How often each picture is seen in one epoch; a folder name such as 10_name multiplies it."))
    caption_dropout: float = setting(0.05, minimum=0, maximum=1, unit="share", help=(
        "Share of training samples that are shown without their caption, which keeps guidance working."))
    shuffle_tags: bool = setting(False, help="Put the comma-separated tags of a caption into a new order each time.")
    keep_tags: int = setting(0, minimum=0, maximum=1000, unit="tags", help=(
        "How many tags at the start of a caption stay in place when tags are shuffled."))
    reg_data_dir: str | None = setting(None, form="a path", help=(
        "Folder with pictures of the general kind (any dog, say, for your dog), which the model should not forget."))
    prior_loss_weight: float = setting(1.0, minimum=0, maximum=100, help=(
        "How much the pictures of reg_data_dir count compared with your own; 1 is the same."))
    class_word: str = setting("", help=(
        "The word for what the trigger word is one of, such as woman, dog or house; it says what must stay as the base model has it."))
    preservation_weight: float = setting(0.0, minimum=0, maximum=100, help=(
        "Keeps the class as the base model draws it (differential output preservation), at more than twice the time of a step; 1 is usual, 0 is off."))
    masks: bool = setting(False, help=(
        "Train only on the part of a picture that its transparency or its name_mask.png marks as visible."))
    max_megapixels: float = setting(180.0, above=0, maximum=180, unit="million pixels", help=(
        "Pictures with more pixels than this are skipped, because opening them can fill the memory."))

    # Base and adapter
    base_model: str = setting("demo", pattern=PATH, form="demo or a path", help=(
        "The model to train on: a .safetensors file, a diffusers folder, or demo for the small one that comes with HotLoRA."))
    init_lora: str | None = setting(None, form="a path", help="A LoRA file to continue from; its own rank and alpha are kept.")
    name: str | None = setting(None, help=(
        "Name of the LoRA, as used in <lora:name:1>; empty means the name of the picture folder."))
    lora_rank: int = setting(16, minimum=1, maximum=1024, help=(
        "Size of the LoRA; more holds more detail and makes a larger file."))
    lora_alpha: float | None = setting(None, above=0, maximum=8192, help=(
        "Strength of the LoRA in relation to its rank; empty means the same number as the rank."))
    lora_dropout: float = setting(0.0, minimum=0, below=1, unit="share", help=(
        "Share of LoRA inputs that are left out at random in each step, against learning by heart."))
    rslora: bool = setting(False, help="Scale by the square root of the rank, which keeps large ranks stable.")
    dora: bool = setting(False, help="Train DoRA, which learns strength and direction of each layer apart and is slower.")
    lora_plus_ratio: float = setting(1.0, minimum=1, maximum=1000, help=(
        "How many times faster the second half of each LoRA layer learns (LoRA+); 1 is plain LoRA, 16 is usual for LoRA+."))
    conv_rank: int = setting(0, minimum=0, maximum=1024, help="Rank for the convolution layers too (LoCon); 0 leaves them out.")
    conv_alpha: float | None = setting(None, above=0, maximum=8192, help=(
        "Strength of the convolution layers in relation to conv_rank; empty means the same number as conv_rank."))
    unet_target_modules: list[str] | None = setting(None, words=True, help=(
        "Layers of the image model to train, such as q_proj and v_proj; empty means attention and MLP layers."))
    text_encoder_target_modules: list[str] | None = setting(None, words=True, help=(
        "Layers of the text encoder to train, such as q_proj and v_proj; empty means that it is not trained."))

    # Training
    steps: int | None = setting(None, minimum=1, maximum=10_000_000, unit="steps", help=(
        "Length of the training; empty lets the number of pictures decide."))
    epochs: int | None = setting(None, minimum=1, maximum=1_000_000, unit="epochs", help=(
        "Length of the training in passes over all pictures; give this or steps, not both."))
    batch_size: int = setting(1, minimum=1, maximum=1024, unit="pictures", help=(
        "How many pictures are trained at the same time; more is smoother and needs more memory."))
    gradient_accumulation_steps: int = setting(1, minimum=1, maximum=10000, unit="batches", help=(
        "How many batches are added up for one step: the effect of a larger batch without its memory."))
    learning_rate: float = setting(1e-4, above=0, maximum=10, help=(
        "How far each step changes the LoRA; lower it when pictures look burnt, use 1 with prodigy."))
    text_encoder_lr: float | None = setting(None, above=0, maximum=10, help=(
        "Learning rate of the text encoder; empty means the same as learning_rate."))
    lr_scheduler: str = setting("cosine", choices=LR_SCHEDULERS, help=(
        "How the learning rate changes during the run; inverse_sqrt starts high and falls more and more slowly, whatever the number of steps."))
    lr_warmup_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "During this many first steps the learning rate rises from 0 to its full value."))
    lr_cycles: int = setting(1, minimum=1, maximum=1000, unit="cycles", help=(
        "How often cosine_with_restarts starts over; other schedules do not use it."))
    optimizer: str = setting("adamw", choices=OPTIMIZERS, pattern=r"[^\W\d]\w*(\.[^\W\d]\w*)+", form="package.Class", help=(
        "The rule that changes the LoRA: adamw, adamw8bit, prodigy, adafactor, lion, or package.Class for any other."))
    optimizer_args: dict = setting({}, help="More arguments for the optimizer, such as {betas: [0.9, 0.99]}.")
    weight_decay: float = setting(0.01, minimum=0, maximum=100, help="How strongly large LoRA weights are pulled back to zero.")
    max_grad_norm: float = setting(1.0, minimum=0, maximum=1_000_000, help=(
        "Limit for the size of one change, which protects from a bad step; 0 switches the limit off."))
    ema_decay: float = setting(0.0, minimum=0, below=1, help=(
        "Save a running average of the weights instead of the last ones; 0 is off, 0.99 is usual."))
    mixed_precision: str = setting("auto", choices=("auto", "no", "fp16", "bf16"), help=(
        "Number format for computing; auto takes bf16 on graphics cards that have it, and fp16 on older ones with a base in fp16."))
    gradient_checkpointing: bool = setting(False, help="Needs much less memory and makes a step about half as slow again.")
    seed: int = setting(0, minimum=0, maximum=2**63 - 1, help="Start of all random numbers; the same seed gives the same run.")
    device: str = setting("auto", pattern=PATH, form="auto or a device of torch", help=(
        "Where to compute: auto, cuda, cuda:1, mps, xpu or cpu."))

    # Objective
    min_snr_gamma: float | None = setting(5.0, minimum=0, maximum=1000, help=(
        "Counts nearly clean pictures less (min-SNR), which learns faster; 5 is usual, 0 or null is off."))
    debiased: bool = setting(False, help="Weight the loss by 1 / sqrt(SNR) (debiased estimation) instead of min-SNR.")
    noise_offset: float = setting(0.0, minimum=0, maximum=1, help=(
        "Adds noise of equal brightness, so that very dark and very bright pictures can be learned; 0.05 is usual."))
    zero_terminal_snr: bool = setting(False, help="Train up to pure noise for real black and white; only for v-prediction bases.")
    loss_type: str = setting("l2", choices=("l2", "huber"), help=(
        "How errors count: l2 is usual, huber counts large ones less, which helps with faulty pictures."))
    huber_delta: float = setting(0.1, above=0, maximum=1000, help=(
        "Errors above this count linearly instead of squared; used by the huber loss only."))
    timestep_sampling: str = setting("auto", choices=("auto", "uniform", "logit_normal"), help=(
        "Which noise levels are trained most; auto takes logit_normal for flow models and uniform for others."))
    min_timestep: int = setting(0, minimum=0, maximum=999, help="Lowest noise level to train, of 1000 levels; 0 is nearly clean.")
    max_timestep: int = setting(1000, minimum=1, maximum=1000, help="Noise levels below this are trained, of 1000 levels.")

    # When to stop
    validation: bool = setting(False, help=(
        "From 12 pictures on, hold a tenth of them back and measure on them what is learned; the LoRA of the best step becomes the result."))
    early_stop: bool = setting(True, help=(
        "With validation: end the run when more than a third of what was learned about the held-out pictures is lost again; where none are held out, when prior drift no longer rises."))

    # Output
    output_dir: str = setting("output", pattern=PATH, form="a path", help=(
        "Folder for the LoRA, the saved states, the previews and the logs."))
    lora_dir: str | None = setting(None, form="a path", help=(
        "Another folder for the LoRA files alone, such as the one where your WebUI looks for them; empty means output_dir."))
    save_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "Save the LoRA and the state to go on from every this many steps; 0 saves at the end only."))
    state_minutes: float = setting(2.0, minimum=0, maximum=100_000, unit="minutes", help=(
        "After a crash a run goes on from a state that is at most about this old; 0 keeps only those of save_steps."))
    save_dtype: str = setting("fp16", choices=("fp16", "bf16", "fp32"), help=(
        "Number format of the LoRA file; fp16 is read everywhere, fp32 is twice as large."))
    save_format: str = setting("kohya", choices=("kohya", "peft", "both"), help=(
        "Form of the LoRA file: kohya for ComfyUI and stable-diffusion-webui, peft for diffusers, or both."))
    preview_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "Draw preview pictures every this many steps; 0 draws none."))
    preview_prompts: list[str] = setting([], help="Prompts of the preview pictures; empty means the trigger word or a caption.")
    preview_seed: int = setting(0, minimum=0, maximum=2**63 - 1, help=(
        "Start of the random numbers of previews, kept the same so that previews can be compared."))
    preview_guidance: float | None = setting(None, minimum=0, maximum=100, help=(
        "How closely previews follow their prompt; empty means the base model's own value."))
    tensorboard: bool = setting(True, help="Write loss, learning rate and previews for TensorBoard where it is installed.")
    cache_dir: str | None = setting(None, form="a path", help=(
        "Folder for prepared pictures and captions; empty means output_dir/cache."))
    log_every: int = setting(10, minimum=1, maximum=1_000_000, unit="steps", help="How often loss and speed are logged.")

    # Your own code
    augmentation: str | None = setting(None, pattern=FUNCTION, form=FUNCTION_FORM, help=(
        "Your own function that changes each picture: package.module:function or path/to/file.py:function."))
    loss_term: str | None = setting(None, pattern=FUNCTION, form=FUNCTION_FORM, help=(
        "Your own function whose value is added to the loss: package.module:function or path/to/file.py:function."))

    def validate(self) -> None:
        """Convert every value to its type and check ranges and combinations; ValueError names the first that is wrong."""
        super().validate()
        if self.min_snr_gamma == 0:
            self.min_snr_gamma = None
        if self.name is not None:
            check_name(self.name)
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}, but only one of them can set the length of the "
                             "training; remove one")
        if self.preservation_weight and not self.trigger.strip():
            raise ValueError(f"preservation_weight is {self.preservation_weight:g}, which needs a trigger word to tell what is learned from what stays; "
                             "set trigger, or remove it")
        if self.masks and self.augmentation:
            raise ValueError(f"masks is true and augmentation is {self.augmentation!r}, but a function that moves or turns a picture leaves its mask where "
                             "it was; set masks: false, or remove augmentation")
        if self.min_timestep >= self.max_timestep:
            raise ValueError(f"min_timestep is {self.min_timestep} but must be below max_timestep, which is {self.max_timestep}; "
                             "lower the first or raise the second")
        if self.dora and self.save_format != "kohya":
            raise ValueError(f"dora is true and save_format is {self.save_format}, but PEFT's form cannot hold a DoRA as ComfyUI and A1111 read it; "
                             "set save_format: kohya, or dora: false")
        for name in ("lr", "weight_decay"):
            if name in self.optimizer_args:
                raise ValueError(f"optimizer_args has {name}, which has a setting of its own; move its value to "
                                 f"{'learning_rate' if name == 'lr' else name}")


def without_effect(config: TrainConfig) -> list[str]:
    """One sentence for each setting that was changed although another one switches it off."""
    def changed(name: str) -> bool:
        return getattr(config, name) != SETTINGS[name].default

    rules = (("text_encoder_lr", not config.text_encoder_target_modules, "set text_encoder_target_modules to train it too"),
             ("keep_tags", not config.shuffle_tags, "set shuffle_tags: true, or remove it"),
             ("prior_loss_weight", config.reg_data_dir is None, "set reg_data_dir, or remove it"),
             ("class_word", not (config.preservation_weight or config.validation), "set preservation_weight or validation, or remove it"),
             ("lora_rank", config.init_lora is not None, "the LoRA of init_lora keeps its own rank"),
             ("lora_alpha", config.init_lora is not None, "the LoRA of init_lora keeps its own alpha"),
             ("rslora", config.init_lora is not None, "the LoRA of init_lora keeps its own scale"),
             ("dora", config.init_lora is not None, "the LoRA of init_lora stays what it is"),
             ("conv_rank", config.init_lora is not None, "the LoRA of init_lora keeps its own layers"),
             ("conv_alpha", config.init_lora is not None, "the LoRA of init_lora keeps its own alpha"),
             ("unet_target_modules", config.init_lora is not None, "the LoRA of init_lora keeps its own layers"),
             ("conv_alpha", config.conv_rank == 0 and config.init_lora is None, "set conv_rank too, or remove it"),
             ("lr_cycles", config.lr_scheduler != "cosine_with_restarts", "set lr_scheduler: cosine_with_restarts"),
             ("huber_delta", config.loss_type != "huber", "set loss_type: huber, or remove it"),
             ("preview_prompts", config.preview_steps == 0, "set preview_steps to draw previews"))
    return [f"{name} has no effect here: {advice}" for name, unused, advice in rules if unused and changed(name)]


def describe_settings(kind: type[CheckedSettings] = TrainConfig) -> list[tuple[str, str, str, str]]:
    """(name, what is allowed, default, help) of every setting, as texts for tables and tooltips."""
    return [(name, definition.allowed(), definition.default_text(), definition.help)
            for name, definition in kind.definitions().items()]


SETTINGS: dict[str, Setting] = TrainConfig.definitions()
"""Every setting by name, in the order in which forms and tables show them."""
