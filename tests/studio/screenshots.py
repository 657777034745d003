"""Takes the pictures of docs/studio.md from a studio that runs.

stunet studio &
python -m tests.studio.screenshots http://127.0.0.1:7860 docs/images
"""

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

from stunet.video_io import read_video, write_video
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
GALLERY = Path("docs/images/gallery")


def main(address: str, folder: Path, clip: Path) -> None:
    """Writes studio_*.png; `clip` is where the video to upload may lie."""
    write_video(clip, *read_video(GALLERY / "ring.gif"))  # the page takes no GIF for a video

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
                small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            small.save(folder / f"studio_{name}.png", optimize=True)
            page.close()

        page, panel = opened("generate", DESKTOP)
        quick(panel, "a red star moving right on a dark background", steps=40, enlarge=True)
        panel.get_by_role("button", name="Make it").click()
        panel.get_by_text(re.compile("step [1-9][0-9]")).wait_for()
        shot(page, "progress")

        page, panel = opened("inpaint", WHOLE)
        quick(panel, "a green heart moving down on a dark background", steps=10, enlarge=True)
        upload(panel, video=clip)
        paint(panel, width=220, height=220)
        made_by(panel)
        page.mouse.move(1, 1)
        page.evaluate("scrollTo(0, 0)")
        shot(page, "inpaint")

        page, panel = opened("animate", DESKTOP)
        notes = {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"}
        panel.locator("input[type=file]").first.set_input_files(notes)
        panel.get_by_role("alert").wait_for()
        shot(page, "refused")

        page, panel = opened("cinemagraph", NARROW)
        quick(panel, "a yellow crescent growing on a navy background")
        upload(panel, image=GALLERY / "crescent.png")
        paint(panel, width=100, height=100)
        number(panel, "Seed", 1)
        page.evaluate("scrollTo(0, 0)")
        page.set_viewport_size({"width": 390, "height": 1300})
        shot(page, "narrow")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], Path(sys.argv[2]), Path(temporary) / "ring.mp4")
