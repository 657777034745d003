"""Building blocks of the model before training, which each stage assembles as it needs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stunet.diffusion import SuperResolution, Threshold
from stunet.errors import UserError
from stunet.model import Model, check_networks, model_from_folder
from stunet.models.t5 import T5Config, TextEncoderConfig, init_text_encoder
from stunet.models.unet import init_unet
from stunet.models.unet_config import UNetConfig, check_video_shape
from stunet.schema import to_dict
from stunet.text import train_tokenizer
from stunet.training.settings import DataFormat, RunConfig
from stunet.weights.inflation import extract_text_to_image
from stunet.weights.model_folder import ModelFolder, find_model_folder, read_model_folder
from stunet.weights.trees import Tree, flatten, is_added, unflatten


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
        """Parameters of the U-Net."""
        return self.content.params["unet"]


def read_start_model(
    init_from: str,
    run: RunConfig,
    data: DataFormat,
    sampled: str | None,
    *,
    images_only: bool = False,
) -> StartModel:
    """Reads the model in `init_from` and checks that it suits the run.

    Args:
      init_from: A model folder, a training workdir or the name of a shipped model.
      run: The run's settings.
      data: The run's data.
      sampled: Name of the config field that lists samples to draw; None if no samples are drawn.
      images_only: Whether to reduce a text-to-video model to its text-to-image part.

    Raises:
      UserError: there is no such model, it has no text encoder but captions or samples need one,
        it predicts something else than `diffusion.prediction`, or it is a conditional model.
    """
    folder = find_model_folder(init_from)
    content = read_model_folder(folder)
    if images_only:
        content = extract_text_to_image(content)
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
    if model.unet.cond_channels:
        raise UserError(
            f"init_from: {folder} is a conditional model, expected an unconditional one (such as "
            "of stage 't2v')"
        )
    return StartModel(folder, content, model)


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
        check_video_shape(unet, data.num_frames, size, size)
        if super_resolution is not None and size % super_resolution.factor:
            raise UserError(
                f"data: frames or crops of {size} pixels, expected a multiple of "
                f"super_resolution.factor ({super_resolution.factor})"
            )


def new_model(
    stage: str,
    unet: UNetConfig,
    text_encoder: TextEncoderConfig,
    run: RunConfig,
    data: DataFormat,
    captions: Callable[[], list[str]],
    super_resolution: SuperResolution | None = None,
) -> ModelFolder:
    """Makes a model with random parameters and a tokenizer trained on the data's captions.

    Args:
      stage: Name of the stage.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder and size of the vocabulary.
      run: The run's settings.
      data: The run's data.
      captions: Returns the captions of the data.
      super_resolution: Settings of a super-resolution model.

    Raises:
      UserError: the architectures do not fit each other or the data.
    """
    check_network(unet, text_encoder.t5, super_resolution, run, data)
    key = jax.random.key(run.seed)
    tokenizer = _train_tokenizer(captions(), text_encoder.t5.vocab_size)
    params = {
        "unet": jax.jit(lambda key: init_unet(unet, key))(jax.random.fold_in(key, 0)),
        "text_encoder": jax.jit(lambda key: init_text_encoder(text_encoder.t5, key))(
            jax.random.fold_in(key, 1)
        ),
    }
    config = _folder_config(
        stage, unet, run, data, to_dict(text_encoder), Threshold(), super_resolution
    )
    return ModelFolder(config, params, tokenizer)


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
        stage, unet, run, data, text_encoder, start.model.threshold, super_resolution
    )
    return ModelFolder(
        config, {**start.content.params, "unet": unet_params}, start.content.tokenizer
    )


def with_dtype(unet: UNetConfig, run: RunConfig) -> UNetConfig:
    """Returns the architecture with the run's compute type, if the run has one."""
    return replace(unet, dtype=run.dtype or unet.dtype)


def cast_frozen_kernels(dtype: str | None, unet: Tree) -> Tree:
    """Casts the kernels of the text-to-image network inside a U-Net.

    Training then computes with the values that are saved. Norms and biases keep their type: they
    are few, norms read them in float32, and for a network that computes in bfloat16 only kernels
    matter (and what `UpsampledConv` sums before its convolution).

    Args:
      dtype: "float32" or "bfloat16"; None changes nothing.
      unet: Parameters of the U-Net.
    """
    if dtype is None:
        return unet
    return unflatten(
        {
            path: leaf.astype(jnp.dtype(dtype)) if is_frozen_kernel(path, leaf) else leaf
            for path, leaf in flatten(unet).items()
        }
    )


def is_frozen_kernel(path: str, leaf: Any) -> bool:
    """Whether a parameter of a U-Net is a kernel of the text-to-image network inside it."""
    return not is_added(path) and len(leaf.shape) > 1


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
    super_resolution: SuperResolution | None,
) -> dict[str, Any]:
    """Returns the content of `config.json`."""
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
        "super_resolution": None if super_resolution is None else to_dict(super_resolution),
    }


def _train_tokenizer(captions: list[str], vocab_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(captions, vocab_size, path)
        return path.read_bytes()
