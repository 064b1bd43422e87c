"""The arithmetic of bench/scale.py against simple cases; and, slow, that it measures two processes."""
import json
import subprocess
import sys

import pytest
import torch

from hotlora.bench.scale import ETHERNET, NVLINK, Network, adapter_bytes, farm_cost, paper_tables, sum_seconds


def test_the_time_of_adding_up():
    assert sum_seconds(10 ** 9, 1, NVLINK) == 0
    plain = Network("1 GB/s without latency", 1e9, 0.0)
    assert sum_seconds(10 ** 9, 2, plain) == pytest.approx(1.0), "each half goes out once and comes back once"
    assert sum_seconds(10 ** 9, 1000, plain) == pytest.approx(2.0, rel=2e-3)
    assert sum_seconds(4, 64, ETHERNET) == pytest.approx(12 * ETHERNET.latency, rel=1e-3), "what is small costs the depth of the tree"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_bytes_are_those_of_a_real_adapter(family):
    pytest.importorskip("diffusers")
    from diffusers import UNet2DConditionModel

    from hotlora.bench.scale import ROOT, TARGETS
    from hotlora.trainer.adapter import Adapter

    shapes = json.loads((ROOT / "trainer" / "hosts" / "diffusers_models" / f"{family}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shapes["unet"])
    adapter = Adapter.create({"unet": unet}, {"unet": list(TARGETS)}, rank=2, alpha=2)
    assert adapter_bytes(family, 2) == 4 * sum(p.numel() for p in adapter.parameters())


def test_the_tables_name_what_they_assume():
    pytest.importorskip("diffusers")
    told = "\n".join(paper_tables([0.05, 0.2], 2, 16))
    assert "2 pictures for each GPU at 0.05 s" in told and "2 pictures for each GPU at 0.2 s" in told and "| 1,000 |" in told and "2,000 | 1.0 |" in told
    assert 0 < farm_cost(3) < 60


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_it_measures(root):
    done = subprocess.run([sys.executable, str(root / "bench" / "scale.py"), "--processes", "1", "2", "--json"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    alone, shared = json.loads(done.stdout)["measured"]
    assert (alone["world"], shared["world"]) == (1, 2) and alone["bytes"] == shared["bytes"] and 0 < shared["adding"] < shared["step"]
    assert all(seconds > 0 for seconds in shared["sums"].values())
