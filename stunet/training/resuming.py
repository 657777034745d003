"""Checks that a workdir's run was started with the config and the data that resume it.

`workdir/run.json` stores both; workdirs of older versions lack it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stunet.errors import UserError, writing
from stunet.files import read_json
from stunet.model import Model, parameter_shapes
from stunet.schema import to_dict
from stunet.training.config import TrainConfig
from stunet.training.initial_model import check_module_names, is_frozen_kernel, with_dtype
from stunet.weights.trees import compare_shapes, flatten

# Fields that may change: they determine how a run computes, reports and is stored, but not its
# result (up to rounding). Clips and captions are compared by the dataset's fingerprint, which
# includes the settings that it was prepared with.
CHANGEABLE = (
    "total_steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "sample_prompts",
    "sample_videos",
    "mesh",
    "remat",
    "gradient_accumulation",
    "data.data_dir",
    "data.source",
    "data.dataset",
    "data.prompts",
    "data.layout",
    "data.filter",
    "data.storage",
    "data.scene_cuts",
    "data.min_motion",
    "data.part_size",
    "data.workers",
    "data.text_states",
)
# Fields that may also change before a run is finished: the remedies of a diverged loss.
REMEDIES = ("optimizer.learning_rate", "optimizer.clip_norm")
_RUN_FILE = "run.json"


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Returns the config as JSON values, with the fields of a config file."""
    values = to_dict(config)
    flat = {"stage": config.stage.name, **values.pop("stage"), **values}
    return json.loads(json.dumps(flat, default=repr))


def config_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields name ("optimizer.name") and both values of each field that differs.

    Fields that only one of the configs has are ignored, because versions have different fields.
    """
    # The stage first, because other fields depend on it.
    for name in sorted(before.keys() & now.keys(), key=lambda name: (name != "stage", name)):
        old, new, path = before[name], now[name], f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from config_differences(old, new, f"{path}.")
        elif old != new:
            yield path, old, new


def check_config(before: Mapping[str, Any], now: Mapping[str, Any], finished: bool) -> list[str]:
    """Checks that a config may resume a run.

    Args:
      before: Config of the run's last start, as from `plain_config`.
      now: Config of this start.
      finished: Whether the run has reached its last step.

    Returns:
      Remarks on changed fields that affect the result.

    Raises:
      UserError: a field differs that must not (see `CHANGEABLE` and `REMEDIES`).
    """
    remarks = []
    for name, old, new in config_differences(before, now):
        if any(name == field or name.startswith(f"{field}.") for field in CHANGEABLE):
            continue
        if finished or name not in REMEDIES:
            raise UserError(
                f"config.{name}: {new!r}, expected {old!r}, which the run was started with "
                "(or another workdir)"
            )
        remarks.append(f"config.{name}: {old!r} until now, {new!r} from now on")
    return remarks


def finished_steps(workdir: Path) -> int | None:
    """Returns the number of steps of a finished run, otherwise None."""
    marker = workdir / "DONE"
    words = marker.read_text().split() if marker.exists() else []
    return int(words[0]) if words and words[0].isdigit() else None


def check_run_config(config: TrainConfig, workdir: Path) -> list[str]:
    """Compares the config with that of the run in the workdir; see `check_config`.

    Raises:
      UserError: also if the run has more steps than `total_steps`.
    """
    done = finished_steps(workdir)
    path = workdir / _RUN_FILE
    remarks = []
    if path.exists():
        before = read_json(path).get("config", {})
        remarks = check_config(before, plain_config(config), finished=done is not None)
    if done is not None:
        check_total_steps(config, done, workdir)
    return remarks


def check_total_steps(config: TrainConfig, done: int, workdir: Path) -> None:
    """Raises a `UserError` if the run has more steps than `total_steps`."""
    if config.total_steps < done:
        raise UserError(
            f"config.total_steps: {config.total_steps}, expected at least {done}, the steps of "
            f"{workdir} (or another workdir)"
        )


def recorded_data(workdir: Path) -> str | None:
    """Returns the fingerprint of the data of the workdir's run, or None if none is stored."""
    path = workdir / _RUN_FILE
    return read_json(path).get("data") if path.exists() else None


def check_run_data(
    before: str | None, fingerprint: str, workdir: Path, allow_changed: bool
) -> list[str]:
    """Compares the identity of clips and captions with that of the run in the workdir.

    Args:
      before: Identity of the run's data (`recorded_data`, or of its checkpoint). None accepts any.
      fingerprint: Identity of this start's data.
      workdir: The run's workdir.
      allow_changed: Whether the run may continue with other data.

    Returns:
      Remarks on changed data.

    Raises:
      UserError: the run was started with other data, and `allow_changed` is False.
    """
    if before in (None, fingerprint):
        return []
    if allow_changed:
        return [f"config.data: dataset {before} until now, {fingerprint} from now on"]
    raise UserError(
        f"config.data: clips, captions or their preparation have changed since {workdir} was "
        f"started (dataset {fingerprint}, was {before}), expected the same ones, another workdir "
        "or --allow_changed=data"
    )


def record_run(config: TrainConfig, fingerprint: str, workdir: Path) -> None:
    """Stores the config and the identity of clips and captions in the workdir.

    Raises:
      UserError: the disk is full or read-only.
    """
    path = workdir / _RUN_FILE
    content = json.dumps({"config": plain_config(config), "data": fingerprint}, indent=2) + "\n"
    with writing(path):
        new = path.with_name(f".{path.name}.new")
        new.write_text(content, encoding="utf-8")
        new.replace(path)


def check_initial_model(config: TrainConfig, stage: str, model: Model, folder: Path) -> None:
    """Checks that a run that was started with other settings is not resumed.

    Args:
      config: The config of this start.
      stage: Name of the stage that made the initial model.
      model: The initial model.
      folder: Where it was read from, for errors.

    Raises:
      UserError: the configured networks have parameters of another shape than the initial model
        (the error names the first differing ones and both shapes), or another setting differs.
    """
    if stage != config.stage.name:
        raise UserError(
            f"{folder}: started with stage {stage!r}, config has {config.stage.name!r}; expected "
            "the same stage (or another workdir)"
        )
    unet = with_dtype(config.stage.architecture(model.unet), config)
    text_encoder = model.text_encoder
    if config.stage.text_encoder is not None:
        text_encoder = config.stage.text_encoder.t5
    if (unet, text_encoder) != (model.unet, model.text_encoder):  # names parameters, if they differ
        compare_shapes(parameter_shapes(unet, text_encoder), model.params, str(folder))
    _check_frozen_dtype(config.stage.frozen_dtype, model, folder)
    check_module_names(config.stage.frozen, model.params["unet"], folder)
    started = replace(model, params={})
    configured = replace(
        started,
        unet=unet,
        text_encoder=text_encoder,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        super_resolution=config.stage.super_resolution,
        resolution=config.data.resolution,
        num_frames=config.data.num_frames,
        fps=config.data.fps,
    )
    stored_values = flatten(to_dict(started))
    for path, value in flatten(to_dict(configured)).items():
        if stored_values[path] != value:
            raise UserError(
                f"{folder}: started with {path.replace('/', '.')} {stored_values[path]!r}, config "
                f"has {value!r}; expected the same value (or another workdir)"
            )


def _check_frozen_dtype(dtype: str | None, model: Model, folder: Path) -> None:
    if dtype is None:
        return
    for path, leaf in flatten(model.params["unet"]).items():
        if is_frozen_kernel(path, leaf) and leaf.dtype != dtype:
            raise UserError(
                f"{folder}: started with unet/{path} in {leaf.dtype}, config has frozen_dtype "
                f"{dtype!r}; expected the same type (or another workdir)"
            )
