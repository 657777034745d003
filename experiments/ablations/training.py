"""Ablations that train: the inflation stage once for each variant and seed, then the judge."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.ablations.programs import SEEDS, call
from experiments.configs import tiny_t2i, tiny_t2v
from stunet.config import from_dict
from stunet.errors import UserError
from stunet.models.unet import UNetConfig, init_unet
from stunet.training.metrics import read_metrics
from stunet.weights.trees import Tree

STEPS = 600  # of the variant that sets the compute
JUDGED_CLIPS = 64
READ = ("colour", "shape", "motion")  # what the judge reads


@dataclass(frozen=True)
class Training:
    """An ablation of the stage `t2v`.

    Attributes:
      name: also of the module that holds it, whose `get_config` is given "VARIANT,SEED".
      question: one line.
      paper: what the paper found, or that it did not ask.
      variants: what each is called; the first is the paper's own choice.
      verdict: from the losses at the end, `[seeds]` of each variant, to one sentence.
    """

    name: str
    question: str
    paper: str
    variants: tuple[str, ...]
    verdict: Callable[[dict[str, np.ndarray]], str]


def base_config(seed: int) -> ConfigDict:
    """What all variants share, at the scale of a CPU: `tiny_t2v` with samples early on."""
    config = tiny_t2v.get_config()
    config.seed = config.data.seed = seed
    config.total_steps = STEPS
    config.optimizer.cooldown_steps = STEPS // 4
    config.sample_every = STEPS // 4
    config.checkpoint_every = STEPS // 4
    return config


def network(config: ConfigDict) -> tuple[UNetConfig, Tree]:
    """The network of a run's config, and its parameters' shapes."""
    fields = {**tiny_t2i.get_config().unet.to_dict(), "temporal": config.temporal.to_dict()}
    unet = from_dict(UNetConfig, fields, "unet")
    return unet, jax.eval_shape(lambda: init_unet(unet, jax.random.key(0)))


def variant_and_seed(argument: str, variants: Sequence[str]) -> tuple[str, int]:
    """Reads "VARIANT,SEED".

    Raises:
      UserError: it is neither, or no variant.
    """
    name, _, seed = argument.partition(",")
    if name not in variants or not seed.isdigit():
        raise UserError(
            f"{argument!r} is no variant and seed; write one of {', '.join(variants)}, a comma and "
            "a number"
        )
    return name, int(seed)


def run(
    ablation: Training, workdir: Path, t2i: Path, *, jobs: int, options: Sequence[str] = ()
) -> None:
    """Trains and judges what is not finished yet, `jobs` runs at a time.

    Args:
      ablation: which.
      workdir: of it; a run is VARIANT_SEED in there.
      t2i: the text-to-image model that all are inflated from.
      jobs: how many runs at a time.
      options: further flags of `experiments.train`.

    Raises:
      UserError: a run failed; its last line and its log are named.
    """
    runs = [(variant, seed) for seed in SEEDS for variant in ablation.variants]
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(runs), desc=ablation.name, unit=" runs") as bar,
    ):
        futures = []
        for variant, seed in runs:
            out = workdir / f"{variant}_{seed}"
            config = f"{Path(__file__).with_name(ablation.name)}.py:{variant},{seed}"
            train = [f"--config={config}", f"--workdir={out}", f"--config.init_from={t2i}"]
            futures.append(pool.submit(_train_and_judge, out, [*train, *options]))
            futures[-1].add_done_callback(lambda _: bar.update())
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train_and_judge(out: Path, flags: Sequence[str]) -> None:
    if not (out / "DONE").exists():
        call("experiments.train", flags, out.with_suffix(".log"))
    if not (out / "judge.json").exists():
        judge = [f"--model={out}", f"--out={out / 'judge'}", f"--num_clips={JUDGED_CLIPS}"]
        call("experiments.judge", judge, out.with_suffix(".log"))


def results(ablation: Training, workdir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Of each variant the loss curves `[seeds, steps]`, the last tenth's mean loss `[seeds]` and
    what the judge read `[seeds]`, shares of clips.
    """
    found = {}
    for variant in ablation.variants:
        folders = [workdir / f"{variant}_{seed}" for seed in SEEDS]
        curves = np.array(
            [[row["loss"] for row in read_metrics(out / "metrics.csv")] for out in folders]
        )
        judged = [json.loads((out / "judge.json").read_text()) for out in folders]
        found[variant] = {
            "curves": curves,
            "loss": curves[:, -max(1, curves.shape[1] // 10) :].mean(1),
            **{name: np.array([report[name] for report in judged]) for name in READ},
        }
    return found


def plot(ablation: Training, found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Loss curves: the mean over seeds, and between which of them it lies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for variant, values in found.items():
        curves = values["curves"]
        window = max(1, curves.shape[1] // 25)
        kernel = np.ones(window) / window
        smooth = np.array([np.convolve(curve, kernel, mode="valid") for curve in curves])
        steps = np.arange(window, curves.shape[1] + 1)
        (line,) = axes.plot(steps, smooth.mean(0), label=variant)
        axes.fill_between(steps, smooth.min(0), smooth.max(0), alpha=0.2, color=line.get_color())
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=ablation.question)
    axes.legend()
    figure.savefig(path, dpi=110)


def lower_in(losses: dict[str, np.ndarray], one: str, other: str) -> int:
    """In how many seeds variant `one` ended with a lower loss than `other`."""
    return int((losses[one] < losses[other]).sum())


def section(ablation: Training, workdir: Path) -> str:
    """The part of the report about one ablation, in Markdown; draws its plot."""
    found = results(ablation, workdir)
    picture = workdir.with_suffix(".png")
    plot(ablation, found, picture)
    losses = {variant: values["loss"] for variant, values in found.items()}
    lines = [
        f"## {ablation.question}",
        "",
        f"The paper: {ablation.paper}",
        "",
        f"Ours: {ablation.verdict(losses)}",
        "",
        f"| | steps | loss of the last tenth, seeds {', '.join(map(str, SEEDS))} | "
        f"{' | '.join(f'{name} as asked' for name in READ)} |",
        "|---" * (3 + len(READ)) + "|",
    ]
    for variant, values in found.items():
        shares = " | ".join(f"{100 * values[name].mean():.0f} %" for name in READ)
        each = ", ".join(f"{loss:.4f}" for loss in values["loss"])
        lines.append(f"| {variant} | {values['curves'].shape[1]} | {each} | {shares} |")
    lines += [
        "",
        f"(Bands: between the seeds. The judge reads {JUDGED_CLIPS} clips of each run.)",
        "",
        f"![loss curves]({picture.name})",
        "",
    ]
    return "\n".join(lines)
