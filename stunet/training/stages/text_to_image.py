"""Stage "t2i": a text-to-image model, from scratch or adapted to other images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax

from stunet.errors import UserError
from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import UNetConfig
from stunet.schema import Range
from stunet.training.initial_model import continued_image_model, new_model, with_dtype
from stunet.training.losses import Batch, joint_loss
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.training.stages.stage import Stage, check_new_or_continued, in_trained_part
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree


@dataclass(frozen=True, kw_only=True)
class TextToImage(Stage):
    """Trains a text-to-image model on single frames.

    A new model is trained with a new text encoder or a frozen one. A model in `init_from` is
    adapted, such as to another resolution: all of its U-Net is trained, with the run's schedule.

    Attributes:
      init_from: Text-to-image model to adapt, or text-to-video model of which the text-to-image
        part is adapted. "" trains a new model.
      unet: Architecture of a new U-Net, None with `init_from`.
      text_encoder: Architecture of a new text encoder; a tokenizer with its `vocab_size` is trained
        on the captions. Or the folder of a text encoder, which stays frozen; with `init_from` it
        replaces that of the model, and None keeps it.
      text_denoising: Weight of `text_denoising_loss`, which keeps words in the states of a new text
        encoder that single frames do not show; stage "t2v" learns them.
      frozen: Names of U-Net modules of `init_from` that are not trained.
      sample_prompts: Prompts of the samples drawn during training.

    Raises:
      UserError: Fields of a new model and of one in `init_from` are mixed or missing.
    """

    name: ClassVar[str] = "t2i"
    init_from: str = ""
    unet: UNetConfig | None = None
    text_encoder: TextEncoderConfig | str | None = None
    text_denoising: Annotated[float, Range(0)] = 0.0
    frozen: tuple[str, ...] = ()
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        check_new_or_continued(self, ("unet", "text_denoising"), ("frozen",))
        if self.init_from and self.trains_text_encoder:
            raise UserError(
                "text_encoder: an architecture, expected None or the folder of a text encoder with "
                "a model in init_from"
            )

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return (start if self.init_from else self.unet).text_to_image()

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        if self.init_from:
            sampled = "sample_prompts" if self.sample_prompts else None
            return continued_image_model(
                self.name, self.init_from, self.text_encoder, self.frozen, run, data, sampled
            )
        unet = with_dtype(self.architecture(None), run)
        return new_model(self.name, unet, self.text_encoder, run, data, captions)

    def is_trained(self, path: str) -> bool:
        """Whether a parameter is trained: all are, except a frozen text encoder and `frozen`."""
        return self.trains_text_encoder or in_trained_part(path, "unet", self.frozen)

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the loss `[B]`: denoising of frames plus weighted denoising of captions."""
        return joint_loss(self.text_denoising, networks, diffusion, params, batch, seed)
