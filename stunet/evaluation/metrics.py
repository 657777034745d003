"""The protocol of metrics, and the table of metrics.

To add a metric, write a class that implements `Metric` in a new module and enter it here. A metric
outside of this package needs no entry: `stunet evaluate --metric package.module:name` takes the
name of a `MetricEntry`.

This module imports neither NumPy nor JAX, so that the command line answers quickly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stunet.errors import UserError
from stunet.evaluation.metric import Metric
from stunet.plugins import resolve


@dataclass(frozen=True, kw_only=True)
class MetricOption:
    """A setting of a metric, and an option of `stunet evaluate`.

    Attributes:
      kind: "path", "integer" (at least 1) or "window" (two integers, LENGTH,OVERLAP).
      metavar: Placeholder of the value in the help text.
      help: Imperative phrase or noun phrase, default last.
      default: Value if the option is not given.
      requires: Name of another option of `stunet evaluate` that must be given as well.
    """

    kind: Literal["path", "integer", "window"]
    metavar: str
    help: str
    default: Any = None
    requires: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetricEntry:
    """A metric in the table.

    Attributes:
      load: Makes the metric from the values of its options. Returns None if they do not ask for
        it (no weights, for example).
      options: Settings by name.
    """

    load: Callable[[Mapping[str, Any]], Metric | None]
    options: Mapping[str, MetricOption] = field(default_factory=dict)


def _load_flicker(options: Mapping[str, Any]) -> Metric:
    from stunet.evaluation.pixel_metrics import Flicker

    return Flicker()


def _load_motion_energy(options: Mapping[str, Any]) -> Metric:
    from stunet.evaluation.pixel_metrics import MotionEnergy

    return MotionEnergy()


def _load_seam_ratio(options: Mapping[str, Any]) -> Metric | None:
    if options["windows"] is None:
        return None
    from stunet.evaluation.pixel_metrics import SeamRatio

    length, overlap = options["windows"]
    return SeamRatio(length=length, overlap=overlap)


def _load_fvd(options: Mapping[str, Any]) -> Metric | None:
    if options["i3d"] is None:
        return None
    from stunet.evaluation.i3d import load_i3d
    from stunet.evaluation.network_metrics import FrechetDistance

    return FrechetDistance(network=load_i3d(options["i3d"]))


def _load_inception_score(options: Mapping[str, Any]) -> Metric | None:
    if options["c3d"] is None:
        return None
    from stunet.evaluation.c3d import load_c3d
    from stunet.evaluation.network_metrics import InceptionScore

    return InceptionScore(network=load_c3d(options["c3d"]), splits=options["splits"])


def _load_clip_similarity(options: Mapping[str, Any]) -> Metric | None:
    if options["clip"] is None:
        return None
    from stunet.evaluation.clip import load_clip
    from stunet.evaluation.network_metrics import ClipSimilarity

    return ClipSimilarity(model=load_clip(options["clip"]))


# In the order of the report.
METRICS: dict[str, MetricEntry] = {
    "flicker": MetricEntry(load=_load_flicker),
    "motion_energy": MetricEntry(load=_load_motion_energy),
    "seam_ratio": MetricEntry(
        load=_load_seam_ratio,
        options={
            "windows": MetricOption(
                kind="window",
                metavar="LENGTH,OVERLAP",
                help="windows that the clips were sampled in, in frames, for the seam ratio",
            )
        },
    ),
    "fvd": MetricEntry(
        load=_load_fvd,
        options={
            "i3d": MetricOption(
                kind="path",
                metavar="FILE",
                help="I3D weights (safetensors), for FVD",
                requires="reference",
            )
        },
    ),
    "inception_score": MetricEntry(
        load=_load_inception_score,
        options={
            "c3d": MetricOption(
                kind="path",
                metavar="FILE",
                help="C3D weights (safetensors), for the Inception Score",
            ),
            "splits": MetricOption(
                kind="integer",
                metavar="N",
                help="number of splits of the Inception Score; default: 10",
                default=10,
            ),
        },
    ),
    "clip_similarity": MetricEntry(
        load=_load_clip_similarity,
        options={
            "clip": MetricOption(
                kind="path",
                metavar="FOLDER",
                help="CLIP model in the format of transformers, for CLIP similarity",
                requires="prompts",
            )
        },
    ),
}


def load_metrics(options: Mapping[str, Any], names: Sequence[str] = ()) -> list[Metric]:
    """Makes the metrics that the options allow, and those that are named.

    Args:
      options: Values of the options in `METRICS` by name. Options that are not among them have
        their defaults; other keys are ignored.
      names: Metrics that must be among the result: keys of `METRICS`, or "package.module:name" of a
        `MetricEntry`.

    Raises:
      UserError: a name is unknown, a named metric lacks an option, or weights cannot be read.
    """
    metrics = []
    for name in dict.fromkeys([*METRICS, *names]):
        entry = resolve("metric", name, METRICS)
        if not isinstance(entry, MetricEntry):
            raise UserError(f"metric: {name!r} is {entry!r}, expected a MetricEntry")
        values = {key: options.get(key, option.default) for key, option in entry.options.items()}
        metric = entry.load(values)
        if metric is not None:
            metrics.append(metric)
        elif name in names:
            missing = [key for key, value in values.items() if value is None]
            raise UserError(f"metric: {name!r} lacks an option, expected {', '.join(missing)}")
    return metrics
