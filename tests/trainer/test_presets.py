import pytest

from hotlora.trainer.caption_choices import PURPOSES
from hotlora.trainer.config import SETTINGS, TrainConfig
from hotlora.trainer.presets import FORMER_NAMES, OF_BASE, OF_PRESET, OF_PURPOSE, PRESETS, apply_preset, preset_of, table
from hotlora.trainer.samples import default_steps


def test_what_is_given_stays_and_the_rest_comes_from_the_preset():
    values = apply_preset({"lora_rank": 3, "learning_rate": None, "batch_size": 2}, "quick", 20)
    assert values == {"lora_rank": 3, "learning_rate": 2e-4, "batch_size": 2, "steps": default_steps(20, 2) // 2}


def test_a_length_in_epochs_or_steps_is_kept():
    assert "steps" not in apply_preset({"epochs": 5}, "balanced", 20)
    assert apply_preset({"steps": 7}, "best", 20)["steps"] == 7


@pytest.mark.parametrize("purpose", PURPOSES)
def test_presets_are_ordered_by_length_and_size_for_every_purpose(purpose):
    filled = [apply_preset({"purpose": purpose}, name, 20) for name in PRESETS]
    for key in ("steps", "lora_rank"):
        values = [one[key] for one in filled]
        assert values == sorted(values) and len(set(values)) == len(values)
    rates = [one["learning_rate"] for one in filled]
    assert rates == sorted(rates, reverse=True)


def test_an_unknown_preset_is_named_and_a_former_name_understood():
    with pytest.raises(ValueError, match="'longest' but must be one of quick, balanced, best"):
        apply_preset({}, "longest", 20)
    assert all(apply_preset({}, old, 20) == apply_preset({}, new, 20) for old, new in FORMER_NAMES.items())


def test_purposes_differ_where_their_table_says_so():
    person, style = ({**apply_preset({"purpose": purpose}, "balanced", 20)} for purpose in ("person", "style"))
    assert person["steps"] == default_steps(20, 1, OF_PURPOSE["person"]["passes"].value) != style["steps"]
    assert style["lora_rank"] == 2 * person["lora_rank"] and style["caption_dropout"] == 0.1 and "caption_dropout" not in person
    assert apply_preset({"purpose": None}, "balanced", 20) == {"purpose": None, **apply_preset({}, "balanced", 20)}


def test_every_value_has_a_reason_and_is_a_setting_that_is_allowed():
    assert set(OF_PURPOSE) == set(PURPOSES) and set(OF_PRESET) == set(PRESETS) and all(set(one) == set(PRESETS) for one in OF_BASE.values())
    rows = table()
    assert len(rows) == len({(row["preset"], row["purpose"], row["base"], row["setting"]) for row in rows})
    assert all(len(row["why"]) > 10 and (row["setting"] in SETTINGS or row["setting"] == "passes") for row in rows)
    for purpose in PURPOSES:
        for preset in PRESETS:
            for base in (None, *OF_BASE):
                TrainConfig.from_dict({"train_data_dir": "x", **apply_preset({"purpose": purpose}, preset, 20, base)})


def test_the_embedded_base_has_presets_of_its_own_and_what_is_given_stays():
    values = apply_preset({"learning_rate": 1e-4}, "balanced", 12, "demo")
    own = preset_of("balanced", "demo")
    assert values["learning_rate"] == 1e-4 and values["lora_rank"] == own["lora_rank"] and values["batch_size"] == own["batch_size"]
    assert values["steps"] == round(default_steps(12, own["batch_size"], own["passes"]) * own["steps"])
    steps = [apply_preset({}, name, 20, "demo")["steps"] for name in PRESETS]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
