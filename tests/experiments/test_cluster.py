"""Several devices, and several processes, train like one device."""

import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stunet.training.logs.metrics import read_metrics
from tests.experiments.runs import ended, signal_at, start, start_cluster, write_config

pytestmark = pytest.mark.cluster

MESHES = {"data": (1, 1), "data and fsdp": (2, 1), "fsdp": (4, 1)}  # sizes of fsdp and frames
CLIP_MESHES = [(2, 2), (1, 4)]


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir / "metrics.csv")]


def finish(*processes):
    """Returns (stdout, stderr) of each process; all have to succeed."""
    runs = ended(*processes)
    for _, err, code in runs:
        assert code == 0, err
    return [(out, err) for out, err, _ in runs]


def printed(out):
    """Returns lines without those of Gloo, which come from several threads, sometimes in parts."""
    gloo = re.compile(r"\[Gloo\]|peer ranks|^[\d .]*$")
    return [line for line in out.splitlines() if not gloo.search(line)]


@pytest.fixture(scope="module")
def cluster(root, t2i_run):
    """An uninterrupted run of two processes: its workdir, and their outputs."""
    workdir = root / "cluster"
    processes = start_cluster(
        root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2"
    )
    return workdir, finish(*processes)


@pytest.fixture(scope="module")
def clips(root, config, t2i_run):
    """A config that trains on clips, and its losses on one device."""
    values = {name: config[name] for name in ("diffusion", "mesh", "log_every")} | {
        "stage": "t2v",
        "init_from": str(t2i_run[0]),
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
    """The run of `cluster`, stopped by one process, then one killed, then run to its end."""
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
    (out, err, code), (quiet_out, quiet_err, quiet_code) = stopped
    assert (code, quiet_code) == (75, 75)
    (line,) = [line for line in err.splitlines() if "SIGTERM" in line]
    assert f" {rows}," in line and "SIGTERM after" not in quiet_err
    assert printed(out) == printed(quiet_out) == [] and 3 <= rows < 20 and saved[-1] == rows


def test_if_one_is_killed_the_others_end_and_all_resume_exactly(cluster, interrupted):
    workdir, *_, (code, done) = interrupted
    assert code not in (0, 2, 75) and not done
    assert losses(workdir) == losses(cluster[0])
    for folder in ("initial", "model"):
        for path in (cluster[0] / folder).iterdir():
            assert path.read_bytes() == (workdir / folder / path.name).read_bytes()


def test_all_fall_back_if_the_files_of_one_are_damaged(root, cluster):
    workdir = root / "cluster_damaged"
    shutil.copytree(cluster[0], workdir)
    (workdir / "DONE").unlink()
    written = list((workdir / "checkpoints" / "20" / "state").glob("ocdbt.process_1/d/*"))
    # Emptied, not halved: these files begin with values and may end with nodes that merging left
    # unused, so that half a file may be readable in full.
    for path in written:
        path.write_bytes(b"")
    (_, err), (_, quiet_err) = finish(
        *start_cluster(root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2")
    )
    assert written and f"{workdir}/checkpoints/20: " in err and "step 16" in err
    assert "unreadable" not in quiet_err and "step 16" not in quiet_err
    assert losses(workdir) == losses(cluster[0])


def test_all_fall_back_if_one_cannot_read(root, cluster):
    workdir = root / "cluster_refused"
    shutil.copytree(cluster[0], workdir)
    (workdir / "DONE").unlink()
    options = root / "t2i.py", workdir, root / "cluster_cache", "--config.mesh.fsdp=2"
    commands = "experiments.train", "tests.experiments.cannot_read"
    (_, err), _ = finish(*start_cluster(*options, commands=commands))
    assert re.search(f"{workdir}/checkpoints/20: .*another process", err) and "step 16" in err
    assert losses(workdir) == losses(cluster[0])


def test_one_process_resumes_a_run_of_two(root, cluster, t2i_run):
    workdir = root / "one_of_two"
    shutil.copytree(cluster[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    (workdir / "DONE").unlink()
    finish(start(root / "t2i.py", workdir, root / "cache"))
    assert losses(workdir)[:16] == losses(cluster[0])[:16]
    np.testing.assert_allclose(losses(workdir)[16:], losses(t2i_run[0])[16:], rtol=1e-5)


@pytest.fixture(scope="module")
def four_devices(root, t2i_run, clips):
    """Losses of runs on four devices, by config and mesh; two runs at a time."""

    def run(case):
        config, fsdp, frames = case
        workdir = root / f"{config.stem}_{fsdp}_{frames}"
        options = f"--config.mesh.fsdp={fsdp}", f"--config.mesh.frames={frames}"
        finish(start(config, workdir, root / "cache", *options, devices=4))
        return losses(workdir)

    cases = [(root / "t2i.py", *mesh) for mesh in MESHES.values()]
    cases += [(clips[0], *mesh) for mesh in CLIP_MESHES]
    with ThreadPoolExecutor(2) as runners:
        runs = zip(cases, runners.map(run, cases), strict=True)
        return {(config.stem, *mesh): found for (config, *mesh), found in runs}


@pytest.mark.parametrize("mesh", MESHES)
def test_four_devices_train_like_one(four_devices, t2i_run, mesh):
    np.testing.assert_allclose(four_devices["t2i", *MESHES[mesh]], losses(t2i_run[0]), rtol=1e-5)


@pytest.mark.parametrize("mesh", CLIP_MESHES)
def test_clips_split_over_devices_train_like_whole_ones(four_devices, clips, mesh):
    np.testing.assert_allclose(four_devices["t2v", *mesh], clips[1], rtol=1e-5)


def test_clips_split_over_processes_train_like_whole_ones(root, clips):
    workdir = root / "clips_of_two"
    finish(*start_cluster(clips[0], workdir, root / "clips_cache", "--config.mesh.frames=4"))
    np.testing.assert_allclose(losses(workdir), clips[1], rtol=1e-5)


def test_two_processes_train_like_one(cluster, t2i_run):
    workdir, ((out, err), (quiet_out, quiet_err)) = cluster
    np.testing.assert_allclose(losses(workdir), losses(t2i_run[0]), rtol=1e-5)
    (line,) = printed(out)
    assert str(workdir / "model") in line and "20/20" in err
    assert printed(quiet_out) == [] and "steps/s" not in quiet_err
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in t2i_run[0].iterdir()}
