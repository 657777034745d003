"""Model folders: the file format of a model.

    config.json                `ModelConfig`, and the names of the files below
    unet_spatial.safetensors   text-to-image parameters, named by path ("mid_block/conv/kernel")
    unet_temporal.safetensors  temporal and conditioning parameters, if any
    text_encoder.safetensors   text encoder, if any
    tokenizer.json             tokenizer of the text encoder, if any
    adapters.safetensors       low-rank adapters for parameters of `base`, if any

Weights above the shard size are split: `unet_spatial-00001-of-00003.safetensors`.

A folder can inherit from a sibling folder `base`: the text encoder, the tokenizer and U-Net
parameters that it does not store are read from there. Temporal parameters are inherited only if the
folder's own architecture is inflated. Adapters are added to the inherited text-to-image parameters.

A folder that stores a text encoder also stores its digest (`text_encoder_digest`), which identifies
cached text states. Folders of older versions have none.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from stunet.errors import UserError
from stunet.files import read_bytes, read_json, user_path
from stunet.schema import from_dict, to_dict
from stunet.weights import shipped
from stunet.weights.low_rank import add_adapters
from stunet.weights.safetensors_io import (
    LazyTensor,
    open_safetensors,
    shard_file_names,
    split_into_shards,
    write_safetensors,
)
from stunet.weights.trees import (
    Tree,
    compare_shapes,
    flatten,
    is_added,
    merge,
    partition,
    unflatten,
)

FORMAT_VERSION = 1
SHARD_BYTES = 2 * 10**9

_MODEL_FILE = re.compile(
    r"config\.json|tokenizer\.json"
    r"|(unet_spatial|unet_temporal|text_encoder|adapters)(-\d{5}-of-\d{5})?\.safetensors"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of `ModelFolder.config`.

    Attributes:
      architecture: Fields of `UNetConfig`.
      stage: Training stage: "t2i", "style", "t2v", "conditional" or "ssr".
      resolution: Height and width in pixels.
      num_frames: Frames of a training clip, 1 for images.
      fps: Frames per second of the training clips. None for images.
      schedule: Fields of `stunet.diffusion.Schedule`.
      prediction: Output of the network: "eps", "x0" or "v".
      variance: Variance of the ancestral sampler: "fixed_small", "fixed_large" or "learned_range".
      text_encoder: Fields of `TextEncoderConfig`. None for a model that receives encoder states.
      threshold: Fields of `stunet.diffusion.Threshold`. None samples without a bound on x0. A
        folder without this field uses the defaults.
      super_resolution: Fields of `stunet.diffusion.SuperResolution`. None for a base model.
    """

    architecture: dict
    stage: str
    resolution: int
    num_frames: int
    fps: float | None
    schedule: dict
    prediction: str
    variance: str
    text_encoder: dict | None
    threshold: dict | None = None
    super_resolution: dict | None = None


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """The contents of a model folder.

    Attributes:
      config: JSON values by the field names of `ModelConfig`.
      params: Parameter trees: "unet", and "text_encoder" if the model has one. Leaves are NumPy
        arrays (bfloat16 from `ml_dtypes`) from `read_model_folder`, and `LazyTensor`s from
        `open_model_folder`.
      tokenizer: Contents of `tokenizer.json`. None if the model has no tokenizer.
    """

    config: dict[str, Any]
    params: dict[str, Tree]
    tokenizer: bytes | None = None


@dataclasses.dataclass(frozen=True)
class _Weights:
    """File names of every part. Empty for a part without parameters."""

    unet_spatial: tuple[str, ...]
    unet_temporal: tuple[str, ...]
    text_encoder: tuple[str, ...]
    adapters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ConfigFile(ModelConfig):
    """The fields of `config.json`."""

    format_version: int
    weights: _Weights
    tokenizer: Literal["tokenizer.json"] | None
    base: str | None = None
    text_encoder_digest: str | None = None


def write_model_folder(
    folder: str | Path,
    model: ModelFolder,
    shard_bytes: int = SHARD_BYTES,
    base: str | None = None,
    adapters: Tree | None = None,
) -> None:
    """Writes a model folder, replacing an existing one.

    The files are written to a hidden sibling folder, which is then renamed, so that a model folder
    is complete at any time.

    Args:
      folder: Output folder. Missing parents are created.
      model: Contents. Leaves may be NumPy arrays, fully addressable JAX arrays, or lazy tensors of
        `safetensors_io`, which are read one at a time.
      shard_bytes: Maximum size of a weight file. A larger array gets a file of its own.
      base: Name of a sibling model folder to inherit from. Parameters that are equal there are not
        stored; the text encoder and the tokenizer must be equal.
      adapters: Low-rank adapters (`stunet.weights.low_rank`) to store. They are added to the base's
        parameters before these are compared.

    Raises:
      UserError: The config has missing, unknown or mistyped fields; the folder contains other
        files, or cannot be written; or `base` has other shapes, another text encoder or another
        tokenizer.
    """
    folder = Path(folder).resolve()  # so that the rename replaces a link's target
    if not folder.name:
        raise UserError(f"{folder}: not a valid model folder, expected a folder inside it")
    from_dict(ModelConfig, model.config, f"{folder}: config")
    if unknown := model.params.keys() - {"unet", "text_encoder"}:
        raise ValueError(f"params: unknown keys {sorted(unknown)}, expected unet and text_encoder")
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    params, tokenizer = model.params, model.tokenizer
    if base is not None:
        params, tokenizer = _params_not_in_base(folder.parent / base, adapters or {}, model), None
    temporal, spatial = partition(params["unet"], is_added)
    parts = {
        "unet_spatial": spatial,
        "unet_temporal": temporal,
        "text_encoder": params.get("text_encoder", {}),
        "adapters": adapters or {},
    }
    try:
        _check_replaceable(folder)
        shutil.rmtree(new, ignore_errors=True)  # from a killed process
        new.mkdir(parents=True)
        weights = _Weights(
            **{part: _save_part(new, part, tree, shard_bytes) for part, tree in parts.items()}
        )
        digest = None
        if params.get("text_encoder"):
            written = _load_part(new, "text_encoder", weights.text_encoder)
            digest = _stored_digest(params["text_encoder"]) or text_encoder_digest(written)
        if tokenizer is not None:
            (new / "tokenizer.json").write_bytes(tokenizer)
        content = {
            "format_version": FORMAT_VERSION,
            **model.config,
            "weights": to_dict(weights),
            "tokenizer": None if tokenizer is None else "tokenizer.json",
            **({} if base is None else {"base": base}),
            **({} if digest is None else {"text_encoder_digest": digest}),
        }
        config_file = new / "config.json"
        config_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _replace(folder, new, old)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Reads a model folder. Parameters are bit-identical to those that were written.

    Raises:
      UserError: A file is missing, unreadable or incomplete, or `config.json` has missing, unknown
        or mistyped fields or a newer format version.
    """
    model = open_model_folder(folder)
    return dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))


def open_model_folder(folder: str | Path) -> ModelFolder:
    """Opens a model folder: `read_model_folder` with lazy parameters, which stay on disk."""
    folder = Path(folder)
    path = folder / "config.json"
    content = _read_config(path)
    stored = from_dict(_ConfigFile, content, str(path))
    parts = {part: _load_part(folder, part, names) for part, names in vars(stored.weights).items()}
    tokenizer = None
    if stored.tokenizer is not None:
        tokenizer = read_bytes(folder / stored.tokenizer)
    try:
        params = {"unet": merge(parts["unet_spatial"], parts["unet_temporal"])}
    except ValueError as error:
        raise UserError(f"{folder}: unet_spatial and unet_temporal overlap ({error})") from error
    if stored.base is not None:
        base = _open_base(folder, stored.base)
        inherited = _inherited_unet(base, parts["adapters"], stored.architecture, folder)
        params["unet"] = unflatten(flatten(inherited) | flatten(params["unet"]))
        parts["text_encoder"] = base.params.get("text_encoder", {})
        tokenizer = base.tokenizer
    if parts["text_encoder"]:
        params["text_encoder"] = parts["text_encoder"]
    public = [field.name for field in dataclasses.fields(ModelConfig)]
    present = {name: content[name] for name in public if name in content}
    return ModelFolder(present, params, tokenizer)


def text_encoder_digest(params: Tree) -> str:
    """Returns the SHA-256 of a text encoder's parameters, which identifies cached text states.

    Reads no parameters if all of them are lazy tensors of a model folder that stores the digest.

    Args:
      params: Parameters of the text encoder: arrays or lazy tensors.

    Returns:
      64 hexadecimal digits. The digest covers names and bytes, in the order of names.
    """
    if (stored := _stored_digest(params)) is not None:
        return stored
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        digest.update(path.encode())
        # As JAX loads it (float64 as float32), so that files and devices have the same digest.
        array = np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _stored_digest(params: Tree) -> str | None:
    """Returns the stored digest of the model folder that these lazy tensors belong to.

    None if a tensor was computed or belongs to another folder, or if the folder stores no digest.
    """
    flat = flatten(params)
    folders = {leaf.file.parent if isinstance(leaf, LazyTensor) else None for leaf in flat.values()}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    path = folder / "config.json"
    stored = from_dict(_ConfigFile, _read_config(path), str(path))
    if flatten(_load_part(folder, "text_encoder", stored.weights.text_encoder)) != flat:
        return None
    return stored.text_encoder_digest


def _open_base(folder: Path, name: str) -> ModelFolder:
    if Path(name).name != name or name == folder.name:
        raise UserError(
            f"{folder / 'config.json'}: base is {name!r}, expected the name of a sibling folder"
        )
    try:
        return open_model_folder(folder.parent / name)
    except UserError as error:
        raise UserError(f"{folder}: base: {error}") from error


def _params_not_in_base(base: Path, adapters: Tree, model: ModelFolder) -> dict[str, Tree]:
    """Returns the parameters that the base with adapters does not have or has with other values.

    Raises:
      UserError: Shapes differ, or the text encoder or the tokenizer differs.
    """
    found = open_model_folder(base)
    unet = _inherited_unet(found, adapters, model.config["architecture"], base)
    inherited = {"text_encoder": {}, **found.params, "unet": unet}
    params, available = {"text_encoder": {}, **model.params}, flatten(inherited)
    # The base may lack temporal and conditioning parameters that the model adds.
    comparable = partition(params, lambda path: path in available or not is_added(path))[0]
    compare_shapes(comparable, inherited, str(base))
    differing = {
        path
        for path, leaf in flatten(params).items()
        if path not in available
        or np.asarray(leaf).tobytes() != np.asarray(available[path]).tobytes()
    }
    for path in sorted(differing):
        if not path.startswith("unet/"):
            raise UserError(f"{base}: values of {path} differ from the model's, expected equal")
    if found.tokenizer != model.tokenizer:
        raise UserError(f"{base}: tokenizer.json differs from the model's, expected equal")
    return {"unet": {}, **partition(params, lambda path: path in differing)[0]}


def _inherited_unet(base: ModelFolder, adapters: Tree, architecture: dict, where: Path) -> Tree:
    """Returns the base's U-Net parameters that a model of this architecture inherits.

    Adds the adapters to the text-to-image parameters; names `where` in errors.
    """
    temporal, spatial = partition(base.params["unet"], is_added)
    try:
        spatial = add_adapters(spatial, jax.tree.map(np.asarray, adapters))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: adapters do not fit the base ({error})") from error
    return merge(spatial, temporal) if architecture.get("temporal") else spatial


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: not a model folder (no config.json)")
    content = read_json(path)
    if type(content.get("format_version")) is not int:
        raise UserError(
            f"{path}: format_version is {content.get('format_version')!r}, expected an integer"
        )
    # Check before the fields, which would be reported as unknown for a newer format.
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {content['format_version']}, expected at most "
            f"{FORMAT_VERSION}; install a newer stunet"
        )
    return content


def _save_part(folder: Path, part: str, tree: Tree, shard_bytes: int) -> tuple[str, ...]:
    """Writes the weights of one part and returns the names of its files."""
    shards = split_into_shards(flatten(tree), shard_bytes)
    names = shard_file_names(part, len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    return tuple(names)


def _load_part(folder: Path, part: str, names: tuple[str, ...]) -> Tree:
    flat = {}
    for name in names:
        path = folder / name
        if not (_MODEL_FILE.fullmatch(name) and name.startswith(part)):
            raise UserError(
                f"{folder / 'config.json'}: weights.{part}: invalid file name '{name}', "
                f"expected {part}.safetensors or {part}-00001-of-0000N.safetensors"
            )
        if not path.is_file():
            raise UserError(f"{path}: no such file, but config.json lists it")
        flat |= open_safetensors(path)
    return unflatten(flat)


def _check_replaceable(folder: Path) -> None:
    """Checks that replacing a folder deletes nothing but a model, in case of a mistyped path."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a model folder or a new path")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    for name in names:
        if not _MODEL_FILE.fullmatch(name):
            raise UserError(
                f"{folder}: contains '{name}', which is not part of a model and would be deleted, "
                "expected a model folder or a new path"
            )


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Renames `new` to `folder`; `old` holds the existing folder until that succeeds."""
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        os.rename(new, folder)
        return
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def find_model_folder(path: str | Path) -> Path:
    """Resolves a model folder, a training workdir or the name of a model of the package.

    A name (`shipped.NAMES`) applies only if no such path exists.

    Returns:
      The folder with the model's `config.json`: `path`, its `model/`, or the package's folder.

    Raises:
      UserError: There is no model.
    """
    if str(path) in shipped.NAMES and not Path(path).exists():
        return shipped.FOLDER / path
    path = user_path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{path}: training workdir without model/, which the first checkpoint writes; resume "
            "with the same command"
        )
    if not path.exists():
        raise UserError(
            f"{path}: no such folder, expected a model folder, a training workdir or one of "
            f"{', '.join(shipped.NAMES)}"
        )
    raise UserError(
        f"{path}: no model found, expected config.json (model folder) or model/ (training workdir)"
    )
