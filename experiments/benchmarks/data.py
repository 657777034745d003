"""Measures stored clips: bytes, quality, and how fast they are prepared and read.

    python -m experiments.benchmarks.data --clips=2000 --out=data.json
    python -m experiments.benchmarks.data --videos=FOLDER --nopipeline --out=quality.json

Prints two tables. "Storage" encodes segments of the videos and decodes random windows, single
frames and crops of them (`data.encoding`). "Pipeline" builds datasets in a temporary folder with
`data.pipeline.prepare` and reads them with `data.pipeline.make_batches`. Speeds per core are clips
per second of processor time, summed over threads.

Videos are rendered, unless --videos names a folder: textures with the spectrum of slightly blurred
photographs, which move over each other. At most eight are rendered for each shape; the source of a
dataset repeats them. Raw datasets are limited to 2 GB.
"""

import csv
import dataclasses
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from absl import flags
from tqdm import tqdm

from data import pipeline as data
from data.encoding import decode_window, encode_segment
from data.preparation import SEGMENT, cut
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.errors import UserError, run_command
from stunet.video_io import decode_frames
from stunet.video_io.folders import VIDEO_SUFFIXES, find_files

FPS = 16.0
_RENDERED = 8  # different videos of each shape
_SEGMENTS = 4  # of each video in the first table
_WINDOWS = 4  # random windows of each segment
_RAW_BYTES = 2e9
_PART_BYTES = 5e8  # TFDS sorts up to 1 GB in memory
_BATCH = 8
_WARM_UP = 4  # batches


class Shape(NamedTuple):
    """Size of an example.

    Attributes:
      num_frames: Frames of an example.
      resolution: Height and width of a stored frame.
      crop: Height and width of the random crop that is read. None reads whole frames.
    """

    num_frames: int
    resolution: int
    crop: int | None = None

    def __str__(self) -> str:
        side = self.crop or self.resolution
        return f"{self.num_frames}x{side}x{side}" + f" of {self.resolution}" * bool(self.crop)


STORAGE_SHAPES = (
    Shape(16, 16),
    Shape(16, 32),
    Shape(16, 64),
    Shape(16, 128),
    Shape(80, 128),
    Shape(16, 256),
    Shape(8, 1024, 256),
)
# Height of the rendered videos, and share of --clips.
PIPELINE_SHAPES = {
    Shape(16, 32): (240, 1.0),
    Shape(80, 128): (360, 1.0),
    Shape(8, 1024, 256): (1080, 0.02),
}

# Title, value of a row, and format of each column.
_STORAGE_COLUMNS = (
    ("shape", "shape", 1, ""),
    ("segments", "segments", 1, ""),
    ("kB", "segment_bytes", 1e-3, ".4g"),
    ("of raw", "fraction_of_raw", 1, ".3f"),
    ("PSNR, dB", "psnr", 1, ".1f"),
    ("worst", "worst_psnr", 1, ".1f"),
    ("encode, ms", "encode_s", 1e3, ".3g"),
    ("window, ms", "window_s", 1e3, ".3g"),
    ("frame, ms", "frame_s", 1e3, ".3g"),
)
_PIPELINE_COLUMNS = (
    ("shape", "shape", 1, ""),
    ("storage", "storage", 1, ""),
    ("clips", "clips", 1, ""),
    ("kB per clip", "clip_bytes", 1e-3, ".4g"),
    ("prepared per s and core", "prepare_rate", 1, ".3g"),
    ("read per s and core", "read_rate", 1, ".4g"),
    ("processes", "workers", 1, ""),
    ("read per s", "wall_rate", 1, ".4g"),
)

FLAGS = flags.FlagValues()
_VIDEOS = flags.DEFINE_string(
    "videos", None, "use the videos in this folder instead of rendered ones", flag_values=FLAGS
)
_CLIPS = flags.DEFINE_integer(
    "clips",
    200,
    "number of videos in the source of a dataset; a fiftieth of it at 1024 pixels",
    lower_bound=1,
    flag_values=FLAGS,
)
_PIPELINE = flags.DEFINE_bool("pipeline", True, "build and read datasets", flag_values=FLAGS)
_SHAPES = flags.DEFINE_multi_enum(
    "shape",
    None,
    [str(shape) for shape in STORAGE_SHAPES],
    "measure this shape only",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
    "out", "benchmarks/data.json", "write the results to this JSON file", flag_values=FLAGS
)


def render(path: Path, height: int, num_frames: int, seed: int) -> None:
    """Writes a 16:9 video of a disc that moves over a panning background."""
    rng = np.random.default_rng(seed)
    width, reach = height * 16 // 9 // 2 * 2, height // 4  # pixels
    back = _texture(rng, height + 2 * reach, width + 2 * reach)
    disc = _texture(rng, height, width)
    rate, phase = rng.uniform(0.03, 0.1, (2, 2)), rng.uniform(0, 6, (2, 2))
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(FPS))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "18"}
        for t in range(num_frames):
            (top, left), (down, right) = np.rint(reach * np.sin(rate * t + phase)).astype(int)
            inside = np.hypot(y - height // 2 - down, x - width // 2 - right) < reach
            background = back[reach + top :, reach + left :][:height, :width]
            pixels = np.where(inside[..., None], disc, background)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns noise `[H, W, 3]` uint8 with the spectrum of a slightly blurred photograph."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    amplitude = frequency**-1.5
    luma, *chroma = (
        np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((height, width))) * amplitude, (height, width)
        )
        for _ in range(3)
    )
    colours = np.stack([luma, *chroma], -1) @ [[1, 1, 1], [0.3, 0, -0.3], [-0.1, 0.2, -0.1]]
    return np.clip(128 + 40 * colours / colours.std(), 0, 255).astype(np.uint8)


def measure_storage(shape: Shape, segments: Sequence[np.ndarray]) -> dict[str, Any]:
    """Encodes and decodes segments.

    Returns:
      Number and bytes of segments, the fraction of raw bytes, PSNR in dB (mean, and worst segment),
      and seconds of processor time: to encode a segment, to decode a random window (a crop, if the
      shape has one) and a random frame, and to copy a window of raw frames.
    """
    rng, size = np.random.default_rng(0), (shape.crop or shape.resolution,) * 2
    encoded_bytes, psnrs, seconds = [], [], {"encode": [], "window": [], "frame": [], "raw": []}
    for segment in segments:
        content = _timed(seconds["encode"], encode_segment, segment, FPS)
        encoded_bytes.append(len(content))
        psnrs.append(_psnr(decode_window(content, 0, len(segment)), segment))
        for _ in range(_WINDOWS):
            start = int(rng.integers(len(segment) - shape.num_frames + 1))
            corner = (int(i) for i in rng.integers(shape.resolution - size[0] + 1, size=2))
            box = (*corner, *size)
            _timed(seconds["window"], decode_window, content, start, shape.num_frames, box)
            _timed(seconds["frame"], decode_window, content, int(rng.integers(len(segment))), 1)
            _timed(seconds["raw"], _copy_window, segment, start, shape.num_frames, box)
    return {
        "segments": len(segments),
        "segment_frames": statistics.mean(map(len, segments)),
        "segment_bytes": statistics.mean(encoded_bytes),
        "fraction_of_raw": sum(encoded_bytes) / sum(segment.nbytes for segment in segments),
        "psnr": statistics.mean(psnrs),
        "worst_psnr": min(psnrs),
        **{f"{name}_s": statistics.mean(values) for name, values in seconds.items()},
    }


def _timed(seconds: list[float], function: Callable, *arguments: Any) -> Any:
    start = time.process_time()
    result = function(*arguments)
    seconds.append(time.process_time() - start)
    return result


def _copy_window(
    segment: np.ndarray, start: int, count: int, box: tuple[int, int, int, int]
) -> np.ndarray:
    top, left, height, width = box
    return segment[start : start + count, top : top + height, left : left + width].copy()


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = sum(np.mean((x.astype(np.float32) - y) ** 2) for x, y in zip(a, b, strict=True))
    return float(10 * np.log10(255**2 * len(a) / max(error, 1e-9)))


def measure_pipeline(
    shape: Shape,
    storage: str,
    videos: Sequence[Path],
    clips: int,
    segment_bytes: int,
    folder: Path,
) -> dict[str, Any]:
    """Builds a dataset of `clips` files, whose raw segments have `segment_bytes`, and reads it.

    Returns:
      Number and bytes of records; records that are prepared, and read, per second of processor time
      in this process; and records read per second by the default number of processes.
    """
    source = folder / "source"
    source.mkdir()
    with (source / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "caption"))
        for number, video in enumerate(itertools.islice(itertools.cycle(videos), clips)):
            name = f"{number:06d}{video.suffix}"
            (source / name).symlink_to(video)
            rows.writerow((name, f"clip {number}"))
    values = {
        "name": "video_folder",
        "source": str(source),
        "data_dir": str(folder / "datasets"),
        "split": "train",
        "num_frames": shape.num_frames,
        "resolution": shape.resolution,
        "fps": FPS,
        "seed": 0,
        "caption_dropout": 0.1,
        "crop": shape.crop,
        "storage": storage,
        "part_size": max(1, int(_PART_BYTES / segment_bytes)),
    }
    start = time.process_time()
    config = data.prepare(data.parse_config(values))
    prepare_s = time.process_time() - start
    records = len(data.open_records(config))
    threaded = dataclasses.replace(config, workers=0)
    read_s = _read(threaded, records, time.process_time)
    wall_s = _read(config, records, time.perf_counter)
    size = sum(path.stat().st_size for path in config.folder().rglob("*") if path.is_file())
    return {
        "clips": records,
        "clip_bytes": size / records,
        "prepare_rate": records / prepare_s,
        "read_rate": 1 / read_s,
        "workers": config.read_workers(),
        "wall_rate": 1 / wall_s,
    }


def _read(config: data.DataConfig, clips: int, clock: Callable[[], float]) -> float:
    """Returns the seconds per clip of reading about `clips` clips."""
    size = min(_BATCH, clips)
    batches = data.make_batches(config, _no_tokens, batch_size=size)
    # Starts processes and fills buffers, which are as full at the end.
    for _ in range(_WARM_UP):
        next(batches)
    count = max(2 * _WARM_UP, clips // size)
    start = clock()
    for _ in range(count):
        next(batches)
    return (clock() - start) / (count * size)


def _no_tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(texts), 1), np.int32), np.ones((len(texts), 1), bool)


def _videos(shape: Shape, folder: Path) -> list[Path]:
    """Returns the videos of `--videos`, or rendered ones that have one segment each."""
    if _VIDEOS.value:
        source = Path(_VIDEOS.value).resolve()
        files = find_files(source, VIDEO_SUFFIXES).files
        if not files:
            raise UserError(f"--videos: {source} contains no videos")
        return [source / name for name in files]
    height, _ = PIPELINE_SHAPES.get(shape, (max(240, shape.resolution), 0))
    length = max(SEGMENT, shape.num_frames) * 5 // 4
    videos = [folder / f"{shape}_{seed}.mp4" for seed in range(min(_RENDERED, _CLIPS.value))]
    for seed, video in enumerate(videos):
        render(video, height, length, seed)
    return videos


def _segments(shape: Shape, videos: Sequence[Path]) -> Iterator[np.ndarray]:
    for video in videos:
        frames = decode_frames(video, FPS, shape.resolution)
        segments = cut(frames, shape.num_frames, max(SEGMENT, shape.num_frames))
        yield from itertools.islice(segments, _SEGMENTS)


def main(argv: list[str]) -> None:
    """Measures all shapes and prints the tables."""
    read_flags(FLAGS, argv, __doc__)
    storage, built = [], []
    names = _SHAPES.value or [str(shape) for shape in STORAGE_SHAPES]
    for shape in tqdm([s for s in STORAGE_SHAPES if str(s) in names], desc="shapes"):
        with tempfile.TemporaryDirectory() as folder:
            videos = _videos(shape, Path(folder))
            segments = list(_segments(shape, videos))
            if not segments:
                raise UserError(f"--videos: no video has {shape.num_frames} frames")
            storage.append({"shape": str(shape), **measure_storage(shape, segments)})
            _, share = PIPELINE_SHAPES.get(shape, (0, 0.0))
            clips = {"encoded": math.ceil(share * _CLIPS.value)}
            raw = max(segment.nbytes for segment in segments)
            clips["raw"] = min(clips["encoded"], int(_RAW_BYTES / raw))
            del segments
            for kind in ("encoded", "raw") if _PIPELINE.value and share else ():
                with tempfile.TemporaryDirectory(dir=folder) as part:
                    found = measure_pipeline(shape, kind, videos, clips[kind], raw, Path(part))
                built.append({"shape": str(shape), "storage": kind, **found})
    print("Storage, per segment:\n")
    _print(_STORAGE_COLUMNS, storage)
    if built:
        print("\nPipeline, clips:\n")
        _print(_PIPELINE_COLUMNS, built)
    write_json(_OUT.value, {"benchmark": "data", "storage": storage, "pipeline": built})


def _print(columns: Sequence[tuple[str, str, float, str]], rows: Sequence[dict[str, Any]]) -> None:
    cells = [[f"{row[key] * scale:{form}}" for _, key, scale, form in columns] for row in rows]
    print_table([title for title, *_ in columns], cells)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.data"))
