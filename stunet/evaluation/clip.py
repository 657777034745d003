"""Loads CLIP models, and embeds frames and texts.

Reads folders in the format of transformers: `config.json`, `model.safetensors` (or shards) and
`tokenizer.json`, of any size such as ViT-B/32 and ViT-L/14.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from stunet.conversion.hub_layout import find_weight_files, open_weight_files
from stunet.errors import UserError
from stunet.evaluation.clip_network import ClipConfig, ImageEncoder, TextEncoder, clip_config
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import load_parameters, sha256
from stunet.files import read_bytes, read_json
from stunet.paths import AnyPath, user_path
from stunet.weights.trees import Tree

# Mean and standard deviation of CLIP's training images, for values in 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_BATCH = 64
FIRST_TOKEN, LAST_TOKEN = "<|startoftext|>", "<|endoftext|>"

_IGNORED = ("logit_scale", "position_ids")  # training temperature, and a constant
_ORIGIN_HINTS = {
    "encoder.block.": "these are T5 weights",
    "conv3d.": "these are I3D weights",
    "visual.transformer.": "these are CLIP weights by OpenAI, expected those of transformers",
}


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A CLIP model: image encoder and text encoder.

    Attributes:
      images: Extracts embeddings of frames `[B, T, D]`, normalised to length 1.
      config: Sizes of the network.
      params: Parameters of both encoders.
      tokenizer: Tokenizer of the text encoder.
    """

    images: Extractor
    config: ClipConfig
    params: Tree
    tokenizer: tokenizers.Tokenizer

    def embed_texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns embeddings `[N, D]` of length 1. Truncates long texts (`count_tokens`)."""
        unique = list(dict.fromkeys(prompts))
        tokens, ends = self.tokenize(unique)
        size = min(len(unique), TEXT_BATCH)
        parts = []
        for start in range(0, len(unique), size):
            rows = np.minimum(np.arange(start, start + size), len(unique) - 1)
            with jax.default_matmul_precision("highest"):
                parts.append(_embed_texts(self.config, self.params, tokens[rows], ends[rows]))
        return np.concatenate(parts)[[unique.index(prompt) for prompt in prompts]]

    def count_tokens(self, prompt: str) -> int:
        """Returns the number of tokens of a text, which is truncated to `config.max_tokens`."""
        return len(self.tokenizer.encode(prompt, add_special_tokens=False).ids) + 2

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns token ids `[N, L]` int32, and the position `[N]` of each end token.

        Ids are padded with the end token. Attention is causal, so padding does not affect the
        embedding.
        """
        first, last = map(self.tokenizer.token_to_id, (FIRST_TOKEN, LAST_TOKEN))
        ids = np.full((len(prompts), self.config.max_tokens), last, np.int32)
        ends = np.zeros(len(prompts), np.int32)
        for row, prompt in enumerate(prompts):
            words = self.tokenizer.encode(prompt, add_special_tokens=False).ids
            words = words[: self.config.max_tokens - 2]
            ids[row, : len(words) + 1] = [first, *words]
            ends[row] = len(words) + 1
        return ids, ends


def mean_cosine(frames: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the mean cosine similarity `[N]` of the frames of each clip with its text.

    Args:
      frames: Embeddings `[N, T, D]` of length 1.
      texts: Embeddings `[N, D]` of length 1.
    """
    return np.einsum("ntd,nd->n", frames, texts) / frames.shape[1]


def load_clip(folder: str | AnyPath) -> ClipModel:
    """Loads the folder of a CLIP model.

    Raises:
      UserError: a file is missing, of another model, or a pickle (with a command to convert it).
    """
    folder = user_path(folder)
    path = folder / "config.json"
    config = clip_config(read_json(path), str(path))
    files = find_weight_files(folder, None)
    tensors = {k: v for k, v in open_weight_files(files).items() if not k.endswith(_IGNORED)}
    params = load_parameters(
        lambda: init_clip(config, jax.random.key(0)), tensors, folder, _ORIGIN_HINTS
    )
    images = Extractor(
        name=f"CLIP ViT, {config.vision.num_hidden_layers} layers of "
        f"{config.vision.hidden_size}, patches of {config.patch_size}",
        features=functools.partial(_embed_frames, config, params),
        resize=Resize(config.image_size, "bicubic"),
        min_frames=1,
        max_frames=None,
        weights_sha256=sha256(files),
    )
    return ClipModel(images, config, params, _read_tokenizer(folder / "tokenizer.json", config))


def init_clip(config: ClipConfig, key: jax.Array) -> Tree:
    """Returns initial parameters of both encoders."""
    tokens = jnp.zeros((1, config.max_tokens), jnp.int32)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    text = TextEncoder(config).init(key, tokens, tokens[:, 0])["params"]
    return {**text, **ImageEncoder(config).init(key, images)["params"]}


@functools.partial(jax.jit, static_argnums=0)
def _embed_frames(config: ClipConfig, params: Tree, videos: jax.Array) -> jax.Array:
    """Maps videos `[B, T, S, S, 3]` in [-1, 1] to embeddings `[B, T, D]`."""
    images = ((videos + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)
    images = images.reshape(-1, *videos.shape[2:])
    embedded = ImageEncoder(config).apply({"params": params}, images)
    return _normalise(embedded).reshape(*videos.shape[:2], -1)


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(config: ClipConfig, params: Tree, tokens: jax.Array, ends: jax.Array) -> jax.Array:
    """Maps tokens `[N, L]` with end positions `[N]` to embeddings `[N, D]`."""
    return _normalise(TextEncoder(config).apply({"params": params}, tokens, ends))


def _normalise(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _read_tokenizer(path: AnyPath, config: ClipConfig) -> tokenizers.Tokenizer:
    content = read_bytes(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{path}: invalid ({error}), expected a tokenizer.json") from error
    for token in (FIRST_TOKEN, LAST_TOKEN):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{path}: no token {token}, expected CLIP's tokenizer")
    if (size := tokenizer.get_vocab_size()) > config.vocab_size:
        raise UserError(
            f"{path}: {size} tokens, expected at most {config.vocab_size} as in the model's config"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
