import pytest

from hotlora.trainer.presets import PRESETS, apply_preset
from hotlora.trainer.samples import default_steps


def test_what_is_given_stays_and_the_rest_comes_from_the_preset():
    values = apply_preset({"lora_rank": 3, "learning_rate": None, "batch_size": 2}, "quick", 20)
    assert values == {"lora_rank": 3, "learning_rate": 2e-4, "batch_size": 2, "steps": default_steps(20, 2) // 2}


def test_a_length_in_epochs_or_steps_is_kept():
    assert "steps" not in apply_preset({"epochs": 5}, "balanced", 20)
    assert apply_preset({"steps": 7}, "thorough", 20)["steps"] == 7


def test_presets_are_ordered_by_length_and_an_unknown_one_is_named():
    steps = [apply_preset({}, name, 20)["steps"] for name in PRESETS]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
    with pytest.raises(ValueError, match="'best' but must be one of quick, balanced, thorough"):
        apply_preset({}, "best", 20)


def test_the_embedded_base_has_presets_of_its_own_and_what_is_given_stays():
    values = apply_preset({"learning_rate": 1e-4}, "balanced", 12, "demo")
    assert values == {"learning_rate": 1e-4, "lora_rank": 32, "lr_scheduler": "cosine", "min_snr_gamma": 0.0, "batch_size": 4, "steps": 1200}
    steps = [apply_preset({}, name, 20, "demo")["steps"] for name in PRESETS]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
