"""Make the pictures of the README and the tutorial: ``python docs/pictures/make.py``.

Trains the quickstart with ``--report`` in a temporary folder, and writes report.webp, a screenshot
of the page without the learning curves, the classes, the confusion matrix and what follows the
first mistakes, and batch.webp, the picture of ``show-batch``. Takes about half a minute. Needs
`finetune` installed, and Chromium or Chrome on the PATH (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent
CONFIG = FOLDER.parents[1] / "configs" / "quickstart.yaml"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LEFT_OUT = ("curves", "classes", "confusion")
"""Ids of the sections of the page that the picture omits."""
WIDTH, HEIGHT = 1080, 1428
"""Size in pixels; the height ends below the classes of the first row of mistakes."""


def main() -> None:
    """Train, and write the pictures next to this script."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found on the PATH: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page, screenshot = folder / "page.html", folder / "page.png"
        page.write_text(extract(quickstart_page(folder)), encoding="utf-8")
        take_screenshot(browser, page, screenshot)
        with Image.open(screenshot) as picture:
            top = picture.convert("RGB").crop((0, 0, WIDTH, HEIGHT))
        top.save(FOLDER / "report.webp", lossless=True, method=6)
        run_finetune(folder, "show-batch", str(CONFIG), "--output", "batch.png")
        with Image.open(folder / "batch.png") as picture:
            picture.convert("RGB").save(FOLDER / "batch.webp", quality=80, method=6)


def run_finetune(folder: Path, *words: str) -> None:
    """Run a command in a folder, with an empty cache."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run(
        [sys.executable, "-m", "finetune", *words], cwd=folder, env=environment, check=True
    )


def quickstart_page(folder: Path) -> str:
    """Run the quickstart in a folder, and return its report page."""
    run_finetune(folder, "train", str(CONFIG), "--report")
    return (folder / "runs" / "quickstart" / "report.html").read_text(encoding="utf-8")


def extract(page: str) -> str:
    """Remove the sections that the picture omits."""
    for name in LEFT_OUT:
        page, found = re.subn(rf'<section id="{name}">.*?</section>', "", page, flags=re.DOTALL)
        assert found == 1, f"the page has no section {name}"
    return page


def take_screenshot(browser: str, page: Path, picture: Path) -> None:
    """Take a screenshot of a local page without opening a window."""
    options = ["--headless", "--hide-scrollbars", "--disable-gpu", "--force-device-scale-factor=1"]
    # The sandbox is not available to the root user of a container.
    options += ["--no-sandbox", f"--user-data-dir={picture.parent / 'browser'}"]
    # Some versions count the title bar of the invisible window as part of its height.
    options += [f"--window-size={WIDTH},{HEIGHT + 200}", f"--screenshot={picture}"]
    command = [browser, *options, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main()
