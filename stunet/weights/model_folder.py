"""A model folder: everything that a model is, in files that say so themselves.

    config.json               what `ModelConfig` holds, and the list of the files below
    unet_spatial.safetensors  the T2I parameters, named by path ("mid_block/conv/kernel")
    unet_temporal.safetensors what inflation (and conditioning) added, where there is any
    text_encoder.safetensors  where the text encoder travels with the model
    tokenizer.json            likewise

Weights above the shard size are split: `unet_spatial-00001-of-00003.safetensors`. A folder may name
a `base` beside it: its text encoder and tokenizer are its own, too, and such of its U-Net's
parameters as the folder has none for (what inflation added only if the folder's own is inflated),
changed by low-rank adapters if there is `adapters.safetensors`.
"""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from stunet.errors import UserError
from stunet.files import read_bytes, read_json
from stunet.schema import from_dict, to_dict
from stunet.weights import shipped
from stunet.weights.low_rank import add_adapters
from stunet.weights.safetensors_io import (
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

_OWN_FILE = re.compile(
    r"config\.json|tokenizer\.json"
    r"|(unet_spatial|unet_temporal|text_encoder|adapters)(-\d{5}-of-\d{5})?\.safetensors"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of `ModelFolder.config`.

    Attributes:
      architecture: the U-Net's config, `to_dict` of its dataclass.
      stage: what the network was trained as ("t2i", "style", "t2v", "conditional", "ssr").
      resolution: height and width in pixels.
      num_frames: frames of a training clip, 1 for images.
      fps: their rate in frames per second, None for images.
      schedule: the noise schedule's config.
      prediction: what the network predicts ("eps", "x0", "v").
      variance: how a sampler gets its variance ("fixed_small", "fixed_large", "learned_range").
      text_encoder: the text encoder's config, None for a model fed with encoder states.
      threshold: how a sampler bounds x0, `stunet.diffusion.Threshold`'s fields; None for not at
        all. Its defaults where a folder has no such field.
      super_resolution: what a model that enlarges makes of a clip,
        `stunet.diffusion.SuperResolution`'s fields; None for a model that text is enough for.
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
    """The content of a model folder.

    Attributes:
      config: plain JSON values under the names of `ModelConfig`.
      params: parameter trees by component: "unet", and "text_encoder" where the model
        has its own. Leaves of `read_model_folder` are numpy arrays, bfloat16 ones by `ml_dtypes`;
        those of `open_model_folder` are `LazyTensor`.
      tokenizer: the bytes of its `tokenizer.json`, or None.
    """

    config: dict[str, Any]
    params: dict[str, Tree]
    tokenizer: bytes | None = None


@dataclasses.dataclass(frozen=True)
class _Weights:
    """File names of each part; a part without parameters has none."""

    unet_spatial: tuple[str, ...]
    unet_temporal: tuple[str, ...]
    text_encoder: tuple[str, ...]
    adapters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ConfigFile(ModelConfig):
    """`config.json` as it is on disk."""

    format_version: int
    weights: _Weights
    tokenizer: Literal["tokenizer.json"] | None
    base: str | None = None


def write_model_folder(
    folder: str | Path,
    model: ModelFolder,
    shard_bytes: int = SHARD_BYTES,
    base: str | None = None,
    adapters: Tree | None = None,
) -> None:
    """Writes a model folder, replacing an older one.

    The files are written into a hidden folder beside it, which is then renamed, so that
    a model folder is always whole.

    Args:
      folder: where; missing parents are made.
      model: what; leaves may be numpy or (fully addressable) jax arrays, or those of
        `safetensors_io`, of which one at a time is held.
      shard_bytes: size above which a part's weights are split over several files. A
        single larger array has a file to itself.
      base: the name of a model folder beside this one, whose text encoder and tokenizer are the
        model's. They are left there, and so are parameters of the U-Net that are the same.
      adapters: what the base's parameters are changed by before (`stunet.weights.low_rank`).

    Raises:
      UserError: the config has missing, unknown or mistyped fields, or the folder holds
        something that is no part of a model folder, or it cannot be written, or `base` has
        parameters of other shapes, another text encoder or another tokenizer.
    """
    folder = Path(folder).resolve()  # behind a link, the rename must meet the folder itself
    if not folder.name:
        raise UserError(f"{folder}: no place for a model folder; name one inside it")
    from_dict(ModelConfig, model.config, f"{folder}: config")
    if unknown := model.params.keys() - {"unet", "text_encoder"}:
        raise ValueError(f"unknown components {sorted(unknown)}")
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    own, stored_tokenizer = model.params, model.tokenizer
    if base is not None:
        own, stored_tokenizer = _not_in_base(folder.parent / base, adapters or {}, model), None
    temporal, spatial = partition(own["unet"], is_added)
    parts = {
        "unet_spatial": spatial,
        "unet_temporal": temporal,
        "text_encoder": own.get("text_encoder", {}),
        "adapters": adapters or {},
    }
    try:
        _refuse_foreign(folder)
        shutil.rmtree(new, ignore_errors=True)  # left behind by a process that was killed
        new.mkdir(parents=True)
        weights = _Weights(
            **{part: _save_part(new, part, tree, shard_bytes) for part, tree in parts.items()}
        )
        if stored_tokenizer is not None:
            (new / "tokenizer.json").write_bytes(stored_tokenizer)
        content = {
            "format_version": FORMAT_VERSION,
            **model.config,
            "weights": to_dict(weights),
            "tokenizer": None if stored_tokenizer is None else "tokenizer.json",
            **({} if base is None else {"base": base}),
        }
        config_file = new / "config.json"
        config_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _replace(folder, new, old)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the model folder: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Reads a model folder that `write_model_folder` wrote, with bit-equal parameters.

    Raises:
      UserError: a file is missing, unreadable or incomplete, or `config.json` has
        missing, unknown or mistyped fields, or is of a newer format.
    """
    model = open_model_folder(folder)
    return dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))


def open_model_folder(folder: str | Path) -> ModelFolder:
    """`read_model_folder`, but the parameters stay in their files until they are asked for."""
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
        raise UserError(f"{folder}: its weights contradict each other: {error}") from error
    if stored.base is not None:
        base = _open_base(folder, stored.base)
        there = _unet_of_base(base, parts["adapters"], stored.architecture, folder)
        params["unet"] = unflatten(flatten(there) | flatten(params["unet"]))
        parts["text_encoder"] = base.params.get("text_encoder", {})
        tokenizer = base.tokenizer
    if parts["text_encoder"]:
        params["text_encoder"] = parts["text_encoder"]
    public = [field.name for field in dataclasses.fields(ModelConfig)]
    present = {name: content[name] for name in public if name in content}
    return ModelFolder(present, params, tokenizer)


def _open_base(folder: Path, name: str) -> ModelFolder:
    if Path(name).name != name or name == folder.name:
        raise UserError(f"{folder / 'config.json'}: base is {name!r}; name a folder beside it")
    try:
        return open_model_folder(folder.parent / name)
    except UserError as error:
        raise UserError(f"{folder}: its base: {error}") from error


def _not_in_base(base: Path, adapters: Tree, model: ModelFolder) -> dict[str, Tree]:
    """The parameters that the base has not or has otherwise, with adapters added to those.

    Raises:
      UserError: they differ in shape, or the text encoder or tokenizer differs.
    """
    found = open_model_folder(base)
    unet = _unet_of_base(found, adapters, model.config["architecture"], base)
    there = {"text_encoder": {}, **found.params, "unet": unet}
    here, known = {"text_encoder": {}, **model.params}, flatten(there)
    # Of what was added to a finished model the base may have nothing yet, or not all.
    comparable = partition(here, lambda path: path in known or not is_added(path))[0]
    compare_shapes(comparable, there, str(base))
    differing = {
        path
        for path, leaf in flatten(here).items()
        if path not in known or np.asarray(leaf).tobytes() != np.asarray(known[path]).tobytes()
    }
    for path in sorted(differing):
        if not path.startswith("unet/"):
            raise UserError(f"{base}: {path} has other values than the model's")
    if found.tokenizer != model.tokenizer:
        raise UserError(f"{base}: has another tokenizer than the model's")
    return {"unet": {}, **partition(here, lambda path: path in differing)[0]}


def _unet_of_base(base: ModelFolder, adapters: Tree, architecture: dict, where: Path) -> Tree:
    """Of the base's U-Net what a model of this architecture can share, adapters added."""
    added, images = partition(base.params["unet"], is_added)
    images = _adapted(images, adapters, where)
    return merge(images, added) if architecture.get("temporal") else images


def _adapted(images: Tree, adapters: Tree, where: Path) -> Tree:
    """The base's parameters with a folder's adapters added."""
    try:
        return add_adapters(images, jax.tree.map(np.asarray, adapters))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: adapters that do not fit the base: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: not a model folder: it has no config.json")
    content = read_json(path)
    if type(content.get("format_version")) is not int:
        raise UserError(f"{path}: not a model's config: it has no integer 'format_version'")
    # Before the fields: those of a newer format would only be called unknown.
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {content['format_version']} is newer than this stunet "
            f"reads (up to {FORMAT_VERSION}); install a newer stunet"
        )
    return content


def _save_part(folder: Path, part: str, tree: Tree, shard_bytes: int) -> tuple[str, ...]:
    """Writes one part's weights and returns the names of its files."""
    shards = split_into_shards(flatten(tree), shard_bytes)
    names = shard_file_names(part, len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    return tuple(names)


def _load_part(folder: Path, part: str, names: tuple[str, ...]) -> Tree:
    flat = {}
    for name in names:
        path = folder / name
        if not (_OWN_FILE.fullmatch(name) and name.startswith(part)):
            raise UserError(f"{folder / 'config.json'}: weights.{part}: no file name: '{name}'")
        if not path.is_file():
            raise UserError(f"{path}: missing, although config.json names it")
        flat |= open_safetensors(path)
    return unflatten(flat)


def _refuse_foreign(folder: Path) -> None:
    """A mistaken path must not cost the user the files that are there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, where a model folder should be written")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    for name in names:
        if not _OWN_FILE.fullmatch(name):
            raise UserError(
                f"{folder}: holds '{name}', which is no part of a model folder and would be "
                "lost; choose another folder or move it away"
            )


def _replace(folder: Path, new: Path, old: Path) -> None:
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
    """The model folder that `path` means: itself, the one in a training workdir, or, where nothing
    lies there, the one of that name that comes with the package (`shipped.NAMES`).

    Raises:
      UserError: there is none, naming what is there instead.
    """
    if str(path) in shipped.NAMES and not Path(path).exists():
        return shipped.FOLDER / path
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"{path}: a training workdir without a model yet; it is written at the first "
            "checkpoint, so train on (the same command resumes)"
        )
    if not path.exists():
        raise UserError(
            f"{path}: no such folder; name a model folder, a training workdir or one of the "
            f"models that come with stunet, {', '.join(shipped.NAMES)}"
        )
    raise UserError(
        f"{path}: neither a model folder (no config.json) nor a training workdir (no model/)"
    )
