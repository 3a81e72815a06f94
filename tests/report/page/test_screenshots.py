"""Pictures of the page by chromium, to look at: rlkit-page-*.png in the folder of the test. The test only sees that something is drawn."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_watch import start_watching
from tests.report.page.demo_runs import write_demo_runs

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=6000"),
)
HEIGHTS = {1280: 2100, 390: 3600}
FEWEST_COLOURS = 50


@pytest.mark.nightly("matrices")
def test_each_view_is_drawn_at_both_widths(tmp_path: Path) -> None:
    found = [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]
    chromium = found[0] if found else pytest.skip("no pictures: chromium is not installed (apt-get install chromium)")
    server = start_watching(write_demo_runs(tmp_path / "runs"))
    try:
        with server.open() as client:
            ids = {row["state"]: row["id"] for row in client.get("/api/runs").json()["runs"] if not row["name"].startswith("hostile")}
        running, done = ids["running"], ids["done"]
        views = {"list": "", "run": f"#/run/{running}", "compare": f"#/compare/{running}/{done}", "failed": f"#/run/{ids['failed']}"}
        views["sample"] = f"#/run/{running}/samples/20"
        for name, hash_ in views.items():
            for width, height in HEIGHTS.items():
                picture = tmp_path / f"rlkit-page-{name}-{width}.png"
                sizes = [f"--window-size={width},{height}", f"--user-data-dir={tmp_path / picture.stem}", f"--screenshot={picture}"]
                subprocess.run([chromium, *FLAGS, *sizes, server.link + hash_], check=True, capture_output=True, timeout=60)
                image = Image.open(picture).convert("RGB")
                assert image.size == (width, height)
                assert len(image.getcolors(1 << 24) or []) > FEWEST_COLOURS, picture
    finally:
        server.process.terminate()
