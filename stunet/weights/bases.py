"""The base of a model folder: where it is, and whether its weights have changed."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote, resolved, user_path
from stunet.weights.find_model import find_model_folder
from stunet.weights.folder_config import ConfigFile, read_config
from stunet.weights.hub import hub_id_of, is_hub_id


@dataclasses.dataclass(frozen=True)
class Base:
    """A folder that a model folder inherits from.

    Attributes:
      folder: A model folder or a text encoder folder.
      has_unet: Whether it provides parameters of the U-Net, not only the text encoder.
      dtype: Type that kernels of its text-to-image network are cast to when they are read,
        "float32" or "bfloat16". None keeps theirs.
    """

    folder: AnyPath
    has_unet: bool = True
    dtype: str | None = None


def stored_base(folder: AnyPath) -> Base | None:
    """Returns the base of a model folder, or None.

    Raises:
      UserError: The folder's config is missing or invalid, or a base on the hub cannot be
        downloaded.
    """
    path = folder / "config.json"
    stored = read_config(path)
    if stored.base is None:
        return None
    base = base_folder(resolved(folder), stored.base)
    return Base(base, stored.base_unet, stored.base_dtype)


def check_base(folder: AnyPath) -> None:
    """Checks that the base of a folder has the weights that the folder was written for.

    Also computes the digest of a base that does not store it, which `open_model_folder` does not.

    Raises:
      UserError: The base has other weights.
    """
    path = folder / "config.json"
    stored = read_config(path)
    if stored.base is not None and stored.base_digest is not None:
        base = base_folder(resolved(folder), stored.base)
        check_weights(path, stored, weights_digest(base))


def weights_digest(folder: AnyPath) -> str:
    """Returns the SHA-256 of a folder's weights, which identifies it as a base.

    For folders of older versions, which do not store it, returns a digest of the size and of the
    first and last MiB of each file: hashing 23 GB at every start would take minutes.

    Raises:
      UserError: There is no such folder.
    """
    path = folder / "config.json"
    stored = read_config(path)
    if stored.digest is not None:
        return stored.digest
    files = {}
    for name in (name for part in vars(stored.weights).values() for name in part):
        with (folder / name).open("rb") as file:
            files[name] = _sampled_digest(file)
    base = None
    if stored.base is not None:
        base = weights_digest(base_folder(resolved(folder), stored.base))
    return combined_digest(files, base)


def _sampled_digest(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(0, size - 2**20)):
        file.seek(start)
        digest.update(file.read(2**20))
    return digest.hexdigest()


def combined_digest(files: Mapping[str, str], base: str | None) -> str:
    """Returns the digest of a folder from those of its files, by name, and of its base."""
    lines = [f"{digest}  {name}\n" for name, digest in files.items()]
    return hashlib.sha256("".join([*lines, base or ""]).encode()).hexdigest()


def base_folder(folder: AnyPath, name: str) -> AnyPath:
    """Returns the folder that a resolved folder's `base` names. Downloads a base on the hub."""
    if is_hub_id(name):
        return find_model_folder(name)
    if is_remote(name):
        return resolved(user_path(name))
    path = user_path(folder / name if "/" in name else folder.parent / name)
    return resolved(path) if is_remote(path) else Path(os.path.normpath(path))


def base_name(base: AnyPath, folder: AnyPath) -> str:
    """Returns the value of `base` in the config of a folder. Both folders are resolved."""
    if (hub_id := hub_id_of(base)) is not None:
        return str(hub_id)
    if is_remote(folder) and not is_remote(base):
        raise UserError(
            f"{folder}: base {base} is on this machine, expected a base in a bucket or on the hub"
        )
    if base.parent == folder.parent:
        return base.name
    if is_remote(base) and (not is_remote(folder) or _bucket(base) != _bucket(folder)):
        return str(base)
    return Path(os.path.relpath(base, folder)).as_posix()


def _bucket(path: AnyPath) -> str:
    return str(path).split("/")[2]


def check_weights(path: AnyPath, stored: ConfigFile, found: str | None) -> None:
    """Checks that a base has the weights that a config was written for, if both are known."""
    if None not in (stored.base_digest, found) and stored.base_digest != found:
        raise UserError(
            f"{path}: base {base_folder(resolved(path.parent), stored.base)} has other weights "
            f"(digest {found[:16]}), expected those that the folder was written for "
            f"({stored.base_digest[:16]})"
        )
