"""Workdirs whose files are something else: one line before any work, and nothing is touched."""

import json
import os
import re
from functools import partial
from pathlib import Path

import pytest

from experiments import cache_text, export, train
from stunet.errors import UserError, run_command
from stunet.model import load
from stunet.paths import user_path, write_text
from stunet.training.logs.metrics import read_metrics
from stunet.training.logs.telemetry import read_records
from stunet.training.workdir.contents import check_contents
from stunet.training.workdir.resuming import record_run
from tests.experiments.runs import T2I, changed, parse, train_here

ROWS = b"step,loss,grad_norm\r\n1,0.5,1.0\r\n"
START = {"start_step": 0, "total_steps": 20, "time": 1.0}
FILES = ("run.json", "DONE", "metrics.csv", "telemetry.jsonl", "loss.png")
FOLDERS = (
    "initial",
    "checkpoints",
    "model",
    "tensorboard",
    "samples",
    "compiled",
    "profile",
)
BINARY = b"\x00\xff\xfe\x89PNG\r\n\x1a"
CONTENTS = {
    "run.json": (
        b"",
        BINARY,
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"config": 3}',
        b'{"config": {}}',
        b'{"config": {}, "stage": 3}',
        b'{"config": {}, "changes": "none"}',
        b'{"config": {}, "surprise": 1}',
    ),
    "DONE": (
        b"",
        BINARY,
        b"yes\n",
        b"20",
        b"-1 steps of stage t2i\n",
        b"9" * 5000 + b" steps of stage t2i\n",
        b"99999999 steps of stage t2i\n",
        b"20 steps of stage t2i\nnotes\n",
    ),
    "metrics.csv": (
        b"",
        BINARY,
        b"step,loss,grad_norm,accuracy\r\n1,0.5,1.0,0.3\r\n",
        b"step;loss;grad_norm\r\n1;0,5;1,0\r\n",
        b"1,0.5,1.0\r\n",
        ROWS + b"\x00" * 40,
        ROWS + b"\x00" * 40 + b"\n",
        ROWS + b"two,0.5,1.0\r\n",
        ROWS + b"2,0.5\r\n",
        ROWS + b"9" * 5000 + b",0.5,1.0\r\n",
        ROWS + b"notes without an end",
        ROWS + BINARY,
    ),
    "telemetry.jsonl": (
        BINARY,
        b"notes without an end",
        b"[]\n",
        b"3\n",
        b"null\n",
        b'"start_step"\n',
        b"{}\n",
        b"{\n",
        b"[" * 10_000 + b"\n",
        b'{"start_step": 0, "time": 1.0}\n',
        b'{"start_step": 0, "total_steps": 1e999, "time": 1.0}\n',
        b'{"step": 1, "steps": 0, "seconds": 1.0, "time": 1.0}\n',
        ROWS,
    ),
}


def as_folder(path):
    path.mkdir()
    (path / "mine.txt").write_text("precious")


def as_link_to_nothing(path):
    path.symlink_to("nowhere")


def as_pipe(path):
    os.mkfifo(path)


DAMAGES = [
    *(pytest.param(name, as_folder, id=f"{name}-folder") for name in FILES),
    *(
        pytest.param(name, lambda path: path.write_text("precious"), id=f"{name}-file")
        for name in FOLDERS
    ),
    *(
        pytest.param(name, damage, id=f"{name}-{damage.__name__}")
        for name in ("metrics.csv", "DONE", "checkpoints")
        for damage in (as_link_to_nothing, as_pipe)
    ),
    *(
        pytest.param(name, partial(Path.write_bytes, data=content), id=f"{name}-{number}")
        for name, contents in CONTENTS.items()
        for number, content in enumerate(contents)
    ),
    pytest.param("checkpoints/8", partial(Path.write_bytes, data=b"mine"), id="checkpoint-file"),
    pytest.param("model", as_folder, id="model-other-files"),
]


@pytest.fixture
def config(tmp_path):
    return changed(T2I, data__data_dir=str(tmp_path / "datasets"))


@pytest.fixture
def workdir(config, tmp_path):
    """A workdir of a run that has logged one step."""
    workdir = tmp_path / "run"
    record_run(parse(config), "moving_shapes/1.0.0", workdir)
    (workdir / "metrics.csv").write_bytes(ROWS)
    (workdir / "telemetry.jsonl").write_text(json.dumps(START) + "\n")
    return workdir


def contents(folder):
    return {
        path: path.read_bytes() if path.is_file() and not path.is_fifo() else path.lstat().st_mode
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_workdir_is_refused_and_left_alone(name, damage, config, workdir, capsys):
    (workdir / name).unlink(missing_ok=True)
    (workdir / name).parent.mkdir(exist_ok=True)
    damage(workdir / name)
    before = contents(workdir.parent)
    assert run_command(lambda: train_here(config, workdir), "train") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 600, err
    fields = ("config.total_steps", "config.stage")  # of other runs, whose files are valid
    assert str(workdir / name) in err or any(field in err for field in fields), err
    assert re.search("expected|invalid JSON|missing field|cannot be read", err), err
    assert contents(workdir.parent) == before

    export.FLAGS.unparse_flags()
    for program in (
        lambda: export.main(["export", f"--workdir={workdir}"]),
        lambda: load(workdir),
    ):
        with pytest.raises(UserError) as refusal:
            program()
        assert str(workdir) in str(refusal.value) and "\n" not in str(refusal.value)
    assert contents(workdir.parent) == before


@pytest.mark.parametrize(
    ("name", "taken"),
    [("DONE", "DONE/mine"), ("checkpoints", "checkpoints"), ("checkpoints/8", "checkpoints/8")],
)
def test_a_damaged_workdir_in_a_bucket(name, taken, bucket, config):
    workdir = user_path(bucket) / "run"
    record_run(parse(config), "moving_shapes/1.0.0", workdir)
    for valid in ("checkpoints/6/commit_success.txt", "checkpoints/saving-7", "model/config.json"):
        if not valid.startswith(f"{taken}/"):
            write_text(workdir / valid, "")
    check_contents(workdir)
    write_text(workdir / taken, "precious")
    with pytest.raises(UserError, match=f"^{workdir / name}: .*expected"):
        train.train(parse(config), workdir)
    assert (workdir / taken).read_text() == "precious"


def test_fewer_steps_than_an_unfinished_run_has(config, workdir, capsys):
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    before = contents(workdir.parent)
    assert run_command(lambda: train_here({**config, "total_steps": 7}, workdir), "train") == 2
    message = "train: error: config.total_steps: 7, expected at least 8, .*\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert contents(workdir.parent) == before


def test_a_file_in_place_of_text_states(tmp_path):
    (tmp_path / "text_states_train").write_text("precious")
    refusal = pytest.raises(UserError, match=f"^{tmp_path}/text_states_train: .*expected")
    with refusal, cache_text._claim(tmp_path / "text_states_train"):
        pass
    assert (tmp_path / "text_states_train").read_text() == "precious"


def test_logs_without_records_are_valid(tmp_path):
    (tmp_path / "telemetry.jsonl").write_bytes(b'{"start_step": 0, "ti')  # killed while it began
    assert read_records(tmp_path / "telemetry.jsonl") == []
    (tmp_path / "metrics.csv").write_bytes(ROWS[:21])
    assert read_metrics(tmp_path / "metrics.csv") == []
