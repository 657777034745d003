"""The model folders of a run: `initial/`, which describes the model before training, and exports.

Both refer to the folder of `init_from` (or to that of a text encoder) by `base` for parameters that
the run does not change, and store the others. A run therefore needs these folders as long as it
exists. Parameters of models in the package are stored instead, because an update of the package may
move or replace them.

`initial/` does not contain new trained parameters: until the first checkpoint, each start
initialises them from the run's seed.
"""

import dataclasses
from collections.abc import Callable

import jax

from stunet.compiling import on_cpu
from stunet.model import Model, model_from_folder, parameter_shapes
from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import UNetConfig
from stunet.paths import AnyPath, is_complete
from stunet.schema import from_dict
from stunet.training.config import TrainConfig
from stunet.training.parameters import init_parameters
from stunet.training.stages import Stage
from stunet.weights import shipped
from stunet.weights.bases import Base, stored_base
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import (
    ModelFolder,
    open_model_folder,
    open_text_encoder,
    write_model_folder,
)
from stunet.weights.safetensors_io import CastTensor, LazyTensor
from stunet.weights.trees import Tree, cast_spatial_kernels, flatten, unflatten


def base_of(stage: Stage) -> Base | None:
    """Returns the folder that the model folders of a stage's runs refer to.

    None for a new model, and if the model or the text encoder comes with the package. A stage with
    the folder of a text encoder refers to that folder, and stores its U-Net, which it trains.

    Raises:
      UserError: There is no such folder.
    """
    has_unet = not isinstance(stage.text_encoder, str)
    name = stage.init_from if has_unet else stage.text_encoder
    if not name:
        return None
    folder = find_model_folder(name)
    if shipped.FOLDER in folder.parents:
        return None
    return Base(folder, has_unet, stage.frozen_dtype)


def write_initial_model(
    config: TrainConfig, folder: AnyPath, captions: Callable[[], list[str]]
) -> None:
    """Writes the description of the model before training, unless it exists.

    It contains the parameters that are neither trained nor in another folder.

    Args:
      config: The run.
      folder: The folder to write.
      captions: Returns the captions of the data.

    Raises:
      UserError: See `Stage.initial_model`; or the folder cannot be written.
    """
    if is_complete(folder, last="config.json"):
        return
    stage = config.stage
    content = stage.initial_model(config, config.data, captions)
    model = _describe(content, folder)
    base = base_of(stage)
    inherited = _inherited(base)
    frozen = flatten(stage.split(content.params, config.seed)[1])
    new = {
        path: leaf
        for path, leaf in flatten(content.params).items()
        if isinstance(leaf, jax.ShapeDtypeStruct) and (path in frozen or path in inherited)
    }
    with on_cpu():
        initialised = init_parameters(stage, model, new, config.seed)
    stored = {
        path: initialised.get(path, leaf)
        for path, leaf in flatten(content.params).items()
        if path in initialised or not isinstance(leaf, jax.ShapeDtypeStruct)
    }
    _write(folder, content, stored, base)


def open_initial_model(folder: AnyPath) -> tuple[str, Model]:
    """Opens the description of the model before training. Reads no parameters.

    Args:
      folder: The folder, of this version or of an older one, which stores all parameters.

    Returns:
      The name of the stage, and the model: lazy tensors, and shapes of parameters that are to be
      initialised.

    Raises:
      UserError: A file is missing or damaged; the base is missing or has other weights.
    """
    content = open_model_folder(folder)
    return content.config["stage"], _describe(content, folder)


def export_model(
    config: TrainConfig, initial: AnyPath, averages: Tree, out: AnyPath, complete: bool = False
) -> None:
    """Writes a trained model as a model folder, replacing an existing one.

    Args:
      config: The run.
      initial: The run's `initial/`.
      averages: Averaged values of the trained parameters: arrays or lazy tensors, which are read
        one at a time.
      out: The folder to write.
      complete: Whether to store all parameters instead of referring to a base.

    Raises:
      UserError: See `open_initial_model`; or the folder cannot be written.
    """
    _, model = open_initial_model(initial)
    frozen = config.stage.split(model.params, config.seed)[1]
    params = flatten(config.stage.join(averages, frozen))
    _write(out, open_model_folder(initial), params, None if complete else stored_base(initial))


def _write(folder: AnyPath, content: ModelFolder, params: Tree, base: Base | None) -> None:
    """Writes a model folder with those of the parameters, by path, that a base does not provide."""
    inherited = _inherited(base)
    rest = {path for path, leaf in params.items() if not _is_same(leaf, inherited.get(path))}
    if any(path.startswith("text_encoder/") for path in rest):
        rest |= {path for path in params if path.startswith("text_encoder/")}
    stored = unflatten({path: leaf for path, leaf in params.items() if path in rest})
    content = dataclasses.replace(content, params={"unet": {}, **stored})
    if base is None:
        write_model_folder(folder, content)
        return
    write_model_folder(
        folder, content, base=base.folder, base_unet=base.has_unet, base_dtype=base.dtype
    )


def _inherited(base: Base | None) -> Tree:
    """Returns the parameters that a base provides, lazy tensors by path."""
    if base is None:
        return {}
    if not base.has_unet:
        return flatten({"text_encoder": open_text_encoder(base.folder).params})
    params = open_model_folder(base.folder).params
    return flatten({**params, "unet": cast_spatial_kernels(base.dtype, params["unet"])})


def _is_same(leaf: object, other: object) -> bool:
    """Whether both are the same tensor in the same file. Reads nothing."""
    return isinstance(leaf, LazyTensor | CastTensor) and leaf == other


def _describe(content: ModelFolder, folder: AnyPath) -> Model:
    """Returns the model of a folder's contents, with the shapes of missing parameters."""
    where = f"{folder / 'config.json'}: "
    unet = from_dict(UNetConfig, content.config["architecture"], f"{where}architecture")
    text = content.config["text_encoder"]
    if text is not None:
        text = from_dict(TextEncoderConfig, text, f"{where}text_encoder").t5
    params = flatten(parameter_shapes(unet, text)) | flatten(content.params)
    return model_from_folder(dataclasses.replace(content, params=unflatten(params)), folder)
