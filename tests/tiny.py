"""A tiny random model, created without compiling anything, and helpers of several tests."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from stunet.checksums import CHECKSUMS
from stunet.diffusion import START_NOISE, Schedule, TimeGrid
from stunet.model import parameter_shapes
from stunet.models.t5 import T5Config
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import to_dict
from stunet.text import train_tokenizer
from stunet.weights.model_folder import ModelFolder, write_model_folder

RESOLUTION, NUM_FRAMES, FPS, MAX_TOKENS = 8, 4, 8.0, 12
CAPTIONS = ["a red circle moves left", "a green star is spinning", "the blue square bounces"]

T5 = T5Config(320, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
UNET = UNetConfig(
    channels=(8, 16),
    layers_per_block=(1, 1),
    attention_levels=(False, True),
    head_dim=8,
    text_dim=8,
    cross_attention_dim=8,
    pooling_heads=2,
    out_channels=3,
    norm_groups=4,
    temporal=TemporalConfig(resample=(True,), attention_layers=1, head_dim=8),
)


@contextlib.contextmanager
def fast_compiles() -> Iterator[None]:
    """Disables most of XLA's optimisations in the block, which halves the compile time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def random_params(shapes: dict, seed: int = 0) -> dict:
    """Returns random parameters of these shapes; zero-initialised blocks would hide errors."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        name = path[-1].key
        if name in ("scale", "weight"):
            return 1 + 0.1 * noise
        if len(leaf.shape) < 2:
            return 0.1 * noise
        return noise if name == "embedding" else noise / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def reference_ancestral_sampling(predict_eps, schedule, steps: int, noise) -> np.ndarray:
    """Samples with the equations of DDPM (2006.11239, equations 6 and 7), x0 clipped to [-1, 1].

    Args:
      predict_eps: Function of x and the timestep t that returns the guided prediction.
      schedule: Noise schedule.
      steps: Number of steps.
      noise: Function that returns the noise of a step index.
    """
    grid = TimeGrid.leading(schedule, steps)
    alpha_bar = np.append(grid.alpha_bars, 1.0)
    x = noise(START_NOISE)
    for i, t in enumerate(grid.timesteps):
        eps = predict_eps(x, float(t))
        now, following = alpha_bar[i], alpha_bar[i + 1]
        x0 = np.clip((x - np.sqrt(1 - now) * eps) / np.sqrt(now), -1, 1)
        beta = 1 - now / following
        mean = np.sqrt(following) * beta * x0 + np.sqrt(1 - beta) * (1 - following) * x
        variance = beta * (1 - following) / (1 - now)
        x = mean / (1 - now) + np.sqrt(variance) * noise(i)
    return x


def remove_checksums(folder: Path) -> None:
    """Makes a model folder one of an older version, whose files can be changed."""
    (folder / CHECKSUMS).unlink(missing_ok=True)


def save_tiny_model(
    folder: Path, unet: UNetConfig = UNET, num_frames: int = NUM_FRAMES, **config
) -> Path:
    """Writes the model folder of a tiny model; `config` replaces fields of its config."""
    tokenizer = folder.with_name(f"{folder.name}.tokenizer.json")
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    train_tokenizer(CAPTIONS, T5.vocab_size, tokenizer)
    shapes = parameter_shapes(unet, T5)
    fields = {
        "architecture": to_dict(unet),
        "stage": "t2i" if unet.temporal is None else "t2v",
        "resolution": RESOLUTION,
        "num_frames": num_frames,
        "fps": None if unet.temporal is None else FPS,
        "schedule": asdict(Schedule()),
        "prediction": "eps",
        "variance": "fixed_small",
        "text_encoder": {"t5": to_dict(T5), "max_tokens": MAX_TOKENS},
    }
    write_model_folder(
        folder, ModelFolder(fields | config, random_params(shapes), tokenizer.read_bytes())
    )
    tokenizer.unlink()
    return folder
