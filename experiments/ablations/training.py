"""Ablations that train: a stage once for each variant and seed, and here then the judge.

A run's config is `experiments/ablations/NAME.py:VARIANT,SEED`; `:VARIANT,SEED,tpu` is the same run
at the paper's size. A run is kept in WORKDIR/NAME/VARIANT_SEED, but in WORKDIR/paper_SEED where it
is as the paper has it: that one is the same for many ablations, and trained once.
"""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.ablations.programs import SEEDS, call
from experiments.configs import base_128, tiny_t2v
from stunet.errors import UserError
from stunet.training.metrics import read_metrics
from stunet.video_io import read_video, write_image

STEPS = {"cpu": 400, "tpu": 20000}  # at each scale, of the variant that sets the compute
SEEDS_AT = {"cpu": SEEDS, "tpu": SEEDS[:1]}
JUDGED_CLIPS = 32
RESTORED_CLIPS, LOG_SNRS = 64, (-6, -4, -2, 0, 2)  # by `experiments.denoising`
READ = ("colour", "shape", "motion")  # what the judge reads


@dataclass(frozen=True)
class Training:
    """An ablation that trains.

    Attributes:
      name: also of the module that holds it.
      question: one line.
      paper: what the paper found, or that it did not ask.
      variants: what each is called; the first is the paper's own choice.
      verdict: from the losses at the end, `[seeds]` of each variant, to one sentence; here they are
        errors on the same clips.
      scales: that it is there at.
      options: further flags that its training takes at the scale of a TPU.
      shared: whether the first variant is `base_config`, which other ablations train, too.
      judged: whether what is trained here is of moving shapes, which the judge can read.
    """

    name: str
    question: str
    paper: str
    variants: tuple[str, ...]
    verdict: Callable[[dict[str, np.ndarray]], str]
    scales: tuple[str, ...] = ("cpu", "tpu")
    options: tuple[str, ...] = ("--config.init_from=T2I", "--config.data.source=FOLDER")
    shared: bool = True
    judged: bool = True

    def is_judged(self, scale: str) -> bool:
        """Whether the judge reads its runs at this scale, and clips are restored."""
        return self.judged and scale == "cpu"

    def folder(self, workdir: Path, variant: str, seed: int) -> Path:
        """Where a run is kept; `workdir` is the ablation's own."""
        if self.shared and variant == self.variants[0]:
            return workdir.with_name(f"paper_{seed}")
        return workdir / f"{variant}_{seed}"


class Run(NamedTuple):
    """Which of an ablation's runs."""

    variant: str
    seed: int
    scale: str


def read_run(argument: str, variants: Sequence[str], scales: Sequence[str] = ("cpu",)) -> Run:
    """Reads "VARIANT,SEED", or "VARIANT,SEED,tpu".

    Raises:
      UserError: there is no such run.
    """
    match = re.fullmatch(r"(\w+),(\d+)(,tpu)?", argument)
    if match and match[1] in variants:
        found = Run(match[1], int(match[2]), "tpu" if match[3] else "cpu")
        if found.scale in scales:
            return found
    raise UserError(
        f"{argument!r} is no variant and seed; write one of {', '.join(variants)}, a comma and a "
        f"number{' and ,tpu' if scales == ('tpu',) else ''}"
    )


def base_config(seed: int, scale: str = "cpu") -> ConfigDict:
    """What all variants share: `tiny_t2v` with samples early on, or `base_128` with IF-I-M."""
    config = tiny_t2v.get_config() if scale == "cpu" else base_128.get_config("v5e")
    config.seed = config.data.seed = seed
    config.total_steps = steps = STEPS[scale]
    config.optimizer.cooldown_steps = steps // 4
    if scale == "cpu":
        config.sample_every = config.checkpoint_every = steps // 4
    return config


def run(
    ablation: Training, workdir: Path, t2i: Path, *, jobs: int, options: Sequence[str] = ()
) -> None:
    """Trains and judges what is not finished yet, `jobs` runs at a time.

    Args:
      ablation: which.
      workdir: of it.
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
            out = ablation.folder(workdir, variant, seed)
            config = f"{Path(__file__).with_name(ablation.name)}.py:{variant},{seed}"
            train = [f"--config={config}", f"--workdir={out}", f"--config.init_from={t2i}"]
            futures.append(pool.submit(_run_one, ablation, out, [*train, *options]))
            futures[-1].add_done_callback(lambda _: bar.update())
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(ablation: Training, out: Path, flags: Sequence[str]) -> None:
    if not (out / "DONE").exists():
        call("experiments.train", flags, out.with_suffix(".log"))
    if not ablation.is_judged("cpu"):
        return
    if not (out / "judge.json").exists():
        judge = [f"--model={out}", f"--out={out / 'judge'}", f"--num_clips={JUDGED_CLIPS}"]
        call("experiments.judge", judge, out.with_suffix(".log"))
    if not (out / "denoising.json").exists():
        restore = [f"--model={out}", f"--out={out / 'denoising'}", f"--num_clips={RESTORED_CLIPS}"]
        restore += [f"--log_snr={level}" for level in LOG_SNRS]
        call("experiments.denoising", restore, out.with_suffix(".log"))


def missing(ablation: Training, workdir: Path) -> dict[Path, str]:
    """The commands of the runs at a TPU's scale that are not there, finished, by their folders."""
    found = {}
    for variant in ablation.variants:
        for seed in SEEDS_AT["tpu"]:
            out = ablation.folder(workdir, variant, seed)
            config = f"experiments/ablations/{ablation.name}.py:{variant},{seed},tpu"
            flags = [f"--config={config}", *ablation.options, f"--workdir={out}"]
            if not (out / "DONE").exists():
                found[out] = f"python -m experiments.train {' '.join(flags)}"
    return found


def results(
    ablation: Training, workdir: Path, scale: str = "cpu"
) -> dict[str, dict[str, np.ndarray]]:
    """Of each variant the loss curves `[seeds, steps]`, the last tenth's mean loss `[seeds]` and,
    at the scale of a CPU, the error of restored clips, the same for all, and what the judge read
    `[seeds]`, shares of clips.
    """
    found = {}
    for variant in ablation.variants:
        folders = [ablation.folder(workdir, variant, seed) for seed in SEEDS_AT[scale]]
        curves = np.array(
            [[row["loss"] for row in read_metrics(out / "metrics.csv")] for out in folders]
        )
        found[variant] = {
            "curves": curves,
            "loss": curves[:, -max(1, curves.shape[1] // 10) :].mean(1),
        }
        if ablation.is_judged(scale):
            judged = [json.loads((out / "judge.json").read_text()) for out in folders]
            found[variant] |= {name: np.array([said[name] for said in judged]) for name in READ}
            restored = [json.loads((out / "denoising.json").read_text()) for out in folders]
            found[variant]["error"] = np.array([np.mean(r["errors"]["own"]) for r in restored])
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


def early_samples(ablation: Training, workdir: Path) -> np.ndarray:
    """The first clips that each variant made in training, below one another: `[H, W, 3]`."""
    rows = []
    for variant in ablation.variants:
        sheets = (ablation.folder(workdir, variant, SEEDS[0]) / "samples").glob("*.png")
        rows.append(read_video(min(sheets))[0][0])
        rows.append(np.ones((12, *rows[-1].shape[1:]), np.float32))
    return np.concatenate(rows[:-1])


def lower_in(losses: dict[str, np.ndarray], one: str, other: str) -> int:
    """In how many seeds variant `one` ended with a lower loss than `other`."""
    return int((losses[one] < losses[other]).sum())


def ranking(losses: dict[str, np.ndarray]) -> str:
    """Which of the variants end lowest, as a verdict."""
    ranked = sorted(losses, key=lambda variant: losses[variant].mean())
    first, second = losses[ranked[0]], losses[ranked[1]]
    clearly = "in every seed" if (first < second).all() else "in the mean, not in every seed"
    share = 100 * (second.mean() / first.mean() - 1)
    return f"{ranked[0]} ends lowest; {ranked[1]} comes next, {share:.1f} % above it {clearly}."


def section(ablation: Training, workdir: Path, scale: str = "cpu") -> str:
    """The part of the report about one ablation, in Markdown; draws its plot."""
    found = results(ablation, workdir, scale)
    read, seeds = READ if ablation.is_judged(scale) else (), SEEDS_AT[scale]
    picture = workdir.with_suffix(".png")
    plot(ablation, found, picture)
    last = {variant: values["error" if read else "loss"] for variant, values in found.items()}
    lines = [
        f"## {ablation.question}",
        "",
        f"The paper: {ablation.paper}",
        "",
        f"Ours: {ablation.verdict(last)}",
        "",
        f"| | steps | loss of the last tenth, seeds {', '.join(map(str, seeds))} |"
        + " error of restored clips |" * bool(read)
        + "".join(f" {name} as asked |" for name in read),
        "|---" * (3 + bool(read) + len(read)) + "|",
    ]
    for variant, values in found.items():
        cells = [variant, values["curves"].shape[1]]
        for name in ("loss", "error") if read else ("loss",):
            cells.append(", ".join(f"{value:.4f}" for value in values[name]))
        cells += [f"{100 * values[name].mean():.0f} %" for name in read]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"![loss curves]({picture.name})", ""]
    if read:
        lines += [
            f"(Bands: between the seeds. All restore the same {RESTORED_CLIPS} clips from log-SNRs "
            f"of {', '.join(map(str, LOG_SNRS))}; given is the mean squared error. The judge reads "
            f"{JUDGED_CLIPS} clips of each run.)",
            "",
        ]
    if scale == "cpu":
        samples = workdir.with_name(f"{workdir.name}_early.png")
        write_image(samples, early_samples(ablation, workdir))
        lines += [
            f"![clips of {', then '.join(ablation.variants)}]({samples.name})",
            "",
            f"(Early on, with seed {SEEDS[0]}: {', then '.join(ablation.variants)}, a row a clip.)",
            "",
        ]
    return "\n".join(lines)
