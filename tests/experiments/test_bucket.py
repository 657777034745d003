"""Training with its workdir, its data and its initial model in a bucket.

More kills: `python -m tests.experiments.kill_runs --where=bucket --kills=20`.
"""

import json
import random
import sys

import numpy as np
import pytest

from experiments import train
from stunet import cli, paths
from stunet.errors import run_command
from stunet.paths import user_path
from stunet.training.logs.metrics import read_metrics
from stunet.training.workdir.claim import claim_folder
from stunet.video_io import read_video
from tests.bucket_server import create_bucket
from tests.experiments import kill_runs
from tests.experiments.runs import changed, ended, start_cluster, write_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

KILLS = 3


@pytest.fixture(scope="module")
def training_root(bucket_server):
    create_bucket(bucket_server, "training")
    return user_path("gs://training")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bucket_runs")


@pytest.fixture(scope="module")
def starter(bucket_server, folder):
    return kill_runs.Starter(folder / "cache")


@pytest.fixture(scope="module")
def t2i(training_root, folder, starter):
    """An uninterrupted run of text-to-image: its config and workdir."""
    config = kill_runs.image_config(training_root)
    workdir = training_root / "t2i"
    starter.train(write_config(folder / "t2i.py", config), workdir, folder / "t2i.log")
    return config, workdir


def test_a_finished_run(t2i):
    config, workdir = t2i
    kill_runs.check_end(config, workdir, kill_runs.results(workdir))
    names = kill_runs.names_in(workdir)
    expected = {"initial", "checkpoints", "model", "metrics.csv", "loss.png", "run.json", "DONE"}
    assert expected <= names
    assert [row["step"] for row in read_metrics(workdir / "metrics.csv")] == list(range(1, 25))


def test_killed_runs_resume_exactly(t2i, training_root, folder, starter):
    config, workdir = t2i
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    numbers = iter(range(KILLS + 1))
    finished = kill_runs.kill_and_resume(
        config,
        folder / "t2i.py",
        starter,
        lambda: training_root / f"killed{next(numbers)}",
        kill_runs.results(workdir),
        KILLS,
        random.Random(seed),
        report=print,
    )
    assert finished


def test_two_processes_train_like_one(t2i, training_root, folder):
    _, workdir = t2i
    cluster = training_root / "cluster"
    options = folder / "t2i.py", cluster, folder / "cluster_cache", "--config.mesh.fsdp=2"
    runs = ended(*start_cluster(*options), timeout=900)
    for _, err, code in runs:
        assert code == 0, err
    found, expected = (
        [row["loss"] for row in read_metrics(place / "metrics.csv")] for place in (cluster, workdir)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert kill_runs.names_in(cluster / "checkpoints") == {"20", "24"}


def test_text_to_video_from_a_model_in_a_bucket(t2i, training_root, folder, starter, capsys):
    config = kill_runs.video_config(training_root, t2i[1])
    workdir = training_root / "t2v"
    starter.train(write_config(folder / "t2v.py", config), workdir, folder / "t2v.log")
    kill_runs.check_end(config, workdir, kill_runs.results(workdir))
    out = training_root / "videos" / "out.gif"
    flags = ["--model", str(workdir), "--steps", "1", "--out", str(out)]
    assert cli.main(["generate", "a red circle", *flags]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    with paths.local_input(out) as local:
        assert len(read_video(local)[0]) == 4


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Trains with a config and a workdir; returns the one line of error."""

    def run(config, workdir):
        path = write_config(tmp_path / "config.py", config)
        argv = ["train", f"--config={path}", f"--workdir={workdir}"]
        monkeypatch.setattr(sys, "argv", argv)  # config_flags reads overrides from there
        train.FLAGS.unparse_flags()
        assert run_command(lambda: train.main(argv), "train") == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1, err
        return err.removeprefix("train: error: ")

    return run


def test_a_lease_of_another_run(command, bucket):
    config, workdir = kill_runs.image_config(user_path(bucket)), user_path(f"{bucket}/run")
    with claim_folder(workdir):
        lease = json.loads((workdir / "lease.json").read_text())
        error = command(config, workdir)
        assert error.startswith(f"{workdir}: in use")
        assert str(lease["pid"]) in error and lease["expires"] in error
        assert kill_runs.names_in(user_path(bucket)) == {"run"}
    assert kill_runs.names_in(workdir) == set()


def test_a_bucket_that_does_not_exist(command, bucket):
    config = kill_runs.image_config(user_path(bucket))
    assert "gs://no-such-bucket" in command(config, "gs://no-such-bucket/run")
    config = kill_runs.image_config(user_path("gs://no-such-bucket"))
    assert "gs://no-such-bucket" in command(config, f"{bucket}/run")
    assert kill_runs.names_in(user_path(bucket)) == set()


def test_a_dataset_without_a_manifest(command, bucket):
    part = user_path(f"{bucket}/data/video_folder/copied/part-00000/clips.jsonl")
    paths.write_text(part, "")
    config = kill_runs.image_config(user_path(bucket))
    common = {name: config["data"][name] for name in ("split", "num_frames", "resolution", "fps")}
    data = common | {"name": "video_folder", "dataset": "copied", "data_dir": f"{bucket}/data"}
    config["data"] = data | {"seed": 0, "caption_dropout": 0.1}
    assert command(config, f"{bucket}/run").startswith("config.data.source: empty")
    assert part.exists() and kill_runs.names_in(user_path(f"{bucket}/run")) == set()


def test_a_checkpoint_copied_by_hand(command, t2i, bucket):
    config, finished = t2i
    workdir = user_path(f"{bucket}/run")
    for name in paths.list_objects(finished):
        is_copied = name.startswith(("initial/", "run.json", "checkpoints/24/"))
        if is_copied and name != "checkpoints/24/commit_success.txt":
            paths.write_bytes(workdir / name, (finished / name).read_bytes())
    before = paths.list_objects(workdir)
    error = command(changed(config, total_steps=28), workdir)
    assert error.startswith(f"{workdir}/checkpoints/24: ") and "commit_success.txt" in error
    assert paths.list_objects(workdir) == before
