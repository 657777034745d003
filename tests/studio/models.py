"""Tiny models with random weights for the studio's tests."""

import dataclasses
from pathlib import Path

from stunet.diffusion import SamplingDefaults, SuperResolution
from stunet.schema import to_dict
from tests.tiny import RESOLUTION, UNET, save_tiny_model

CONDITIONAL_UNET = dataclasses.replace(UNET, cond_channels=4, cond_in_blocks=True)
UPSCALER_UNET = dataclasses.replace(
    UNET, in_channels=6, noise_level_embedding=True, self_attention=False
)
FACTOR, STEPS = 2, 2


def save_models(root: Path) -> dict[str, str]:
    """Writes four models and returns their folders by name: `fill`, `ssr`, `style`, `images`."""
    upscaler_config = {
        "stage": "ssr",
        "resolution": FACTOR * RESOLUTION,
        "super_resolution": to_dict(SuperResolution(FACTOR)),
        "sampling": to_dict(SamplingDefaults("ancestral", STEPS, 2.0)),
    }
    image_unet = UNET.text_to_image()
    folders = {
        "fill": save_tiny_model(root / "fill", CONDITIONAL_UNET, stage="conditional"),
        "ssr": save_tiny_model(root / "ssr", UPSCALER_UNET, **upscaler_config),
        "style": save_tiny_model(root / "style", image_unet, num_frames=1),
        "images": save_tiny_model(root / "images", image_unet, num_frames=1),
    }
    return {name: str(folder) for name, folder in folders.items()}
