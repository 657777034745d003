"""A repetitive motion made in one pass, or as key frames and then what is between them.

python -m experiments.ablations --only=key_frames --workdir=runs/ablations

The cascade is built from the same parts: a network at the full frame rate on every fourth frame,
and a conditional one, tuned from it, that fills in between. Key frames of a quick repetition alias.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.ablations.programs import SEEDS, call
from experiments.ablations.training import base_config, read_run
from experiments.configs import tiny_conditional

NAME = "key_frames"
PAPER = (
    "Key frames of a repetitive motion are ambiguous, and temporal super-resolution between them "
    "does not mend it; made in one pass the motion is regular."
)
MOTIONS = ("bouncing", "circling", "swinging")
FRAMES, FPS, KEY_FRAMES = 16, 8.0, 4  # every fourth frame is a key frame
STEPS = 500
NETWORKS = ("space_time", "keys", "between")
WAYS = {"space_time": "in one pass", "cascade": "key frames, then between", "true": "true clips"}


def get_config(argument: str) -> ConfigDict:
    """The run of "NETWORK,SEED". Batches have as many frames for each network."""
    network, seed, _ = read_run(argument, NETWORKS)
    config = base_config(seed)
    config.total_steps, config.optimizer.cooldown_steps = STEPS, STEPS // 4
    config.sample_prompts = ()
    config.data.motions = MOTIONS
    config.data.num_frames, config.data.fps, config.batch_size = FRAMES, FPS, 4
    if network != "space_time":
        config.temporal.resample = (False,) * len(config.temporal.resample)
    if network == "keys":
        config.data.num_frames, config.data.fps = FRAMES // KEY_FRAMES, FPS / KEY_FRAMES
        config.batch_size *= KEY_FRAMES
    if network == "between":
        fields = tiny_conditional.get_config()
        config.stage, config.cond_in_blocks = "conditional", fields.cond_in_blocks
        del config.temporal  # the key frames' network has it
        config.conditioning = {name: float(name == "every_kth") for name in fields.conditioning}
    return config


def run(workdir: Path, t2i: Path, options: Sequence[str] = (), *, jobs: int = 1) -> None:
    """Trains both ways with each seed, makes clips and measures them; what is there already stays.

    Args:
      workdir: runs are NETWORK_SEED in there; `seed_N.json` and `seed_N.png` are the results.
      t2i: the text-to-image model that the networks are inflated from.
      options: further flags of `experiments.train`.
      jobs: training runs at a time.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    chains = [(seed, chain) for seed in SEEDS for chain in (("space_time",), ("keys", "between"))]

    def train(seed: int, chain: Sequence[str]) -> None:
        start = t2i
        for network in chain:
            out = workdir / f"{network}_{seed}"
            if not (out / "DONE").exists():
                flags = [f"--config={__file__}:{network},{seed}", f"--workdir={out}"]
                flags += [f"--config.init_from={start}", *options]
                call("experiments.train", flags, out.with_suffix(".log"))
            start = out

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, *chain) for chain in chains]
        for future in tqdm(futures, desc=NAME, unit=" networks"):
            future.result()
    for seed in SEEDS:
        if not (workdir / f"seed_{seed}.json").exists():
            flags = [f"--workdir={workdir}", f"--seed={seed}"]
            call("experiments.ablations.key_frames_clips", flags, workdir / f"seed_{seed}.log")


def verdict(found: dict[str, np.ndarray]) -> str:
    """From the mean periodicity `[seeds]` of each of `WAYS` to one sentence."""
    wins = int((found["space_time"] > found["cascade"]).sum())
    means = {way: values.mean() for way, values in found.items()}
    said = "Agrees with the paper" if wins == len(SEEDS) else "Does not bear the paper out"
    return (
        f"{said}: in one pass clips repeat themselves more with {wins} of {len(SEEDS)} seeds "
        f"({means['space_time']:.2f} against {means['cascade']:.2f}; true clips "
        f"{means['true']:.2f})."
    )


def section(workdir: Path) -> str:
    """The part of the report, in Markdown."""
    reports = [json.loads((workdir / f"seed_{seed}.json").read_text()) for seed in SEEDS]
    found = {way: np.array([report[way]["periodicity"] for report in reports]) for way in WAYS}
    lines = [
        "## A repetitive motion in one pass, or between key frames",
        "",
        f"The paper: {PAPER}",
        "",
        f"Ours: {verdict(found)}",
        "",
        f"| | periodicity, seeds {', '.join(map(str, SEEDS))} | motion as asked |",
        "|---|---|---|",
    ]
    for way, name in WAYS.items():
        each = ", ".join(f"{value:.3f}" for value in found[way])
        motion = np.mean([report[way]["motion"] for report in reports])
        lines.append(f"| {name} | {each} | {100 * motion:.0f} % |")
    return "\n".join(
        [
            *lines,
            "",
            f"({reports[0]['num_clips']} clips a seed, of {', '.join(MOTIONS)}.)",
            "",
            f"![X-T slices: in one pass, cascade, true]({workdir.name}/seed_{SEEDS[0]}.png)",
            "",
        ]
    )
