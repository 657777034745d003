"""The config of a training run, and its parser.

Config files are flat: the fields of `RunConfig`, those of the stage that `stage` names, and `data`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from stunet.errors import UserError
from stunet.memory import check_memory
from stunet.plugins import resolve
from stunet.schema import from_dict
from stunet.training.settings import DataFormat, RunConfig
from stunet.training.stages import STAGES, Stage

# (plain values, their name in errors) -> data config
ParseData = Callable[[Mapping[str, Any], str], DataFormat]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A training run.

    Attributes:
      stage: The stage, with its own fields.
      data: The training data.

    Raises:
      UserError: A field is invalid, a clip could not fit in memory, or the data does not suit the
        stage.
    """

    stage: Stage
    data: DataFormat

    def __post_init__(self):
        super().__post_init__()
        frames, side = self.data.num_frames, self.data.resolution
        check_memory(
            f"data.num_frames, data.resolution: a clip of {frames} frames of {side}x{side} pixels",
            3 * frames * side * side,  # uint8
        )
        self.stage.check_data(self.data)


def parse_train_config(
    values: Mapping[str, Any], parse_data: ParseData, where: str = "config"
) -> TrainConfig:
    """Parses the values of a config file.

    Fields of other stages are ignored if they are None or have their default.

    Args:
      values: Plain values by field name.
      parse_data: Parses the field `data`, such as `data.pipeline.parse_config`.
      where: Name of the config in errors.

    Raises:
      UserError: a field is unknown, missing or invalid, belongs to another stage, or does not suit
        the others.
    """
    for name in ("stage", "data"):
        if name not in values:
            raise UserError(f"{where}: missing field {name}")
    stage_type = _resolve_stage(values["stage"], where)
    stage_fields, run_fields = _field_names(stage_type), _field_names(RunConfig)
    known = {"stage", "data"} | stage_fields | run_fields
    for name in values:
        if name not in known:
            _check_foreign_field(name, values[name], values["stage"], known, where)
    data = parse_data(values["data"], f"{where}.data")
    stage_values = {name: values[name] for name in values if name in stage_fields}
    stage = from_dict(stage_type, stage_values, f"{where} (stage {values['stage']!r})")
    run_values = {name: values[name] for name in values if name in run_fields}
    run = from_dict(RunConfig, run_values, where)
    try:
        return TrainConfig(**vars(run), stage=stage, data=data)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _resolve_stage(name: Any, where: str) -> type[Stage]:
    if not isinstance(name, str):
        raise UserError(f"{where}.stage: {name!r}, expected one of {', '.join(STAGES)}")
    stage = resolve(f"{where}.stage", name, STAGES)
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        raise UserError(f"{where}.stage: {name!r} is {stage!r}, expected a subclass of Stage")
    return stage


def _field_names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _check_foreign_field(name: str, value: Any, stage: str, known: set[str], where: str) -> None:
    """Raises a UserError unless `name` is an unset field of another stage."""
    owners = {
        other: field
        for other, stage_type in STAGES.items()
        for field in dataclasses.fields(stage_type)
        if field.name == name
    }
    if not owners:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
        raise UserError(f"{where}: unknown field {name!r}; {hint}")
    value = tuple(value) if isinstance(value, list) else value
    if value is not None and value not in [field.default for field in owners.values()]:
        raise UserError(
            f"{where}: field {name!r} is {value!r}, expected none for stage {stage!r} (it belongs "
            f"to {', '.join(owners)})"
        )
