"""What ends a run before its first step is said before anything is captioned, encoded or loaded, in the words of the run itself."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hotlora.trainer.cli import main
from hotlora.trainer.lora_file import load_lora, write_safetensors
from hotlora.trainer.preflight import preflight
from hotlora.trainer.run import make_session, read_material

CPU = torch.device("cpu")
WRONG = [({"optimizer": "torch.optim.AdamV"}, r"torch\.optim has no AdamV"), ({"optimizer": "no_such_package_x.Best"}, "no module no_such_package_x .*; install it$"),
         ({"optimizer": "torch.optim.LBFGS"}, "wants to run the model itself"), ({"optimizer_args": {"bogus": 1}}, "unexpected keyword argument 'bogus'"),
         ({"optimizer_args": {"betas": [0.9, 2]}}, "Invalid beta"), ({"mixed_precision": "fp16"}, "mixed_precision is fp16, which needs a CUDA or ROCm GPU"),
         ({"loss_term": "nowhere.py:f"}, r"loss_term: there is no file nowhere\.py"), ({"augmentation": "json:nothing"}, "augmentation: json has no nothing")]
PATHS = [({"init_lora": "nowhere.safetensors"}, r"there is no file nowhere\.safetensors"), ({"reg_data_dir": "nowhere"}, r"The folder of prior pictures \(reg_data_dir\) nowhere does not exist"),
         ({"metadata_path": "nowhere.csv"}, r"metadata file nowhere\.csv does not exist"), ({"train_data_dir": "nowhere"}, "The gallery nowhere does not exist")]


@pytest.mark.parametrize("changes, sentence", WRONG + PATHS)
def test_what_would_end_the_run_is_said_before_it(config, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        preflight(replace(config, **changes), CPU)


@pytest.mark.parametrize("changes, sentence", [one for one in WRONG if "augmentation" not in one[0]])
def test_the_run_would_have_said_the_same(config, backend, changes, sentence, tmp_path):
    """A session alone, as it was made in the end, with everything encoded."""
    wrong = replace(config, **changes)
    with pytest.raises(ValueError) as early:
        preflight(wrong, CPU)
    session = make_session(read_material(config), backend)
    with pytest.raises(ValueError) as late:
        type(session)(wrong, backend, session.dataset, session.adapter, name="x", total_steps=1)
    assert str(early.value) == str(late.value)


def test_what_is_right_passes(config, session_of):
    assert session_of(config).train().status == "completed"
    changes = {"init_lora": f"{config.output_dir}/mascot.safetensors", "text_encoder_target_modules": ["q_proj"], "text_encoder_lr": 1e-5, "optimizer": "torch.optim.SGD",
               "optimizer_args": {"momentum": 0.9}, "loss_term": "shutil:move", "mixed_precision": "bf16"}
    with pytest.raises(ValueError, match="loss_term: shutil:move is called with"):
        preflight(replace(config, **changes), CPU)
    preflight(replace(config, **{**changes, "loss_term": None}), CPU)


def test_nothing_of_the_device_is_asked_where_it_is_not_known(config):
    preflight(replace(config, mixed_precision="fp16"))


def test_a_file_of_other_weights_is_no_lora_and_its_numbers_are_not_read(config, tmp_path):
    path = tmp_path / "other.safetensors"
    write_safetensors(path, {"conv_in.bias": torch.zeros(4)}, {})
    for read in (load_lora, lambda path: preflight(replace(config, init_lora=str(path)), CPU)):
        with pytest.raises(ValueError, match=r"other\.safetensors cannot be used as a LoRA: it is not a LoRA: 1 tensors such as conv_in\.bias"):
            read(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"other\.safetensors is damaged or no safetensors file"):
        preflight(replace(config, init_lora=str(path)), CPU)


def test_an_optimizer_for_matrices_alone_is_turned_down_for_convolutions_before_anything_is_encoded(config, backend, tmp_path, monkeypatch):
    """What only the layers of the base can tell."""
    (tmp_path / "only_matrices_x.py").write_text(
        "import torch\nclass Only(torch.optim.SGD):\n    def __init__(self, params, lr):\n        params = list(params)\n"
        "        assert all(p.ndim == 2 for group in params for p in group['params']), 'only matrices'\n        super().__init__(params, lr)\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrong = replace(config, optimizer="only_matrices_x.Only", conv_rank=2)
    preflight(wrong, CPU)
    with pytest.raises(ValueError, match="only matrices"):
        make_session(read_material(wrong), backend)
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize("extra", [["--dry-run"], [], ["--resume"]])
@pytest.mark.parametrize("setting, sentence", [("optimizer=torch.optim.AdamV", "has no AdamV"), ("mixed_precision=fp16", "needs a CUDA"),
                                               ("base_model=nowhere.safetensors", "base_model nowhere.safetensors does not exist")])
def test_the_command_line_says_it_before_it_reads_a_picture(gallery, tmp_path, capsys, monkeypatch, extra, setting, sentence):
    monkeypatch.setattr("hotlora.trainer.run.read_gallery", lambda *_, **__: pytest.fail("a picture was read"))
    out = tmp_path / "out"
    arguments = ["train_data_dir=" + str(gallery), f"output_dir={out}", "device=cpu", setting]
    assert main([*extra, *(part for one in arguments for part in ("--set", one))]) == 1
    assert sentence in capsys.readouterr().err and not out.exists()
