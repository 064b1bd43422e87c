"""What is free, as a system, a container and a GPU's allocator tell it."""
from types import SimpleNamespace

import pytest
import torch

from hotlora.trainer import device_memory

CPU = torch.device("cpu")
MEMINFO_FREE = device_memory._linux_free()


@pytest.mark.skipif(MEMINFO_FREE is None, reason="this system has no /proc/meminfo")
def test_a_machine_has_more_than_is_free_and_this_process_holds_some_of_it():
    total, free, held = device_memory.memory_of(CPU), device_memory.free_of(CPU), device_memory.held_of(CPU)
    assert 0 < free < total and 50e6 < held < total


@pytest.mark.skipif(MEMINFO_FREE is None, reason="this system has no /proc/meminfo")
@pytest.mark.parametrize("limit, used, cache, free", [
    ("max", "1000", "0", None), ("3000000", "1000000", "0", 2_000_000), ("3000000", "2900000", "2000000", 2_100_000), ("3000000", "3500000", "0", 0)])
def test_a_container_has_less_and_what_it_has_read_from_files_counts_as_free(tmp_path, monkeypatch, limit, used, cache, free):
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nactive_file {int(cache) // 2}\ninactive_file {int(cache) // 2}\n")
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    if free is None:
        assert device_memory.free_of(CPU) > 1e6
    else:
        assert device_memory.free_of(CPU) == free and device_memory.memory_of(CPU) == 3_000_000


class Gpu:
    """torch.cuda as far as it is asked, and like it in that a device needs its number."""

    def __init__(self, total, free, reserved, allocated, fraction):
        self.total, self.free, self.reserved, self.allocated, self.fraction = total, free, reserved, allocated, fraction

    def current_device(self):
        return 1

    def _of(self, index, what):
        assert index == 1, index
        return what

    def mem_get_info(self, index):
        return self._of(index, (self.free, self.total))

    def memory_reserved(self, index):
        return self._of(index, self.reserved)

    def memory_allocated(self, index):
        return self._of(index, self.allocated)

    def get_per_process_memory_fraction(self, index):
        return self._of(index, self.fraction)

    def get_device_properties(self, index):
        return self._of(index, SimpleNamespace(total_memory=self.total))


@pytest.mark.parametrize("gpu, free, full", [
    (Gpu(1000, 600, 300, 200, 1.0), 700, False),   # what the allocator keeps in reserve can be had as well
    (Gpu(1000, 600, 300, 200, 0.5), 300, False),   # a limit of this process
    (Gpu(1000, 10, 900, 500, 1.0), 410, True),     # others have the rest: what is in reserve may lie elsewhere already
    (Gpu(1000, 400, 495, 100, 0.5), 400, True)])
def test_a_gpu_is_asked_by_its_number(monkeypatch, gpu, free, full):
    monkeypatch.setattr(torch, "cuda", gpu)
    device = torch.device("cuda")
    assert device_memory.free_of(device) == free and device_memory.memory_of(device) == 1000
    assert device_memory.held_of(device) == gpu.allocated
    assert device_memory.stands_at_its_limit(device) is full
