"""What the user of `make demo` gets."""
import json

import numpy as np
import pytest
from PIL import Image

from hotlora.trainer.demo.run_demo import GALLERY_DIR, run_demo, write_gallery


@pytest.mark.slow
def test_the_demo_learns_the_mascot_and_forgets_nothing(tmp_path):
    pytest.importorskip("diffusers", reason="the embedded base needs diffusers, which hosts may lack")
    result = run_demo(tmp_path / "demo")
    assert result == json.loads((tmp_path / "demo" / "result.json").read_text())
    assert set(result) == {"base_score", "lora_score", "prompt_accuracy_base", "prompt_accuracy_lora", "seconds", "lora", "grid"}
    assert result["base_score"] <= 0.15 and result["lora_score"] >= 0.8
    assert result["prompt_accuracy_base"] - result["prompt_accuracy_lora"] <= 0.05
    grid = Image.open(result["grid"])
    assert grid.width > 4 * 64 and grid.height > 3 * 64


def test_the_gallery_is_what_the_script_draws(tmp_path):
    write_gallery(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(p.name for p in GALLERY_DIR.iterdir()) and len(names) == 13
    assert (tmp_path / "metadata.csv").read_bytes() == (GALLERY_DIR / "metadata.csv").read_bytes()
    for name in names[1:]:
        if name.endswith(".png"):
            drawn, kept = (np.asarray(Image.open(folder / name), dtype=int) for folder in (tmp_path, GALLERY_DIR))
            # Pillow's versions round the smoothing of edges differently
            assert drawn.shape == kept.shape and abs(drawn - kept).max() <= 16
