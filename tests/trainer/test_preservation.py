"""Differential output preservation: what is asked for, what it costs the class, and that it changes nothing where it does not apply."""
from dataclasses import replace

import pytest
import torch

from hotlora.trainer.config import TrainConfig
from hotlora.trainer.gallery import without_trigger
from hotlora.trainer.preservation import preservation_loss
from hotlora.trainer.validate import adapter_off


@pytest.mark.parametrize("caption, instead, wanted", [
    ("sks, a red hat", "dog", "dog, a red hat"), ("a photo of sks on a bed", "dog", "a photo of dog on a bed"), ("sks, a red hat", "", "a red hat"),
    ("a photo of sks", "", "a photo of"), ("a photo of Sks", "dog", "a photo of dog"), ("asks for more", "dog", "asks for more"), ("", "dog", ""), ("sks", r"\1", r"\1"),
])
def test_the_class_word_takes_the_place_of_the_trigger(caption, instead, wanted):
    assert without_trigger(caption, " sks ", instead) == wanted


def test_it_needs_a_trigger():
    with pytest.raises(ValueError, match="preservation_weight is 1, which needs a trigger word .*; set trigger"):
        TrainConfig(train_data_dir="x", preservation_weight=1.0)


def test_the_loss_is_the_distance_of_the_class_s_prediction_from_the_base_s(session_of, config, backend):
    session = session_of(replace(config, trigger="sks", class_word="circle", preservation_weight=2.0))
    for layer in session.adapter.layers.values():
        torch.nn.init.normal_(layer.up, std=0.02, generator=torch.Generator().manual_seed(0))
    objective, size_B6 = session.objective, torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    with backend.borrow(), session.adapter.attached(backend.components()):
        z_BCHW = torch.randn(2, *session.dataset.latents.load(session.dataset.examples[0])["z_VCHW"].shape[1:], generator=torch.Generator().manual_seed(1))
        t_B = torch.tensor([300, 700])
        caption = session.dataset.examples[0].caption
        assert "sks" in caption
        data = {"captions": [caption, ""], "size_B6": size_B6}
        loss = preservation_loss(session, data, z_BCHW, t_B)
        with torch.no_grad():
            cond = backend.encode_text([caption.replace("sks", "circle")])
            out = backend.predict(z_BCHW[:1], t_B[:1], cond, size_B6[:1])
            with adapter_off(session.adapter):
                base = backend.predict(z_BCHW[:1], t_B[:1], cond, size_B6[:1])
        assert loss.item() == pytest.approx(2 * objective.loss(out, base, t_B[:1]).item(), rel=1e-4) and loss.item() > 0
        loss.backward()
        assert all(layer.down.grad.abs().sum() > 0 for (component, _), layer in session.adapter.layers.items() if component == "unet")
        assert preservation_loss(session, {"captions": ["", ""], "size_B6": size_B6}, z_BCHW, t_B).item() == 0


def test_the_class_drifts_less(session_of, config, backend, tmp_path):
    """Twelve steps at a high rate, with and without: how far the prompt with the class word moves."""
    moved = []
    for weight in (0.0, 4.0):
        session = session_of(replace(config, trigger="sks", class_word="circle", preservation_weight=weight, validation=True, steps=12, learning_rate=3e-3,
                                     lr_scheduler="constant", output_dir=str(tmp_path / str(weight))))
        session.train()
        assert "circle" in session.dataset.drift_prompts()
        moved.append(session.progress.measurements[-1].drift)
    assert 0 < moved[1] < 0.8 * moved[0]
