"""Published weights become model folders, and a model folder's spatial part is published."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from stunet.config import from_dict, to_dict
from stunet.diffusion import Schedule, Threshold
from stunet.errors import UserError
from stunet.models.t5 import T5Config, TextEncoderConfig
from stunet.models.unet import UNetConfig
from stunet.text import MAX_TOKENS, load_tokenizer
from stunet.weights import deepfloyd_if, t5_v1_1
from stunet.weights.hub_layout import (
    find_weights,
    match_tensors,
    read_json,
    read_tensors,
    to_ours,
    to_theirs,
    write_component,
)
from stunet.weights.model_folder import ModelFolder, find_model, open_model, save_model
from stunet.weights.sentence_piece import tokenizer_json
from stunet.weights.tensor_files import ChangedTensor
from stunet.weights.trees import Tree

EXPORT_SHARD_BYTES = 10 * 10**9  # as diffusers splits

# Called with the bytes of every tensor that has been read.
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
    folder = source / "unet" if (source / "unet").is_dir() else source
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{source}: neither a pipeline's folder (no unet/) nor a U-Net's (no config.json)"
        )
    described = read_json(path)
    unet = deepfloyd_if.unet_config(described, str(path))
    tensors = read_tensors(find_weights(folder, variant))
    table = deepfloyd_if.renamed(unet)
    expected = {place.name: place.shape for place in table.values()}
    match_tensors(expected, tensors, folder, deepfloyd_if.FAMILIES)

    path = folder.parent / "scheduler" / "scheduler_config.json"
    if folder != source or path.is_file():
        diffusion = deepfloyd_if.read_scheduler(read_json(path), str(path))
    else:
        diffusion = deepfloyd_if.default_scheduler(unet)
    second_stage = unet.noise_level_embedding
    model = ModelFolder(
        {
            "architecture": to_dict(unet),
            "stage": "ssr" if second_stage else "t2i",
            "resolution": described.get("sample_size") or (256 if second_stage else 64),
            "num_frames": 1,
            "fps": None,
            **to_dict(diffusion),
            "text_encoder": None,
        },
        {"unet": to_ours(table, tensors)},
    )
    if (source / "text_encoder").is_dir():
        model = _with_text_encoder(model, source / "text_encoder", variant)
    save_model(target, _watched(model, on_bytes))
    return model


def import_t5(source: Path, target: Path, variant: str | None, on_bytes: OnBytes) -> ModelFolder:
    """Puts a T5 v1.1 encoder into a model folder, in place of what text encoder it has.

    Args:
      source: T5's folder (`config.json`, safetensors, and `tokenizer.json` or `spiece.model`
        there or in a `tokenizer/` beside it), or a pipeline's with a `text_encoder/`.
      target: the model folder, or a training workdir's.
      variant, on_bytes: as for `import_if`.

    Raises:
      UserError: something is missing, is a pickle, is not T5 v1.1, or does not fit the model.
    """
    folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
    target = find_model(target)
    model = _with_text_encoder(open_model(target), folder, variant)
    save_model(target, _watched(model, on_bytes))
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
    model = _watched(open_model(find_model(source)), on_bytes)
    config = model.config
    unet = from_dict(UNetConfig, config["architecture"], f"{source}: architecture").text_to_image()
    threshold = config.get("threshold", {})
    diffusion = deepfloyd_if.Diffusion(
        from_dict(Schedule, config["schedule"], f"{source}: schedule"),
        config["prediction"],
        config["variance"],
        None if threshold is None else from_dict(Threshold, threshold, f"{source}: threshold"),
    )
    described = deepfloyd_if.diffusers_config(unet, config["resolution"])
    scheduler = deepfloyd_if.scheduler_config(diffusion)
    tensors = to_theirs(deepfloyd_if.renamed(unet), model.params["unet"])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; name a new folder")
    new = target.resolve().with_name(f".{target.name}.new")
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
    t5 = t5_v1_1.t5_config(read_json(path), str(path))
    text_dim = model.config["architecture"]["text_dim"]
    if t5.d_model != text_dim:
        raise UserError(f"{path}: d_model is {t5.d_model}; the U-Net reads text of {text_dim}")
    tensors = t5_v1_1.only_encoder(read_tensors(find_weights(folder, variant)))
    table = t5_v1_1.renamed(t5)
    expected = {place.name: place.shape for place in table.values()}
    match_tensors(expected, tensors, folder, t5_v1_1.FAMILIES)
    return dataclasses.replace(
        model,
        config={
            **model.config,
            "text_encoder": to_dict(TextEncoderConfig(t5, max_tokens=MAX_TOKENS)),
        },
        params={**model.params, "text_encoder": to_ours(table, tensors)},
        tokenizer=_tokenizer(folder, t5),
    )


def _tokenizer(folder: Path, t5: T5Config) -> bytes:
    """tokenizer.json's content, from T5's folder or the `tokenizer/` beside it."""
    for place in (folder, folder.parent / "tokenizer"):
        path = place / "tokenizer.json"
        if path.is_file():
            load_tokenizer(path)
            return path.read_bytes()
        if (place / "spiece.model").is_file():
            return tokenizer_json(place / "spiece.model")
    raise UserError(
        f"{folder}: no tokenizer.json or spiece.model, neither there nor in "
        f"{folder.parent / 'tokenizer'}"
    )


def _watched(model: ModelFolder, on_bytes: OnBytes) -> ModelFolder:
    """The same, reporting the size of every tensor that is read."""

    def watch(leaf: Any) -> ChangedTensor:
        def read(array: Any) -> Any:
            on_bytes(array.nbytes)
            return array

        return ChangedTensor(leaf, leaf.shape, read)

    params: dict[str, Tree] = jax.tree.map(watch, model.params)
    return dataclasses.replace(model, params=params)
