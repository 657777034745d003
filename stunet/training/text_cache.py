"""A cache of text encoder states for the captions of a dataset, for a frozen text encoder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from stunet.errors import UserError, writing
from stunet.files import check_not_lfs_pointer
from stunet.model import Model
from stunet.weights.trees import flatten

BATCH = 256


def write_text_states(
    path: Path,
    captions: Sequence[str],
    model: Model,
    encode: Callable[[list[str]], jax.Array],
) -> None:
    """Writes the states of N captions and of the empty one, `[N + 1, L, D]` float16.

    Args:
      path: The file, `.npy`. A `.json` file next to it identifies the text encoder.
      captions: Captions in the order of the dataset's records.
      model: Model with the text encoder.
      encode: Maps captions to states `[B, L, D]` of that text encoder.

    Raises:
      UserError: the disk is full or read-only. Existing states are kept.
    """
    captions = [*captions, ""]
    fingerprint = _fingerprint_path(path)
    new, new_fingerprint = (p.with_name(f".{p.name}.new") for p in (path, fingerprint))
    try:
        # Written as a file: a full disk ends a process that writes to a memory map (SIGBUS).
        with writing(path), new.open("wb") as file:
            for start in tqdm(range(0, len(captions), BATCH), desc="text states", unit="batch"):
                texts = captions[start : start + BATCH]
                # Padded to a constant batch size, so that the encoder is compiled once.
                rows = np.asarray(encode(texts + [""] * (BATCH - len(texts))))[: len(texts)]
                if start == 0:
                    shape = (len(captions), *rows.shape[1:])
                    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(rows, "<f2").data)
            file.flush()
            new_fingerprint.write_text(json.dumps({"text_encoder": _fingerprint(model)}) + "\n")
            # States without a fingerprint are refused, so a kill in between mixes nothing.
            fingerprint.unlink(missing_ok=True)
            new.replace(path)
            new_fingerprint.replace(fingerprint)
    finally:
        new.unlink(missing_ok=True)
        new_fingerprint.unlink(missing_ok=True)


def check_text_states(path: Path, model: Model) -> None:
    """Checks that cached states exist and were computed by the model's text encoder.

    For a model without a text encoder, only the width of the states is checked.

    Raises:
      UserError: there are no states, they have another width than the U-Net reads, or another text
        encoder computed them.
    """
    hint = "compute them with `python -m experiments.cache_text --config=...`"
    try:
        stored = json.loads(_fingerprint_path(path).read_text())["text_encoder"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no cached text states; {hint}") from error
    check_not_lfs_pointer(path)
    width = np.load(path, mmap_mode="r").shape[-1]
    if width != model.unet.text_dim:
        raise UserError(
            f"{path}: text states of width {width}, expected {model.unet.text_dim}; {hint}"
        )
    if model.text_encoder is not None and stored != _fingerprint(model):
        raise UserError(f"{path}: text states of another text encoder; {hint}")


def _fingerprint_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(model.params["text_encoder"]).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
