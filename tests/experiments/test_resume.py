"""Processes that are stopped and killed, and resumed."""

import random
import re
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.experiments.runs import signal_at, start, train_here


@pytest.fixture(scope="module")
def interrupted(root, t2i_run):
    """A run that is stopped by SIGTERM, resumed, killed, and resumed to its end."""
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    rng = random.Random(seed)
    workdir, path = root / "interrupted", root / "t2i.py"

    def launch():
        return start(path, workdir, root / "cache")

    stopped = launch()
    signal_at(stopped, workdir, rng.randrange(1, 7), signal.SIGTERM)
    out, err = stopped.communicate(timeout=300)
    stops = stopped.returncode, out, err
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


def test_sigterm_saves_and_exits_75(interrupted):
    _, (code, out, err), (saved, last_step), _, _ = interrupted
    assert code == 75 and out == ""
    assert int(re.search(r"\nexperiments.train: .*SIGTERM.* step (\d+)", err)[1]) == last_step
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
    known = r"t2i: |config.data: captions .* 12 tokens|(building|built) .*moving_shapes|(train|heldout): |\s*$"
    assert [line for line in lines if not re.match(known, line)] == []


def test_what_a_finished_run_leaves(t2i_run):
    names = {path.name for path in t2i_run[0].iterdir()}
    folders = {"initial", "checkpoints", "model", "tensorboard"}
    assert names == folders | {"metrics.csv", "loss.png", "run.json", "DONE"}


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
