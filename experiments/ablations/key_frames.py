"""A repetitive motion made in one pass, or as key frames and then what is between them.

python -m experiments.ablations --only=key_frames --workdir=runs/ablations

The cascade is built from the same parts: a network at the full frame rate on every fourth frame,
and a conditional one, tuned from it, that fills in between, window by window. Both ways start from
a model that knows the motions, and are tuned to a repetition twice as quick as it knows, of 4 to 8
frames: key frames of these alias.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.ablations.programs import SEEDS, call
from experiments.ablations.training import read_run
from experiments.configs import shapes, tiny_conditional
from stunet.models.unet import UNetConfig, init_unet
from stunet.schema import from_dict, to_dict
from stunet.weights.model_folder import ModelFolder, read_model_folder, write_model_folder
from stunet.weights.trees import flatten, unflatten

NAME = "key_frames"
PAPER = (
    "Key frames of a repetitive motion are ambiguous, and temporal super-resolution between them "
    "does not mend it; made in one pass the motion is regular."
)
MOTIONS = ("circling", "swinging")
FRAMES, FPS, KEY_FRAMES = 16, 4.0, 4  # every fourth frame is a key frame
WINDOW = 8  # frames that are filled in at a time
BATCH_FRAMES = 64
STEPS = 350  # of each of the cascade's networks, twice as many of the other
CASCADE = ("keys", "between")
NETWORKS = ("space_time", *CASCADE)
WAYS = {
    "space_time": "in one pass",
    "cascade": "key frames, then between",
    "between": "between true key frames",
    "true": "true clips",
}


def get_config(argument: str) -> ConfigDict:
    """The run of "NETWORK,SEED". Batches have as many frames for each network."""
    network, seed, _ = read_run(argument, NETWORKS)
    config = shapes.get_config("t2v_16")
    config.seed = config.data.seed = seed
    config.total_steps = STEPS * (2 if network == "space_time" else 1)
    config.optimizer.cooldown_steps = config.total_steps // 4
    config.sample_prompts = ()
    config.data.motions = MOTIONS
    config.data.num_frames, config.data.fps = FRAMES, FPS
    if network != "space_time":
        config.temporal.resample = (False,) * len(config.temporal.resample)
    if network == "keys":
        config.data.num_frames, config.data.fps = FRAMES // KEY_FRAMES, FPS / KEY_FRAMES
    if network == "between":
        fields = tiny_conditional.get_config()
        config.stage, config.cond_in_blocks = "conditional", fields.cond_in_blocks
        del config.temporal  # the key frames' network has it
        config.data.num_frames, config.data.clip_frames = WINDOW, FRAMES
        config.conditioning = {name: float(name == "every_kth") for name in fields.conditioning}
    config.batch_size = BATCH_FRAMES // config.data.num_frames
    return config


def run(workdir: Path, t2v: Path, options: Sequence[str] = (), *, jobs: int = 1) -> None:
    """Trains both ways with each seed, makes clips and measures them; what is there already stays.

    Args:
      workdir: runs are NETWORK_SEED in there; `seed_N.json` and `seed_N.png` are the results.
      t2v: the text-to-video model that the networks are tuned from.
      options: further flags of `experiments.train`.
      jobs: runs at a time.
    """
    full_rate = workdir / "full_rate"
    write_model_folder(full_rate, at_full_rate(read_model_folder(t2v)))
    ways = ((full_rate, CASCADE), (t2v, ("space_time",)))
    chains = [(seed, *way) for seed in SEEDS for way in ways]

    def train(chain: tuple[int, Path, Sequence[str]]) -> None:
        seed, before, networks = chain
        for network in networks:
            out = workdir / f"{network}_{seed}"
            if not (out / "DONE").exists():
                flags = [f"--config={__file__}:{network},{seed}", f"--workdir={out}"]
                flags += [f"--config.init_from={before}", *options]
                call("experiments.train", flags, out.with_suffix(".log"))
            before = out

    def make_clips(seed: int) -> None:
        if not (workdir / f"seed_{seed}.json").exists():
            flags = [f"--workdir={workdir}", f"--seed={seed}"]
            call("experiments.ablations.key_frames_clips", flags, workdir / f"seed_{seed}.log")

    for work, items, unit in ((train, chains, " networks"), (make_clips, SEEDS, " seeds")):
        with ThreadPoolExecutor(jobs) as pool:
            list(tqdm(pool.map(work, items), total=len(items), desc=NAME, unit=unit))


def at_full_rate(model: ModelFolder) -> ModelFolder:
    """The video model without its resampling in time; what else it learnt stays."""
    architecture = model.config["architecture"]
    temporal = architecture["temporal"]
    temporal = {**temporal, "resample": [False] * len(temporal["resample"])}
    unet = from_dict(UNetConfig, {**architecture, "temporal": temporal}, "architecture")
    wanted = flatten(jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))))
    params = flatten(model.params["unet"])
    return ModelFolder(
        {**model.config, "architecture": to_dict(unet)},
        {**model.params, "unet": unflatten({path: params[path] for path in wanted})},
        model.tokenizer,
    )


def verdict(found: dict[str, np.ndarray]) -> str:
    """From the mean periodicity `[seeds]` of each of `WAYS` to one sentence."""
    wins = int((found["space_time"] > found["cascade"]).sum())
    means = {way: values.mean() for way, values in found.items()}
    said = "Agrees with the paper" if wins == len(SEEDS) else "Does not bear the paper out"
    return (
        f"{said}: in one pass clips repeat themselves more with {wins} of {len(SEEDS)} seeds "
        f"({means['space_time']:.2f} against {means['cascade']:.2f}; between true key frames "
        f"{means['between']:.2f}, true clips {means['true']:.2f})."
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
            f"![X-T slices]({workdir.name}/seed_{SEEDS[0]}.png)",
            "",
            f"(X-T slices of seed {SEEDS[0]}, time running down: {'; '.join(WAYS.values())}.)",
            "",
        ]
    )
