"""LanguageConfig: every setting of a language-model run, each defined once with its default, range, unit and one help sentence."""
from __future__ import annotations

from dataclasses import dataclass

from ..config import LR_SCHEDULERS, PATH
from ..names import check_name
from ..settings import CheckedSettings, setting

OPTIMIZERS = {"adamw": "adamw_torch", "adamw8bit": "adamw_8bit", "paged_adamw8bit": "paged_adamw_8bit", "adafactor": "adafactor",
              "lion8bit": "lion_8bit"}
"""Our names, and transformers'."""
ALL_LINEAR = "all-linear"


@dataclass
class LanguageConfig(CheckedSettings):
    """Every setting of one run. Making one (also by `dataclasses.replace`) checks it: ValueError names what is wrong."""

    EXAMPLES = {"base_model": "path/to/a/model/folder", "train_data_dir": "path/to/my/records.jsonl"}

    # Base and data
    base_model: str = setting(pattern=PATH, form="a path", help=(
        "The model to train on: a transformers folder of a causal language model (LLaMA, Qwen, Mistral, Gemma, ...), or its name if it lies in the local cache."))
    train_data_dir: str = setting(pattern=PATH, form="a path", help=(
        "Your records: a .jsonl, .json, .csv, .tsv, .txt or .md file, or a folder with such files; nothing in it is ever changed."))
    task: str = setting("llm", choices=("llm",), help="llm trains a language model; left out, the base model says what it is.")
    load_in: str | None = setting(None, choices=("8bit", "4bit"), help=(
        "Load the base in fewer bits through bitsandbytes, for a quarter (4bit) or half (8bit) of the memory; empty loads it as it is."))

    eval_data_dir: str | None = setting(None, form="a path", help=(
        "Records that are not trained but measured: the LoRA that knows them best becomes the result."))
    general_data_dir: str | None = setting(None, form="a path", help=(
        "Texts of the general kind that the model should not forget; their perplexity is measured before and after the training."))
    general_share: float = setting(0.0, minimum=0, maximum=0.95, unit="share", help=(
        "Share of texts from general_data_dir among what is trained, so that the model forgets less; a tenth of them is kept for measuring."))
    validation: bool = setting(False, help=(
        "From 20 records on, hold a tenth of them back and measure on them; the LoRA of the best step becomes the result."))
    chat_template: str = setting("auto", choices=("auto", "alpaca", "plain"), pattern=r".+\.(jinja2?|j2)", form="a .jinja file", help=(
        "How a conversation becomes one text: auto takes the model's own way if it has one; alpaca has headings, plain joins prompt and answer."))
    answer_only: bool = setting(True, help="Learn the answers only and not the questions; records of plain text are learned as a whole.")
    max_length: int = setting(1024, minimum=8, maximum=1_000_000, unit="tokens", help=(
        "Longest piece that is trained; conversations are cut off there, plain texts are split into pieces."))
    packing: bool = setting(False, help=(
        "Put several short records into one row of max_length, which none of them sees of the others: faster, with fewer and fuller steps."))

    # Adapter
    name: str | None = setting(None, help="Name of the result's folder in output_dir; empty means the name of the data.")
    init_lora: str | None = setting(None, form="a path", help="A peft adapter folder to continue from; its own rank, alpha and layers are kept.")
    lora_rank: int = setting(16, minimum=1, maximum=1024, help="Size of the LoRA; more holds more and makes a larger file.")
    lora_alpha: float | None = setting(None, above=0, maximum=8192, help=(
        "Strength of the LoRA in relation to its rank; empty means the same number as the rank."))
    lora_dropout: float = setting(0.0, minimum=0, below=1, unit="share", help=(
        "Share of LoRA inputs that are left out at random in each step, against learning by heart."))
    target_modules: list[str] = setting(["q_proj", "v_proj"], words=True, help=(
        "Layers to train, such as q_proj and v_proj; all-linear takes every linear layer but the output, and learns facts faster."))
    rslora: bool = setting(False, help="Scale by the square root of the rank, which keeps large ranks stable.")
    dora: bool = setting(False, help="Train DoRA, which learns strength and direction of each layer apart and is slower.")

    # Training
    steps: int | None = setting(None, minimum=1, maximum=10_000_000, unit="steps", help=(
        "Length of the training; empty lets epochs decide."))
    epochs: int | None = setting(None, minimum=1, maximum=1_000_000, unit="epochs", help=(
        "Length of the training in passes over all records; 3 if steps is not given either."))
    batch_size: int = setting(4, minimum=1, maximum=4096, unit="rows", help=(
        "How many rows are trained at the same time on one device; more is smoother and needs more memory."))
    gradient_accumulation_steps: int = setting(1, minimum=1, maximum=10000, unit="batches", help=(
        "How many batches are added up for one step: the effect of a larger batch without its memory."))
    learning_rate: float = setting(2e-4, above=0, maximum=10, help="How far each step changes the LoRA; lower it when answers turn into noise.")
    lr_scheduler: str = setting("cosine", choices=tuple(name for name in LR_SCHEDULERS if name not in ("cosine_with_restarts", "inverse_sqrt")), help=(
        "How the learning rate changes during the run."))
    lr_warmup_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "During this many first steps the learning rate rises from 0 to its full value."))
    optimizer: str = setting("adamw", choices=tuple(OPTIMIZERS), help="The rule that changes the LoRA; those with 8bit need bitsandbytes.")
    weight_decay: float = setting(0.0, minimum=0, maximum=100, help="How strongly large LoRA weights are pulled back to zero.")
    max_grad_norm: float = setting(1.0, minimum=0, maximum=1_000_000, help=(
        "Limit for the size of one change, which protects from a bad step; 0 switches the limit off."))
    mixed_precision: str = setting("auto", choices=("auto", "no", "fp16", "bf16"), help=(
        "Number format for computing; auto takes bf16 on graphics cards that have it."))
    gradient_checkpointing: bool = setting(False, help="Needs much less memory and makes a step about a third slower.")
    seed: int = setting(0, minimum=0, maximum=2**32 - 1, help="Start of all random numbers; the same seed gives the same run.")
    device: str = setting("auto", pattern=r"auto|cpu|mps|xpu|cuda(:\d+)?", form="auto, cpu, mps, xpu, cuda or cuda:1", help=(
        "Where to compute: auto, cuda, cuda:1, mps, xpu or cpu."))

    # When to stop
    eval_steps: int | None = setting(None, minimum=1, maximum=10_000_000, unit="steps", help=(
        "Measure every this many steps; empty means twenty times in a run."))
    early_stop: bool = setting(True, help="With measured records: end the run when their perplexity has got no better for a while.")
    patience: int = setting(3, minimum=1, maximum=1000, unit="measurements", help="For how many measurements early_stop waits for something better.")

    # Output
    output_dir: str = setting("output", pattern=PATH, form="a path", help="Folder for the adapter, the saved states, the previews and the logs.")
    merge: bool = setting(False, help="Also write the whole model with the LoRA worked in, as name-merged, for programs that take no adapters.")
    save_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "Save the adapter and the state to go on from every this many steps; 0 saves at the end only."))
    state_minutes: float = setting(2.0, minimum=0, maximum=100_000, unit="minutes", help=(
        "After a crash a run goes on from a state that is at most about this old; 0 keeps only those of save_steps."))
    preview_steps: int = setting(0, minimum=0, maximum=10_000_000, unit="steps", help=(
        "Answer the preview prompts every this many steps, side by side with the base; 0 answers none."))
    preview_prompts: list[str] = setting([], help="What is asked in previews; empty takes the first questions of the data.")
    preview_max_tokens: int = setting(64, minimum=1, maximum=100_000, unit="tokens", help="Longest answer of a preview.")
    tensorboard: bool = setting(True, help="Write loss, learning rate, perplexity and previews for TensorBoard where it is installed.")
    log_every: int = setting(10, minimum=1, maximum=1_000_000, unit="steps", help="How often loss and speed are logged.")

    def validate(self) -> None:
        """Convert every value to its type and check ranges and combinations; ValueError names the first that is wrong."""
        super().validate()
        if self.name is not None:
            check_name(self.name)
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}, but only one of them can set the length of the "
                             "training; remove one")
        if not self.target_modules:
            raise ValueError(f"target_modules is empty, so nothing would be trained; name layers such as q_proj, or {ALL_LINEAR}")
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"target_modules names {ALL_LINEAR} and other layers, which it contains already; keep one of the two")
        if self.eval_data_dir is not None and self.validation:
            raise ValueError("eval_data_dir and validation both say what is measured; remove one of the two")

    @property
    def measures(self) -> bool:
        """Whether records are held out, which choose the best step."""
        return self.validation or self.eval_data_dir is not None


def without_effect(config: LanguageConfig) -> list[str]:
    """One sentence for each setting that was changed although another one switches it off."""
    rules = (("lora_rank", config.init_lora is not None, "the adapter of init_lora keeps its own rank"),
             ("lora_alpha", config.init_lora is not None, "the adapter of init_lora keeps its own alpha"),
             ("target_modules", config.init_lora is not None, "the adapter of init_lora keeps its own layers"),
             ("rslora", config.init_lora is not None, "the adapter of init_lora keeps its own scale"),
             ("dora", config.init_lora is not None, "the adapter of init_lora stays what it is"),
             ("patience", not (config.measures and config.early_stop), "set validation: true or eval_data_dir, and early_stop: true"),
             ("eval_steps", not (config.measures or config.general_data_dir), "set validation: true, eval_data_dir or general_data_dir"),
             ("general_share", config.general_data_dir is None, "set general_data_dir"),
             ("preview_prompts", config.preview_steps == 0, "set preview_steps to get previews"),
             ("preview_max_tokens", config.preview_steps == 0, "set preview_steps to get previews"))
    definitions = LanguageConfig.definitions()
    return [f"{name} has no effect here: {advice}" for name, unused, advice in rules
            if unused and getattr(config, name) != definitions[name].default]
