"""Cached states of a text encoder: one `[L, D]` float16 array per distinct caption.

    text_states.json      encoder, shape and `captions_per_shard`; written last
    index.npy             `[N]` uint64, sorted digests of the captions
    states_00000.npy ...  `[captions_per_shard, L, D]` float16, in the order of the index
    crc32c_00000.npy ...  `[captions_per_shard]` uint32, checksums of these rows, compared when
                          they are read

An unfinished folder contains `.unfinished.json` instead of `text_states.json`. Finished shards are
kept if the same captions and encoder are written again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from stunet.array_files import Rows, load_array, open_rows, write_array
from stunet.checksums import checksum, report_unchecked
from stunet.errors import UserError, writing
from stunet.files import check_not_lfs_pointer, read_json
from stunet.paths import AnyPath, is_remote, user_path, write_text
from stunet.schema import from_dict, to_dict

FORMAT_VERSION = 1
# 161 MB of T5-XXL's states (77 x 4096). Also the number of captions per call of the encoder.
CAPTIONS_PER_SHARD = 256

DESCRIPTION = "text_states.json"  # written last
_UNFINISHED, _INDEX = ".unfinished.json", "index.npy"
_HINT = "compute the states with `python -m experiments.cache_text --config=...`"
_MAX_SHOWN = 60  # characters of a caption in an error message

Array = TypeVar("Array", Rows, np.ndarray)

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
    """The fields of `text_states.json`.

    Attributes:
      shape: (N, L, D), see `TextStates`.
      has_checksums: Whether there are checksums; older versions wrote none.
    """

    shape: tuple[int, int, int]
    has_checksums: bool = False


@dataclasses.dataclass(frozen=True)
class TextStates:
    """The states in a complete folder. A pickled copy opens the folder again.

    Attributes:
      folder: The folder.
      encoder: Identity of the text encoder that computed the states.
      shape: (N, L, D): distinct captions, tokens per caption, and width.
      captions_per_shard: Rows of every shard except the last.
      has_checksums: Whether the folder has checksums of the rows.
    """

    folder: AnyPath
    encoder: str
    shape: tuple[int, int, int]
    captions_per_shard: int
    has_checksums: bool

    def __reduce__(self):
        return open_text_states, (self.folder,)

    def lookup(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the states of captions, `[len(captions), L, D]` float16.

        Raises:
          UserError: A caption has no states, or a shard is missing, incomplete, damaged or a Git
            LFS pointer.
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
            # Maps are closed after use: thousands of open ones would exceed the system's limits.
            selected = shards == shard
            result[selected] = self._read_rows(int(shard), places[selected])
        return result

    def check(self) -> list[str]:
        """Compares all states with their checksums.

        Returns:
          Names of the files in the folder.

        Raises:
          UserError: A shard is missing, incomplete or damaged.
        """
        names = [DESCRIPTION, _INDEX]
        for shard in range(-(-self.shape[0] // self.captions_per_shard)):
            self._read_rows(shard, np.arange(self._num_rows(shard)))
            names += [find(self.folder, shard).name for find in (_shard_path, _checksum_path)]
        return names

    def _read_rows(self, shard: int, places: np.ndarray) -> np.ndarray:
        rows = self._open_shard(shard)[places]
        if self.has_checksums:
            found = _row_checksums(rows)
            if (found != self._open_checksums(shard)[places]).any():
                raise UserError(
                    f"{_shard_path(self.folder, shard)}: damaged (other checksums than in "
                    f"{_checksum_path(self.folder, shard).name}); delete both files and {_HINT}"
                )
        return rows

    @functools.cached_property
    def _index(self) -> np.ndarray:
        return _open_array(self.folder / _INDEX, np.uint64, self.shape[:1], load_array)

    @functools.cached_property
    def _remote_shards(self) -> dict[int, Rows]:
        return {}

    @functools.cached_property
    def _checksums(self) -> dict[int, np.ndarray]:
        return {}

    def _open_checksums(self, shard: int) -> np.ndarray:
        if shard not in self._checksums:
            path = _checksum_path(self.folder, shard)
            opened = _open_array(path, np.uint32, (self._num_rows(shard),), load_array)
            self._checksums[shard] = np.array(opened)  # does not keep the file open
        return self._checksums[shard]

    def _num_rows(self, shard: int) -> int:
        return min(self.captions_per_shard, self.shape[0] - shard * self.captions_per_shard)

    def _open_shard(self, shard: int) -> Rows:
        if shard in self._remote_shards:
            return self._remote_shards[shard]
        shape = (self._num_rows(shard), *self.shape[1:])
        opened = _open_array(_shard_path(self.folder, shard), np.float16, shape, open_rows)
        if is_remote(self.folder):
            self._remote_shards[shard] = opened
        return opened


def open_text_states(folder: str | AnyPath) -> TextStates:
    """Opens the states in a folder.

    Raises:
      UserError: The folder is missing, incomplete, invalid or of an older format, or a file is a
        Git LFS pointer.
    """
    folder = user_path(folder)  # also prepares a worker process for the use of buckets
    path = folder / DESCRIPTION
    if not path.is_file():
        old = folder.with_name(f"{folder.name}.npy")
        if old.exists():
            raise UserError(f"{old}: text states of an older format, expected {path}; {_HINT}")
        reason = "unfinished" if (folder / _UNFINISHED).exists() else "no such"
        raise UserError(f"{folder}: {reason} text states, expected {DESCRIPTION} in it; {_HINT}")
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {content.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}; {_HINT}"
        )
    found = from_dict(_Description, content, str(path))
    states = TextStates(
        folder, found.encoder, found.shape, found.captions_per_shard, found.has_checksums
    )
    present = {path.name for path in folder.glob("states_*.npy")}
    for shard in range(-(-found.shape[0] // found.captions_per_shard)):
        if (shard_path := _shard_path(folder, shard)).name not in present:
            raise UserError(f"{shard_path}: missing; {_HINT}")
    if _digest_of_index(states._index) != found.index:
        raise UserError(
            f"{folder / _INDEX}: damaged (other SHA-256 than in {DESCRIPTION}); {_HINT}"
        )
    if not found.has_checksums:
        report_unchecked(folder)
    states._open_shard(0)
    return states


def write_text_states(
    folder: str | AnyPath,
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
      folder: Output folder, on disk or in a bucket. Missing parents are created. All processes need
        access to it.
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
    folder = user_path(folder)
    texts, index = _sort_captions(captions)
    plan = _Plan(
        format_version=FORMAT_VERSION,
        encoder=encoder,
        index=_digest_of_index(index),
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
            missing = [k for k in own if not _ensure_complete(folder, k, len(shards[k]))]
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
                    states = _to_float16(rows, shards[k])
                    _checksum_path(folder, k).unlink(missing_ok=True)
                    write_array(_shard_path(folder, k), states)
                    write_array(_checksum_path(folder, k), _row_checksums(states))
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


def _prepare_folder(folder: AnyPath, plan: _Plan, index: np.ndarray) -> None:
    """Deletes what does not belong to the plan. A kill leaves no shards under another plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (".*.new", ".*.part.*"):  # from a killed process, of this or an older version
        for path in folder.glob(pattern):
            path.unlink()
    done, unfinished = folder / DESCRIPTION, folder / _UNFINISHED
    fields = to_dict(plan)
    if not any(_read_plan(path) == fields for path in (done, unfinished)):
        for path in (done, unfinished, *folder.glob("states_*.npy"), *folder.glob("crc32c_*.npy")):
            path.unlink(missing_ok=True)
    write_array(folder / _INDEX, index)
    if not done.exists():
        _write_json(unfinished, fields)


def _finish_folder(folder: AnyPath, plan: _Plan, rows: Sequence[int]) -> None:
    shapes = set()
    for shard, count in enumerate(rows):
        path = _shard_path(folder, shard)
        if not _is_complete(folder, shard, count):
            raise UserError(
                f"{path}: missing or incomplete, expected a folder that all processes share"
            )
        shapes.add(open_rows(path).shape[1:])
    if len(shapes) > 1:
        raise ValueError(f"{folder}: shards of shapes {sorted(shapes)}, expected one shape")
    shape = (sum(rows), *shapes.pop())
    _write_json(
        folder / DESCRIPTION, to_dict(_Description(**vars(plan), shape=shape, has_checksums=True))
    )
    (folder / _UNFINISHED).unlink(missing_ok=True)


def _read_plan(path: AnyPath) -> dict | None:
    """Returns the fields of `_Plan` in a file, or None if it is missing or invalid."""
    try:
        content = read_json(path)
    except UserError:
        return None
    return {field.name: content.get(field.name) for field in dataclasses.fields(_Plan)}


def _shard_path(folder: AnyPath, shard: int) -> AnyPath:
    return folder / f"states_{shard:05d}.npy"


def _checksum_path(folder: AnyPath, shard: int) -> AnyPath:
    return folder / f"crc32c_{shard:05d}.npy"


def _row_checksums(states: np.ndarray) -> np.ndarray:
    """Returns the CRC-32C of each row, `[N]` uint32."""
    return np.array([checksum(row.tobytes()) for row in states], np.uint32)


def _ensure_complete(folder: AnyPath, shard: int, rows: int) -> bool:
    """Writes the checksums of a shard if only they are missing; returns whether it is complete.

    They are missing after a kill, and in folders of older versions.
    """
    if _is_complete(folder, shard, rows):
        return True
    if not _has_states(folder, shard, rows) or _checksum_path(folder, shard).exists():
        return False
    states = open_rows(_shard_path(folder, shard))
    write_array(_checksum_path(folder, shard), _row_checksums(states[np.arange(rows)]))
    return True


def _has_states(folder: AnyPath, shard: int, rows: int) -> bool:
    try:
        states = open_rows(_shard_path(folder, shard))
    except (OSError, ValueError):
        return False
    return states.dtype == np.float16 and len(states.shape) == 3 and states.shape[0] == rows


def _is_complete(folder: AnyPath, shard: int, rows: int) -> bool:
    """Whether states and checksums of a shard exist."""
    try:
        checksums = open_rows(_checksum_path(folder, shard))
    except (OSError, ValueError):
        return False
    is_valid = checksums.dtype == np.uint32 and checksums.shape == (rows,)
    return is_valid and _has_states(folder, shard, rows)


def _digest_of_index(index: np.ndarray) -> str:
    return hashlib.sha256(index.tobytes()).hexdigest()


def _open_array(
    path: AnyPath,
    dtype: type,
    shape: tuple[int, ...],
    open_file: Callable[[AnyPath], Array],
) -> Array:
    """Opens an array of a known shape by `open_rows` or `load_array`.

    Raises:
      UserError: The file is missing, incomplete, another array or a Git LFS pointer.
    """
    check_not_lfs_pointer(path)
    try:
        array = open_file(path)
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


def _write_json(path: AnyPath, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _shorten(caption: str) -> str:
    return repr(caption if len(caption) <= _MAX_SHOWN else f"{caption[: _MAX_SHOWN - 3]}...")
