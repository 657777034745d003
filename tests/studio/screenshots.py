"""Takes the screenshots of docs/studio.md from a running studio.

stunet studio &
python -m tests.studio.screenshots http://127.0.0.1:7860 docs/images
"""

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

from stunet.video_io import read_video, write_video
from tests.studio.page_driver import (
    DESKTOP,
    NARROW,
    TIMEOUT,
    chromium,
    fill_form,
    generate,
    open_tab,
    paint,
    set_number,
    start_button,
    upload,
)

TALL = {"width": 1280, "height": 1640}
GALLERY = Path("docs/images/gallery")


def main(address: str, folder: Path, clip: Path) -> None:
    """Writes studio_*.png into a folder; `clip` is the path of a temporary video to upload."""
    write_video(clip, *read_video(GALLERY / "ring.gif"))  # the page does not accept GIFs as videos

    with chromium() as browser:

        def open_page(name: str, size: dict):
            page = browser.new_page(viewport=size)
            page.set_default_timeout(TIMEOUT)
            page.goto(address)
            return page, open_tab(page, name)

        def screenshot(page, name: str) -> None:
            page.wait_for_timeout(1000)
            page.screenshot(path=folder / f"studio_{name}.png")
            with Image.open(folder / f"studio_{name}.png") as picture:
                small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            small.save(folder / f"studio_{name}.png", optimize=True)
            page.close()

        page, panel = open_page("generate", DESKTOP)
        fill_form(panel, "a red star moving right on a dark background", steps=40, enlarge=True)
        start_button(panel).click()
        panel.get_by_text(re.compile("step [1-9][0-9]")).wait_for()
        screenshot(page, "progress")

        page, panel = open_page("inpaint", TALL)
        fill_form(panel, "a green heart moving down on a dark background", steps=10, enlarge=True)
        upload(panel, video=clip)
        paint(panel, width=220, height=220)
        generate(panel)
        page.mouse.move(1, 1)
        page.evaluate("scrollTo(0, 0)")
        screenshot(page, "inpaint")

        page, panel = open_page("animate", DESKTOP)
        notes = {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"}
        panel.locator("input[type=file]").first.set_input_files(notes)
        panel.get_by_role("alert").wait_for()
        screenshot(page, "refused")

        page, panel = open_page("cinemagraph", NARROW)
        fill_form(panel, "a yellow crescent growing on a navy background")
        upload(panel, image=GALLERY / "crescent.png")
        paint(panel, width=100, height=100)
        set_number(panel, "Seed", 1)
        page.evaluate("scrollTo(0, 0)")
        page.set_viewport_size({"width": 390, "height": 1400})
        screenshot(page, "narrow")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], Path(sys.argv[2]), Path(temporary) / "ring.mp4")
