"""Text states of a dataset, computed once with a frozen text encoder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stunet.engine import encode_text
from stunet.errors import UserError
from stunet.model import Model
from stunet.weights.trees import flatten

BATCH = 256


def write_text_states(path: Path, captions: Sequence[str], model: Model) -> None:
    """Writes the states of N captions and of the empty one, `[N + 1, L, D]` float16, to `path`."""
    captions = [*captions, ""]
    new = path.with_name(f".{path.name}.new")
    states = None
    for start in tqdm(range(0, len(captions), BATCH), desc="text states", unit="batch"):
        texts = captions[start : start + BATCH]
        # Filled up to one batch size: one compile.
        rows = np.asarray(encode_text(model, texts + [""] * (BATCH - len(texts))))[: len(texts)]
        if states is None:
            shape = (len(captions), *rows.shape[1:])
            states = np.lib.format.open_memmap(new, "w+", np.float16, shape)
        states[start : start + len(texts)] = rows
    states.flush()
    _fingerprint_path(path).write_text(json.dumps({"text_encoder": _fingerprint(model)}) + "\n")
    new.replace(path)


def check_text_states(path: Path, model: Model) -> None:
    """Raises `UserError` unless cached states are there and this model's encoder made them.

    A model without a text encoder takes any of its width.
    """
    hint = "compute them with `python -m experiments.cache_text --config=...`"
    try:
        made_by = json.loads(_fingerprint_path(path).read_text())["text_encoder"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no cached text states at {path}; {hint}") from error
    width = np.load(path, mmap_mode="r").shape[-1]
    if width != model.unet.text_dim:
        raise UserError(
            f"{path} holds states of width {width}; the U-Net reads {model.unet.text_dim}; {hint}"
        )
    if model.text_encoder is not None and made_by != _fingerprint(model):
        raise UserError(f"{path} was made by another text encoder; {hint}")


def _fingerprint_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(model.params["text_encoder"]).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
