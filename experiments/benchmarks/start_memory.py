"""Measures the memory of processes that start a training run of a network with 1 B parameters.

    python -m experiments.benchmarks.start_memory --what=frozen --processes=2
    python -m experiments.benchmarks.start_memory --what=new --processes=2

--what=frozen starts stage t2v on a text-to-image model on disk, whose parameters stay frozen.
--what=new starts stage t2i with a new network. The processes form a cluster on this machine's CPU,
with one device each, and shard the parameters (`mesh.fsdp`). Each prints its peak resident memory
when all parameters are on the mesh, before the optimizer state is made; the peak after importing
and joining the cluster is subtracted.
"""

import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from data.pipeline import parse_config
from experiments.common.program_flags import read_flags
from stunet.cluster import agree, join_cluster, run_on_first_process
from stunet.errors import run_command
from stunet.models.unet_config import UNetConfig
from stunet.schema import to_dict
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.mesh import make_mesh
from stunet.training.parameters import put_or_init
from stunet.training.workdir.run_model import open_initial_model, write_initial_model
from stunet.weights.model_folder import ModelFolder, unet_shapes, write_model_folder
from stunet.weights.trees import count_parameters, unflatten

UNET = UNetConfig(
    channels=(320, 640, 1280, 1536),
    layers_per_block=(2, 2, 2, 2),
    attention_levels=(False, True, True, True),
    text_dim=64,
    out_channels=3,
)

FLAGS = flags.FlagValues()
_WHAT = flags.DEFINE_enum(
    "what", "frozen", ("frozen", "new"), "start this kind of run", flag_values=FLAGS
)
_PROCESSES = flags.DEFINE_integer(
    "processes", 2, "start this many processes", lower_bound=1, flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "for the started processes: folder of the run", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster", None, "for the started processes: cluster to join", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Writes the model, starts the processes and prints their figures."""
    read_flags(FLAGS, argv, __doc__)
    if _FOLDER.value is not None:
        return start(Path(_FOLDER.value))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(unet_shapes(UNET)))
    count = count_parameters(unet_shapes(UNET))
    print(f"{count / 1e9:.2f} B parameters, {size / 1e9:.2f} GB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if _WHAT.value == "frozen":
            write_image_model(Path(folder) / "image")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "experiments.benchmarks.start_memory", *argv[1:]]
        processes = [
            subprocess.Popen(
                [*command, f"--folder={folder}", f"--cluster={address},{_PROCESSES.value},{i}"],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            )
            for i in range(_PROCESSES.value)
        ]
        return max(process.wait() for process in processes)


def start(folder: Path) -> int:
    """Puts the parameters of a run on the mesh, as `experiments.train` does."""
    join_cluster(_CLUSTER.value)
    mesh = make_mesh(fsdp=_PROCESSES.value)
    before = peak()
    config = run_config(str(folder / "image") if _WHAT.value == "frozen" else "")
    stage, initial = config.stage, folder / "initial"
    run_on_first_process(lambda: write_initial_model(config, initial, lambda: ["a caption"]))
    _, model = agree(lambda: open_initial_model(initial))
    trained, frozen = stage.split(model.params, config.seed)
    arrays = [put_or_init(stage, model, part, mesh, config.seed) for part in (trained, frozen)]
    jax.block_until_ready(arrays)
    number, after = jax.process_index(), peak()
    own = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(arrays) for shard in leaf.addressable_shards
    )
    print(
        f"process {number}: peak {(after - before) / 1e9:.2f} GB above {before / 1e9:.2f} GB, "
        f"{own / 1e9:.2f} GB of parameters on its device",
        flush=True,
    )
    return 0


def run_config(init_from: str) -> TrainConfig:
    """Returns the config of a run on cached text states that starts from a model, or a new one."""
    data = {"name": "moving_shapes", "data_dir": "unused", "split": "train", "num_examples": 2}
    data |= {"resolution": 16, "fps": 8.0, "seed": 0, "caption_dropout": 0.1}
    values = {"batch_size": _PROCESSES.value, "total_steps": 1}
    if init_from:
        temporal = {
            "resample": (True, True, True),
            "attention_levels": (False,) * 4,
            "hidden": 0.05,
        }
        values |= {"stage": "t2v", "init_from": init_from, "temporal": temporal}
        data |= {"num_frames": 16, "text_states": True}
    else:
        t5 = {"vocab_size": 300, "d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1}
        text_encoder = {"t5": {**t5, "num_heads": 8}, "max_tokens": 8}
        values |= {"stage": "t2i", "unet": to_dict(UNET), "text_encoder": text_encoder}
        data |= {"num_frames": 1}
    return parse_train_config({**values, "data": data}, parse_config)


def write_image_model(folder: Path) -> None:
    """Writes a text-to-image model whose parameters are 0."""
    zeros = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), unet_shapes(UNET)
    )
    config = {
        "architecture": to_dict(UNET),
        "stage": "t2i",
        "resolution": 16,
        "num_frames": 1,
        "fps": None,
        "schedule": {},
        "prediction": "eps",
        "variance": "fixed_small",
        "text_encoder": None,
    }
    write_model_folder(folder, ModelFolder(config, {"unet": unflatten(zeros)}))


def peak() -> int:
    """Returns this process's peak resident memory in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.start_memory"))
