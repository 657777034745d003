"""Processes that are stopped and killed, and resumed."""

import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data.moving_shapes.moving_shapes_builder import MovingShapesConfig
from experiments import train
from stunet.errors import UserError
from stunet.signals import SIGNALS
from stunet.training.logs.metrics import read_metrics
from tests.experiments.runs import changed, full_disk, parse, signal_at, start, train_here


@pytest.fixture(scope="module")
def interrupted(root, t2i_run):
    """A run that is stopped by a signal, resumed, killed, and resumed to its end."""
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    rng = random.Random(seed)
    workdir, path = root / "interrupted", root / "t2i.py"

    def launch():
        return start(path, workdir, root / "cache")

    # A test runner under nohup ignores SIGHUP, and its processes inherit that.
    number = rng.choice([n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN])
    stopped = launch()
    signal_at(stopped, workdir, rng.randrange(1, 7), number)
    out, err = stopped.communicate(timeout=300)
    stops = stopped.returncode, out, err, number, (workdir / "model").exists()
    saved = sorted(int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*"))
    first = len((workdir / "metrics.csv").read_text().splitlines()) - 1
    killed = launch()
    signal_at(killed, workdir, rng.randrange(first + 1, 16), signal.SIGKILL)
    killed.communicate(timeout=300)
    kill = killed.returncode, (workdir / "DONE").exists()
    last = launch()
    out, err = last.communicate(timeout=300)
    return workdir, stops, (saved, first), kill, (last.returncode, out, err)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_signal_saves_and_exits_75(interrupted):
    _, (code, out, err, number, exported), (saved, last_step), _, _ = interrupted
    assert code == 75 and out == "" and not exported
    (line,) = [line for line in err.splitlines() if line.startswith("experiments.train: ")]
    assert int(re.search(rf"{number.name} after step (\d+)", line)[1]) == last_step
    assert "Traceback" not in err
    assert saved[-1] == last_step < 20


def test_a_killed_run_resumes_exactly(t2i_run, interrupted):
    workdir, _, _, kill, (code, out, err) = interrupted
    assert kill == (-signal.SIGKILL, False)
    assert code == 0 and "finished" in out, err
    assert files(workdir / "model") == files(t2i_run[0] / "model")
    rows = (workdir / "metrics.csv").read_bytes()
    assert rows == (t2i_run[0] / "metrics.csv").read_bytes() and rows.count(b"\n") == 21
    checkpointer = ocp.StandardCheckpointer()
    states = [
        checkpointer.restore(folder / "checkpoints" / "20" / "state")
        for folder in (workdir, t2i_run[0])
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0]["step"] == 20


def test_console(t2i_run):
    _, out, err = t2i_run
    assert out.count("\n") == 1 and str(t2i_run[0] / "model") in out
    lines = re.split(r"[\r\n]+", err.strip())
    assert re.fullmatch(
        r"t2i: 100%\|█+\| 20/20 \[\d\d:\d\d, ETA 00:00, +[\d.]+ steps/s, "
        r"[\d.]+ videos/s, loss [\d.]+\]",
        lines[-1],
    )
    known = r"t2i: |config.data: captions|(building|built) .*moving_shapes|(train|heldout): |\s*$"
    assert [line for line in lines if not re.match(known, line)] == []


def test_what_a_finished_run_leaves(t2i_run):
    names = {path.name for path in t2i_run[0].iterdir()}
    folders = {"initial", "checkpoints", "model", "tensorboard"}
    assert names == folders | {
        "metrics.csv",
        "telemetry.jsonl",
        "loss.png",
        "run.json",
        "DONE",
    }


def test_a_finished_run_is_not_trained_again(config, t2i_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in t2i_run[0].rglob("*")}
    assert train_here(config, t2i_run[0]) == 0
    assert re.fullmatch(f"{t2i_run[0]}.* 20 .* t2i\n", capsys.readouterr().out)
    assert before == {path: path.stat().st_mtime_ns for path in t2i_run[0].rglob("*")}


def test_a_run_killed_between_its_last_checkpoint_and_its_end(root, config, t2i_run):
    workdir = root / "unmarked"
    shutil.copytree(t2i_run[0], workdir)
    (workdir / "DONE").unlink()
    shutil.rmtree(workdir / "model")
    assert train_here(config, workdir) == 0
    assert (workdir / "DONE").exists()
    assert files(workdir / "model") == files(t2i_run[0] / "model")


def test_a_signal_before_the_first_step_leaves_nothing(root, t2i_run):
    workdir = root / "cancelled"
    process = start(root / "t2i.py", workdir, root / "cache")
    time.sleep(2)  # into the imports
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err == "experiments.train: stopped by SIGTERM\n"
    assert not workdir.exists()


def test_a_run_on_a_full_disk_ends_with_one_line_and_continues_once_there_is_space(root, t2i_run):
    workdir, path = root / "full", root / "t2i.py"
    limit = 300_000  # above the model's size, below that of a checkpoint's largest file
    with full_disk(limit):
        process = start(path, workdir, root / "cache")
    out, err = process.communicate(timeout=300)
    lines = [line for line in re.split(r"[\r\n]+", err) if line and not line.startswith("t2i: ")]
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(
        f"experiments.train: error: {workdir}/checkpoints: .*File too large.*", lines.pop()
    )
    assert all(line.startswith("config.data: captions") for line in lines)
    process = start(path, workdir, root / "cache")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert files(workdir / "model") == files(t2i_run[0] / "model")


@pytest.fixture
def finished(t2i_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(t2i_run[0], tmp_path / "run")


def test_more_steps_continue_a_finished_run(config, finished, t2i_run):
    assert train_here({**config, "total_steps": 22}, finished) == 0
    before, after = (read_metrics(folder / "metrics.csv") for folder in (t2i_run[0], finished))
    assert after[:20] == before and [row["step"] for row in after[20:]] == [21, 22]
    assert (finished / "DONE").read_text() == "22 steps of stage t2i\n"
    assert (finished / "checkpoints" / "22").exists()
    with pytest.raises(UserError, match="config.total_steps: 20, expected at least 22"):
        train_here(config, finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 10}, "total_steps: 10, expected at least 20"),
        ({"optimizer__learning_rate": 2e-3}, "optimizer.learning_rate: 0.002, expected 0.001"),
        ({"batch_size": 8, "total_steps": 40}, "batch_size: 8, expected 4"),
        ({"data__seed": 1}, "data.seed: 1, expected 0"),
    ],
)
def test_other_settings_are_refused(config, finished, change, message):
    for is_finished in (True, False):
        if not is_finished:
            (finished / "DONE").unlink()
        contents = files_below(finished)
        with pytest.raises(UserError, match=f"config.{message}"):
            train_here(changed(config, **change), finished)
        assert files_below(finished) == contents


def test_a_finished_run_may_be_reported_and_stored_differently(config, finished, capsys):
    again = changed(config, log_every=3, checkpoint_every=5, keep_checkpoints=1, remat="blocks")
    assert train_here(again, finished) == 0
    assert "is finished: 20 steps" in capsys.readouterr().out
    lower = changed(again, optimizer__learning_rate=5e-4)
    assert train.train(parse(lower), finished, ["optimizer.learning_rate"]) == 0
    assert capsys.readouterr().err == ""  # nothing was trained with it


def test_other_data_is_refused_unless_it_is_allowed(config, finished, monkeypatch, capsys):
    monkeypatch.setattr(MovingShapesConfig, "fingerprint", lambda config: "other/1.0.0")
    longer = {**config, "total_steps": 22}
    message = f"clips, captions .*{finished}.* other/1.0.0, was moving_shapes/.*--allow_changed"
    with pytest.raises(UserError, match=message):
        train_here(longer, finished)
    assert (finished / "DONE").exists()
    longer = changed(longer, data__seed=1)
    assert train.train(parse(longer), finished, ["data", "data.seed"]) == 0
    output = capsys.readouterr().err
    assert re.search("moving_shapes/.* until now, other/1.0.0 from now on", output)
    assert "data.seed: 0 until now, 1 from now on" in output
    record = json.loads((finished / "run.json").read_text())
    assert record["data"] == "other/1.0.0"
    steps, fields = zip(*((c["step"], c["field"]) for c in record["changes"]), strict=True)
    assert set(steps) == {20} and set(fields) == {"total_steps", "data.seed", "data"}


def test_a_workdir_of_an_older_version_resumes(config, finished):
    (finished / "run.json").unlink()
    assert train_here({**config, "total_steps": 21}, finished) == 0
    assert (finished / "run.json").exists()


def test_checkpoints_identify_the_data_without_the_stored_config(config, finished, monkeypatch):
    (finished / "run.json").unlink()
    monkeypatch.setattr(MovingShapesConfig, "fingerprint", lambda config: "other/1.0.0")
    with pytest.raises(UserError, match="other/1.0.0, was moving_shapes/"):
        train_here({**config, "total_steps": 21}, finished)


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
