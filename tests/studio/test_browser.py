"""The studio's page in Chromium: what a user sees, with the real command behind it."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stunet.video_io import write_video
from tests.studio.driving import (
    CHROMIUM,
    DESKTOP,
    NARROW,
    PATIENCE,
    chromium,
    made,
    made_by,
    number,
    paint,
    quick,
    tab,
    upload,
)
from tests.studio.models import FACTOR, STEPS, save_models
from tests.tiny import FPS, NUM_FRAMES

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(root):
    """Where the studio serves tiny models (see `hold`); it has to end well when it is told to."""
    pytest.importorskip("gradio", reason="needs the extra `studio`")
    models = save_models(root / "models")
    command = [sys.executable, "-m", "tests.studio.held", str(root / "hold"), "--port", "0"]
    command += ["--model", models["fill"], "--upscale", models["ssr"], "--style", models["style"]]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(root / "cache"),
        "TMPDIR": str(root),
        "http_proxy": "http://127.0.0.1:9",  # where nothing answers: the studio needs none
    }
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            line = server.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), (root / "log").read_text()
            yield line.strip()
        finally:
            server.send_signal(signal.SIGINT)
            code = server.wait(60)
            server.stdout.close()
    assert code == 0 and not list(root.glob("stunet-studio-*"))
    assert "stunet/studio" not in (root / "log").read_text()  # no traceback through our code


@pytest.fixture
def hold(root):
    """A file; until it is removed, jobs stay at their first step."""
    file = root / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="needs the extra `browser`")
    if not shutil.which(CHROMIUM):
        pytest.skip("needs Debian's package chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser, address):
    """Opens the page as one more user; afterwards nothing may have come from elsewhere."""
    elsewhere, contexts = [], []

    def asked(request):
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    def opened(size=DESKTOP):
        context = browser.new_context(viewport=size, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", asked)
        page.goto(address)
        page.get_by_role("tab", name="Generate").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not elsewhere


@pytest.fixture(scope="module")
def files(root):
    """What is uploaded, good and bad."""
    folder = root / "uploads"
    folder.mkdir()
    image = Image.new("RGB", (320, 240), (40, 90, 160))
    ImageDraw.Draw(image).ellipse((110, 70, 210, 170), fill=(230, 60, 50))
    image.save(folder / "image.png")
    frames = []
    for step in range(NUM_FRAMES):
        frame = Image.new("RGB", (256, 256), (30, 30, 60))
        ImageDraw.Draw(frame).ellipse((20 + 20 * step, 90, 90 + 20 * step, 160), fill="orange")
        frames.append(np.asarray(frame))
    write_video(folder / "clip.mp4", np.stack(frames).astype(np.float32) / 127.5 - 1, FPS)
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).rectangle((64, 64, 192, 192), fill=255)
    mask.save(folder / "mask.png")
    (folder / "words.png").write_text("not a picture")
    (folder / "words.mp4").write_text("not a video")
    Image.new("1", (5000, 4000)).save(folder / "large.png")
    write_video(folder / "long.mp4", np.zeros((50, 16, 16, 3), np.float32), 2)
    with (folder / "heavy.mp4").open("wb") as file:
        file.truncate(65 * 2**20)
    return folder


def tab_to(page, what, most=40):
    """Presses Tab, `most` times at most, until `what`, of the element in focus `e`, is true."""
    reached = []
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(f"(e => {what})(document.activeElement)"):
            return
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
    pytest.fail(f"Tab never reached {what}: {reached}")


def test_generate_by_keyboard_with_style_and_enlarged(open_page, hold):
    page = open_page()
    panel = tab(page, "generate")
    number(panel, "Style strength", 0.7)
    page.get_by_role("tab", name="Generate").focus()
    tab_to(page, "e.tagName == 'TEXTAREA'", most=30)
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    panel.get_by_text("sampling, step 1 of 10").wait_for()
    assert panel.locator("progress").get_attribute("value") == "1"
    panel.get_by_role("img", name="the video so far").wait_for()
    hold.unlink()
    settings = made(panel)
    assert settings["prompt"] == "a red circle" and settings["style_strength"] == 0.7
    assert settings["upscale"] == ["ssr"] and settings["style"] == "style"
    assert settings["steps"] == 10 and settings["upscale_steps"] == [STEPS]
    tab_to(page, "e.textContent.trim() == 'Make it'", most=30)


def test_animate(open_page, files):
    panel = tab(open_page(), "animate")
    quick(panel)
    upload(panel, image=files / "image.png")
    settings = made_by(panel)
    assert settings["image"] == "image.png" and settings["num_frames"] == NUM_FRAMES
    said = panel.get_by_text("image.png: 320x240 is cropped to its middle, 240x240")
    assert said.count() == 1


def test_from_tab_to_cancel_and_download_by_keyboard(open_page, files, hold):
    page = open_page()
    panel = tab(page, "edit")
    quick(panel)
    page.get_by_role("tab", name="Generate").focus()
    tab_to(page, "e.role == 'tab' && e.innerText == 'Edit'")
    page.keyboard.press("Enter")
    tab_to(page, "e.ariaLabel?.startsWith('Drop a video')")
    # Chromium does not always announce its file chooser, which it opens for what a user did only.
    page.evaluate(
        """() => addEventListener("click", e => {
          if (e.target.type == "file" && navigator.userActivation.isActive) {
            e.preventDefault();
            window.asked = e.target;
          }
        }, true)"""
    )
    page.keyboard.press("Enter")
    page.wait_for_function("window.asked").as_element().set_input_files(files / "clip.mp4")
    panel.locator("video").first.wait_for()
    tab_to(page, "e.innerText == 'Make it'")
    page.keyboard.press("Enter")
    panel.get_by_text("sampling, step 1 of 2").wait_for()  # 0.7 of 3
    tab_to(page, "e.innerText == 'Cancel'")
    page.keyboard.press("Enter")
    panel.get_by_role("status").get_by_text("cancelled").wait_for()
    hold.unlink()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    made(panel)
    tab_to(page, "e.innerText.trim() == 'Download the MP4'")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_interpolate(open_page, files):
    panel = tab(open_page(), "interpolate")
    quick(panel)
    upload(panel, image=files / "image.png", last=files / "mask.png")
    settings = made_by(panel)
    assert (settings["image"], settings["last"]) == ("image.png", "mask.png")


def test_inpaint_what_is_painted_what_a_file_masks_and_around(open_page, files):
    panel = tab(open_page(), "inpaint")
    quick(panel)
    upload(panel, video=files / "clip.mp4")
    panel.get_by_role("button", name="Make it").click()
    panel.get_by_role("alert").get_by_text("nothing is painted").wait_for()
    paint(panel)
    assert made_by(panel)["mask"] == "painted.png"
    panel.get_by_label("from a file").check()
    upload(panel, mask=files / "words.png")
    panel.get_by_role("alert").get_by_text("words.png: is no picture").wait_for()
    upload(panel, mask=files / "mask.png")
    assert made_by(panel)["mask"] == "mask.png"
    panel.get_by_label("around the video").check()
    for side in ("left", "right", "top", "bottom"):
        number(panel, f"Pixels {side}", 64)
    assert made_by(panel)["outpaint"] == [64, 64, 64, 64]


def test_cinemagraph(open_page, files):
    panel = tab(open_page(), "cinemagraph")
    quick(panel)
    upload(panel, image=files / "image.png")
    paint(panel)
    panel.get_by_label("Lead back").check()
    settings = made_by(panel)
    assert settings["loop"] is True and settings["num_frames"] == NUM_FRAMES - 1


def test_edit(open_page, files):
    panel = tab(open_page(), "edit")
    quick(panel)
    upload(panel, video=files / "clip.mp4")
    settings = made_by(panel)
    assert settings["video"] == "clip.mp4" and settings["strength"] == 0.7


def test_upscale(open_page, files):
    panel = tab(open_page(), "upscale")
    quick(panel)
    upload(panel, video=files / "clip.mp4")
    settings = made_by(panel)
    assert settings["upscale"] == ["ssr"] and "model" not in settings and FACTOR == 2


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("animate", "words.png", "words.png: is no picture or video that can be read"),
        ("animate", "large.png", "large.png: is 5000x4000 pixels large; at most 16.8 megapixels"),
        ("edit", "words.mp4", "words.mp4: is no picture or video that can be read"),
        ("edit", "long.mp4", "long.mp4: lasts 25.0 seconds; at most 20 are taken"),
        ("edit", "heavy.mp4", 'exceed the maximum allowed size of 64.0 Mb: "heavy.mp4"'),
    ],
)
def test_a_bad_upload_shows_why(open_page, files, name, file, message):
    page = open_page()
    tab(page, name).locator("input[type=file]").first.set_input_files(str(files / file))
    page.get_by_text(message).first.wait_for()
    assert "Traceback" not in page.inner_text("body")


def test_the_page_has_what_the_models_can_do(root, address):
    """In a process of its own, since Gradio's import warns of what is none of ours."""
    script = """
import sys
from pathlib import Path
from stunet.studio.uploads import Limits
from stunet.studio.models import load_models
from stunet.studio.page import Studio, build
for folder in sys.argv[1:]:
    page = build(Studio(load_models(folder, [], None), None, Path("."), Limits()))
    components = page.config["components"]
    tabs = [one["props"]["label"] for one in components if one["type"] == "tabitem"]
    labels = [str(one["props"].get("label")) for one in components]
    print(*tabs, any("Style" in label or "Enlarge" in label for label in labels))
"""
    folders = [str(root / "models" / name) for name in ("fill", "images")]
    command = [sys.executable, "-c", script, *folders]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "Generate Animate Interpolate Inpaint Cinemagraph Edit False",
        "Generate False",
    ]


@pytest.fixture
def client(address):
    import httpx  # comes with Gradio, which `address` needs

    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def test_what_lies_on_the_server_is_no_upload(client, root):
    """Of requests that no page makes: Gradio's own check looks at marked files only."""
    Image.new("RGB", (8, 8)).save(root / "private.png")
    config = client.get("/config").json()
    kinds = {one["id"]: one["type"] for one in config["components"]}
    sent = {"path": str(root / "private.png")}
    refusals = 0
    for index, event in enumerate(config["dependencies"]):
        if [kinds[one] for one in event["inputs"]] in (["image"], ["video"]):
            session = {"session_hash": f"x{index}"}
            data = {"fn_index": index, "data": [sent], **session}
            client.post("/gradio_api/queue/join", json=data).raise_for_status()
            said = client.get("/gradio_api/queue/data", params=session).text
            assert "process_completed" in said and "data:image" not in said
            refused = "this is no uploaded file" in said
            assert refused or kinds[event["inputs"][0]] == "video"  # which Gradio refuses itself
            refusals += refused
    assert refusals


def test_what_is_missing_is_said(open_page):
    page = open_page()
    panel = tab(page, "generate")
    quick(panel)
    number(panel, "Seed", "")
    panel.get_by_role("button", name="Make it").click()
    panel.get_by_role("alert").get_by_text("seed is none; it must be within 0 to").wait_for()
    number(panel, "Seed", 0)
    panel.get_by_label("Prompt").fill("")
    for name, message in (("generate", "the prompt is empty"), ("animate", "upload the image")):
        panel = tab(page, name)
        panel.get_by_role("button", name="Make it").click()
        panel.get_by_role("alert").get_by_text(message).wait_for()


def begun(page, seed=0):
    """Starts a short job; its panel."""
    panel = tab(page, "generate")
    quick(panel)
    number(panel, "Seed", seed)
    panel.get_by_role("button", name="Make it").click()
    return panel


def sampling(panel):
    """Waits until the panel's job is held."""
    panel.get_by_text("sampling, step 1 of 3").wait_for()


@pytest.mark.parametrize("how", ["the button", "leaving the page"])
def test_cancelling_frees_the_queue_for_whoever_waits(open_page, hold, how):
    anna, ben = open_page(), open_page()
    first = begun(anna)
    sampling(first)
    second = begun(ben)
    second.get_by_text("waiting: 1 ahead").wait_for()
    if how == "the button":
        first.get_by_role("button", name="Cancel").click()
        first.get_by_role("status").get_by_text("cancelled").wait_for()
    else:
        anna.close()
    sampling(second)  # while the first job would be held for ever
    hold.unlink()
    made(second)


def test_two_at_once_are_queued_and_each_gets_their_own(open_page, hold):
    first = begun(open_page(), seed=1)
    sampling(first)
    second = begun(open_page(), seed=2)
    second.get_by_text("waiting: 1 ahead").wait_for()
    hold.unlink()
    assert [made(panel)["seed"] for panel in (first, second)] == [1, 2]


def test_on_a_narrow_screen_nothing_lies_beyond_its_edge(open_page, files):
    page = open_page(NARROW)

    def fits():
        return page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    for name in ("generate", "animate", "interpolate", "inpaint", "cinemagraph", "edit", "upscale"):
        tab(page, name)
        assert fits(), name
    panel = tab(page, "inpaint")
    quick(panel)
    upload(panel, video=files / "words.mp4")
    panel.get_by_role("alert").get_by_text("words.mp4").wait_for()
    assert fits()
    upload(panel, video=files / "clip.mp4")
    paint(panel)
    made_by(panel)
    assert fits() and panel.get_by_role("alert").count() == 0
    panel.get_by_label("around the video").check()
    panel.get_by_label("Pixels bottom").wait_for()
    assert fits()
