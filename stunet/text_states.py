"""Cached states of a text encoder: one `[L, D]` float16 array per distinct caption.

    text_states.json      encoder, shape and `captions_per_shard`; written last
    index.npy             `[N]` uint64, sorted digests of the captions
    states_00000.npy ...  `[captions_per_shard, L, D]` float16, in the order of the index

An unfinished folder contains `.unfinished.json` instead of `text_states.json`. Finished shards are
kept if the same captions and encoder are written again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stunet.errors import UserError, writing
from stunet.files import check_not_lfs_pointer, read_json
from stunet.schema import from_dict, to_dict

FORMAT_VERSION = 1
# 161 MB of T5-XXL's states (77 x 4096). Also the number of captions per call of the encoder.
CAPTIONS_PER_SHARD = 256

_DONE, _UNFINISHED, _INDEX = "text_states.json", ".unfinished.json", "index.npy"
_HINT = "compute the states with `python -m experiments.cache_text --config=...`"
_MAX_SHOWN = 60  # characters of a caption in an error message

# Maps texts to states `[len(texts), L, D]`.
Encode = Callable[[list[str]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What finished shards belong to; shards of another plan are deleted.

    Attributes:
      format_version: Version of the file format.
      encoder: Identity of the text encoder.
      index: SHA-256 of the index.
      captions_per_shard: Rows of every shard except the last.
    """

    format_version: int
    encoder: str
    index: str
    captions_per_shard: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Description(_Plan):
    """The fields of `text_states.json`. `shape` is (N, L, D)."""

    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class TextStates:
    """The states in a complete folder. A pickled copy opens the folder again.

    Attributes:
      folder: The folder.
      encoder: Identity of the text encoder that computed the states.
      shape: (N, L, D): distinct captions, tokens per caption, and width.
      captions_per_shard: Rows of every shard except the last.
    """

    folder: Path
    encoder: str
    shape: tuple[int, int, int]
    captions_per_shard: int

    def __reduce__(self):
        return open_text_states, (self.folder,)

    def lookup(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the states of captions, `[len(captions), L, D]` float16.

        Raises:
          UserError: A caption has no states, or a shard is missing, incomplete or a Git LFS
            pointer.
        """
        keys = np.array([_digest(caption) for caption in captions], np.uint64)
        rows = np.searchsorted(self._index, keys)
        missing = self._index[np.minimum(rows, len(self._index) - 1)] != keys
        if missing.any():
            caption = captions[int(np.argmax(missing))]
            raise UserError(f"{self.folder}: no states of the caption {_shorten(caption)}; {_HINT}")
        result = np.empty((len(rows), *self.shape[1:]), np.float16)
        shards, places = np.divmod(rows, self.captions_per_shard)
        for shard in np.unique(shards):
            # Shards are closed after use: thousands of open maps would exceed the system's limits.
            selected = shards == shard
            result[selected] = self._open_shard(int(shard))[places[selected]]
        return result

    @functools.cached_property
    def _index(self) -> np.ndarray:
        return _open_array(self.folder / _INDEX, np.uint64, self.shape[:1])

    def _open_shard(self, shard: int) -> np.ndarray:
        rows = min(self.captions_per_shard, self.shape[0] - shard * self.captions_per_shard)
        shape = (rows, *self.shape[1:])
        return _open_array(_shard_path(self.folder, shard), np.float16, shape)


def open_text_states(folder: str | Path) -> TextStates:
    """Opens the states in a folder.

    Raises:
      UserError: The folder is missing, incomplete, invalid or of an older format, or a file is a
        Git LFS pointer.
    """
    folder = Path(folder)
    path = folder / _DONE
    if not path.is_file():
        old = folder.with_name(f"{folder.name}.npy")
        if old.exists():
            raise UserError(f"{old}: text states of an older format, expected {path}; {_HINT}")
        reason = "unfinished" if (folder / _UNFINISHED).exists() else "no such"
        raise UserError(f"{folder}: {reason} text states, expected {_DONE} in it; {_HINT}")
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {content.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}; {_HINT}"
        )
    found = from_dict(_Description, content, str(path))
    if min(found.shape) < 1 or found.captions_per_shard < 1:
        raise UserError(
            f"{path}: shape {list(found.shape)} and captions_per_shard {found.captions_per_shard}, "
            "expected positive numbers"
        )
    states = TextStates(folder, found.encoder, found.shape, found.captions_per_shard)
    present = {path.name for path in folder.glob("states_*.npy")}
    for shard in range(-(-found.shape[0] // found.captions_per_shard)):
        if (shard_path := _shard_path(folder, shard)).name not in present:
            raise UserError(f"{shard_path}: missing; {_HINT}")
    _ = states._index  # reports a damaged index here rather than in the first lookup
    states._open_shard(0)
    return states


def write_text_states(
    folder: str | Path,
    captions: Sequence[str],
    encode: Encode,
    encoder: str,
    *,
    captions_per_shard: int = CAPTIONS_PER_SHARD,
    process_index: int = 0,
    process_count: int = 1,
    all_agree: Callable[[bool], bool] = bool,
) -> None:
    """Writes the states of all distinct captions and of the empty one.

    Shards that an earlier call finished are kept if it had the same captions, in any order, and the
    same encoder. States of other captions or another encoder are deleted.

    Args:
      folder: Output folder. Missing parents are created. All processes need access to it.
      captions: Captions of the dataset.
      encode: Maps `captions_per_shard` texts to their states; the last shard is padded with "", so
        that the encoder compiles once.
      encoder: Identity of the text encoder.
      captions_per_shard: Rows of every shard except the last.
      process_index: Index of this process, 0 to `process_count - 1`.
      process_count: Number of processes. Process i writes the shards i, i + n, ...
      all_agree: Returns whether its argument is true in all processes; they call it equally often.

    Raises:
      UserError: The disk is full or read-only, or states are not finite in float16. Finished shards
        are kept.
      ValueError: Two captions have the same digest, or shards differ in shape.
    """
    folder = Path(folder)
    texts, index = _sort_captions(captions)
    plan = _Plan(
        format_version=FORMAT_VERSION,
        encoder=encoder,
        index=hashlib.sha256(index.tobytes()).hexdigest(),
        captions_per_shard=captions_per_shard,
    )
    starts = range(0, len(texts), captions_per_shard)
    shards = [texts[start : start + captions_per_shard] for start in starts]
    first = process_index == 0
    with writing(folder):
        with _in_all(all_agree):
            if first:
                _prepare_folder(folder, plan, index)
        with _in_all(all_agree):
            own = range(process_index, len(shards), process_count)
            missing = [k for k in own if not _is_complete(_shard_path(folder, k), len(shards[k]))]
            total, left = (sum(len(shards[k]) for k in numbers) for numbers in (own, missing))
            with tqdm(
                total=total,
                initial=total - left,
                desc="text states",
                unit=" captions",
                disable=not first,
            ) as progress:
                for k in missing:
                    padding = [""] * (captions_per_shard - len(shards[k]))
                    rows = np.asarray(encode([*shards[k], *padding]))[: len(shards[k])]
                    _write_array(_shard_path(folder, k), _to_float16(rows, shards[k]))
                    progress.update(len(rows))
        with _in_all(all_agree):
            if first:
                _finish_folder(folder, plan, [len(shard) for shard in shards])


def _sort_captions(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the distinct captions and the empty one, in the order of their digests `[N]`."""
    distinct = list(dict.fromkeys([*captions, ""]))
    index = np.fromiter(map(_digest, distinct), np.uint64, len(distinct))
    order = np.argsort(index)
    index = index[order]
    for place in np.flatnonzero(index[1:] == index[:-1]):
        a, b = (_shorten(distinct[order[place + i]]) for i in (0, 1))
        raise ValueError(f"captions: {a} and {b} have the same digest, expected different ones")
    return [distinct[i] for i in order], index


def _digest(caption: str) -> int:
    content = caption.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@contextlib.contextmanager
def _in_all(all_agree: Callable[[bool], bool]) -> Iterator[None]:
    """Waits at the end of the block for all processes, and fails if it failed in one of them."""
    try:
        yield
    except Exception:
        all_agree(False)
        raise
    if not all_agree(True):
        raise UserError("another process of the cluster failed; see its error")


def _prepare_folder(folder: Path, plan: _Plan, index: np.ndarray) -> None:
    """Deletes what does not belong to the plan. A kill leaves no shards under another plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.new"):  # from a killed process
        path.unlink()
    done, unfinished = folder / _DONE, folder / _UNFINISHED
    fields = to_dict(plan)
    if not any(_read_plan(path) == fields for path in (done, unfinished)):
        for path in (done, unfinished, *folder.glob("states_*.npy")):
            path.unlink(missing_ok=True)
    _write_array(folder / _INDEX, index)
    if not done.exists():
        _write_json(unfinished, fields)


def _finish_folder(folder: Path, plan: _Plan, rows: Sequence[int]) -> None:
    shapes = set()
    for shard, count in enumerate(rows):
        path = _shard_path(folder, shard)
        if not _is_complete(path, count):
            raise UserError(
                f"{path}: missing or incomplete, expected a folder that all processes share"
            )
        shapes.add(_load(path).shape[1:])
    if len(shapes) > 1:
        raise ValueError(f"{folder}: shards of shapes {sorted(shapes)}, expected one shape")
    shape = (sum(rows), *shapes.pop())
    _write_json(folder / _DONE, to_dict(_Description(**vars(plan), shape=shape)))
    (folder / _UNFINISHED).unlink(missing_ok=True)


def _read_plan(path: Path) -> dict | None:
    """Returns the fields of `_Plan` in a file, or None if it is missing or invalid."""
    try:
        content = read_json(path)
    except UserError:
        return None
    return {field.name: content.get(field.name) for field in dataclasses.fields(_Plan)}


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"states_{shard:05d}.npy"


def _load(path: Path) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="r")


def _is_complete(path: Path, rows: int) -> bool:
    try:
        array = _load(path)
    except (OSError, ValueError):
        return False
    return array.dtype == np.float16 and array.ndim == 3 and len(array) == rows


def _open_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Maps an array of a known shape.

    Raises:
      UserError: The file is missing, incomplete, another array or a Git LFS pointer.
    """
    check_not_lfs_pointer(path)
    try:
        array = _load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_HINT}") from error
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path}: {array.dtype} of shape {list(array.shape)}, expected "
            f"{np.dtype(dtype)} of shape {list(shape)}; {_HINT}"
        )
    return array


def _to_float16(rows: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float16)
    infinite = ~np.isfinite(rows).all(axis=(1, 2))
    if infinite.any():
        caption = captions[int(np.argmax(infinite))]
        raise UserError(
            f"text encoder: states of the caption {_shorten(caption)} are not finite, expected "
            "values below 65504 (float16)"
        )
    return rows


def _write_array(path: Path, array: np.ndarray) -> None:
    new = path.with_name(f".{path.name}.new")
    with _replacing(path, new), new.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        # `np.save` would report a full disk without its reason, a memory map by a crash (SIGBUS).
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, content: dict) -> None:
    new = path.with_name(f".{path.name}.new")
    with _replacing(path, new):
        new.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _replacing(path: Path, new: Path) -> Iterator[None]:
    try:
        yield
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _shorten(caption: str) -> str:
    return repr(caption if len(caption) <= _MAX_SHOWN else f"{caption[: _MAX_SHOWN - 3]}...")
