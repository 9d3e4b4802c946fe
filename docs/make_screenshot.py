"""Make docs/images/report.png, the image of the README, from the report page of a study.

    python docs/make_screenshot.py runs/demo

Needs chromium. The image shows the head and the first section of the page, then the table and the first figure.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright

IMAGE = Path(__file__).resolve().parent / "images" / "report.png"
WIDTH, MARGIN = 1200, 24
COLORS = 96  # keeps the file small


def main(folder: Path) -> None:
    """Open the page, and write the image."""
    page_file = (folder / "report.html").resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto(page_file.as_uri())
        parts = [_clip(page, 0, _edges(page, 0)[1]), _clip(page, _edges(page, 2)[0], _edges(page, 3)[1])]
        browser.close()
    image = Image.new("RGB", (WIDTH, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        image.paste(part, (0, top))
        top += part.height
    image.quantize(COLORS, dither=Image.Dither.NONE).save(IMAGE, optimize=True)
    print(f"{IMAGE}: {IMAGE.stat().st_size // 1024} KiB")


def _edges(page: Page, number: int) -> tuple[float, float]:
    """The upper and lower edge of a section."""
    box = page.locator("section").nth(number).bounding_box()
    assert box is not None
    return box["y"] - MARGIN, box["y"] + box["height"] + MARGIN


def _clip(page: Page, top: float, bottom: float) -> Image.Image:
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    shot = page.screenshot(clip=clip, full_page=True)
    return Image.open(io.BytesIO(shot)).convert("RGB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
