"""Pictures of Prefect's pages for docs/production.md: the form of `region`, a finished run and its artifacts.

Starts a server and a worker on loopback, runs the Landsat example through them, and takes the pictures in headless
Chromium. Needs `pip install playwright` and a Chromium (`CHROMIUM`, else /usr/bin/chromium).

    python tools/prefect_pages.py docs/images
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from prefect_server import PrefectServer, running  # noqa: E402


def main(folder: Path) -> None:
    """Write ``prefect-form.png``, ``prefect-run.png`` and ``prefect-artifacts.png`` into ``folder``."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "prefect") as server:
        server.tilewright("deploy", "region")
        server.start_worker()
        recipe = str(ROOT / "examples" / "landsat-mosaic.yaml")
        server.tilewright("run", recipe, "--out", f"{scratch}/mosaic", "--via", "prefect", "--shard", "512")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            take(page, server, folder)
            browser.close()


def take(page: Any, server: PrefectServer, folder: Path) -> None:
    """Take the pictures."""
    home = server.url.removesuffix("/api")
    deployment = server.ask("/deployments/name/region/region")["id"]
    (run,) = server.runs("region/region")
    page.goto(f"{home}/deployments/deployment/{deployment}/run")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)
    page.screenshot(path=folder / "prefect-form.png")
    page.goto(f"{home}/runs/flow-run/{run['id']}")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)
    page.screenshot(path=folder / "prefect-run.png", clip={"x": 0, "y": 0, "width": 1280, "height": 500})
    page.get_by_text("Artifacts", exact=True).last.click()
    page.wait_for_timeout(2000)
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.screenshot(path=folder / "prefect-artifacts.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
