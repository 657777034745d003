"""Several devices, and several processes, train as one device does."""

import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stunet.training.metrics import read_metrics
from tests.experiments.runs import signal_at, start, start_cluster, write_config

pytestmark = pytest.mark.cluster

MESHES = {"data": (1, 1), "data and fsdp": (2, 1), "fsdp": (4, 1)}


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir / "metrics.csv")]


def ended(*processes, timeout=300):
    """What each printed, and its exit code; read at once, as one whose pipe is full would wait."""
    with ThreadPoolExecutor() as readers:
        texts = list(readers.map(lambda process: process.communicate(timeout=timeout), processes))
    return [(*text, process.returncode) for text, process in zip(texts, processes, strict=True)]


def finish(*processes):
    """What each printed; all have to end well."""
    runs = ended(*processes)
    for _, err, code in runs:
        assert code == 0, err
    return [(out, err) for out, err, _ in runs]


def said(out):
    """The lines of `out` but Gloo's, which come from several threads and so at times in pieces."""
    gloo = re.compile(r"\[Gloo\]|peer ranks|^[\d .]*$")
    return [line for line in out.splitlines() if not gloo.search(line)]


@pytest.fixture(scope="module")
def cluster(root, whole):
    """An uninterrupted run of two processes: its workdir, and what they printed."""
    workdir = root / "cluster"
    processes = start_cluster(
        root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2"
    )
    return workdir, finish(*processes)


@pytest.fixture(scope="module")
def clips(root, config, whole):
    """A config that trains on clips, and the losses of one device."""
    values = {name: config[name] for name in ("diffusion", "mesh", "log_every")} | {
        "stage": "t2v",
        "init_from": str(whole[0]),
        "temporal": {
            "resample": (True,),
            "attention_layers": 1,
            "head_dim": 8,
            "frame_modulation": True,
        },
        "data": config["data"] | {"num_frames": 8},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 5},
        "batch_size": 2,
        "total_steps": 20,
    }
    path = write_config(root / "t2v.py", values)
    finish(start(path, root / "clips", root / "cache"))
    return path, losses(root / "clips")


@pytest.fixture(scope="module")
def interrupted(root, cluster):
    """The same, of which one process is told to stop, then one killed, then run to its end."""
    workdir = root / "cluster_interrupted"

    def launch():
        options = root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2"
        return start_cluster(*options)

    first, second = launch()
    signal_at(second, workdir, 3, signal.SIGTERM)
    stopped = ended(first, second)
    saved = sorted(int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*"))
    rows = len(losses(workdir))
    first, second = launch()
    signal_at(second, workdir, rows + 3, signal.SIGKILL)
    (*_, code), _ = ended(first, second, timeout=200)
    survivor = code, (workdir / "DONE").exists()
    finish(*launch())
    return workdir, stopped, (saved, rows), survivor


def test_all_processes_stop_after_the_step_that_they_save(interrupted):
    _, stopped, (saved, rows), _ = interrupted
    (out, _, code), (quiet_out, _, quiet_code) = stopped
    assert (code, quiet_code) == (75, 75)
    assert said(out) == [f"stopped by SIGTERM after step {rows}, saved; run the command again"]
    assert said(quiet_out) == [] and 3 <= rows < 20 and saved[-1] == rows


def test_without_one_the_others_end_and_all_resume_exactly(cluster, interrupted):
    workdir, *_, (code, done) = interrupted
    assert code not in (0, 2, 75) and not done
    assert losses(workdir) == losses(cluster[0])
    for folder in ("initial", "model"):
        for path in (cluster[0] / folder).iterdir():
            assert path.read_bytes() == (workdir / folder / path.name).read_bytes()


def test_all_fall_back_where_what_one_wrote_is_damaged(root, cluster):
    workdir = root / "cluster_damaged"
    shutil.copytree(cluster[0], workdir)
    (workdir / "DONE").unlink()
    written = list((workdir / "checkpoints" / "20" / "state").glob("ocdbt.process_1/d/*"))
    # Emptied, not halved: values come first in these files, and what follows may be nodes that
    # merging the processes' parts left without use, so that half a file can be read in full.
    for path in written:
        path.write_bytes(b"")
    (_, err), (_, quiet_err) = finish(
        *start_cluster(root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2")
    )
    assert written and f"checkpoint {workdir}/checkpoints/20 cannot be read" in err
    assert "falling back to the checkpoint of step 16" in err and "falling back" not in quiet_err
    assert losses(workdir) == losses(cluster[0])


def test_all_fall_back_where_one_alone_cannot_read(root, cluster):
    workdir = root / "cluster_refused"
    shutil.copytree(cluster[0], workdir)
    (workdir / "DONE").unlink()
    options = root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2"
    commands = "experiments.train", "tests.experiments.cannot_read"
    (_, err), _ = finish(*start_cluster(*options, commands=commands))
    assert f"checkpoint {workdir}/checkpoints/20 cannot be read (by another process)" in err
    assert "falling back to the checkpoint of step 16" in err
    assert losses(workdir) == losses(cluster[0])


def test_one_process_goes_on_where_two_stopped(root, cluster, whole):
    workdir = root / "one_of_two"
    shutil.copytree(cluster[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    (workdir / "DONE").unlink()
    finish(start(root / "t2i.py", workdir, root / "cache"))
    assert losses(workdir)[:16] == losses(cluster[0])[:16]
    np.testing.assert_allclose(losses(workdir)[16:], losses(whole[0])[16:], rtol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_four_devices_train_as_one(root, whole, mesh):
    fsdp, frames = MESHES[mesh]
    workdir = root / f"four_{fsdp}_{frames}"
    options = f"--config.mesh.fsdp={fsdp}", f"--config.mesh.frames={frames}"
    finish(start(root / "t2i.py", workdir, root / "cache", *options, devices=4))
    np.testing.assert_allclose(losses(workdir), losses(whole[0]), rtol=1e-5)


@pytest.mark.parametrize(("fsdp", "frames"), [(2, 2), (1, 4)])
def test_clips_split_over_devices_train_as_whole_ones(root, clips, fsdp, frames):
    workdir = root / f"clips_{fsdp}_{frames}"
    options = f"--config.mesh.fsdp={fsdp}", f"--config.mesh.frames={frames}"
    finish(start(clips[0], workdir, root / "cache", *options, devices=4))
    np.testing.assert_allclose(losses(workdir), clips[1], rtol=1e-5)


def test_clips_split_over_processes_train_as_whole_ones(root, clips):
    workdir = root / "clips_of_two"
    finish(*start_cluster(clips[0], workdir, root / "clips_cache", "--config.mesh.frames=4"))
    np.testing.assert_allclose(losses(workdir), clips[1], rtol=1e-5)


def test_two_processes_train_as_one(cluster, whole):
    workdir, ((out, err), (quiet_out, quiet_err)) = cluster
    np.testing.assert_allclose(losses(workdir), losses(whole[0]), rtol=1e-5)
    assert said(out) == [f"finished: model in {workdir / 'model'}"] and "20/20" in err
    assert said(quiet_out) == [] and "steps/s" not in quiet_err
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in whole[0].iterdir()}
