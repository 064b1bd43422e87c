"""What is known before the base is loaded: what is trained and measured, and what is wrong with base, tokenizer and data."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from hotlora.trainer.llm.base_folder import is_language_base
from hotlora.trainer.llm.chat import Question
from hotlora.trainer.llm.material import read_material, tell_problems


@pytest.fixture
def general(world, tmp_path):
    folder = tmp_path / "general"
    folder.mkdir()
    for number, text in enumerate(world.general_texts(60)):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def texts(rows, tokenizer):
    return {tokenizer.decode(sample.ids) for row in rows.rows for sample in row}


def test_a_tenth_is_held_back_and_never_trained(config):
    material = read_material(replace(config, validation=True))
    trained, measured = (texts(rows, material.tokenizer) for rows in (material.train, material.held_out))
    assert len(material.held_out) == 2 and len(material.train) == 22 and not trained & measured
    assert texts(read_material(replace(config, validation=True, seed=1)).held_out, material.tokenizer) != measured


def test_too_few_records_to_hold_some_back(config, records):
    records.write_text("\n".join(records.read_text().splitlines()[:19]))
    with pytest.raises(ValueError, match="validation is on, but 19 records are too few .* it needs 20"):
        read_material(replace(config, validation=True))


def test_general_texts_are_measured_and_if_wanted_trained_but_never_both(config, general):
    config = replace(config, general_data_dir=str(general))
    material = read_material(config)
    assert len(material.general) == 60 and len(material.train) == 24
    material = read_material(replace(config, general_share=0.25))
    assert len(material.general) == 20 and len(material.train) == 32
    trained, measured = (texts(rows, material.tokenizer) for rows in (material.train, material.general))
    assert not trained & measured and any("8 general samples are trained as well, 25% of all" in line for line in material.report)
    material = read_material(replace(config, general_share=0.9))
    assert len(material.train) == 24 + 40 and "40 general samples are trained as well, 62% of all" in " ".join(material.report)


def test_too_few_general_texts_to_train_some(config, general):
    for file in sorted(general.iterdir())[39:]:
        file.unlink()
    with pytest.raises(ValueError, match="general_data_dir has only 39 records, of which 20 are kept for measuring"):
        read_material(replace(config, general_data_dir=str(general), general_share=0.5))


def test_bad_records_are_named_and_counted(config, records, caplog):
    with records.open("a", encoding="utf-8") as file:
        file.write("oops\n" + json.dumps({"prompt": "why " * 500, "completion": "so"}) + "\n" + "{}\n" * 20)
    material = read_material(config)
    assert "24 records in" not in material.report[0] and "; 22 skipped" in material.report[0] and len(material.train) == 24
    tell_problems(material.problems)
    told = [message for message in caplog.messages]
    assert "my facts.jsonl, line 25: this is not JSON" in told[0] and told[-1].endswith("12 more were skipped; the log file names all of them")


def test_keys_that_are_not_read_are_told_for_all_data(config, records):
    extra = json.dumps({"prompt": "Who?", "completion": "Ann.", "tools": "[]"})
    records.write_text(records.read_text(encoding="utf-8") + extra, encoding="utf-8")
    other = records.with_name("other.jsonl")
    other.write_text(extra, encoding="utf-8")
    warnings = read_material(replace(config, eval_data_dir=str(other))).warnings
    assert [warning.split("have keys")[0] for warning in warnings] == ["records of train_data_dir ", "records of eval_data_dir "]
    assert all("'tools' (in 1 records)" in warning for warning in warnings)


def test_previews_ask_the_questions_of_the_data_with_the_system_text_of_their_record(config, records):
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    first = [line["prompt"] for line in lines[:3]]
    assert read_material(config).prompts == [Question(text) for text in first]
    records.write_text("".join(json.dumps(line | {"system": "Be brief."}) + "\n" for line in lines), encoding="utf-8")
    assert read_material(config).prompts == [Question(text, "Be brief.") for text in first]
    assert read_material(replace(config, preview_steps=1, preview_prompts=["Who?"])).prompts == [Question("Who?")]


def test_packing_makes_fewer_rows(config):
    material = read_material(replace(config, packing=True))
    assert len(material.train) < 24 and sum(len(row) for row in material.train.rows) == 24 and material.train.longest() <= 64


def test_the_base_limits_the_length(config):
    material = read_material(replace(config, max_length=1000))
    assert material.config.max_length == 256 and material.warnings == ["max_length is 1000, but the base reaches to 256 tokens only; 256 is used"]
    assert not read_material(replace(config, max_length=256)).warnings


def test_the_name_comes_from_the_data(config):
    assert read_material(replace(config, name=None)).name == "my facts"


@pytest.mark.parametrize("change, expected", [
    ("missing", "base_model is .*gone, which does not exist; .*Nothing is downloaded"),
    ("no config", "has no config.json"),
    ("damaged config", "config.json cannot be read"),
    ("no model", "whose config.json names BertModel; a language model's ends in ForCausalLM"),
    ("no tokenizer", "the tokenizer of .* cannot be loaded"),
    ("adapter", "which is an adapter and not a whole model; set base_model to the/base and init_lora to this folder"),
])
def test_a_base_that_is_none_is_one_sentence(config, base, tmp_path, change, expected):
    folder = tmp_path / "gone"
    if change != "missing":
        shutil.copytree(base, folder)
    if change in ("no config", "adapter"):
        (folder / "config.json").unlink()
    if change == "damaged config":
        (folder / "config.json").write_text("{")
    if change == "no model":
        (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    if change == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    if change == "adapter":
        (folder / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM", "base_model_name_or_path": "the/base"}')
    with pytest.raises(ValueError, match=expected) as error:
        read_material(replace(config, base_model=str(folder)))
    assert "\n" not in str(error.value)


def test_what_is_a_language_base(base, tmp_path):
    assert is_language_base(base)
    for content, expected in (('{"architectures": ["GPT2LMHeadModel"]}', True), ('{"architectures": ["UNet2DConditionModel"]}', False),
                              ('{"architectures": 3}', False), ("[]", False), ("{", False)):
        (tmp_path / "config.json").write_text(content)
        assert is_language_base(tmp_path) is expected, content
    assert not is_language_base("demo") and not is_language_base("") and not is_language_base("a" * 5000) and not is_language_base("a\0b")
