"""Compares the speed of reading videos with that of another checkout of this project.

    git worktree add ../before COMMIT
    python -m experiments.benchmarks.video_decoding --baseline=../before --out=video_decoding.json

Reads clips that it writes (noise over a moving gradient) at 64 pixels with `read_video_sizes`, at
their own and at 8 frames per second. Each checkout runs in a process of its own; the processes take
turns. A speed of 1 is that of the baseline.
"""

import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.benchmarks.harness.timing import Worker, resident_bytes, take_turns
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.errors import UserError, run_command

# File name, codec, height, width, frames.
CLIPS = (
    ("128.mp4", "libx264", 128, 128, 48),
    ("360.mp4", "libx264", 360, 640, 75),
    ("360.webm", "libvpx-vp9", 360, 640, 50),
    ("720.mp4", "libx264", 720, 1280, 50),
)

FLAGS = flags.FlagValues()
_BASELINE = flags.DEFINE_string(
    "baseline", None, "compare with the checkout in this folder; required", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out",
    "benchmarks/video_decoding.json",
    "write the results to this JSON file",
    flag_values=FLAGS,
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 9, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)


def reading_work(checkout: str, path: str, fps: float | None):
    """Builds the reading of one clip by one checkout; a set-up function of `Worker`."""
    for name in [name for name in sys.modules if name.split(".")[0] == "stunet"]:
        del sys.modules[name]  # imported by this module, from this checkout
    sys.path.insert(0, checkout)
    from stunet import video_io

    if not Path(video_io.__file__).resolve().is_relative_to(Path(checkout).resolve()):
        raise UserError(f"{checkout}: contains no stunet package")
    return lambda: video_io.read_video_sizes(path, fps, (64,)), resident_bytes(), {}


def write_clip(path: Path, codec: str, height: int, width: int, frames: int) -> None:
    """Writes noise over a moving gradient, 25 frames per second, 4:2:0."""
    rng, x = np.random.default_rng(0), np.linspace(0, 6, width)[None, :, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            gradient = 96 + 64 * np.sin(x + index / 8 + np.arange(3))
            pixels = (gradient + rng.integers(0, 64, (height, width, 3))).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main(argv: list[str]) -> None:
    """Times both checkouts in turns and prints a table."""
    read_flags(FLAGS, argv, __doc__)
    if _BASELINE.value is None:
        raise UserError("--baseline: missing, expected the folder of another checkout")
    here = str(Path(__file__).parents[2])
    rows, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, *clip in tqdm(CLIPS, desc="clips"):
            path = Path(folder) / name
            write_clip(path, *clip)
            for fps in (None, 8.0):
                setups = ((checkout, str(path), fps) for checkout in (_BASELINE.value, here))
                workers = [Worker(2, reading_work, *setup) for setup in setups]
                before, now = take_turns(workers, _REPEATS.value)
                speed = before.best / now.best
                rows.append((name, fps or "own", before.best, now.best, speed))
                results.append(
                    {
                        "clip": name,
                        "fps": fps,
                        "baseline": before.as_json(),
                        "now": now.as_json(),
                        "speed": speed,
                    }
                )
    print_table(("clip", "frames per second", "baseline: best s", "best s", "speed"), rows)
    write_json(_OUT.value, {"benchmark": "video_decoding", "results": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.video_decoding"))
