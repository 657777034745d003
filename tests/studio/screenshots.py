"""Takes the pictures of docs/studio.md from a studio that runs.

stunet studio &
python -m tests.studio.screenshots http://127.0.0.1:7860 docs/images
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stunet.video_io import write_video
from tests.studio.driving import (
    DESKTOP,
    NARROW,
    PATIENCE,
    chromium,
    made_by,
    number,
    paint,
    quick,
    tab,
    upload,
)

WHOLE = {"width": 1280, "height": 1500}


def main(address: str, folder: Path, uploads: Path) -> None:
    """Writes studio_*.png."""
    clip, image, bad = _uploads(uploads)

    with chromium() as browser:

        def opened(name: str, size: dict):
            page = browser.new_page(viewport=size)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            return page, tab(page, name)

        def shot(page, name: str) -> None:
            page.wait_for_timeout(1000)
            page.screenshot(path=folder / f"studio_{name}.png")
            with Image.open(folder / f"studio_{name}.png") as picture:
                small = picture.convert("RGB").quantize(128)
            small.save(folder / f"studio_{name}.png", optimize=True)
            page.close()

        page, panel = opened("generate", DESKTOP)
        quick(panel, steps=40, enlarge=True)
        panel.get_by_role("button", name="Make it").click()
        panel.get_by_text(re.compile("step [1-9][0-9]")).wait_for()
        shot(page, "progress")

        page, panel = opened("inpaint", WHOLE)
        quick(panel, steps=20)
        upload(panel, video=clip)
        paint(panel)
        made_by(panel)
        page.mouse.move(1, 1)
        page.evaluate("scrollTo(0, 0)")
        shot(page, "inpaint")

        page, panel = opened("animate", DESKTOP)
        panel.locator("input[type=file]").first.set_input_files(bad)
        panel.get_by_role("alert").wait_for()
        shot(page, "refused")

        page, panel = opened("cinemagraph", NARROW)
        quick(panel, steps=20)
        upload(panel, image=image)
        paint(panel)
        number(panel, "Seed", 1)
        page.evaluate("scrollTo(0, 0)")
        page.set_viewport_size({"width": 390, "height": 1300})
        shot(page, "narrow")


def _uploads(folder: Path) -> tuple[Path, Path, Path]:
    frames = []
    for step in range(8):
        frame = Image.new("RGB", (256, 256), (24, 26, 54))
        ImageDraw.Draw(frame).ellipse((20 + 18 * step, 90, 100 + 18 * step, 170), fill="orange")
        frames.append(np.asarray(frame))
    Image.fromarray(frames[3]).save(folder / "circle.png")
    write_video(folder / "circle.mp4", np.stack(frames).astype(np.float32) / 127.5 - 1, 8.0)
    (folder / "notes.png").write_text("not a picture")
    return folder / "circle.mp4", folder / "circle.png", folder / "notes.png"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], Path(sys.argv[2]), Path(temporary))
