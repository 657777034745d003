"""Model folders: the file format of a model.

    config.json                `ModelConfig`, and the names of the files below
    unet_spatial.safetensors   text-to-image parameters, named by path ("mid_block/conv/kernel")
    unet_temporal.safetensors  temporal and conditioning parameters, if any
    text_encoder.safetensors   text encoder, if any
    tokenizer.json             tokenizer of the text encoder, if any
    adapters.safetensors       low-rank adapters for parameters of `base`, if any
    checksums.json             checksums of the files above (`stunet.checksums`), compared when the
                               folder is opened

Weights above the shard size are split: `unet_spatial-00001-of-00003.safetensors`.

A folder can inherit from another folder `base`: the name of a sibling, a relative path (with "/",
from the folder), an absolute path or gs://BUCKET/PATH. Parts of the model that the folder does not
store are read from there: the text encoder with its tokenizer, and parameters of the U-Net.
Adapters are added to inherited text-to-image parameters. A base may have a base. The config of a
folder with a base has the digest of the base's weights (`base_digest`); the folder is not opened
with other weights.

A folder with a text encoder, stored or inherited, has its digest (`text_encoder_digest`), which
identifies cached text states. Folders of older versions have none.

A text encoder folder is a base for several models. It contains only a text encoder, its tokenizer
and a `config.json` with the fields `text_encoder` and `text_encoder_digest`.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stunet.checksums import (
    CHECKSUMS,
    DamageError,
    check_files,
    report_unchecked,
    write_checksums,
)
from stunet.errors import UserError
from stunet.files import read_bytes
from stunet.models.unet import init_unet
from stunet.models.unet_config import UNetConfig
from stunet.paths import (
    AnyPath,
    resolved,
    user_path,
)
from stunet.schema import from_dict, to_dict
from stunet.weights.bases import (
    base_folder,
    base_name,
    check_weights,
    combined_digest,
    weights_digest,
)
from stunet.weights.folder_config import (
    FORMAT_VERSION,
    ModelConfig,
    WeightFiles,
    file_names,
    is_model_file,
    parse_config,
    read_config,
    read_fields,
)
from stunet.weights.folder_writing import check_replaceable, new_folder
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
    cast_spatial_kernels,
    flatten,
    is_added,
    merge,
    partition,
    unflatten,
)

SHARD_BYTES = 2 * 10**9


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
class StoredTextEncoder:
    """A text encoder in a model folder or in a text encoder folder.

    Attributes:
      config: Fields of `TextEncoderConfig`.
      params: Parameter tree. Leaves are `LazyTensor`s from `open_text_encoder`.
      tokenizer: Contents of `tokenizer.json`.
    """

    config: dict[str, Any]
    params: Tree
    tokenizer: bytes


@dataclasses.dataclass(frozen=True)
class _Contents:
    """A folder with its inherited parts.

    Attributes:
      model: Contents. The config of a text encoder folder has the field `text_encoder` only.
      digest: Digest of the text encoder, if the folder or its base stores it.
      weights_digest: `digest` of the folder's config, if it has one.
    """

    model: ModelFolder
    digest: str | None
    weights_digest: str | None


def write_model_folder(
    folder: str | AnyPath,
    model: ModelFolder,
    shard_bytes: int = SHARD_BYTES,
    base: AnyPath | None = None,
    adapters: Tree | None = None,
    base_unet: bool = True,
    base_dtype: str | None = None,
) -> None:
    """Writes a model folder, replacing an existing one.

    The files are written to a hidden sibling folder, which is then renamed, so that a model folder
    is complete at any time. A folder in a bucket is written to a temporary folder and uploaded,
    `config.json` last; an existing model can be read until the upload is complete, see
    `stunet.paths.upload_folder`.

    Args:
      folder: Output folder. Missing parents are created.
      model: Contents. Leaves may be NumPy arrays, fully addressable JAX arrays, or lazy tensors of
        `safetensors_io`, which are read one at a time. With `base`, parameters may be missing; see
        `without_base`.
      shard_bytes: Maximum size of a weight file. A larger array gets a file of its own.
      base: Model folder or text encoder folder to inherit missing parameters from. The tokenizer
        is inherited together with the text encoder.
      adapters: Low-rank adapters (`stunet.weights.low_rank`) to store, which are added to inherited
        text-to-image parameters.
      base_unet: Whether parameters of the U-Net are inherited, too. False inherits only the text
        encoder.
      base_dtype: Type that inherited kernels of the text-to-image network are cast to when they are
        read, "float32" or "bfloat16". None keeps that of the base.

    Raises:
      UserError: The config has missing, unknown or mistyped fields; the folder contains other
        files, or cannot be written; or `base` is no such folder, inherits from `folder`, or is to
        provide the text encoder but has none or another one than `model` describes.
    """
    folder = resolved(user_path(folder))  # so that the rename replaces a link's target
    from_dict(ModelConfig, model.config, f"{folder}: config")
    if unknown := model.params.keys() - {"unet", "text_encoder"}:
        raise ValueError(f"params: unknown keys {sorted(unknown)}, expected unet and text_encoder")
    content, tokenizer, digest = model.config, model.tokenizer, None
    if base is not None:
        name = base_name(resolved(user_path(base)), folder)
        content = {
            **content,
            "base": name,
            "base_digest": weights_digest(user_path(base)),
            **({} if base_unet else {"base_unet": False}),
            **({} if base_dtype is None else {"base_dtype": base_dtype}),
        }
        inherited = _open_base(folder, name, ())
        if "text_encoder" not in model.params and model.config["text_encoder"] is not None:
            _check_same_text_encoder(base, inherited.model, model)
            tokenizer, digest = None, inherited.digest
    temporal, spatial = partition(model.params["unet"], is_added)
    parts = {
        "unet_spatial": spatial,
        "unet_temporal": temporal,
        "text_encoder": model.params.get("text_encoder", {}),
        "adapters": adapters or {},
    }
    _write_folder(folder, content, parts, tokenizer, digest, shard_bytes)


def write_text_encoder_folder(
    folder: str | AnyPath, encoder: StoredTextEncoder, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a text encoder folder, replacing an existing one; see `write_model_folder`."""
    parts = {"unet_spatial": {}, "unet_temporal": {}, "text_encoder": encoder.params}
    content = {"text_encoder": encoder.config}
    _write_folder(resolved(user_path(folder)), content, parts, encoder.tokenizer, None, shard_bytes)


def without_base(model: ModelFolder, base: AnyPath, adapters: Tree | None = None) -> ModelFolder:
    """Returns a model without the parameters that it can inherit from a base.

    Args:
      model: Complete model.
      base: Folder whose parameters, including the adapters, are compared with the model's.
      adapters: Low-rank adapters that the model's folder will store.

    Raises:
      UserError: `base` is no such folder, or the adapters do not fit it.
    """
    found = _open(base).model
    unet = flatten(_with_adapters(found.params["unet"], adapters or {}, base))
    missing = {
        path: leaf
        for path, leaf in flatten(model.params["unet"]).items()
        if path not in unet or not _is_equal(leaf, unet[path])
    }
    params = {**model.params, "unet": unflatten(missing)}
    own, other = (flatten(m.params.get("text_encoder", {})) for m in (model, found))
    if (
        own.keys() == other.keys()
        and (model.config["text_encoder"], model.tokenizer)
        == (found.config["text_encoder"], found.tokenizer)
        and all(_is_equal(leaf, other[path]) for path, leaf in own.items())
    ):
        params.pop("text_encoder", None)
    return dataclasses.replace(model, params=params)


def read_model_folder(folder: str | AnyPath) -> ModelFolder:
    """Reads a model folder. Parameters are bit-identical to those that were written.

    Raises:
      UserError: A file is missing, unreadable or incomplete, or `config.json` has missing, unknown
        or mistyped fields or a newer format version.
    """
    model = open_model_folder(folder)
    return dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))


def open_model_folder(folder: str | AnyPath) -> ModelFolder:
    """Opens a model folder: `read_model_folder` with lazy parameters, which stay on disk."""
    model = _open(folder).model
    if "architecture" not in model.config:
        raise UserError(f"{folder}: contains a text encoder only, expected a model")
    return model


def open_text_encoder(folder: str | AnyPath) -> StoredTextEncoder:
    """Opens the text encoder of a model folder or a text encoder folder. Reads no parameters.

    Raises:
      UserError: See `read_model_folder`; or the model has no text encoder.
    """
    model = _open(folder).model
    if "text_encoder" not in model.params or model.tokenizer is None:
        raise UserError(
            f"{folder} has no text encoder; add one with `stunet import-t5 T5_FOLDER {folder}`"
        )
    params = model.params["text_encoder"]
    return StoredTextEncoder(model.config["text_encoder"], params, model.tokenizer)


def storing_folder(params: Tree) -> AnyPath | None:
    """Returns the folder that stores all of these parameters.

    None if a parameter is not a `LazyTensor` of that folder, or there is no parameter.
    """
    leaves = flatten(params).values()
    folders = {leaf.file.parent if isinstance(leaf, LazyTensor) else None for leaf in leaves}
    return folders.pop() if len(folders) == 1 else None


@functools.lru_cache
def unet_shapes(config: UNetConfig) -> Tree:
    """Returns the shapes and dtypes of a U-Net's parameters without computing any."""
    return jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))


def _with_sampling(config: dict[str, Any]) -> dict[str, Any]:
    """Moves the steps of older super-resolution models, in `super_resolution`, to `sampling`."""
    if "sampling" in config or "steps" not in (config.get("super_resolution") or {}):
        return config
    settings = dict(config["super_resolution"])
    return {**config, "sampling": {"steps": settings.pop("steps")}, "super_resolution": settings}


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
    folder = storing_folder(params)
    if folder is None or not (folder / "config.json").is_file():
        return None
    path = folder / "config.json"
    stored = read_config(path)
    stored_params = _load_part(folder, "text_encoder", stored.weights.text_encoder)
    if flatten(stored_params) != flatten(params):
        return None
    return stored.text_encoder_digest


def _open(folder: str | AnyPath, derived: tuple[AnyPath, ...] = ()) -> _Contents:
    """Opens a model folder or a text encoder folder.

    Args:
      folder: The folder.
      derived: The folders that inherit from it, resolved.
    """
    folder = user_path(folder)
    path = folder / "config.json"
    is_checked = path.is_file() and _check_files(folder, ["config.json"])
    content = read_fields(path)
    if not is_checked:
        report_unchecked(folder)
    stored = parse_config(path, content)
    _check_files(folder, file_names(stored))
    parts = {part: _load_part(folder, part, names) for part, names in vars(stored.weights).items()}
    encoder, digest = parts["text_encoder"], stored.text_encoder_digest
    tokenizer = None
    if stored.tokenizer is not None:
        tokenizer = read_bytes(folder / stored.tokenizer)
    try:
        unet = merge(parts["unet_spatial"], parts["unet_temporal"])
    except ValueError as error:
        raise UserError(f"{folder}: unet_spatial and unet_temporal overlap ({error})") from error
    if stored.base is not None:
        base = _open_base(folder, stored.base, derived)
        inherited = cast_spatial_kernels(stored.base_dtype, base.model.params["unet"])
        if stored.base_unet:
            unet = unflatten(
                _inherited_unet(inherited, parts["adapters"], stored.architecture, folder)
                | flatten(unet)
            )
        if stored.text_encoder is not None and not encoder:
            _check_digests(path, digest, base.digest, stored.base)
            encoder, tokenizer = base.model.params.get("text_encoder", {}), base.model.tokenizer
            digest = base.digest
        check_weights(path, stored, base.weights_digest)
    params = {"unet": unet, **({"text_encoder": encoder} if encoder else {})}
    public = [field.name for field in dataclasses.fields(ModelConfig)]
    present = {name: content[name] for name in public if name in content}
    model = ModelFolder(_with_sampling(present), params, tokenizer)
    return _Contents(model, digest, stored.digest)


def _check_files(folder: AnyPath, names: list[str]) -> bool:
    try:
        return check_files(folder, names)
    except DamageError as error:
        raise UserError(f"{error} (delete {CHECKSUMS} to accept an intended change)") from error


def _open_base(folder: AnyPath, name: str, derived: tuple[AnyPath, ...]) -> _Contents:
    folder = resolved(folder)
    base = base_folder(folder, name)
    if base in (folder, *derived):
        raise UserError(
            f"{folder / 'config.json'}: base is {name!r}, which inherits from the folder itself"
        )
    try:
        return _open(base, (folder, *derived))
    except UserError as error:
        raise UserError(f"{folder}: base: {error}") from error


def _check_digests(path: AnyPath, expected: str | None, found: str | None, base: str) -> None:
    """Checks that a base has the text encoder that a config was written for."""
    if None not in (expected, found) and expected != found:
        raise UserError(
            f"{path}: base {base!r} has a text encoder with digest {found[:16]}, expected "
            f"{expected[:16]} (text_encoder_digest)"
        )


def _check_same_text_encoder(base: AnyPath, found: ModelFolder, model: ModelFolder) -> None:
    """Checks that a base has the text encoder that a model without one describes."""
    if "text_encoder" not in found.params:
        raise UserError(f"{base}: no text encoder, expected that of the model to write")
    if found.config["text_encoder"] != model.config["text_encoder"]:
        raise UserError(f"{base}: text_encoder differs from the model's, expected equal fields")
    if model.tokenizer not in (None, found.tokenizer):
        raise UserError(f"{base}: tokenizer.json differs from the model's, expected equal")


def _inherited_unet(
    base: Tree, adapters: Tree, architecture: dict, folder: AnyPath
) -> dict[str, Any]:
    """Returns the base's U-Net parameters that an architecture has, by path."""
    unet = flatten(_with_adapters(base, adapters, folder))
    if not unet:
        return {}
    where = f"{folder / 'config.json'}: architecture"
    shapes = flatten(unet_shapes(from_dict(UNetConfig, architecture, where)))
    return {path: leaf for path, leaf in unet.items() if path in shapes}


def _with_adapters(unet: Tree, adapters: Tree, where: AnyPath) -> Tree:
    """Adds adapters to the text-to-image parameters; names `where` in errors."""
    temporal, spatial = partition(unet, is_added)
    try:
        spatial = add_adapters(spatial, jax.tree.map(np.asarray, adapters))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: adapters do not fit the base ({error})") from error
    return merge(spatial, temporal)


def _is_equal(a: Any, b: Any) -> bool:
    """Whether two arrays or lazy tensors are bit-identical."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
    )


def _write_folder(
    folder: AnyPath,
    content: dict[str, Any],
    parts: dict[str, Tree],
    tokenizer: bytes | None,
    digest: str | None,
    shard_bytes: int,
) -> None:
    """Writes the files of a folder, replacing an existing one.

    Args:
      folder: Output folder, resolved.
      content: Fields of `config.json` that do not depend on the files.
      parts: Parameters by the field names of `WeightFiles`.
      tokenizer: Contents of `tokenizer.json`, if any.
      digest: Digest of an inherited text encoder, if known.
      shard_bytes: Maximum size of a weight file.
    """
    if not folder.name or str(folder) == f"gs://{folder.name}":
        raise UserError(f"{folder}: not a valid model folder, expected a folder inside it")

    def write(new: Path) -> None:
        saved = {part: _save_part(new, part, tree, shard_bytes) for part, tree in parts.items()}
        weights = WeightFiles(**{part: tuple(files) for part, files in saved.items()})
        files = {name: digest for part in saved.values() for name, digest in part.items()}
        text_digest = digest
        if parts["text_encoder"]:
            written = _load_part(new, "text_encoder", weights.text_encoder)
            text_digest = _stored_digest(parts["text_encoder"]) or text_encoder_digest(written)
        if tokenizer is not None:
            (new / "tokenizer.json").write_bytes(tokenizer)
        config = {
            "format_version": FORMAT_VERSION,
            **content,
            "weights": to_dict(weights),
            "tokenizer": None if tokenizer is None else "tokenizer.json",
            "digest": combined_digest(files, content.get("base_digest")),
            **({} if text_digest is None else {"text_encoder_digest": text_digest}),
        }
        text = json.dumps(config, indent=2) + "\n"
        (new / "config.json").write_text(text, encoding="utf-8")
        write_checksums(new)

    try:
        check_replaceable(folder)
        with new_folder(folder) as new:
            write(new)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error


def _save_part(folder: Path, part: str, tree: Tree, shard_bytes: int) -> dict[str, str]:
    """Writes the weights of one part and returns the SHA-256 of each file by its name."""
    shards = split_into_shards(flatten(tree), shard_bytes)
    names = shard_file_names(part, len(shards))
    return {
        name: write_safetensors(folder / name, shard)
        for name, shard in zip(names, shards, strict=True)
    }


def _load_part(folder: AnyPath, part: str, names: tuple[str, ...]) -> Tree:
    flat = {}
    for name in names:
        path = folder / name
        if not (is_model_file(name) and name.startswith(part)):
            raise UserError(
                f"{folder / 'config.json'}: weights.{part}: invalid file name '{name}', "
                f"expected {part}.safetensors or {part}-00001-of-0000N.safetensors"
            )
        if not path.is_file():
            raise UserError(f"{path}: no such file, but config.json lists it")
        flat |= open_safetensors(path)
    return unflatten(flat)
