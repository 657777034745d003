"""Operates the studio's page in Chromium, for its tests and screenshots."""

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
TIMEOUT = 120_000  # milliseconds; jobs compile, and the machine may be busy


@contextlib.contextmanager
def chromium() -> Iterator:
    """Starts the browser with Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_tab(page, name):
    """Opens an application's tab and returns its panel."""
    page.get_by_role("tab", name="Generate").wait_for()
    # Tabs that do not fit are narrower than their text until they move into a menu.
    page.wait_for_function(
        "[...document.querySelectorAll('[role=tab]')].every(t => t.scrollWidth <= t.clientWidth)"
    )
    if page.get_by_role("tab", name=name.capitalize()).is_visible():
        page.get_by_role("tab", name=name.capitalize()).click()
    else:
        page.get_by_role("button", name="More tabs").click()
        page.get_by_role("button", name=name.capitalize(), exact=True).click()
    panel = page.get_by_role("tabpanel").filter(has=page.locator(f"#{name}-status"))
    start_button(panel).wait_for()
    return panel


def start_button(panel):
    """Returns the button that starts the panel's job."""
    return panel.get_by_role("button", name="Generate", exact=True)


def fill_form(panel, prompt="a red star", steps=3, enlarge=False):
    """Fills in a prompt and settings for a short job."""
    panel.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    set_number(panel, "Steps", steps)
    if not enlarge and panel.get_by_label("Enlarge").count():
        panel.get_by_label("Enlarge").uncheck()


def set_number(panel, label, value):
    """Types a number into a number field or slider; "" empties it."""
    field = panel.get_by_role("spinbutton", name=re.compile(label))
    field.fill(str(value))
    field.blur()


def upload(panel, **files):
    """Uploads a file to each of the panel's fields, and waits until its check starts."""
    for field, path in files.items():
        with panel.page.expect_response("**/queue/join*"):
            panel.locator(f"[id$=-{field}] input[type=file]").set_input_files(str(path))


def wait_for_result(panel, previous_source=""):
    """Waits until the page plays another video than `previous_source`; returns its settings."""
    panel.page.wait_for_function(
        """([panel, previous]) => {
          const video = panel.querySelector("[id$=-result] video");
          return video && video.currentSrc != previous && video.readyState >= 3
            && video.videoWidth > 0 && video.played.length > 0 && !video.error;
        }""",
        arg=[panel.element_handle(), previous_source],
    )
    panel.get_by_role("status").get_by_text("done").wait_for()
    slice_width = panel.get_by_role("img", name="X-T slice").evaluate(
        "async i => (await i.decode(), i.naturalWidth)"
    )
    assert slice_width > 0
    return download_settings(panel)


def generate(panel):
    """Starts a job, waits for its result and returns the settings."""
    video = panel.locator("[id$=-result] video")
    previous_source = video.evaluate("v => v.currentSrc") if video.count() else ""
    start_button(panel).click()
    return wait_for_result(panel, previous_source)


def download_settings(panel):
    """Downloads the MP4 and returns its settings, after checks of the file and the page."""
    with panel.page.expect_download() as download:
        panel.get_by_text("Download the MP4").click()
    path = download.value.path()
    assert download.value.suggested_filename.endswith(".mp4")
    settings = json.loads(read_comment(path))
    frames, fps = read_video(path)
    assert settings["num_frames"] == len(frames) and settings["fps"] == fps
    displayed = panel.get_by_text('"application"').locator("xpath=ancestor::div[4]").inner_text()
    assert settings["application"] in displayed
    return settings


def paint(panel, width=60, height=0):
    """Paints a rectangle of page pixels in the middle of the picture, until it is visible.

    The editor discards strokes from before it has loaded the picture.
    """
    page, canvas = panel.page, panel.locator("canvas").first
    canvas.scroll_into_view_if_needed()

    def middle_pixel():
        with Image.open(io.BytesIO(canvas.screenshot())) as screenshot:
            position = (screenshot.width // 2, screenshot.height // 2)
            return screenshot.convert("RGB").getpixel(position)

    wait_until(lambda: middle_pixel() != EMPTY_CANVAS)
    unpainted, box = middle_pixel(), canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def paint_strokes():
        for down in range(0, height + 1, 20):
            page.mouse.move(x - width / 2, y - height / 2 + down)
            page.mouse.down()
            page.mouse.move(x + width / 2, y - height / 2 + down, steps=6)
            page.mouse.up()
        return middle_pixel() != unpainted

    wait_until(paint_strokes)


def wait_until(condition):
    """Waits until a function returns a true value."""
    deadline = time.monotonic() + TIMEOUT / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
