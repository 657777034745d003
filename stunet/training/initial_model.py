"""The model that a stage of training starts from, whole, as a model folder's content."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stunet.diffusion import COND_CHANNELS, Threshold
from stunet.errors import UserError
from stunet.model import (
    Model,
    check_networks,
    model_from_folder,
    parameter_shapes,
)
from stunet.models.t5 import T5Config, init_text_encoder
from stunet.models.unet import UNetConfig, check_video_shape, init_unet
from stunet.schema import to_dict
from stunet.text import train_tokenizer
from stunet.training.config import TrainConfig
from stunet.weights.inflation import add_conditioning, extract_text_to_image, inflate
from stunet.weights.model_folder import ModelFolder, find_model_folder, read_model_folder
from stunet.weights.trees import Tree, compare_shapes, flatten, is_added, unflatten


def make_initial_model(config: TrainConfig, captions: Callable[[], list[str]]) -> ModelFolder:
    """The model before the first update.

    With `config.init_from` that model, with what the stage adds to it; otherwise a random network
    and text encoder, with a tokenizer trained on `captions()`.

    Raises:
      UserError: `init_from` is no model that the stage starts from, or the networks fit neither
        each other nor the data's frames.
    """
    key = jax.random.key(config.seed)
    super_resolution = config.super_resolution and to_dict(config.super_resolution)
    if not config.init_from:
        unet, t5 = _new_unet(config), config.text_encoder.t5
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
        source = find_model_folder(config.init_from)
        content = read_model_folder(source)
        if config.stage == "style":
            content = extract_text_to_image(content)
        start = model_from_folder(content, source)
        _check_start(config, start, source)
        unet = _in_dtype(config, start.unet)
        temporal = config.temporal or unet.temporal
        _check(config, replace(unet, temporal=temporal), start.text_encoder)
        if config.stage == "style" or (config.stage == "t2v" and start.unet.temporal is not None):
            enlarged = content.params["unet"]
        elif config.stage == "conditional":
            unet, enlarged = add_conditioning(
                content.params["unet"], unet, COND_CHANNELS, config.cond_in_blocks
            )
        else:
            unet, enlarged = inflate(content.params["unet"], unet, temporal, key)
        _check_frozen(config, enlarged, source)
        text_encoder, tokenizer = content.config["text_encoder"], content.tokenizer
        threshold = None if start.threshold is None else to_dict(start.threshold)
        params = {**content.params, "unet": with_frozen_kernels_in(config.frozen_dtype, enlarged)}

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
        "super_resolution": super_resolution,
    }
    return ModelFolder(folder_config, params, tokenizer)


def with_frozen_kernels_in(dtype: str | None, unet: Tree) -> Tree:
    """The U-Net's parameters, the image model's kernels cast; with None they are as they were.

    What is trained beside them then computes with what is saved. Vectors stay: norms read them in
    float32, and to a network that computes in bfloat16 the kernels alone make no difference (but
    where `UpsampledConv` adds up taps).
    """
    if dtype is None:
        return unet

    def cast(path, leaf):
        return leaf.astype(jnp.dtype(dtype)) if _is_frozen_kernel(path, leaf) else leaf

    return unflatten({path: cast(path, leaf) for path, leaf in flatten(unet).items()})


def _is_frozen_kernel(path: str, leaf: Any) -> bool:
    return not is_added(path) and len(leaf.shape) > 1


def check_initial_model(config: TrainConfig, stage: str, model: Model, folder: Path) -> None:
    """Checks that a run that `stage` started from `model`, read from `folder`, is `config`'s.

    Raises:
      UserError: the configured networks have parameters of another shape (the first differing
        names, both shapes), or something else that the run was started with is another now.
    """
    if stage != config.stage:
        raise UserError(
            f"{folder}: the run was started with stage {stage!r}, but the config says "
            f"{config.stage!r}; choose another workdir"
        )
    if not config.init_from:
        unet, text_encoder = _new_unet(config), config.text_encoder.t5
    else:
        unet = _in_dtype(config, model.unet)
        if config.temporal is not None:
            unet = replace(unet, temporal=config.temporal)
        if config.stage == "conditional":
            unet = replace(unet, cond_in_blocks=config.cond_in_blocks)
        text_encoder = model.text_encoder
    if (unet, text_encoder) != (model.unet, model.text_encoder):  # shapes say most of all
        compare_shapes(parameter_shapes(unet, text_encoder), model.params, str(folder))
    if config.frozen_dtype is not None:
        for path, leaf in flatten(model.params["unet"]).items():
            if _is_frozen_kernel(path, leaf) and leaf.dtype != config.frozen_dtype:
                raise UserError(
                    f"{folder}: the run was started with unet/{path} in {leaf.dtype}, but "
                    f"frozen_dtype is {config.frozen_dtype!r}; choose another workdir"
                )
    _check_frozen(config, model.params["unet"], folder)
    started = replace(model, params={})
    wanted = replace(
        started,
        unet=unet,
        text_encoder=text_encoder,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        super_resolution=config.super_resolution,
        **{name: config.data[name] for name in ("resolution", "num_frames", "fps")},
    )
    started, wanted = flatten(to_dict(started)), flatten(to_dict(wanted))
    for path, value in wanted.items():
        if started[path] != value:
            raise UserError(
                f"{folder}: the run was started with {path.replace('/', '.')} {started[path]!r}, "
                f"but the config says {value!r}; resume with the former, or choose another workdir"
            )


def _check_frozen(config: TrainConfig, unet: Tree, where: Path) -> None:
    paths = [path.split("/") for path in flatten(unet)]
    for name in config.frozen:
        if not any(name in path[:-1] for path in paths):
            modules = sorted({path[-2] for path in paths if len(path) > 1})
            raise UserError(
                f"frozen: no module of the U-Net in {where} is called {name!r}; there are "
                f"{', '.join(modules)}"
            )


def _new_unet(config: TrainConfig) -> UNetConfig:
    return _in_dtype(config, replace(config.unet, temporal=config.temporal))


def _in_dtype(config: TrainConfig, unet: UNetConfig) -> UNetConfig:
    return replace(unet, dtype=config.dtype or unet.dtype)


def _check_start(config: TrainConfig, start: Model, source: Path) -> None:
    """Raises `UserError` where the stage cannot start from this model."""
    if start.text_encoder is None and not config.data.get("text_states"):
        raise UserError(
            f"init_from {source} has no text encoder, which captions need; "
            f"`stunet import-t5 T5_FOLDER {source}` adds one"
        )
    samples = "sample_videos" if config.super_resolution else "sample_prompts"
    if start.text_encoder is None and getattr(config, samples):
        raise UserError(
            f"init_from {source} has no text encoder, which {samples} need; leave them "
            f"empty, or `stunet import-t5 T5_FOLDER {source}` adds one"
        )
    if start.prediction != config.diffusion.prediction:
        raise UserError(
            f"init_from {source} predicts {start.prediction!r}, but diffusion.prediction is "
            f"{config.diffusion.prediction!r}"
        )
    inflated = start.unet.temporal
    if config.stage == "ssr" and inflated is not None:
        raise UserError(f"init_from {source} is inflated already; name a model of images")
    if config.stage == "t2v" and inflated not in (None, config.temporal):
        was, wanted = (flatten(to_dict(temporal)) for temporal in (inflated, config.temporal))
        name = next(name for name in was if was[name] != wanted[name])
        raise UserError(
            f"init_from {source} is inflated already, with temporal.{name} {was[name]!r}, but the "
            f"config says {wanted[name]!r}; go on with the former, or name a model of images"
        )
    if config.stage == "conditional" and inflated is None:
        raise UserError(f"init_from {source} makes images; name a model of stage 't2v'")
    if start.unet.cond_channels:
        raise UserError(
            f"init_from {source} is a conditional model already; name one of stage 't2v'"
        )


def _check(config: TrainConfig, unet: UNetConfig, text_encoder: T5Config | None) -> None:
    data, enlarging = config.data, config.super_resolution
    check_networks(unet, text_encoder, enlarging, config.diffusion.variance, "config")
    for size in {data["resolution"], data.get("crop") or data["resolution"]}:
        check_video_shape(unet, data["num_frames"], size, size)
        if enlarging is not None and size % enlarging.factor:
            raise UserError(
                f"frames (or crops) are {size} pixels wide; super_resolution.factor "
                f"{enlarging.factor} does not divide that"
            )


def _train_tokenizer(captions: list[str], vocab_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(captions, vocab_size, path)
        return path.read_bytes()
