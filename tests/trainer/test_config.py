"""Every setting, every kind of settings file, and the sentences that users read when something is wrong."""
from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from hotlora.trainer.config import SETTINGS, TrainConfig, describe_settings
from hotlora.trainer.config_files import load_config, parse_override
from hotlora.trainer.kohya_keys import KOHYA_KEYS, NETWORK_ARGS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "configs" / "my_lora_config.yaml"


def load(text: str, name: str = "my.yaml", overrides: tuple[str, ...] = ()) -> TrainConfig:
    return load_config(name, overrides, text=text)[0]


def load_kohya(**values) -> tuple[TrainConfig, str]:
    config, warnings = load_config("my.json", text=json.dumps({"train_data_dir": "pics", **values}))
    return config, "\n".join(warnings)


# Definitions

def test_every_setting_has_help_and_a_default_that_is_allowed():
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(TrainConfig)}
    for name, definition in SETTINGS.items():
        assert definition.help.endswith(".") and definition.help[0].isupper(), name
        assert definition.help.count(". ") == 0, f"{name}: the help is one sentence"
        if not definition.required:
            assert definition.convert(definition.default) == definition.default, name


def test_example_file_is_read_as_it_stands_and_has_all_keys_of_lora_scripts():
    config, warnings = load_config(EXAMPLE)
    assert warnings == []
    assert (config.train_data_dir, config.base_model) == ("trainer/demo/gallery", "demo")
    assert config.unet_target_modules == ["q_proj", "v_proj"] and config.learning_rate == 1e-4
    keys = set(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    assert keys >= {"train_data_dir", "metadata_path", "base_model", "lora_rank", "lora_alpha", "unet_target_modules",
                    "text_encoder_target_modules", "batch_size", "gradient_accumulation_steps", "epochs", "learning_rate",
                    "output_dir", "save_steps"}


def test_describe_settings_gives_four_texts_per_setting():
    rows = {row[0]: row for row in describe_settings()}
    assert rows["lora_rank"][1:3] == ("a whole number from 1 to 1024", "16")
    assert rows["train_data_dir"][2] == "required" and rows["lr_scheduler"][2] == "cosine"
    assert rows["lora_dropout"][1] == "a number from 0, below 1 (share)"
    assert rows["learning_rate"][1] == "a number above 0 up to 10"
    assert all(isinstance(cell, str) for row in rows.values() for cell in row)


def test_dict_and_yaml_round_trip():
    config = TrainConfig("図/ my pics", trigger="1e5", name="007", mixed_precision="no", preview_prompts=["a: b", "no", "0x10", "\x85", "a\u2028b\u2029"],
                         optimizer_args={"betas": [0.9, 0.999], "name": "true", "eps": 1e-30}, seed=2**63 - 1, learning_rate=1e-5)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert load(config.to_yaml()) == config
    assert load(json.dumps(config.to_dict()), "my.json") == config


def test_configs_do_not_share_lists_and_mappings():
    first, second = TrainConfig("a"), TrainConfig("b")
    first.preview_prompts.append("x")
    first.optimizer_args["x"] = 1
    assert second.preview_prompts == [] and second.optimizer_args == {}


# Values

@pytest.mark.parametrize("text, name, expected", [
    ("1e-4", "learning_rate", 1e-4), ("'1e-4'", "learning_rate", 1e-4), ("2.E-5", "learning_rate", 2e-5),
    ("1", "learning_rate", 1.0),
    ("1e3", "steps", 1000), ("'16'", "lora_rank", 16), ("8.0", "lora_rank", 8), ("+8", "lora_rank", 8),
    ("no", "mixed_precision", "no"), ("BF16", "mixed_precision", "bf16"), ("AdamW", "optimizer", "adamw"),
    ("yes", "flip", True), ("Off", "bucketing", False), ("true", "flip", True),
    ("no", "trigger", "no"), ("007", "trigger", "007"), ("2024", "trigger", "2024"), ("2024-01-01", "trigger", "2024-01-01"),
    ("1_000", "trigger", "1_000"), ("0x10", "trigger", "0x10"), ("12:30", "trigger", "12:30"),
    ("C:\\pics", "reg_data_dir", "C:\\pics"),
    ("null", "lora_alpha", None), ("~", "name", None), ("", "resolution", None), ("'  '", "init_lora", None),
    ("0", "min_snr_gamma", None), ("q_proj", "unet_target_modules", ["q_proj"]), ("q, v,", "unet_target_modules", ["q", "v"]),
    ("a cat, b", "preview_prompts", ["a cat, b"]), ("[1, x]", "preview_prompts", ["1", "x"]),
    ("{betas: [0.9, 1e-1], flag: true}", "optimizer_args", {"betas": [0.9, 0.1], "flag": True}),
    ("torch.optim.NAdam", "optimizer", "torch.optim.NAdam"), ("my/aug.py:change", "augmentation", "my/aug.py:change"),
    ("C:\\aug.py:change", "augmentation", "C:\\aug.py:change"),
    ("512,512", "resolution", 512), ("768x768", "resolution", 768), ("[1024, 1024]", "resolution", 1024),
])
def test_values_become_the_type_of_the_setting(text, name, expected):
    value = getattr(load(f"train_data_dir: pics\n{name}: {text}\n"), name)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text, name, allowed", [
    ("sixteen", "lora_rank", "'sixteen' but must be a whole number from 1 to 1024"), ("0", "lora_rank", "0 but"),
    ("16.5", "lora_rank", "16.5 but"), ("true", "lora_rank", "true but"), ("[16]", "lora_rank", "[16] but"),
    ("null", "lora_rank", "null but"), ("1e400", "lora_rank", "inf but"), ("9" * 400, "lora_rank", "but"),
    ("1_000", "steps", "'1_000' but"), ("0x10", "lora_rank", "'0x10' but"), ("１６", "lora_rank", "'１６' but"),
    (".nan", "learning_rate", "nan but must be a number above 0 up to 10"), (".inf", "learning_rate", "inf but"),
    ("nan", "learning_rate", "'nan' but"), ("0", "learning_rate", "0 but"), ("1e4", "learning_rate", "10000.0 but"),
    ("-1e-4", "learning_rate", "-0.0001 but"), ("1", "lora_dropout", "1 but must be a number from 0, below 1"),
    ("1", "flip", "1 but must be true or false"), ("maybe", "flip", "'maybe' but"),
    ("hubert", "loss_type", "one of l2, huber (did you mean huber?)"),
    ("1.50", "name", "1.5 but must be text, or null; put it in quotes"), ("true", "trigger", "true but must be text; put it in"),
    ("[a]", "output_dir", "['a'] but must be a path"), ("5", "preview_prompts", "5 but must be a list of texts"),
    ("[1.5]", "preview_prompts", "[1.5] but"), ("[[a]]", "unet_target_modules", "[['a']] but"),
    ("[a]", "optimizer_args", "must be a list such as"), ("{a: .nan}", "optimizer_args", "mapping"),
    ("adamm", "optimizer", "package.Class (did you mean adamw?)"), ("torch.", "optimizer", "'torch.' but"),
    ("change", "augmentation", "package.module:function"), ("'a.py:'", "loss_term", "package.module:function"),
    ("12", "bucket_step", "multiple of 8"), ("512,y", "resolution", "'y' but must be a whole number from 32 to 4096"),
    ("512,", "resolution", "'512,' but"), ("'   '", "output_dir", "'   ' but must be a path"),
    ("-1", "seed", "-1 but must be a whole number from 0"),
])
def test_a_wrong_value_names_the_setting_the_value_and_what_is_allowed(text, name, allowed):
    with pytest.raises(ValueError) as error:
        load(f"train_data_dir: pics\n{name}: {text}\n")
    message = str(error.value)
    assert message.startswith(f"my.yaml: {name} ") and allowed in message and "; " in message, message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("key, similar", [
    ("lora_ranks", "lora_rank"), ("min_snr", "min_snr_gamma"), ("learningrate", "learning_rate"), ("Batch_Size", "batch_size"),
    ("network_dims", "network_dim"), ("max_train_epoch", "max_train_epochs")])
def test_an_unknown_key_names_the_nearest_known_one(key, similar):
    with pytest.raises(ValueError, match=re.escape(f"{key} is not a setting (did you mean {similar}?)")):
        load(f"train_data_dir: pics\n{key}: 1\n")


def test_from_dict_takes_our_own_keys_only():
    with pytest.raises(ValueError, match="network_dim is not a setting"):
        TrainConfig.from_dict({"train_data_dir": "pics", "network_dim": 8})
    with pytest.raises(ValueError, match="train_data_dir is missing; add a line such as"):
        TrainConfig.from_dict({"lora_rank": 8})


@pytest.mark.parametrize("values, message", [
    (dict(steps=5, epochs=2), "steps is 5 and epochs is 2, but only one"),
    (dict(min_timestep=500, max_timestep=500), "min_timestep is 500 but must be below max_timestep"),
    (dict(optimizer_args={"lr": 1}), "move its value to learning_rate"), (dict(name="a/b"), "use 'a_b' instead"),
    (dict(masks=True, augmentation="a.py:turn"), "masks is true and augmentation is 'a.py:turn', but"),
    (dict(trigger="a\0b"), "trigger is"), (dict(trigger="\ud800"), "trigger is"), (dict(seed=10**5000), "more than 60 digits")])
def test_settings_that_contradict_or_cannot_be_saved(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig("pics", **values)


def test_no_more_megapixels_are_allowed_than_pillow_opens():
    assert TrainConfig("pics", max_megapixels=180).max_megapixels == 180
    with pytest.raises(ValueError, match="max_megapixels is 200 but must be a number above 0 up to 180"):
        TrainConfig("pics", max_megapixels=200)


def test_dataclasses_replace_checks_too():
    with pytest.raises(ValueError, match="lora_rank is -1"):
        dataclasses.replace(TrainConfig("pics"), lora_rank=-1)


@pytest.mark.parametrize("line, name", [("text_encoder_lr: 1e-5", "text_encoder_lr"), ("keep_tags: 1", "keep_tags"),
                                        ("prior_loss_weight: 0.5", "prior_loss_weight"), ("conv_alpha: 4", "conv_alpha"),
                                        ("lr_cycles: 3", "lr_cycles"), ("huber_delta: 1", "huber_delta"),
                                        ("preview_prompts: [a]", "preview_prompts"),
                                        *((f"init_lora: a.safetensors\n{line}", line.split(":")[0]) for line in (
                                            "lora_rank: 8", "lora_alpha: 4", "rslora: true", "dora: true", "conv_rank: 4", "conv_alpha: 4",
                                            "unet_target_modules: [to_q]"))])
def test_a_setting_that_another_one_switches_off_is_a_warning(line, name):
    warnings = load_config("my.yaml", text=f"train_data_dir: pics\n{line}\n")[1]
    assert len(warnings) == 1 and warnings[0].startswith(f"{name} has no effect here: ")


# Files

@pytest.mark.parametrize("name, text", [
    ("a.yaml", "train_data_dir: 我的照片\nlora_rank: 8"), ("a.yml", "{train_data_dir: 我的照片, lora_rank: 8}"),
    ("a.json", '{"train_data_dir": "我的照片", "lora_rank": 8}'), ("a.toml", 'train_data_dir = "我的照片"\nlora_rank = 8'),
    ("a.toml", '[data]\ntrain_data_dir = "我的照片"\n[network]\nlora_rank = 8')])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_each_kind_of_file_in_each_encoding(tmp_path, name, text, encoding):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    config, warnings = load_config(str(path))
    assert (config.train_data_dir, config.lora_rank, warnings) == ("我的照片", 8, [])


@pytest.mark.parametrize("name, text, message", [
    ("a.yaml", "", "the file is empty; add at least train_data_dir"), ("a.yaml", "# nothing\n", "the file is empty"),
    ("a.json", " ", "the file is empty"), ("a.toml", "", "the file is empty"),
    ("a.yaml", "- a\n- b", "the file holds ['a', 'b'] but must hold one setting per line"),
    ("a.json", "[1]", "the file holds [1] but"),
    ("a.yaml", "lora_rank: 1\nlora_rank: 2", "line 2: lora_rank is set twice"), ("a.json", '{"a": 1, "a": 2}', "a is set twice"),
    ("a.yaml", "optimizer_args: {a: 1, a: 2}", "line 1: a is set twice"),
    ("a.toml", "[a]\nlora_rank = 1\n[b]\nlora_rank = 2", "lora_rank is set twice"), ("a.toml", "a = 1\na = 2", "not valid TOML"),
    ("a.yaml", "x: a: b", "line 1, column 5: mapping values are not allowed here, so this is not valid YAML"),
    ("a.yaml", "\tx: 1", "use spaces instead of tabs"),
    ("a.yaml", 'x: "C:\\Users"', "write Windows paths with / or in single quotes"),
    ("a.toml", 'x = "C:\\Users"', "write Windows paths with / or in single quotes"),
    ("a.yaml", "x: &a [*a]", "put the value in quotes"), ("a.yaml", "x: !!python/object:os.system 1", "put the value in quotes"),
    ("a.yaml", "? [a]\n: 1", "must be plain text"), ("a.yaml", "1: 2", "1 is not a setting"),
    ("a.yaml", "a: 1\n---\nb: 2", "not valid"),
    ("a.yaml", "x: \x07", "not valid YAML"), ("a.json", "{", "line 1, column 2:"),
    ("a.json", '{"lora_rank": NaN}', "lora_rank is nan"),
    ("a.yaml", "[" * 2000, "nested too deeply"), ("a.json", "[" * 200000, "nested too deeply"),
    ("a.toml", "lora_rank = 2020-01-01", "lora_rank is 2020-01-01 but must be"),
    ("a.json", '{"trigger": "\\ud800"}', "trigger is"), ("a.json", '{"lora_rank": ' + "9" * 5000 + "}", "a.json: "),
])
def test_a_damaged_file_is_one_clear_sentence(name, text, message):
    with pytest.raises(ValueError) as error:
        load_config(name, text=text)
    assert str(error.value).startswith("a.") and message in str(error.value) and "\n" not in str(error.value), error.value


def test_files_that_cannot_be_settings(tmp_path):
    (tmp_path / "lora.yaml").write_text("train_data_dir: x")
    with pytest.raises(ValueError, match=re.escape("there is no such file (did you mean lora.yaml?)")):
        load_config(tmp_path / "loras.yaml")
    with pytest.raises(ValueError, match="there is no such file; give the path"):
        load_config(tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(ValueError, match="its name must end in .yaml, .yml, .toml, .json"):
        load_config(tmp_path / "a.safetensors")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ValueError, match="larger than 1 MB"):
        load_config(tmp_path / "big.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\x00\x80\xff")
    with pytest.raises(ValueError, match="save it as UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_python_310_without_tomli_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tomllib", None)
    monkeypatch.setitem(__import__("sys").modules, "tomli", None)
    with pytest.raises(ValueError, match="only with the package tomli; install it with pip install tomli"):
        load_config("a.toml", text="lora_rank = 1")


# Overrides

def test_paths_that_begin_with_the_home_folder(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    config, _ = load_config("my.yaml", ["lora_dir=~/loras"], text="train_data_dir: ~/photos\noutput_dir: ~/out\ncache_dir: ./~/cache\nbase_model: demo\ntrigger: ~x\n")
    assert [Path(path) for path in (config.train_data_dir, config.output_dir, config.lora_dir)] == [tmp_path / name for name in ("photos", "out", "loras")]
    assert (config.cache_dir, config.base_model, config.trigger) == ("./~/cache", "demo", "~x")


def test_overrides_go_before_the_file_and_the_last_one_before_the_first():
    config = load("train_data_dir: pics\nepochs: 5\nlora_rank: 4", overrides=(
        "steps=20", "network_dim=8", "learning_rate=1e-3", "learning_rate=2e-3", "flip=yes", "trigger=v: cat",
        "unet_target_modules=[q_proj, to_v]", "optimizer_args={betas: [0.9, 0.99]}", "train_data_dir=C:\\a=b"))
    assert (config.steps, config.epochs, config.lora_rank, config.learning_rate, config.flip) == (20, None, 8, 2e-3, True)
    assert config.unet_target_modules == ["q_proj", "to_v"] and config.optimizer_args == {"betas": [0.9, 0.99]}
    assert (config.train_data_dir, config.trigger) == ("C:\\a=b", "v: cat")


@pytest.mark.parametrize("override, pair", [("a=b: c", ("a", "b: c")), (" a = 1 ", ("a", "1")), ("a=", ("a", "")),
                                            ("a=null", ("a", None)),
                                            ("a=[1, x]", ("a", [1, "x"])), ("a=#x", ("a", "#x")), ("a=b=c", ("a", "b=c"))])
def test_parse_override(override, pair):
    assert parse_override(override) == pair


@pytest.mark.parametrize("override, message", [("lora_rank", "'lora_rank' is not of the form key=value; write for example"),
                                               ("=3", "not of the form key=value"), ("lora_rank=[8", "which is no list"),
                                               ("lora_rank=x", "lora_rank is 'x' but must be"),
                                               ("rank=8", "rank is not a setting")])
def test_a_wrong_override_is_an_error(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load("train_data_dir: pics", overrides=(override,))


# Files of kohya sd-scripts and SD-Trainer

SD_TRAINER_FILE = """
pretrained_model_name_or_path = "./sd-models/model.safetensors"
model_train_type = "sd-lora"
train_data_dir = "./train/aki"
prior_loss_weight = 1
resolution = "512,768"
enable_bucket = true
min_bucket_reso = 256
bucket_reso_steps = 64
bucket_no_upscale = true
output_name = "aki"
output_dir = "./output"
save_model_as = "safetensors"
save_precision = "fp16"
save_every_n_epochs = 2
max_train_epochs = 10
train_batch_size = 2
gradient_checkpointing = false
network_train_unet_only = false
network_train_text_encoder_only = false
learning_rate = "1e-4"
unet_lr = "2e-4"
text_encoder_lr = "1e-5"
lr_scheduler = "cosine_with_restarts"
lr_warmup_steps = 0
lr_scheduler_num_cycles = 3
optimizer_type = "AdamW8bit"
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=4", "conv_alpha=1"]
optimizer_args = ["weight_decay=0.1", "betas=.9,.99"]
sample_prompts = "(masterpiece), 1girl --n lowres --w 512 --h 768 --l 7.5 --s 24 --d 1337"
sample_every_n_steps = 50
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
seed = 1337
clip_skip = 2
mixed_precision = "fp16"
xformers = true
cache_latents = true
noise_offset = 0.05
min_snr_gamma = 0
"""


def test_a_whole_file_of_sd_trainer():
    config, warnings = load_config("aki.toml", text=SD_TRAINER_FILE)
    expected = dict(
        base_model="./sd-models/model.safetensors", train_data_dir="./train/aki", resolution=627, bucketing=True, upscale=False,
        name="aki", output_dir="./output", save_dtype="fp16", epochs=10, batch_size=2, learning_rate=2e-4, text_encoder_lr=1e-5,
        text_encoder_target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], lr_scheduler="cosine_with_restarts",
        lr_cycles=3, optimizer="adamw8bit", lora_rank=32, lora_alpha=16.0, conv_rank=4, conv_alpha=1.0, weight_decay=0.1,
        optimizer_args={"betas": [0.9, 0.99]}, preview_prompts=["(masterpiece), 1girl"], preview_seed=1337, preview_guidance=7.5,
        preview_steps=50, shuffle_tags=True, keep_tags=1, seed=1337, mixed_precision="fp16", noise_offset=0.05,
        min_snr_gamma=None)
    assert {name: getattr(config, name) for name in expected} == expected
    unsupported, needless, *notes = warnings
    assert unsupported == (
        "these settings are not supported and have no effect: min_bucket_reso (use resolution, bucket_step and upscale); "
        "save_every_n_epochs (use save_steps); --h, --n, --s, --w in sample_prompts (previews take their size and steps from "
        "the base model and have no negative prompt); clip_skip (the last text layer that the base model was made for is used)")
    assert "xformers" in needless and "cache_latents (always on)" in needless and "caption_extension" in needless
    assert notes == ["resolution 512 x 768 is taken as an area; each picture is trained in its own shape",
                     "learning_rate has no effect, because unet_lr is given too",
                     "caption_dropout_rate is not given: HotLoRA's default is 0.05, sd-scripts' is 0"]


def test_every_key_of_the_table_does_something_or_is_listed():
    """No key vanishes: it changes the config or is named in a warning."""
    values = {"resolution": "256,256", "network_args": ["conv_dim=3"], "optimizer_args": ["eps=1e-5"], "lr_scheduler": "linear",
              "optimizer_type": "Lion", "save_precision": "float", "sample_prompts": "x", "positive_prompts": "x",
              "lr_warmup_steps": 3,
              "text_encoder_lr": 3e-4, "unet_lr": 3e-4, "bucket_no_upscale": False, "enable_bucket": False, "v2": True,
              "network_train_unet_only": True, "bucket_reso_steps": 32, "caption_dropout_rate": 0.5, "network_dropout": 0.5,
              "dropout": 0.5, "output_name": "my_lora"}
    plain = TrainConfig("pics")
    for key in KOHYA_KEYS:
        for candidate in [values[key]] if key in values else ["a/b.c", 3, True, ["x"]]:
            extra = {"text_encoder_lr": 1e-5} if key == "network_train_unet_only" else {}
            try:
                config, warnings = load_kohya(**{key: candidate}, **extra)
            except ValueError as error:
                assert key in str(error)
                continue
            if key == "network_train_unet_only":
                assert config.text_encoder_target_modules is None
            else:
                assert config != plain or key in warnings, f"{key} was ignored in silence"
            break
        else:
            pytest.fail(f"no value of {key} is taken")


def test_every_target_of_the_table_is_a_setting():
    for key, rule in {**KOHYA_KEYS, **NETWORK_ARGS}.items():
        for cell in rule.__closure__ or ():
            if rule.__qualname__.startswith("to.") and isinstance(cell.cell_contents, str):
                assert cell.cell_contents in SETTINGS, key


@pytest.mark.parametrize("values, expected", [
    (dict(network_alpha=0), dict(lora_alpha=None)), (dict(bucket_no_upscale=False), dict(upscale=True)),
    (dict(use_8bit_adam=True), dict(optimizer="adamw8bit")),
    (dict(optimizer_type="DAdaptAdam"), dict(optimizer="dadaptation.DAdaptAdam")),
    (dict(optimizer_type="Prodigy"), dict(optimizer="prodigy")), (dict(save_precision="float"), dict(save_dtype="fp32")),
    (dict(lr_scheduler="constant_with_warmup"), dict(lr_scheduler="constant")),
    (dict(network_dropout=0.1), dict(lora_dropout=0.1)),
    (dict(lr_warmup_steps=0.1, max_train_steps=500), dict(lr_warmup_steps=50, steps=500)),
    (dict(unet_lr=1e-3), dict(learning_rate=1e-3, text_encoder_target_modules=None)),
    (dict(text_encoder_lr=0, network_dim=4), dict(text_encoder_lr=None, text_encoder_target_modules=None)),
    (dict(text_encoder_lr=1e-5, network_train_unet_only=True), dict(text_encoder_lr=None, text_encoder_target_modules=None)),
    (dict(network_args=["dora_wd=True", "loraplus_lr_ratio=16"]), dict(dora=True, lora_plus_ratio=16.0)),
    (dict(network_args="conv_dim=2 conv_alpha=2"), dict(conv_rank=2, conv_alpha=2.0)),
    (dict(network_weights="a.safetensors"), dict(init_lora="a.safetensors")), (dict(alpha_mask=True), dict(masks=True)),
    (dict(sample_prompts=["a --d 3", "# no", "", "b --l 5"]),
     dict(preview_prompts=["a", "b"], preview_seed=3, preview_guidance=5.0)),
    (dict(sample_prompts=["a --D 3 --l 7", "b --d 4"]), dict(preview_seed=3, preview_guidance=7.0)),
    (dict(optimizer_type="SGDNesterov"), dict(optimizer="torch.optim.SGD", optimizer_args={"momentum": 0.9, "nesterov": True})),
    (dict(optimizer_type="sgdnesterov", optimizer_args=["momentum=0.8", "dampening=0"]),
     dict(optimizer="torch.optim.SGD", optimizer_args={"momentum": 0.8, "dampening": 0, "nesterov": True})),
    (dict(optimizer_type="SGDNesterov8bit"), dict(optimizer="bitsandbytes.optim.SGD8bit", optimizer_args={"momentum": 0.9, "nesterov": True})),
    (dict(output_name="", network_dim=None, reg_data_dir="", steps=""),
     dict(name=None, lora_rank=16, reg_data_dir=None, steps=None)),
])
def test_what_the_keys_of_sd_scripts_mean(values, expected):
    config, _ = load_kohya(**values)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("values, text", [
    (dict(max_train_steps=100, max_train_epochs=2), "max_train_steps has no effect, because max_train_epochs is given too"),
    (dict(network_dim=8, text_encoder_lr=1e-5), "network_alpha is not given: HotLoRA's default is the rank, sd-scripts' is 1"),
    (dict(network_dim=8), "HotLoRA does not train the text encoder, sd-scripts would"),
    (dict(network_module="networks.oft"), "networks.oft"),
    (dict(network_args=["algo=loha", "foo=1"]),
     "algo in network_args (HotLoRA trains LoRA, LoCon and DoRA); foo in network_args"),
    (dict(save_model_as="ckpt"), "always .safetensors"), (dict(caption_extension=".cap"), "rename the files"),
    (dict(lr_warmup_steps=0.1, max_train_epochs=5), "give a number of steps"), (dict(sample_prompts="p.toml"), "preview_prompts"),
    (dict(text_encoder_lr=[1e-5, 2e-5], network_dim=8), "all text encoders get the first"),
    (dict(sample_prompts=["a --d 3", "b --d 4", "c"]), "--d with several values in sample_prompts (all previews get the first, 3)"),
    (dict(noise_offset_type="Multires"), "noise_offset_type (use noise_offset)"),
    (dict(v_parameterization=True), "one that does not say that it is a v-prediction model is trained as one that predicts the noise (eps)")])
def test_what_is_not_taken_over_is_said(values, text):
    assert text in load_kohya(**values)[1]


@pytest.mark.parametrize("values", [dict(noise_offset_type="Original"), dict(noise_offset_type="original"), dict(v_parameterization=False), dict(network_args=["algo=LoRA"]),
                                    dict(sample_prompts=["a --d 3", "b --d 3"], sample_every_n_steps=5)])
def test_what_changes_nothing_is_not_spoken_of(values):
    assert not load_kohya(**values)[1]


def other_defaults(**values) -> set[str]:
    return set(re.findall(r"^(\w+) is not given: HotLoRA", load_kohya(**values)[1], re.MULTILINE))


def test_defaults_that_are_others_in_sd_scripts_are_told():
    given = {"network_dim": 4, "network_alpha": 1, "learning_rate": 2e-6, "lr_scheduler": "constant", "min_snr_gamma": 0, "caption_dropout_rate": 0,
             "text_encoder_lr": 1e-5}
    assert other_defaults(network_module="networks.lora") == set(given)
    assert "network_dim is not given: HotLoRA's default is 16, sd-scripts' is 4" in load_kohya(network_module="networks.lora")[1]
    assert not other_defaults(network_module="networks.lora", **given)
    for key in given:
        assert other_defaults(network_module="networks.lora", **{name: value for name, value in given.items() if name != key}) == {key}
    assert not other_defaults(lora_rank=8, max_train_steps=5)


def test_of_a_default_that_does_not_count_nothing_is_told():
    assert not other_defaults(network_module="a", network_weights="a.safetensors") & {"network_dim", "network_alpha"}
    assert "min_snr_gamma" not in other_defaults(network_module="a", debiased_estimation_loss=True)
    assert "learning_rate" not in other_defaults(network_module="a", unet_lr=1e-5)


@pytest.mark.parametrize("values, message", [
    (dict(network_dim="x"), "network_dim is 'x' but must be a whole number from 1 to 1024"),
    (dict(network_dim=8, lora_rank=4), "network_dim and lora_rank set the same thing to 8 and 4; remove one"),
    (dict(lr_scheduler="adafactor", network_dim=8), "lr_scheduler is 'adafactor' but must be one of constant"),
    (dict(bucket_no_upscale="x"), "bucket_no_upscale is 'x' but must be true or false"),
    (dict(network_args=["x"]), "network_args is ['x'] but"),
    (dict(network_args=3), "network_args is 3 but"), (dict(network_args=["conv_dim=x"]), "conv_dim in network_args is 'x' but"),
    (dict(sample_prompts="nowhere.txt"), "sample_prompts is 'nowhere.txt', which cannot be read"),
    (dict(text_encoder_lr="x"), "text_encoder_lr is 'x' but"), (dict(unet_lr="x"), "unet_lr is 'x' but"),
    (dict(max_train_epochs=2, steps=3), "steps is 3 and epochs is 2")])
def test_wrong_values_under_the_keys_of_sd_scripts_name_the_key_in_the_file(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_kohya(**values)


def test_a_prompt_file_of_sd_scripts_is_read(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# examples\na red cat --n bad --d 7\n\n猫, --w 512\n", encoding="utf-8-sig")
    config, warnings = load_kohya(sample_prompts=str(path), sample_every_n_steps=5)
    assert config.preview_prompts == ["a red cat", "猫,"] and config.preview_seed == 7
    assert "--n, --w in sample_prompts" in warnings


@pytest.mark.parametrize("form", ["peft", "both"])
def test_a_dora_is_not_promised_in_a_form_that_cannot_hold_it(form):
    with pytest.raises(ValueError, match=f"dora is true and save_format is {form}, .*; set save_format: kohya, or dora: false"):
        TrainConfig("x", dora=True, save_format=form)
