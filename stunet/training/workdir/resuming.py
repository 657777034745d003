"""Checks that a workdir's run was started with the config and the data that resume it.

`workdir/run.json` stores both (`run_record`); workdirs of older versions lack it.
"""

from collections.abc import Collection
from dataclasses import replace

from stunet.errors import UserError
from stunet.model import Model, parameter_shapes
from stunet.paths import AnyPath
from stunet.schema import to_dict
from stunet.training.config import ParseData, TrainConfig, parse_train_config
from stunet.training.initial_model import (
    check_module_names,
    check_network,
    with_dtype,
)
from stunet.training.workdir.checkpoint_tensors import complete_steps
from stunet.training.workdir.config_changes import (
    DATA,
    Change,
    check_config,
    check_field_names,
    config_changes,
    plain_config,
)
from stunet.training.workdir.contents import finished_steps
from stunet.training.workdir.run_record import (
    RunRecord,
    installed_versions,
    read_record,
    stored_record,
    write_record,
)
from stunet.weights.trees import compare_shapes, flatten, is_spatial_kernel


def check_run_config(
    config: TrainConfig, workdir: AnyPath, allow_changed: Collection[str] = ()
) -> list[str]:
    """Compares the config with that of the run in the workdir; see `check_config`.

    Args:
      config: Config of this start.
      workdir: The run's workdir.
      allow_changed: Names of fields that may differ, and "data" for clips and captions.

    Returns:
      Remarks on changed fields and versions, and on allowed fields that have not changed.

    Raises:
      UserError: see `check_config`; also if the run has more steps than `total_steps`, a name in
        `allow_changed` is not that of a field, or `run.json` or `DONE` is damaged.
    """
    check_total_steps(config, finished_steps(workdir) or 0, workdir)
    check_total_steps(config, max(complete_steps(workdir), default=0), workdir)
    record = read_record(workdir)
    before = {} if record is None else record.config
    check_field_names(allow_changed, before, config)
    if record is None:
        return []
    remarks = check_config(before, config, allow_changed)
    changed = {change.field for change in config_changes(before, config)}
    changed |= {DATA, *(entry.get("field") for entry in record.changes)}
    remarks += [
        f"--allow_changed={name}: the field has not changed"
        for name in allow_changed
        if name not in changed
    ]
    return remarks + _version_remarks(record, workdir)


def check_total_steps(config: TrainConfig, done: int, workdir: AnyPath) -> None:
    """Raises a `UserError` if the run has more steps than `total_steps`."""
    if config.total_steps < done:
        raise UserError(
            f"config.total_steps: {config.total_steps}, expected at least {done}, the steps of "
            f"{workdir} (or another workdir)"
        )


def recorded_config(workdir: AnyPath, parse_data: ParseData) -> TrainConfig:
    """Returns the config of the last start of the workdir's run.

    Args:
      workdir: The run's workdir.
      parse_data: Parses the field `data`.

    Raises:
      UserError: The workdir has no run, or its config is not one of this version.
    """
    record, where = stored_record(workdir)
    return parse_train_config({**record.config, "stage": record.stage}, parse_data, where)


def recorded_data(workdir: AnyPath) -> str | None:
    """Returns the fingerprint of the data of the workdir's run, or None if none is stored."""
    record = read_record(workdir)
    return None if record is None else record.data


def check_run_data(
    before: str | None, fingerprint: str, workdir: AnyPath, allow_changed: bool
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


def record_run(
    config: TrainConfig,
    fingerprint: str,
    workdir: AnyPath,
    step: int = 0,
    data_before: str | None = None,
) -> None:
    """Stores the config, the identity of clips and captions and all changes in the workdir.

    Args:
      config: The config of this start.
      fingerprint: Identity of its clips and captions.
      workdir: The run's workdir.
      step: Step that the run continues from.
      data_before: Identity of the data in the checkpoint, in case `run.json` has none.

    Raises:
      UserError: `run.json` is damaged, or the disk is full or read-only.
    """
    stage, record = type(config.stage), read_record(workdir)
    versions, changes = installed_versions(), []
    if record is not None:
        data_before = record.data or data_before
        changes += config_changes(record.config, config)
        changes += _version_changes(record)
    if data_before not in (None, fingerprint):
        changes.append(Change(DATA, data_before, fingerprint))
    new = RunRecord(
        config=plain_config(config),
        stage=f"{stage.__module__}:{stage.__qualname__}",
        data=fingerprint,
        versions=versions,
        changes=(
            *(() if record is None else record.changes),
            *({"step": step, "field": c.field, "old": c.old, "new": c.new} for c in changes),
        ),
    )
    write_record(new, workdir)


def _version_changes(record: RunRecord) -> list[Change]:
    return [
        Change(f"versions.{name}", record.versions[name], version)
        for name, version in installed_versions().items()
        if record.versions.get(name, version) != version
    ]


def _version_remarks(record: RunRecord, workdir: AnyPath) -> list[str]:
    changes = _version_changes(record)
    if not changes:
        return []
    names = ", ".join(f"{c.field.partition('.')[2]} {c.old} (now {c.new})" for c in changes)
    return [f"{workdir}: last started with {names}; numbers may differ in their last digits"]


def check_initial_model(config: TrainConfig, stage: str, model: Model, folder: AnyPath) -> None:
    """Checks that a run that was started with other settings is not resumed.

    Args:
      config: The config of this start.
      stage: Name of the stage that made the initial model.
      model: The initial model.
      folder: Where it was read from, for errors.

    Raises:
      UserError: the configured networks have parameters of another shape than the initial model
        (the error names the first differing ones and both shapes), another setting differs, or the
        data does not train every parameter.
    """
    if stage != config.stage.name:
        raise UserError(
            f"{folder}: started with stage {stage!r}, config has {config.stage.name!r}; expected "
            "the same stage (or another workdir)"
        )
    unet = with_dtype(config.stage.architecture(model.unet), config)
    text_encoder = model.text_encoder
    if config.stage.trains_text_encoder:
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
        sampling=config.sampling or model.sampling,
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
    check_network(unet, text_encoder, config.stage.super_resolution, config, config.data)


def _check_frozen_dtype(dtype: str | None, model: Model, folder: AnyPath) -> None:
    if dtype is None:
        return
    for path, leaf in flatten(model.params["unet"]).items():
        if is_spatial_kernel(path, leaf) and leaf.dtype != dtype:
            raise UserError(
                f"{folder}: started with unet/{path} in {leaf.dtype}, config has frozen_dtype "
                f"{dtype!r}; expected the same type (or another workdir)"
            )
