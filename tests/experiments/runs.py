"""Tiny training runs, in this process or in processes of their own."""

import contextlib
import copy
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from data.pipeline import parse_config
from experiments import train
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.mesh import make_mesh
from stunet.training.parameters import put_or_init
from stunet.training.workdir.resuming import recorded_config
from stunet.training.workdir.run_model import open_initial_model
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import flatten

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def full_disk(max_file_bytes: int) -> Iterator[None]:
    """Limits the size of files that this process writes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


T2I = {
    "stage": "t2i",
    "unet": {
        "channels": (8, 16),
        "layers_per_block": (1, 1),
        "attention_levels": (False, True),
        "head_dim": 8,
        "text_dim": 8,
        "cross_attention_dim": 8,
        "pooling_heads": 2,
        "out_channels": 3,
        "norm_groups": 4,
    },
    "text_encoder": {
        "t5": {
            "vocab_size": 320,
            "d_model": 8,
            "d_kv": 4,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
        },
        "max_tokens": 12,
    },
    "data": {
        "name": "moving_shapes",
        "data_dir": "",
        "split": "train",
        "num_examples": 40,
        "num_frames": 1,
        "resolution": 8,
        "fps": 8.0,
        "seed": 0,
        "caption_dropout": 0.1,
    },
    "diffusion": {"prediction": "v", "loss": "min_snr"},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 5},
    "mesh": {"fsdp": 1, "frames": 1},
    "batch_size": 4,
    "total_steps": 20,
    "checkpoint_every": 8,
    "log_every": 1,
}


def changed(config: dict, **changes) -> dict:
    """Returns a copy with other values; `data__seed` is the seed in data."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *path, last = name.split("__")
        branch = config
        for step in path:
            branch = branch[step]
        branch[last] = value
    return config


def write_config(path: Path, config: dict) -> Path:
    """Writes a config file."""
    text = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict("
    path.write_text(f"{text}{config!r})\n")
    return path


def parse(config: dict) -> TrainConfig:
    """Parses a config as the programs do."""
    return parse_train_config(config, parse_config)


def train_here(config: dict, workdir: Path) -> int:
    """Trains in this process and returns the exit code."""
    workdir.mkdir(parents=True, exist_ok=True)
    return train.train(parse(config), workdir)


def parameters(workdir: Path, name: str) -> dict[str, np.ndarray]:
    """Returns the parameters of a run's "initial" or "model" by path, new ones initialised."""
    if name == "model":
        return flatten(read_model_folder(workdir / name).params)
    config = recorded_config(workdir, parse_config)
    model = open_initial_model(workdir / name)[1]
    mesh = make_mesh(devices=jax.devices()[:1])
    params = put_or_init(config.stage, model, model.params, mesh, config.seed)
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def program_environment(compile_cache: Path, devices: int = 1) -> dict[str, str]:
    """Returns variables for fast compilation and a shared compile cache."""
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "STUNET_HEARTBEAT_S": "60",  # how long a process waits for a killed one
    }


def start(
    config: Path,
    workdir: Path,
    compile_cache: Path,
    *options: str,
    devices: int = 1,
    command: str = "experiments.train",
) -> subprocess.Popen:
    """Starts a command as a user does, with fast compilation and a shared compile cache.

    Within `full_disk`, the process inherits the limit.
    """

    environment = os.environ | program_environment(compile_cache, devices)
    return subprocess.Popen(
        [sys.executable, "-m", command, f"--config={config}", f"--workdir={workdir}", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_cluster(
    config: Path,
    workdir: Path,
    compile_cache: Path,
    *options: str,
    commands: tuple[str, str] = ("experiments.train",) * 2,
) -> list[subprocess.Popen]:
    """Starts a cluster of two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            config,
            workdir,
            compile_cache,
            f"--cluster=localhost:{port},2,{number}",
            *options,
            devices=2,
            command=command,
        )
        for number, command in enumerate(commands)
    ]


def ended(*processes: subprocess.Popen, timeout: float = 300) -> list[tuple[str, str, int]]:
    """Waits for processes, and returns (stdout, stderr, exit code) of each."""
    with ThreadPoolExecutor() as readers:  # a process whose pipe is full would wait
        texts = list(readers.map(lambda process: process.communicate(timeout=timeout), processes))
    return [(*text, process.returncode) for text, process in zip(texts, processes, strict=True)]


def signal_at(process: subprocess.Popen, workdir: Path, step: int, number: int) -> None:
    """Sends a signal once `step` is in metrics.csv."""
    metrics = workdir / "metrics.csv"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        if rows and rows[-1].split(",")[0] in map(str, range(step, step + 1000)):
            break
        time.sleep(0.002)
    process.send_signal(number)
