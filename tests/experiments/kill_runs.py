"""Kills training at random moments, resumes it, and compares it with an uninterrupted run.

    python -m tests.experiments.kill_runs --where=bucket --kills=20
    python -m tests.experiments.kill_runs --where=disk --kills=50

Trains text-to-image and, from its model, text-to-video. The bucket is on a server on this machine
(`tests.bucket_server`). Runs are killed by SIGKILL, which no handler notices, at moments from the
end of the imports to the end of the process. A run that ends before its kill is compared, and
another one is started. `metrics.csv` and the files in `model/` have to equal those of the
uninterrupted run, byte for byte.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from stunet.paths import AnyPath, is_remote, list_objects, user_path
from stunet.training.logs.log_files import read_lines
from tests import bucket_server
from tests.experiments.runs import T2I, changed, program_environment, write_config

# Many checkpoints, so that many kills interrupt one. A line of metrics and progress per step.
_RUN = {"total_steps": 24, "checkpoint_every": 4, "keep_checkpoints": 2, "log_every": 1}
# Small networks, because each start traces them.
_SMALL = {
    "unet__channels": (4,),
    "unet__layers_per_block": (1,),
    "unet__attention_levels": (False,),
    "unet__head_dim": 4,
    "unet__norm_groups": 2,
    "text_encoder__t5__d_ff": 8,
}
_MAX_DELAY_S = 0.5  # after a line of progress
_LINES_PER_STEP = 2  # of progress: the number of steps, then the loss
_END_LINES = 6  # kills after the last line of progress hit the end of a run


def image_config(root: AnyPath) -> dict:
    """Returns a config of text-to-image with its data in `root`."""
    return changed(T2I, data__data_dir=str(root / "datasets"), **_SMALL) | _RUN


def video_config(root: AnyPath, image_model: AnyPath) -> dict:
    """Returns a config of text-to-video from a text-to-image run or model."""
    image = image_config(root)
    return {name: image[name] for name in ("diffusion", "mesh", "optimizer", *_RUN)} | {
        "stage": "t2v",
        "init_from": str(image_model),
        "temporal": {"resample": (), "attention_layers": 1, "head_dim": 4},
        "data": image["data"] | {"num_frames": 4},
        "batch_size": 2,
    }


def results(workdir: AnyPath) -> tuple[str, dict[str, bytes]]:
    """Returns what resumed runs reproduce: `metrics.csv`, and the files in `model/` by name."""
    model = {path.name: path.read_bytes() for path in (workdir / "model").iterdir()}
    return "".join(read_lines(workdir / "metrics.csv")), model


def check_end(config: dict, workdir: AnyPath, expected: tuple[str, dict[str, bytes]]) -> None:
    """Checks that a finished run equals another one and left nothing that it should delete."""
    metrics, model = results(workdir)
    assert metrics.count("\n") == 1 + config["total_steps"], f"{workdir}: rows of metrics.csv"
    assert metrics == expected[0], f"{workdir}: metrics.csv differs"
    assert model == expected[1], f"{workdir}: model differs"
    steps = sorted(int(name) for name in names_in(workdir / "checkpoints") if name.isdigit())
    last, every = config["total_steps"], config["checkpoint_every"]
    assert steps == [last - every, last]
    unexpected = [name for name in names_in(workdir / "checkpoints") if not name.isdigit()]
    unexpected += [name for name in names_in(workdir) if name in ("lease.json", ".model.new")]
    assert unexpected == []


def names_in(folder: AnyPath) -> set[str]:
    """Returns the names in a folder; empty if there is none."""
    if is_remote(folder):
        return {name.split("/")[0] for name in list_objects(folder)}
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


class Starter:
    """Starts training programs by forks of a process that has imported everything.

    Args:
      cache: Folder of compiled programs.
    """

    def __init__(self, cache: Path):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.train", "stunet.training.workdir.lease"])
        with mock.patch.dict(os.environ, program_environment(cache)):
            self._context.Process(target=_do_nothing).start()  # starts the server

    def start(self, config: Path, workdir: AnyPath, log: Path) -> multiprocessing.Process:
        """Starts a run, whose output goes to a file."""
        log.write_bytes(b"")
        process = self._context.Process(target=_train, args=(str(config), str(workdir), str(log)))
        process.start()
        return process

    def train(self, config: Path, workdir: AnyPath, log: Path) -> None:
        """Trains without interruption."""
        process = self.start(config, workdir, log)
        process.join(900)
        assert process.exitcode == 0, log.read_text()


def _do_nothing() -> None:
    pass


def _train(config: str, workdir: str, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["experiments.train", f"--config={config}", f"--workdir={workdir}"]
    from experiments import train
    from stunet.errors import run_command

    os._exit(run_command(lambda: train.main(sys.argv), "experiments.train"))


def wait_for_lines(process: multiprocessing.Process, log: Path, count: int) -> None:
    """Waits for a number of lines of progress, or the end of a process."""
    while process.is_alive() and len(re.findall(rb"[\r\n]", log.read_bytes())) < count:
        time.sleep(0.01)


def kill_and_resume(
    config: dict,
    path: Path,
    starter: Starter,
    next_workdir: Callable[[], AnyPath],
    expected: tuple[str, dict[str, bytes]],
    kills: int,
    rng: random.Random,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Trains, with a number of kills, and compares every finished run.

    Args:
      config: The config.
      path: File with the config. Output of the program goes to a file beside it.
      starter: Starts the program.
      next_workdir: Returns a new workdir for each run.
      expected: Results of the uninterrupted run.
      kills: Number of kills.
      rng: Draws the moments.
      report: Called with a line after each kill and each finished run.

    Returns:
      Number of finished runs.

    Raises:
      AssertionError: a start fails, or a run differs from the uninterrupted one.
    """
    killed, finished, workdir, done = 0, 0, next_workdir(), 0
    log = path.with_suffix(".log")
    while True:
        process = starter.start(path, workdir, log)
        if killed < kills:
            lines = _LINES_PER_STEP * (config["total_steps"] - done) + _END_LINES
            wait_for_lines(process, log, rng.randrange(lines))
            time.sleep(rng.uniform(0, _MAX_DELAY_S))
            process.kill()
        process.join(900)
        if process.exitcode < 0:
            killed += 1
            saved = sorted(int(n) for n in names_in(workdir / "checkpoints") if n.isdigit())
            done = max(saved, default=0)
            report(f"kill {killed}: checkpoints {saved}")
            continue
        assert process.exitcode == 0, f"{workdir}: {process.exitcode}: {log.read_text()}"
        check_end(config, workdir, expected)
        finished += 1
        report(f"run {finished} equals the uninterrupted one")
        if killed == kills:
            return finished
        workdir, done = next_workdir(), 0


def main(argv: list[str]) -> None:
    """Kills runs and prints one line per kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--where", choices=("disk", "bucket"), required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    rng, begin, total = random.Random(flags.seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, root = Path(name), user_path(name)
        if flags.where == "bucket":
            bucket_server.create_bucket(stack.enter_context(bucket_server.serve()), "kill-runs")
            root = user_path("gs://kill-runs")
        image, starter = root / "t2i", Starter(folder / "cache")
        configs = {"t2i": image_config(root), "t2v": video_config(root, image)}
        shares = {"t2i": flags.kills - flags.kills // 2, "t2v": flags.kills // 2}
        for stage, config in configs.items():
            path = write_config(folder / f"{stage}.py", config)
            starter.train(path, root / stage, path.with_suffix(".log"))
            expected = results(root / stage)
            check_end(config, root / stage, expected)
            numbers = iter(range(10**6))
            total += kill_and_resume(
                config,
                path,
                starter,
                lambda stage=stage, numbers=numbers: root / f"{stage}{next(numbers)}",
                expected,
                shares[stage],
                rng,
                report=lambda line, stage=stage: print(f"{stage}: {line}", flush=True),
            )
    print(
        f"{flags.kills} kills on {flags.where}: {total} runs equal uninterrupted ones, bit for "
        f"bit; {time.monotonic() - begin:.0f} s on {os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
