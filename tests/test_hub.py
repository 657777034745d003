"""Models on the Hugging Face Hub: hub ids and `stunet push`, with a server on this machine."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from stunet import cli, paths
from stunet.conversion.hub_source import find_source
from stunet.engine.cascade import short_name
from stunet.errors import UserError
from stunet.weights.find_model import find_model_folder
from stunet.weights.hub import HubId, hub_id_of, parse_hub_id
from stunet.weights.hub_models import model_card
from stunet.weights.model_folder import (
    open_text_encoder,
    read_model_folder,
    without_base,
    write_model_folder,
    write_text_encoder_folder,
)
from tests.hub_server import GATED_MESSAGE, TOKEN, serve
from tests.parity import folders
from tests.tiny import save_tiny_model

pytest.importorskip("huggingface_hub", reason="needs the extra hub")

# The client's own, when it uploads a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

FILES = [
    "checksums.json",
    "config.json",
    "text_encoder.safetensors",
    "tokenizer.json",
    "unet_spatial.safetensors",
    "unet_temporal.safetensors",
]


def restart_client():
    """Removes `huggingface_hub`, which reads the environment when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    logging.getLogger("huggingface_hub").handlers.clear()  # they hold the stderr of another test


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, which the client of this process uses with an empty cache."""
    modules = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "huggingface_hub"}
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        restart_client()
        yield hub
    restart_client()
    sys.modules.update(modules)


@pytest.fixture
def change_client(monkeypatch):
    """A function that restarts the client with other environment variables."""

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        restart_client()

    return change


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def published(hub, model):
    """A hub with the model in the root of me/tiny."""
    hub.add("me/tiny", contents(model))
    return hub


def contents(folder, prefix=""):
    """Returns the files of a folder, by the path in a repository."""
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def error_of(capsys, *command):
    """Returns the one line that a failing command prints."""
    assert cli.main([str(part) for part in command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error" in lines[0], lines
    return lines[0]


def assert_equal(found, expected):
    assert found.config == expected.config and found.tokenizer == expected.tokenizer
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf://me/tiny", HubId("me/tiny")),
        ("hf://me/tiny@v1.0", HubId("me/tiny", "v1.0")),
        ("hf://me/tiny/a/b/", HubId("me/tiny", None, "a/b")),
        ("hf://me/tiny@refs/pr/3/a", HubId("me/tiny", "refs/pr/3", "a")),
        (Path("hf://me/tiny@v1/a"), HubId("me/tiny", "v1", "a")),
    ],
)
def test_hub_ids(text, expected):
    assert parse_hub_id(text) == expected
    assert parse_hub_id(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://tiny", "hf://me/tiny@", "hf://me/tiny/../x", "hf://me/ti ny", "hf:///a/b"],
)
def test_malformed_hub_ids(text, capsys, tmp_path):
    assert f"{text}: malformed" in error_of(capsys, "export-if", text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pushed_model_is_loaded_bit_for_bit_from_another_cache(
    hub, model, change_client, tmp_path, capsys
):
    change_client(HF_TOKEN=TOKEN)
    push = ["push", str(model), "hf://me/tiny", "--private", "--license", "apache-2.0"]
    assert cli.main(push) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/tiny\n"
    repository = hub.repositories["me/tiny"]
    assert repository.private and len(repository.commits) == 2  # creation, and one upload
    assert sorted(repository.files()) == [".gitattributes", "README.md", *FILES]
    card = repository.files()["README.md"].decode()
    assert "library_name: stunet" in card and 'license: "apache-2.0"' in card
    assert "--model hf://me/tiny" in card

    change_client(HF_HOME=tmp_path / "another")
    hub.downloads()
    folder = find_model_folder("hf://me/tiny")
    assert hub.downloads() == FILES
    assert (tmp_path / "another") in folder.parents
    assert_equal(read_model_folder(folder), read_model_folder(model))
    assert find_model_folder(Path("hf://me/tiny")) == folder and hub.downloads() == []
    with pytest.raises(UserError, match=f"{folder}: .*hf://me/tiny@.*hf download me/tiny"):
        write_model_folder(folder, read_model_folder(model))

    # Nothing that is there already is transferred, an edited card stays, an old shard is deleted.
    old = {
        "README.md": b"edited",
        "unet_spatial-00001-of-00002.safetensors": b"old",
        "notes.txt": b"",
    }
    repository.commit(repository.files() | old)
    assert cli.main(push) == 0
    assert not [call for call in hub.requests if call[0] == "PUT"]
    expected = [".gitattributes", "README.md", "notes.txt", *FILES]
    assert sorted(repository.files()) == sorted(expected)
    assert repository.files()["README.md"] == b"edited"


def test_a_commit_is_kept_while_the_branch_moves_on(published, model, tmp_path):
    repository = published.repositories["me/tiny"]
    first = repository.branches["main"]
    repository.commit({"config.json": b"{}"})
    for revision in (first, first):  # the second time from the cache
        folder = find_model_folder(f"hf://me/tiny@{revision}")
        assert_equal(read_model_folder(folder), read_model_folder(model))
        assert hub_id_of(folder) == HubId("me/tiny", first)
    calls = len(published.requests)
    find_model_folder(f"hf://me/tiny@{first}")
    assert len(published.requests) == calls


@pytest.fixture
def derived(model, tmp_path):
    """A folder `derived/changed` that inherits from `model`, two folders up."""
    base = tmp_path / "zoo" / "model"
    contents_of_base = read_model_folder(model)
    write_model_folder(base, contents_of_base)
    changed = tmp_path / "zoo" / "derived" / "changed"
    params = {"unet": {"conv_out": contents_of_base.params["unet"]["conv_out"]}}
    params["unet"]["conv_out"] = jax.tree.map(lambda x: x + 1, params["unet"]["conv_out"])
    config = contents_of_base.config
    write_model_folder(changed, type(contents_of_base)(config, params), base=base)
    return changed


def test_a_base_is_pushed_and_downloaded_with_its_folder(
    hub, derived, change_client, tmp_path, capsys
):
    change_client(HF_TOKEN=TOKEN)
    message = error_of(capsys, "push", derived, "hf://me/zoo")
    assert "'../../model'" in message and "hf://me/zoo/derived/changed" in message
    assert "me/zoo" not in hub.repositories
    assert cli.main(["push", str(derived), "hf://me/zoo/derived/changed"]) == 0
    names = hub.repositories["me/zoo"].files().keys() - {".gitattributes", "README.md"}
    assert {name.rpartition("/")[0] for name in names} == {"derived/changed", "model"}
    assert "derived/changed/text_encoder.safetensors" not in names
    found = find_model_folder("hf://me/zoo/derived/changed")
    assert_equal(read_model_folder(found), read_model_folder(derived))
    # A model that inherits from a folder in the cache names its hub id.
    write_model_folder(tmp_path / "new", read_model_folder(derived), base=found)
    base = json.loads((tmp_path / "new" / "config.json").read_text())["base"]
    assert parse_hub_id(base) == HubId(
        "me/zoo", hub.repositories["me/zoo"].branches["main"], "derived/changed"
    )
    change_client(HF_HOME=tmp_path / "another")
    assert_equal(read_model_folder(tmp_path / "new"), read_model_folder(derived))


def test_a_text_encoder_on_the_hub_serves_a_model(hub, model, change_client, tmp_path, capsys):
    write_text_encoder_folder(tmp_path / "t5", open_text_encoder(model))
    change_client(HF_TOKEN=TOKEN)
    assert cli.main(["push", str(tmp_path / "t5"), "hf://me/t5"]) == 0
    assert "import-t5 hf://me/t5" in hub.repositories["me/t5"].files()["README.md"].decode()
    mine = tmp_path / "mine"
    write_model_folder(mine, read_model_folder(model))
    assert cli.main(["import-t5", "hf://me/t5", str(mine)]) == 0
    assert not (mine / "text_encoder.safetensors").exists()
    base = json.loads((mine / "config.json").read_text())["base"]
    assert parse_hub_id(base).repository == "me/t5"
    assert_equal(read_model_folder(mine), read_model_folder(model))


def test_push_from_a_bucket(hub, model, bucket, change_client, capsys):
    change_client(HF_TOKEN=TOKEN)
    folder = paths.user_path(bucket) / "models"
    write_model_folder(folder / "tiny", read_model_folder(model))
    derived = without_base(read_model_folder(model), folder / "tiny")
    write_model_folder(folder / "derived", derived, base=folder / "tiny")
    assert cli.main(["push", f"{folder}/derived", "hf://me/zoo/derived"]) == 0, capsys.readouterr()
    assert_equal(
        read_model_folder(find_model_folder("hf://me/zoo/derived")), read_model_folder(model)
    )
    names = hub.repositories["me/zoo"].files().keys()
    assert {name.rpartition("/")[0] for name in names} == {"", "derived", "tiny"}
    write_model_folder(model.with_name("local"), derived, base=folder / "tiny")
    message = error_of(capsys, "push", model.with_name("local"), "hf://me/zoo/local")
    assert f"base is '{folder}/tiny', which would be outside" in message


def test_import_downloads_only_what_it_reads(hub, change_client, tmp_path, capsys):
    source = folders.write_pipeline(tmp_path / "IF")
    files = contents(source)
    junk = [
        "model_index.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/flax_model.msgpack",
        "text_encoder/pytorch_model-00001-of-00002.bin",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "images/unet/config.json",
    ]
    hub.add("DeepFloyd/IF", files | dict.fromkeys(junk, b"junk"))
    folder = find_source("hf://DeepFloyd/IF/text_encoder", ("text_encoder",), None)
    assert hub.downloads() == [n for n in sorted(files) if n[:4] in ("text", "toke")]
    assert contents(folder.parent).items() <= files.items()
    folder = find_source("hf://DeepFloyd/IF/unet", ("unet", "text_encoder"), None)
    assert hub.downloads() == [n for n in sorted(files) if n[:4] in ("unet", "sche")]
    assert contents(folder.parent) == files  # the tokenizer and the scheduler are beside components

    assert cli.main(["import-if", "hf://DeepFloyd/IF", str(tmp_path / "model")]) == 0
    assert hub.downloads() == []
    assert sorted(read_model_folder(tmp_path / "model").params) == ["text_encoder", "unet"]
    change_client(HF_HUB_OFFLINE="1")
    assert find_source("hf://DeepFloyd/IF/unet", ("unet", "text_encoder"), None) == folder
    change_client(HF_HUB_OFFLINE="0")
    capsys.readouterr()
    message = error_of(
        capsys, "import-if", "hf://DeepFloyd/IF", tmp_path / "no", "--variant", "bf16"
    )
    assert "hf://DeepFloyd/IF/unet: " in message and "bf16" in message and "fp16" in message
    message = error_of(capsys, "import-t5", "hf://DeepFloyd/IF/scheduler", tmp_path / "no")
    assert "hf://DeepFloyd/IF/scheduler: " in message and "config.json" in message
    hub.add("google/t5", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    message = error_of(capsys, "import-t5", "hf://google/t5", tmp_path / "no")
    assert "hf://google/t5/pytorch_model.bin: is a pickle" in message
    message = error_of(capsys, "generate", "x", "--model=hf://DeepFloyd/IF", "--out=x.mp4")
    assert "stunet import-if hf://DeepFloyd/IF" in message
    assert not (tmp_path / "no").exists()


def test_an_interrupted_download_continues(published, model, capsys, tmp_path):
    refused = "unet_spatial.safetensors"
    published.refused.add(refused)
    message = error_of(capsys, "export-if", "hf://me/tiny", tmp_path / "out")
    assert "hf://me/tiny@" in message and "Not today" in message
    published.downloads()
    published.refused.clear()
    folder = find_model_folder("hf://me/tiny")
    assert refused in published.downloads()
    assert_equal(read_model_folder(folder), read_model_folder(model))


def test_a_lost_connection_resumes_within_a_file(published, model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    name = "unet_temporal.safetensors"
    assert (model / name).stat().st_size > 1000
    published.cut[name] = 1000
    with contextlib.suppress(UserError):  # of huggingface_hub 1, which resumes with the next call
        find_model_folder("hf://me/tiny")
    folder = find_model_folder("hf://me/tiny")
    ranges = [found for _, path, found in published.requests if path.endswith(name) and found]
    assert ranges == ["bytes=1000-"]
    assert_equal(read_model_folder(folder), read_model_folder(model))


@pytest.mark.parametrize(
    "hub_id, found",
    [
        ("hf://me/none", "no such repository at {url}/me/none"),
        ("hf://me/tiny@v9", "no revision 'v9'"),
        ("hf://me/gated", "hf://me/gated: .*Visit the page.* {url}/me/gated.*hf auth login"),
        ("hf://me/private", "no such repository"),
        ("hf://me/data", r"no model found.*config.json.*notes.txt"),
        ("hf://me/zoo", "no model found.*hf://me/zoo/a, hf://me/zoo/b/c"),
        ("hf://me/zoo/none", "hf://me/zoo/none: no such folder"),
        ("hf://me/torn", "hf://me/torn: unet_spatial.safetensors: no such file"),
        ("hf://me/derived", "hf://me/derived@.*base is 'elsewhere'.*outside"),
        ("hf://me/broken", "hf://me/broken: .*architecture"),
    ],
)
def test_errors_of_a_hub_id(published, model, hub_id, found, capsys, tmp_path):
    files = contents(model)
    published.add("me/gated", files, gated=True)
    published.add("me/private", files, private=True)
    published.add("me/data", {"notes.txt": b""})
    published.add("me/zoo", {"a/config.json": b"{}", "b/c/config.json": b"{}"})
    published.add("me/torn", {k: v for k, v in files.items() if k != "unet_spatial.safetensors"})
    config = json.loads(files["config.json"])
    base = json.dumps(config | {"base": "elsewhere"}).encode()
    published.add("me/derived", files | {"config.json": base})
    broken = json.dumps(config | {"architecture": 3}).encode()
    published.add("me/broken", files | {"config.json": broken})
    message = error_of(capsys, "export-if", hub_id, tmp_path / "out")
    assert re.search(found.format(url=published.url), message), message
    assert not (tmp_path / "out").exists()


def test_offline(published, model, change_client, capsys, tmp_path):
    assert_equal(read_model_folder(find_model_folder("hf://me/tiny")), read_model_folder(model))
    change_client(HF_HUB_OFFLINE="1")
    assert_equal(read_model_folder(find_model_folder("hf://me/tiny")), read_model_folder(model))
    message = error_of(capsys, "export-if", "hf://me/tiny@v1", tmp_path / "out")
    assert "offline (HF_HUB_OFFLINE" in message and "not in the cache" in message
    next((tmp_path / "home").rglob("snapshots/*/unet_temporal.safetensors")).unlink()
    message = error_of(capsys, "export-if", "hf://me/tiny", tmp_path / "out")
    assert "hf://me/tiny" in message and "offline (HF_HUB_OFFLINE" in message
    message = error_of(capsys, "push", model, "hf://me/new")
    assert "offline (HF_HUB_OFFLINE" in message
    change_client(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens
    message = error_of(capsys, "export-if", "hf://me/other", tmp_path / "out")
    assert "http://127.0.0.1:9/me/other" in message and "ConnectError" in message
    assert not (tmp_path / "out").exists()


def test_errors_of_push(hub, model, change_client, capsys, tmp_path):
    message = error_of(capsys, "push", model, "hf://me/tiny")
    assert "hf://me/tiny: not logged in" in message and "hf auth login" in message
    change_client(HF_TOKEN=TOKEN)
    message = error_of(capsys, "push", model, "hf://others/tiny")
    assert f"{hub.url}/others/tiny" in message and "rights" in message
    hub.add("me/tiny", {})
    assert "no revision 'v2'" in error_of(capsys, "push", model, "hf://me/tiny@v2")
    torn = tmp_path / "torn"
    write_model_folder(torn, read_model_folder(model))
    (torn / "unet_temporal.safetensors").unlink()
    hub.requests.clear()
    message = error_of(capsys, "push", torn, "hf://me/new")
    assert f"{torn}/unet_temporal.safetensors: " in message and not hub.requests
    assert f"{tmp_path}/none: " in error_of(capsys, "push", tmp_path / "none", "hf://me/new")
    assert "models/tiny: malformed" in error_of(capsys, "push", model, "models/tiny")
    assert hub.repositories.keys() == {"me/tiny"} and not hub.repositories["me/tiny"].files()


def test_a_hub_id_is_no_output(capsys):
    for command in (
        ["import-if", "somewhere", "hf://me/tiny"],
        ["import-t5", "somewhere", "hf://me/tiny"],
        ["generate", "x", "--out", "hf://me/tiny.mp4"],
    ):
        assert "'hf://me/tiny" in error_of(capsys, *command)


def test_without_the_package(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = error_of(capsys, "export-if", "hf://me/tiny", tmp_path / "out")
    assert "hf://me/tiny: " in message and 'pip install "stunet[hub]"' in message


def test_the_command_in_a_new_process(published, model):
    result = subprocess.run(
        [sys.executable, "-m", "stunet.cli", "push", "hf://me/tiny", "hf://me/copy/a"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_TOKEN": TOKEN},
    )
    copy = f"{published.url}/me/copy\n"
    assert (result.returncode, result.stdout) == (0, copy), result.stderr
    found = published.repositories["me/copy"].files()
    assert {n: v for n, v in found.items() if n[:2] == "a/"} == contents(model, "a/")


def test_settings_name_the_hub_id():
    assert short_name("hf://me/tiny@v1/a") == "hf://me/tiny@v1/a"


@pytest.mark.parametrize(
    "fields, expected",
    [
        (
            {},
            ["pipeline_tag: text-to-video", "4 frames of 8x8 pixels at 8 fps (0.5 s)", "generate"],
        ),
        ({"architecture": {}}, ["pipeline_tag: text-to-image", "out image.png"]),
        ({"architecture": {"cond_channels": 4}}, ["pipeline_tag: image-to-video", "animate"]),
        ({"super_resolution": {}}, ["pipeline_tag: video-to-video", "upscale"]),
        ({"num_frames": 1, "fps": None}, ["images of 8x8 pixels"]),
    ],
)
def test_model_cards(model, fields, expected):
    config = read_model_folder(model).config | fields
    card = model_card(config, {"unet": 1234567}, HubId("me/tiny", None, "a"), None)
    for text in (*expected, "1,234,567", "hf://me/tiny/a", "# a", "stunet import-t5"):
        assert text in card
    assert "license" not in card and GATED_MESSAGE not in card
