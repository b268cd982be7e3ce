"""The pictures of the app in `images/`, of an atlas with a map of smollm2-135m and an attribution graph.

    assay map smollm2-135m --atlas ATLAS
    assay trace smollm2-135m --prompt "The capital of France is" --atlas ATLAS
    python docs/pictures.py ATLAS

Shown are the newest graph, the table of the map, and the feature whose explanation predicts best of those with a supported
claim. Chromium is `CHROMIUM`, or the one that is installed.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
READY = "main[aria-busy=false] .block"
WIDTH = 1280
SHOWN = {  # a page, what is clicked there, the height of the picture
    "app-search": ("search", "", 1000),
    "app-feature": ("search?verdict=supported&sort=-score_simulation", "main table a", 1500),
    "app-graph": ("graph", "main .block li a", 1180),
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    atlas = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "app.json"
        words = ["app", "--atlas", atlas, "--model", "smollm2-135m", "--port", "0", "--no-browser", "--quiet", "--json", file]
        served = subprocess.Popen([sys.executable, "-m", "assay", *map(str, words)], stdout=subprocess.DEVNULL)
        try:
            while not file.exists():
                if served.poll() is not None:
                    sys.exit(f"the app did not start: exit code {served.returncode}")
                time.sleep(0.1)
            shoot(json.loads(file.read_text()))
        finally:
            served.terminate()
            served.wait()


def shoot(app: dict[str, Any]) -> None:
    """All pictures."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        page.goto(app["url"])
        page.wait_for_selector(READY)
        for name, (address, link, height) in SHOWN.items():
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto(f"{app['address']}/#/{address}")
            ready(page)
            if link:
                page.locator(link).first.click()
                ready(page)
            shot = Image.open(io.BytesIO(page.screenshot()))
            shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
        browser.close()


def ready(page: Page) -> None:
    """All of a page is there, and drawn."""
    page.wait_for_timeout(500)
    page.wait_for_selector(READY)
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main()
