"""A cache of text encoder states for the captions of a dataset, for a frozen text encoder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from stunet.errors import UserError
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
    """
    captions = [*captions, ""]
    new = path.with_name(f".{path.name}.new")
    states = None
    for start in tqdm(range(0, len(captions), BATCH), desc="text states", unit="batch"):
        texts = captions[start : start + BATCH]
        # Padded to a constant batch size, so that the encoder is compiled once.
        rows = np.asarray(encode(texts + [""] * (BATCH - len(texts))))[: len(texts)]
        if states is None:
            shape = (len(captions), *rows.shape[1:])
            states = np.lib.format.open_memmap(new, "w+", np.float16, shape)
        states[start : start + len(texts)] = rows
    states.flush()
    _fingerprint_path(path).write_text(json.dumps({"text_encoder": _fingerprint(model)}) + "\n")
    new.replace(path)


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
