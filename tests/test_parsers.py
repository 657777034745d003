"""Files of others: nothing in them is executed, and they give no access to other files.

Every attack is first tried on an unprotected parser where there is one, so that it is real.
"""

import functools
import gc
import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import data.sources
from data.collection_files import CollectionFiles
from data.parts import PartTask
from data.preparation import ClipSettings
from data.records import check_features
from data.sources import MediaFile, SourceClip
from data.tables import read_columns, read_rows
from data.ucf101.ucf101_builder import find_class_videos
from experiments import prepare
from stunet import cli
from stunet.array_files import load_array, open_rows
from stunet.checksums import CHECKSUMS, write_checksums
from stunet.conversion.hub_layout import find_weight_files
from stunet.conversion.sentence_piece import tokenizer_json
from stunet.engine.cascade import load_models
from stunet.errors import UserError
from stunet.evaluation.clip import load_clip
from stunet.evaluation.torch_weights import open_torch_weights
from stunet.files import read_json, read_text, read_tsv_pairs
from stunet.studio.uploads import Limits, check_upload
from stunet.text import load_tokenizer
from stunet.text_states import open_text_states, write_text_states
from stunet.training.settings import OptimizerConfig
from stunet.training.step import init_state, make_optimizer
from stunet.training.workdir.checkpoints import Checkpoints, DataState
from stunet.video_io import (
    has_audio,
    probe,
    read_audio,
    read_comment,
    read_video,
    read_video_sizes,
    write_video,
)
from stunet.video_io.masks import read_mask_frames
from stunet.weights.safetensors_io import open_safetensors
from tests.tiny import UNET, remove_checksums, save_tiny_model

PROTOCOLS = (0, 2, 5)  # 0 is text


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def executed(tmp_path):
    """Path of the file that the payload creates; checks that it does not exist at the end."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


def one_line(call, *arguments):
    """Returns the message of the `UserError` that a call raises; None if it returns."""
    try:
        call(*arguments)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def payloads(path):
    """Returns contents of files with a pickle: alone, in an array, and as PyTorch stores it."""
    yield from (pickle.dumps(Payload(path), protocol) for protocol in PROTOCOLS)
    array = io.BytesIO()
    np.save(array, np.array([Payload(path)], object), allow_pickle=True)
    yield array.getvalue()
    arrays = io.BytesIO()
    np.savez(arrays, a=np.array([Payload(path)], object))
    yield arrays.getvalue()
    weights = io.BytesIO()
    with zipfile.ZipFile(weights, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(path)))
    yield weights.getvalue()


READERS = {
    "read_video": read_video,
    "probe": probe,
    "read_video_sizes": lambda path: read_video_sizes(path, [8]),
    "read_comment": read_comment,
    "has_audio": has_audio,
    "read_audio": read_audio,
    "read_mask_frames": lambda path: read_mask_frames(path, None, [8]),
    "check_upload": lambda path: check_upload(path, Limits()),
    "read_rows": lambda path: list(read_rows(path)),
    "read_columns": read_columns,
    "read_json": read_json,
    "read_text": read_text,
    "read_tsv_pairs": lambda path: read_tsv_pairs(path, "a row"),
    "open_safetensors": open_safetensors,
    "open_torch_weights": open_torch_weights,
    "tokenizer_json": tokenizer_json,
    "load_tokenizer": lambda path: load_tokenizer(path, 8),
}
SUFFIXES = (
    *(".png", ".mp4", ".gif", ".csv", ".tsv", ".json", ".jsonl", ".parquet"),
    *(".npy", ".safetensors", ".bin", ".pt", ".pkl", ".model", ".zip", ""),
)


@pytest.mark.parametrize("name", READERS)
def test_readers_do_not_unpickle(name, executed, tmp_path):
    refused = 0
    for content in payloads(executed):
        for suffix in SUFFIXES:
            path = tmp_path / f"file{suffix}"
            path.write_bytes(content)
            message = one_line(READERS[name], path)
            assert message is None or path.name in message
            refused += message is not None
    # Others return nothing (`has_audio`) or a text.
    assert refused or name in ("has_audio", "read_comment")


def test_arrays_of_objects_are_not_loaded(executed, tmp_path):
    path = tmp_path / "a.npy"
    for content in payloads(executed):
        path.write_bytes(content)
        for read in (load_array, open_rows):
            with pytest.raises(ValueError):
                read(path)


def replace_each_file(folder, content):
    """Replaces one file after the other; yields its path, and restores it afterwards."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        before = path.read_bytes()
        path.write_bytes(content)
        yield path
        path.write_bytes(before)


def test_folders_of_text_states_do_not_unpickle(executed, tmp_path):
    folder = tmp_path / "states"
    captions = ["a circle", "a square"]
    write_text_states(folder, captions, lambda texts: np.zeros((len(texts), 4, 8)), "t5")
    count = 0
    for content in payloads(executed):
        for path in replace_each_file(folder, content):
            message = one_line(lambda: open_text_states(folder).lookup(captions))
            assert message is not None and path.name in message, path
            count += 1
    assert count >= 3 * len(list(payloads(executed)))


def test_model_folders_do_not_unpickle(executed, tmp_path):
    folder = save_tiny_model(tmp_path / "model", UNET)
    remove_checksums(folder)  # an author of a pickle would write others
    names = set()
    for content in list(payloads(executed))[2:4]:  # a pickle and an array of objects
        for path in replace_each_file(folder, content):
            message = one_line(load_models, str(folder))
            assert message is not None and str(folder) in message, path
            names.add(path.suffix)
    assert names >= {".json", ".safetensors"}


def test_checkpoints_do_not_unpickle(executed, tmp_path, monkeypatch):
    # Orbax abandons coroutines when it fails, which Python reports when it collects them.
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: None)
    params = {"unet": {"kernel": jnp.ones((2, 3))}}
    state = init_state(params, make_optimizer(OptimizerConfig(), 10))
    saving = Checkpoints(tmp_path / "run", keep=2)
    saving.save(state._replace(step=jnp.int32(4)), DataState(8, "dataset"))
    saving.close()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    def restore():
        restoring = Checkpoints(tmp_path / "copy", keep=2)
        try:
            restoring.restore(abstract, lambda line: None)
        finally:
            restoring.close()

    def attack(name, content):
        """Replaces all files of a checkpoint that have this name."""
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        for path in (tmp_path / "copy").rglob(name):
            path.write_bytes(content)
        if name != CHECKSUMS:
            write_checksums(tmp_path / "copy" / "checkpoints" / "4")
        return one_line(restore)

    names = {p.name for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()}
    messages = [attack(name, pickle.dumps(Payload(executed))) for name in sorted(names)]
    assert any("checkpoint" in (message or "") for message in messages)
    gc.collect()


def test_tasks_for_workers_are_not_pickles(executed):
    clips = [
        SourceClip("a/1.mp4", MediaFile(Path("a/1.mp4")), ("a circle", "é\udce9"), (0.5, 2.0)),
        SourceClip("b", MediaFile(Path("/b.tar"), "x", 512, 7), (), problem="empty", content="7 x"),
    ]
    task = PartTask(Path("/data/part-00000"), clips, ClipSettings(4, 8, 8.0, "raw", True, 0.5))
    assert prepare._task_from_json(prepare._task_to_json(task)) == task
    for protocol in PROTOCOLS:
        with pytest.raises(ValueError):
            prepare._task_from_json(pickle.dumps(Payload(executed), protocol).decode("latin-1"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(name, executed, tmp_path, capsys):
    for folder in (tmp_path / "unet", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        for content in payloads(executed):
            (folder / name).write_bytes(content)
            assert "pickle" in one_line(find_weight_files, folder, None)
    assert one_line(load_clip, tmp_path) is not None
    assert one_line(open_torch_weights, tmp_path / name) is not None
    for kind in ("import-if", "import-t5"):
        assert cli.main([kind, str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("stunet: error: ") and not (tmp_path / "out").exists()


_LEGACY = '"type"'


@pytest.mark.parametrize(
    "key", ['"pythonClassName"', '"python_class_name"', '"python\\u0043lassName"', _LEGACY]
)
def test_descriptions_of_features_import_no_modules(key, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    executed = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(executed)!r}, 'w').close()\n")
    folder = tmp_path / "part"
    folder.mkdir()
    tfds.features.FeaturesDict({"caption": tfds.features.Text()}).save_config(str(folder))
    check_features(folder)
    path = folder / "features.json"
    attack = f'{{{key}: "evil.Feature", "{"content" if key == _LEGACY else "text"}": {{}}}}'
    path.write_text(attack)
    with pytest.raises(ValueError, match="Unrecognized"):
        tfds.features.FeatureConnector.from_config(str(folder))
    assert executed.exists()
    for content in (attack, f'{{"featuresDict": {{"features": {{"a": [{attack}]}}}}}}'):
        path.write_text(content)
        assert "evil.Feature" in one_line(check_features, folder)


# --- files that name other files


def write_secret(path):
    """Writes a video that a playlist names."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(4):
            pixels = np.full((32, 32, 3), 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


MPD = """<?xml version="1.0"?><!DOCTYPE MPD [<!ENTITY x SYSTEM "secret.mp4">]>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" minBufferTime="PT1S"><Period><AdaptationSet
 mimeType="video/mp4" contentType="video"><Representation id="0" bandwidth="1000" width="32"
 height="32"><BaseURL>secret.mp4&x;</BaseURL></Representation></AdaptationSet></Period></MPD>"""
SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="32" height="32"><image width="32" height="32" xlink:href="secret.png"/></svg>"""
PLAYLISTS = {
    "list.m3u8": (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "hls",
    ),
    "list.ffconcat": ("ffconcat version 1.0\nfile secret.mp4\n", "concat"),
    "list.mpd": (MPD, None),  # formats of optional libraries
    "list.svg": (SVG, None),
    "list.sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 45678 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        None,
    ),
    "list.idx": (
        "# VobSub index file, v7 (do not modify this line!)\nsize: 32x32\nid: en, index: 0\n"
        "timestamp: 00:00:01:000, filepos: 000000000\n",
        None,
    ),
    "list.cue": ('FILE "secret.mp4" MP4\nTRACK 01 AUDIO\n', None),
    "list.pls": ("[playlist]\nFile1=secret.mp4\nNumberOfEntries=1\n", None),
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_xml_give_no_access_to_the_files_that_they_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for secret in ("secret.mp4", "secret.ts"):
        write_secret(secret)
    Image.new("RGB", (32, 32), "red").save("secret.png")
    content, form = PLAYLISTS[name]
    Path(name).write_text(content)
    if form is not None:  # FFmpeg follows it
        with av.open(name) as container:
            assert container.format.name == form
            assert sum(1 for _ in container.decode(video=0)) == 4
    for path in (name, f"{Path(name).stem}.mp4", f"{Path(name).stem}.png"):
        Path(path).write_text(content)
        for read in (read_video, probe, functools.partial(check_upload, limits=Limits())):
            assert path in one_line(read, path), read
        with open(path, "rb") as file:
            assert one_line(read_video, file) is not None
        assert not has_audio(path)


# --- archives


def tar_member(archive, name, content=b"", **fields):
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    archive.addfile(header, io.BytesIO(content))


@pytest.fixture
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, np.zeros((2, 16, 16, 3), np.float32), 8)
    return path.read_bytes()


def test_members_of_tar_archives_stay_in_their_archive(video, tmp_path):
    folder, secret = tmp_path / "folder", tmp_path / "secret.mp4"
    folder.mkdir()
    secret.write_bytes(video[:-1])
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(folder / "a.tar", "w") as archive:
        tar_member(archive, "good.mp4", video)
        tar_member(archive, "good.txt", b"a circle")
        tar_member(archive, f"{secret}", video)
        tar_member(archive, "../../secret.mp4", video)
        tar_member(archive, "x/../../other/secret.mp4", video)
        links = {"type": tarfile.SYMTYPE, "linkname": str(secret)}
        tar_member(archive, "link.mp4", **links)
        tar_member(archive, "hard.mp4", **links | {"type": tarfile.LNKTYPE})
        tar_member(archive, "good2.txt", **links)
        tar_member(archive, "device.mp4", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    files = CollectionFiles(folder, num_frames=2)
    inside = f"a.tar/{secret}".replace("//", "/")
    assert files.videos == tuple(sorted((inside, "a.tar/good.mp4")))
    outside = [line for line in files.skipped if "outside the folder" in line]
    assert len(outside) == 2 and all("secret.mp4" in line for line in outside)
    for name in files.videos:
        with files.media(name).open() as content:
            assert content.read() == video
    assert os.listdir(folder) == ["a.tar"]


def test_large_members_of_archives_are_refused_before_they_are_read(video, tmp_path, monkeypatch):
    monkeypatch.setattr(data.sources, "MAX_MEMBER_BYTES", 2**20)
    bomb = bytes(2**25)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("YoYo/good.avi", video)
        archive.writestr("YoYo/bomb.avi", bomb)
        archive.writestr("../YoYo/outside.avi", video)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        tar_member(archive, "good.mp4", video)
        tar_member(archive, "bomb.mp4", bomb)
    assert (tmp_path / "a.zip").stat().st_size < 2**17

    def read(file):
        with file.open() as content:
            return content.read()

    members = {clip.name: clip.file for clip in find_class_videos(tmp_path / "a.zip").clips}
    assert set(members) == {"YoYo/good.avi", "YoYo/bomb.avi"}
    files = CollectionFiles(tmp_path, num_frames=2)
    members |= {name: files.media(name) for name in files.videos}
    tracemalloc.start()
    try:
        for name, file in members.items():
            message = one_line(read, file)
            assert (message is None) == ("good" in name)
            assert message is None or ("bomb" in message and "GiB" in message)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_sizes_that_a_zip_archive_states_bound_what_is_decompressed(video, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.avi", bytes(2**25))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 2**25), struct.pack("<I", 100)))
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile), MediaFile(path, "bomb.avi").open():
            pass
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


# --- images that are larger than their files


def png_chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def gif(width, height, frame_width, frame_height):
    image = struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\2\2\x4c\1\0"
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + image + b";"


APNG = (
    (b"acTL", struct.pack(">II", 1, 0)),
    (b"fcTL", struct.pack(">IIIIIHHBB", 0, 60000, 60000, 0, 0, 1, 10, 0, 0)),
)
ZEROS = zlib.compress(bytes(2**28), 9)
BOMBS = {
    "a.png": png(60000, 60000),
    "frame.png": png(16, 16, *APNG),
    "text.png": png(16, 16, (b"zTXt", b"a\0\0" + ZEROS)),
    "profile.png": png(16, 16, (b"iCCP", b"a\0\0" + ZEROS)),
    "a.gif": gif(65535, 65535, 16, 16),
    "frame.gif": gif(16, 16, 65535, 65535),
    "a.ppm": b"P6 60000 60000 255\n" + bytes(100),
    "a.bmp": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    + bytes(100),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_are_one_line_and_take_no_memory(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    assert len(BOMBS[name]) < 2**20
    tracemalloc.start()
    try:
        for read in (read_video, functools.partial(check_upload, limits=Limits())):
            message = one_line(read, path)
            assert message is not None and path.name in message
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**26
