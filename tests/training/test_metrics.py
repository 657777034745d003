import numpy as np
import pytest
from PIL import Image

from stunet.errors import UserError
from stunet.training.logs.metrics import MetricsLog, plot_loss, read_metrics
from tests.experiments.runs import full_disk

HEADER = "step,loss,grad_norm\r\n"


def add(log, *steps, **changes):
    for step in steps:
        log.add(step, {"loss": np.float32(step / 4), "grad_norm": np.float32(step / 3)} | changes)


def test_a_resumed_log_equals_that_of_an_uninterrupted_run(tmp_path):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    log = MetricsLog(tmp_path / "whole", 0)
    add(log, *range(1, 8))
    assert log.write() == pytest.approx(1.0)
    log.close()
    for start, end in ((0, 5), (3, 6), (4, 7)):  # twice, each after the checkpoint of `start`
        log = MetricsLog(tmp_path / "resumed", start)
        add(log, *range(start + 1, end + 1))
        log.write()
        log.close()
    texts = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "resumed")]
    assert texts[0] == texts[1]
    rows = read_metrics(tmp_path / "whole" / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [np.float32(row["grad_norm"]) for row in rows] == [
        np.float32(i / 3) for i in range(1, 8)
    ]


@pytest.mark.parametrize("torn", ["3,0.12345,0.1", "3,0.1", "3", "3,"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "1,0.5,1.0\r\n2,0.25,1.5\r\n" + torn, newline="")
    assert read_metrics(path) == [
        {"step": 1, "loss": 0.5, "grad_norm": 1.0},
        {"step": 2, "loss": 0.25, "grad_norm": 1.5},
    ]
    MetricsLog(tmp_path, 1).close()
    assert path.read_bytes() == (HEADER + "1,0.5,1.0\r\n").encode()


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize("changes", [{"loss": np.float32("nan")}, {"grad_norm": np.float32("inf")}])
def test_divergence_names_its_steps(tmp_path, changes):
    log = MetricsLog(tmp_path, 0)
    add(log, 1, 2, 3)
    add(log, 4, 5, **changes)
    with pytest.raises(UserError, match=" 3 .* 4: loss .*grad_norm "):
        log.write()
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3]


def test_plot(tmp_path):
    log = MetricsLog(tmp_path, 0)
    add(log, *range(1, 101))
    log.write()
    log.close()
    plot_loss(tmp_path)
    with Image.open(tmp_path / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert image.format == "PNG" and image.width > 600
    blue = (pixels[:, 2] - pixels[:, 0] > 60).sum()  # the running mean
    assert blue > 200


def test_videos_on_the_board(tmp_path):
    log = MetricsLog(tmp_path, 0)
    video = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    log.add_video("a red star", video, 8.0, step=3)
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"a red star" in events.read_bytes() and b"GIF89a" in events.read_bytes()


def test_a_full_disk_is_one_error_and_the_rows_before_are_kept(tmp_path):
    log = MetricsLog(tmp_path, 0)
    add(log, 1, 2)
    log.write()
    add(log, *range(3, 400))
    with full_disk(1000), pytest.raises(UserError, match=r"metrics.csv: .*too large"):
        log.write()
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")][:2] == [1, 2]
    log = MetricsLog(tmp_path, 2)
    video = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    with full_disk(1000), pytest.raises(UserError, match=r"tensorboard: .*too large"):
        log.add_video("noise", video, 8.0, step=3)
    log.close()
