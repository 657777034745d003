"""Import of published weights into model folders, and export of text-to-image weights."""

import dataclasses
import json
from collections.abc import Callable, Mapping
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
from stunet.conversion.hub_source import find_source
from stunet.conversion.sentence_piece import tokenizer_json
from stunet.diffusion import SuperResolution
from stunet.errors import UserError
from stunet.files import read_bytes, read_json
from stunet.model import model_from_folder, parse_text_encoder
from stunet.models.t5 import TextEncoderConfig
from stunet.paths import AnyPath, resolved
from stunet.schema import to_dict
from stunet.text import MAX_TOKENS
from stunet.weights.find_model import find_model_folder
from stunet.weights.folder_config import folder_kind
from stunet.weights.folder_writing import new_folder
from stunet.weights.model_folder import (
    ModelFolder,
    StoredTextEncoder,
    open_model_folder,
    open_text_encoder,
    storing_folder,
    write_model_folder,
    write_text_encoder_folder,
)
from stunet.weights.safetensors_io import TransformedTensor
from stunet.weights.trees import Tree, compare_shapes

DEEPFLOYD_STAGE_TWO = SuperResolution(factor=4, align_corners=True)  # from 64 to 256 pixels
EXPORT_SHARD_BYTES = 10 * 10**9  # the default of diffusers

# Progress callback: receives the size in bytes of every tensor that was read.
OnBytes = Callable[[int], object]


def import_if(
    source: str | AnyPath, target: AnyPath, variant: str | None, on_bytes: OnBytes
) -> ModelFolder:
    """Converts a DeepFloyd IF pipeline, or one of its U-Nets, to a model folder.

    Copies one tensor at a time and keeps dtypes. Includes the pipeline's text encoder if it has
    one.

    Args:
      source: Folder or hub id of a pipeline (`unet/`, `scheduler/`, optionally `text_encoder/` and
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
    source = find_source(source, ("unet", "text_encoder"), variant)
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
            "sampling": to_dict(deepfloyd_if.sampling_defaults(unet)),
            "text_encoder": None,
        },
        {"unet": from_hub(table, tensors)},
    )
    if (source / "text_encoder").is_dir():
        model = _with_text_encoder(model, _read_t5(source / "text_encoder", variant))
    model_from_folder(model, source)  # checks it
    write_model_folder(
        target, dataclasses.replace(model, params=_with_progress(model.params, on_bytes))
    )
    return model


def import_t5(
    source: str | AnyPath, target: AnyPath, variant: str | None, on_bytes: OnBytes
) -> dict[str, Tree]:
    """Adds a T5 v1.1 encoder to a model, or writes it to a text encoder folder.

    Args:
      source: Folder or hub id of T5 (`config.json`, safetensors, and `tokenizer.json` or
        `spiece.model` there or in a sibling folder `tokenizer/`) or of a pipeline with a
        `text_encoder/`: the encoder is copied. Or a text encoder folder or model folder: the model
        refers to the folder that stores the encoder (`base`).
      target: Model folder, or a training workdir that contains one; a text encoder that it has is
        replaced. Otherwise a text encoder folder, or a new path, which becomes one.
      variant: Variant of the weights; see `import_if`.
      on_bytes: Progress callback.

    Returns:
      The parameters of the new folder and its base, as lazy tensors of the files that were read.

    Raises:
      UserError: A file is missing or a pickle, the weights are not T5 v1.1's, or the encoder does
        not fit the U-Net.
    """
    source = find_source(source, ("text_encoder",), variant)
    is_ours = folder_kind(source) is not None
    folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
    encoder = open_text_encoder(source) if is_ours else _read_t5(folder, variant)
    if not target.exists() or folder_kind(target) == "text_encoder":
        if is_ours:
            raise UserError(f"{target}: not a model, expected one that refers to {source}")
        parse_text_encoder(encoder.config, encoder.tokenizer, source)  # checks it
        params = _with_progress(encoder.params, on_bytes)
        write_text_encoder_folder(target, dataclasses.replace(encoder, params=params))
        return {"text_encoder": encoder.params}
    target = find_model_folder(target)
    model = _with_text_encoder(open_model_folder(target), encoder)
    model_from_folder(model, source)  # checks it
    stored = {"unet": model.params["unet"]} if is_ours else model.params
    write_model_folder(
        target,
        dataclasses.replace(model, params=_with_progress(stored, on_bytes)),
        base=storing_folder(encoder.params) if is_ours else None,
    )
    return model.params


def export_if(
    source: str | AnyPath, target: AnyPath, on_bytes: OnBytes, shard_bytes: int = EXPORT_SHARD_BYTES
) -> None:
    """Writes a model's text-to-image part as `unet/` and `scheduler/` of a diffusers pipeline.

    Keeps dtypes, so that imported weights are exported byte for byte.

    Args:
      source: Model folder, training workdir, hub id or name of a model of the package.
      target: Folder to create.
      on_bytes: Progress callback.
      shard_bytes: Maximum size of a weight file.

    Raises:
      UserError: `source` is not a model, diffusers does not support it, or `target` is not empty or
        cannot be written.
    """
    folder, target = find_model_folder(source), resolved(target)
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
    params = _with_progress(content.params["unet"], on_bytes)
    tensors = to_hub(deepfloyd_if.hub_parameters(unet), params)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: already exists, expected a new or empty folder")
    try:
        with new_folder(target) as new:
            write_component(
                new / "unet", "diffusion_pytorch_model", tensors, unet_json, shard_bytes
            )
            (new / "scheduler").mkdir()
            text = json.dumps(scheduler_json, indent=2) + "\n"
            (new / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from error


def _with_text_encoder(model: ModelFolder, encoder: StoredTextEncoder) -> ModelFolder:
    return dataclasses.replace(
        model,
        config={**model.config, "text_encoder": encoder.config},
        params={**model.params, "text_encoder": encoder.params},
        tokenizer=encoder.tokenizer,
    )


def _read_t5(folder: AnyPath, variant: str | None) -> StoredTextEncoder:
    path = folder / "config.json"
    t5 = t5_v1_1.t5_config_from_transformers(read_json(path), str(path))
    tensors = t5_v1_1.encoder_tensors(open_weight_files(find_weight_files(folder, variant)))
    table = t5_v1_1.hub_parameters(t5)
    _check_tensors(table, tensors, folder, t5_v1_1.ORIGIN_HINTS)
    # IF was trained with lower-case captions.
    text_encoder = TextEncoderConfig(t5, max_tokens=MAX_TOKENS, lower_case=True)
    return StoredTextEncoder(
        to_dict(text_encoder), from_hub(table, tensors), _read_tokenizer(folder)
    )


def _check_tensors(
    table: Mapping[str, HubParameter],
    tensors: Mapping[str, Any],
    folder: AnyPath,
    origin_hints: Mapping[str, str],
) -> None:
    """Checks the names and shapes of a state dict; see `compare_shapes`."""
    expected = {parameter.name: parameter for parameter in table.values()}
    compare_shapes(expected, tensors, str(folder), origin_hints)


def _read_tokenizer(folder: AnyPath) -> bytes:
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


def _with_progress(params: Tree, on_bytes: OnBytes) -> Tree:
    """Wraps tensors so that reading one calls `on_bytes` with its size."""

    def wrap(leaf: Any) -> TransformedTensor:
        def report(array: Any) -> Any:
            on_bytes(array.nbytes)
            return array

        return TransformedTensor(leaf, leaf.shape, report)

    return jax.tree.map(wrap, params)
