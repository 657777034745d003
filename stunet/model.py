"""A model, ready to sample from or to train on: what a model folder says, checked."""

import dataclasses
from pathlib import Path

import jax

from stunet.diffusion import Schedule, SuperResolution, Threshold
from stunet.diffusion.prediction import KINDS
from stunet.diffusion.samplers import VARIANCES
from stunet.errors import UserError
from stunet.models.t5 import T5Config, TextEncoderConfig, init_text_encoder
from stunet.models.unet import UNetConfig, check_video_shape, init_unet
from stunet.schema import from_dict
from stunet.text import Tokenizer, parse_tokenizer
from stunet.weights.model_folder import ModelFolder, find_model_folder, read_model_folder
from stunet.weights.trees import Tree, compare_shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A text-to-video (or text-to-image) model, ready to sample from.

    Attributes:
      unet: the network's config; `unet.temporal` None is a text-to-image model.
      text_encoder: T5's config, `d_model` is `unet.text_dim`; None for a model without one.
      tokenizer: captions to T5's tokens, None likewise.
      schedule: the noise schedule it was trained with.
      prediction: what the network predicts, `eps`, `x0` or `v`.
      variance: of the ancestral sampler: `fixed_small`, `fixed_large` or `learned_range`.
      threshold: how samplers bound x0; None for not at all.
      super_resolution: for a model that enlarges a clip; None for one that text is enough for.
      resolution: height and width in pixels of what it makes.
      num_frames: frames of a training clip, 1 for images.
      fps: their rate in frames per second, None for images.
      params: {"unet": tree}, and "text_encoder" where there is one.
    """

    unet: UNetConfig
    text_encoder: T5Config | None
    tokenizer: Tokenizer | None
    schedule: Schedule
    prediction: str
    variance: str
    threshold: Threshold | None
    super_resolution: SuperResolution | None
    resolution: int
    num_frames: int
    fps: float | None
    params: dict[str, Tree]


def load(path: str | Path) -> Model:
    """Reads a model from a model folder, or from a training workdir's `model/`.

    Raises:
      UserError: there is no model (also: the workdir has no complete checkpoint yet), the
        folder contradicts itself, or its parameters have another shape than its architecture
        (the first differing names, both shapes).
    """
    folder = find_model_folder(path)
    return read(read_model_folder(folder), folder)


def read(content: ModelFolder, folder: Path) -> Model:
    """The model that a model folder's content is; see `load`. `folder` is for messages."""
    model = model_from_folder(content, folder)
    return dataclasses.replace(model, params=jax.device_put(content.params))


def model_from_folder(content: ModelFolder, folder: Path) -> Model:
    """The model that a model folder's content describes, checked; parameters stay where they are.

    Raises:
      UserError: as `load`.
    """
    config, where = content.config, str(folder / "config.json")
    if (config["text_encoder"] is None) != (content.tokenizer is None):
        raise UserError(f"{folder}: has one of text encoder and tokenizer, but not the other")
    unet = from_dict(UNetConfig, config["architecture"], f"{where}: architecture")
    text_encoder = tokenizer = None
    if config["text_encoder"] is not None:
        text = from_dict(TextEncoderConfig, config["text_encoder"], f"{where}: text_encoder")
        text_encoder = text.t5
        where_words = str(folder / "tokenizer.json")
        tokenizer = parse_tokenizer(content.tokenizer, text.max_tokens, where_words)
    threshold = config.get("threshold", {})  # folders from before the field: the defaults
    if threshold is not None:
        threshold = from_dict(Threshold, threshold, f"{where}: threshold")
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
        super_resolution=super_resolution,
        resolution=config["resolution"],
        num_frames=config["num_frames"],
        fps=config["fps"],
        params=content.params,
    )
    _check(model, where)
    compare_shapes(parameter_shapes(unet, text_encoder), content.params, str(folder))
    return model


def parameter_shapes(unet: UNetConfig, text_encoder: T5Config | None) -> dict[str, Tree]:
    """Shapes and dtypes of a model's `params`, without making any."""
    key = jax.random.key(0)
    shapes = {"unet": jax.eval_shape(lambda: init_unet(unet, key))}
    if text_encoder is not None:
        shapes["text_encoder"] = jax.eval_shape(lambda: init_text_encoder(text_encoder, key))
    return shapes


def check_networks(
    unet: UNetConfig,
    text_encoder: T5Config | None,
    super_resolution: SuperResolution | None,
    variance: str,
    where: str,
) -> None:
    """Raises `UserError` where the two networks, and what they are for, do not fit."""
    enlarges = super_resolution is not None
    if unet.in_channels != (6 if enlarges else 3) or unet.noise_level_embedding != enlarges:
        raise UserError(
            f"{where}: the U-Net's in_channels is {unet.in_channels} and noise_level_embedding "
            f"{unet.noise_level_embedding}; "
            f"{'with' if enlarges else 'without'} super_resolution they are "
            f"{'6 and True' if enlarges else '3 and False'}"
        )
    if unet.out_channels not in ((6,) if variance == "learned_range" else (3, 6)):
        raise UserError(
            f"{where}: the U-Net's out_channels is {unet.out_channels}; "
            f"variance '{variance}' needs {'6' if '_r' in variance else '3 or 6'}"
        )
    if text_encoder is not None and unet.text_dim != text_encoder.d_model:
        raise UserError(
            f"{where}: the U-Net's text_dim is {unet.text_dim}, "
            f"but the text encoder's d_model is {text_encoder.d_model}"
        )


def _check(model: Model, where: str) -> None:
    """Raises `UserError` where a model folder's fields contradict each other."""
    for field, choices in (("prediction", KINDS), ("variance", VARIANCES)):
        if (value := getattr(model, field)) not in choices:
            raise UserError(f"{where}: {field} is {value!r}; choose one of {', '.join(choices)}")
    check_networks(model.unet, model.text_encoder, model.super_resolution, model.variance, where)
    text_encoder, tokenizer = model.text_encoder, model.tokenizer
    if text_encoder is not None and tokenizer.vocab_size > text_encoder.vocab_size:
        raise UserError(
            f"{where}: the text encoder's vocab_size is {text_encoder.vocab_size}, "
            f"but tokenizer.json has {tokenizer.vocab_size} tokens"
        )
    try:
        check_video_shape(model.unet, model.num_frames, model.resolution, model.resolution)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
