"""The commands with models, inputs and outputs in a bucket."""

import http.server
import json
import threading
import types

import numpy as np
import pytest

from experiments import judge, ucf101
from stunet import cli, paths
from stunet.engine.applications import _upscale
from stunet.engine.request import Request
from stunet.errors import BucketError, UserError
from stunet.evaluation.clip_folders import open_clip_folder
from stunet.video_io import (
    check_writable,
    has_audio,
    probe,
    read_comment,
    read_video,
    write_image,
    write_video,
)
from stunet.weights.model_folder import open_model_folder, write_model_folder
from tests.tiny import fast_compiles, save_tiny_model

PROMPT = "a red circle moves left"


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder, in which no test may leave a file."""
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []  # such as a folder "gs:"


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("buckets") / "model")


@pytest.fixture
def root(bucket):
    return paths.user_path(bucket)


def noise_video(frames=4, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (frames, 16, 16, 3)).astype(np.float32)


def error_of(capsys, *arguments):
    """Returns the one line of a command that must fail."""
    assert cli.main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_generates_from_a_bucket_to_a_bucket(local_model, root, tmp_path, capsys):
    model = root / "models/tiny"
    write_model_folder(model, open_model_folder(local_model))
    paths.write_text(root / "prompts.txt", f"{PROMPT}\na green star\n")
    for place, folder in ((tmp_path, local_model), (root, model)):
        options = ["--model", folder, "--steps", 2]
        sheet = ["--xt-slice", place / "slice.png", "--out", place / "out.gif"]
        assert cli.main(["generate", PROMPT, *map(str, [*options, *sheet])]) == 0
        assert capsys.readouterr().out.split() == [f"{place}/out.gif", f"{place}/slice.png"]
        many = ["generate", "--prompts", root / "prompts.txt", *options, "--out", place / "v.mp4"]
        assert cli.main(list(map(str, many))) == 0
        capsys.readouterr()
    for name in ("out.gif", "slice.png", "v_0000.mp4", "v_0001.mp4"):
        found, fps = read_video(root / name)
        expected, expected_fps = read_video(tmp_path / name)
        np.testing.assert_array_equal(found, expected)
        assert fps == expected_fps
    assert json.loads(read_comment(root / "v_0001.mp4"))["model"] == "tiny"
    # Continues with the missing one, and refuses the files of other settings.
    (root / "v_0001.mp4").unlink()
    before = paths.object_version(root / "v_0000.mp4")
    assert cli.main(list(map(str, many))) == 0
    np.testing.assert_array_equal(
        read_video(root / "v_0001.mp4")[0], read_video(tmp_path / "v_0001.mp4")[0]
    )
    assert paths.object_version(root / "v_0000.mp4") == before
    capsys.readouterr()
    assert error_of(capsys, *many, "--seed", 1).startswith(
        f"stunet: error: {root}/v_0000.mp4: exists with seed"
    )


def test_inputs_of_every_kind(root, tmp_path):
    video = noise_video(8)
    for name in ("a.mp4", "a.gif", "a.png"):
        write_video(tmp_path / name, video, 8)
        write_video(root / name, video, 8)
        assert (root / name).read_bytes() == (tmp_path / name).read_bytes()
        assert probe(root / name) == probe(tmp_path / name)
        np.testing.assert_array_equal(
            read_video(str(root / name))[0], read_video(tmp_path / name)[0]
        )
    assert not has_audio(root / "a.mp4")
    upscaler = types.SimpleNamespace(
        super_resolution=types.SimpleNamespace(factor=2),
        unet=types.SimpleNamespace(spatial_stride=2),
        resolution=32,
    )
    for source in (root / "a.mp4", f"{root}/a.mp4"):
        task = _upscale(Request(application="upscale", prompts=("",), video=source), upscaler, ())
        assert task.low_resolution.shape == (1, 8, 16, 16, 3)
    paths.write_bytes(root / "cut.mp4", (tmp_path / "a.mp4").read_bytes()[:-99])
    with pytest.raises(UserError, match=f"^{root}/cut.mp4: truncated"):
        read_video(root / "cut.mp4")
    with pytest.raises(UserError, match=f"^{root}/absent.mp4: no such file"):
        read_video(root / "absent.mp4")


def test_evaluates_a_folder_in_a_bucket(root, capsys):
    for name in ("a.mp4", "b/c.mp4"):
        write_video(root / "clips" / name, noise_video(), 8)
    paths.write_bytes(root / "clips/empty.mp4", b"")
    write_image(root / "clips/still.gif.png", noise_video()[0])
    folder = open_clip_folder(f"{root}/clips", 4)
    assert folder.names == ("a.mp4", "b/c.mp4") and len(folder.skipped) == 2
    command = ["evaluate", f"{root}/clips", "--frames", "4", "--out", f"{root}/report"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{root}/report/report.json",
        f"{root}/report/xt_slices.png",
    ]
    report = json.loads((root / "report/report.json").read_text())
    assert report["clips"]["num_clips"] == 2 and report["metrics"]
    assert probe(root / "report/xt_slices.png").num_frames == 1
    assert error_of(capsys, "evaluate", root / "absent").startswith(
        f"stunet: error: {root}/absent: no such folder"
    )


def test_zero_shot_clips_are_resumed(local_model, root, monkeypatch):
    model = root / "model"
    write_model_folder(model, open_model_folder(local_model))
    clips = [("A", PROMPT), ("B", "a green star"), ("A", PROMPT)]
    monkeypatch.setattr(ucf101, "classes_and_prompts", lambda config: clips)
    config = ucf101.ZeroShotConfig(
        model=str(model),
        reference="unused",
        prompts="unused",
        num_videos=3,
        frames=4,
        steps=2,
        batch_size=1,
    )
    workdir = root / "zero"
    ucf101.generate_clips(config, workdir)
    names = ["00000_A.mp4", "00001_B.mp4", "00002_A.mp4"]
    assert sorted(paths.list_objects(workdir / "clips")) == names
    before = {name: (workdir / "clips" / name).read_bytes() for name in names}
    (workdir / "clips" / names[1]).unlink()
    versions = {name: paths.object_version(workdir / "clips" / name) for name in names[::2]}
    ucf101.generate_clips(config, workdir)
    assert (workdir / "clips" / names[1]).read_bytes() == before[names[1]]
    for name, version in versions.items():
        assert paths.object_version(workdir / "clips" / name) == version
    assert (workdir / "prompts.tsv").read_text().count("\n") == 3


@pytest.mark.filterwarnings("ignore:prompt. 1 of 1 truncated")
def test_judge_writes_to_a_bucket(local_model, root, monkeypatch, capsys):
    monkeypatch.setattr(judge, "prepare_compiler", lambda: None)
    out = root / "judged/seen"
    judge.main(["judge", f"--model={local_model}", f"--out={out}", "--num_clips=1", "--steps=2"])
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{out}.json", f"{out}.png"]
    assert json.loads((out.parent / "seen.json").read_text())["num_clips"] == 1


COMMANDS = {
    "generate --model": ["generate", PROMPT, "--model", "GS", "--out", "out.mp4"],
    "generate --out": ["generate", PROMPT, "--model", "MODEL", "--out", "GS/out.mp4"],
    "generate --prompts": ["generate", "--prompts", "GS/p.txt", "--out", "out.mp4"],
    "generate --xt-slice": ["generate", PROMPT, "--xt-slice", "GS/a.png", "--out", "out.mp4"],
    "edit": ["edit", "GS/a.mp4", "x", "--strength=1", "--model", "MODEL", "--out", "x.mp4"],
    "evaluate": ["evaluate", "GS"],
    "evaluate --out": ["evaluate", "clips", "--out", "GS/report"],
    "evaluate --i3d": ["evaluate", "clips", "--i3d", "GS/i3d.safetensors", "--reference", "clips"],
    "push": ["push", "GS", "hf://me/tiny"],
    "import-if": ["import-if", "GS", "model"],
    "import-t5": ["import-t5", "GS", "model"],
    "export-if SRC": ["export-if", "GS", "exported"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bucket_that_does_not_exist(name, local_model, bucket_server, capsys, tmp_path):
    place = "gs://no-such-bucket/x"
    if name.startswith("evaluate"):
        write_video(tmp_path / "clips/a.mp4", noise_video(16), 8)
    names = {"MODEL": str(local_model), "clips": str(tmp_path / "clips")}
    arguments = [names.get(a, a).replace("GS", place) for a in COMMANDS[name]]
    error = error_of(capsys, *arguments)
    assert "gs://no-such-bucket/x" in error and "the bucket does not exist" in error


@pytest.mark.parametrize("arguments", [["generate", PROMPT, "--out", "gs:/b/a.mp4"]])
def test_an_address_with_one_slash(arguments, capsys):
    assert "gs:/b/a.mp4: invalid address, expected gs://BUCKET/PATH" in error_of(capsys, *arguments)


def test_an_object_that_does_not_exist(root, local_model, capsys):
    model, out = ["--model", local_model], ["--out", root / "out.mp4"]
    absent = root / "absent"
    for arguments in (
        ["generate", PROMPT, "--model", absent, *out],
        ["generate", *model, "--prompts", absent, *out],
        ["import-if", absent, root / "model"],
        ["import-t5", absent, root / "model"],
        ["push", absent, "hf://me/tiny"],
        ["export-if", absent, root / "exported"],
    ):
        assert str(absent) in error_of(capsys, *arguments)
    assert paths.list_objects(root) == {}


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = error_of(capsys, "generate", PROMPT, "--model", "gs://b/m", "--out", "a.mp4")
    assert error == "stunet: error: gs://b/m: needs the extra gcs: pip install 'stunet[gcs]'"


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status in the bucket's name."""

    def do_GET(self):
        self.refuse(self.path)

    do_DELETE = do_GET  # noqa: N815

    def refuse(self, text):
        status = int(text.split("status-")[1][:3])
        body = json.dumps({"error": {"code": status, "message": f"Because of {status}."}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.refuse(self.path + body.decode("latin-1"))  # a batch names the bucket in its body

    def log_message(self, *args):
        pass


@pytest.fixture
def refusing(monkeypatch, bucket_server):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield
        server.shutdown()
        thread.join()


def accesses(path):
    """Functions that read or write in a bucket."""
    yield path.exists
    yield path.read_bytes
    yield lambda: paths.local_input(path).__enter__()
    yield lambda: list(path.parent.iterdir())
    yield lambda: paths.list_objects(path)
    yield lambda: paths.write_text(path, "x")
    yield lambda: check_writable(path)
    yield path.unlink
    yield lambda: read_video(path)
    yield lambda: path.parent.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"no valid credentials .*\(Because of 401.*gcloud auth application-default login"),
        (403, r"no permission \(Because of 403\), expected the role Storage Object User"),
    ],
)
def test_no_access(refusing, status, message, capsys):
    for access in accesses(paths.user_path(f"gs://status-{status}/runs/a.mp4")):
        with pytest.raises(BucketError, match=f"^gs://status-{status}(/runs.*)?: {message}"):
            access()
    out = f"gs://status-{status}/runs/a.mp4"
    assert error_of(capsys, "generate", PROMPT, "--out", out).startswith(f"stunet: error: {out}: ")


def test_offline(monkeypatch, bucket_server):
    async def sleep(seconds):
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    for access in accesses(paths.user_path("gs://bucket/runs/a.mp4")):
        with pytest.raises(BucketError, match=r"^gs://bucket.*: .*cannot be reached"):
            access()
