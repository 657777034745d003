"""CLIP similarity: how well the frames of a clip show what a text says.

Reads a folder as transformers writes it: `config.json`, `model.safetensors` (or shards) and
`tokenizer.json`; ViT-B/32, ViT-L/14 and any other size that its config states.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from stunet.conversion.hub_layout import find_weight_files, open_weight_files
from stunet.errors import UserError
from stunet.evaluation.clip_network import ClipConfig, ImageEncoder, TextEncoder, clip_config
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import parameters, sha256
from stunet.files import read_bytes, read_json
from stunet.weights.trees import Tree

# Of images in 0..1, by CLIP's own training.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXTS_AT_ONCE = 64
FIRST_TOKEN, LAST_TOKEN = "<|startoftext|>", "<|endoftext|>"

_NOT_OURS = ("logit_scale", "position_ids")  # the training's temperature, and a constant
_FAMILIES = {
    "encoder.block.": "these weights are T5's",
    "conv3d.": "these weights are I3D's",
    "visual.transformer.": "these are CLIP's weights by OpenAI's own names; take transformers'",
}


@dataclass(frozen=True, eq=False)
class Clip:
    """Both halves of a CLIP model.

    Attributes:
      images: features are the frames' embeddings, `[B, T, D]`, of length 1.
      config: sizes.
      params: of both halves.
      vocabulary: of the text.
    """

    images: Extractor
    config: ClipConfig
    params: Tree
    vocabulary: tokenizers.Tokenizer

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Embeddings `[N, D]` of length 1; a text of too many tokens is cut."""
        unique = list(dict.fromkeys(prompts))
        tokens, ends = self.tokens(unique)
        size = min(len(unique), TEXTS_AT_ONCE)
        parts = []
        for start in range(0, len(unique), size):
            rows = np.minimum(np.arange(start, start + size), len(unique) - 1)
            with jax.default_matmul_precision("highest"):
                parts.append(_embed_texts(self.config, self.params, tokens[rows], ends[rows]))
        return np.concatenate(parts)[[unique.index(prompt) for prompt in prompts]]

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids `[N, L]` int32, from the first token to the last, and the last's places `[N]`.

        What follows the last is filled up with it; nothing before it sees that.
        """
        first, last = map(self.vocabulary.token_to_id, (FIRST_TOKEN, LAST_TOKEN))
        ids = np.full((len(prompts), self.config.max_tokens), last, np.int32)
        ends = np.zeros(len(prompts), np.int32)
        for row, prompt in enumerate(prompts):
            words = self.vocabulary.encode(prompt, add_special_tokens=False).ids
            words = words[: self.config.max_tokens - 2]
            ids[row, : len(words) + 1] = [first, *words]
            ends[row] = len(words) + 1
        return ids, ends


def similarity(frames: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Mean cosine `[N]` of frames `[N, T, D]` and their text `[N, D]`, all of length 1."""
    return np.einsum("ntd,nd->n", frames, text) / frames.shape[1]


def load_clip(folder: str | Path) -> Clip:
    """Reads the folder of a CLIP model.

    Raises:
      UserError: a file is missing, another model's, or a pickle (with what converts it).
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = clip_config(read_json(path), str(path))
    files = find_weight_files(folder, None)
    tensors = {k: v for k, v in open_weight_files(files).items() if not k.endswith(_NOT_OURS)}
    params = parameters(lambda: init_clip(config, jax.random.key(0)), tensors, folder, _FAMILIES)
    images = Extractor(
        name=f"CLIP ViT, {config.vision.num_hidden_layers} layers of "
        f"{config.vision.hidden_size}, patches of {config.patch_size}",
        features=functools.partial(_embed_frames, config, params),
        resize=Resize(config.image_size, "bicubic"),
        min_frames=1,
        max_frames=None,
        weights_sha256=sha256(files),
    )
    return Clip(images, config, params, _read_vocabulary(folder / "tokenizer.json", config))


def init_clip(config: ClipConfig, key: jax.Array) -> Tree:
    """Initial parameters of both halves."""
    tokens = jnp.zeros((1, config.max_tokens), jnp.int32)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    text = TextEncoder(config).init(key, tokens, tokens[:, 0])["params"]
    return {**text, **ImageEncoder(config).init(key, images)["params"]}


@functools.partial(jax.jit, static_argnums=0)
def _embed_frames(config: ClipConfig, params: Tree, videos: jax.Array) -> jax.Array:
    """`[B, T, S, S, 3]` in [-1, 1] -> `[B, T, D]`."""
    images = ((videos + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)
    images = images.reshape(-1, *videos.shape[2:])
    embedded = ImageEncoder(config).apply({"params": params}, images)
    return _unit(embedded).reshape(*videos.shape[:2], -1)


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(config: ClipConfig, params: Tree, tokens: jax.Array, ends: jax.Array) -> jax.Array:
    """`[N, L]`, `[N]` -> `[N, D]`."""
    return _unit(TextEncoder(config).apply({"params": params}, tokens, ends))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _read_vocabulary(path: Path, config: ClipConfig) -> tokenizers.Tokenizer:
    content = read_bytes(path)
    try:
        vocabulary = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a tokenizer.json: {error}") from error
    for token in (FIRST_TOKEN, LAST_TOKEN):
        if vocabulary.token_to_id(token) is None:
            raise UserError(f"{path}: has no token {token}, as CLIP's has")
    if (size := vocabulary.get_vocab_size()) > config.vocab_size:
        raise UserError(
            f"{path}: has {size} tokens, but the model {config.vocab_size}; it is another model's"
        )
    vocabulary.no_truncation()
    vocabulary.no_padding()
    return vocabulary
