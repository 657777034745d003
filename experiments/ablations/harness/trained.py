"""Ablations that train one stage for each variant and seed.

The config of a run is `experiments/ablations/NAME.py:VARIANT,SEED`, and at the paper's size
`experiments/ablations/NAME.py:VARIANT,SEED,tpu`. A run is in WORKDIR/NAME/VARIANT_SEED. The run of
the paper's own choice is in WORKDIR/paper_SEED and shared by many ablations.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from experiments.ablations.harness.ablation import SEEDS, Chain, Command, Inputs, Phase, heading
from experiments.configs import base_128, tiny_t2v
from stunet.errors import UserError, writing
from stunet.training.logs.metrics import read_metrics
from stunet.video_io import read_video, write_image

# Training steps at each scale, of the variant that sets the compute.
STEPS = {"cpu": 400, "tpu": 20000}
SEEDS_AT = {"cpu": SEEDS, "tpu": SEEDS[:1]}
JUDGED_CLIPS = 32
RESTORED_CLIPS, LOG_SNRS = 64, (-6, -4, -2, 0, 2)  # of `experiments.denoising`
ATTRIBUTES = ("colour", "shape", "motion")  # that `experiments.judge` recognises
JUDGES = ("experiments.judge", "experiments.denoising")
CONFIDENCE = 0.95

# Config fields that take an input, at each scale: field -> name of the input.
FIELD_INPUTS = {
    "cpu": {"init_from": "t2i"},
    "tpu": {"init_from": "t2i", "data.source": "folder"},
}


class Run(NamedTuple):
    """One training run of an ablation."""

    variant: str
    seed: int
    scale: str


@dataclass(frozen=True, kw_only=True)
class TrainedAblation:
    """An ablation that compares training runs.

    Attributes:
      name: See `Ablation`.
      question: See `Ablation`.
      paper: See `Ablation`.
      variants: Names of the variants, usually the paper's choice first.
      verdict: Maps the final losses `[seeds]` of each variant to a conclusion; errors of restored
        clips if they are measured.
      field_inputs: Config fields that take an input, at each scale that the ablation has.
      shared: Whether the config of the first variant is `base_config`, as in other ablations.
      judges: Programs that evaluate the runs at the scale of a CPU, of `JUDGES`.
    """

    name: str
    question: str
    paper: str
    variants: tuple[str, ...]
    verdict: Callable[[dict[str, np.ndarray]], str]
    field_inputs: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: FIELD_INPUTS)
    shared: bool = True
    judges: tuple[str, ...] = JUDGES

    @property
    def scales(self) -> tuple[str, ...]:
        """Scales that the ablation has, of "cpu" and "tpu"."""
        return tuple(self.field_inputs)

    def parse_run(self, argument: str) -> Run:
        """Parses "VARIANT,SEED" or "VARIANT,SEED,tpu"; see `parse_run`."""
        return parse_run(argument, self.variants, self.scales)

    def judges_at(self, scale: str) -> tuple[str, ...]:
        """Returns the programs that evaluate the runs at this scale."""
        return self.judges if scale == "cpu" else ()

    def folder(self, workdir: Path, variant: str, seed: int) -> Path:
        """Returns the folder of a run. `workdir` is the ablation's own."""
        if self.shared and variant == self.variants[0]:
            return workdir.with_name(f"paper_{seed}")
        return workdir / f"{variant}_{seed}"

    def inputs(self, scale: str) -> tuple[str, ...] | None:
        """Returns the names of the inputs; None if the ablation does not have this scale."""
        return tuple(self.field_inputs[scale].values()) if scale in self.scales else None

    def prepare(self, workdir: Path, inputs: Inputs) -> None:
        """Does nothing: training needs nothing beside the inputs."""

    def phases(
        self, workdir: Path, inputs: Inputs, options: Sequence[str], scale: str
    ) -> list[Phase]:
        """Returns one phase with a chain for each seed and variant: training, then evaluation.

        Options are flags of `experiments.train`.
        """
        return [
            [
                self._chain(workdir, inputs, options, Run(variant, seed, scale))
                for seed in SEEDS_AT[scale]
                for variant in self.variants
            ]
        ]

    def _chain(self, workdir: Path, inputs: Inputs, options: Sequence[str], run: Run) -> Chain:
        out = self.folder(workdir, run.variant, run.seed)
        log = out.with_suffix(".log")
        sources = self.field_inputs[run.scale].items()
        train = Command(
            program="experiments.train",
            flags=(
                f"--config={self._config_argument(run)}",
                *(f"--config.{name}={inputs[source]}" for name, source in sources),
                f"--workdir={out}",
                *options,
            ),
            result=out / "DONE",
            log=log,
        )
        options_of = {
            "experiments.judge": (f"--num_clips={JUDGED_CLIPS}",),
            "experiments.denoising": (
                f"--num_clips={RESTORED_CLIPS}",
                *(f"--log_snr={log_snr}" for log_snr in LOG_SNRS),
            ),
        }
        evaluations = []
        for program in self.judges_at(run.scale):
            result = _result(out, program)
            flags = f"--model={out}", f"--out={result.with_suffix('')}", *options_of[program]
            evaluations.append(Command(program=program, flags=flags, result=result, log=log))
        return [train, *evaluations]

    def _config_argument(self, run: Run) -> str:
        if run.scale == "tpu":  # a command to paste, from the root of a checkout
            return f"experiments/ablations/{self.name}.py:{run.variant},{run.seed},tpu"
        return f"{Path(__file__).parents[1] / self.name}.py:{run.variant},{run.seed}"

    def report(self, workdir: Path, scale: str) -> str:
        """Returns the section about the runs in `workdir`; draws loss curves and early samples."""
        results = read_results(self, workdir, scale)
        judges, seeds = self.judges_at(scale), SEEDS_AT[scale]
        restored = "experiments.denoising" in judges
        attributes = ATTRIBUTES if "experiments.judge" in judges else ()
        picture = workdir.with_suffix(".png")
        plot_losses(self, results, picture)
        final = {name: values["error" if restored else "loss"] for name, values in results.items()}
        lines = [
            *heading(self),
            f"Ours: {self.verdict(final)}",
            "",
            f"| | steps | loss, last tenth of training, seeds {', '.join(map(str, seeds))} |"
            + " error of restored clips | mean | effect of other words |" * restored
            + "".join(f" correct {attribute} |" for attribute in attributes),
            "|---" * (3 + 3 * restored + len(attributes)) + "|",
        ]
        for variant, values in results.items():
            cells = [variant, values["curves"].shape[1]]
            for name in ("loss", "error") if restored else ("loss",):
                cells.append(", ".join(f"{value:.4f}" for value in values[name]))
            if restored:
                cells.append("{:.4f} ± {:.4f}".format(*mean_interval(values["error"])))
                cells.append("{:.1f} ± {:.1f} %".format(*mean_interval(100 * values["effect"])))
            cells += [f"{100 * values[attribute].mean():.0f} %" for attribute in attributes]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += ["", f"![loss curves]({picture.name})", ""]
        if restored:
            lines += [
                "(Bands show the range over seeds. The error is the mean squared error of "
                f"{RESTORED_CLIPS} clips, the same for all variants, that are denoised from "
                f"log-SNRs of {', '.join(map(str, LOG_SNRS))}. Other words of motion in the "
                "caption (on other data, another clip's caption) increase it. ± are "
                f"{100 * CONFIDENCE:.0f} % confidence intervals of the mean over seeds "
                "(t-distribution)."
                + f" {JUDGED_CLIPS} clips per run are judged." * bool(attributes)
                + ")",
                "",
            ]
        if scale == "cpu":
            samples = workdir.with_name(f"{workdir.name}_early.png")
            write_image(samples, stack_early_samples(self, workdir))
            rows = ", then ".join(self.variants)
            lines += [
                f"![early samples: {rows}]({samples.name})",
                "",
                f"(First samples during training, seed {SEEDS[0]}, one clip per row: {rows}.)",
                "",
            ]
        return "\n".join(lines)


def parse_run(argument: str, variants: Sequence[str], scales: Sequence[str] = ("cpu",)) -> Run:
    """Parses "VARIANT,SEED" or "VARIANT,SEED,tpu", the argument of an ablation's config.

    Raises:
      UserError: The argument is malformed, or the variant or scale is unknown.
    """
    match = re.fullmatch(r"(\w+),(\d+)(,tpu)?", argument)
    if match and match[1] in variants:
        run = Run(match[1], int(match[2]), "tpu" if match[3] else "cpu")
        if run.scale in scales:
            return run
    ending = {("cpu",): "", ("tpu",): ",tpu"}.get(tuple(scales), "[,tpu]")
    raise UserError(
        f"config argument: unknown run {argument!r}, expected VARIANT,SEED{ending} with VARIANT "
        f"one of {', '.join(variants)}"
    )


def base_config(seed: int, scale: str = "cpu") -> ConfigDict:
    """Returns the config that all variants share.

    At "cpu" it is `tiny_t2v` with early samples, at "tpu" `base_128` around IF-I-M.
    """
    config = tiny_t2v.get_config() if scale == "cpu" else base_128.get_config("v5e")
    config.seed = config.data.seed = seed
    config.total_steps = steps = STEPS[scale]
    config.optimizer.cooldown_steps = steps // 4
    if scale == "cpu":
        config.sample_every = config.checkpoint_every = steps // 4
    return config


def read_results(
    ablation: TrainedAblation, workdir: Path, scale: str = "cpu"
) -> dict[str, dict[str, np.ndarray]]:
    """Reads the results of each variant.

    Returns:
      variant -> arrays: "curves" `[seeds, steps]` are training losses and "loss" `[seeds]` their
      mean over the last tenth of the steps. "error" `[seeds]` is the error of restored clips,
      "effect" `[seeds]` the share by which another caption increases it, and "colour", "shape" and
      "motion" `[seeds]` are shares of clips, depending on the ablation's judges.
    """
    results = {}
    for variant in ablation.variants:
        folders = [ablation.folder(workdir, variant, seed) for seed in SEEDS_AT[scale]]
        curves = np.array(
            [[row["loss"] for row in read_metrics(out / "metrics.csv")] for out in folders]
        )
        results[variant] = {
            "curves": curves,
            "loss": curves[:, -max(1, curves.shape[1] // 10) :].mean(1),
        }
        for program in ablation.judges_at(scale):
            reports = [json.loads(_result(out, program).read_text()) for out in folders]
            results[variant] |= _MEASURES[program](reports)
    return results


def _result(out: Path, program: str) -> Path:
    """Returns the report that a program writes about the run in `out`."""
    return out / f"{program.removeprefix('experiments.')}.json"


def _restored(reports: Sequence[dict]) -> dict[str, np.ndarray]:
    errors = [{kind: np.mean(e) for kind, e in report["errors"].items()} for report in reports]
    own = np.array([error["own"] for error in errors])
    other = np.array([error.get("motion", error.get("another")) for error in errors])
    return {"error": own, "effect": other / own - 1}


def _judged(reports: Sequence[dict]) -> dict[str, np.ndarray]:
    return {name: np.array([report[name] for report in reports]) for name in ATTRIBUTES}


_MEASURES = {"experiments.judge": _judged, "experiments.denoising": _restored}


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of `[seeds]` values and half the width of its confidence interval."""
    count = len(values)
    if count < 2:
        return float(values.mean()), math.inf
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / math.sqrt(count))


def plot_losses(
    ablation: TrainedAblation, results: dict[str, dict[str, np.ndarray]], path: Path
) -> None:
    """Plots each variant's loss curve, smoothed: the mean over seeds in a band of their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for variant, values in results.items():
        curves = values["curves"]
        window = max(1, curves.shape[1] // 25)
        kernel = np.ones(window) / window
        smooth = np.array([np.convolve(curve, kernel, mode="valid") for curve in curves])
        steps = np.arange(window, curves.shape[1] + 1)
        (line,) = axes.plot(steps, smooth.mean(0), label=variant)
        axes.fill_between(steps, smooth.min(0), smooth.max(0), alpha=0.2, color=line.get_color())
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=ablation.question)
    axes.legend()
    with writing(path):
        figure.savefig(path, dpi=110)


def stack_early_samples(ablation: TrainedAblation, workdir: Path) -> np.ndarray:
    """Stacks the first training samples of each variant's first seed vertically: `[H, W, 3]`."""
    rows = []
    for variant in ablation.variants:
        sheets = (ablation.folder(workdir, variant, SEEDS[0]) / "samples").glob("*.png")
        rows.append(read_video(min(sheets))[0][0])
        rows.append(np.ones((12, *rows[-1].shape[1:]), np.float32))
    return np.concatenate(rows[:-1])


def count_lower(losses: dict[str, np.ndarray], variant: str, other: str) -> int:
    """Returns the number of seeds in which `variant` ends with a lower loss than `other`."""
    return int((losses[variant] < losses[other]).sum())


def rank_variants(losses: dict[str, np.ndarray]) -> str:
    """Returns a verdict that names the two variants with the lowest mean losses."""
    ranked = sorted(losses, key=lambda variant: losses[variant].mean())
    first, second = losses[ranked[0]], losses[ranked[1]]
    extent = "in every seed" if (first < second).all() else "in the mean, not in every seed"
    percent = 100 * (second.mean() / first.mean() - 1)
    return f"{ranked[0]} ends lowest; {ranked[1]} comes next, {percent:.1f} % above it {extent}."
