"""Settings files of any content: an answer or one clear sentence, never a traceback."""
from __future__ import annotations

import json
import math

import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from hotlora.trainer.config import SETTINGS, TrainConfig
from hotlora.trainer.config_files import load_config, parse_override
from hotlora.trainer.kohya_keys import KOHYA_KEYS

KEYS = [*SETTINGS, *KOHYA_KEYS]
fuzz = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

texts = st.one_of(st.text(max_size=20), st.sampled_from([
    "1e-4", "512,768", "AdamW8bit", "no", "null", "nan", "-1", "9" * 500, "a.b:c", "x.txt", "weight_decay=0.1 betas=.9,.99",
    "a --d 5"]))
numbers = st.one_of(st.integers(), st.integers(-3, 2000), st.floats(), st.floats(0, 1))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
plain = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
                     max_leaves=6)
mappings = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), texts), plain, max_size=6)
good_keys = st.dictionaries(st.sampled_from(KEYS), plain, max_size=4)


def answer_or_sentence(name: str, text: str, overrides: tuple[str, ...] = ()) -> TrainConfig | None:
    """The config, checked to be one that can be saved and read back, or None after an error that a user can read."""
    try:
        config, warnings = load_config(name, overrides, text=text)
    except ValueError as error:
        message = str(error)
        assert type(error) is ValueError and 20 < len(message) < 1000 and "; " in message, message
        return None
    assert all(isinstance(warning, str) and len(warning) > 10 for warning in warnings)
    assert all(math.isfinite(value) for value in config.to_dict().values() if isinstance(value, float))
    assert load_config("again.yaml", text=config.to_yaml())[0] == config
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    return config


@settings(fuzz, max_examples=150)
@given(st.text(max_size=200), st.sampled_from(["a.yaml", "a.toml", "a.json"]))
def test_any_text(text, name):
    answer_or_sentence(name, text)


@settings(fuzz, max_examples=100)
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.yaml", "a.toml", "a.json"]))
def test_any_bytes(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    try:
        load_config(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "; " in str(error)


@settings(fuzz, max_examples=200)
@given(mappings)
def test_any_mapping_as_json(values):
    answer_or_sentence("a.json", json.dumps({"train_data_dir": "pics", **values}))


@settings(fuzz, max_examples=200)
@given(good_keys)
def test_any_values_of_known_keys_as_yaml(values):
    answer_or_sentence("a.yaml", yaml.safe_dump({"train_data_dir": "pics", **values}, allow_unicode=True))


@settings(fuzz, max_examples=150)
@given(st.sampled_from(KEYS), scalars)
def test_one_value_names_its_key_when_it_is_wrong(key, value):
    try:
        load_config("a.json", text=json.dumps({"train_data_dir": "pics", key: value}))
    except ValueError as error:
        assert key in str(error) or key == "output_name", error


@settings(fuzz, max_examples=100)
@given(st.lists(st.text(alphabet="{}[]:,#&*!|>'\"%@`-? \n\tab1.", min_size=1, max_size=30), max_size=4))
def test_yaml_made_of_its_own_signs(lines):
    answer_or_sentence("a.yaml", "train_data_dir: pics\n" + "\n".join(f"trigger: {line}" for line in lines))


@settings(fuzz, max_examples=100)
@given(st.sampled_from(KEYS), texts)
def test_any_override(key, value):
    answer_or_sentence("a.yaml", "train_data_dir: pics\nepochs: 2", (f"{key}={value}",))


@settings(fuzz, max_examples=50)
@given(st.text(max_size=60))
def test_any_override_text(text):
    try:
        key, _ = parse_override(text)
        assert key and key == key.strip()
    except ValueError as error:
        assert "; " in str(error)


def valid(name: str) -> st.SearchStrategy:
    """Values that the setting `name` allows."""
    setting = SETTINGS[name]
    if setting.choices:
        return st.sampled_from(setting.choices)
    low = setting.minimum if setting.above is None else setting.above
    high = setting.maximum if setting.below is None else setting.below
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    kinds = {"bool": st.booleans(), "str": words, "list[str]": st.lists(words, max_size=3),
             "int": st.integers(low, high) if low is not None else st.nothing(),
             "float": st.floats(low, high, exclude_min=setting.above is not None, exclude_max=setting.below is not None)
             if low is not None else st.nothing(),
             "dict": st.dictionaries(words.filter(lambda name: name not in ("lr", "weight_decay")),
                                     st.one_of(words, st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
                                     max_size=3)}
    return st.one_of(st.none(), kinds[setting.kind]) if setting.optional else kinds[setting.kind]


FREE = [name for name, setting in SETTINGS.items()
        if not setting.pattern and name not in ("name", "steps", "bucket_step", "min_timestep", "max_timestep")]


@settings(fuzz, max_examples=100)
@given(st.data())
def test_allowed_values_are_kept_as_they_are(data):
    names = data.draw(st.lists(st.sampled_from(FREE), max_size=8, unique=True))
    values = {name: data.draw(valid(name), label=name) for name in names}
    if values.get("preservation_weight") and not (values.get("trigger") or "").strip():
        values["trigger"] = "sks"
    config = answer_or_sentence("a.json", json.dumps({"train_data_dir": "pics", **values}))
    assert config is not None
    for name, value in values.items():
        left_out = SETTINGS[name].optional and (value == "" or name == "min_snr_gamma" and value == 0)
        if not left_out and not (isinstance(value, str) and not value.strip()):
            assert getattr(config, name) == value
