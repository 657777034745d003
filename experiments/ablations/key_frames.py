"""Compares a repetitive motion generated in one pass with key frames and frames between them.

    python -m experiments.ablations --only=key_frames --workdir=runs/ablations

The cascade consists of a network without temporal resampling that generates every fourth frame,
and a conditional network, fine-tuned from it, that fills in the frames between, window by window.
Both methods start from a model that was trained on the motions, and are fine-tuned to repetitions
twice as fast, of 4 to 8 frames, so that key frames of them alias.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.ablations.harness.ablation import (
    SEEDS,
    Chain,
    Command,
    Inputs,
    Phase,
    ProgramAblation,
    read_seed_reports,
)
from experiments.ablations.harness.trained import parse_run
from experiments.configs import shapes, tiny_conditional
from stunet.models.unet import init_unet
from stunet.models.unet_config import UNetConfig
from stunet.schema import from_dict, to_dict
from stunet.weights.model_folder import ModelFolder, read_model_folder, write_model_folder
from stunet.weights.trees import flatten, unflatten

MOTIONS = ("circling", "swinging")
FRAMES, FPS = 16, 4.0
KEY_FRAMES = 4  # every fourth frame is a key frame
WINDOW = 8  # frames that the cascade's second network fills in per call
BATCH_FRAMES = 64
STEPS = 350  # of each of the cascade's networks; the other one takes twice as many
CASCADE = ("keys", "between")
NETWORKS = ("space_time", *CASCADE)
# Keys of the reports of `key_frames_clips`.
METHODS = {
    "space_time": "in one pass",
    "cascade": "key frames, then between",
    "between": "between true key frames",
    "true": "true clips",
}


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "NETWORK,SEED". All networks train on 64 frames per batch."""
    network, seed, _ = parse_run(argument, NETWORKS)
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


def prepare(workdir: Path, inputs: Inputs) -> None:
    """Writes the model that the cascade's first network starts from."""
    model = read_model_folder(inputs["t2v"])
    write_model_folder(workdir / "full_rate", remove_temporal_resampling(model))


def plan(workdir: Path, inputs: Inputs, options: Sequence[str] = ()) -> list[Phase]:
    """Returns a phase that trains both methods, and one that generates and measures clips.

    Runs are in WORKDIR/NETWORK_SEED. Options are flags of `experiments.train`.
    """
    starts = ((workdir / "full_rate", CASCADE), (inputs["t2v"], ("space_time",)))
    training = [
        _training_chain(workdir, seed, start, networks, options)
        for seed in SEEDS
        for start, networks in starts
    ]
    clips = [
        [
            Command(
                program="experiments.ablations.key_frames_clips",
                flags=(f"--workdir={workdir}", f"--seed={seed}"),
                result=workdir / f"seed_{seed}.json",
                log=workdir / f"seed_{seed}.log",
            )
        ]
        for seed in SEEDS
    ]
    return [training, clips]


def _training_chain(
    workdir: Path, seed: int, start: str | Path, networks: Sequence[str], options: Sequence[str]
) -> Chain:
    """Returns commands that train each network from the one before, the first from `start`."""
    chain = []
    for network in networks:
        out = workdir / f"{network}_{seed}"
        command = Command(
            program="experiments.train",
            flags=(
                f"--config={__file__}:{network},{seed}",
                f"--workdir={out}",
                f"--config.init_from={start}",
                *options,
            ),
            result=out / "DONE",
            log=out.with_suffix(".log"),
        )
        chain.append(command)
        start = out
    return chain


def remove_temporal_resampling(model: ModelFolder) -> ModelFolder:
    """Returns the video model without temporal resampling; all other weights are kept."""
    architecture = model.config["architecture"]
    temporal = architecture["temporal"]
    temporal = {**temporal, "resample": [False] * len(temporal["resample"])}
    unet = from_dict(UNetConfig, {**architecture, "temporal": temporal}, "architecture")
    structs = flatten(jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))))
    params = flatten(model.params["unet"])
    return ModelFolder(
        {**model.config, "architecture": to_dict(unet)},
        {**model.params, "unet": unflatten({path: params[path] for path in structs})},
        model.tokenizer,
    )


def verdict(periodicity: dict[str, np.ndarray]) -> str:
    """Returns one sentence on the mean periodicity `[seeds]` of each of `METHODS`."""
    wins = int((periodicity["space_time"] > periodicity["cascade"]).sum())
    means = {method: values.mean() for method, values in periodicity.items()}
    agreement = "Agrees with" if wins == len(SEEDS) else "Does not confirm"
    return (
        f"{agreement} the paper: clips generated in one pass are more periodic with {wins} of "
        f"{len(SEEDS)} seeds ({means['space_time']:.2f} against {means['cascade']:.2f}; between "
        f"true key frames {means['between']:.2f}, true clips {means['true']:.2f})."
    )


def findings(workdir: Path) -> list[str]:
    """Returns the report's lines."""
    reports = read_seed_reports(workdir)
    periodicity = {
        method: np.array([report[method]["periodicity"] for report in reports])
        for method in METHODS
    }
    lines = [
        f"Ours: {verdict(periodicity)}",
        "",
        f"| | periodicity, seeds {', '.join(map(str, SEEDS))} | correct motion |",
        "|---|---|---|",
    ]
    for method, label in METHODS.items():
        by_seed = ", ".join(f"{value:.3f}" for value in periodicity[method])
        motion = np.mean([report[method]["motion"] for report in reports])
        lines.append(f"| {label} | {by_seed} | {100 * motion:.0f} % |")
    return [
        *lines,
        "",
        f"({reports[0]['num_clips']} clips per seed; motions: {', '.join(MOTIONS)}.)",
        "",
        f"![X-T slices]({workdir.name}/seed_{SEEDS[0]}.png)",
        "",
        f"(X-T slices of seed {SEEDS[0]}, time downwards: {'; '.join(METHODS.values())}.)",
        "",
    ]


ABLATION = ProgramAblation(
    name="key_frames",
    question="A repetitive motion in one pass, or between key frames",
    paper=(
        "Key frames of a repetitive motion are ambiguous, and temporal super-resolution between "
        "them cannot resolve that; in one pass the motion is regular."
    ),
    needs=("t2v",),
    plan=plan,
    findings=findings,
    preparation=prepare,
)
