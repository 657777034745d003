"""A STUNet against lumiere-pytorch on the same work.

    pip install torch==2.13.0 && pip install -e ".[peers]"
    python -m experiments.benchmarks.peers --out=peers.json

Both inflate the same text-to-image U-Net (`torch_unet.py` has ours in PyTorch): 16 frames of
32x32, widths 64, 128, 256, two blocks a level, attention at 16 and 8 pixels, two temporal
levels. Forward pass, and a train step of the temporal parameters; each side in a process of its
own, in turns, on one CPU and on all. With --device=gpu: bf16, lumiere-pytorch compiled by
`torch.compile`.
"""

import sys

from absl import flags
from tqdm import tqdm

from experiments.benchmarks.timing import (
    Worker,
    print_table,
    resident_bytes,
    take_turns,
    thread_counts,
    write_json,
)
from experiments.benchmarks.workloads import PEERS, PEERS_FRAMES, PEERS_SIZE
from experiments.common.program_flags import read_flags
from stunet.errors import run_command

FRAMES, SIZE, TOKENS = PEERS_FRAMES, PEERS_SIZE, 16

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/peers.json", "where the figures are written", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "runs of each, after the first", lower_bound=1, flag_values=FLAGS
)
_DEVICE = flags.DEFINE_enum(
    "device", "cpu", ["cpu", "gpu"], "where both sides compute", flag_values=FLAGS
)
_BATCHES = flags.DEFINE_multi_integer("batch", [1, 4], "videos at a time", flag_values=FLAGS)


def stunet_work(what: str, batch: int, device: str):
    """Our side; imported and built in its own process."""
    import dataclasses

    import jax

    from experiments.benchmarks import workloads
    from stunet.compiling import prepare_compiler
    from stunet.weights.trees import count, is_temporal, partition

    prepare_compiler()
    idle = resident_bytes()
    config = dataclasses.replace(PEERS, dtype="bfloat16" if device == "gpu" else "float32")
    params = workloads.random_like(workloads.parameter_structs(config))
    inputs = workloads.make_batch(config, batch, FRAMES, SIZE, TOKENS)
    info = {"parameters": count(params), "trained": count(partition(params, is_temporal)[0])}
    if what == "forward":
        forward = jax.jit(workloads.forward(config))
        return lambda: forward(params, inputs).block_until_ready(), idle, info
    # On a CPU a video at a time: its tensors fit the cache, those of four do not.
    step, init = workloads.train_step(config, gradient_accumulation=batch if device == "cpu" else 1)
    step, (state, frozen) = jax.jit(step, donate_argnums=0), init(params)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, frozen, inputs)
        metrics["loss"].block_until_ready()

    return run, idle, info


def lumiere_work(what: str, batch: int, device: str):
    """lumiere-pytorch's side."""
    import os

    import torch

    from experiments.benchmarks.torch_unet import inflated

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    idle = resident_bytes()
    kind = {"cpu": "cpu", "gpu": "cuda"}[device]
    torch.manual_seed(0)
    model = inflated(PEERS, SIZE).to(kind)
    trained = list(model.parameters())
    total = sum(p.numel() for p in torch.nn.Module.parameters(model))
    info = {"parameters": total, "trained": sum(p.numel() for p in trained)}
    network = torch.compile(model) if device == "gpu" else model
    video, target = torch.randn(2, batch, 3, FRAMES, SIZE, SIZE, device=kind)
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

    return {"forward": forward, "train": train}[what], idle, info


def main(argv: list[str]) -> None:
    """Times both sides and prints the ratios."""
    read_flags(FLAGS, argv, __doc__)
    rows, results = [], []
    for threads in thread_counts(_DEVICE.value):
        for what in ("forward", "train"):
            for batch in tqdm(_BATCHES.value, desc=f"{what}, {threads} threads", unit="batch"):
                args = (what, batch, _DEVICE.value)
                workers = [Worker(threads, work, *args) for work in (stunet_work, lumiere_work)]
                ours, theirs = take_turns(workers, _REPEATS.value)
                rows.append(
                    (
                        threads,
                        what,
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
                        "what": what,
                        "batch": batch,
                        "stunet": ours.as_json(),
                        "lumiere_pytorch": theirs.as_json(),
                    }
                )
    for name in ("parameters", "trained"):
        a, b = ours.info[name], theirs.info[name]
        print(f"{name}: stunet {a:,}, lumiere-pytorch {b:,} ({a / b - 1:+.1%})")
    both = ("ours", "theirs")
    columns = ["CPUs", "what", "batch"]
    columns += [f"{side} {figure}" for side in both for figure in ("best s", "median s")]
    columns += ["times faster"]
    columns += [
        f"{side} {f}" for f in ("CPUs used", "peak MiB", "own MiB", "first s") for side in both
    ]
    print_table(columns, rows)
    write_json(_OUT.value, {"benchmark": "peers", "device": _DEVICE.value, "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.peers"))
