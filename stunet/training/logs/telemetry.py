"""Telemetry of a training run: speed, norms, memory, loss by noise level, motion and goodput.

A run has one or more sessions, one for each start of its process. `telemetry.jsonl` has a record
for each session's start and one for each interval between two writes of metrics. Unlike
`metrics.csv` it contains times and keeps the intervals of steps that a later session repeats.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from stunet.errors import UserError
from stunet.paths import AnyPath
from stunet.training.logs.log_files import read_lines
from stunet.training.losses import NUM_NOISE_BINS

Record = Mapping[str, Any]

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run computes in a step, and on what.

    Attributes:
      batch_size: Global batch size.
      total_steps: Steps of the whole run.
      learning_rate: Returns the learning rate of a step, counted from 1.
      device_kind: Name of the devices, such as "TPU v5p".
      num_devices: Number of devices of the mesh.
      step_flops: Model FLOPs of a step on all devices. None if they were not counted.
      device_peak: FLOP/s of a device in bfloat16. None if it is unknown, as for CPUs.
    """

    batch_size: int
    total_steps: int
    learning_rate: Callable[[int], float]
    device_kind: str
    num_devices: int
    step_flops: float | None = None
    device_peak: float | None = None


class Memory(NamedTuple):
    """Memory of a device in bytes: the peak since the session's start, and the limit."""

    peak: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Measurements of the steps between two writes of metrics.

    Attributes:
      workload: What the run computes.
      step: The last step.
      steps: Number of timed steps. The first step of a session is not timed, because it compiles.
      seconds: Time of these steps, from the end of one write to the end of the next, without
        checkpoints and sampling.
      data_wait_s: Part of `seconds` in which the process waited for a batch.
      step_metrics: Means over all steps of the interval of what the train step returns.
      memory: Memory of the device of this process with the largest peak. None if devices do not
        report it, as CPUs do not.
      productive_s: Time of all steps of the run up to this one, see `productive_time`.
      wall_s: Time since the run's first start.
    """

    workload: Workload
    step: int
    steps: int
    seconds: float
    data_wait_s: float
    step_metrics: Mapping[str, np.ndarray]
    memory: Memory | None
    productive_s: float
    wall_s: float

    def per_step(self, seconds: float) -> float | None:
        """Divides a time by the number of timed steps; None if there are none."""
        return seconds / self.steps if self.steps else None

    def per_second(self, amount_per_step: float | None) -> float | None:
        """Returns an amount per second from an amount per step; None if either is unknown."""
        if amount_per_step is None or not self.seconds:
            return None
        return amount_per_step * self.steps / self.seconds


Metric = Callable[[Interval], float | None]


def _device_flops_per_s(interval: Interval) -> float | None:
    total = interval.per_second(interval.workload.step_flops)
    return None if total is None else total / interval.workload.num_devices


def _mfu(interval: Interval) -> float | None:
    flops, peak = _device_flops_per_s(interval), interval.workload.device_peak
    return None if flops is None or peak is None else flops / peak


def _tflops(interval: Interval) -> float | None:
    flops = _device_flops_per_s(interval)
    return None if flops is None else flops / 1e12


def _noise_loss(number: int) -> Metric:
    def mean_loss(interval: Interval) -> float | None:
        if "noise_loss" not in interval.step_metrics:
            return None
        share = float(interval.step_metrics["noise_share"][number])
        return float(interval.step_metrics["noise_loss"][number]) / share if share else None

    return mean_loss


# Written to `telemetry.jsonl` and TensorBoard under these names, which end in the unit, after the
# means of all scalars that the train step returns. A new metric needs an entry here, or a scalar
# there. None means unknown.
METRICS: dict[str, Metric] = {
    "learning_rate": lambda interval: interval.workload.learning_rate(interval.step),
    "step_time_s": lambda interval: interval.per_step(interval.seconds),
    "data_wait_s": lambda interval: interval.per_step(interval.data_wait_s),
    "videos_per_s": lambda interval: interval.per_second(interval.workload.batch_size),
    "device_tflops_per_s": _tflops,
    "mfu": _mfu,
    "memory_peak_gib": lambda interval: interval.memory and interval.memory.peak / _GIB,
    "memory_limit_gib": lambda interval: interval.memory and interval.memory.limit / _GIB,
    "goodput": lambda interval: interval.productive_s / interval.wall_s,
    **{
        f"loss_by_noise/{low / NUM_NOISE_BINS:.2f}_to_{(low + 1) / NUM_NOISE_BINS:.2f}": (
            _noise_loss(low)
        )
        for low in range(NUM_NOISE_BINS)
    },
}


def relative_motion(samples: np.ndarray, clips: np.ndarray) -> float | None:
    """Returns the mean absolute difference of neighbouring frames of samples, over that of data.

    0 for static samples, about 1 for a model that has learnt how much the data moves. A small
    constant value during training of a video model means that it does not learn motion. Flicker
    and noise count as motion: samples of an untrained model are far above 1.

    Args:
      samples: Sampled clips `[N, T, H, W, 3]`.
      clips: As many clips of the data, of the same range.

    Returns:
      The ratio, or None for single frames or static data.
    """
    if samples.shape[1] < 2 or clips.shape[1] < 2:
        return None
    moved, expected = (float(np.abs(np.diff(v, axis=1)).mean()) for v in (samples, clips))
    return moved / expected if expected else None


# Metrics of sampled clips, from (samples, as many clips of the data), written with each sheet.
SAMPLE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "motion": relative_motion,
}


class Telemetry:
    """Times the steps of a session. Used in the order of the training loop, on one thread.

    Args:
      workload: What the run computes.
      start_step: Step that the session resumes from.
      start_time: When the session began, by `time.time()`.
      history: Records of earlier sessions.
    """

    def __init__(
        self,
        workload: Workload,
        start_step: int,
        start_time: float,
        history: Sequence[Record] = (),
    ):
        self.workload, self._start_step = workload, start_step
        self.start_record = {
            "start_step": start_step,
            "time": start_time,
            "total_steps": workload.total_steps,
            "device_kind": workload.device_kind,
            "num_devices": workload.num_devices,
            "step_flops": workload.step_flops,
        }
        self._productive_s, self._first_time = productive_time([*history, self.start_record])
        self._last_step = start_step
        self._timed_steps, self._begin, self._data_wait_s = 0, None, 0.0

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Times the wait for a batch. The first one after `measure` begins an interval."""
        begin = time.monotonic()
        if self._begin is None:
            self._begin = begin
        yield
        self._data_wait_s += time.monotonic() - begin

    def count_step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Counts a step that was dispatched.

        Waits for the first step of a session, so that its compilation is not timed.
        """
        if step == self._start_step + 1:
            jax.block_until_ready(metrics)
            self._begin, self._data_wait_s = time.monotonic(), 0.0
        else:
            self._timed_steps += 1

    def measure(self, step: int, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Ends an interval and returns its record. Call it when the device has computed `step`.

        Args:
          step: The last step.
          rows: What the train step returned for each step of the interval.
        """
        seconds = 0.0 if self._begin is None else time.monotonic() - self._begin
        self._productive_s += seconds
        now = time.time()
        means = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
        interval = Interval(
            workload=self.workload,
            step=step,
            steps=self._timed_steps,
            seconds=seconds,
            data_wait_s=self._data_wait_s,
            step_metrics=means,
            memory=_memory(),
            productive_s=self._productive_s,
            wall_s=max(now - self._first_time, 1e-6),  # the clock of another machine may differ
        )
        record = {
            "step": step,
            "time": now,
            "steps": step - self._last_step,
            "seconds": seconds,
            **{name: _finite(mean) for name, mean in means.items() if np.ndim(mean) == 0},
            **{name: _finite(metric(interval)) for name, metric in METRICS.items()},
        }
        self._last_step = step
        self._timed_steps, self._begin, self._data_wait_s = 0, None, 0.0
        return record


def productive_time(records: Sequence[Record]) -> tuple[float, float]:
    """Returns the productive seconds of a run, and the time that its wall time counts from.

    Productive is the time of steps whose result the run still has: when a session resumes from a
    step, later steps of earlier sessions are subtracted, since they are computed again. Waiting for
    data is part of a step. Compilation, the first step of a session, checkpoints, samples and
    the time between sessions are not productive.

    The wall time counts from the run's first start. The time between the end of a finished run
    and its continuation with more steps does not count, so the second value is later by this time.

    Args:
      records: Records of `telemetry.jsonl`; the first is that of a session's start.
    """
    intervals: list[Record] = []
    first_time, last_time = None, 0.0
    productive, total_steps = 0.0, 0
    for record in records:
        if "start_step" in record:
            start = record["start_step"]
            while intervals and intervals[-1]["step"] > start:
                last = intervals.pop()
                repeated = min(1.0, (last["step"] - start) / last["steps"])
                productive -= repeated * last["seconds"]
            if first_time is None:
                first_time = record["time"]
            elif start == total_steps < record["total_steps"]:
                first_time += record["time"] - last_time
            total_steps = record["total_steps"]
        elif "seconds" in record:
            intervals.append(record)
            productive += record["seconds"]
        last_time = record["time"]
    if first_time is None:
        raise ValueError("no record of a start")
    return productive, first_time


def read_records(path: AnyPath) -> list[dict[str, Any]]:
    """Reads a `telemetry.jsonl`, on disk or in parts in a bucket. No file has no records.

    Raises:
      UserError: A line is not a record.
    """
    return [_parse_record(path, line) for line in read_lines(path, torn=r"(\{.*)?")]


def format_record(record: Record) -> str:
    """Returns the line of `telemetry.jsonl` of a record."""
    return json.dumps(record, allow_nan=False) + "\n"


def _parse_record(path: AnyPath, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        start = ("start_step", "total_steps", "time")
        interval = ("step", "steps", "seconds", "time")
        needed = start if start[0] in record else interval if "seconds" in record else ("time",)
        is_valid = all(math.isfinite(record[name]) for name in needed) and record.get("steps", 1)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{path}: line {line.rstrip()[:60]!r}, expected a JSON object of a start or of an "
            "interval; move the file away to continue without it"
        )
    return record


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _memory() -> Memory | None:
    names = ("peak_bytes_in_use", "bytes_limit")
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((Memory(*map(x.get, names)) for x in stats if set(names) <= set(x)), default=None)
