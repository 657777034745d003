"""Import of published weights into model folders, and export of text-to-image weights."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from stunet.conversion import deepfloyd_if, t5_v1_1
from stunet.conversion.hub_layout import (
    HubParameter,
    find_weight_files,
    from_hub,
    open_weight_files,
    to_hub,
    write_component,
)
from stunet.conversion.sentence_piece import tokenizer_json
from stunet.diffusion import SuperResolution
from stunet.errors import UserError
from stunet.files import read_bytes, read_json
from stunet.model import model_from_folder
from stunet.models.t5 import TextEncoderConfig
from stunet.schema import to_dict
from stunet.text import MAX_TOKENS
from stunet.weights.model_folder import (
    ModelFolder,
    find_model_folder,
    open_model_folder,
    write_model_folder,
)
from stunet.weights.safetensors_io import TransformedTensor
from stunet.weights.trees import Tree, compare_shapes

DEEPFLOYD_STAGE_TWO = SuperResolution(factor=4, align_corners=True)  # from 64 to 256 pixels
EXPORT_SHARD_BYTES = 10 * 10**9  # the default of diffusers

# Progress callback: receives the size in bytes of every tensor that was read.
OnBytes = Callable[[int], object]


def import_if(source: Path, target: Path, variant: str | None, on_bytes: OnBytes) -> ModelFolder:
    """Converts a DeepFloyd IF pipeline, or one of its U-Nets, to a model folder.

    Copies one tensor at a time and keeps dtypes. Includes the pipeline's text encoder if it has
    one.

    Args:
      source: Folder of a pipeline (`unet/`, `scheduler/`, optionally `text_encoder/` and
        `tokenizer/`) or of a U-Net (`config.json` and safetensors).
      target: Model folder to write.
      variant: Variant of the weights, such as "fp16". None uses those without a variant, else the
        only ones.
      on_bytes: Progress callback.

    Returns:
      The contents of the new folder, as lazy tensors of the files of `source`.

    Raises:
      UserError: A file is missing or a pickle, or the weights are not DeepFloyd IF's.
    """
    source = source.absolute()  # so that "." has a parent
    folder = source / "unet" if (source / "unet").is_dir() else source
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"{source}: no U-Net found, expected unet/ (pipeline) or config.json (U-Net)"
        )
    unet_json = read_json(config_file)
    unet = deepfloyd_if.unet_config_from_diffusers(unet_json, str(config_file))
    tensors = open_weight_files(find_weight_files(folder, variant))
    table = deepfloyd_if.hub_parameters(unet)
    _check_tensors(table, tensors, folder, deepfloyd_if.ORIGIN_HINTS)

    scheduler_file = folder.parent / "scheduler" / "scheduler_config.json"
    if folder != source or scheduler_file.is_file():
        diffusion = deepfloyd_if.scheduler_from_diffusers(
            read_json(scheduler_file), str(scheduler_file)
        )
    else:
        diffusion = deepfloyd_if.default_diffusion_settings(unet)
    is_upscaler = unet.noise_level_embedding
    model = ModelFolder(
        {
            "architecture": to_dict(unet),
            "stage": "ssr" if is_upscaler else "t2i",
            "super_resolution": to_dict(DEEPFLOYD_STAGE_TWO) if is_upscaler else None,
            "resolution": deepfloyd_if.resolution_from_diffusers(unet_json, str(config_file)),
            "num_frames": 1,
            "fps": None,
            **to_dict(diffusion),
            "text_encoder": None,
        },
        {"unet": from_hub(table, tensors)},
    )
    if (source / "text_encoder").is_dir():
        model = _with_text_encoder(model, source / "text_encoder", variant)
    model_from_folder(model, source)  # checks it
    write_model_folder(target, _with_progress(model, on_bytes))
    return model


def import_t5(source: Path, target: Path, variant: str | None, on_bytes: OnBytes) -> ModelFolder:
    """Adds a T5 v1.1 encoder to a model folder, replacing its text encoder if it has one.

    Args:
      source: Folder of T5 (`config.json`, safetensors, and `tokenizer.json` or `spiece.model`
        there or in a sibling folder `tokenizer/`) or of a pipeline with a `text_encoder/`.
      target: Model folder, or a training workdir that contains one.
      variant: Variant of the weights; see `import_if`.
      on_bytes: Progress callback.

    Returns:
      The contents of the new folder, as lazy tensors of the files that were read.

    Raises:
      UserError: A file is missing or a pickle, the weights are not T5 v1.1's, or the encoder does
        not fit the U-Net.
    """
    source, target = source.absolute(), find_model_folder(target)
    folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
    model = _with_text_encoder(open_model_folder(target), folder, variant)
    model_from_folder(model, source)  # checks it
    write_model_folder(target, _with_progress(model, on_bytes))
    return model


def export_if(
    source: Path, target: Path, on_bytes: OnBytes, shard_bytes: int = EXPORT_SHARD_BYTES
) -> None:
    """Writes a model's text-to-image part as `unet/` and `scheduler/` of a diffusers pipeline.

    Keeps dtypes, so that imported weights are exported byte for byte.

    Args:
      source: Model folder, training workdir or name of a model of the package.
      target: Folder to create.
      on_bytes: Progress callback.
      shard_bytes: Maximum size of a weight file.

    Raises:
      UserError: `source` is not a model, diffusers does not support it, or `target` is not empty or
        cannot be written.
    """
    folder, target = find_model_folder(source), target.resolve()
    content = open_model_folder(folder)
    model = model_from_folder(content, folder)
    if model.super_resolution is not None and model.super_resolution.residual_scale:
        raise UserError(
            f"{folder}: super_resolution.residual_scale is "
            f"{model.super_resolution.residual_scale:g}, expected 0 as in diffusers"
        )
    diffusion = deepfloyd_if.DiffusionSettings(
        model.schedule, model.prediction, model.variance, model.threshold
    )
    unet = model.unet.text_to_image()
    unet_json = deepfloyd_if.unet_config_to_diffusers(unet, model.resolution)
    scheduler_json = deepfloyd_if.scheduler_to_diffusers(diffusion)
    params = _with_progress(content, on_bytes).params["unet"]
    tensors = to_hub(deepfloyd_if.hub_parameters(unet), params)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: already exists, expected a new or empty folder")
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)  # from a killed process
        write_component(new / "unet", "diffusion_pytorch_model", tensors, unet_json, shard_bytes)
        (new / "scheduler").mkdir()
        text = json.dumps(scheduler_json, indent=2) + "\n"
        (new / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
        new.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _with_text_encoder(model: ModelFolder, folder: Path, variant: str | None) -> ModelFolder:
    path = folder / "config.json"
    t5 = t5_v1_1.t5_config_from_transformers(read_json(path), str(path))
    tensors = t5_v1_1.encoder_tensors(open_weight_files(find_weight_files(folder, variant)))
    table = t5_v1_1.hub_parameters(t5)
    _check_tensors(table, tensors, folder, t5_v1_1.ORIGIN_HINTS)
    # IF was trained with lower-case captions.
    text_encoder = TextEncoderConfig(t5, max_tokens=MAX_TOKENS, lower_case=True)
    return dataclasses.replace(
        model,
        config={**model.config, "text_encoder": to_dict(text_encoder)},
        params={**model.params, "text_encoder": from_hub(table, tensors)},
        tokenizer=_read_tokenizer(folder),
    )


def _check_tensors(
    table: Mapping[str, HubParameter],
    tensors: Mapping[str, Any],
    folder: Path,
    origin_hints: Mapping[str, str],
) -> None:
    """Checks the names and shapes of a state dict; see `compare_shapes`."""
    expected = {parameter.name: parameter for parameter in table.values()}
    compare_shapes(expected, tensors, str(folder), origin_hints)


def _read_tokenizer(folder: Path) -> bytes:
    """Returns a `tokenizer.json`, from T5's folder or its sibling folder `tokenizer/`."""
    sibling = folder.parent / "tokenizer"
    for location in (folder, sibling):
        path = location / "tokenizer.json"
        if path.is_file():
            return read_bytes(path)
        if (location / "spiece.model").is_file():
            return tokenizer_json(location / "spiece.model")
    raise UserError(
        f"{folder}: no tokenizer found, expected tokenizer.json or spiece.model in it or {sibling}"
    )


def _with_progress(model: ModelFolder, on_bytes: OnBytes) -> ModelFolder:
    """Wraps a model's tensors so that reading one calls `on_bytes` with its size."""

    def wrap(leaf: Any) -> TransformedTensor:
        def report(array: Any) -> Any:
            on_bytes(array.nbytes)
            return array

        return TransformedTensor(leaf, leaf.shape, report)

    params: dict[str, Tree] = jax.tree.map(wrap, model.params)
    return dataclasses.replace(model, params=params)
