"""The zero-shot comparison on UCF-101: generates by class, measures, prints the paper's table.

    python -m experiments.ucf101 --config=experiments/configs/ucf101_zero_shot.py \\
        --config.model=MODEL --workdir=runs/ucf101

The clips have UCF-101's distribution of classes and one prompt a class. They are written to
WORKDIR/clips as H.264, WORKDIR/prompts.tsv says what each was asked for, and WORKDIR/report.json is
what `stunet evaluate WORKDIR/clips --reference UCF-101` reports. The same command again goes on
where it was stopped.

FVD is over I3D's logits and the Inception Score over C3D's softmax, as the paper's; weights other
than those that its authors used, and the writing as H.264, move both a little.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data.ucf101.ucf101_builder import find_class_videos, read_class_prompts
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.engine.cascade import Models, load_models
from stunet.engine.request import Request, Sampling
from stunet.engine.run import run
from stunet.errors import UserError, run_command
from stunet.evaluation.clip_folders import open_folder
from stunet.evaluation.evaluate import evaluate, load_metrics, table
from stunet.files import read_json
from stunet.schema import from_dict, to_dict
from stunet.video_io import check_writable, write_video

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's config file", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where clips and the report are kept", flag_values=FLAGS
)

# FVD and Inception Score, as the paper's table has them.
PAPER = {
    "MagicVideo": (655.00, None),
    "Emu Video": (606.20, 42.70),
    "Video LDM": (550.61, 33.45),
    "Show-1": (394.46, 35.42),
    "Make-A-Video": (367.23, 33.00),
    "PYoCo": (355.19, 47.76),
    "SVD": (242.02, None),
    "Lumiere": (332.49, 37.54),
}

# What does not change the clips.
_MEASURING = ("i3d", "c3d", "frames", "fps", "splits")
_MADE_BY = "config.json"  # in the workdir; the rest


@dataclass(frozen=True)
class ZeroShotConfig:
    """The fields of a config.

    Attributes:
      model: a model folder, or a training workdir.
      upscale: super-resolution models that enlarge what it makes, in turn.
      reference: UCF-101's folder of class folders.
      prompts: a TSV of class and prompt.
      i3d, c3d: weights, for FVD and the Inception Score; None leaves the score out.
      num_videos: that are generated.
      frames: of each clip that are compared, the first ones.
      fps: that generated and real clips are re-timed to; None for frames as they are.
      splits: of the Inception Score.
      sampler, steps, guidance_scale, seed, batch_size: as `stunet.engine.Sampling`'s; upscalers
        that say their own number of steps keep to it.
    """

    model: str
    reference: str
    prompts: str
    upscale: tuple[str, ...] = ()
    i3d: str | None = None
    c3d: str | None = None
    num_videos: int = 10235
    frames: int = 16
    fps: float | None = None
    splits: int = 10
    sampler: Literal["dpm2m", "ddim", "ancestral"] = "dpm2m"
    steps: int | None = None
    guidance_scale: float = 4.0
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self):
        for name in ("num_videos", "frames", "batch_size", "splits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def apportioned(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` shared out in proportion to `counts`: by whole shares, then largest remainders."""
    exact = {name: total * count / sum(counts.values()) for name, count in counts.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def asked(config: ZeroShotConfig) -> list[tuple[str, str]]:
    """Class and prompt of each clip, in a random order that the seed decides.

    Raises:
      UserError: there are no real clips, or a class has no prompt.
    """
    prompts = read_class_prompts(Path(config.prompts))
    clips = find_class_videos(Path(config.reference))
    counts = Counter(clip.name.split("/")[-2] for clip in clips)
    if missing := [label for label in sorted(counts) if label.lower() not in prompts]:
        raise UserError(f"{config.prompts}: has no prompt for {', '.join(missing)}")
    shares = apportioned(counts, config.num_videos)
    labels = [label for label in sorted(shares) for _ in range(shares[label])]
    order = np.random.default_rng(config.seed).permutation(len(labels))
    return [(labels[i], prompts[labels[i].lower()]) for i in order]


def make_clips(config: ZeroShotConfig, workdir: Path) -> None:
    """Writes WORKDIR/clips and prompts.tsv; clips that are there stay.

    Raises:
      UserError: as `asked`; the models do not make such clips, or those there are of another
        config.
    """
    clips = asked(config)
    names = [f"{number:05d}_{label}.mp4" for number, (label, _) in enumerate(clips)]
    paths = [workdir / "clips" / name for name in names]
    made_by = {k: v for k, v in to_dict(config).items() if k not in _MEASURING}
    _check_made_by(made_by, workdir)
    missing = sum(not path.exists() for path in paths)
    if not missing:
        return
    models = load_models(config.model, config.upscale)
    _check_models(config, models)
    check_writable(paths[0])
    (workdir / "clips").mkdir(parents=True, exist_ok=True)
    (workdir / _MADE_BY).write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
    rows = [f"{name}\t{prompt}\n" for name, (_, prompt) in zip(names, clips, strict=True)]
    (workdir / "prompts.tsv").write_text("".join(rows), encoding="utf-8")
    with tqdm(total=len(paths), initial=len(paths) - missing, desc="making", unit="clip") as bar:
        for start in range(0, len(paths), config.batch_size):
            batch = paths[start : start + config.batch_size]
            wanted = [path for path in batch if not path.exists()]
            if not wanted:
                continue
            # All of the batch: where the making was stopped must not change a clip.
            prompts = [prompt for _, prompt in clips[start : start + config.batch_size]]
            videos = _generate(config, models, prompts, config.seed * len(paths) + start)
            for path, video in zip(batch, videos, strict=True):
                if path in wanted:
                    write_video(path, video, models.base.fps)
            bar.update(len(wanted))


def _check_made_by(made_by: Mapping, workdir: Path) -> None:
    if not (workdir / _MADE_BY).exists():
        return
    before = read_json(workdir / _MADE_BY)
    if changed := [name for name in made_by if before.get(name) != made_by[name]]:
        raise UserError(
            f"{workdir}: its clips were made with another {', '.join(changed)}; name a new workdir"
        )


def _generate(config: ZeroShotConfig, models: Models, prompts: list[str], seed: int) -> np.ndarray:
    sampling = Sampling(
        sampler=config.sampler,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        seed=seed,
        batch_size=config.batch_size,
    )
    request = Request(application="generate", prompts=tuple(prompts), sampling=sampling)
    return run(models, request).videos


def _check_models(config: ZeroShotConfig, models: Models) -> None:
    base = models.base
    if base.fps is None:
        raise UserError(f"{config.model}: makes images; name a model of videos")
    made = int(base.num_frames * (config.fps or base.fps) / base.fps)
    if made < config.frames:
        raise UserError(
            f"{config.model}: makes {base.num_frames} frames at {base.fps:g} a second; "
            f"compared are {config.frames} at {config.fps or base.fps:g}"
        )


def comparison(report: Mapping) -> list[str]:
    """The paper's table with the report's scores below it."""
    scores = report["metrics"]
    ours = tuple(
        scores[name]["value"] if name in scores else None for name in ("fvd", "inception_score")
    )
    count, frames = report["clips"]["num_clips"], report["clips"]["frames"]
    lines = [f"{'zero-shot on UCF-101':24}{'FVD':>10}{'IS':>10}"]
    for name, row in {**PAPER, f"here, {count} clips of {frames}": ours}.items():
        values = ("-" if value is None else f"{value:.2f}" for value in row)
        lines.append(f"{name:24}" + "".join(f"{value:>10}" for value in values))
    return lines


def compare(config: ZeroShotConfig, workdir: Path) -> None:
    """Generates, measures, prints and writes."""
    # Before hours of sampling: what is wrong with the measuring is wrong at once.
    metrics = load_metrics(
        config.i3d, config.c3d, None, splits=config.splits, batch_size=config.batch_size
    )
    reference = open_folder(config.reference, config.frames, config.fps)
    metrics.check(config.frames, config.num_videos, len(reference.names))
    make_clips(config, workdir)
    clips = open_folder(workdir / "clips", config.frames, config.fps)
    total = len(clips.names) + len(reference.names)
    with tqdm(total=total, desc="measuring", unit="clip") as bar:
        report = evaluate(clips, metrics, reference, on_clips=bar.update)
    path = workdir / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(*table(report), "", *comparison(report), path, sep="\n")


def main(argv: list[str]) -> None:
    """Reads the flags and compares."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("both --config=FILE and --workdir=DIR are needed")
    config = from_dict(ZeroShotConfig, values, "config")
    prepare_compiler()
    compare(config, Path(_WORKDIR.value))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ucf101"))
