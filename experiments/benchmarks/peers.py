"""Compares the speed of the Space-Time U-Net with lumiere-pytorch on the same work.

    pip install torch==2.13.0 && pip install -e ".[peers]"
    python -m experiments.benchmarks.peers --out=peers.json

Both libraries inflate the same text-to-image U-Net (`harness/torch_unet.py` is ours in PyTorch): 16
frames of 32x32, 64, 128 and 256 channels, two blocks per level, attention at 16 and 8 pixels, two
levels of temporal resampling. Times the forward pass and a train step of the temporal parameters.
Each library runs in a process of its own; the processes take turns, on one CPU and on all. With
--device=gpu both compute in bfloat16, and `torch.compile` compiles lumiere-pytorch.
"""

import sys

from absl import flags
from tqdm import tqdm

from experiments.benchmarks.harness.timing import (
    Worker,
    resident_bytes,
    take_turns,
    thread_counts,
)
from experiments.common.networks import PEERS, PEERS_FRAMES, PEERS_SIZE
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.errors import run_command

TOKENS = 16

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/peers.json", "write the results to this JSON file", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)
_DEVICE = flags.DEFINE_enum(
    "device", "cpu", ["cpu", "gpu"], "compute on this kind of device", flag_values=FLAGS
)
_BATCHES = flags.DEFINE_multi_integer(
    "batch", [1, 4], "measure batches of this many videos", flag_values=FLAGS
)


def stunet_work(work: str, batch: int, device: str):
    """Builds the forward pass or train step of this project; a set-up function of `Worker`.

    Args:
      work: "forward" or "train".
      batch: Videos per batch.
      device: "cpu" or "gpu".
    """
    import dataclasses

    import jax

    from experiments.benchmarks.harness import workloads
    from stunet.compiling import prepare_compiler
    from stunet.weights.trees import count_parameters, is_temporal, partition

    prepare_compiler()
    idle = resident_bytes()
    config = dataclasses.replace(PEERS, dtype="bfloat16" if device == "gpu" else "float32")
    params = workloads.random_like(workloads.parameter_structs(config))
    inputs = workloads.make_batch(config, batch, PEERS_FRAMES, PEERS_SIZE, TOKENS)
    info = {
        "parameters": count_parameters(params),
        "trained": count_parameters(partition(params, is_temporal)[0]),
    }
    if work == "forward":
        forward = jax.jit(workloads.forward(config))
        return lambda: forward(params, inputs).block_until_ready(), idle, info
    # The tensors of one video fit a CPU's cache, those of four do not.
    step, init = workloads.train_step(config, gradient_accumulation=batch if device == "cpu" else 1)
    step, (state, frozen) = jax.jit(step, donate_argnums=0), init(params)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, frozen, inputs)
        metrics["loss"].block_until_ready()

    return run, idle, info


def lumiere_pytorch_work(work: str, batch: int, device: str):
    """Builds the forward pass or train step of lumiere-pytorch; see `stunet_work`."""
    import os

    import torch

    from experiments.benchmarks.harness.torch_unet import make_lumiere

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    idle = resident_bytes()
    kind = {"cpu": "cpu", "gpu": "cuda"}[device]
    torch.manual_seed(0)
    model = make_lumiere(PEERS, PEERS_SIZE).to(kind)
    trained = list(model.parameters())
    total = sum(p.numel() for p in torch.nn.Module.parameters(model))
    info = {"parameters": total, "trained": sum(p.numel() for p in trained)}
    network = torch.compile(model) if device == "gpu" else model
    video, target = torch.randn(2, batch, 3, PEERS_FRAMES, PEERS_SIZE, PEERS_SIZE, device=kind)
    text = torch.randn(batch, TOKENS, PEERS.text_dim, device=kind)
    time = torch.full((batch,), 500.0, device=kind)
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def wait() -> None:
        if device == "gpu":
            torch.cuda.synchronize()

    def predict() -> torch.Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=device == "gpu"):
            return network(video, time=time, text=text)

    def forward() -> None:
        with torch.no_grad():
            predict()
        wait()

    def train() -> None:
        loss = torch.nn.functional.mse_loss(predict().float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()

    return {"forward": forward, "train": train}[work], idle, info


def main(argv: list[str]) -> None:
    """Times both libraries and prints a table."""
    read_flags(FLAGS, argv, __doc__)
    rows, results = [], []
    for threads in thread_counts(_DEVICE.value):
        for work in ("forward", "train"):
            for batch in tqdm(_BATCHES.value, desc=f"{work}, {threads} threads", unit="batch"):
                args = (work, batch, _DEVICE.value)
                setups = (stunet_work, lumiere_pytorch_work)
                workers = [Worker(threads, setup, *args) for setup in setups]
                ours, theirs = take_turns(workers, _REPEATS.value)
                rows.append(
                    (
                        threads,
                        work,
                        batch,
                        ours.best,
                        ours.median,
                        theirs.best,
                        theirs.median,
                        theirs.best / ours.best,
                        ours.cpus,
                        theirs.cpus,
                        ours.peak_bytes // 2**20,
                        theirs.peak_bytes // 2**20,
                        (ours.peak_bytes - ours.idle_bytes) // 2**20,
                        (theirs.peak_bytes - theirs.idle_bytes) // 2**20,
                        ours.first_seconds,
                        theirs.first_seconds,
                    )
                )
                results.append(
                    {
                        "threads": threads,
                        "what": work,
                        "batch": batch,
                        "stunet": ours.as_json(),
                        "lumiere_pytorch": theirs.as_json(),
                    }
                )
    for name in ("parameters", "trained"):
        a, b = ours.info[name], theirs.info[name]
        print(f"{name}: stunet {a:,}, lumiere-pytorch {b:,} ({a / b - 1:+.1%})")
    libraries = ("stunet", "lumiere-pytorch")
    columns = ["CPUs", "work", "batch"]
    columns += [f"{library} {figure}" for library in libraries for figure in ("best s", "median s")]
    columns += ["speed-up"]
    columns += [
        f"{library} {figure}"
        for figure in ("CPUs used", "peak MiB", "peak over idle MiB", "first s")
        for library in libraries
    ]
    print_table(columns, rows)
    write_json(_OUT.value, {"benchmark": "peers", "device": _DEVICE.value, "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.peers"))
