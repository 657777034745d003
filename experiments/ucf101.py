"""Zero-shot text-to-video on UCF-101 (2401.12945, Table 1): FVD and Inception Score.

    python -m experiments.ucf101 --config=experiments/configs/ucf101_zero_shot.py \\
        --config.model=MODEL --workdir=runs/ucf101

Generates clips with UCF-101's distribution of classes and one prompt per class. Writes them to
WORKDIR/clips (H.264) with WORKDIR/prompts.tsv, and WORKDIR/report.json, which equals the report of
`stunet evaluate WORKDIR/clips --reference UCF-101`. Running the command again resumes it.

With `--cluster` in several processes, each generates its share of the batches on its own devices,
and process 0 measures. All processes have to see the workdir. A run may be resumed by another
number of processes.

As in the paper, FVD uses I3D's logits and the Inception Score C3D's softmax. Both scores depend
slightly on the weights, which may differ from the authors', and on H.264 compression.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data.ucf101.ucf101_builder import find_class_videos, read_class_prompts
from experiments.common.program_flags import read_flags
from stunet.cluster import (
    agree,
    check_equal,
    end_on_signals,
    is_first_process,
    join_cluster,
    leave_together,
    run_on_first_process,
    share_text,
)
from stunet.compiling import prepare_compiler
from stunet.diffusion.samplers import resolve_sampler
from stunet.engine.cascade import Models, load_models
from stunet.engine.digests import model_digests
from stunet.engine.request import GuidanceMethod, Request, Sampling
from stunet.engine.run import run
from stunet.errors import UserError, run_command
from stunet.evaluation.clip_folders import ClipFolder, open_clip_folder
from stunet.evaluation.evaluate import evaluate, format_report
from stunet.evaluation.metric import Comparison, Metric
from stunet.evaluation.metrics import load_metrics
from stunet.files import read_json
from stunet.paths import AnyPath, existing, user_path, write_text
from stunet.schema import (
    MAX_SEED,
    FrameRate,
    GuidanceScale,
    Range,
    Seed,
    Timestep,
    check_fields,
    from_dict,
    to_dict,
)
from stunet.video_io import check_writable, write_video

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's config file", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the clips and the report", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "share the clips with other processes: 'auto' on a TPU pod, else 'HOST:PORT,COUNT,NUMBER'",
    flag_values=FLAGS,
)

# FVD and Inception Score (2401.12945, Table 1).
PAPER_SCORES = {
    "MagicVideo": (655.00, None),
    "Emu Video": (606.20, 42.70),
    "Video LDM": (550.61, 33.45),
    "Show-1": (394.46, 35.42),
    "Make-A-Video": (367.23, 33.00),
    "PYoCo": (355.19, 47.76),
    "SVD": (242.02, None),
    "Lumiere": (332.49, 37.54),
}

# Fields of the config that do not affect the clips. All others are stored in the workdir, so that
# clips of different configs are not mixed.
_MEASUREMENT_FIELDS = ("i3d", "c3d", "frames", "fps", "splits")
_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ZeroShotConfig:
    """Config of the comparison.

    Attributes:
      model: Model folder or training workdir of a text-to-video model.
      reference: UCF-101's folder of class folders.
      prompts: TSV file of class and prompt.
      upscale: Super-resolution models, applied one after the other.
      i3d: I3D weights, for FVD. None omits the score.
      c3d: C3D weights, for the Inception Score. None omits the score.
      num_videos: Number of generated clips.
      frames: Number of frames to measure, from the start of each clip.
      fps: Frame rate that generated and real clips are re-timed to. None keeps each clip's rate.
      splits: Number of splits of the Inception Score.
      sampler: Key of `stunet.diffusion.samplers.SAMPLERS`, or "package.module:name". None uses the
        model's. Upscalers always use their own settings.
      steps: Sampling steps. None uses the model's.
      guidance_scale: Scale of classifier-free guidance. None uses the model's.
      guidance: Method of guidance, see `Sampling`.
      guidance_interval: Timesteps with guidance, see `Sampling`.
      seed: Seed of the noise and of the order of classes.
      batch_size: Clips per batch.
    """

    model: str
    reference: str
    prompts: str
    upscale: tuple[str, ...] = ()
    i3d: str | None = None
    c3d: str | None = None
    num_videos: Annotated[int, Range(1, 1_000_000)] = 10235
    frames: int = 16
    fps: FrameRate | None = None
    splits: int = 10
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: GuidanceScale | None = None
    guidance: GuidanceMethod = "cfg"
    guidance_interval: tuple[Timestep, Timestep] | None = None
    seed: Seed = 0
    batch_size: int = 8

    def __post_init__(self):
        check_fields(self)
        largest = MAX_SEED // self.num_videos - 1  # clip i has the seed `seed * num_videos + i`
        if self.seed > largest:
            raise UserError(
                f"seed: {self.seed}, expected 0 to {largest} for num_videos {self.num_videos}"
            )
        if self.sampler is not None:
            resolve_sampler(self.sampler)


def apportion(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Divides `total` in proportion to `counts`, by the largest remainder method."""
    exact = {name: total * count / sum(counts.values()) for name, count in counts.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def classes_and_prompts(config: ZeroShotConfig) -> list[tuple[str, str]]:
    """Returns class and prompt of each clip to generate, in a random order.

    Raises:
      UserError: there are no real clips, or a class has no prompt.
    """
    prompts = read_class_prompts(user_path(config.prompts))
    videos = find_class_videos(user_path(config.reference)).clips
    counts = Counter(video.name.split("/")[-2] for video in videos)
    if missing := [label for label in sorted(counts) if label.lower() not in prompts]:
        raise UserError(
            f"{config.prompts}: no prompt for {', '.join(missing)}, expected one per class"
        )
    shares = apportion(counts, config.num_videos)
    labels = [label for label in sorted(shares) for _ in range(shares[label])]
    order = np.random.default_rng(config.seed).permutation(len(labels))
    return [(labels[i], prompts[labels[i].lower()]) for i in order]


def generate_clips(config: ZeroShotConfig, workdir: AnyPath) -> None:
    """Writes WORKDIR/prompts.tsv and all clips that WORKDIR/clips lacks.

    In a cluster, each process writes the clips of every COUNT-th batch.

    Raises:
      UserError: there are no real clips, a class has no prompt, the models do not generate
        suitable clips, existing clips are of another config, or the processes of a cluster have
        different configs, prompts, models or workdirs.
    """
    clips = agree(lambda: classes_and_prompts(config))
    names = [f"{number:05d}_{label}.mp4" for number, (label, _) in enumerate(clips)]
    paths = [workdir / "clips" / name for name in names]
    settings = {k: v for k, v in to_dict(config).items() if k not in _MEASUREMENT_FIELDS}
    agree(lambda: _check_settings(settings, workdir))
    present = existing(paths)
    missing = [number for number, path in enumerate(paths) if path not in present]
    # Process 0 decides, because another one may already see clips that the first has written.
    missing = json.loads(share_text(json.dumps(missing)))
    if not missing:
        return
    rows = [f"{name}\t{prompt}\n" for name, (_, prompt) in zip(names, clips, strict=True)]
    check_equal(
        lambda: {
            **{f"config.{name}": json.dumps(value) for name, value in settings.items()},
            "prompts": hashlib.sha256("".join(rows).encode()).hexdigest(),
            **model_digests([config.model, *config.upscale]),
        }
    )
    models = agree(lambda: _load_models(config))
    if is_first_process():
        _print_warnings(config, models, [prompt for _, prompt in clips])

    def write_settings() -> None:
        check_writable(paths[0])
        (workdir / "clips").mkdir(parents=True, exist_ok=True)
        write_text(workdir / _CONFIG_FILE, json.dumps(settings, indent=2) + "\n")
        write_text(workdir / "prompts.tsv", "".join(rows))

    run_on_first_process(write_settings)
    agree(lambda: _check_visible(workdir))
    size, count = config.batch_size, jax.process_count()
    batches = sorted({number // size for number in missing})[jax.process_index() :: count]
    own = {number for number in missing if number // size in batches}
    others = f" (process 0 of {count})" if count > 1 else ""
    with tqdm(
        total=len(own) if others else len(paths),
        initial=0 if others else len(paths) - len(missing),
        desc=f"generating{others}",
        unit="clip",
        disable=not is_first_process(),
    ) as bar:
        for batch in batches:
            numbers = range(batch * size, min((batch + 1) * size, len(paths)))
            # The whole batch, so that resuming within a batch does not change a clip.
            prompts = [clips[number][1] for number in numbers]
            videos = _generate(config, models, prompts, config.seed * len(paths) + numbers[0])
            for number, video in zip(numbers, videos, strict=True):
                if number in own:
                    write_video(paths[number], video, models.base.fps)
                    bar.update()


def _print_warnings(config: ZeroShotConfig, models: Models, prompts: list[str]) -> None:
    """Prints warnings about prompts that a model truncates or has no tokens for."""
    texts, what = sorted(set(prompts)), f"{config.prompts}: prompts"
    found = [warning for m in models.chain for warning in m.tokenizer.warnings(texts, what)]
    for warning in dict.fromkeys(found):
        print(warning, file=sys.stderr)


def _check_settings(settings: Mapping, workdir: AnyPath) -> None:
    if not (workdir / _CONFIG_FILE).exists():
        return
    # Clips of an older version have the default of a field that it did not know.
    before = {f.name: f.default for f in fields(ZeroShotConfig)} | read_json(workdir / _CONFIG_FILE)
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"{workdir}: contains clips of another {', '.join(changed)}, expected an empty workdir"
        )


def _generate(config: ZeroShotConfig, models: Models, prompts: list[str], seed: int) -> np.ndarray:
    sampling = Sampling(
        sampler=config.sampler,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        guidance=config.guidance,
        guidance_interval=config.guidance_interval,
        seed=seed,
        batch_size=config.batch_size,
    )
    request = Request(application="generate", prompts=tuple(prompts), sampling=sampling)
    return run(models, request).videos


def _check_visible(workdir: AnyPath) -> None:
    if not (workdir / _CONFIG_FILE).exists():
        raise UserError(
            f"{workdir}: {_CONFIG_FILE} of process 0 is missing, expected a folder that all "
            "processes see"
        )


def _load_models(config: ZeroShotConfig) -> Models:
    models = load_models(config.model, config.upscale)
    base = models.base
    if base.fps is None:
        raise UserError(f"{config.model}: generates images, expected a model of videos")
    num_frames = int(base.num_frames * (config.fps or base.fps) / base.fps)
    if num_frames < config.frames:
        raise UserError(
            f"{config.model}: generates {base.num_frames} frames at {base.fps:g} fps, expected "
            f"enough for {config.frames} frames at {config.fps or base.fps:g} fps"
        )
    return models


def comparison_table(report: Mapping) -> list[str]:
    """Formats the paper's table, with the report's scores in the last row."""
    scores = report["metrics"]
    ours = tuple(
        scores[name]["value"] if name in scores else None for name in ("fvd", "inception_score")
    )
    count, frames = report["clips"]["num_clips"], report["clips"]["frames"]
    lines = [f"{'zero-shot on UCF-101':24}{'FVD':>10}{'IS':>10}"]
    for name, row in {**PAPER_SCORES, f"here, {count} clips of {frames}": ours}.items():
        values = ("-" if value is None else f"{value:.2f}" for value in row)
        lines.append(f"{name:24}" + "".join(f"{value:>10}" for value in values))
    return lines


def _load_metrics(config: ZeroShotConfig) -> tuple[list[Metric], ClipFolder]:
    metrics = load_metrics({"i3d": config.i3d, "c3d": config.c3d, "splits": config.splits})
    reference = open_clip_folder(config.reference, config.frames, config.fps)
    sizes = Comparison(
        frames=config.frames, num_clips=config.num_videos, num_reference=len(reference.names)
    )
    for metric in metrics:
        metric.check(sizes)
    return metrics, reference


def compare(config: ZeroShotConfig, workdir: AnyPath) -> None:
    """Generates the clips, measures them, and writes the report."""
    # Loads and checks metrics first, so that errors are raised before hours of sampling.
    metrics, reference = agree(lambda: _load_metrics(config))
    generate_clips(config, workdir)
    leave_together()
    if not is_first_process():
        return
    clips = open_clip_folder(workdir / "clips", config.frames, config.fps)
    total = len(clips.names) + len(reference.names)
    with tqdm(total=total, desc="measuring", unit="clip") as bar:
        report = evaluate(
            clips, metrics, reference, batch_size=config.batch_size, on_clips=bar.update
        )
    path = workdir / "report.json"
    write_text(path, json.dumps(report, indent=2) + "\n")
    print(*format_report(report), "", *comparison_table(report), path, sep="\n")


def main(argv: list[str]) -> None:
    """Parses the flags and runs the comparison."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("--config, --workdir: missing, expected both")
    config = from_dict(ZeroShotConfig, values, "config")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
        end_on_signals()
    prepare_compiler()
    compare(config, user_path(_WORKDIR.value))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ucf101"))
