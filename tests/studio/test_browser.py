"""The studio's page in Chromium, served by the real command."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stunet.video_io import write_video
from tests.studio.models import FACTOR, STEPS, save_models
from tests.studio.page_driver import (
    CHROMIUM,
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
    wait_for_result,
    wait_until,
)
from tests.tiny import FPS, NUM_FRAMES

pytestmark = pytest.mark.browser

# JavaScript condition for `press_tab_until`.
ON_START_BUTTON = "e.textContent.trim() == 'Generate' && e.role != 'tab'"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(root):
    """Serves tiny models (see `pause`); checks that the command ends cleanly on Ctrl-C."""
    pytest.importorskip("gradio", reason="needs the extra `studio`")
    models = save_models(root / "models")
    command = [sys.executable, "-m", "tests.studio.pausable_studio", str(root / "pause")]
    command += ["--port", "0"]
    command += ["--model", models["fill"], "--upscale", models["ssr"], "--style", models["style"]]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(root / "cache"),
        "TMPDIR": str(root),
        "http_proxy": "http://127.0.0.1:9",  # nothing listens: the studio needs no proxy
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
def pause(root):
    """A file; until it is removed, jobs pause after their first step."""
    file = root / "pause"
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
    """Opens the page as a new user; checks that it requests nothing from other servers."""
    other_urls, contexts = [], []

    def on_request(request):
        if not request.url.startswith((address, "data:", "blob:")):
            other_urls.append(request.url)

    def open_context(size=DESKTOP):
        context = browser.new_context(viewport=size, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("request", on_request)
        page.goto(address)
        page.get_by_role("tab", name="Generate").wait_for()
        return page

    yield open_context
    for context in contexts:
        context.close()
    assert not other_urls


@pytest.fixture(scope="module")
def files(root):
    """Valid and invalid uploads."""
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
    (folder / "text.png").write_text("not a picture")
    (folder / "text.mp4").write_text("not a video")
    Image.new("1", (5000, 4000)).save(folder / "large.png")
    write_video(folder / "long.mp4", np.zeros((50, 16, 16, 3), np.float32), 2)
    with (folder / "heavy.mp4").open("wb") as file:
        file.truncate(65 * 2**20)
    return folder


def press_tab_until(page, condition, limit=40):
    """Presses Tab at most `limit` times, until a JavaScript condition on the focused `e` holds."""
    visited = []
    for _ in range(limit):
        page.keyboard.press("Tab")
        if page.evaluate(f"(e => {condition})(document.activeElement)"):
            return
        visited.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
    pytest.fail(f"Tab never reached {condition}: {visited}")


def test_generate_by_keyboard_with_style_and_enlarged(open_page, pause):
    page = open_page()
    panel = open_tab(page, "generate")
    set_number(panel, "Style strength", 0.7)
    page.get_by_role("tab", name="Generate").focus()
    press_tab_until(page, "e.tagName == 'TEXTAREA'", limit=30)
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    panel.get_by_text("sampling, step 1 of 10").wait_for()
    assert panel.locator("progress").get_attribute("value") == "1"
    panel.get_by_role("img", name="preview").wait_for()
    pause.unlink()
    settings = wait_for_result(panel)
    assert settings["prompt"] == "a red circle" and settings["style_strength"] == 0.7
    assert settings["upscale"] == ["ssr"] and settings["style"] == "style"
    assert settings["steps"] == 10 and settings["upscale_steps"] == [STEPS]
    assert settings["num_frames"] == NUM_FRAMES  # the field contains 0
    press_tab_until(page, ON_START_BUTTON)


def test_animate(open_page, files):
    panel = open_tab(open_page(), "animate")
    fill_form(panel)
    set_number(panel, "Frames", 6)
    upload(panel, image=files / "image.png")
    settings = generate(panel)
    assert settings["image"] == "image.png" and settings["num_frames"] == 6
    warning = panel.get_by_role("listitem").filter(has_text="image.png: ").inner_text()
    assert "320x240" in warning and "240x240" in warning


def test_from_tab_to_cancel_and_download_by_keyboard(open_page, files, pause):
    page = open_page()
    panel = open_tab(page, "edit")
    fill_form(panel)
    page.get_by_role("tab", name="Generate").focus()
    press_tab_until(page, "e.role == 'tab' && e.innerText == 'Edit'")
    page.keyboard.press("Enter")
    press_tab_until(page, "e.ariaLabel?.startsWith('Drop a video')")
    # Chromium does not always report its file chooser, which only opens after a user's action.
    page.evaluate(
        """() => addEventListener("click", e => {
          if (e.target.type == "file" && navigator.userActivation.isActive) {
            e.preventDefault();
            window.fileInput = e.target;
          }
        }, true)"""
    )
    page.keyboard.press("Enter")
    page.wait_for_function("window.fileInput").as_element().set_input_files(files / "clip.mp4")
    panel.locator("video").first.wait_for()
    press_tab_until(page, ON_START_BUTTON)
    page.keyboard.press("Enter")
    panel.get_by_text("sampling, step 1 of 2").wait_for()  # 0.7 of 3
    press_tab_until(page, "e.innerText == 'Cancel'")
    page.keyboard.press("Enter")
    panel.get_by_role("status").get_by_text("cancelled").wait_for()
    pause.unlink()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    wait_for_result(panel)
    press_tab_until(page, "e.innerText.trim() == 'Download the MP4'")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_interpolate(open_page, files):
    panel = open_tab(open_page(), "interpolate")
    fill_form(panel)
    upload(panel, image=files / "image.png", last=files / "mask.png")
    settings = generate(panel)
    assert (settings["image"], settings["last"]) == ("image.png", "mask.png")


def test_inpaint_with_a_painted_mask_a_mask_file_and_margins(open_page, files):
    panel = open_tab(open_page(), "inpaint")
    fill_form(panel)
    upload(panel, video=files / "clip.mp4")
    start_button(panel).click()
    panel.get_by_role("alert").get_by_text("mask: empty").wait_for()
    paint(panel)
    assert generate(panel)["mask"] == "painted.png"
    panel.get_by_label("From a file").check()
    upload(panel, mask=files / "text.png")
    panel.get_by_role("alert").get_by_text("text.png: not a readable").wait_for()
    upload(panel, mask=files / "mask.png")
    assert generate(panel)["mask"] == "mask.png"
    panel.get_by_label("Around the video").check()
    for side in ("left", "right", "top", "bottom"):
        set_number(panel, f"Pixels {side}", 64)
    assert generate(panel)["outpaint"] == [64, 64, 64, 64]


def test_cinemagraph(open_page, files):
    panel = open_tab(open_page(), "cinemagraph")
    fill_form(panel)
    upload(panel, image=files / "image.png")
    paint(panel)
    panel.get_by_label("Loop").check()
    settings = generate(panel)
    assert settings["loop"] is True and settings["num_frames"] == NUM_FRAMES - 1


def test_edit(open_page, files):
    panel = open_tab(open_page(), "edit")
    fill_form(panel)
    upload(panel, video=files / "clip.mp4")
    settings = generate(panel)
    assert settings["video"] == "clip.mp4" and settings["strength"] == 0.7


def test_upscale(open_page, files):
    panel = open_tab(open_page(), "upscale")
    fill_form(panel)
    upload(panel, video=files / "clip.mp4")
    settings = generate(panel)
    assert settings["upscale"] == ["ssr"] and "model" not in settings and FACTOR == 2


@pytest.mark.parametrize(
    ("name", "file", "parts"),
    [
        ("animate", "text.png", ["text.png: not a readable"]),
        ("animate", "large.png", ["large.png: 5000x4000", "16.8 megapixels"]),
        ("edit", "text.mp4", ["text.mp4: not a readable"]),
        ("edit", "long.mp4", ["long.mp4: 25.0 seconds", "20 seconds"]),
        ("edit", "heavy.mp4", ["64.0 Mb", "heavy.mp4"]),  # Gradio's message
    ],
)
def test_a_refused_upload_shows_the_reason(open_page, files, name, file, parts):
    page = open_page()
    open_tab(page, name).locator("input[type=file]").first.set_input_files(str(files / file))
    pattern = re.compile(".*".join(map(re.escape, parts)))
    page.get_by_text(pattern).first.wait_for()
    assert "Traceback" not in page.inner_text("body")


def test_tabs_and_components_are_those_of_the_models_and_applications(root, address):
    """Runs in a process of its own, because importing Gradio emits warnings.

    The third page has an application that is defined here only.
    """
    script = """
import dataclasses, sys
from pathlib import Path
from stunet.engine.applications import APPLICATIONS, Option
from stunet.engine.cascade import load_models
from stunet.studio.page import Studio, build
from stunet.studio.storage import Storage
from stunet.studio.uploads import Limits

def describe(folder):
    page = build(Studio(load_models(folder), None, Storage(Path("."), 1), Limits()))
    components = page.config["components"]
    tabs = [c["props"]["label"] for c in components if c["type"] == "tabitem"]
    labels = [str(c["props"].get("label")) for c in components]
    print(*tabs, any("Style" in label or "Enlarge" in label for label in labels))
    return [(c["type"], c["props"].get("label"), c["props"].get("info")) for c in components]

fill, images = sys.argv[1:]
describe(fill)
describe(images)
options = (
    Option(field="image", kind="image", label="Sketch", help="a drawing", required=True),
    Option(field="strength", kind="number", label="Care", help="how closely", default=0.5,
           minimum=0, maximum=1),
    Option(field="loop", kind="switch", label="Repeat", help="repeat it"),
    Option(field="fps", kind="number", label="Rate", help="its rate", advanced=True),
)
APPLICATIONS["trace"] = dataclasses.replace(APPLICATIONS["generate"], options=options)
found = describe(fill)
for component in (("image", "Sketch", None), ("slider", "Care", "How closely"),
                  ("checkbox", "Repeat", "Repeat it")):
    assert component in found, component
assert not any(label == "Rate" for _, label, _ in found)
"""
    folders = [str(root / "models" / name) for name in ("fill", "images")]
    command = [sys.executable, "-c", script, *folders]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "Generate Animate Interpolate Inpaint Cinemagraph Edit False",
        "Generate False",
        "Generate Animate Interpolate Inpaint Cinemagraph Edit Trace False",
    ]


@pytest.fixture
def client(address):
    import httpx  # comes with Gradio, which `address` needs

    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        yield client


def test_files_of_the_server_are_not_accepted_as_uploads(client, root):
    """Sends requests that no page sends; Gradio's own check covers marked files only."""
    Image.new("RGB", (8, 8)).save(root / "private.png")
    config = client.get("/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    value = {"path": str(root / "private.png")}
    refusals = 0
    for index, event in enumerate(config["dependencies"]):
        if [kinds[component] for component in event["inputs"]] in (["image"], ["video"]):
            session = {"session_hash": f"x{index}"}
            data = {"fn_index": index, "data": [value], **session}
            client.post("/gradio_api/queue/join", json=data).raise_for_status()
            answer = client.get("/gradio_api/queue/data", params=session).text
            assert "process_completed" in answer and "data:image" not in answer
            refused = "not an uploaded file" in answer
            assert refused or kinds[event["inputs"][0]] == "video"  # refused by Gradio
            refusals += refused
    assert refusals


def folder_of(root):
    """Returns the temporary folder of the studio that runs with this TMPDIR."""
    (folder,) = root.glob("stunet-studio-*")
    return folder


@pytest.mark.parametrize(
    "header",
    [{"host": "evil.com:7860"}, {"origin": "http://evil.com"}, {"sec-fetch-site": "cross-site"}],
    ids=str,
)
def test_requests_of_other_sites_are_refused(client, address, root, header):
    name = "evil-" + header[min(header)].translate(str.maketrans(":/", "--")) + ".png"
    upload = {"files": {"files": (name, b"content")}}
    join = {"json": {"fn_index": 0, "data": [], "session_hash": "evil"}}
    requests = [
        ("POST", "/gradio_api/upload", upload),
        ("POST", "/gradio_api/queue/join", join),
        ("GET", "/gradio_api/queue/data?session_hash=evil", {}),
        ("GET", "/gradio_api/heartbeat/evil", {}),
        ("GET", f"/gradio_api/file={folder_of(root) / 'studio.lock'}", {}),
        ("GET", "/config", {}),
        ("GET", "/theme.css", {}),
        ("OPTIONS", "/gradio_api/upload", {"headers": {"access-control-request-method": "POST"}}),
    ]
    for method, path, content in requests:
        headers = {**content.get("headers", {}), **header}
        answer = client.request(method, path, **{**content, "headers": headers})
        assert answer.status_code == 403 and answer.text.count("\n") == 1, path
        assert next(iter(header)) in answer.text.lower()
        assert "access-control-allow-origin" not in answer.headers
    assert not list(folder_of(root).rglob(name))
    (path,) = client.post("/gradio_api/upload", **upload, headers={"origin": address}).json()
    assert (folder_of(root) / path).read_bytes() == b"content"


def test_unfinished_uploads_are_removed(address, root):
    host, port = address.removeprefix("http://").split(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: "
        'form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + bytes(500_000))
        wait_until(lambda: any(f.stat().st_size for f in folder_of(root).glob("tmp*")))
    wait_until(lambda: not list(folder_of(root).glob("tmp*")))


@pytest.fixture
def start(root, address):
    """Starts further studios, whose temporary folders are in `root/"ends"`."""
    folder, servers = root / "ends", []
    folder.mkdir(exist_ok=True)

    def start_studio(*arguments):
        command = [sys.executable, "-m", "tests.studio.pausable_studio", str(root / "no"), "--port"]
        environment = os.environ | {"TMPDIR": str(folder), "XDG_CACHE_HOME": str(root / "cache")}
        command += ["0", "--model", str(root / "models" / "fill"), *map(str, arguments)]
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        servers.append(server)
        return server, server.stdout.readline().strip()

    yield start_studio
    for server in servers:
        server.kill()
        server.communicate()


def test_the_ends_of_studios(start, root):
    """Killed, by a lost terminal, and by repeated Ctrl-C while it compiles; with a log-in."""
    import httpx

    def get(path, **options):
        return httpx.get(address + path, trust_env=False, timeout=60, **options)

    killed, _ = start()
    left = folder_of(root / "ends")
    killed.kill()
    killed.wait()
    assert left.is_dir()

    password = root / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    server, address = start("--auth", f"anna:{password}")
    assert folder_of(root / "ends") != left  # the other one was deleted
    for path in ("/", "/config", "/gradio_api/startup-events", "/gradio_api/queue/data"):
        assert get(path).status_code == 401
    assert get("/", auth=("anna", "wrong")).status_code == 401
    assert get("/", auth=("anna", "secret")).status_code == 200
    server.send_signal(signal.SIGHUP)
    assert server.wait(60) == 0 and not list((root / "ends").iterdir())
    assert server.stderr.read() == ""

    server, address = start()
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        config = client.get("/config").json()
        values = {c["id"]: c["props"].get("value") for c in config["components"]}
        event = next(e for e in config["dependencies"] if len(e["inputs"]) > 4)
        data = ["a red circle", *(values[component] for component in event["inputs"][1:])]
        job = {"fn_index": event["id"], "data": data, "session_hash": "job"}
        client.post("/gradio_api/queue/join", json=job).raise_for_status()
        events = {"session_hash": "job"}
        with client.stream("GET", "/gradio_api/queue/data", params=events) as answer:
            assert any("compiling" in line for line in answer.iter_lines())
            server.send_signal(signal.SIGINT)
            wait_until(lambda: server.poll() is not None or not list((root / "ends").iterdir()))
            server.send_signal(signal.SIGINT)
            assert server.wait(60) in (0, 130)
    assert server.stderr.read() in ("", "stunet: cancelled\n")
    assert not list((root / "ends").iterdir())


def test_missing_values_are_reported(open_page):
    page = open_page()
    panel = open_tab(page, "generate")
    fill_form(panel)
    set_number(panel, "Seed", "")
    start_button(panel).click()
    alert = panel.get_by_role("alert")
    alert.get_by_text(re.compile("Seed: missing.*0 to 4294967295")).wait_for()
    set_number(panel, "Seed", 0)
    panel.get_by_role("textbox", name="Prompt", exact=True).fill("")
    for name, message in (("generate", "prompt"), ("animate", "Image: missing")):
        panel = open_tab(page, name)
        start_button(panel).click()
        panel.get_by_role("alert").get_by_text(message).wait_for()


def start_job(page, seed=0):
    """Starts a short job and returns its panel."""
    panel = open_tab(page, "generate")
    fill_form(panel)
    set_number(panel, "Seed", seed)
    start_button(panel).click()
    return panel


def wait_for_pause(panel):
    panel.get_by_text("sampling, step 1 of 3").wait_for()


@pytest.mark.parametrize("how", ["the button", "leaving the page"])
def test_cancelling_frees_the_queue_for_the_next_user(open_page, pause, how):
    anna, ben = open_page(), open_page()
    first = start_job(anna)
    wait_for_pause(first)
    second = start_job(ben)
    second.get_by_text("waiting: 1 ahead").wait_for()
    if how == "the button":
        first.get_by_role("button", name="Cancel").click()
        first.get_by_role("status").get_by_text("cancelled").wait_for()
    else:
        anna.close()
    wait_for_pause(second)  # would never happen if the first job were still paused
    pause.unlink()
    wait_for_result(second)


def test_two_users_get_their_own_results(open_page, pause):
    first = start_job(open_page(), seed=1)
    wait_for_pause(first)
    second = start_job(open_page(), seed=2)
    second.get_by_text("waiting: 1 ahead").wait_for()
    pause.unlink()
    assert [wait_for_result(panel)["seed"] for panel in (first, second)] == [1, 2]


def test_the_page_fits_a_narrow_screen(open_page, files):
    page = open_page(NARROW)

    def fits():
        return page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]

    for name in ("generate", "animate", "interpolate", "inpaint", "cinemagraph", "edit", "upscale"):
        open_tab(page, name)
        assert fits(), name
    panel = open_tab(page, "inpaint")
    fill_form(panel)
    upload(panel, video=files / "text.mp4")
    panel.get_by_role("alert").get_by_text("text.mp4").wait_for()
    assert fits()
    upload(panel, video=files / "clip.mp4")
    paint(panel)
    generate(panel)
    assert fits() and panel.get_by_role("alert").count() == 0
    panel.get_by_label("Around the video").check()
    panel.get_by_label("Pixels bottom").wait_for()
    assert fits()
