"""Which fields of a config may change between two starts of a run."""

import dataclasses
import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from stunet.errors import UserError
from stunet.schema import to_dict
from stunet.training.config import TrainConfig

# Fields that may change: they determine how a run computes, reports and is stored, but not its
# result (up to rounding). Clips and captions are compared by the dataset's fingerprint, which
# includes the settings that it was prepared with. A larger `total_steps` is free, too.
FREE = (
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "sample_every",
    "sample_prompts",
    "sample_videos",
    "mesh",
    "remat",
    "attention",
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
# Fields that cannot change: the parameters, the checkpoints and the description of the model in
# `initial/` depend on them.
FIXED = (
    "stage",
    "seed",  # of new parameters, which every start initialises again if they are frozen
    "unet",
    "temporal",
    "text_encoder",
    "super_resolution",
    "cond_in_blocks",
    "adapter_rank",
    "trained",
    "frozen",
    "steps",
    "scales",
    "frozen_dtype",
    "dtype",
    "batch_size",
    "sampling",
    "optimizer.name",
    "diffusion.prediction",
    "diffusion.variance",
    "diffusion.schedule",
    "data.num_frames",
    "data.resolution",
    "data.fps",
)
DATA = "data"  # name of the identity of clips and captions among changes


class Change(NamedTuple):
    """A field of a config with another value than at the last start.

    Attributes:
      field: Its name, such as "optimizer.learning_rate".
      old: The value at the last start, as in JSON. None if it was not stored.
      new: The value of this start, as in JSON. None if this version of stunet lacks the field.
      is_known: Whether this version of stunet has the field.
    """

    field: str
    old: Any
    new: Any
    is_known: bool = True


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """Returns the config as JSON values, with the fields of a config file."""
    values = to_dict(config)
    flat = {"stage": config.stage.name, **values.pop("stage"), **values}
    return _as_json(flat)


def config_changes(before: Mapping[str, Any], config: TrainConfig) -> list[Change]:
    """Returns the fields that differ, the stage first, because others depend on it.

    Args:
      before: Config of the run's last start, as from `plain_config`. Fields that an older version
        of stunet did not have count as their defaults.
      config: Config of this start.
    """
    for owner in (config.stage, config):
        before = _with_defaults(before, owner)
    changes = _differences(before, plain_config(config))
    return sorted(changes, key=lambda change: change.field != "stage")


def check_config(
    before: Mapping[str, Any], config: TrainConfig, allow_changed: Collection[str] = ()
) -> list[str]:
    """Checks that a config may resume a run.

    Args:
      before: Config of the run's last start, as from `plain_config`.
      config: Config of this start.
      allow_changed: Names of fields that may differ although the result depends on them.

    Returns:
      Remarks on changed fields that affect the result.

    Raises:
      UserError: a field differs that is neither in `FREE` nor in `allow_changed`, or is in `FIXED`.
    """
    changes = [change for change in config_changes(before, config) if not _is_free(change)]
    known = [change for change in changes if change.is_known]
    for change in known:
        if _is_below(change.field, FIXED):
            raise UserError(
                f"config.{change.field}: {_show(change.new)}, expected {_show(change.old)} as at "
                "the start of the run, which cannot change (or another workdir)"
            )
    refused = [change for change in known if change.field not in allow_changed]
    if refused:
        change, names = refused[0], ",".join(change.field for change in refused)
        larger = " or more" if change.field == "total_steps" else ""
        raise UserError(
            f"config.{change.field}: {_show(change.new)}, expected {_show(change.old)}{larger} as "
            f"at the run's last start, another workdir or --allow_changed={names}"
        )
    return [
        f"config.{change.field}: {_show(change.old)} until now, {_show(change.new)} from now on"
        + ("" if change.is_known else " (no field of this version of stunet)")
        for change in changes
    ]


def check_field_names(
    names: Collection[str], before: Mapping[str, Any], config: TrainConfig
) -> None:
    """Raises a `UserError` for the first name that is neither a field of a config nor `DATA`."""
    known = [DATA, *_field_names(before), *_field_names(plain_config(config))]
    for name in names:
        if name not in known:
            similar = name.removeprefix("config.")
            close = difflib.get_close_matches(similar, known, n=1)
            hint = repr(close[0]) if close else "names such as 'optimizer.learning_rate' or 'data'"
            raise UserError(f"--allow_changed: no field {name!r}, expected {hint}")


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[Change]:
    for name in sorted(before.keys() | now.keys()):
        old, new, path = before.get(name), now.get(name), f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{path}.")
        elif old != new:
            yield Change(path, old, new, is_known=name in now)


def _with_defaults(stored: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Adds the fields of a dataclass that stored values lack, with their defaults."""
    values = dict(stored)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in values:
            if field.default is not dataclasses.MISSING:
                values[field.name] = _as_json(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = _as_json(field.default_factory())
        elif dataclasses.is_dataclass(value) and isinstance(values[field.name], Mapping):
            values[field.name] = _with_defaults(values[field.name], value)
    return values


def _as_json(value: Any) -> Any:
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(plain, default=repr))


def _is_free(change: Change) -> bool:
    if change.field == "total_steps":
        return isinstance(change.old, int) and change.new > change.old
    return _is_below(change.field, FREE)


def _is_below(name: str, fields: Collection[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _field_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _field_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
