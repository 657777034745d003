"""A model that is ready to sample from or to train, read from a model folder and checked."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from stunet.compiling import set_cpu_flags
from stunet.diffusion import SamplingDefaults, Schedule, SuperResolution, Threshold
from stunet.diffusion.prediction import PREDICTION_KINDS
from stunet.diffusion.samplers import VARIANCES
from stunet.errors import UserError
from stunet.models.t5 import T5Config, TextEncoderConfig, init_text_encoder
from stunet.models.unet_config import UNetConfig, check_video_shape
from stunet.schema import from_dict
from stunet.sharding import flat_mesh, parameter_shardings, put_array
from stunet.text import Tokenizer, parse_tokenizer
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import (
    ModelFolder,
    open_model_folder,
    text_encoder_digest,
    unet_shapes,
)
from stunet.weights.trees import Tree, compare_shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A text-to-video or text-to-image model.

    Attributes:
      unet: Config of the U-Net. A text-to-image model has `unet.temporal` None.
      text_encoder: Config of the T5 encoder; its `d_model` is `unet.text_dim`. None if the model
        has no text encoder.
      tokenizer: Encodes captions for `text_encoder`. None if the model has no text encoder.
      schedule: Noise schedule of the training.
      prediction: Output of the U-Net: "eps", "x0" or "v".
      variance: Variance of the ancestral sampler: "fixed_small", "fixed_large" or "learned_range".
      threshold: Bound on x0 while sampling. None samples without a bound.
      sampling: Sampler, steps and guidance scale of a job that does not state them.
      super_resolution: Settings of a super-resolution model. None for a base model.
      resolution: Height and width of the output in pixels.
      num_frames: Frames of a training clip, 1 for images.
      fps: Frames per second of the training clips. None for images.
      params: Parameter trees: "unet", and "text_encoder" if the model has one.
    """

    unet: UNetConfig
    text_encoder: T5Config | None
    tokenizer: Tokenizer | None
    schedule: Schedule
    prediction: str
    variance: str
    threshold: Threshold | None
    sampling: SamplingDefaults
    super_resolution: SuperResolution | None
    resolution: int
    num_frames: int
    fps: float | None
    params: dict[str, Tree]

    @functools.cached_property
    def text_encoder_digest(self) -> str | None:
        """SHA-256 of the text encoder's parameters, None for a model without a text encoder.

        Read from the model folder if the parameters are its lazy tensors and it stores the digest;
        otherwise computed on the first use, which reads all of them.
        """
        if self.text_encoder is None:
            return None
        return text_encoder_digest(self.params["text_encoder"])


def load(path: str | Path, devices: Sequence[jax.Device] | None = None) -> Model:
    """Loads a model, with its parameters sharded over devices.

    Also sets XLA's CPU flags for fast convolutions (`stunet.compiling.set_cpu_flags`). They take
    effect if JAX has not computed anything before.

    Args:
      path: Model folder, training workdir (its `model/` is loaded), hub id ("hf://OWNER/NAME") or
        the name of a model that comes with the package ("shapes").
      devices: Devices to sample on. None for those of this process. If they include devices of
        other processes of a cluster, all of these have to load and sample together.

    Raises:
      UserError: There is no model (for example, the workdir has no complete checkpoint yet), its
        config contradicts itself, or its parameters do not match its architecture (names the
        first differing parameters with both shapes).
    """
    set_cpu_flags()
    folder = find_model_folder(path)
    # Lazy, so that neither this machine nor a device holds the whole model.
    model = model_from_folder(open_model_folder(folder), folder)
    return on_devices(model, jax.local_devices() if devices is None else devices)


def on_devices(model: Model, devices: Sequence[jax.Device]) -> Model:
    """Returns a model with its parameters sharded over devices; see `load`.

    Args:
      model: Leaves of its parameters are arrays on these devices or on the host, or lazy tensors,
        which are read one at a time.
      devices: Devices to sample on.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        return put_array(leaf, sharding)

    if len(devices) > 1:
        shardings = parameter_shardings(flat_mesh(devices), model.params)
        params = jax.tree.map(put, model.params, shardings)
    else:
        # Also arrays on this device: those on a mesh of one device would give results on that mesh.
        params = jax.tree.map(
            lambda leaf: jax.device_put(
                leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), devices[0]
            ),
            model.params,
        )
    return dataclasses.replace(model, params=params)


def model_from_folder(contents: ModelFolder, folder: Path) -> Model:
    """Builds and checks the model of a folder's contents. Its parameters are not copied or read.

    Args:
      contents: Result of `read_model_folder` or `open_model_folder`.
      folder: Path of the folder, for error messages.

    Raises:
      UserError: See `load`.
    """
    config, where = contents.config, str(folder / "config.json")
    if (config["text_encoder"] is None) != (contents.tokenizer is None):
        present, absent = ("text_encoder", "tokenizer")[:: 1 if contents.tokenizer is None else -1]
        raise UserError(f"{folder}: has a {present} but no {absent}, expected both or neither")
    unet = from_dict(UNetConfig, config["architecture"], f"{where}: architecture")
    text_encoder = tokenizer = None
    if config["text_encoder"] is not None:
        text_encoder, tokenizer = parse_text_encoder(
            config["text_encoder"], contents.tokenizer, folder
        )
    # Folders older than a field use its defaults.
    threshold = config.get("threshold", {})
    if threshold is not None:
        threshold = from_dict(Threshold, threshold, f"{where}: threshold")
    sampling = config.get("sampling") or {}
    super_resolution = config.get("super_resolution")
    if super_resolution is not None:
        super_resolution = from_dict(
            SuperResolution, super_resolution, f"{where}: super_resolution"
        )
    model = Model(
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        schedule=from_dict(Schedule, config["schedule"], f"{where}: schedule"),
        prediction=config["prediction"],
        variance=config["variance"],
        threshold=threshold,
        sampling=from_dict(SamplingDefaults, sampling, f"{where}: sampling"),
        super_resolution=super_resolution,
        resolution=config["resolution"],
        num_frames=config["num_frames"],
        fps=config["fps"],
        params=contents.params,
    )
    _check_model(model, where)
    compare_shapes(parameter_shapes(unet, text_encoder), contents.params, str(folder))
    return model


def parse_text_encoder(
    config: dict[str, Any], tokenizer: bytes, folder: Path
) -> tuple[T5Config, Tokenizer]:
    """Parses the text encoder of a folder.

    Args:
      config: Fields of `TextEncoderConfig`.
      tokenizer: Contents of `tokenizer.json`.
      folder: Path of the folder, for error messages.

    Raises:
      UserError: A field or the tokenizer is invalid, or the tokenizer has more tokens than the text
        encoder.
    """
    where = folder / "config.json"
    text = from_dict(TextEncoderConfig, config, f"{where}: text_encoder")
    parsed = parse_tokenizer(
        tokenizer, text.max_tokens, str(folder / "tokenizer.json"), text.lower_case
    )
    if parsed.vocab_size > text.t5.vocab_size:
        raise UserError(
            f"{where}: the text encoder's vocab_size is {text.t5.vocab_size}, "
            f"expected at least the {parsed.vocab_size} tokens of tokenizer.json"
        )
    return text.t5, parsed


def parameter_shapes(unet: UNetConfig, text_encoder: T5Config | None) -> dict[str, Tree]:
    """Returns the shapes and dtypes of a model's `params` without computing any."""
    shapes = {"unet": unet_shapes(unet)}
    if text_encoder is not None:
        shapes["text_encoder"] = text_encoder_shapes(text_encoder)
    return shapes


def text_encoder_shapes(config: T5Config) -> Tree:
    """Returns the shapes and dtypes of a text encoder's parameters without computing any."""
    return jax.eval_shape(lambda: init_text_encoder(config, jax.random.key(0)))


def check_networks(
    unet: UNetConfig,
    text_encoder: T5Config | None,
    super_resolution: SuperResolution | None,
    variance: str,
    where: str,
) -> None:
    """Checks that the U-Net fits the text encoder, super-resolution and the sampler's variance.

    Raises:
      UserError: A field of the U-Net has another value than the others require; names `where`.
    """
    expected = (3, False) if super_resolution is None else (6, True)
    found = unet.in_channels, unet.noise_level_embedding
    if found != expected:
        raise UserError(
            f"{where}: the U-Net's in_channels is {found[0]} and noise_level_embedding {found[1]}, "
            f"expected {expected[0]} and {expected[1]} "
            f"{'without' if super_resolution is None else 'with'} super_resolution"
        )
    if unet.out_channels not in ((6,) if variance == "learned_range" else (3, 6)):
        raise UserError(
            f"{where}: the U-Net's out_channels is {unet.out_channels}, "
            f"expected {'6' if variance == 'learned_range' else '3 or 6'} for variance {variance!r}"
        )
    if text_encoder is not None and unet.text_dim != text_encoder.d_model:
        raise UserError(
            f"{where}: the U-Net's text_dim is {unet.text_dim}, "
            f"expected the text encoder's d_model, {text_encoder.d_model}"
        )


def _check_model(model: Model, where: str) -> None:
    """Checks that a model's fields agree with each other; names `where` in errors."""
    for field, choices in (("prediction", PREDICTION_KINDS), ("variance", VARIANCES)):
        if (value := getattr(model, field)) not in choices:
            raise UserError(f"{where}: {field} is {value!r}, expected one of {', '.join(choices)}")
    check_networks(model.unet, model.text_encoder, model.super_resolution, model.variance, where)
    try:
        check_video_shape(model.unet, model.num_frames, model.resolution, model.resolution)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
