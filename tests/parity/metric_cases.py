"""Small networks of the metrics, weights and inputs, reproducible on any machine.

The outputs of PyTorch for them are stored in `golden/`, written by `make_golden.py`.
"""

import json
from pathlib import Path

import numpy as np

from stunet.weights.safetensors_io import write_safetensors
from tests.parity.cases import GOLDEN, noise

# An eighth and a sixteenth of the published widths.
I3D_STEM, C3D_WIDTH = 8, 4
# Odd lengths and sizes that are not multiples of strides, for "same" padding on both sides and more
# than one temporal position.
I3D_SHAPE = (2, 17, 200, 218, 3)
C3D_SHAPE = (2, 16, 128, 128, 3)

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
}


def clip(activation):
    """Returns the content of a config.json with one of the two activations."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 20,
        "text_config": TOWER
        | {
            "bos_token_id": TOKENS - 2,
            "eos_token_id": TOKENS - 1,
            "hidden_act": activation,
            "max_position_embeddings": 16,
            "model_type": "clip_text_model",
            "vocab_size": TOKENS,
        },
        "vision_config": TOWER
        | {
            "hidden_act": activation,
            "hidden_size": 32,
            "image_size": 28,
            "model_type": "clip_vision_model",
            "num_attention_heads": 4,
            "patch_size": 7,
        },
    }


SENTENCES = (
    "a red circle moving left",
    "A Café, 12 kilometres away; isn't it? ",
    "  spaces   between\twords and\nlines ",
    "a bouncing, bouncing, bouncing, bouncing, bouncing, bouncing, bouncing green star",
    "",
)
MERGES = ("r e", "re d</w>", "i n", "in g</w>", "s t", "a r</w>", "st ar</w>", "b o", "bo u", "n c")
PICTURE = (45, 61, 3)  # shape of the image to resize


def _alphabet():
    """Returns the printable characters that stand for bytes in GPT-2 and CLIP vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]


def vocabulary():
    """Returns token -> id in CLIP's order: bytes, bytes at the end of a word, merges, specials."""
    bytes_ = _alphabet()
    tokens = [*bytes_, *(f"{byte}</w>" for byte in bytes_)]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


TOKENS = len(vocabulary())


def weight(name, shape):
    """Returns a tensor of a state dict, scaled for activations near 1 and distinct classes."""
    drawn = noise(name, *shape)
    if name.endswith("running_var"):
        return 1 + 0.3 * np.abs(drawn)
    if name == "mean":  # C3D
        return 100 + 10 * drawn
    if name.endswith("weight") and (".bn." in name or "norm" in name or "layrnorm" in name):
        return 1 + 0.1 * drawn
    if len(shape) == 1:
        return 0.1 * drawn
    if "embedding" in name and len(shape) == 2:
        return 0.5 * drawn
    if name == "conv1.weight":  # C3D, input in 0..255
        drawn = drawn / 64
    return drawn * np.sqrt(2 / np.prod(shape[1:], dtype=np.float32))


def video(name, shape):
    """Returns a clip in [-1, 1] with a coarse pattern, which survives pooling."""
    coarse = noise(name, *shape[:2], shape[2] // 8 + 1, shape[3] // 8 + 1, 3)
    fine = coarse.repeat(8, 2).repeat(8, 3)[:, :, : shape[2], : shape[3]]
    return np.clip(0.5 * fine, -1, 1)


def picture():
    """Returns an image `[H, W, 3]` uint8."""
    return (127.5 * (video("picture", (1, 1, *PICTURE))[0, 0] + 1)).astype(np.uint8)


def clip_inputs():
    """Returns normalised images [3, 28, 28, 3], token ids [4, 16] and end token positions."""
    images = noise("clip images", 3, 28, 28, 3)
    rng = np.random.default_rng(7)
    lengths = np.array([16, 5, 2, 9])
    ids = rng.integers(0, TOKENS - 2, (4, 16))
    ids[:, 0] = TOKENS - 2
    ids[np.arange(16) >= lengths[:, None] - 1] = TOKENS - 1
    return images, ids, lengths - 1


def write_weights(path: Path, table) -> Path:
    """Writes a safetensors file with the tensors of a parameter table."""
    write_safetensors(
        path,
        {
            place.name: np.asarray(weight(place.name, place.shape), np.float32)
            for place in table.values()
        },
    )
    return path


def write_clip(folder: Path, activation, table) -> Path:
    """Writes the folder of a CLIP model, as transformers does."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(clip(activation)))
    (folder / "tokenizer.json").write_bytes((GOLDEN / "clip_tokenizer.json").read_bytes())
    write_weights(folder / "model.safetensors", table)
    return folder
