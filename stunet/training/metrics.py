"""Metrics of a training run: a CSV file of every step, TensorBoard, and a plot of the loss."""

import csv
import io
import math
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from stunet.errors import UserError, writing

FIELDS = ("step", "loss", "grad_norm")


class MetricsLog:
    """Metrics of every step, kept on the device and written in groups.

    `metrics.csv` has one row per step. A resumed run drops the rows after its checkpoint, so that
    the file equals that of an uninterrupted run.

    Args:
      workdir: The run's workdir.
      start_step: Step that the run resumes from; 0 for a new run.
      writes: Whether this process writes. In a cluster every process has a log, and those that do
        not write only check that metrics are finite.

    Raises:
      UserError: here and in all methods, if the disk is full or read-only.
    """

    def __init__(self, workdir: Path, start_step: int, writes: bool = True):
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._writes = writes
        if not writes:
            return
        self.path = Path(workdir) / "metrics.csv"
        rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        # Renamed into place, so that a run killed here does not lose earlier rows.
        new = self.path.with_name(".metrics.csv.new")
        with writing(self.path):
            with new.open("w", newline="") as file:
                csv.writer(file).writerows([FIELDS, *map(_csv_row, rows)])
            new.replace(self.path)
        self.board_folder = Path(workdir) / "tensorboard"
        with writing(self.board_folder):
            self.board_folder.mkdir(exist_ok=True)
            # Not SummaryWriter, which writes in a thread: when the disk is full, the thread ends
            # with a traceback and the run waits for it forever.
            self.board = EventsWriter(str(self.board_folder / "events"))
            # Hides the events of later steps from before a resumed run's stop.
            start = SessionLog(status=SessionLog.START)
            self.board.write_event(
                Event(wall_time=time.time(), step=start_step + 1, session_log=start)
            )

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step without waiting for the device."""
        self._pending.append((step, metrics))

    def write(self) -> float:
        """Writes the metrics added since the last call and returns their mean loss.

        Raises:
          UserError: a metric is not finite. The steps before it are written.
        """
        steps = [step for step, _ in self._pending]
        values = jax.device_get([metrics for _, metrics in self._pending])
        self._pending = []
        rows = [{"step": step} | metrics for step, metrics in zip(steps, values, strict=True)]
        # A non-finite gradient makes the parameters non-finite while the loss is still finite.
        finite = [all(math.isfinite(row[field]) for field in FIELDS[1:]) for row in rows]
        num_finite = finite.index(False) if False in finite else len(rows)
        if self._writes:
            with writing(self.path), self.path.open("a", newline="") as file:
                csv.writer(file).writerows(map(_csv_row, rows[:num_finite]))
        if num_finite < len(rows):
            step, row = steps[num_finite], rows[num_finite]
            raise UserError(
                f"training diverged between steps {step - 1} and {step}: loss {row['loss']}, "
                f"grad_norm {row['grad_norm']}, expected finite values; the last checkpoint before "
                "is kept (lower optimizer.learning_rate or optimizer.clip_norm and start again)"
            )
        if self._writes:
            means = {field: np.mean([row[field] for row in rows]) for field in FIELDS[1:]}
            values = [Summary.Value(tag=tag, simple_value=mean) for tag, mean in means.items()]
            self._write_event(Summary(value=values), steps[-1])
        return float(np.mean([row["loss"] for row in rows]))

    def add_video(self, name: str, video: np.ndarray, fps: float, step: int) -> None:
        """Adds a video `[T, H, W, 3]` uint8 to TensorBoard, as an animated GIF."""
        frames = [Image.fromarray(frame) for frame in video]
        gif = io.BytesIO()
        duration = round(1000 / fps)
        frames[0].save(
            gif, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0
        )
        height, width = video.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue()
        )
        self._write_event(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Flushes the TensorBoard file."""
        if self._writes:
            with writing(self.board_folder):
                self.board.close()

    def _write_event(self, summary: Summary, step: int) -> None:
        with writing(self.board_folder):
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self.board.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a `metrics.csv`, without an incomplete last line of a killed run.

    Returns an empty list if there is no file.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [
        {"step": int(row["step"]), **{f: float(row[f]) for f in FIELDS[1:]}}
        for row in csv.DictReader(lines)
    ]


def plot_loss(workdir: Path) -> None:
    """Plots the loss of every step and its running mean, from `metrics.csv` to `loss.png`."""
    rows = read_metrics(workdir / "metrics.csv")
    steps, losses = (np.array([row[f] for row in rows]) for f in ("step", "loss"))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", linewidth=0.7, label="each step")
    window = max(1, len(losses) // 50)
    running = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], running, color="C0", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    with writing(workdir / "loss.png"):
        figure.savefig(workdir / "loss.png", dpi=120)


def _csv_row(row: dict[str, float]) -> list[str]:
    return [str(row["step"]), *(repr(float(row[f])) for f in FIELDS[1:])]
