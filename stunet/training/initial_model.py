"""The model that a stage of training starts from, whole, as a model folder's content."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from stunet.config import to_dict
from stunet.diffusion import Threshold
from stunet.errors import UserError
from stunet.model import (
    Model,
    check_networks,
    describe,
    parameter_shapes,
    refuse_super_resolution,
)
from stunet.models.t5 import T5Config, init_text_encoder
from stunet.models.unet import UNetConfig, check_video_shape, init_unet
from stunet.text import train_tokenizer
from stunet.training.config import TrainConfig
from stunet.weights.inflation import inflate
from stunet.weights.model_folder import ModelFolder, find_model, load_model
from stunet.weights.trees import compare_shapes, flatten


def make_initial_model(config: TrainConfig, captions: Callable[[], list[str]]) -> ModelFolder:
    """The model before the first update.

    "t2i": a random text-to-image network and text encoder, with a tokenizer trained on
    `captions()`. "t2v": the model of `config.init_from`, inflated.

    Raises:
      UserError: `init_from` is no text-to-image model, or the networks fit neither each other
        nor the data's frames.
    """
    key = jax.random.key(config.seed)
    if config.stage == "t2i":
        unet, t5 = _in_dtype(config, config.unet), config.text_encoder.t5
        _check(config, unet, t5)
        text_encoder, threshold = to_dict(config.text_encoder), to_dict(Threshold())
        tokenizer = _train_tokenizer(captions(), t5.vocab_size)
        params = {
            "unet": jax.jit(lambda key: init_unet(unet, key))(jax.random.fold_in(key, 0)),
            "text_encoder": jax.jit(lambda key: init_text_encoder(t5, key))(
                jax.random.fold_in(key, 1)
            ),
        }
    else:
        source = find_model(config.init_from)
        content = load_model(source)
        start = describe(content, source)
        _check_start(config, start, source)
        unet = _in_dtype(config, start.unet)
        _check(config, replace(unet, temporal=config.temporal), start.text_encoder)
        unet, inflated = inflate(content.params["unet"], unet, config.temporal, key)
        text_encoder, tokenizer = content.config["text_encoder"], content.tokenizer
        threshold = None if start.threshold is None else to_dict(start.threshold)
        params = {**content.params, "unet": inflated}

    data = config.data
    folder_config = {
        "architecture": to_dict(unet),
        "stage": config.stage,
        "resolution": data["resolution"],
        "num_frames": data["num_frames"],
        "fps": data["fps"],
        "schedule": to_dict(config.diffusion.schedule),
        "prediction": config.diffusion.prediction,
        "variance": config.diffusion.variance,
        "text_encoder": text_encoder,
        "threshold": threshold,
    }
    return ModelFolder(folder_config, params, tokenizer)


def check_initial_model(config: TrainConfig, model: Model, folder: Path) -> None:
    """Checks that a run that was started from `model`, read from `folder`, is `config`'s.

    Raises:
      UserError: the configured networks have parameters of another shape (the first differing
        names, both shapes), or something else that the run was started with is another now.
    """
    if config.stage == "t2i":
        unet, text_encoder = config.unet, config.text_encoder.t5
    else:
        unet, text_encoder = replace(model.unet, temporal=config.temporal), model.text_encoder
    unet = _in_dtype(config, unet)
    if (unet, text_encoder) != (model.unet, model.text_encoder):  # shapes say most of all
        compare_shapes(parameter_shapes(unet, text_encoder), model.params, str(folder))
    started = replace(model, params={})
    wanted = replace(
        started,
        unet=unet,
        text_encoder=text_encoder,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        **{name: config.data[name] for name in ("resolution", "num_frames", "fps")},
    )
    started, wanted = flatten(to_dict(started)), flatten(to_dict(wanted))
    for path, value in wanted.items():
        if started[path] != value:
            raise UserError(
                f"{folder}: the run was started with {path.replace('/', '.')} {started[path]!r}, "
                f"but the config says {value!r}; resume with the former, or choose another workdir"
            )


def _in_dtype(config: TrainConfig, unet: UNetConfig) -> UNetConfig:
    return replace(unet, dtype=config.dtype or unet.dtype)


def _check_start(config: TrainConfig, start: Model, source: Path) -> None:
    """Raises `UserError` where the stage cannot start from this model."""
    if start.text_encoder is None and not config.data.get("text_states"):
        raise UserError(
            f"init_from {source} has no text encoder, which captions need; "
            f"`stunet import-t5 T5_FOLDER {source}` adds one"
        )
    if start.text_encoder is None and config.sample_prompts:
        raise UserError(
            f"init_from {source} has no text encoder, which sample_prompts need; leave them "
            f"empty, or `stunet import-t5 T5_FOLDER {source}` adds one"
        )
    if start.prediction != config.diffusion.prediction:
        raise UserError(
            f"init_from {source} predicts {start.prediction!r}, but diffusion.prediction is "
            f"{config.diffusion.prediction!r}"
        )
    if start.unet.temporal is not None:
        raise UserError(f"init_from {source} is inflated already; name a text-to-image model")


def _check(config: TrainConfig, unet: UNetConfig, text_encoder: T5Config | None) -> None:
    data = config.data
    refuse_super_resolution(unet, "config")
    check_networks(unet, text_encoder, config.diffusion.variance, "config")
    check_video_shape(unet, data["num_frames"], data["resolution"], data["resolution"])


def _train_tokenizer(captions: list[str], vocab_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(captions, vocab_size, path)
        return path.read_bytes()
