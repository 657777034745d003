"""Building blocks of the model before training, which each stage assembles as it needs.

Nothing here reads or computes a parameter: those of other models are lazy tensors, and new ones are
shapes (`jax.ShapeDtypeStruct`), which `stunet.training.parameters` initialises on the mesh.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from stunet.diffusion import SamplingDefaults, SuperResolution, Threshold
from stunet.errors import UserError
from stunet.memory import check_memory
from stunet.model import Model, check_networks, model_from_folder, text_encoder_shapes
from stunet.models.t5 import T5Config, TextEncoderConfig
from stunet.models.unet_config import UNetConfig, check_training_shape
from stunet.schema import from_dict, to_dict
from stunet.text import train_tokenizer
from stunet.training.settings import DataFormat, RunConfig
from stunet.weights.find_model import find_model_folder
from stunet.weights.inflation import extract_text_to_image
from stunet.weights.model_folder import (
    ModelFolder,
    StoredTextEncoder,
    open_model_folder,
    open_text_encoder,
    unet_shapes,
)
from stunet.weights.trees import Tree, count_parameters, flatten


@dataclass(frozen=True, eq=False)
class StartModel:
    """The model that a stage starts from.

    Attributes:
      folder: Its model folder.
      content: The content of the folder.
      model: The description of the content.
    """

    folder: Path
    content: ModelFolder
    model: Model

    @property
    def unet_params(self) -> Tree:
        """Parameters of the U-Net, lazy tensors."""
        return self.content.params["unet"]


def read_start_model(
    init_from: str,
    run: RunConfig,
    data: DataFormat,
    sampled: str | None,
    *,
    images_only: bool = False,
    conditional: bool = False,
    distilled: bool = False,
    text_encoder: str | None = None,
) -> StartModel:
    """Opens the model in `init_from` and checks that it suits the run. Reads no parameters.

    Args:
      init_from: A model folder, a training workdir, a hub id or the name of a shipped model.
      run: The run's settings.
      data: The run's data.
      sampled: Name of the config field that lists samples to draw; None if no samples are drawn.
      images_only: Whether to reduce a text-to-video model to its text-to-image part.
      conditional: Whether a conditional model is accepted.
      distilled: Whether a distilled model is accepted.
      text_encoder: Folder of a text encoder that replaces that of the model; see
        `open_named_text_encoder`. None keeps it.

    Raises:
      UserError: there is no such model, it has no text encoder but captions or samples need one,
        it predicts something else than `diffusion.prediction`, or it is a conditional or distilled
        model.
    """
    folder = find_model_folder(init_from)
    content = open_model_folder(folder)
    if content.config["architecture"].get("guidance_embedding") and not distilled:
        raise UserError(f"init_from: {folder} is a distilled model, expected the teacher of it")
    if images_only:
        content = extract_text_to_image(content)
    if text_encoder is not None:
        encoder = open_named_text_encoder(text_encoder)
        content = replace(
            content,
            config={**content.config, "text_encoder": encoder.config},
            params={**content.params, "text_encoder": encoder.params},
            tokenizer=encoder.tokenizer,
        )
    model = model_from_folder(content, folder)
    use = "captions" if not data.text_states else sampled
    if model.text_encoder is None and use is not None:
        raise UserError(
            f"init_from: {folder} has no text encoder, which {use} need; add one with "
            f"`stunet import-t5 T5_FOLDER {folder}`"
        )
    if model.prediction != run.diffusion.prediction:
        raise UserError(
            f"diffusion.prediction: {run.diffusion.prediction!r}, expected {model.prediction!r}, "
            f"the prediction of init_from {folder}"
        )
    if model.unet.cond_channels and not conditional:
        raise UserError(
            f"init_from: {folder} is a conditional model, expected an unconditional one (such as "
            "of stage 't2v')"
        )
    return StartModel(folder, content, model)


def open_named_text_encoder(text_encoder: str) -> StoredTextEncoder:
    """Opens the text encoder that the config field `text_encoder` names. Reads no parameters.

    Args:
      text_encoder: A text encoder folder, a model folder, a training workdir or the name of a
        shipped model.

    Raises:
      UserError: There is no such folder, or it has no text encoder.
    """
    try:
        return open_text_encoder(find_model_folder(text_encoder))
    except UserError as error:
        raise UserError(f"text_encoder: {error}") from error


def check_network(
    unet: UNetConfig,
    text_encoder: T5Config | None,
    super_resolution: SuperResolution | None,
    run: RunConfig,
    data: DataFormat,
) -> None:
    """Checks that the architectures fit each other and the data.

    Raises:
      UserError: they do not.
    """
    check_networks(unet, text_encoder, super_resolution, run.diffusion.variance, "config")
    for size in {data.resolution, data.crop or data.resolution}:
        check_training_shape(unet, data.num_frames, size, size)
        if super_resolution is not None and size % super_resolution.factor:
            raise UserError(
                f"data: frames or crops of {size} pixels, expected a multiple of "
                f"super_resolution.factor ({super_resolution.factor})"
            )


def new_model(
    stage: str,
    unet: UNetConfig,
    text_encoder: TextEncoderConfig | str,
    run: RunConfig,
    data: DataFormat,
    captions: Callable[[], list[str]],
    super_resolution: SuperResolution | None = None,
) -> ModelFolder:
    """Makes a model whose parameters are new, except those of an existing text encoder.

    Args:
      stage: Name of the stage.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of a new text encoder, whose tokenizer is trained on the data's
        captions; or the folder of an existing one (see `open_named_text_encoder`), whose parameters
        are lazy tensors in the result.
      run: The run's settings.
      data: The run's data.
      captions: Returns the captions of the data.
      super_resolution: Settings of a super-resolution model.

    Raises:
      UserError: the architectures do not fit each other, the data or the memory.
    """
    if isinstance(text_encoder, str):
        encoder = open_named_text_encoder(text_encoder)
        t5 = from_dict(TextEncoderConfig, encoder.config, f"text_encoder: {text_encoder}").t5
        check_network(unet, t5, super_resolution, run, data)
    else:
        check_network(unet, text_encoder.t5, super_resolution, run, data)
        encoder = _new_text_encoder(text_encoder, captions())
    shapes = unet_shapes(unet)
    check_memory(
        f"unet: {count_parameters(shapes):,} parameters (float32) on {jax.device_count()} devices",
        4 * count_parameters(shapes) // jax.device_count(),
    )
    params = {"unet": shapes, "text_encoder": encoder.params}
    config = _folder_config(
        stage,
        unet,
        run,
        data,
        encoder.config,
        Threshold(),
        SamplingDefaults(),
        super_resolution,
    )
    return ModelFolder(config, params, encoder.tokenizer)


def continued_image_model(
    stage: str,
    init_from: str,
    text_encoder: str | None,
    frozen: Sequence[str],
    run: RunConfig,
    data: DataFormat,
    sampled: str | None,
) -> ModelFolder:
    """Makes the text-to-image model in `init_from`, with the run's data and schedule.

    Args:
      stage: Name of the stage.
      init_from: See `read_start_model`.
      text_encoder: See `read_start_model`.
      frozen: Names of modules that the U-Net must have.
      run: The run's settings.
      data: The run's data.
      sampled: See `read_start_model`.

    Raises:
      UserError: See `read_start_model`; or the network does not suit the text encoder or the data,
        or has no module of a name in `frozen`.
    """
    start = read_start_model(
        init_from, run, data, sampled, images_only=True, text_encoder=text_encoder
    )
    unet = with_dtype(start.model.unet, run)
    check_network(unet, start.model.text_encoder, None, run, data)
    check_module_names(frozen, start.unet_params, start.folder)
    return continued_model(stage, start, unet, start.unet_params, run, data)


def continued_model(
    stage: str,
    start: StartModel,
    unet: UNetConfig,
    unet_params: Tree,
    run: RunConfig,
    data: DataFormat,
    super_resolution: SuperResolution | None = None,
) -> ModelFolder:
    """Makes a model of `unet_params` and of the other parts of the start model.

    Args:
      stage: Name of the stage.
      start: The model that the stage starts from.
      unet: Architecture of the U-Net.
      unet_params: Parameters of the U-Net.
      run: The run's settings.
      data: The run's data.
      super_resolution: Settings of a super-resolution model.
    """
    text_encoder = start.content.config["text_encoder"]
    config = _folder_config(
        stage,
        unet,
        run,
        data,
        text_encoder,
        start.model.threshold,
        start.model.sampling,
        super_resolution,
    )
    return ModelFolder(
        config, {**start.content.params, "unet": unet_params}, start.content.tokenizer
    )


def with_dtype(unet: UNetConfig, run: RunConfig) -> UNetConfig:
    """Returns the architecture with the run's compute type, if the run has one."""
    return replace(unet, dtype=run.dtype or unet.dtype)


def check_module_names(frozen: Sequence[str], unet: Tree, folder: Path) -> None:
    """Checks that each name in the field `frozen` is a module of the U-Net.

    Raises:
      UserError: a name is not.
    """
    paths = [path.split("/") for path in flatten(unet)]
    for name in frozen:
        if not any(name in path[:-1] for path in paths):
            modules = sorted({path[-2] for path in paths if len(path) > 1})
            raise UserError(
                f"frozen: the U-Net in {folder} has no module {name!r}, expected some of "
                f"{', '.join(modules)}"
            )


def _folder_config(
    stage: str,
    unet: UNetConfig,
    run: RunConfig,
    data: DataFormat,
    text_encoder: dict[str, Any] | None,
    threshold: Threshold | None,
    sampling: SamplingDefaults,
    super_resolution: SuperResolution | None,
) -> dict[str, Any]:
    """Returns the content of `config.json`; `run.sampling` replaces `sampling`."""
    return {
        "architecture": to_dict(unet),
        "stage": stage,
        "resolution": data.resolution,
        "num_frames": data.num_frames,
        "fps": data.fps,
        "schedule": to_dict(run.diffusion.schedule),
        "prediction": run.diffusion.prediction,
        "variance": run.diffusion.variance,
        "text_encoder": text_encoder,
        "threshold": None if threshold is None else to_dict(threshold),
        "sampling": to_dict(run.sampling or sampling),
        "super_resolution": None if super_resolution is None else to_dict(super_resolution),
    }


def _new_text_encoder(config: TextEncoderConfig, captions: list[str]) -> StoredTextEncoder:
    """Makes a text encoder with new parameters and a tokenizer trained on captions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(captions, config.t5.vocab_size, path)
        tokenizer = path.read_bytes()
    params = text_encoder_shapes(config.t5)
    return StoredTextEncoder(to_dict(config), params, tokenizer)
