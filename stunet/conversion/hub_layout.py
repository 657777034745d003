"""A component's folder as diffusers and transformers write it: config.json and safetensors.

    config.json
    NAME[.VARIANT].safetensors                    whole, or
    NAME[.VARIANT]-00001-of-00002.safetensors ... in shards

Pickles are never read: loading one runs whatever code is in it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import UserError
from stunet.weights.safetensors_io import (
    LazyTensor,
    TransformedTensor,
    open_safetensors,
    shard_file_names,
    split_into_shards,
    write_safetensors,
)
from stunet.weights.trees import Tree, flatten, unflatten

_WEIGHTS = re.compile(
    r"(?P<name>[^.]+?)(\.(?P<variant>[^.]+?))?(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"(\.(?P<older>[^.]+?))?\.safetensors"  # diffusers once named the variant after the shard
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class HubParameter:
    """A parameter's place in a published layout.

    Attributes:
      name: in the state dict there.
      shape: there.
      axes: the transposition that leads from there to ours; None where a 1x1 convolution there
        is a dense layer here.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    def from_hub(self, array: np.ndarray) -> np.ndarray:
        """The array as our network has it."""
        return array[:, :, 0, 0].T if self.axes is None else array.transpose(self.axes)

    @property
    def native_shape(self) -> tuple[int, ...]:
        """Its shape here."""
        if self.axes is None:
            return self.shape[1::-1]
        return tuple(self.shape[axis] for axis in self.axes)

    def to_hub(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_hub`."""
        if self.axes is None:
            return array.T[:, :, None, None]
        return array.transpose(np.argsort(self.axes))


def from_hub(table: Mapping[str, HubParameter], theirs: Mapping[str, Any]) -> Tree:
    """Returns the parameter tree of a state dict; tensors stay on disk."""
    return unflatten(
        {
            path: TransformedTensor(theirs[place.name], place.native_shape, place.from_hub)
            for path, place in table.items()
        }
    )


def to_hub(
    table: Mapping[str, HubParameter], ours: Mapping[str, Any]
) -> dict[str, TransformedTensor]:
    """The state dict that a parameter tree is: the inverse of `from_hub`."""
    flat = flatten(ours)
    return {
        place.name: TransformedTensor(flat[path], place.shape, place.to_hub)
        for path, place in table.items()
    }


def find_weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one copy of a component's weights.

    Args:
      folder: the component's.
      variant: of the copies there, such as "fp16"; None for the plain one, or for the only one.

    Raises:
      UserError: there is none, or only pickles (with the command that converts them), more
        than one that it could be, or a shard is missing.
    """
    copies: dict[tuple[str, str | None, str | None], list[re.Match]] = {}
    names = sorted(path.name for path in folder.iterdir())
    for match in filter(None, map(_WEIGHTS.fullmatch, names)):
        key = match["name"], match["variant"] or match["older"], match["shards"]
        copies.setdefault(key, []).append(match)
    if not copies:
        _refuse_pickles(folder, names)
        raise UserError(f"{folder}: has no safetensors file")
    chosen = [key for key in copies if key[1] == variant]
    if not chosen and variant is None and len(copies) == 1:
        chosen = list(copies)
    if len(chosen) != 1:
        asked = "without a variant" if variant is None else f"of variant '{variant}'"
        found = ", ".join(
            ".".join(filter(None, (name, kind))) + (f" in {int(shards)} files" if shards else "")
            for name, kind, shards in copies
        )
        raise UserError(
            f"{folder}: {len(chosen) or 'no'} weights {asked}; it has {found}: choose one with "
            "--variant, or leave one there"
        )
    files = copies[chosen[0]]
    count = int(chosen[0][2] or 1)
    present = {int(match["shard"] or 1) for match in files}
    if missing := sorted(set(range(1, count + 1)) - present):
        lacking = files[0].string.replace(f"-{files[0]['shard']}-of", f"-{missing[0]:05d}-of")
        raise UserError(f"{folder / lacking}: missing; the weights are in {count} files")
    return [folder / match.string for match in files]


def open_weight_files(files: list[Path]) -> dict[str, LazyTensor]:
    """All tensors of these files, by name; they stay on disk."""
    return {name: tensor for file in files for name, tensor in open_safetensors(file).items()}


def write_component(
    folder: Path, stem: str, tensors: Mapping[str, Any], config: Mapping[str, Any], shard_bytes: int
) -> None:
    """Writes a component's folder, with an index where its weights are in several files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = split_into_shards(tensors, shard_bytes)
    names = shard_file_names(stem, len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, metadata={"format": "pt"})
    if len(names) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {
                t: name for name, shard in zip(names, shards, strict=True) for t in shard
            },
        }
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def pickle_error(path: Path) -> UserError:
    """What to raise where a pickle is named; says how such files become safetensors."""
    command = (
        "import glob, os, torch, safetensors.torch as s; "
        "[s.save_file({k: v.clone().contiguous() for k, v in torch.load(f, 'cpu', "
        "weights_only=True).items()}, os.path.splitext(f)[0] + '.safetensors') "
        f"for f in glob.glob('{path.parent}/*{path.suffix}')]"
    )
    return UserError(
        f"{path}: a pickle, which can run any code when it is read; where torch "
        f'is installed, this converts it: python -c "{command}"'
    )


def _refuse_pickles(folder: Path, names: list[str]) -> None:
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise pickle_error(folder / name)
