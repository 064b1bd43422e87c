"""The page's bench in small: that it measures what it says, and that its output can be read. Speed is not tested, as other programs run meanwhile."""
import json

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("diffusers", reason="the standalone server needs diffusers, which hosts may lack")

from hotlora.bench import page  # noqa: E402


@pytest.fixture(autouse=True)
def chromium():
    if page.chromium() is None:
        pytest.skip("no Chromium on the PATH")


@pytest.mark.slow
def test_all_parts(capsys):
    found = page.main(["--json", "--repeats", "1", "--pictures", "30", "--steps", "400"])
    assert json.loads(capsys.readouterr().out) == found
    assert set(found["first"]) == {"empty", "with a run"}
    for one in found["first"].values():
        # ready is when the page has put its parts in place, which the browser paints in its next frame or has begun to paint before
        assert 0 < one["paint"] < 60_000 and 0 < one["cold"] < 60_000 and one["warm"] > 0
    assert found["thumbnails"]["thumbnails on disk"] == 30 and found["thumbnails"]["from disk ms"] > 0
    assert found["live"]["steps"] > 250 and found["live"]["last tenth ms per event"] > 0
    table = page.table(found)
    assert all(f"| {part}" in table for part in ("first screen", "thumbnails", "live"))
