"""Checks that a workdir's initial model was made by the config that resumes it."""

from dataclasses import replace
from pathlib import Path

from stunet.errors import UserError
from stunet.model import Model, parameter_shapes
from stunet.schema import to_dict
from stunet.training.config import TrainConfig
from stunet.training.initial_model import check_module_names, is_frozen_kernel, with_dtype
from stunet.weights.trees import compare_shapes, flatten


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
