"""Stage "t2i": a text-to-image model and its text encoder, from scratch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax

from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import UNetConfig
from stunet.training.initial_model import new_model, with_dtype
from stunet.training.losses import Batch, joint_loss
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.training.stages.stage import Stage
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree


@dataclass(frozen=True, kw_only=True)
class TextToImage(Stage):
    """Trains a text-to-image model and its text encoder on single frames.

    Attributes:
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder. A tokenizer with its `vocab_size` is trained
        on the captions.
      text_denoising: Weight of `text_denoising_loss`, which keeps words in the text encoder's
        states that single frames do not show; stage "t2v" learns them.
      sample_prompts: Prompts of the samples drawn during training.
    """

    name: ClassVar[str] = "t2i"
    unet: UNetConfig
    text_encoder: TextEncoderConfig = field()
    text_denoising: float = 0.0
    sample_prompts: tuple[str, ...] = ()

    def architecture(self, start: UNetConfig | None = None) -> UNetConfig:
        """See `Stage.architecture`."""
        return replace(self.unet, temporal=None)

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        unet = with_dtype(self.architecture(), run)
        return new_model(self.name, unet, self.text_encoder, run, data, captions)

    def is_trained(self, path: str) -> bool:
        """Whether a parameter is trained: all are."""
        return True

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the loss `[B]`: denoising of frames plus weighted denoising of captions."""
        return joint_loss(self.text_denoising, networks, diffusion, params, batch, seed)
