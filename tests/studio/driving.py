"""Using the studio's page in Chromium, as its tests do and its screenshots need."""

import contextlib
import io
import json
import re
import time
from collections.abc import Iterator

from PIL import Image

from stunet.video_io import read_comment, read_video

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
EMPTY_CANVAS = (255, 255, 255)
PATIENCE = 120_000  # milliseconds for anything: a job compiles, and a machine may be busy


@contextlib.contextmanager
def chromium() -> Iterator:
    """The browser, by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def tab(page, name):
    """Opens an application's tab; its panel."""
    page.get_by_role("tab", name="Generate").wait_for()
    # Tabs that do not fit are narrower than their words, until they move into a menu.
    page.wait_for_function(
        "[...document.querySelectorAll('[role=tab]')].every(t => t.scrollWidth <= t.clientWidth)"
    )
    if page.get_by_role("tab", name=name.capitalize()).is_visible():
        page.get_by_role("tab", name=name.capitalize()).click()
    else:
        page.get_by_role("button", name="More tabs").click()
        page.get_by_role("button", name=name.capitalize(), exact=True).click()
    panel = page.get_by_role("tabpanel").filter(has=page.locator(f"#{name}-status"))
    panel.get_by_role("button", name="Make it").wait_for()
    return panel


def quick(panel, prompt="a red star", steps=3, enlarge=False):
    panel.get_by_label("Prompt").fill(prompt)
    number(panel, "Steps", steps)
    if not enlarge and panel.get_by_label("Enlarge").count():
        panel.get_by_label("Enlarge").uncheck()


def number(panel, label, value):
    field = panel.get_by_role("spinbutton", name=re.compile(label))
    field.fill(str(value))
    field.blur()


def upload(panel, **files):
    """Sends a file to each of the panel's fields, and waits until it is being checked."""
    for field, path in files.items():
        with panel.page.expect_response("**/queue/join*"):
            panel.locator(f"[id$=-{field}] input[type=file]").set_input_files(str(path))


def made(panel, before=""):
    """Waits until the page plays another result than `before`; its settings."""
    panel.page.wait_for_function(
        """([panel, before]) => {
          const video = panel.querySelector("[id$=-result] video");
          return video && video.currentSrc != before && video.readyState >= 3
            && video.videoWidth > 0 && video.played.length > 0 && !video.error;
        }""",
        arg=[panel.element_handle(), before],
    )
    panel.get_by_role("status").get_by_text("done").wait_for()
    slice_width = panel.get_by_role("img", name="X-T slice").evaluate(
        "async i => (await i.decode(), i.naturalWidth)"
    )
    assert slice_width > 0
    return downloaded(panel)


def made_by(panel):
    """Starts, and waits for the result."""
    shown = panel.locator("[id$=-result] video")
    before = shown.evaluate("v => v.currentSrc") if shown.count() else ""
    panel.get_by_role("button", name="Make it").click()
    return made(panel, before)


def downloaded(panel):
    with panel.page.expect_download() as download:
        panel.get_by_text("Download the MP4").click()
    path = download.value.path()
    assert download.value.suggested_filename.endswith(".mp4")
    settings = json.loads(read_comment(path))
    frames, fps = read_video(path)
    assert settings["num_frames"] == len(frames) and settings["fps"] == fps
    shown = panel.get_by_text('"application"').locator("xpath=ancestor::div[4]").inner_text()
    assert settings["application"] in shown
    return settings


def paint(panel, width=60, height=0):
    """Strokes over so many pixels of the page in the middle of the picture, until they are on it.

    What is painted before the editor has loaded the picture is lost.
    """
    page, canvas = panel.page, panel.locator("canvas").first
    canvas.scroll_into_view_if_needed()

    def middle():
        with Image.open(io.BytesIO(canvas.screenshot())) as seen:
            return seen.convert("RGB").getpixel((seen.width // 2, seen.height // 2))

    _until(lambda: middle() != EMPTY_CANVAS)
    bare, box = middle(), canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def strokes():
        for down in range(0, height + 1, 20):
            page.mouse.move(x - width / 2, y - height / 2 + down)
            page.mouse.down()
            page.mouse.move(x + width / 2, y - height / 2 + down, steps=6)
            page.mouse.up()
        return middle() != bare

    _until(strokes)


def _until(happens):
    deadline = time.monotonic() + PATIENCE / 1000
    while not happens():
        assert time.monotonic() < deadline
