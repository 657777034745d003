"""Published weights become model folders, and a model folder's spatial part is exported."""

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
from stunet.files import read_json
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

DEEPFLOYD_STAGE_TWO = SuperResolution(factor=4, align_corners=True)  # 64 pixels to 256
EXPORT_SHARD_BYTES = 10 * 10**9  # as diffusers splits

# Called with the size in bytes of every tensor that has been read.
OnBytes = Callable[[int], object]


def import_if(source: Path, target: Path, variant: str | None, on_bytes: OnBytes) -> ModelFolder:
    """Makes a model folder of a DeepFloyd IF pipeline, or of one of its U-Nets.

    Tensors go from file to file one at a time, in the type that they are stored in. A text
    encoder in the pipeline's folder comes along.

    Args:
      source: a pipeline's folder (`unet/`, `scheduler/`, maybe `text_encoder/` and
        `tokenizer/`), or a U-Net's (`config.json` and safetensors).
      target: the model folder.
      variant: of the weights, such as "fp16"; None for the plain ones, or the only ones.
      on_bytes: for progress.

    Returns:
      What was written; its parameters are still in the files of `source`.

    Raises:
      UserError: something is missing, is a pickle, or is not DeepFloyd IF's; one line says what.
    """
    source = source.absolute()  # what lies beside "." is found too
    folder = source / "unet" if (source / "unet").is_dir() else source
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"{source}: neither a pipeline's folder (no unet/) nor a U-Net's (no config.json)"
        )
    described = read_json(config_file)
    unet = deepfloyd_if.unet_config_from_diffusers(described, str(config_file))
    tensors = open_weight_files(find_weight_files(folder, variant))
    table = deepfloyd_if.hub_parameters(unet)
    _compare(table, tensors, folder, deepfloyd_if.ORIGIN_HINTS)

    scheduler_file = folder.parent / "scheduler" / "scheduler_config.json"
    if folder != source or scheduler_file.is_file():
        diffusion = deepfloyd_if.scheduler_from_diffusers(
            read_json(scheduler_file), str(scheduler_file)
        )
    else:
        diffusion = deepfloyd_if.default_diffusion_settings(unet)
    enlarges = unet.noise_level_embedding
    model = ModelFolder(
        {
            "architecture": to_dict(unet),
            "stage": "ssr" if enlarges else "t2i",
            "super_resolution": to_dict(DEEPFLOYD_STAGE_TWO) if enlarges else None,
            "resolution": deepfloyd_if.resolution_from_diffusers(described, str(config_file)),
            "num_frames": 1,
            "fps": None,
            **to_dict(diffusion),
            "text_encoder": None,
        },
        {"unet": from_hub(table, tensors)},
    )
    if (source / "text_encoder").is_dir():
        model = _with_text_encoder(model, source / "text_encoder", variant)
    model_from_folder(model, source)
    write_model_folder(target, _watched(model, on_bytes))
    return model


def import_t5(source: Path, target: Path, variant: str | None, on_bytes: OnBytes) -> ModelFolder:
    """Puts a T5 v1.1 encoder into a model folder, in place of what text encoder it has.

    Args:
      source: T5's folder (`config.json`, safetensors, and `tokenizer.json` or `spiece.model`
        there or in a `tokenizer/` beside it), or a pipeline's with a `text_encoder/`.
      target: the model folder, or a training workdir's.
      variant, on_bytes: as for `import_if`.

    Returns:
      What was written; its parameters are still in the files that they were read from.

    Raises:
      UserError: something is missing, is a pickle, is not T5 v1.1, or does not fit the model.
    """
    source, target = source.absolute(), find_model_folder(target)
    folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
    model = _with_text_encoder(open_model_folder(target), folder, variant)
    model_from_folder(model, source)
    write_model_folder(target, _watched(model, on_bytes))
    return model


def export_if(
    source: Path, target: Path, on_bytes: OnBytes, shard_bytes: int = EXPORT_SHARD_BYTES
) -> None:
    """Writes a model's text-to-image part as a diffusers pipeline's `unet/` and `scheduler/`.

    Tensors keep their type, so what was imported comes out equal, byte for byte.

    Raises:
      UserError: `source` is no model, has something that diffusers cannot describe, or `target`
        is not empty or cannot be written.
    """
    folder, target = find_model_folder(source), target.resolve()
    content = open_model_folder(folder)
    model = model_from_folder(content, folder)
    if model.super_resolution is not None and model.super_resolution.residual_scale:
        raise UserError(
            f"{folder}: makes what an enlarged clip lacks (super_resolution.residual_scale), which "
            "diffusers cannot describe"
        )
    diffusion = deepfloyd_if.DiffusionSettings(
        model.schedule, model.prediction, model.variance, model.threshold
    )
    unet = model.unet.text_to_image()
    described = deepfloyd_if.unet_config_to_diffusers(unet, model.resolution)
    scheduler = deepfloyd_if.scheduler_to_diffusers(diffusion)
    params = _watched(content, on_bytes).params["unet"]
    tensors = to_hub(deepfloyd_if.hub_parameters(unet), params)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; name a new folder")
    new = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)  # left behind by a process that was killed
        write_component(new / "unet", "diffusion_pytorch_model", tensors, described, shard_bytes)
        (new / "scheduler").mkdir()
        text = json.dumps(scheduler, indent=2) + "\n"
        (new / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
        new.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot write: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _with_text_encoder(model: ModelFolder, folder: Path, variant: str | None) -> ModelFolder:
    path = folder / "config.json"
    t5 = t5_v1_1.t5_config_from_transformers(read_json(path), str(path))
    tensors = t5_v1_1.encoder_tensors(open_weight_files(find_weight_files(folder, variant)))
    table = t5_v1_1.hub_parameters(t5)
    _compare(table, tensors, folder, t5_v1_1.ORIGIN_HINTS)
    return dataclasses.replace(
        model,
        config={
            **model.config,
            "text_encoder": to_dict(TextEncoderConfig(t5, max_tokens=MAX_TOKENS)),
        },
        params={**model.params, "text_encoder": from_hub(table, tensors)},
        tokenizer=_tokenizer(folder),
    )


def _compare(
    table: Mapping[str, HubParameter], tensors: Mapping[str, Any], folder: Path, families: Mapping
) -> None:
    expected = {place.name: place for place in table.values()}
    compare_shapes(expected, tensors, str(folder), families)


def _tokenizer(folder: Path) -> bytes:
    """tokenizer.json's content, from T5's folder or the `tokenizer/` beside it."""
    for place in (folder, folder.parent / "tokenizer"):
        path = place / "tokenizer.json"
        if path.is_file():
            return path.read_bytes()
        if (place / "spiece.model").is_file():
            return tokenizer_json(place / "spiece.model")
    raise UserError(
        f"{folder}: no tokenizer.json or spiece.model, neither there nor in "
        f"{folder.parent / 'tokenizer'}"
    )


def _watched(model: ModelFolder, on_bytes: OnBytes) -> ModelFolder:
    """The same, reporting the size of every tensor that is read."""

    def watch(leaf: Any) -> TransformedTensor:
        def read(array: Any) -> Any:
            on_bytes(array.nbytes)
            return array

        return TransformedTensor(leaf, leaf.shape, read)

    params: dict[str, Tree] = jax.tree.map(watch, model.params)
    return dataclasses.replace(model, params=params)
