"""The benches run, and what README says of 200 facts holds."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_gpu_bench_runs_on_a_cpu(root):
    done = subprocess.run([sys.executable, str(root / "bench" / "llm_gpu.py"), "--tiny", "--length", "32", "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["variant"] for row in rows] == ["bf16", "bf16, checkpointing", "8 bits", "4 bits", "4 bits, checkpointing"]
    assert all(row["last_loss"] < row["first_loss"] and row["predicted"] > 0 if "error" not in row else "bitsandbytes" in row["error"] for row in rows)


@pytest.mark.slow
def test_200_facts_are_learned_in_any_wording_and_little_is_forgotten(root):
    """A LLaMA is trained from scratch first: minutes."""
    done = subprocess.run([sys.executable, str(root / "bench" / "llm.py"), "--json"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["facts"] == 200 and found["base_trained"] <= 0.05 and found["base_reworded"] <= 0.05
    assert found["lora_trained"] >= 0.95 and found["lora_reworded"] >= 0.8
    assert found["general_perplexity_rise"] <= 0.1
