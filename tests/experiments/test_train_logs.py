"""What a run logs besides metrics.csv."""

import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import train
from stunet.errors import run_command
from stunet.model import load
from stunet.training.logs.metrics import MetricsLog, read_metrics
from stunet.training.logs.telemetry import METRICS, Telemetry, Workload, read_records
from stunet.training.stages import TextToImage
from tests.experiments.runs import parse, write_config


def test_telemetry_of_a_run(t2i_run):
    start, *records = read_records(t2i_run[0] / "telemetry.jsonl")
    assert start["start_step"] == 0 and start["step_flops"] > 0
    rows = read_metrics(t2i_run[0] / "metrics.csv")
    for name in ("step", "loss", "grad_norm"):  # log_every is 1
        assert [record[name] for record in records] == [pytest.approx(row[name]) for row in rows]
    unknown = {"mfu", "memory_peak_gib", "memory_limit_gib"}  # on a CPU
    by_noise = {name for name in METRICS if name.startswith("loss_by_noise/")}
    for record in records[1:]:
        assert {name for name in METRICS if record[name] is None} - by_noise == unknown
        # Of equal size and mean: four examples in the four bins.
        found = [record[name] for name in by_noise if record[name] is not None]
        assert min(found) <= record["loss"] <= max(found)
        assert 0 < record["data_wait_s"] < record["step_time_s"]
    assert 0 < records[1]["goodput"] < records[-1]["goodput"] < 1
    rates = [record["learning_rate"] for record in records]
    assert rates[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])


def test_tensorboard_of_a_run(t2i_run):
    board = EventAccumulator(str(t2i_run[0] / "tensorboard"))
    board.Reload()
    losses = [(row["step"], row["loss"]) for row in read_metrics(t2i_run[0] / "metrics.csv")]
    found = [(event.step, event.value) for event in board.Scalars("loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in losses]


def test_motion_of_samples_is_logged(config, t2i_run, tmp_path, monkeypatch):
    square = np.full((1, 4, 8, 8, 3), -1.0, np.float32)
    for t in range(4):
        square[:, t, 2:4, 2 * t : 2 * t + 2] = 1.0
    static = np.concatenate([square[:, :2], square[:, 1:2], square[:, 1:2]], axis=1)
    monkeypatch.setattr(TextToImage, "draw_samples", lambda stage, tools: (["a square"], static))
    monkeypatch.setattr(train.data, "whole_examples", lambda config, count: (square, ["one"]))
    workload = Workload(
        batch_size=1, total_steps=9, learning_rate=float, device_kind="cpu", num_devices=1
    )
    log = MetricsLog(tmp_path, 0, telemetry=Telemetry(workload, 0, 0.0))
    train.write_samples(parse(config), tmp_path, log, 7, load(t2i_run[0] / "model"))
    log.close()
    last = read_records(tmp_path / "telemetry.jsonl")[-1]
    assert last["step"] == 7 and last["motion"] == pytest.approx(1 / 3)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Scalars("motion")[0].value == pytest.approx(1 / 3)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_invalid_profile_steps(config, tmp_path, monkeypatch, capsys):
    path = write_config(tmp_path / "config.py", config)
    argv = ["train.py", f"--workdir={tmp_path}/run", f"--config={path}", "--profile_steps=9:21"]
    monkeypatch.setattr(sys, "argv", argv)
    train.FLAGS.unparse_flags()
    assert run_command(lambda: train.main(argv), "experiments.train") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--profile_steps=9:21: " in line and "(20)" in line
    assert not (tmp_path / "run").exists()
    train.FLAGS.unparse_flags()
