"""Telemetry of a run: its metrics, their files, and TensorBoard's own reader."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stunet.training.logs import telemetry
from stunet.training.logs.metrics import MetricsLog
from stunet.training.logs.telemetry import (
    METRICS,
    SAMPLE_METRICS,
    Memory,
    Telemetry,
    Workload,
    productive_time,
    read_records,
    relative_motion,
)

WORKLOAD = Workload(
    batch_size=8,
    total_steps=20,
    learning_rate=lambda step: step / 100,
    device_kind="TPU v5 lite",
    num_devices=2,
    step_flops=3e12,
    device_peak=2e12,
)


class Clock:
    """Replaces the module `time`: time passes only when a test says so."""

    def __init__(self, now=1000.0):
        self.now = now

    def time(self):
        return self.now

    def monotonic(self):
        return self.now - 77.0

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", clock)
    return clock


def step_metrics(step):
    share = np.array([0.5, 0.25, 0.25, 0.0])
    metrics = {"loss": step, "grad_norm": 2 * step, "param_norm": 3.0, "update_norm": 0.5}
    noise = {"noise_loss": share * np.array([1.0, 2.0, 3.0, 0.0]) * step, "noise_share": share}
    return {name: jnp.asarray(value, jnp.float32) for name, value in (metrics | noise).items()}


def run_steps(clock, run, log, first, last, wait=0.5, compute=1.5):
    for step in range(first, last + 1):
        with run.data_wait():
            clock.sleep(wait)
        clock.sleep(compute)
        log.add(step, step_metrics(step))
    log.write()
    log.close()


def start(workdir, start_step):
    run = Telemetry(WORKLOAD, start_step, telemetry.time.time(), records(workdir))
    return run, MetricsLog(workdir, start_step, telemetry=run)


def records(workdir):
    return read_records(workdir / "telemetry.jsonl")


def test_metrics_of_an_interval(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "_memory", lambda: Memory(3 * 2**30, 16 * 2**30))
    run, log = start(tmp_path, 0)
    clock.sleep(30.0)  # compilation
    run_steps(clock, run, log, 1, 1)  # is not timed, because it compiles
    clock.sleep(100.0)  # a checkpoint
    run_steps(clock, run, log, 2, 5)
    first, second = records(tmp_path)[1:]
    assert first["step_time_s"] is first["videos_per_s"] is first["mfu"] is None
    assert first["loss"] == 1 and first["goodput"] == 0
    expected = {
        "step": 5,
        "steps": 4,
        "seconds": 8.0,
        "loss": 3.5,
        "grad_norm": 7.0,
        "param_norm": 3.0,
        "update_norm": 0.5,
        "learning_rate": 0.05,
        "step_time_s": 2.0,
        "data_wait_s": 0.5,
        "videos_per_s": 4.0,
        "device_tflops_per_s": 0.75,
        "mfu": 0.375,
        "memory_peak_gib": 3.0,
        "memory_limit_gib": 16.0,
        "goodput": 8 / 140,
        "loss_by_noise/0.00_to_0.25": 3.5,
        "loss_by_noise/0.25_to_0.50": 7.0,
        "loss_by_noise/0.50_to_0.75": 10.5,
        "loss_by_noise/0.75_to_1.00": None,  # no example
    }
    assert {name: second[name] for name in expected} == pytest.approx(expected)
    assert set(second) == {*expected, "time"} and set(METRICS) <= set(second)


def test_unknown_devices_have_no_mfu(clock, tmp_path):
    workload = Workload(**{**vars(WORKLOAD), "device_peak": None})
    run = Telemetry(workload, 0, clock.now)
    log = MetricsLog(tmp_path, 0, telemetry=run)
    run_steps(clock, run, log, 1, 3)
    (record,) = records(tmp_path)[1:]
    assert record["mfu"] is record["memory_peak_gib"] is None  # a CPU does not report memory
    assert record["device_tflops_per_s"] == pytest.approx(0.75)


def test_goodput_counts_repeated_steps_once(clock, tmp_path):
    run, log = start(tmp_path, 0)
    run_steps(clock, run, log, 1, 5)  # 10 s, of which the first step is not timed
    run_steps(clock, run, log, 6, 10)
    clock.sleep(80.0)  # the machine is gone
    with (tmp_path / "telemetry.jsonl").open("a") as file:
        file.write('{"step": 11, "ti')  # killed while writing
    run, log = start(tmp_path, 5)
    clock.sleep(20.0)
    run_steps(clock, run, log, 6, 10)
    last = records(tmp_path)[-1]
    assert last["goodput"] == pytest.approx((8 + 8) / (10 + 10 + 80 + 20 + 10))
    assert [r.get("step", "start") for r in records(tmp_path)] == ["start", 5, 10, "start", 10]


def test_productive_time():
    def begin(step, time, total_steps=20):
        return {"start_step": step, "time": time, "total_steps": total_steps}

    def interval(step, time, steps=10):
        return {"step": step, "time": time, "steps": steps, "seconds": 5.0}

    history = [begin(0, 100.0), interval(10, 107.0), interval(20, 114.0)]
    assert productive_time(history) == (10.0, 100.0)
    # From a checkpoint within an interval: a part of its steps is repeated.
    assert productive_time([*history, begin(14, 150.0)]) == (7.0, 100.0)
    assert productive_time([*history, begin(0, 150.0)]) == (0.0, 100.0)
    # A finished run that is continued with more steps was idle from 115 to 515.
    sample = {"step": 20, "time": 115.0, "motion": 0.5}
    longer = [*history, sample, begin(20, 515.0, 40)]
    assert productive_time(longer) == (10.0, 500.0)
    assert productive_time([*longer, interval(30, 530.0), begin(20, 600.0, 40)]) == (10.0, 500.0)


def moving_square(steps):
    video = np.full((2, 4, 8, 8, 3), -1.0, np.float32)
    for t in range(4):
        video[:, t, 2:5, t * steps : t * steps + 2] = 1.0
    return video


def test_relative_motion():
    clips = moving_square(2)
    assert relative_motion(clips, clips) == 1.0
    assert relative_motion(moving_square(0), clips) == 0.0
    assert relative_motion(moving_square(1), clips) == pytest.approx(0.5)
    assert relative_motion(clips, moving_square(0)) is None
    assert relative_motion(clips[:, :1], clips[:, :1]) is None


def test_tensorboards_reader_shows_what_telemetry_contains(clock, tmp_path):
    run, log = start(tmp_path, 0)
    for last in (2, 4, 6):
        run_steps(clock, run, log, last - 1, last)
    log.add_sample_metrics({"motion": 0.25}, 6)
    run, log = start(tmp_path, 4)  # hides steps 5 and 6 of the first session
    clock.sleep(5.0)
    run_steps(clock, run, log, 5, 6)
    run_steps(clock, run, log, 7, 8)
    log.add_sample_metrics({"motion": 0.75}, 8)
    video = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    log.add_video("a red star", video, 8.0, 8)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = {
        tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]
    }
    kept = [r for r in records(tmp_path) if "step" in r]
    kept = kept[:2] + kept[4:]  # two records of steps 5 and 6 are of the first session
    not_metrics = {"step", "steps", "time", "seconds"}
    names = {name for r in kept for name, value in r.items() if value is not None} - not_metrics
    assert set(found) == names >= {"loss", "grad_norm", "update_norm", "mfu", "goodput", "motion"}
    for name in names:
        expected = [(r["step"], r[name]) for r in kept if r.get(name) is not None]
        assert found[name] == [(step, pytest.approx(x, rel=1e-6)) for step, x in expected], name
    assert board.Images("a red star")[0].encoded_image_string.startswith(b"GIF89a")


def test_records_are_json(clock, tmp_path):
    """A norm that overflows float32 is unknown; JSON has no infinity."""
    run = Telemetry(WORKLOAD, 0, clock.now)
    log = MetricsLog(tmp_path, 0, telemetry=run)
    log.add(1, step_metrics(1) | {"param_norm": jnp.float32("inf")})
    log.write()
    log.close()
    for line in (tmp_path / "telemetry.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert records(tmp_path)[-1]["param_norm"] is None


def test_documentation_lists_all_metrics():
    text = (Path(__file__).parents[2] / "docs/training.md").read_text()
    names = {name.split("/")[0] for name in {**METRICS, **SAMPLE_METRICS}}
    missing = {name for name in names if f"`{name}" not in text}
    assert not missing
