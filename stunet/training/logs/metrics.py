"""Metrics of a training run: a CSV file of every step, telemetry, and a plot of the loss."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from stunet.errors import UserError, writing
from stunet.paths import AnyPath, is_remote, write_bytes
from stunet.training.logs.board import Board
from stunet.training.logs.log_files import growing_file, read_lines, replace_lines
from stunet.training.logs.telemetry import Telemetry, format_record

FIELDS = ("step", "loss", "grad_norm")
_TORN_ROW = "[0-9.,e+-]*\r?"


class MetricsLog:
    """Metrics of every step, kept on the device and written in groups.

    `metrics.csv` has one row per step. A resumed run drops the rows after its checkpoint, so that
    the file equals that of an uninterrupted run. `telemetry.jsonl` and the TensorBoard files keep
    all sessions of a run. In a bucket these files are written in parts (`log_files`).

    Args:
      workdir: The run's workdir, on disk or in a bucket.
      start_step: Step that the run resumes from; 0 for a new run.
      writes: Whether this process writes. In a cluster every process has a log, and those that do
        not write only check that metrics are finite.
      telemetry: Measures the steps. None writes no telemetry.

    Raises:
      UserError: here and in all methods, if the disk is full or read-only, or the bucket cannot be
        written.
    """

    def __init__(
        self,
        workdir: AnyPath,
        start_step: int,
        writes: bool = True,
        telemetry: Telemetry | None = None,
    ):
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._writes, self._telemetry, self._records = writes, telemetry, None
        if not writes:
            return
        self.path, self._records_path = workdir / "metrics.csv", workdir / "telemetry.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        replace_lines(self.path, [_csv_line(FIELDS), *map(_csv_row, rows)])
        self._rows = growing_file(self.path)
        if telemetry is not None:
            replace_lines(self._records_path, read_lines(self._records_path))
            self._records = growing_file(self._records_path)
            self._add_record(telemetry.start_record)
        self._board = Board(workdir / "tensorboard", start_step)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step without waiting for the device, except for a first step."""
        self._pending.append((step, metrics))
        if self._telemetry is not None:
            self._telemetry.count_step(step, metrics)

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
            with writing(self.path):
                self._rows.append("".join(map(_csv_row, rows[:num_finite])).encode())
        if num_finite < len(rows):
            self.flush()
            step, row = steps[num_finite], rows[num_finite]
            raise UserError(
                f"training diverged between steps {step - 1} and {step}: loss {row['loss']}, "
                f"grad_norm {row['grad_norm']}, expected finite values; the last checkpoint before "
                "is kept (lower optimizer.learning_rate or optimizer.clip_norm, and start again "
                "with --allow_changed=optimizer.learning_rate,optimizer.clip_norm)"
            )
        if self._writes:
            means = {field: float(np.mean([row[field] for row in rows])) for field in FIELDS[1:]}
            if self._telemetry is not None:
                record = self._telemetry.measure(steps[-1], values)
                self._add_record(record)
                not_metrics = ("step", "steps", "time", "seconds")
                means = {name: x for name, x in record.items() if name not in not_metrics}
            self._add_scalars(means, steps[-1])
        return float(np.mean([row["loss"] for row in rows]))

    def add_sample_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Adds metrics of sampled clips (`SAMPLE_METRICS`) to telemetry and TensorBoard."""
        if any(value is not None for value in metrics.values()):
            self._add_record({"step": step, "time": time.time(), **metrics})
            self._add_scalars(metrics, step)

    def add_video(self, name: str, video: np.ndarray, fps: float, step: int) -> None:
        """Adds a video `[T, H, W, 3]` uint8 to TensorBoard, as an animated GIF."""
        self._board.add_video(name, video, fps, step)

    def flush(self) -> None:
        """Returns when everything written so far is stored; call it before a checkpoint."""
        if self._writes:
            self._rows.flush()
            self._board.flush()
            if self._records is not None:
                self._records.flush()

    def close(self) -> None:
        """Stores everything written so far."""
        self.flush()

    def _add_record(self, record: Mapping[str, Any]) -> None:
        if self._records is not None:
            with writing(self._records_path):
                self._records.append(format_record(record).encode())

    def _add_scalars(self, values: Mapping[str, float | None], step: int) -> None:
        self._board.add_scalars({k: v for k, v in values.items() if v is not None}, step)


def join_parts(workdir: AnyPath) -> None:
    """Joins the parts of the log files of a finished run in a bucket; no effect on disk.

    Raises:
      UserError: the bucket cannot be written.
    """
    if not is_remote(workdir):
        return
    for name in ("metrics.csv", "telemetry.jsonl"):
        path = workdir / name
        if lines := read_lines(path):
            replace_lines(path, lines)


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """Reads the rows of a `metrics.csv`, without an incomplete last line of a killed run.

    In a bucket the rows of its parts are read, too. Returns an empty list if there is no file.

    Raises:
      UserError: The file has other columns or invalid rows.
    """
    lines = read_lines(path, _TORN_ROW)
    if not lines and not path.exists():
        return []
    header, *rows = lines or [""]
    if header.rstrip() != ",".join(FIELDS):
        raise UserError(_invalid_line(path, header, f"the columns {','.join(FIELDS)}"))
    return [_parse_row(path, row) for row in rows]


def plot_loss(workdir: AnyPath) -> None:
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
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    with writing(workdir / "loss.png"):
        write_bytes(workdir / "loss.png", image.getvalue())


def _parse_row(path: AnyPath, row: str) -> dict[str, float]:
    try:
        step, *values = row.split(",")
        metrics = zip(FIELDS[1:], map(float, values), strict=True)
        return {"step": int(step), **dict(metrics)}
    except ValueError as error:
        raise UserError(_invalid_line(path, row, f"a row of {','.join(FIELDS)}")) from error


def _invalid_line(path: AnyPath, line: str, expected: str) -> str:
    return (
        f"{path}: line {line.rstrip()[:60]!r}, expected {expected}; move the file away to continue "
        "without it"
    )


def _csv_row(row: Mapping[str, Any]) -> str:
    return _csv_line([str(row["step"]), *(repr(float(row[f])) for f in FIELDS[1:])])


def _csv_line(cells: Sequence[str]) -> str:
    return ",".join(cells) + "\r\n"
