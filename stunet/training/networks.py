"""The networks of a training run."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from stunet.models.t5 import T5Config
from stunet.models.unet import partitioned_unet
from stunet.models.unet_config import UNetConfig


@dataclass(frozen=True)
class Networks:
    """Architectures, and how the U-Net is distributed and rematerialised.

    Attributes:
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder, None if batches contain text states.
      mesh: Device mesh; axis "fsdp" shards parameters, axis "frames" splits videos. None for one
        device.
      remat: Rematerialisation policy of the U-Net (`RunConfig.remat`).
      attention: Backend of its spatial attention (`RunConfig.attention`).
    """

    unet: UNetConfig
    text_encoder: T5Config | None
    mesh: Mesh | None = None
    remat: str = "none"
    attention: str | None = None

    @property
    def apply_unet(self) -> Callable[..., jax.Array]:
        """The U-Net as `(variables, x, t, text, noise_level, cond, guidance_scale) -> output`."""
        return partitioned_unet(self.unet, self.mesh, self.remat, self.attention)
