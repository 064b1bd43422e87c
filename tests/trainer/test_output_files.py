"""The endings that no LoRA may be lost in, each a real one: a full disk, a read-only folder, a limit, a kill."""

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from hotlora.trainer.lora_file import OutputError, load_lora, save_lora
from hotlora.trainer.output_files import disk_full, write_atomically

ROOT = Path(__file__).parents[2]
START = """
import os, sys
sys.path.insert(0, {root!r})
import __init__
from hotlora.trainer.output_files import OutputError, write_atomically
path, data = sys.argv[1], open(sys.argv[2], "rb").read()
def attempt(path):
    try:
        write_atomically(path, data, keep_old=True)
    except OutputError as error:
        print(error)
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses limits and users of POSIX systems")


@pytest.fixture
def whole_file(tmp_path):
    """A LoRA file of about a megabyte."""
    path = tmp_path / "source" / "x.safetensors"
    save_lora(path, {"lora_unet_conv_in": {"down": torch.randn(64, 4096), "up": torch.randn(4096, 64), "alpha": 64.0}}, {})
    return path


def child(body: str, path: Path, source: Path, *prefix: str) -> subprocess.Popen:
    script = START.format(root=str(ROOT)) + textwrap.dedent(body)
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", script, str(path), str(source)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def printed(process: subprocess.Popen) -> list[str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output.splitlines()


@posix
def test_a_file_over_the_systems_limit_keeps_the_old_one(tmp_path, whole_file):
    path = tmp_path / "output" / "face.safetensors"
    write_atomically(path, b"old")
    [message] = printed(
        child("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\nattempt(path)", path, whole_file)
    )
    assert message.startswith(f"{path} could not be written: its 1.0 MB are over the largest file that the system allows")
    assert message.endswith("(nothing that was there has been changed)")
    assert {other.name: other.read_bytes() for other in path.parent.iterdir()} == {"face.safetensors": b"old"}


def test_a_full_disk_keeps_the_old_file(tmp_path, whole_file):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True
        ).returncode
    ):
        pytest.skip("this system does not let a test mount a small disk")
    body = """
        import subprocess
        disk = os.path.dirname(path)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], check=True)
        write_atomically(path, b"old")
        attempt(path)
        assert open(path, "rb").read() == b"old" and os.listdir(disk) == [os.path.basename(path)]
    """
    [message] = printed(child(body, disk / "face.safetensors", whole_file, "unshare", "-rm"))
    assert "the disk is full (1.0 MB are needed, 0.3 MB are free); free some space or set another output_dir" in message


@pytest.mark.parametrize("error, is_full", [
    (OSError(28, "No space left on device"), True),
    (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),  # safetensors
    (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]), True),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 11520 vs 11412"), False),  # torch, on a disk with room
    (OSError(13, "Permission denied"), False),
    (ValueError("x"), False),
])
def test_a_full_disk_is_known_whichever_library_tells_of_it(tmp_path, error, is_full):
    found = disk_full(tmp_path / "out", error)
    assert (found is not None) == is_full
    assert found is None or str(found).startswith(f"{tmp_path / 'out'} could not be written: the disk is full (") and found.errno == 28


@posix
def test_a_read_only_folder_is_a_clear_error(tmp_path, whole_file):
    folder = tmp_path / "locked"
    write_atomically(folder / "face.safetensors", b"old")
    folder.chmod(0o555)
    # The superuser may write anywhere, so the child gives that up for one folder that it may enter.
    body = """
        os.chdir(os.path.dirname(path))
        if os.getuid() == 0:
            os.setuid(65534)
        attempt("face.safetensors")
        attempt(os.path.join("new", "face.safetensors"))
    """
    messages = printed(child(body, folder / "face.safetensors", whole_file))
    folder.chmod(0o755)
    assert len(messages) == 2
    for message in messages:
        assert "face.safetensors could not be written: the folder is read-only for this user; change its permissions" in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"face.safetensors": b"old"}


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "output").write_text("x")
    with pytest.raises(OutputError, match="could not be written: .*; set another output_dir") as error:
        write_atomically(tmp_path / "output" / "x.safetensors", b"new")
    assert isinstance(error.value, OSError) and error.value.errno
    assert (tmp_path / "output").read_text() == "x"


def test_a_kill_and_a_reader_at_any_moment_find_a_whole_file(tmp_path, whole_file):
    path = tmp_path / "face.safetensors"
    for _ in range(3):
        writer = child(
            """
            while True:
                write_atomically(path, data)
                print("written", flush=True)
        """,
            path,
            whole_file,
        )
        try:
            assert writer.stdout.readline() == "written\n"
            end = time.monotonic() + 0.3
            while True:
                assert load_lora(path)[0]["lora_unet_conv_in"]["down"].shape == (64, 4096)
                if time.monotonic() > end:
                    break
        finally:
            writer.kill()
            writer.communicate()
        assert path.read_bytes() == whole_file.read_bytes()


def test_old_files_are_kept_in_order_even_with_gaps(tmp_path):
    path = tmp_path / "a.b.safetensors"
    (tmp_path / "a.b-v2.safetensors").write_bytes(b"somebody's")
    kept = [write_atomically(path, str(number).encode(), keep_old=True) for number in range(3)]
    assert kept == [None, tmp_path / "a.b-v1.safetensors", tmp_path / "a.b-v3.safetensors"]
    assert {other.name: other.read_bytes() for other in tmp_path.iterdir()} == {
        "a.b.safetensors": b"2",
        "a.b-v1.safetensors": b"0",
        "a.b-v2.safetensors": b"somebody's",
        "a.b-v3.safetensors": b"1",
    }


@posix
def test_others_may_read_the_file_as_the_system_is_set_up(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
