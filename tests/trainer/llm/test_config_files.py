"""Settings of language runs: which files are theirs, keys of other trainers, and one sentence for what is wrong."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hotlora.trainer.cli import main, parser, read_config
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.config_files import load_config
from hotlora.trainer.llm.config import LanguageConfig, without_effect
from hotlora.trainer.llm.config_files import load_language_config


def settings_file(folder, **values):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def read(*arguments):
    return read_config(parser().parse_args(["train", *map(str, arguments)]))[0]


def test_task_or_base_tell_a_language_run(base, records, gallery, tmp_path):
    values = {"base_model": str(base), "train_data_dir": str(records)}
    assert isinstance(read("--config", settings_file(tmp_path, **values)), LanguageConfig)
    assert isinstance(read("--config", settings_file(tmp_path, **values, task="LLM")), LanguageConfig)
    assert isinstance(read("--config", settings_file(tmp_path, train_data_dir=str(records), model_name_or_path=str(base))), LanguageConfig)
    pictures = settings_file(tmp_path, train_data_dir=str(gallery))
    assert isinstance(read("--config", pictures), TrainConfig)
    assert isinstance(read("--config", pictures, "--set", f"base_model={base}"), LanguageConfig)
    assert isinstance(read("--config", settings_file(tmp_path, train_data_dir=str(gallery), task="image")), TrainConfig)
    assert isinstance(read("--set", "task=llm", "--set", f"base_model={base}", "--set", f"train_data_dir={records}"), LanguageConfig)


def test_paths_in_a_file_may_begin_with_the_home_folder(base, records, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(base.parent))
    values = {"base_model": f"~/{base.name}", "train_data_dir": "~/facts.jsonl", "output_dir": "~/out", "chat_template": "~/mine.jinja"}
    config = read("--config", settings_file(tmp_path, **values), "--set", "init_lora=~/first")
    assert isinstance(config, LanguageConfig)
    for found, name in ((config.base_model, base.name), (config.train_data_dir, "facts.jsonl"), (config.output_dir, "out"),
                        (config.chat_template, "mine.jinja"), (config.init_lora, "first")):
        assert Path(found) == base.parent / name


def test_a_wrong_task_is_named(gallery, tmp_path):
    with pytest.raises(ValueError, match="task is 'music' but must be one of image, llm"):
        read("--config", settings_file(tmp_path, train_data_dir=str(gallery), task="music"))


@pytest.mark.parametrize("by_task", [True, False])
def test_where_pictures_are_trained_a_language_file_is_refused_in_one_sentence(base, records, tmp_path, by_task):
    """The page and bundles read settings with `load_config`."""
    values = {"train_data_dir": str(records), **({"task": "llm"} if by_task else {"base_model": str(base)})}
    with pytest.raises(ValueError, match=r"run.yaml: (task is llm|base_model is .*, a language model), and language models are trained by `python train.py"):
        load_config(settings_file(tmp_path, **values))


def test_the_example_has_every_default_but_the_paths(root):
    config, warnings = load_language_config(root / "configs" / "my_llm_config.yaml")
    assert not warnings
    assert config == replace(LanguageConfig(base_model=config.base_model, train_data_dir=config.train_data_dir), epochs=3, lora_alpha=16.0,
                             name="my_llm_lora", output_dir="output/my_llm_lora")


def test_defaults_of_the_issue():
    config = LanguageConfig(base_model="a", train_data_dir="b")
    assert config.target_modules == ["q_proj", "v_proj"] and config.answer_only and config.lora_rank == 16


def test_keys_of_other_trainers(tmp_path):
    """TRL, axolotl, LLaMA-Factory."""
    path = settings_file(tmp_path, model_name_or_path="m", dataset="d", lora_r=8, lora_target="all-linear", num_train_epochs=2, micro_batch_size=3, lr=1e-3,
                         load_in_4bit=True, load_in_8bit=False, bf16=True, train_on_inputs=True, sample_packing="yes", cutoff_len=99, warmup_steps=5)
    config, warnings = load_language_config(path)
    assert (config.base_model, config.train_data_dir, config.lora_rank, config.target_modules, config.epochs, config.batch_size) == (
        "m", "d", 8, ["all-linear"], 2, 3)
    assert (config.learning_rate, config.load_in, config.mixed_precision, config.answer_only, config.packing, config.max_length, config.lr_warmup_steps) == (
        1e-3, "4bit", "bf16", False, True, 99, 5)
    assert "lora_r is read as lora_rank" in warnings


@pytest.mark.parametrize("values, precision", [({"bf16": "auto"}, "auto"), ({"bf16": "auto", "fp16": None}, "auto"), ({"bf16": "auto", "fp16": True}, "fp16"),
                                               ({"bf16": "true", "fp16": "auto"}, "bf16"), ({"bf16": False}, "auto")])
def test_a_number_format_that_is_left_to_the_trainer_stays_so(tmp_path, values, precision):
    config, _ = load_language_config(settings_file(tmp_path, task="llm", base_model="m", train_data_dir="d", **values))
    assert config.mixed_precision == precision


@pytest.mark.parametrize("values, expected", [
    ({"lora_rnk": 8}, "lora_rnk.*did you mean lora_rank"),
    ({"lora_rank": 8, "lora_r": 8}, "lora_r and lora_rank both set lora_rank"),
    ({"lora_rank": 0}, "lora_rank is 0 but must be"),
    ({"steps": 5, "epochs": 2}, "only one of them"),
    ({"target_modules": []}, "target_modules is empty"),
    ({"target_modules": ["all-linear", "q_proj"]}, "keep one of the two"),
    ({"eval_data_dir": "x", "validation": True}, "remove one of the two"),
    ({"load_in": "2bit"}, "load_in is '2bit' but must be one of 8bit, 4bit"),
    ({"chat_template": "mine"}, "chat_template is 'mine' but must be"),
    ({"general_share": 1}, "general_share is 1 but must be"),
    ({"name": "a/b"}, "name"),
    ({"resolution": 512}, "resolution"),
])
def test_what_is_wrong_is_one_sentence_with_the_file(tmp_path, values, expected):
    path = settings_file(tmp_path, task="llm", base_model="m", train_data_dir="d", **values)
    with pytest.raises(ValueError, match=expected) as error:
        load_language_config(path)
    assert str(error.value).startswith(str(path)) and str(error.value).count(str(path)) == 1


def test_a_length_on_the_command_line_goes_before_the_file(tmp_path):
    path = settings_file(tmp_path, task="llm", base_model="m", train_data_dir="d", epochs=3)
    config, _ = load_language_config(path, ["steps=7"])
    assert (config.steps, config.epochs) == (7, None)


def test_settings_without_effect_are_named():
    config = LanguageConfig(base_model="a", train_data_dir="b", patience=9, preview_max_tokens=3, general_share=0.5, init_lora="c", lora_rank=3)
    assert [sentence.split()[0] for sentence in without_effect(config)] == ["lora_rank", "patience", "general_share", "preview_max_tokens"]


def test_help_has_both_kinds_of_settings(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "settings for language models (task: llm):" in shown and "answer_only: " in shown and "resolution: " in shown
