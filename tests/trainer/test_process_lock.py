"""A file that one process holds and no other."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotlora.trainer.process_lock import alone, hold

ROOT = Path(__file__).resolve().parent.parent.parent
HOLDER = "import sys, __init__; from pathlib import Path; from hotlora.trainer.process_lock import hold; kept = hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_what_another_process_holds_is_refused_until_it_dies(tmp_path):
    path = tmp_path / "sub" / ".face.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another is at work"), alone(path, "another is at work"):
            pass
        assert path.exists(), "it belongs to the other"
    finally:
        holder.kill()
        holder.communicate()
    with alone(path, "another is at work"):
        assert path.exists()
    assert not path.exists()


@pytest.mark.skipif(os.name != "posix", reason="the system's call is another one")
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    import fcntl

    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with hold(tmp_path / "lock") as file:
        assert not file.closed


@pytest.mark.skipif(os.name != "posix", reason="a file that is open cannot be removed there")
def test_a_file_that_its_holder_removes_meanwhile_is_not_taken_for_held(tmp_path, monkeypatch):
    import fcntl

    path, usual = tmp_path / "lock", fcntl.flock

    def removed_meanwhile(*arguments):
        monkeypatch.setattr(fcntl, "flock", usual)
        path.unlink()
        usual(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with hold(path), pytest.raises(ValueError, match="another is at work"), alone(path, "another is at work"):
        pass
